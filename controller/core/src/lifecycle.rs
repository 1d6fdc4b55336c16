//! The life of a placement: one function from (phase, event) to the next phase. Every pair is listed; none is left to a
//! default.

use crate::limits::Limits;
use berth_model::Timestamp;
use berth_model::placement::{FailureReason, Phase, ReleaseCause, StepError, StepKind};

/// What can happen to a placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// GPUs and node were decided; the hold lasts until then.
    Placed {
        /// When the hold expires.
        until: Timestamp,
    },
    /// Nothing fits now; it waits until then.
    MustWait {
        /// When it gives up.
        until: Timestamp,
    },
    /// Its VM is there.
    VmFound,
    /// Its agent began a step.
    StepBegan(StepKind),
    /// Its agent saw that what is wanted is so.
    Satisfied,
    /// Its agent gave up on a step.
    GaveUp {
        /// The step.
        step: StepKind,
        /// Its last error.
        error: StepError,
    },
    /// Its caller wants it to end.
    ReleaseAsked,
    /// Its phase has lasted too long.
    DeadlinePassed(FailureReason),
}

fn failed(reason: FailureReason, undone: bool) -> Option<Phase> {
    Some(Phase::Failed { reason, undone })
}

fn undo(reason: FailureReason, now: Timestamp, limits: &Limits) -> Option<Phase> {
    releasing(ReleaseCause::Failure(reason), now, limits)
}

fn releasing(cause: ReleaseCause, now: Timestamp, limits: &Limits) -> Option<Phase> {
    Some(Phase::Releasing { cause, until: now.after(limits.release) })
}

/// How far a step takes a placement on its way to active: 0 preparing … 3 verifying.
fn stage(step: StepKind) -> Option<u8> {
    match step {
        StepKind::Check
        | StepKind::MakeStandalone
        | StepKind::StopVm
        | StepKind::ConfigureVm
        | StepKind::Disable
        | StepKind::Dismount => Some(0),
        StepKind::Attach => Some(1),
        StepKind::StartVm => Some(2),
        StepKind::Verify | StepKind::InstallDriver => Some(3),
        StepKind::Detach | StepKind::Mount | StepKind::Enable | StepKind::RestoreVm => None,
    }
}

/// A step moves the phase forward, never back: a repeated earlier step is still part of the later phase.
fn forward(at: u8, step: StepKind, now: Timestamp, limits: &Limits) -> Option<Phase> {
    match stage(step).filter(|stage| *stage > at)? {
        1 => Some(Phase::Attaching { until: now.after(limits.attach) }),
        2 => Some(Phase::Starting { until: now.after(limits.start) }),
        _ => Some(Phase::Verifying { until: now.after(limits.verify) }),
    }
}

/// The phase that follows, or `None` when the event changes nothing in this phase.
pub fn next(phase: &Phase, event: &Event, now: Timestamp, limits: &Limits) -> Option<Phase> {
    match phase {
        Phase::Requested => match event {
            Event::Placed { until } => Some(Phase::Held { until: *until }),
            Event::MustWait { until } => Some(Phase::Queued { until: *until }),
            Event::VmFound
            | Event::StepBegan(_)
            | Event::Satisfied
            | Event::GaveUp { .. }
            | Event::ReleaseAsked
            | Event::DeadlinePassed(_) => None,
        },
        Phase::Queued { .. } => match event {
            Event::Placed { until } => Some(Phase::Held { until: *until }),
            Event::ReleaseAsked => Some(Phase::Released),
            Event::DeadlinePassed(reason) => failed(reason.clone(), true),
            Event::MustWait { .. } | Event::VmFound | Event::StepBegan(_) | Event::Satisfied | Event::GaveUp { .. } => {
                None
            }
        },
        // Nobody has touched anything yet: ending it is a matter of the store alone.
        Phase::Held { .. } => match event {
            Event::VmFound => Some(Phase::Preparing { until: now.after(limits.prepare) }),
            Event::ReleaseAsked => Some(Phase::Released),
            Event::DeadlinePassed(reason) => failed(reason.clone(), true),
            Event::Placed { .. }
            | Event::MustWait { .. }
            | Event::StepBegan(_)
            | Event::Satisfied
            | Event::GaveUp { .. } => None,
        },
        Phase::Preparing { .. } => under_way(0, event, now, limits),
        Phase::Attaching { .. } => under_way(1, event, now, limits),
        Phase::Starting { .. } => under_way(2, event, now, limits),
        Phase::Verifying { .. } => under_way(3, event, now, limits),
        Phase::Active => match event {
            Event::ReleaseAsked => releasing(ReleaseCause::Asked, now, limits),
            Event::Placed { .. }
            | Event::MustWait { .. }
            | Event::VmFound
            | Event::StepBegan(_)
            | Event::Satisfied
            | Event::GaveUp { .. }
            | Event::DeadlinePassed(_) => None,
        },
        Phase::Releasing { cause, .. } => match event {
            Event::Satisfied => match cause {
                ReleaseCause::Asked => Some(Phase::Released),
                ReleaseCause::Failure(reason) => failed(reason.clone(), true),
            },
            // The first reason is the one to tell; what hinders the undoing is told by the current step.
            Event::DeadlinePassed(late) => match cause {
                ReleaseCause::Asked => failed(late.clone(), false),
                ReleaseCause::Failure(reason) => failed(reason.clone(), false),
            },
            Event::Placed { .. }
            | Event::MustWait { .. }
            | Event::VmFound
            | Event::StepBegan(_)
            | Event::GaveUp { .. }
            | Event::ReleaseAsked => None,
        },
        // The agent keeps trying; when it is clean after all, the claims may go.
        Phase::Failed { reason, undone: false } => match event {
            Event::Satisfied => failed(reason.clone(), true),
            Event::Placed { .. }
            | Event::MustWait { .. }
            | Event::VmFound
            | Event::StepBegan(_)
            | Event::GaveUp { .. }
            | Event::ReleaseAsked
            | Event::DeadlinePassed(_) => None,
        },
        Phase::Released | Phase::Failed { undone: true, .. } => None,
    }
}

fn under_way(stage: u8, event: &Event, now: Timestamp, limits: &Limits) -> Option<Phase> {
    match event {
        Event::StepBegan(step) => forward(stage, *step, now, limits),
        Event::Satisfied => Some(Phase::Active),
        Event::GaveUp { step, error } => undo(FailureReason::Step { step: *step, error: error.clone() }, now, limits),
        Event::ReleaseAsked => releasing(ReleaseCause::Asked, now, limits),
        Event::DeadlinePassed(reason) => undo(reason.clone(), now, limits),
        Event::Placed { .. } | Event::MustWait { .. } | Event::VmFound => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::placement::StepErrorClass;
    use expect_test::expect;
    use std::fmt::Write as _;

    fn error() -> StepError {
        StepError { class: StepErrorClass::Failed, text: "no".into() }
    }

    fn phases() -> Vec<Phase> {
        let until = Timestamp::from_millis(1);
        let reason = FailureReason::HoldExpired;
        vec![
            Phase::Requested,
            Phase::Queued { until },
            Phase::Held { until },
            Phase::Preparing { until },
            Phase::Attaching { until },
            Phase::Starting { until },
            Phase::Verifying { until },
            Phase::Active,
            Phase::Releasing { cause: ReleaseCause::Asked, until },
            Phase::Releasing { cause: ReleaseCause::Failure(reason.clone()), until },
            Phase::Released,
            Phase::Failed { reason: reason.clone(), undone: false },
            Phase::Failed { reason, undone: true },
        ]
    }

    fn events() -> Vec<(&'static str, Event)> {
        let until = Timestamp::from_millis(2);
        vec![
            ("placed", Event::Placed { until }),
            ("must wait", Event::MustWait { until }),
            ("vm found", Event::VmFound),
            ("disable began", Event::StepBegan(StepKind::Disable)),
            ("attach began", Event::StepBegan(StepKind::Attach)),
            ("start began", Event::StepBegan(StepKind::StartVm)),
            ("verify began", Event::StepBegan(StepKind::Verify)),
            ("detach began", Event::StepBegan(StepKind::Detach)),
            ("satisfied", Event::Satisfied),
            ("gave up", Event::GaveUp { step: StepKind::Attach, error: error() }),
            ("release asked", Event::ReleaseAsked),
            ("deadline", Event::DeadlinePassed(FailureReason::HoldExpired)),
        ]
    }

    fn show(phase: &Phase) -> String {
        if let Phase::Releasing { cause: ReleaseCause::Failure(_), .. } = phase {
            "Releasing after failure".into()
        } else if let Phase::Failed { undone: false, .. } = phase {
            "Failed, not undone".into()
        } else {
            phase.name().into()
        }
    }

    #[test]
    fn every_pair_of_phase_and_event() {
        let mut table = String::new();
        for phase in phases() {
            writeln!(table, "{}", show(&phase)).unwrap();
            for (name, event) in events() {
                if let Some(after) = next(&phase, &event, Timestamp::from_millis(0), &Limits::default()) {
                    writeln!(table, "  {name} -> {}", show(&after)).unwrap();
                }
            }
        }
        expect![[r#"
            Requested
              placed -> Held
              must wait -> Queued
            Queued
              placed -> Held
              release asked -> Released
              deadline -> Failed
            Held
              vm found -> Preparing
              release asked -> Released
              deadline -> Failed
            Preparing
              attach began -> Attaching
              start began -> Starting
              verify began -> Verifying
              satisfied -> Active
              gave up -> Releasing after failure
              release asked -> Releasing
              deadline -> Releasing after failure
            Attaching
              start began -> Starting
              verify began -> Verifying
              satisfied -> Active
              gave up -> Releasing after failure
              release asked -> Releasing
              deadline -> Releasing after failure
            Starting
              verify began -> Verifying
              satisfied -> Active
              gave up -> Releasing after failure
              release asked -> Releasing
              deadline -> Releasing after failure
            Verifying
              satisfied -> Active
              gave up -> Releasing after failure
              release asked -> Releasing
              deadline -> Releasing after failure
            Active
              release asked -> Releasing
            Releasing
              satisfied -> Released
              deadline -> Failed, not undone
            Releasing after failure
              satisfied -> Failed
              deadline -> Failed, not undone
            Released
            Failed, not undone
              satisfied -> Failed
            Failed
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn claims_are_given_up_only_by_an_event_that_proves_the_gpus_free() {
        for phase in phases().into_iter().filter(Phase::holds_claims) {
            for (name, event) in events() {
                let Some(after) = next(&phase, &event, Timestamp::from_millis(0), &Limits::default()) else { continue };
                let untouched = matches!(phase, Phase::Held { .. });
                assert!(
                    after.holds_claims() || untouched || event == Event::Satisfied,
                    "{phase:?} gives up its claims on {name}"
                );
            }
        }
    }
}
