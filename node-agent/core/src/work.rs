//! The agent's work on one node as one state machine: looks, wishes and results of steps go in; steps to take, reports to
//! send and the time of the next look come out. The shell and the simulation both drive it.
//!
//! Owns retries and their pauses, and that no two placements work on one VM or one card at once. All of it may be thrown
//! away at any moment except [`Memory`]: the rest follows from looking again.

mod job;

use crate::memory::Memory;
use crate::observed::HostView;
use crate::report::{Reporter, Tracker};
use crate::step::Step;
use berth_model::desired::{DesiredNode, DesiredPlacement, Intent};
use berth_model::history::Forced;
use berth_model::install::{Install, InstallEnd, InstallOutput};
use berth_model::inventory::InventoryReport;
use berth_model::placement::{Progress, StepError, StepErrorClass, StepKind, StepReport};
use berth_model::trace::TraceParent;
use berth_model::{PlacementUid, Timestamp};
use job::{Job, Stage, Verdict};
use std::collections::BTreeMap;
use std::time::Duration;

/// How often to try and how long to pause. Each value has its reason at [`Pace::default`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Attempts at one step.
    pub attempts: u32,
    /// Attempts at [`StepKind::Verify`].
    pub verify_attempts: u32,
    /// Pause before the second attempt; it doubles with each further one.
    pub first_pause: Duration,
    /// Longest pause between attempts.
    pub longest_pause: Duration,
    /// Pause between attempts at giving GPUs back, once that was reported as failed.
    pub stranded_pause: Duration,
    /// Pause before looking again for something that must show itself, and after a look that failed.
    pub wait: Duration,
    /// Pause between looks when nothing is to be done.
    pub idle: Duration,
    /// Steps under way at once, of different placements.
    pub at_once: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            // What five attempts over half a minute do not bring about needs a person or another node.
            attempts: 5,
            // A guest boots and loads its driver within minutes: with the longest pause this waits a quarter of an hour.
            verify_attempts: 30,
            // The registration of a dismounted device lags by about a second.
            first_pause: Duration::from_secs(1),
            // Long enough for a host that is busy, short enough for a caller who waits.
            longest_pause: Duration::from_secs(30),
            // For ever, so rarely: whatever holds the GPU is mostly a person's work.
            stranded_pause: Duration::from_secs(60),
            // VM state changes take seconds.
            wait: Duration::from_secs(2),
            // A changed host is seen within half a minute; a look costs the host a process or two.
            idle: Duration::from_secs(30),
            // The host's own management serialises much; more only wait there, and grow old doing so.
            at_once: 8,
        }
    }
}

impl Pace {
    fn pause(&self, failed_attempts: u32) -> Duration {
        let doubled = self.first_pause.saturating_mul(1 << failed_attempts.saturating_sub(1).min(16));
        doubled.min(self.longest_pause)
    }

    fn attempts_at(&self, step: StepKind) -> u32 {
        if step == StepKind::Verify { self.verify_attempts } else { self.attempts }
    }
}

/// One step to carry out now. Its result goes to [`Work::stepped`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// For which placement.
    pub uid: PlacementUid,
    /// The step.
    pub step: Step,
    /// Counts from 1.
    pub attempt: u32,
    /// The trace it belongs to.
    pub trace: Option<TraceParent>,
}

/// What the shell must do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Todo {
    /// Keep this durably before anything else here.
    pub remember: Option<Memory>,
    /// Begin these steps.
    pub start: Vec<Start>,
    /// Begin a look at the host; its result goes to [`Work::looked`]. Never asked for while one is under way.
    pub look: bool,
    /// Send these if there is a session. Dropping them is harmless: see [`Work::new_session`].
    pub progress: Vec<Progress>,
    /// Send this if there is a session.
    pub inventory: Option<InventoryReport>,
    /// Ask again at this time, if nothing happens before.
    pub wake: Option<Timestamp>,
}

/// The work on one node.
#[derive(Clone, Debug)]
pub struct Work {
    pace: Pace,
    memory: Memory,
    /// What the shell was last told to keep.
    kept: Memory,
    generation: u64,
    /// The node's policy: devices are dismounted by force.
    forcing: bool,
    /// In order of uid.
    jobs: BTreeMap<PlacementUid, Job>,
    tracker: Tracker,
    reporter: Reporter,
    in_session: bool,
    /// The last complete look, with its number.
    view: Option<(u64, HostView)>,
    looks: Looks,
    progress: Vec<Progress>,
}

#[derive(Clone, Debug, Default)]
struct Looks {
    /// Number of the last look begun.
    begun: u64,
    under_way: bool,
    /// When the next one is due at the latest.
    due: Option<Timestamp>,
    /// A failed look is not repeated before.
    not_before: Option<Timestamp>,
    /// Somebody wants one now.
    asked: bool,
}

impl Work {
    /// Work that knows nothing but what was kept.
    pub fn new(memory: Memory, pace: Pace) -> Self {
        Self {
            pace,
            kept: memory.clone(),
            memory,
            generation: 0,
            forcing: false,
            jobs: BTreeMap::new(),
            tracker: Tracker::default(),
            reporter: Reporter::default(),
            in_session: false,
            view: None,
            looks: Looks::default(),
            progress: Vec::new(),
        }
    }

    /// The same on a node whose policy is to dismount by force: each use is kept and told.
    #[must_use]
    pub fn forcing(mut self, forcing: bool) -> Self {
        self.forcing = forcing;
        self
    }

    /// What must be kept durably.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The last complete look, with what is known besides.
    pub fn view(&self) -> Option<&HostView> {
        self.view.as_ref().map(|(_, view)| view)
    }

    /// How often to look at the host when nothing is to be done.
    pub fn set_idle(&mut self, idle: Duration) {
        self.pace.idle = idle;
    }

    /// Asks for a look now.
    pub fn look_now(&mut self) {
        self.looks.asked = true;
    }

    /// Whether no step is under way.
    pub fn is_idle(&self) -> bool {
        self.jobs.values().all(|job| !matches!(job.stage, Stage::Acting { .. }))
    }

    /// Takes the cards now in their slots for the right ones: the node is admitted anew.
    pub fn readmit(&mut self) {
        self.tracker.readmit(&mut self.memory);
        self.looks.asked = true;
    }

    /// A session begins: everything is told anew, the inventory in full and how each placement stands.
    pub fn new_session(&mut self) {
        self.in_session = true;
        self.reporter.new_session();
        let jobs = self.jobs.iter().filter(|(_, job)| !job.withdrawn);
        let told = jobs.filter_map(|(uid, job)| {
            job.standing(uid, self.generation).or_else(|| {
                // Nothing is reported of what is only watched, but what was done for it by force, or run in its guest, or
                // which role its VM had, must be learned of. Whatever is to be changed reports when it stands somewhere: to call
                // it satisfied before would give its GPUs away.
                let unsaid = self.memory.forced.contains_key(uid)
                    || self.memory.installs.contains_key(uid)
                    || self.memory.roles.contains_key(uid);
                (unsaid && job.desired.intent == Intent::Kept).then(|| Progress {
                    generation: self.generation,
                    uid: uid.clone(),
                    report: StepReport::Satisfied,
                    forced: Vec::new(),
                    install: None,
                    removed_role: None,
                })
            })
        });
        self.progress = told.collect();
    }

    /// The session ended.
    pub fn no_session(&mut self) {
        self.in_session = false;
    }

    /// Takes in a desired state that the ledger has accepted.
    pub fn desire(&mut self, desired: DesiredNode) {
        let newer = desired.generation != self.generation;
        self.generation = desired.generation;
        for job in self.jobs.values_mut() {
            job.withdrawn = true;
        }
        let look = self.looks.begun + 1;
        for wish in desired.placements.iter().filter(|wish| wish.intent == Intent::Kept) {
            // Somebody else set the VM up since; settings from before another placement of it mean nothing any more.
            if self.memory.prepared_for.get(&wish.vm).is_some_and(|uid| *uid != wish.uid) {
                self.memory.forget_settings(&wish.vm);
            }
        }
        for wish in desired.placements {
            let uid = wish.uid.clone();
            match self.jobs.get_mut(&uid) {
                Some(job) => {
                    let same = job.wish(wish, look);
                    if same && newer {
                        // A report counts for the generation it names; a settled one must not be lost with an old one.
                        self.progress.extend(job.settled_report().and_then(|_| job.standing(&uid, self.generation)));
                    }
                }
                None => {
                    self.jobs.insert(uid, Job::new(wish, look));
                }
            }
        }
        // What is no longer wished ends with the step it is at.
        self.jobs.retain(|_, job| !job.withdrawn || matches!(job.stage, Stage::Acting { .. }));
        let jobs = &self.jobs;
        self.memory.forced.retain(|uid, _| jobs.contains_key(uid));
        self.memory.installs.retain(|uid, _| jobs.contains_key(uid));
        self.memory.roles.retain(|uid, _| jobs.contains_key(uid));
    }

    /// A look has ended.
    pub fn looked(&mut self, look: Result<HostView, String>, now: Timestamp) {
        self.looks.under_way = false;
        self.looks.due = Some(now.after(self.pace.idle));
        for address in self.jobs.values().filter_map(Job::acting_on) {
            self.tracker.moving(address, now);
        }
        let wanted = self.jobs.values().map(|job| &job.desired);
        match look.and_then(|view| self.tracker.look(view, wanted, &mut self.memory, now)) {
            Ok(view) => {
                self.reporter.complete(&view);
                self.view = Some((self.looks.begun, view));
                self.looks.not_before = None;
                // Settings of a VM that is gone are of no use.
                let gone: Vec<_> =
                    self.memory.original.keys().filter(|vm| self.tracker.vm_is_gone(vm)).cloned().collect();
                for vm in gone {
                    self.memory.forget_settings(&vm);
                }
            }
            Err(why) => {
                self.reporter.failed(why);
                let again = now.after(self.pace.wait);
                self.looks.not_before = Some(again);
                self.looks.due = Some(again);
            }
        }
    }

    /// A step has ended. What it did is seen by the next look; the result only explains it.
    pub fn stepped(&mut self, uid: &PlacementUid, result: Result<(), StepError>) {
        let look = self.looks.begun + 1;
        if let Some(job) = self.jobs.get_mut(uid) {
            job.stepped(result, look);
            if job.withdrawn {
                self.jobs.remove(uid);
            }
        }
    }

    /// A driver-install command has ended, or was never begun: then it may be tried again. One that ran too long for the
    /// driver to say how it ended stays begun.
    pub fn installed(&mut self, uid: &PlacementUid, result: Result<Install, StepError>) {
        let result = match result {
            Ok(run) => {
                // Whoever withdrew the placement meanwhile has no use for it.
                if let Some(kept) = self.memory.installs.get_mut(uid) {
                    *kept = run;
                }
                Ok(())
            }
            Err(error) => {
                if error.class != StepErrorClass::TimedOut {
                    self.memory.installs.remove(uid);
                }
                Err(error)
            }
        };
        self.stepped(uid, result);
    }

    /// What to do now. To be asked after every input and at [`Todo::wake`].
    pub fn next(&mut self, now: Timestamp) -> Todo {
        let fresh_look = self.looks.begun + 1;
        for job in self.jobs.values_mut() {
            job.wake(now, fresh_look);
        }
        let start = self.decide(now);
        let look = self.begin_look(now);
        for progress in &mut self.progress {
            progress.forced = self.memory.forced.get(&progress.uid).into_iter().flatten().cloned().collect();
            // One that runs now is told when it has ended.
            let runs = self.jobs.get(&progress.uid).is_some_and(Job::installs);
            progress.install = self.memory.installs.get(&progress.uid).filter(|_| !runs).cloned();
            // Kept before it is removed, told when it surely is.
            let vm = self.jobs.get(&progress.uid).map(|job| &job.desired.vm);
            let seen = vm.and_then(|vm| Some(self.view.as_ref()?.1.vms.get(vm).is_some_and(|vm| vm.vm.clustered)));
            progress.removed_role = self.memory.roles.get(&progress.uid).filter(|_| seen == Some(false)).cloned();
        }
        let remember = (self.memory != self.kept).then(|| {
            self.kept = self.memory.clone();
            self.memory.clone()
        });
        let inventory = if self.in_session { self.reporter.report() } else { None };
        let paused = self.jobs.values().filter_map(|job| match job.stage {
            Stage::Paused { until } => Some(until),
            Stage::Due { .. } | Stage::Acting { .. } | Stage::Settled => None,
        });
        let next_look = if self.looks.under_way { None } else { self.looks.due };
        let wake = paused.chain(next_look).min();
        Todo { remember, start, look, progress: std::mem::take(&mut self.progress), inventory, wake }
    }

    /// Decides for every placement whose look has come.
    fn decide(&mut self, now: Timestamp) -> Vec<Start> {
        let Some((number, view)) = self.view.take() else { return Vec::new() };
        let mut start = Vec::new();
        let acting = |job: &&Job| matches!(job.stage, Stage::Acting { .. });
        let mut room = self.pace.at_once.max(1).saturating_sub(self.jobs.values().filter(acting).count());
        let due = |job: &Job| matches!(job.stage, Stage::Due { look } if look <= number);
        let uids: Vec<_> = self.jobs.iter().filter(|(_, job)| due(job)).map(|(uid, _)| uid.clone()).collect();
        for uid in uids {
            let blocked = self.jobs.get(&uid).is_none_or(|job| self.is_blocked(&uid, job));
            let Some(job) = self.jobs.get_mut(&uid) else { continue };
            // A VM that the look lacks may still show itself; a plan needs to know.
            let settled = view.vms.contains_key(&job.desired.vm) || self.tracker.vm_is_gone(&job.desired.vm);
            // A step is decided when it can begin, not to lie about until the look it rests on is old.
            if blocked || !settled || room == 0 {
                job.stage = Stage::Paused { until: now.after(self.pace.wait) };
                continue;
            }
            match job.decide(&view, &mut self.memory, &self.pace, now) {
                Verdict::Quiet => {}
                Verdict::Say => self.progress.extend(job.standing(&uid, self.generation)),
                Verdict::Act { step, attempt, said } => {
                    self.progress.extend(job.standing(&uid, self.generation).filter(|_| said));
                    room -= 1;
                    if let Some(address) = step.device() {
                        self.tracker.moving(address, now);
                    }
                    if let (true, Step::Dismount { address }) = (self.forcing, &step) {
                        let forced = Forced { step: step.kind(), device: address.clone() };
                        self.memory.forced.entry(uid.clone()).or_default().insert(forced);
                    }
                    if let Step::InstallDriver { command, .. } = &step {
                        let (command, output) = (command.clone(), InstallOutput::default());
                        let begun = Install { command, end: InstallEnd::Unknown, output };
                        self.memory.installs.insert(uid.clone(), begun);
                    }
                    start.push(Start { uid, step, attempt, trace: job.desired.trace.clone() });
                }
            }
        }
        self.view = Some((number, view));
        start
    }

    /// Whether another placement works on the same VM or card, or has a better right to it: what is kept goes before
    /// what is given back, that before what is wanted, and then the order of uids.
    fn is_blocked(&self, uid: &PlacementUid, job: &Job) -> bool {
        let rank = |uid: &PlacementUid, desired: &DesiredPlacement| {
            let intent = match desired.intent {
                Intent::Kept => 0,
                Intent::Detached => 1,
                Intent::Attached => 2,
            };
            (intent, uid.clone())
        };
        let mine = rank(uid, &job.desired);
        self.jobs.iter().filter(|(other, _)| *other != uid).any(|(other_uid, other)| {
            let acting = matches!(other.stage, Stage::Acting { .. });
            let over = other.desired.intent == Intent::Detached && matches!(other.stage, Stage::Settled);
            other.shares_with(&job.desired) && (acting || (!over && rank(other_uid, &other.desired) < mine))
        })
    }

    fn begin_look(&mut self, now: Timestamp) -> bool {
        if self.looks.under_way || self.looks.not_before.is_some_and(|at| now < at) {
            return false;
        }
        let seen = self.view.as_ref().map_or(0, |(number, _)| *number);
        let awaited = self.jobs.values().any(|job| matches!(job.stage, Stage::Due { look } if look > seen));
        let due = self.looks.due.is_none_or(|due| due <= now);
        if !(awaited || due || self.looks.asked) {
            return false;
        }
        self.looks.asked = false;
        self.looks.under_way = true;
        self.looks.begun += 1;
        true
    }
}

#[cfg(test)]
mod tests;
