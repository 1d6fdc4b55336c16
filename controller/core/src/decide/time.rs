//! What time brings: phases that end by themselves, room for those who wait, a history that is forgotten.

use super::Brain;
use super::draft::Draft;
use crate::desired;
use crate::lifecycle::Event;
use crate::schedule;
use berth_model::placement::{FailureReason, Phase, Placement};
use berth_model::{PlacementName, Timestamp};
use std::time::Duration;

/// Queued placements looked at in one tick: some hundred microseconds each when nothing fits, so that callers never wait
/// longer than a few milliseconds behind them.
const QUEUE_LOOKS: usize = 32;
/// How long agents get, after a leader has taken over, to tell what they did before any of it counts as late. They are
/// back within some seconds of a controller's return, and look at their hosts at once.
const RECONNECT: Duration = Duration::from_secs(60);
/// Forgotten in one tick: two writes each.
const FORGETS: usize = super::draft::MAX_PLACEMENTS;

impl Brain {
    pub(super) fn tick(&mut self, draft: &mut Draft) {
        self.end_phases(draft);
        for node in self.waiting_vms.clone() {
            self.take_up_held(draft, &node);
        }
        self.serve_queue(draft);
        self.forget_history(draft);
    }

    fn end_phases(&mut self, draft: &mut Draft) {
        let due: Vec<_> = self
            .lookups
            .due(draft.now)
            .filter(|name| self.end_of(name) <= Some(draft.now))
            .take(super::draft::MAX_PLACEMENTS)
            .cloned()
            .collect();
        for name in due {
            if !draft.has_room() {
                return;
            }
            if let Some(placement) = self.world.placement(&name) {
                let event = Event::DeadlinePassed(self.lateness(placement));
                self.happen(draft, &name, &event, |_| {});
            }
        }
    }

    /// When a placement's phase ends by itself. Agents go on while no controller is there: what they did meanwhile
    /// they may tell first.
    fn end_of(&self, name: &PlacementName) -> Option<Timestamp> {
        let phase = &self.world.placement(name)?.phase;
        let until = phase.deadline()?;
        let heard = self.since.after(RECONNECT);
        Some(if desired::intent(phase).is_some() { until.max(heard) } else { until })
    }

    /// When the next phase ends by itself.
    pub(super) fn next_end(&self) -> Option<Timestamp> {
        let early = self.lookups.due(self.since.after(RECONNECT)).filter_map(|name| self.end_of(name)).min();
        early.or_else(|| self.lookups.next_deadline())
    }

    fn lateness(&self, placement: &Placement) -> FailureReason {
        let live = self.world.live(placement.name()).and_then(|live| live.step.clone());
        match &placement.phase {
            Phase::Queued { .. } => FailureReason::QueueExpired,
            Phase::Held { .. } => {
                // Nothing else explains a hold that nobody took up as well as a VM made in the wrong place.
                let held_on = placement.assignment.as_ref().map(|a| &a.node);
                match self.world.find_vms(&placement.request.vm).into_iter().find(|(node, _)| Some(node) != held_on) {
                    Some((node, _)) => FailureReason::VmOnOtherNode { node },
                    None => FailureReason::HoldExpired,
                }
            }
            phase @ (Phase::Requested
            | Phase::Preparing { .. }
            | Phase::Attaching { .. }
            | Phase::Starting { .. }
            | Phase::Verifying { .. }
            | Phase::Active
            | Phase::Releasing { .. }
            | Phase::Released
            | Phase::Failed { .. }) => FailureReason::Deadline {
                phase: phase.name().to_owned(),
                step: live.as_ref().map(|step| step.step),
                last_error: live.and_then(|step| step.last_error),
            },
        }
    }

    pub(super) fn queue_is_due(&self) -> bool {
        (self.lookups.queued() > 0 && (self.room || self.pass.is_some())) || !self.waiting_vms.is_empty()
    }

    /// Goes on with the pass through the queue, oldest first; who fits is placed, who does not keeps its turn.
    fn serve_queue(&mut self, draft: &mut Draft) {
        if self.pass.is_none() && !std::mem::take(&mut self.room) {
            return;
        }
        let waiting: Vec<_> = self.lookups.queue_after(self.pass.as_ref()).take(QUEUE_LOOKS).cloned().collect();
        let last_of_pass = waiting.len() < QUEUE_LOOKS;
        for at in waiting {
            if !draft.has_room() {
                return;
            }
            let name: &PlacementName = &at.1;
            if let Some(placement) = self.world.placement(name) {
                // Still no room, or something else in the way for now: its deadline ends it.
                if let Ok(Some(assignment)) = schedule::find(&self.world, &placement.request, draft.now) {
                    self.place(draft, name, assignment);
                }
            }
            self.pass = Some(at);
        }
        if last_of_pass {
            self.pass = None;
        }
    }

    pub(super) fn history_is_full(&self) -> bool {
        self.lookups.over() > self.limits.history
    }

    fn forget_history(&mut self, draft: &mut Draft) {
        for _ in 0..FORGETS {
            let Some((since, name)) = self.lookups.oldest_over().cloned() else { return };
            let old = since.after(self.limits.history_age) <= draft.now;
            if !draft.has_room() || !(old || self.history_is_full()) {
                return;
            }
            // What ends in this very decision must be stored once, or nobody could ever learn why it ended.
            if draft.touches(&name) {
                return;
            }
            self.remove(draft, &name);
        }
    }
}
