//! A driver-install command: begun once whatever happens, and told until the placement is over.

use super::*;
use crate::guest::{GuestDevices, GuestView};
use crate::plan::tests::running;
use berth_model::install::{Install, InstallEnd, InstallOutput};
use berth_model::request::VerifyLevel;

fn wish() -> DesiredPlacement {
    let verify = VerifyLevel::DriverBound;
    DesiredPlacement { verify, install_driver: "nvidia".parse().ok(), ..desired(Intent::Attached) }
}

fn run(end: InstallEnd) -> Install {
    Install { command: "nvidia".parse().unwrap(), end, output: InstallOutput::of(b"some words") }
}

fn shows(bench: &mut Bench, driver_bound: u32) {
    let devices = [(wish().gpus[0].fingerprint.id, GuestDevices { visible: 1, driver_bound })].into();
    vm_of(&mut bench.view).guest = Some(GuestView { devices, complaints: Vec::new() });
}

/// A running VM whose guest shows the device without a driver, and what an agent remembers of it.
fn bench(memory: Memory) -> Bench {
    let mut work = Work::new(memory, Pace::default());
    work.desire(node(1, vec![wish()]));
    let mut bench = Bench { work, now: Timestamp::from_millis(1_000), view: running(), said: Vec::new() };
    shows(&mut bench, 0);
    bench
}

/// What a new session is told of it.
fn told(bench: &mut Bench) -> Option<Install> {
    bench.work.new_session();
    let mut todo = bench.work.next(bench.now);
    if todo.look {
        bench.work.looked(Ok(bench.view.clone()), bench.now);
    }
    todo.progress.pop().and_then(|progress| progress.install)
}

#[test]
fn it_is_kept_before_it_is_begun_and_told_once_it_has_ended() {
    let mut bench = bench(Memory::default());
    assert!(bench.work.next(bench.now).look);
    bench.work.looked(Ok(bench.view.clone()), bench.now);
    let todo = bench.work.next(bench.now);
    assert_eq!(todo.start[0].step.kind(), StepKind::InstallDriver);
    let kept = todo.remember.unwrap().installs;
    assert_eq!(kept[&wish().uid].end, InstallEnd::Unknown);
    // While it runs, there is nothing to tell of how it ended.
    assert_eq!(told(&mut bench), None);
    bench.work.installed(&wish().uid, Ok(run(InstallEnd::Exited(0))));
    vm_of(&mut bench.view).guest = None;
    assert_eq!(told(&mut bench), Some(run(InstallEnd::Exited(0))));
    assert_eq!(bench.work.memory().installs[&wish().uid], run(InstallEnd::Exited(0)));
    // Verified as ever, and never begun again.
    let start = bench.step();
    assert_eq!(start.step.kind(), StepKind::Verify);
    shows(&mut bench, 1);
    bench.ended(&start, Ok(()));
    assert_eq!(bench.until_step(Duration::from_secs(60)), None);
    assert_eq!(*bench.last_said(), StepReport::Satisfied);
    assert_eq!(told(&mut bench), Some(run(InstallEnd::Exited(0))));
    // Over and forgotten.
    bench.work.desire(node(2, Vec::new()));
    assert!(bench.work.memory().installs.is_empty());
}

#[test]
fn an_agent_that_was_killed_in_the_middle_looks_and_does_not_begin_it_again() {
    let mut memory = Memory::default();
    memory.installs.insert(wish().uid, Install { output: InstallOutput::default(), ..run(InstallEnd::Unknown) });
    let mut bench = bench(memory);
    let mut kinds = Vec::new();
    while let Some(start) = bench.until_step(Duration::from_secs(60)) {
        kinds.push(start.step.kind());
        if kinds.len() == 3 {
            shows(&mut bench, 1);
        }
        bench.ended(&start, Ok(()));
    }
    assert_eq!(kinds, [StepKind::Verify; 3]);
    assert_eq!(*bench.last_said(), StepReport::Satisfied);
    assert_eq!(told(&mut bench).unwrap().end, InstallEnd::Unknown);
}

#[test]
fn one_that_failed_ends_the_placement_after_a_last_look_with_what_it_said() {
    let mut bench = bench(Memory::default());
    let start = bench.step();
    bench.work.installed(&start.uid, Ok(run(InstallEnd::Exited(7))));
    vm_of(&mut bench.view).guest = None;
    let start = bench.step();
    assert_eq!(start.step.kind(), StepKind::Verify);
    shows(&mut bench, 0);
    bench.ended(&start, Ok(()));
    assert_eq!(bench.until_step(Duration::from_secs(3_600)), None);
    let StepReport::Failed { step: StepKind::InstallDriver, error } = bench.last_said() else {
        panic!("{:?}", bench.said)
    };
    assert!(error.text.contains("exit code 7, saying some words"), "{error}");
    assert_eq!(told(&mut bench), Some(run(InstallEnd::Exited(7))));
}

#[test]
fn one_that_was_surely_not_begun_is_tried_again_and_one_that_may_have_been_is_not() {
    let mut bench = bench(Memory::default());
    for attempt in 1..=2 {
        let start = bench.step();
        assert_eq!((start.step.kind(), start.attempt), (StepKind::InstallDriver, attempt));
        bench.work.installed(&start.uid, Err(failed("no way in")));
        assert!(bench.work.memory().installs.is_empty());
    }
    let start = bench.step();
    let late = StepError { class: StepErrorClass::TimedOut, text: "late".to_owned() };
    bench.work.installed(&start.uid, Err(late));
    assert_eq!(bench.work.memory().installs[&start.uid].end, InstallEnd::Unknown);
    assert_eq!(bench.step().step.kind(), StepKind::Verify);
    // What the node does not know is not tried again.
    let mut bench = super::install::bench(Memory::default());
    let start = bench.step();
    let error = StepError { class: StepErrorClass::Forbidden, text: "no such command".to_owned() };
    bench.work.installed(&start.uid, Err(error.clone()));
    assert_eq!(bench.until_step(Duration::from_secs(600)), None);
    assert_eq!(*bench.last_said(), StepReport::Failed { step: StepKind::InstallDriver, error });
}

/// A guest must be asked anew once a command was to run in it, whatever came of that.
#[test]
fn why_it_was_not_begun_is_not_forgotten_over_asking_the_guest_again() {
    for class in [StepErrorClass::Forbidden, StepErrorClass::Failed] {
        let mut bench = bench(Memory::default());
        let error = StepError { class, text: "no such command".to_owned() };
        let mut tried = 0;
        while let Some(start) = bench.until_step(Duration::from_secs(600)) {
            if start.step.kind() == StepKind::InstallDriver {
                tried += 1;
                vm_of(&mut bench.view).guest = None;
                bench.work.installed(&start.uid, Err(error.clone()));
            } else {
                assert_eq!(start.step.kind(), StepKind::Verify);
                shows(&mut bench, 0);
                bench.ended(&start, Ok(()));
            }
        }
        assert_eq!(tried, if class == StepErrorClass::Forbidden { 1 } else { 5 });
        assert_eq!(*bench.last_said(), StepReport::Failed { step: StepKind::InstallDriver, error });
    }
}

#[test]
fn a_placement_that_is_given_up_meanwhile_still_learns_how_it_ended() {
    let mut bench = bench(Memory::default());
    let start = bench.step();
    bench.work.desire(node(2, vec![DesiredPlacement { intent: Intent::Detached, ..wish() }]));
    assert_eq!(bench.until_step(Duration::from_secs(60)), None, "the VM must not be touched while it runs");
    bench.work.installed(&start.uid, Ok(run(InstallEnd::Exited(0))));
    assert_eq!(bench.step().step.kind(), StepKind::StopVm);
    assert_eq!(told(&mut bench), Some(run(InstallEnd::Exited(0))));
}
