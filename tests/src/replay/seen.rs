//! What Watch told about our placements: in which phase each is, and when it first was active.

use super::caller::Caller;
use berth_proto::v1::{Phase, WatchPlacementsRequest};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::Code;

/// Pause before a watch that broke is opened again.
const PAUSE: Duration = Duration::from_millis(200);

/// One placement as last seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Last {
    pub(super) phase: Phase,
    /// Whether it ever had GPUs.
    pub(super) placed: bool,
    pub(super) active_at: Option<Instant>,
}

impl Last {
    /// Whether it is active or will never be.
    fn decided(&self) -> bool {
        self.active_at.is_some() || matches!(self.phase, Phase::Active | Phase::Released | Phase::Failed)
    }
}

/// Everything seen so far. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    last: Arc<Mutex<HashMap<String, Last>>>,
    changes: watch::Sender<u64>,
}

impl Seen {
    pub(super) fn new() -> Self {
        Self { last: Arc::default(), changes: watch::Sender::new(0) }
    }

    /// Follows the placements whose names begin with `prefix`, for ever.
    pub(super) async fn follow(self, caller: Caller, prefix: String) {
        let mut after_revision = 0;
        loop {
            let ask = WatchPlacementsRequest { after_revision, name: String::new() };
            match caller.placements().watch(ask).await {
                Ok(stream) => {
                    let mut stream = stream.into_inner();
                    while let Ok(Some(change)) = stream.message().await {
                        after_revision = after_revision.max(change.revision);
                        if let Some(placement) = change.placement {
                            let name = placement.request.as_ref().map_or("", |request| request.name.as_str());
                            if name.starts_with(&prefix) {
                                self.note(name, placement.phase(), placement.assignment.is_some());
                            }
                        }
                    }
                }
                // Too much happened since: begin with all that are live.
                Err(status) if status.code() == Code::OutOfRange => after_revision = 0,
                Err(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn note(&self, name: &str, phase: Phase, placed: bool) {
        {
            let mut all = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let last = all.entry(name.to_owned()).or_insert(Last { phase, placed, active_at: None });
            last.phase = phase;
            last.placed |= placed;
            if phase == Phase::Active && last.active_at.is_none() {
                last.active_at = Some(Instant::now());
            }
        }
        self.changes.send_modify(|count| *count += 1);
    }

    /// What was last seen of a placement.
    pub(super) fn get(&self, name: &str) -> Option<Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    /// Waits until a placement is active or over; false when that takes longer than `limit`.
    pub(super) async fn decided(&self, name: &str, limit: Duration) -> bool {
        let mut changes = self.changes.subscribe();
        let wait = async {
            loop {
                changes.mark_unchanged();
                if self.get(name).is_some_and(|last| last.decided()) {
                    return;
                }
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }
}
