//! One placement's work: where it stands between looks, attempts, pauses and what was reported.

use super::Pace;
use crate::guest;
use crate::memory::Memory;
use crate::observed::HostView;
use crate::plan::{Next, plan};
use crate::safety::{self, Slot};
use crate::step::Step;
use berth_model::desired::{DesiredPlacement, Intent};
use berth_model::gpu::GpuState;
use berth_model::pci::DeviceAddress;
use berth_model::placement::{Progress, StepError, StepErrorClass, StepKind, StepReport};
use berth_model::request::ReturnTo;
use berth_model::{PlacementUid, Timestamp};
use std::collections::BTreeMap;

/// What is counted as one and the same step: its kind and the device it is about.
type Key = (StepKind, Option<DeviceAddress>);

fn key(step: &Step) -> Key {
    (step.kind(), step.device().cloned())
}

/// Where a placement stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// To be decided from a look with at least this number.
    Due {
        /// Number of that look.
        look: u64,
    },
    /// Nothing before then.
    Paused {
        /// Until when.
        until: Timestamp,
    },
    /// A step is under way.
    Acting {
        /// Which.
        key: Key,
        /// Whether the wish is still the one it was begun for.
        wished: bool,
    },
    /// Nothing more to do until another wish.
    Settled,
}

/// What came of deciding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing to tell.
    Quiet,
    /// How it stands has changed.
    Say,
    /// A step begins.
    Act {
        /// Which.
        step: Step,
        /// Counts from 1.
        attempt: u32,
        /// Whether that is to be told.
        said: bool,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) desired: DesiredPlacement,
    pub(super) stage: Stage,
    /// No longer wished for; ends with the step it is at.
    pub(super) withdrawn: bool,
    /// Attempts at each step since the wish. Bounded by the functions of its cards times the kinds of steps.
    attempts: BTreeMap<Key, u32>,
    /// The step that ended since the last decision, and its error.
    ended: Option<(Key, Option<StepError>)>,
    /// Why the next attempt at a step is not the first.
    errors: BTreeMap<Key, StepError>,
    /// Giving back was reported as failed; it goes on, slowly and quietly.
    stranded: bool,
    report: Option<StepReport>,
}

impl Job {
    pub(super) fn new(desired: DesiredPlacement, look: u64) -> Self {
        let mut job = Self {
            desired,
            stage: Stage::Settled,
            withdrawn: false,
            attempts: BTreeMap::new(),
            ended: None,
            errors: BTreeMap::new(),
            stranded: false,
            report: None,
        };
        job.begin(look);
        job
    }

    fn begin(&mut self, look: u64) {
        self.stage = if self.desired.intent == Intent::Kept { Stage::Settled } else { Stage::Due { look } };
    }

    /// Takes in a wish; says whether it is the one it has already.
    pub(super) fn wish(&mut self, wish: DesiredPlacement, look: u64) -> bool {
        self.withdrawn = false;
        let same = DesiredPlacement { trace: None, ..self.desired.clone() }
            == DesiredPlacement { trace: None, ..wish.clone() };
        if same {
            self.desired.trace = wish.trace;
            return true;
        }
        self.desired = wish;
        self.attempts.clear();
        self.ended = None;
        self.errors.clear();
        self.stranded = false;
        self.report = None;
        match &mut self.stage {
            Stage::Acting { wished, .. } => *wished = false,
            Stage::Due { .. } | Stage::Paused { .. } | Stage::Settled => self.begin(look),
        }
        false
    }

    /// Whether it names the same VM or one of the same cards.
    pub(super) fn shares_with(&self, other: &DesiredPlacement) -> bool {
        let card = |address: &DeviceAddress| other.gpus.iter().any(|gpu| gpu.address.card() == address.card());
        self.desired.vm == other.vm || self.desired.gpus.iter().any(|gpu| card(&gpu.address))
    }

    pub(super) fn stepped(&mut self, result: Result<(), StepError>, look: u64) {
        let Stage::Acting { key, wished } = &self.stage else { return };
        if *wished {
            self.ended = Some((key.clone(), result.err()));
        }
        self.begin(look);
    }

    /// The device that a step under way is about.
    pub(super) fn acting_on(&self) -> Option<&DeviceAddress> {
        match &self.stage {
            Stage::Acting { key: (_, device), .. } => device.as_ref(),
            Stage::Due { .. } | Stage::Paused { .. } | Stage::Settled => None,
        }
    }

    pub(super) fn wake(&mut self, now: Timestamp, look: u64) {
        if matches!(self.stage, Stage::Paused { until } if until <= now) {
            self.stage = Stage::Due { look };
        }
    }

    /// Whether a driver-install command runs for it.
    pub(super) fn installs(&self) -> bool {
        matches!(&self.stage, Stage::Acting { key: (StepKind::InstallDriver, _), .. })
    }

    /// How it stands, as a report; none for what is only watched.
    pub(super) fn standing(&self, uid: &PlacementUid, generation: u64) -> Option<Progress> {
        let report = self.report.clone().filter(|_| self.desired.intent != Intent::Kept)?;
        Some(Progress { generation, uid: uid.clone(), report, forced: Vec::new(), install: None, removed_role: None })
    }

    /// The report of one that has come to an end.
    pub(super) fn settled_report(&self) -> Option<&StepReport> {
        self.report.as_ref().filter(|report| matches!(report, StepReport::Satisfied | StepReport::Failed { .. }))
    }

    fn say(&mut self, report: StepReport) -> Verdict {
        if self.report.as_ref() == Some(&report) {
            return Verdict::Quiet;
        }
        self.report = Some(report);
        Verdict::Say
    }

    /// Decides from a look that is new enough.
    pub(super) fn decide(&mut self, view: &HostView, memory: &mut Memory, pace: &Pace, now: Timestamp) -> Verdict {
        if self.desired.intent == Intent::Attached
            && memory.original.contains_key(&self.desired.vm)
            && memory.prepared_for.get(&self.desired.vm) != Some(&self.desired.uid)
        {
            // Whether or not its settings need to be changed again: the release of this one restores them.
            memory.prepared_for.insert(self.desired.vm.clone(), self.desired.uid.clone());
        }
        match plan(&self.desired, view, memory) {
            Next::Done => {
                if self.desired.intent == Intent::Detached {
                    forget_settings(&self.desired, view, memory);
                    memory.forget_cards(&self.desired, view);
                    let left = left_behind(&self.desired, view, memory);
                    memory.left.extend(left);
                }
                self.stage = Stage::Settled;
                self.say(StepReport::Satisfied)
            }
            Next::Wait(_) => {
                self.stage = Stage::Paused { until: now.after(pace.wait) };
                Verdict::Quiet
            }
            Next::Impossible(step, error) => self.give_up(step, error, pace, now),
            // The planner has checked it; what guards the host does not rest on the planner.
            Next::Do(step) => match safety::check(&step, &self.desired, view, memory) {
                Err(violation) => self.give_up(step.kind(), violation.into(), pace, now),
                Ok(()) => self.try_step(step, view, memory, pace, now),
            },
        }
    }

    fn try_step(&mut self, step: Step, view: &HostView, memory: &mut Memory, pace: &Pace, now: Timestamp) -> Verdict {
        let key = key(&step);
        let tried = self.attempts.get(&key).copied().unwrap_or(0);
        let error = match self.ended.take() {
            // It ended and the look shows it is still to be done.
            Some((ended, error)) if ended == key => {
                Some(error.unwrap_or_else(|| no_effect(&step, &self.desired, view)))
            }
            // Another step comes between: a guest is asked anew before a command is tried again.
            Some((ended, Some(error))) => {
                self.errors.insert(ended, error);
                None
            }
            Some((ended, None)) => {
                self.errors.remove(&ended);
                None
            }
            None => None,
        };
        if let Some(error) = error {
            if error.class == StepErrorClass::Forbidden || self.stranded || tried >= pace.attempts_at(key.0) {
                return self.give_up(key.0, error, pace, now);
            }
            self.errors.insert(key, error);
            self.stage = Stage::Paused { until: now.after(pace.pause(tried)) };
            return Verdict::Quiet;
        }
        let forbidden = self.errors.get(&key).is_some_and(|error| error.class == StepErrorClass::Forbidden);
        if (forbidden || tried >= pace.attempts_at(key.0)) && !self.stranded {
            // Without an error, it was done and undone again by somebody, over and over.
            let error = self.errors.remove(&key).unwrap_or_else(|| no_effect(&step, &self.desired, view));
            return self.give_up(key.0, error, pace, now);
        }
        if let Step::ConfigureVm { vm, .. } = &step
            && let (Some(seen), false) = (view.vms.get(vm), memory.original.contains_key(vm))
        {
            memory.original.insert(vm.clone(), seen.settings.clone());
            memory.prepared_for.insert(vm.clone(), self.desired.uid.clone());
        }
        if let Step::MakeStandalone { role: Some(role), .. } = &step {
            memory.roles.insert(self.desired.uid.clone(), role.clone());
        }
        if let (Intent::Attached, Step::Disable { address } | Step::Dismount { address }) = (self.desired.intent, &step)
        {
            memory.take(address, &self.desired, view);
        }
        let attempt = tried.saturating_add(1);
        let last_error = self.errors.get(&key).filter(|_| tried > 0).cloned();
        if !self.stranded {
            self.report = Some(StepReport::Working { step: key.0, attempt, last_error });
        }
        self.attempts.insert(key.clone(), attempt);
        self.stage = Stage::Acting { key, wished: true };
        Verdict::Act { step, attempt, said: !self.stranded }
    }

    /// Nothing more can be done for the wish. GPUs that are to be given back are tried again, rarely and for ever.
    fn give_up(&mut self, step: StepKind, error: StepError, pace: &Pace, now: Timestamp) -> Verdict {
        self.ended = None;
        self.stage = if self.desired.intent == Intent::Detached {
            self.stranded = true;
            Stage::Paused { until: now.after(pace.stranded_pause) }
        } else {
            Stage::Settled
        };
        self.say(StepReport::Failed { step, error })
    }
}

fn no_effect(step: &Step, desired: &DesiredPlacement, view: &HostView) -> StepError {
    let text = match step {
        Step::Verify { vm } => {
            let guest = view.vms.get(vm).and_then(|vm| vm.guest.as_ref());
            let lack = guest::shortfall(desired, guest).map(|lack| lack.to_string());
            lack.unwrap_or_else(|| "the guest does not show the GPUs as wanted".to_owned())
        }
        Step::InstallDriver { .. }
        | Step::MakeStandalone { .. }
        | Step::StopVm { .. }
        | Step::ConfigureVm { .. }
        | Step::Disable { .. }
        | Step::Dismount { .. }
        | Step::Attach { .. }
        | Step::StartVm { .. }
        | Step::Detach { .. }
        | Step::DetachStale { .. }
        | Step::Mount { .. }
        | Step::Enable { .. }
        | Step::RestoreVm { .. } => format!("{step}: the host reported success, but nothing changed"),
    };
    StepError { class: StepErrorClass::NoEffect, text }
}

/// Forgets the settings a VM had once it has them again, or is gone.
fn forget_settings(desired: &DesiredPlacement, view: &HostView, memory: &mut Memory) {
    let restored = match (view.vms.get(&desired.vm), memory.original.get(&desired.vm)) {
        (Some(vm), Some(original)) => vm.vm.devices.is_empty() && vm.settings == *original,
        (None, Some(_)) => true,
        (Some(_) | None, None) => false,
    };
    if restored {
        memory.forget_settings(&desired.vm);
    }
}

/// Functions that were to go back to the host and could not: they are gone, or another card is in their slot.
fn left_behind(desired: &DesiredPlacement, view: &HostView, memory: &Memory) -> Vec<DeviceAddress> {
    if desired.return_to != ReturnTo::Host {
        return Vec::new();
    }
    let mut left = Vec::new();
    for gpu in &desired.gpus {
        match safety::slot(gpu, view) {
            Slot::Here(functions) => {
                left.extend(functions.into_iter().filter(|function| view.state(function) == GpuState::Missing));
            }
            Slot::Empty | Slot::Other(_) => {
                left.push(gpu.address.clone());
                let known = memory.known.get(&gpu.address).filter(|known| known.fingerprint.matches(&gpu.fingerprint));
                left.extend(known.into_iter().flat_map(|known| &known.companions).cloned());
            }
            Slot::Unknown => {}
        }
    }
    left
}
