//! The work driven by hand on a host that obeys or not: attempts, pauses, what is said, and what is never done twice at
//! once.

mod install;

use super::*;
use crate::observed::StopAction;
use crate::plan::tests::{AUDIO, GPU, OTHER_VM, VM, at, attach, desired, fresh_settings, id, set_state, view, vm_of};
use berth_model::gpu::{GpuState, HostDriver};
use berth_model::history::ClusterRole;
use berth_model::placement::{StepErrorClass, StepReport};
use berth_model::request::ReturnTo;
use berth_model::vm::VmState;

struct Bench {
    work: Work,
    now: Timestamp,
    view: HostView,
    said: Vec<StepReport>,
}

fn node(generation: u64, placements: Vec<DesiredPlacement>) -> DesiredNode {
    DesiredNode { term: 1, generation, fleet: None, placements }
}

fn failed(text: &str) -> StepError {
    StepError { class: StepErrorClass::Failed, text: text.to_owned() }
}

impl Bench {
    fn new(intent: Intent) -> Self {
        let mut work = Work::new(Memory::default(), Pace::default());
        work.desire(node(1, vec![desired(intent)]));
        Self { work, now: Timestamp::from_millis(1_000), view: view(), said: Vec::new() }
    }

    /// Lets time pass, looking at the host whenever asked, until a step begins. `None`: none does within `limit`.
    fn until_step(&mut self, limit: Duration) -> Option<Start> {
        let end = self.now.after(limit);
        loop {
            let todo = self.work.next(self.now);
            self.said.extend(todo.progress.into_iter().map(|p| p.report));
            assert!(todo.start.len() <= 1);
            if let Some(start) = todo.start.into_iter().next() {
                return Some(start);
            }
            if todo.look {
                self.work.looked(Ok(self.view.clone()), self.now);
                continue;
            }
            self.now = todo.wake.unwrap_or(end).max(self.now.after(Duration::from_millis(1)));
            if self.now > end {
                self.now = end;
                return None;
            }
        }
    }

    fn step(&mut self) -> Start {
        self.until_step(Duration::from_secs(600)).unwrap_or_else(|| panic!("no step; said {:?}", self.said))
    }

    fn ended(&mut self, start: &Start, result: Result<(), StepError>) {
        self.work.stepped(&start.uid, result);
    }

    fn last_said(&self) -> &StepReport {
        self.said.last().unwrap()
    }
}

#[test]
fn a_step_that_fails_is_tried_again_with_growing_pauses_and_then_given_up_once() {
    let mut bench = Bench::new(Intent::Attached);
    let (mut pauses, mut before) = (Vec::new(), bench.now);
    for attempt in 1..=5 {
        let start = bench.step();
        assert_eq!((start.step.kind(), start.attempt), (StepKind::ConfigureVm, attempt));
        let last_error = (attempt > 1).then(|| failed("no"));
        assert_eq!(*bench.last_said(), StepReport::Working { step: StepKind::ConfigureVm, attempt, last_error });
        pauses.push(bench.now.since(before).as_secs());
        before = bench.now;
        bench.ended(&start, Err(failed("no")));
    }
    assert_eq!(pauses, [0, 1, 2, 4, 8]);
    assert_eq!(bench.until_step(Duration::from_secs(7_200)), None);
    let gave_up = StepReport::Failed { step: StepKind::ConfigureVm, error: failed("no") };
    assert_eq!(bench.said.iter().filter(|said| **said == gave_up).count(), 1);
    assert_eq!(*bench.last_said(), gave_up);
}

#[test]
fn a_step_that_reports_success_and_changes_nothing_is_no_success() {
    let mut bench = Bench::new(Intent::Attached);
    for _ in 0..5 {
        let start = bench.step();
        bench.ended(&start, Ok(()));
    }
    assert_eq!(bench.until_step(Duration::from_secs(600)), None);
    let StepReport::Failed { step: StepKind::ConfigureVm, error } = bench.last_said() else {
        panic!("{:?}", bench.said)
    };
    assert_eq!(error.class, StepErrorClass::NoEffect);
}

#[test]
fn a_step_that_took_effect_although_it_failed_is_not_tried_again() {
    for class in [StepErrorClass::Failed, StepErrorClass::TimedOut, StepErrorClass::NotThere] {
        let mut bench = Bench::new(Intent::Attached);
        let start = bench.step();
        let Step::ConfigureVm { settings, .. } = &start.step else { panic!("{}", start.step) };
        vm_of(&mut bench.view).settings = settings.clone();
        bench.ended(&start, Err(StepError { class, text: "who knows".to_owned() }));
        assert_eq!(bench.step().step, Step::Disable { address: at(GPU) });
    }
}

/// An agent that starts in the middle of a release remembers what else is to be told of the placement.
#[test]
fn what_is_not_undone_yet_is_not_called_satisfied_to_a_new_session() {
    let wish = desired(Intent::Detached);
    let role = ClusterRole { name: "one".parse().unwrap(), owner: None, priority: None };
    let mut memory = Memory::default();
    memory.roles.insert(wish.uid.clone(), role);
    let mut work = Work::new(memory, Pace::default());
    work.desire(node(2, vec![wish]));
    work.new_session();
    let said = work.next(Timestamp::from_millis(1_000)).progress;
    assert!(said.iter().all(|progress| progress.report != StepReport::Satisfied), "{said:?}");
}

#[test]
fn what_a_rule_of_the_host_forbids_is_not_tried_again() {
    let mut bench = Bench::new(Intent::Attached);
    let start = bench.step();
    let error = StepError { class: StepErrorClass::Forbidden, text: "no".to_owned() };
    bench.ended(&start, Err(error.clone()));
    assert_eq!(bench.until_step(Duration::from_secs(600)), None);
    assert_eq!(*bench.last_said(), StepReport::Failed { step: StepKind::ConfigureVm, error });
}

#[test]
fn nothing_is_decided_from_a_look_begun_before_the_step_ended() {
    let mut bench = Bench::new(Intent::Attached);
    let start = bench.step();
    // A look is due while the step is under way; it ends after the step, but its picture is from before.
    bench.work.look_now();
    assert!(bench.work.next(bench.now).look);
    bench.ended(&start, Ok(()));
    bench.work.looked(Ok(bench.view.clone()), bench.now);
    let todo = bench.work.next(bench.now);
    assert_eq!((todo.start.len(), todo.look), (0, true));
}

#[test]
fn a_failed_look_decides_nothing_and_is_repeated_after_a_pause() {
    let mut bench = Bench::new(Intent::Attached);
    assert!(bench.work.next(bench.now).look);
    bench.work.looked(Err("no".to_owned()), bench.now);
    let todo = bench.work.next(bench.now);
    assert_eq!((todo.start.len(), todo.look), (0, false));
    assert_eq!(todo.wake, Some(bench.now.after(Pace::default().wait)));
}

#[test]
fn settings_are_kept_durably_before_they_are_first_changed() {
    let mut bench = Bench::new(Intent::Attached);
    assert!(bench.work.next(bench.now).look);
    bench.work.looked(Ok(bench.view.clone()), bench.now);
    let todo = bench.work.next(bench.now);
    assert_eq!(todo.start[0].step.kind(), StepKind::ConfigureVm);
    let kept = todo.remember.unwrap();
    assert_eq!(kept.original[&id(VM)], fresh_settings());
    // Half-done settings do not take their place, not even after a restart.
    vm_of(&mut bench.view).settings.stop_action = StopAction::TurnOff;
    bench.work = Work::new(kept, Pace::default());
    bench.work.desire(node(1, vec![desired(Intent::Attached)]));
    assert_eq!(bench.step().step.kind(), StepKind::ConfigureVm);
    assert_eq!(bench.work.memory().original[&id(VM)], fresh_settings());
}

#[test]
fn giving_back_is_reported_as_failed_once_and_goes_on_for_ever() {
    let mut bench = Bench::new(Intent::Detached);
    set_state(&mut bench.view, GPU, GpuState::Host { driver: HostDriver::Disabled });
    let mut attempts = 0;
    for _ in 0..20 {
        let start = bench.step();
        assert_eq!(start.step, Step::Enable { address: at(GPU) });
        bench.ended(&start, Err(failed("no")));
        attempts += 1;
    }
    let gave_up = StepReport::Failed { step: StepKind::Enable, error: failed("no") };
    assert_eq!(bench.said.iter().filter(|said| **said == gave_up).count(), 1);
    assert_eq!((attempts, bench.last_said()), (20, &gave_up));
    let before = bench.now;
    let start = bench.step();
    assert_eq!(bench.now.since(before), Pace::default().stranded_pause);
    set_state(&mut bench.view, GPU, GpuState::Host { driver: HostDriver::Bound });
    bench.ended(&start, Ok(()));
    assert_eq!(bench.until_step(Duration::from_secs(60)), None);
    assert_eq!(*bench.last_said(), StepReport::Satisfied);
}

#[test]
fn another_wish_begins_anew_and_the_step_under_way_is_waited_for() {
    let mut bench = Bench::new(Intent::Attached);
    let start = bench.step();
    bench.work.desire(node(2, vec![desired(Intent::Detached)]));
    assert_eq!(bench.until_step(Duration::from_secs(60)), None, "its VM has a step under way");
    bench.ended(&start, Err(failed("no")));
    assert_eq!(bench.until_step(Duration::from_secs(60)), None);
    assert_eq!(*bench.last_said(), StepReport::Satisfied, "nothing had happened, nothing is to be undone");
}

#[test]
fn what_is_no_longer_wished_ends_with_its_step() {
    let mut bench = Bench::new(Intent::Attached);
    let start = bench.step();
    bench.work.desire(node(2, Vec::new()));
    assert!(!bench.work.is_idle());
    bench.ended(&start, Ok(()));
    assert!(bench.work.is_idle());
    assert_eq!(bench.until_step(Duration::from_secs(600)), None);
}

#[test]
fn kept_is_only_watched() {
    let mut bench = Bench::new(Intent::Kept);
    assert_eq!(bench.until_step(Duration::from_secs(600)), None);
    assert_eq!(bench.said, []);
}

#[test]
fn a_new_session_is_told_everything_and_a_later_generation_what_is_settled() {
    let mut bench = Bench::new(Intent::Detached);
    bench.work.new_session();
    assert!(bench.work.next(bench.now).look);
    bench.work.looked(Ok(bench.view.clone()), bench.now);
    let todo = bench.work.next(bench.now);
    assert!(todo.inventory.is_some_and(|report| report.full && report.sequence == 1));
    assert_eq!(
        todo.progress.iter().map(|p| (p.generation, &p.report)).collect::<Vec<_>>(),
        [(1, &StepReport::Satisfied)]
    );
    assert_eq!(bench.work.next(bench.now).progress, []);
    bench.work.desire(node(2, vec![desired(Intent::Detached)]));
    assert_eq!(bench.work.next(bench.now).progress[0].generation, 2);
    bench.work.desire(node(2, vec![desired(Intent::Detached)]));
    assert_eq!(bench.work.next(bench.now).progress, []);
    bench.work.new_session();
    let todo = bench.work.next(bench.now);
    assert_eq!((todo.progress.len(), todo.inventory.is_some()), (1, true));
}

/// Two placements that share a VM or a card: the controller never wants that, and the agent would not do it.
#[test]
fn two_placements_never_work_on_one_vm_or_card_at_once() {
    let other = |change: fn(&mut DesiredPlacement)| {
        let mut other = desired(Intent::Attached);
        other.uid = "00000000-0000-4000-8000-000000000002".parse().unwrap();
        change(&mut other);
        other
    };
    let same_card = other(|p| p.vm = id(OTHER_VM));
    let same_vm = other(|p| p.gpus[0].address = at("PCIROOT(20)#PCI(0400)#PCI(0000)"));
    for second in [same_card, same_vm] {
        let mut bench = Bench::new(Intent::Attached);
        bench.work.desire(node(2, vec![desired(Intent::Attached), second.clone()]));
        let start = bench.step();
        assert_eq!(start.uid, desired(Intent::Attached).uid);
        assert_eq!(bench.until_step(Duration::from_secs(60)), None, "the other one has begun as well");
        // What is kept goes before what is wanted.
        let mut bench = Bench::new(Intent::Attached);
        let kept = DesiredPlacement { intent: Intent::Kept, ..second };
        bench.work.desire(node(2, vec![desired(Intent::Attached), kept]));
        assert_eq!(bench.until_step(Duration::from_secs(60)), None);
    }
}

#[test]
fn independent_placements_work_side_by_side_up_to_a_bound() {
    let mut bench = Bench::new(Intent::Attached);
    let mut second = desired(Intent::Attached);
    second.uid = "00000000-0000-4000-8000-000000000002".parse().unwrap();
    second.vm = id(OTHER_VM);
    second.gpus[0].address = at("PCIROOT(20)#PCI(0400)#PCI(0000)");
    let mut gpu = bench.view.gpus[&at(GPU)].clone();
    gpu.address = second.gpus[0].address.clone();
    gpu.survey.companions.clear();
    bench.view.gpus.insert(gpu.address.clone(), gpu);
    for (at_once, begun) in [(8, 2), (1, 1)] {
        let mut work = Work::new(Memory::default(), Pace { at_once, ..Pace::default() });
        work.desire(node(1, vec![desired(Intent::Attached), second.clone()]));
        assert!(work.next(bench.now).look);
        work.looked(Ok(bench.view.clone()), bench.now);
        assert_eq!(work.next(bench.now).start.len(), begun);
    }
}

/// The agent dies after every single step, knowing nothing of how it ended: the next life goes on from what it sees.
#[test]
fn a_restart_after_any_step_changes_nothing() {
    let mut bench = Bench::new(Intent::Attached);
    let mut kinds = Vec::new();
    while let Some(start) = bench.until_step(Duration::from_secs(60)) {
        kinds.push(start.step.kind());
        match &start.step {
            Step::ConfigureVm { settings, .. } => vm_of(&mut bench.view).settings = settings.clone(),
            Step::Disable { address } => {
                set_state(&mut bench.view, &address.to_string(), GpuState::Host { driver: HostDriver::Disabled });
            }
            Step::Dismount { address } => set_state(&mut bench.view, &address.to_string(), GpuState::Pooled),
            Step::Attach { vm, address } => attach(&mut bench.view, &vm.to_string(), &address.to_string()),
            Step::StartVm { .. } => vm_of(&mut bench.view).vm.state = VmState::Running,
            other @ (Step::MakeStandalone { .. }
            | Step::StopVm { .. }
            | Step::Verify { .. }
            | Step::InstallDriver { .. }
            | Step::Detach { .. }
            | Step::DetachStale { .. }
            | Step::Mount { .. }
            | Step::Enable { .. }
            | Step::RestoreVm { .. }) => panic!("{other}"),
        }
        bench.work = Work::new(bench.work.memory().clone(), Pace::default());
        bench.work.desire(node(1, vec![desired(Intent::Attached)]));
    }
    use StepKind::{Attach, ConfigureVm, Disable, Dismount, StartVm};
    assert_eq!(kinds, [ConfigureVm, Disable, Disable, Dismount, Dismount, Attach, Attach, StartVm]);
    assert_eq!(*bench.last_said(), StepReport::Satisfied);
    assert_eq!(bench.view.holders(&at(AUDIO)).count(), 1);
}

#[test]
fn a_vm_that_does_not_show_at_first_is_waited_for() {
    let mut bench = Bench::new(Intent::Attached);
    let vm = bench.view.vms.remove(&id(VM)).unwrap();
    assert_eq!(bench.until_step(Duration::from_secs(2)), None);
    assert_eq!(bench.said, [], "nothing is concluded yet");
    bench.view.vms.insert(id(VM), vm);
    assert_eq!(bench.step().step.kind(), StepKind::ConfigureVm);
    let mut bench = Bench::new(Intent::Attached);
    bench.view.vms.remove(&id(VM));
    assert_eq!(bench.until_step(Duration::from_secs(60)), None);
    assert!(matches!(bench.last_said(), StepReport::Failed { step: StepKind::Check, .. }));
}

#[test]
fn what_is_done_by_force_is_kept_before_it_is_done_and_told_until_the_placement_is_gone() {
    let mut bench = Bench::new(Intent::Attached);
    bench.work = Work::new(Memory::default(), Pace::default()).forcing(true);
    let wish = desired(Intent::Attached);
    let uid = wish.uid.clone();
    let sizes: Vec<_> = wish.gpus.iter().map(|gpu| gpu.mmio).collect();
    let settings = crate::plan::wanted_settings(&vm_of(&mut bench.view).settings, &sizes);
    vm_of(&mut bench.view).settings = settings;
    for function in [GPU, AUDIO] {
        set_state(&mut bench.view, function, GpuState::Host { driver: HostDriver::Disabled });
    }
    bench.work.desire(node(1, vec![wish]));
    let forced = |device: &str| Forced { step: StepKind::Dismount, device: at(device) };
    let told = |bench: &mut Bench| -> Vec<Vec<Forced>> {
        bench.work.new_session();
        bench.work.next(bench.now).progress.into_iter().map(|progress| progress.forced).collect()
    };

    let start = bench.step();
    assert_eq!(start.step, Step::Dismount { address: at(GPU) });
    // In the memory that the shell writes before it begins the step.
    assert_eq!(bench.work.memory().forced[&uid], [forced(GPU)].into());
    set_state(&mut bench.view, GPU, GpuState::Pooled);
    bench.ended(&start, Ok(()));
    assert_eq!(bench.step().step, Step::Dismount { address: at(AUDIO) });
    assert_eq!(told(&mut bench), [[forced(GPU), forced(AUDIO)]]);

    // An agent that was killed knows it still, and one that only watches tells it, too.
    bench.work = Work::new(bench.work.memory().clone(), Pace::default()).forcing(true);
    bench.work.desire(node(2, vec![desired(Intent::Kept)]));
    assert_eq!(told(&mut bench), [[forced(GPU), forced(AUDIO)]]);
    bench.work.desire(node(3, vec![]));
    assert!(bench.work.memory().forced.is_empty() && told(&mut bench).is_empty());
}

#[test]
fn what_a_card_was_is_kept_before_it_is_touched_and_never_taken_anew() {
    let mut bench = Bench::new(Intent::Attached);
    set_state(&mut bench.view, AUDIO, GpuState::Host { driver: HostDriver::Disabled });
    let sizes: Vec<_> = desired(Intent::Attached).gpus.iter().map(|gpu| gpu.mmio).collect();
    vm_of(&mut bench.view).settings = crate::plan::wanted_settings(&vm_of(&mut bench.view).settings, &sizes);
    let start = bench.step();
    assert_eq!(start.step, Step::Disable { address: at(GPU) });
    let kept = |bench: &Bench| bench.work.memory().taken[&at(GPU)].disabled.clone();
    assert_eq!(kept(&bench), [at(AUDIO)].into());
    // Killed with the effect there: what Berth disabled itself was not so before.
    set_state(&mut bench.view, GPU, GpuState::Host { driver: HostDriver::Disabled });
    bench.work = Work::new(bench.work.memory().clone(), Pace::default());
    bench.work.desire(node(1, vec![desired(Intent::Attached)]));
    assert_eq!(bench.step().step, Step::Dismount { address: at(GPU) });
    assert_eq!(kept(&bench), [at(AUDIO)].into());
    // Undone from there: one is enabled, the other left as it was, and then all of it is forgotten.
    bench.work = Work::new(bench.work.memory().clone(), Pace::default());
    bench.work.desire(node(2, vec![desired(Intent::Detached)]));
    let start = bench.step();
    assert_eq!(start.step, Step::Enable { address: at(GPU) });
    set_state(&mut bench.view, GPU, GpuState::Host { driver: HostDriver::Bound });
    bench.ended(&start, Ok(()));
    assert_eq!(bench.until_step(Duration::from_secs(60)), None);
    assert_eq!((bench.last_said(), bench.work.memory().taken.len()), (&StepReport::Satisfied, 0));
}

#[test]
fn a_clustered_role_is_kept_before_it_is_removed_and_told_once_it_is_gone() {
    let mut bench = Bench::new(Intent::Attached);
    let role = |name: &str| ClusterRole { name: name.parse().unwrap(), owner: None, priority: Some(2000) };
    let wish = |intent| DesiredPlacement { allow_standalone: true, ..desired(intent) };
    let uid = wish(Intent::Attached).uid;
    vm_of(&mut bench.view).vm.clustered = true;
    vm_of(&mut bench.view).role = Some(role("render"));
    bench.work.desire(node(2, vec![wish(Intent::Attached)]));
    let told = |bench: &mut Bench| -> Vec<Option<ClusterRole>> {
        bench.work.new_session();
        bench.work.next(bench.now).progress.into_iter().map(|progress| progress.removed_role).collect()
    };
    let start = bench.step();
    assert_eq!(start.step, Step::MakeStandalone { vm: id(VM), role: Some(role("render")) });
    assert_eq!(bench.work.memory().roles[&uid], role("render"));
    assert_eq!(told(&mut bench), [None], "it is not removed yet");
    // It was called otherwise meanwhile: what is removed in the end is what is kept.
    vm_of(&mut bench.view).role = Some(role("render 2"));
    bench.ended(&start, Err(failed("another role")));
    let start = bench.step();
    assert_eq!(bench.work.memory().roles[&uid], role("render 2"));
    vm_of(&mut bench.view).vm.clustered = false;
    vm_of(&mut bench.view).role = None;
    bench.ended(&start, Ok(()));
    assert_eq!(bench.step().step.kind(), StepKind::ConfigureVm);
    assert_eq!(told(&mut bench), [Some(role("render 2"))]);
    // An agent that was killed knows it still, until the placement is gone.
    bench.work = Work::new(bench.work.memory().clone(), Pace::default());
    bench.work.desire(node(3, vec![wish(Intent::Kept)]));
    assert!(bench.work.next(bench.now).look);
    bench.work.looked(Ok(bench.view.clone()), bench.now);
    assert_eq!(told(&mut bench), [Some(role("render 2"))]);
    bench.work.desire(node(4, vec![]));
    assert!(bench.work.memory().roles.is_empty());
}

#[test]
fn without_the_policy_nothing_counts_as_forced() {
    let mut bench = Bench::new(Intent::Attached);
    let sizes: Vec<_> = desired(Intent::Attached).gpus.iter().map(|gpu| gpu.mmio).collect();
    let settings = crate::plan::wanted_settings(&vm_of(&mut bench.view).settings, &sizes);
    vm_of(&mut bench.view).settings = settings;
    for function in [GPU, AUDIO] {
        set_state(&mut bench.view, function, GpuState::Host { driver: HostDriver::Disabled });
    }
    assert_eq!(bench.step().step.kind(), StepKind::Dismount);
    assert!(bench.work.memory().forced.is_empty());
}

/// A dismount is killed; the host goes on with it for minutes, and neither host nor pool shows the card.
#[test]
fn a_card_that_vanishes_in_a_dismount_is_waited_for_and_then_given_back() {
    let mut bench = Bench::new(Intent::Attached);
    let mut start = bench.step();
    while start.step.kind() != StepKind::Dismount {
        if let Step::ConfigureVm { settings, .. } = &start.step {
            vm_of(&mut bench.view).settings = settings.clone();
        } else if let Step::Disable { address } = &start.step {
            set_state(&mut bench.view, &address.to_string(), GpuState::Host { driver: HostDriver::Disabled });
        } else {
            panic!("{}", start.step);
        }
        bench.ended(&start, Ok(()));
        start = bench.step();
    }
    let whole = bench.view.clone();
    let mut other = bench.view.gpus.remove(&at(GPU)).unwrap();
    other.address = at("PCIROOT(20)#PCI(0400)#PCI(0000)");
    other.survey.companions.clear();
    bench.view.gpus.insert(other.address.clone(), other);
    bench.view.companions.clear();
    bench.ended(&start, Err(failed("killed")));
    assert_eq!(bench.until_step(Duration::from_secs(300)), None);
    assert!(!matches!(bench.last_said(), StepReport::Failed { .. }), "{:?}", bench.said);
    // Its placement is undone meanwhile: that waits as well.
    bench.work.desire(node(2, vec![desired(Intent::Detached)]));
    assert_eq!(bench.until_step(Duration::from_secs(250)), None);
    assert!(!matches!(bench.last_said(), StepReport::Satisfied), "{:?}", bench.said);
    bench.view = whole;
    set_state(&mut bench.view, GPU, GpuState::Pooled);
    assert_eq!(bench.step().step, Step::Mount { address: at(GPU) });
}

#[test]
fn a_release_that_must_leave_a_card_remembers_it_durably_before_it_says_that_it_is_done() {
    for (return_to, remembered) in [(ReturnTo::Host, vec![at(GPU), at(AUDIO)]), (ReturnTo::Pool, Vec::new())] {
        let mut bench = Bench::new(Intent::Attached);
        bench.step();
        bench.view.gpus.get_mut(&at(GPU)).unwrap().state = GpuState::Missing;
        let mut wish = desired(Intent::Detached);
        wish.return_to = return_to;
        bench.work.desire(node(2, vec![wish]));
        bench.work.stepped(&desired(Intent::Detached).uid, Err(failed("gone")));
        bench.work.next(bench.now);
        bench.work.looked(Ok(bench.view.clone()), bench.now);
        let todo = bench.work.next(bench.now);
        assert_eq!(todo.progress.iter().map(|p| &p.report).collect::<Vec<_>>(), [&StepReport::Satisfied]);
        let kept = todo.remember.map(|memory| memory.left).unwrap_or_default();
        assert_eq!(kept, remembered.into_iter().collect());
    }
}

/// A VM that was started before its settings were put back was set up anew by somebody and then taken over.
#[test]
fn kept_settings_do_not_outlive_the_placement_they_were_kept_for() {
    let adopted = |intent| DesiredPlacement {
        uid: "00000000-0000-4000-8000-000000000002".parse().unwrap(),
        name: "adopted".parse().unwrap(),
        ..desired(intent)
    };
    let mut bench = Bench::new(Intent::Attached);
    let start = bench.step();
    assert_eq!(start.step.kind(), StepKind::ConfigureVm);
    bench.ended(&start, Ok(()));
    // Its own release restores them, however often it was only watched between.
    bench.work.desire(node(2, vec![desired(Intent::Kept)]));
    bench.work.desire(node(3, vec![desired(Intent::Detached)]));
    assert_eq!(bench.work.memory().original.len(), 1);
    // One that takes over does not, in another life of the agent either.
    let mut later = Work::new(bench.work.memory().clone(), Pace::default());
    for work in [&mut bench.work, &mut later] {
        work.desire(node(4, vec![adopted(Intent::Kept)]));
        assert_eq!((&work.memory().original, &work.memory().prepared_for), (&BTreeMap::new(), &BTreeMap::new()));
    }
}

#[test]
fn a_placement_that_finds_its_vm_prepared_restores_what_was_before_the_first() {
    let mut bench = Bench::new(Intent::Attached);
    let start = bench.step();
    let Step::ConfigureVm { settings, .. } = &start.step else { panic!("{}", start.step) };
    vm_of(&mut bench.view).settings = settings.clone();
    let second =
        |intent| DesiredPlacement { uid: "00000000-0000-4000-8000-000000000002".parse().unwrap(), ..desired(intent) };
    bench.work.desire(node(2, vec![second(Intent::Attached)]));
    bench.ended(&start, Ok(()));
    assert_eq!(bench.step().step.kind(), StepKind::Disable);
    bench.work.desire(node(3, vec![second(Intent::Kept)]));
    assert_eq!(bench.work.memory().original, BTreeMap::from([(id(VM), fresh_settings())]));
}
