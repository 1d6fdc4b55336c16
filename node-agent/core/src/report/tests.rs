//! Successive looks: what is unknown, what is gone, what is another card; and what of it is told.

use super::*;
use crate::plan::tests::{AUDIO, GPU, OTHER_VM, VM, at, attach, desired, id, set_state, view};
use berth_model::desired::Intent;
use berth_model::gpu::{Fingerprint, HostDriver};
use std::time::Duration;

std::thread_local! {
    static NOW: std::cell::Cell<Timestamp> = const { std::cell::Cell::new(Timestamp::from_millis(1)) };
}

fn look_after(pause: Duration, tracker: &mut Tracker, memory: &mut Memory, view: HostView) -> HostView {
    NOW.set(NOW.get().after(pause));
    tracker.look(view, [desired(Intent::Detached)].iter(), memory, NOW.get()).unwrap()
}

/// Each look is long after the one before, so that their number alone decides.
fn look(tracker: &mut Tracker, memory: &mut Memory, view: HostView) -> Result<HostView, String> {
    NOW.set(NOW.get().after(WHILE_MOVING));
    tracker.look(view, [desired(Intent::Detached)].iter(), memory, NOW.get())
}

fn without_gpu() -> HostView {
    let mut view = view();
    let other = GpuState::Host { driver: HostDriver::None };
    let mut gpu = view.gpus.remove(&at(GPU)).unwrap();
    view.companions.clear();
    // Another GPU still shows, so that the listing is not empty.
    gpu.address = at("PCIROOT(20)#PCI(0400)#PCI(0000)");
    gpu.survey.companions.clear();
    gpu.state = other;
    view.gpus.insert(gpu.address.clone(), gpu);
    view
}

fn without_vm() -> HostView {
    let mut view = view();
    view.vms.remove(&id(VM));
    view
}

#[test]
fn a_gpu_that_does_not_show_is_unknown_first_and_missing_after_three_complete_looks() {
    let (mut tracker, mut memory) = (Tracker::default(), Memory::default());
    look(&mut tracker, &mut memory, view()).unwrap();
    let mut states = || look(&mut tracker, &mut memory, without_gpu()).unwrap().state(&at(GPU));
    assert_eq!([states(), states(), states()], [GpuState::Unknown, GpuState::Unknown, GpuState::Missing]);
    let back = look(&mut tracker, &mut memory, view()).unwrap();
    assert_eq!(back.gpus[&at(GPU)], view().gpus[&at(GPU)], "it is back, as if nothing had been");
}

#[test]
fn a_look_in_between_begins_the_count_anew() {
    let (mut tracker, mut memory) = (Tracker::default(), Memory::default());
    for _ in 0..5 {
        look(&mut tracker, &mut memory, view()).unwrap();
        for _ in 1..MISSES_UNTIL_GONE {
            let seen = look(&mut tracker, &mut memory, without_gpu()).unwrap();
            assert_eq!(seen.state(&at(GPU)), GpuState::Unknown);
        }
    }
}

#[test]
fn after_a_restart_a_wanted_or_remembered_gpu_is_not_missing_at_once_either() {
    let mut known = Memory::default();
    look(&mut Tracker::default(), &mut known, view()).unwrap();
    for mut memory in [Memory::default(), known] {
        let mut tracker = Tracker::default();
        let mut states = || look(&mut tracker, &mut memory, without_gpu()).unwrap().state(&at(GPU));
        assert_eq!([states(), states(), states()], [GpuState::Unknown, GpuState::Unknown, GpuState::Missing]);
    }
}

#[test]
fn an_empty_listing_counts_as_failed_until_it_keeps_coming() {
    for (what, empty) in [("GPU", (|v| v.gpus.clear()) as fn(&mut HostView)), ("VM", |v| v.vms.clear())] {
        let (mut tracker, mut memory) = (Tracker::default(), Memory::default());
        look(&mut tracker, &mut memory, view()).unwrap();
        let mut view = view();
        empty(&mut view);
        for _ in 0..EMPTY_LOOKS {
            let why = look(&mut tracker, &mut memory, view.clone()).unwrap_err();
            assert_eq!(why, format!("the listing shows no {what} at all, although there were some"));
        }
        for _ in 0..MISSES_UNTIL_GONE {
            look(&mut tracker, &mut memory, view.clone()).unwrap();
        }
        // Now it is known, and no failure any more.
        let seen = look(&mut tracker, &mut memory, view).unwrap();
        assert!(seen.state(&at(GPU)) == GpuState::Missing || seen.vms.is_empty());
    }
}

#[test]
fn a_host_that_never_had_a_gpu_is_seen_completely() {
    let mut view = view();
    view.gpus.clear();
    view.companions.clear();
    let seen = Tracker::default().look(view, [].iter(), &mut Memory::default(), Timestamp::default());
    assert!(seen.is_ok_and(|seen| seen.gpus.is_empty()));
}

#[test]
fn more_than_can_be_kept_is_a_failed_look() {
    let mut view = view();
    let gpu = view.gpus[&at(GPU)].clone();
    for slot in 0..=MAX_GPUS_PER_NODE {
        let address = at(&format!("PCIROOT(30)#PCI({slot:02X}00)"));
        view.gpus.insert(address.clone(), ObservedGpu { address, ..gpu.clone() });
    }
    let why = Tracker::default().look(view, [].iter(), &mut Memory::default(), Timestamp::default()).unwrap_err();
    assert_eq!(why, "the host lists 66 GPUs, at most 64 can be kept");
}

#[test]
fn a_vm_that_does_not_show_keeps_its_devices_until_it_is_surely_gone() {
    let (mut tracker, mut memory) = (Tracker::default(), Memory::default());
    let mut with_device = view();
    attach(&mut with_device, VM, GPU);
    look(&mut tracker, &mut memory, with_device).unwrap();
    let mut pooled = without_vm();
    set_state(&mut pooled, GPU, GpuState::Pooled);
    for _ in 1..MISSES_UNTIL_GONE {
        let seen = look(&mut tracker, &mut memory, pooled.clone()).unwrap();
        assert_eq!(seen.state(&at(GPU)), GpuState::Attached { vm: id(VM) });
        assert_eq!(seen.vms[&id(VM)].vm.state, VmState::Unknown);
        assert!(seen.unseen.contains(&id(VM)));
        assert!(!tracker.vm_is_gone(&id(VM)));
    }
    let seen = look(&mut tracker, &mut memory, pooled).unwrap();
    assert_eq!(seen.state(&at(GPU)), GpuState::Pooled);
    assert!(seen.unseen.is_empty() && !seen.vms.contains_key(&id(VM)));
    assert!(tracker.vm_is_gone(&id(VM)));
}

#[test]
fn a_vm_that_was_never_seen_is_not_gone_at_once() {
    let (mut tracker, mut memory) = (Tracker::default(), Memory::default());
    let mut gone = || {
        look(&mut tracker, &mut memory, without_vm()).unwrap();
        tracker.vm_is_gone(&id(VM))
    };
    assert_eq!([gone(), gone(), gone()], [false, false, true]);
    look(&mut tracker, &mut memory, view()).unwrap();
    assert!(!tracker.vm_is_gone(&id(VM)));
}

fn stranger() -> HostView {
    let mut view = view();
    let gpu = view.gpus.get_mut(&at(GPU)).unwrap();
    gpu.survey.fingerprint = Fingerprint { id: "10de:26b9".parse().unwrap(), serial: None };
    view
}

#[test]
fn another_card_at_a_known_address_is_quarantined_until_the_old_one_is_back_or_the_node_is_admitted_anew() {
    let (mut tracker, mut memory) = (Tracker::default(), Memory::default());
    look(&mut tracker, &mut memory, view()).unwrap();
    let health = |tracker: &mut Tracker, memory: &mut Memory, seen: HostView| {
        look(tracker, memory, seen).unwrap().gpus[&at(GPU)].health.clone()
    };
    let quarantined = GpuHealth::Quarantined(QuarantineReason::WrongCard {
        expected: "10de:25b6:10de:157e".parse().map(|id| Fingerprint { id, serial: None }).unwrap(),
        found: "10de:26b9".parse().map(|id| Fingerprint { id, serial: None }).unwrap(),
    });
    assert_eq!(health(&mut tracker, &mut memory, stranger()), quarantined);
    // Neither another boot nor another life of the agent clears it.
    let mut later = stranger();
    later.boot = berth_model::node::BootId::new("boot-2").unwrap();
    assert_eq!(health(&mut Tracker::default(), &mut memory, later), quarantined);
    assert_eq!(health(&mut tracker, &mut memory, view()), GpuHealth::Ok);
    assert_eq!(health(&mut tracker, &mut memory, stranger()), quarantined);
    // The stranger is taken out: what is missing is the card that was known.
    for _ in 0..MISSES_UNTIL_GONE {
        look(&mut tracker, &mut memory, without_gpu()).unwrap();
    }
    let seen = look(&mut tracker, &mut memory, without_gpu()).unwrap();
    assert_eq!(seen.gpus[&at(GPU)].survey.fingerprint, view().gpus[&at(GPU)].survey.fingerprint);
    assert_eq!(seen.gpus[&at(GPU)].state, GpuState::Missing);
    tracker.readmit(&mut memory);
    assert_eq!(health(&mut tracker, &mut memory, stranger()), GpuHealth::Ok);
}

#[test]
fn what_was_measured_is_remembered_when_it_cannot_be_measured_any_more() {
    let (mut tracker, mut memory) = (Tracker::default(), Memory::default());
    look(&mut tracker, &mut memory, view()).unwrap();
    let mut blind = view();
    let gpu = blind.gpus.get_mut(&at(GPU)).unwrap();
    gpu.state = GpuState::Pooled;
    gpu.survey.verdict = Verdict::NotMeasured;
    gpu.survey.mmio = berth_model::gpu::MmioSize::default();
    let seen = look(&mut Tracker::default(), &mut memory, blind).unwrap();
    assert_eq!(seen.gpus[&at(GPU)].survey, view().gpus[&at(GPU)].survey);
    assert_eq!(seen.state(&at(GPU)), GpuState::Pooled);
}

#[test]
fn a_companion_that_does_not_show_is_unknown_then_missing() {
    let (mut tracker, mut memory) = (Tracker::default(), Memory::default());
    let mut deaf = view();
    deaf.companions.clear();
    let mut states = || look(&mut tracker, &mut memory, deaf.clone()).unwrap().state(&at(AUDIO));
    assert_eq!([states(), states(), states()], [GpuState::Unknown, GpuState::Unknown, GpuState::Missing]);
}

#[test]
fn the_first_report_is_full_then_only_changes_are_told() {
    let mut reporter = Reporter::default();
    assert_eq!(reporter.report(), None, "nothing was seen yet");
    let mut seen = view();
    reporter.complete(&seen);
    let first = reporter.report().unwrap();
    assert_eq!((first.sequence, first.full, first.gpus.len(), first.vms.len()), (1, true, 1, 2));
    reporter.complete(&seen);
    assert_eq!(reporter.report(), None, "nothing changed");
    set_state(&mut seen, GPU, GpuState::Pooled);
    seen.vms.remove(&id(OTHER_VM));
    reporter.complete(&seen);
    let second = reporter.report().unwrap();
    assert_eq!((second.sequence, second.full, second.listing), (2, false, Listing::Complete));
    assert_eq!((second.gpus.len(), second.vms.len(), second.vms_gone), (1, 0, vec![id(OTHER_VM)]));
    reporter.new_session();
    let again = reporter.report().unwrap();
    assert_eq!((again.sequence, again.full, again.gpus.len(), again.vms.len()), (1, true, 1, 1));
}

#[test]
fn a_failed_look_is_told_once_and_changes_nothing() {
    let mut reporter = Reporter::default();
    reporter.complete(&view());
    reporter.report().unwrap();
    reporter.failed("no".to_owned());
    let failed = reporter.report().unwrap();
    assert_eq!((failed.full, failed.listing), (false, Listing::Failed { why: "no".to_owned() }));
    assert!(failed.gpus.is_empty() && failed.vms.is_empty() && failed.vms_gone.is_empty());
    reporter.failed("no".to_owned());
    assert_eq!(reporter.report(), None);
    reporter.complete(&view());
    let well = reporter.report().unwrap();
    assert_eq!((well.full, well.listing, well.gpus.len()), (false, Listing::Complete, 0));
}

#[test]
fn a_session_that_begins_with_a_failure_gets_everything_once_it_is_seen() {
    let mut reporter = Reporter::default();
    reporter.failed("no".to_owned());
    assert!(matches!(reporter.report().unwrap().listing, Listing::Failed { .. }));
    reporter.complete(&view());
    let full = reporter.report().unwrap();
    assert_eq!((full.full, full.sequence, full.gpus.len()), (true, 2, 1));
}

/// In the middle of a release the sound function is in neither host nor pool. An agent that starts just then has measured
/// nothing of it and must give it back all the same.
#[test]
fn a_function_on_its_way_is_not_forgotten_by_an_agent_that_starts_just_then() {
    let mut memory = Memory::default();
    look(&mut Tracker::default(), &mut memory, view()).unwrap();
    let half = || {
        let mut half = view();
        half.companions.clear();
        half.gpus.get_mut(&at(GPU)).unwrap().survey.companions.clear();
        half
    };
    let mut tracker = Tracker::default();
    let mut looks = || {
        let seen = look(&mut tracker, &mut memory, half()).unwrap();
        (seen.gpus[&at(GPU)].survey.companions.clone(), seen.state(&at(AUDIO)))
    };
    let expected = (vec![at(AUDIO)], GpuState::Unknown);
    assert_eq!([looks(), looks()], [expected.clone(), expected], "it is unknown, so the release waits for it");
    // Three complete looks of a card that is measured: firmware has taken it off the card.
    assert_eq!(looks().0, []);
    assert_eq!(memory.known[&at(GPU)].companions, []);
    // It comes back like any other.
    let seen = look(&mut Tracker::default(), &mut memory, view()).unwrap();
    assert_eq!(seen.gpus[&at(GPU)].survey.companions, [at(AUDIO)]);
}

const SECONDS: Duration = Duration::from_secs(2);

/// Looks every two seconds until the GPU is not unknown any more; gives how long that took.
fn until_gone(tracker: &mut Tracker, memory: &mut Memory) -> Duration {
    let begun = NOW.get();
    loop {
        let seen = look_after(SECONDS, tracker, memory, without_gpu());
        if seen.state(&at(GPU)) == GpuState::Missing {
            return NOW.get().since(begun);
        }
        assert_eq!(seen.state(&at(GPU)), GpuState::Unknown);
        assert!(NOW.get().since(begun) < 2 * WHILE_MOVING, "never gone");
    }
}

#[test]
fn a_card_that_may_be_on_its_way_is_not_gone_for_minutes_however_often_one_looks() {
    let pooled = || {
        let mut view = view();
        set_state(&mut view, GPU, GpuState::Pooled);
        view
    };
    // A placement names it; it was in the pool; nothing was seen of it since the agent started.
    for seen in [Some(view()), Some(pooled()), None] {
        let (mut tracker, mut memory) = (Tracker::default(), Memory::default());
        look(&mut Tracker::default(), &mut memory, view()).unwrap();
        if let Some(view) = seen {
            look(&mut tracker, &mut memory, view).unwrap();
        }
        let took = until_gone(&mut tracker, &mut memory);
        assert!((WHILE_MOVING..=WHILE_MOVING + 2 * SECONDS).contains(&took), "{took:?}");
    }
}

#[test]
fn time_counts_from_the_last_step_on_any_function_of_the_card() {
    let (mut tracker, mut memory) = (Tracker::default(), Memory::default());
    look(&mut tracker, &mut memory, view()).unwrap();
    for _ in 0..100 {
        look_after(SECONDS, &mut tracker, &mut memory, without_gpu());
    }
    tracker.moving(&at(AUDIO), NOW.get());
    assert!(until_gone(&mut tracker, &mut memory) >= WHILE_MOVING);
}

#[test]
fn a_card_that_stayed_with_the_host_and_that_nobody_wants_is_gone_after_three_looks() {
    let mut memory = Memory::default();
    let mut tracker = Tracker::default();
    let mut free = |view| {
        NOW.set(NOW.get().after(SECONDS));
        tracker.look(view, [].iter(), &mut memory, NOW.get()).unwrap().state(&at(GPU))
    };
    free(view());
    assert_eq!([(); 3].map(|()| free(without_gpu())), [GpuState::Unknown, GpuState::Unknown, GpuState::Missing]);
    // The host is restarted: it may yet show.
    let mut restarted = without_gpu();
    restarted.boot = berth_model::node::BootId::new("boot-2").unwrap();
    assert_eq!([(); 5].map(|()| free(restarted.clone())), [const { GpuState::Unknown }; 5]);
}

#[test]
fn what_a_release_had_to_leave_is_quarantined_when_it_turns_up_in_the_pool_until_the_host_has_it() {
    let disabled = GpuState::Host { driver: HostDriver::Disabled };
    for (function, state) in [(GPU, GpuState::Pooled), (AUDIO, GpuState::Pooled), (GPU, disabled)] {
        let (mut tracker, mut memory) = (Tracker::default(), Memory::default());
        look(&mut tracker, &mut memory, view()).unwrap();
        memory.left.insert(at(function));
        look(&mut tracker, &mut memory, without_gpu()).unwrap();
        let mut back = view();
        set_state(&mut back, function, state);
        // Another life of the agent knows it, too.
        for tracker in [&mut tracker, &mut Tracker::default()] {
            let seen = look(tracker, &mut memory, back.clone()).unwrap();
            let health = &seen.gpus[&at(GPU)].health;
            assert!(
                matches!(health, GpuHealth::Quarantined(QuarantineReason::NotCleanAfterRelease { seen }) if seen.starts_with(function)),
                "{health:?}"
            );
        }
        let seen = look(&mut tracker, &mut memory, view()).unwrap();
        assert_eq!((&seen.gpus[&at(GPU)].health, &memory.left), (&GpuHealth::Ok, &BTreeSet::new()));
        // From now on it is in the pool because somebody wants it there.
        assert_eq!(look(&mut tracker, &mut memory, back).unwrap().gpus[&at(GPU)].health, GpuHealth::Ok);
    }
}

#[test]
fn what_a_vm_got_meanwhile_is_its_own_and_another_card_in_the_slot_says_nothing() {
    let (mut tracker, mut memory) = (Tracker::default(), Memory::default());
    look(&mut tracker, &mut memory, view()).unwrap();
    memory.left.insert(at(GPU));
    look(&mut tracker, &mut memory, stranger()).unwrap();
    assert_eq!(memory.left, BTreeSet::from([at(GPU)]));
    let mut given = view();
    attach(&mut given, OTHER_VM, GPU);
    look(&mut tracker, &mut memory, given).unwrap();
    assert_eq!(memory.left, BTreeSet::new());
    memory.left.insert(at(GPU));
    tracker.readmit(&mut memory);
    assert_eq!(memory.left, BTreeSet::new());
}
