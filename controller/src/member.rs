//! One of several controllers: follows while another one leads, and leads when it is its turn.
//!
//! Owns the way from follower to leader; there is none back: a leader that loses its leadership ends, and its process
//! begins anew as a follower.

use crate::follower::Follower;
use crate::leader::{Call, Ended, LoadFailure, Options, Outbox, Service};
use crate::standing::{Known, Standing};
use berth_model::id::FleetId;
use berth_store::{CommitError, Fence, Leadership, Store, fleet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Pause after a campaign that failed; doubles with each.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: a store that is back finds a candidate soon enough.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long resigning may take: shorter than a lease, or it would be no use.
const RESIGNING: Duration = Duration::from_secs(3);

/// A member of the group.
pub(crate) struct Member {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) options: Options,
    /// Where this controller is reached.
    pub(crate) endpoint: String,
    pub(crate) queue: mpsc::Receiver<Call>,
    pub(crate) outbox: Arc<dyn Outbox>,
    pub(crate) stop: CancellationToken,
    pub(crate) follower: Follower,
}

impl Member {
    /// Follows, campaigns meanwhile, and leads from then on, until the process stops.
    ///
    /// # Errors
    /// Why it can go on neither as leader nor as follower.
    pub(crate) async fn run(self) -> Result<(), Ended> {
        let Self { store, options, endpoint, queue, outbox, stop, mut follower } = self;
        let leadership = tokio::select! {
            // A store of one process is won at once: then there is nothing to follow.
            biased;
            () = stop.cancelled() => return Ok(()),
            leadership = campaign(store.as_ref(), &options.candidate) => leadership?,
            broken = follower.run() => match broken? {},
        };
        let (publisher, standing) = follower.into_leader();
        // Until the world is loaded nobody leads.
        standing.send_replace(Standing::default());
        let term = leadership.term;
        let resigns = Arc::clone(&store);
        let leading = async {
            name_fleet(store.as_ref(), leadership.fence.clone(), options.commit_deadline).await?;
            Service::lead(leadership, store, options, queue, outbox, stop.clone(), publisher).await
        };
        let service = tokio::select! {
            () = stop.cancelled() => {
                let _late = tokio::time::timeout(RESIGNING, resigns.resign()).await;
                return Ok(());
            }
            service = leading => match service {
                Ok(service) => service,
                Err(error) => {
                    let _late = tokio::time::timeout(RESIGNING, resigns.resign()).await;
                    return Err(error);
                }
            },
        };
        standing.send_replace(Standing { leads: true, leader: Some(Known { endpoint, term }), told: None });
        let outcome = service.run().await;
        standing.send_replace(Standing::default());
        // So that the next one need not wait for it to run out.
        if tokio::time::timeout(RESIGNING, resigns.resign()).await.is_err() {
            tracing::warn!("the leadership is left to run out");
        }
        outcome
    }
}

/// Makes sure that the store says which fleet it holds, before any agent is told anything.
async fn name_fleet(store: &dyn Store, fence: Fence, deadline: Duration) -> Result<(), Ended> {
    let failed = |why: String| Ended::Store {
        attempts: 1,
        source: LoadFailure::from(berth_store::Error::Unavailable(format!(
            "it does not say which fleet it holds: {why}"
        ))),
    };
    let fresh = FleetId::new(uuid::Uuid::new_v4().to_string()).map_err(|error| failed(error.to_string()))?;
    match tokio::time::timeout(deadline, fleet::ensure(store, &fence, fresh)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(CommitError::Fenced)) => Err(Ended::LostLeadership),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer after {} ms", deadline.as_millis()))),
    }
}

/// Waits for a leadership as long as it takes.
async fn campaign(store: &dyn Store, candidate: &str) -> Result<Leadership, Ended> {
    let mut pause = PAUSE;
    loop {
        let error = match store.campaign(candidate).await {
            Ok(leadership) => return Ok(leadership),
            Err(error @ berth_store::Error::Corrupt(_)) => return Err(Ended::Broken(LoadFailure::from(error))),
            Err(error @ (berth_store::Error::Unavailable(_) | berth_store::Error::Compacted { .. })) => error,
        };
        tracing::warn!(%error, pause_ms = pause.as_millis(), "cannot stand for leader; trying again");
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests;
