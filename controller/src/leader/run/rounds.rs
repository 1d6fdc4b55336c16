//! The leader's rounds: what only its brain looks up is held against the placements, some of them each second.
//!
//! Readers have the rest of the world, so that it is checked as a whole beside the leader ([`berth_core::invariants`]); the
//! brain they do not have, and the leader cannot stop for the time that all placements take.

use crate::checked::Findings;
use berth_core::decide::Brain;
use berth_core::invariants::Violation;
use berth_model::PlacementName;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two parts of a round.
const PAUSE: Duration = Duration::from_secs(1);
/// Placements in one part: about half a millisecond of the leader's time, and 40,000 placements are seen within 80 s.
const PART: usize = 512;
/// Findings that are told in one round: a person needs to see that there are some.
const KEPT: usize = 100;

#[derive(Debug)]
pub(super) struct Rounds {
    findings: Findings,
    /// Of the round under way.
    found: Vec<Violation>,
    /// How far it has come.
    after: Option<PlacementName>,
    last: Instant,
}

impl Rounds {
    pub(super) fn new(findings: Findings) -> Self {
        Self { findings, found: Vec::new(), after: None, last: Instant::now() }
    }

    /// Goes on, if it is time.
    pub(super) fn go_on(&mut self, brain: &Brain, now: Instant) {
        if now.duration_since(self.last) < PAUSE {
            return;
        }
        self.last = now;
        let (found, last) = brain.check_some(self.after.as_ref(), PART);
        let news = !found.is_empty();
        for violation in found.into_iter().take(KEPT.saturating_sub(self.found.len())) {
            tracing::error!(%violation, "an invariant is broken");
            self.found.push(violation);
        }
        self.after = last;
        if self.after.is_none() {
            self.findings.store(Arc::new(std::mem::take(&mut self.found)));
        } else if news {
            self.findings.store(Arc::new(self.found.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{request, uid};
    use berth_core::decide::Limits;
    use berth_model::Timestamp;
    use berth_model::placement::{Phase, Placement};

    /// A brain with so many placements that wait for a GPU.
    fn brain(placements: usize) -> Brain {
        let now = Timestamp::from_millis(0);
        let queued = (0..placements).map(|number| Placement {
            uid: uid(u32::try_from(number).unwrap()),
            request: request(&name(number), 1),
            caller: "test".to_owned(),
            trace: None,
            created: now,
            version: 1,
            phase: Phase::Queued { until: now.after(Duration::from_secs(60)) },
            phase_since: now,
            assignment: None,
            vm_id: None,
            generation: 0,
            history: Vec::new(),
        });
        Brain::load(1, Limits::default(), Vec::new(), queued.collect(), now).unwrap()
    }

    fn name(number: usize) -> String {
        format!("p{number:04}")
    }

    #[test]
    fn each_part_goes_on_where_the_last_one_ended_and_a_round_replaces_what_the_last_one_found() {
        let (findings, mut now) = (Findings::default(), Instant::now());
        findings.store(Arc::new(vec![Violation { rule: "I8", text: "mended since".to_owned() }]));
        let (mut rounds, brain) = (Rounds::new(Arc::clone(&findings)), brain(PART + 1));
        let mut go_on = |rounds: &mut Rounds| {
            now += PAUSE * 2;
            rounds.go_on(&brain, now);
            // It is not time again.
            rounds.go_on(&brain, now);
            rounds.after.as_ref().map(ToString::to_string)
        };
        assert_eq!(go_on(&mut rounds), Some(name(PART - 1)));
        assert_eq!(go_on(&mut rounds), Some(name(PART)));
        assert_eq!(findings.load().len(), 1, "the round is not over");
        assert_eq!(go_on(&mut rounds), None);
        assert!(findings.load().is_empty());
        assert_eq!(go_on(&mut rounds), Some(name(PART - 1)), "the next round");
    }
}
