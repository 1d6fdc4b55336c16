//! `berth commit`: the VM of a held placement exists now.

use crate::args::{Commit, Format};
use crate::client::Client;
use crate::error::{Error, Unsure};
use crate::output::{Out, table};
use berth_proto::v1;

/// Runs the verb.
///
/// # Errors
/// What the call ran into.
pub async fn run(client: &Client, args: Commit, out: &mut Out<'_>) -> Result<(), Error> {
    let Commit { name, vm_id, version, output } = args;
    let request = v1::CommitPlacementRequest {
        name: name.clone(),
        vm_id: vm_id.unwrap_or_default(),
        version: version.unwrap_or_default(),
    };
    // A second commit finds no hold any more and is refused, so it cannot be repeated blindly.
    let placement = client
        .write_once(request, Unsure::ReadBack { name }, |r| {
            let mut api = client.placements();
            async move { api.commit(r).await }
        })
        .await?;
    match output.format {
        Format::Table | Format::Wide => {
            let one = table::placements(std::slice::from_ref(&placement), output.format == Format::Wide, out.style);
            out.table(one, "")
        }
        Format::Json | Format::Yaml => out.message(output.format, "Placement", &placement),
    }
}
