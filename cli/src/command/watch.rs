//! `berth watch`: changes as they happen, across controllers that come and go.

use crate::args::{Format, Watch, Watched};
use crate::client::{Client, broken};
use crate::error::Error;
use crate::output::{Out, table};
use crate::progress::Progress;
use berth_proto::v1;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

/// How long a controller may stay away before watching ends: a take-over lasts seconds, a minute is an outage.
const AWAY: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(500);

/// Runs the verb until it is interrupted.
///
/// # Errors
/// When no controller answers for a minute, or it refuses.
pub async fn run(client: &Client, args: Watch, out: &mut Out<'_>) -> Result<(), Error> {
    let format = args.output.format;
    let mut revision = 0;
    let mut heard = Instant::now();
    let mut said = false;
    let mut progress = Progress::stderr();
    loop {
        let ended = match args.kind {
            Watched::Placements => placements(client, &mut revision, &mut heard, format, &mut said, out).await,
            Watched::Gpus => gpus(client, &mut revision, &mut heard, format, &mut said, out).await,
        };
        match ended {
            Ok(()) => {}
            Err(Ended::TooOld) => {
                progress.say("changes were missed, beginning again with how it is now");
                revision = 0;
            }
            Err(Ended::Error(Error::Unreachable { endpoint, why })) => {
                if heard.elapsed() > AWAY {
                    return Err(Error::Unreachable { endpoint, why });
                }
                progress.say("the controller does not answer, trying again");
            }
            Err(Ended::Error(error)) => return Err(error),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Why a stream came to an end.
enum Ended {
    /// The revision to resume from is gone.
    TooOld,
    Error(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

async fn next<T>(stream: &mut Streaming<T>, endpoint: &str) -> Result<Option<T>, Ended> {
    stream.message().await.map_err(|status| ended(&status, endpoint))
}

fn ended(status: &Status, endpoint: &str) -> Ended {
    if status.code() == Code::OutOfRange { Ended::TooOld } else { Ended::Error(broken(status, endpoint)) }
}

async fn placements(
    client: &Client,
    revision: &mut u64,
    heard: &mut Instant,
    format: Format,
    said: &mut bool,
    out: &mut Out<'_>,
) -> Result<(), Ended> {
    let request = v1::WatchPlacementsRequest { after_revision: *revision, name: String::new() };
    let opened = client.placements().watch(request).await;
    let mut stream = opened.map_err(|status| ended(&status, client.endpoint()))?.into_inner();
    while let Some(change) = next(&mut stream, client.endpoint()).await? {
        *heard = Instant::now();
        *revision = change.revision;
        if matches!(format, Format::Json | Format::Yaml) {
            out.event(format, "PlacementChange", &change)?;
            continue;
        }
        let Some(placement) = change.placement else { continue };
        if !std::mem::replace(said, true) {
            out.line(format_args!(
                "{:>9}  {:<28} {:<10} {:<20} {:>4}  {:<8} NOTE",
                "REVISION", "PLACEMENT", "PHASE", "NODE", "GPUS", "MODEL"
            ))?;
        }
        let name = placement.request.as_ref().map(|r| r.name.clone()).unwrap_or_default();
        let gpus = placement.request.as_ref().map(|r| r.gpus).unwrap_or_default();
        let node = placement.assignment.as_ref().map(|a| a.node.clone()).unwrap_or_default();
        let line = format!(
            "{:>9}  {name:<28} {:<10} {node:<20} {gpus:>4}  {:<8} {}",
            change.revision,
            table::phase_name(&placement),
            table::model(&placement),
            table::note(&placement)
        );
        out.line(line.trim_end())?;
    }
    Ok(())
}

async fn gpus(
    client: &Client,
    revision: &mut u64,
    heard: &mut Instant,
    format: Format,
    said: &mut bool,
    out: &mut Out<'_>,
) -> Result<(), Ended> {
    let request = v1::WatchGpusRequest { after_revision: *revision };
    let opened = client.inventory().watch(request).await;
    let mut stream = opened.map_err(|status| ended(&status, client.endpoint()))?.into_inner();
    while let Some(change) = next(&mut stream, client.endpoint()).await? {
        *heard = Instant::now();
        *revision = change.revision;
        if matches!(format, Format::Json | Format::Yaml) {
            out.event(format, "GpuChange", &change)?;
            continue;
        }
        let Some(gpu) = change.gpu else { continue };
        if !std::mem::replace(said, true) {
            out.line(format_args!(
                "{:>9}  {:<48} {:<8} {:<16} {:<10} PLACEMENT",
                "REVISION", "GPU", "MODEL", "STATE", "AVAILABLE"
            ))?;
        }
        let observed = gpu.observed.unwrap_or_default();
        let model = observed.survey.as_ref().map(|s| s.model.clone()).unwrap_or_default();
        let line = format!(
            "{:>9}  {:<48} {model:<8} {:<16} {:<10} {}",
            change.revision,
            gpu.id,
            table::gpu_state(&observed),
            table::yes(gpu.available),
            gpu.placement
        );
        out.line(line.trim_end())?;
    }
    Ok(())
}
