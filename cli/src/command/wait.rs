//! Waiting for a placement to come to an end, through Watch.

use crate::client::{Client, broken};
use crate::error::Error;
use crate::output::{moment, table};
use crate::progress::Progress;
use berth_proto::v1;
use std::time::Duration;
use tokio::time::Instant;

/// Pause before a broken stream is opened again: long enough not to hammer a controller that restarts, short enough
/// not to be noticed.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a stream may be quiet before the placement is read. Phases last minutes, so this costs nothing, and it
/// makes up for a stream that died without saying so.
const QUIET: Duration = Duration::from_secs(15);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The VM has its GPUs.
    Active,
    /// The GPUs are free again.
    Free,
}

/// Reads one placement.
///
/// # Errors
/// What the call ran into.
pub async fn get(client: &Client, name: &str) -> Result<v1::Placement, Error> {
    let request = v1::GetPlacementRequest { name: name.to_owned() };
    client
        .read(request, |r| {
            let mut api = client.placements();
            async move { api.get(r).await }
        })
        .await
}

/// The node that a placement is on. None where it has none, or the controller does not say: what is told of the placement
/// must not fail for it.
pub(crate) async fn node_of(client: &Client, placement: &v1::Placement) -> Option<v1::Node> {
    let name = placement.assignment.as_ref()?.node.clone();
    let asked = client.read(v1::GetNodeRequest { name }, |r| {
        let mut api = client.inventory();
        async move { api.get_node(r).await }
    });
    asked.await.ok()
}

/// A node's agent that is not there, and since when. A controller that does not hear the leader knows nothing of agents:
/// it says so by another name.
pub(crate) fn absent_agent(node: &v1::Node) -> Option<String> {
    let since = moment(node.since.as_ref()).map(|at| format!(" since {at}")).unwrap_or_default();
    (node.not_ready == "NodeDisconnected").then(|| format!("{}'s agent, which is not connected{since}", node.name))
}

/// Whether `placement` has come to the goal, or to another end.
fn judge(placement: &v1::Placement, goal: Goal) -> Option<Result<(), String>> {
    let name = || placement.request.as_ref().map(|r| r.name.clone()).unwrap_or_default();
    let why = || placement.failure.as_ref().map(|f| f.text.clone()).unwrap_or_else(|| "no reason was given".to_owned());
    match (placement.phase(), goal) {
        (v1::Phase::Active, Goal::Active) | (v1::Phase::Released, Goal::Free) => Some(Ok(())),
        (v1::Phase::Released, Goal::Active) => Some(Err(format!("placement {} was released", name()))),
        (v1::Phase::Failed, Goal::Active) if placement.undone => {
            Some(Err(format!("placement {} failed: {}; everything was given back", name(), why())))
        }
        (v1::Phase::Failed, Goal::Active) => Some(Err(format!(
            "placement {} failed: {}; its GPUs stay claimed until its agent could give them back",
            name(),
            why()
        ))),
        (v1::Phase::Failed, Goal::Free) => placement.undone.then_some(Ok(())),
        (
            v1::Phase::Unspecified
            | v1::Phase::Queued
            | v1::Phase::Held
            | v1::Phase::Preparing
            | v1::Phase::Attaching
            | v1::Phase::Starting
            | v1::Phase::Verifying
            | v1::Phase::Active
            | v1::Phase::Releasing,
            Goal::Active | Goal::Free,
        ) => None,
    }
}

/// Waits until `placement` comes to `goal`.
///
/// # Errors
/// When it comes to another end, or the time is over. A controller that does not answer is waited for.
pub async fn until(
    client: &Client,
    mut placement: v1::Placement,
    goal: Goal,
    timeout: Duration,
    progress: &mut Progress,
) -> Result<v1::Placement, Error> {
    let name = placement.request.as_ref().map(|r| r.name.clone()).unwrap_or_default();
    let uid = placement.uid.clone();
    let end = Instant::now() + timeout;
    let mut last = Ok(());
    while Instant::now() < end {
        if let Some(verdict) = judge(&placement, goal) {
            return verdict.map(|()| placement).map_err(Error::Ended);
        }
        if last.is_ok() {
            progress.say(situation(&placement));
        }
        last = match tokio::time::timeout_at(end, follow(client, &name, &uid, &mut placement, goal, progress)).await {
            Ok(Ok(())) | Err(_) => Ok(()),
            Ok(Err(error)) if error.may_pass() => {
                progress.say("the controller does not answer, trying again");
                tokio::time::sleep(AGAIN).await;
                Err(error)
            }
            Ok(Err(error)) => return Err(error),
        };
    }
    last?;
    let phase = table::phase_name(&placement);
    let waits_for = node_of(client, &placement).await.as_ref().and_then(absent_agent);
    Err(Error::WaitedTooLong { what: name, phase, waited: timeout, waits_for })
}

/// Follows one stream until the placement comes to the goal or another end, or the stream ends.
async fn follow(
    client: &Client,
    name: &str,
    uid: &str,
    placement: &mut v1::Placement,
    goal: Goal,
    progress: &mut Progress,
) -> Result<(), Error> {
    // First the stream, then the read: whatever changes after the read is in the stream.
    let request = v1::WatchPlacementsRequest { after_revision: 0, name: name.to_owned() };
    let opened = client.read(request, |mut r| {
        // The stream lives as long as the wait, not as long as one call.
        r.metadata_mut().remove("grpc-timeout");
        let mut api = client.placements();
        async move { api.watch(r).await }
    });
    let mut stream = opened.await?;
    loop {
        *placement = mine(get(client, name).await?, uid, name)?;
        progress.say(situation(placement));
        loop {
            if judge(placement, goal).is_some() {
                return Ok(());
            }
            match tokio::time::timeout(QUIET, stream.message()).await {
                Ok(Ok(Some(v1::PlacementChange { placement: Some(seen), revision: _ }))) => {
                    // A stream begins with how it is; that may be older than what was read.
                    if seen.uid == uid && seen.version >= placement.version {
                        *placement = seen;
                        progress.say(situation(placement));
                    }
                }
                Ok(Ok(Some(v1::PlacementChange { placement: None, revision: _ }))) => {}
                Ok(Ok(None)) => {
                    tokio::time::sleep(AGAIN).await;
                    return Ok(());
                }
                Ok(Err(status)) => return Err(broken(&status, client.endpoint())),
                Err(_) => break,
            }
        }
    }
}

fn mine(found: v1::Placement, uid: &str, name: &str) -> Result<v1::Placement, Error> {
    if found.uid == uid {
        Ok(found)
    } else {
        Err(Error::Ended(format!("placement {name} is over, and its name belongs to another one now ({})", found.uid)))
    }
}

/// Where a placement is, in a line.
fn situation(placement: &v1::Placement) -> String {
    let note = table::note(placement);
    let phase = table::phase_name(placement);
    let node = placement.assignment.as_ref().map(|a| format!(" on {}", a.node)).unwrap_or_default();
    let error = placement
        .current_step
        .as_ref()
        .and_then(|c| c.last_error.as_ref())
        .map(|e| format!(" (last error: {})", e.text));
    let note = if note.is_empty() { String::new() } else { format!(": {note}") };
    format!("{phase}{node}{note}{}", error.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(phase: v1::Phase, undone: bool) -> v1::Placement {
        v1::Placement { phase: phase.into(), undone, ..Default::default() }
    }

    #[test]
    fn every_end_is_seen_as_what_it_is() {
        let verdict = |phase, undone, goal| judge(&placement(phase, undone), goal).map(|v| v.is_ok());
        assert_eq!(verdict(v1::Phase::Active, false, Goal::Active), Some(true));
        assert_eq!(verdict(v1::Phase::Held, false, Goal::Active), None);
        assert_eq!(verdict(v1::Phase::Releasing, false, Goal::Active), None, "the reason comes with the end");
        assert_eq!(verdict(v1::Phase::Failed, false, Goal::Active), Some(false));
        assert_eq!(verdict(v1::Phase::Failed, true, Goal::Active), Some(false));
        assert_eq!(verdict(v1::Phase::Released, false, Goal::Active), Some(false));
        assert_eq!(verdict(v1::Phase::Released, false, Goal::Free), Some(true));
        assert_eq!(verdict(v1::Phase::Failed, true, Goal::Free), Some(true));
        assert_eq!(verdict(v1::Phase::Failed, false, Goal::Free), None, "its GPUs are not free yet");
        assert_eq!(verdict(v1::Phase::Active, false, Goal::Free), None);
    }
}
