//! `berth release`: take a placement's GPUs back.

use super::wait::{self, Goal};
use crate::args::{Format, Release};
use crate::client::Client;
use crate::error::{Error, Unsure};
use crate::output::{Out, table};
use crate::progress::Progress;
use berth_proto::v1;

/// Runs the verb.
///
/// # Errors
/// A refusal, a wait that was too short, or what the call ran into.
pub async fn run(client: &Client, args: Release, out: &mut Out<'_>) -> Result<(), Error> {
    let Release { name, uid, version, wait, timeout, output } = args;
    let request =
        v1::ReleasePlacementRequest { name, uid: uid.unwrap_or_default(), version: version.unwrap_or_default() };
    let call = |r| {
        let mut api = client.placements();
        async move { api.release(r).await }
    };
    let mut placement = if request.version == 0 {
        client.write(request, Unsure::Again, call).await?
    } else {
        // The first release moves the version on, so a second with the old one is refused.
        let name = request.name.clone();
        client.write_once(request, Unsure::ReadBack { name }, call).await?
    };
    if wait {
        let mut progress = Progress::stderr();
        placement = wait::until(client, placement, Goal::Free, timeout, &mut progress).await?;
    }
    match output.format {
        Format::Table | Format::Wide => {
            let one = table::placements(std::slice::from_ref(&placement), output.format == Format::Wide, out.style);
            out.table(one, "")
        }
        Format::Json | Format::Yaml => out.message(output.format, "Placement", &placement),
    }
}
