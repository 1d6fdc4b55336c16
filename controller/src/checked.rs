//! Whether a running controller keeps the rules of truth: all that is kept up to date step by step is recomputed now and then.

use crate::clock;
use crate::replica::Replica;
use arc_swap::ArcSwap;
use berth_core::invariants::{self, Violation};
use berth_model::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What the last check of the invariants found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Broken invariants; empty is good.
    pub violations: Vec<Violation>,
    /// When it was made; none before the first.
    pub at: Option<Timestamp>,
}

/// Where the one who checks leaves the result for those who ask.
pub(crate) type SharedCheck = Arc<ArcSwap<Checked>>;

/// What a leader found of that which only it has; empty is good.
pub(crate) type Findings = Arc<ArcSwap<Vec<Violation>>>;

/// Recomputes, now and then, all that is kept up to date step by step, but for what only a leader has and checks itself
/// (`findings`). What differs is a fault of Berth.
pub(crate) async fn check(
    replica: Replica,
    findings: Findings,
    result: SharedCheck,
    every: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(every) => {}
        }
        let snapshot = replica.now();
        let mut violations = tokio::task::spawn_blocking(move || invariants::check(&snapshot.world)).await?;
        for violation in &violations {
            tracing::error!(%violation, "an invariant is broken");
        }
        violations.extend(findings.load().iter().cloned());
        result.store(Arc::new(Checked { violations, at: Some(clock::now()) }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::eventually;

    #[tokio::test]
    async fn the_invariants_are_recomputed_again_and_again() {
        let (replica, _publisher) = Replica::new(berth_core::world::World::default(), 1, 1, Timestamp::from_millis(0));
        let checked: SharedCheck = Arc::default();
        let stop = CancellationToken::new();
        let findings = Findings::default();
        let (of_leader, every) = (Arc::clone(&findings), Duration::from_millis(1));
        let running = check(replica, of_leader, Arc::clone(&checked), every, stop.clone());
        let watching = async {
            eventually("a first check", || checked.load().at.is_some()).await;
            let first = checked.load().at;
            eventually("another check", || checked.load().at > first).await;
            assert!(checked.load().violations.is_empty());
            let of_leader = Violation { rule: "I8", text: "the queue is wrong about p".to_owned() };
            findings.store(Arc::new(vec![of_leader.clone()]));
            eventually("what the leader found", || checked.load().violations == [of_leader.clone()]).await;
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(running, watching);
        ended.unwrap();
    }
}
