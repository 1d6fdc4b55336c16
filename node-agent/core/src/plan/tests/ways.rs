//! Whole ways, by steps carried out on a small model of a host.

use super::*;

/// Carries out a step on a view, as a host does that never fails.
fn carry_out(view: &mut HostView, step: &Step) {
    let vm = step.vm().cloned();
    let mut on_vm = |change: &mut dyn FnMut(&mut VmView)| change(view.vms.get_mut(vm.as_ref().unwrap()).unwrap());
    match step {
        Step::MakeStandalone { .. } => on_vm(&mut |vm| vm.vm.clustered = false),
        Step::StopVm { .. } => on_vm(&mut |vm| vm.vm.state = VmState::Off),
        Step::ConfigureVm { settings, .. } | Step::RestoreVm { settings, .. } => {
            on_vm(&mut |vm| vm.settings = settings.clone());
        }
        Step::StartVm { .. } => on_vm(&mut |vm| vm.vm.state = VmState::Running),
        Step::InstallDriver { .. } => on_vm(&mut |vm| vm.guest = None),
        Step::Verify { .. } => {
            let seen = GuestDevices { visible: 1, driver_bound: 1 };
            let id = desired(Intent::Attached).gpus[0].fingerprint.id;
            let guest = GuestView { devices: BTreeMap::from([(id, seen)]), complaints: Vec::new() };
            on_vm(&mut |vm| vm.guest = Some(guest.clone()));
        }
        Step::DetachStale { .. } => on_vm(&mut |vm| vm.vm.devices.retain(|d| *d != VmDevice::Stale)),
        Step::Disable { address } | Step::Mount { address } => {
            set_state(view, &address.to_string(), GpuState::Host { driver: HostDriver::Disabled });
        }
        Step::Dismount { address } => set_state(view, &address.to_string(), GpuState::Pooled),
        Step::Enable { address } => {
            set_state(view, &address.to_string(), GpuState::Host { driver: HostDriver::Bound });
        }
        Step::Attach { vm, address } => attach(view, &vm.to_string(), &address.to_string()),
        Step::Detach { address, .. } => {
            on_vm(&mut |vm| vm.vm.devices.retain(|d| *d != VmDevice::At(address.clone())));
            set_state(view, &address.to_string(), GpuState::Pooled);
        }
    }
}

fn whole_way(desired: &DesiredPlacement, view: &mut HostView, memory: &mut Memory) -> Vec<String> {
    let mut steps = Vec::new();
    loop {
        match plan(desired, view, memory) {
            Next::Do(step) => {
                assert_eq!(plan(desired, view, memory), Next::Do(step.clone()), "the same view gives the same step");
                if let Step::ConfigureVm { vm, .. } = &step {
                    memory.original.entry(vm.clone()).or_insert_with(|| view.vms[vm].settings.clone());
                }
                if let (Intent::Attached, Step::Disable { address } | Step::Dismount { address }) =
                    (desired.intent, &step)
                {
                    memory.take(address, desired, view);
                }
                steps.push(step.to_string());
                carry_out(view, &step);
                assert!(steps.len() < 100, "does not end: {steps:?}");
                let once = view.clone();
                assert_ne!(plan(desired, view, memory), Next::Do(step), "a step that took effect is not taken again");
                assert_eq!(*view, once);
            }
            Next::Done => return steps,
            other @ (Next::Wait(_) | Next::Impossible(..)) => panic!("after {steps:?}: {other:?}"),
        }
    }
}

#[test]
fn the_whole_way_there_and_back_leaves_no_trace() {
    let (mut view, mut memory) = (view(), Memory::default());
    vm_of(&mut view).vm.state = VmState::Running;
    vm_of(&mut view).vm.clustered = true;
    let mut placement = desired(Intent::Attached);
    placement.allow_standalone = true;
    placement.verify = VerifyLevel::DriverBound;
    let before = view.clone();
    expect![[r#"
        [
            "MakeStandalone of VM 8fce3318-aa0f-4de3-8664-278533573cd2",
            "StopVm of VM 8fce3318-aa0f-4de3-8664-278533573cd2",
            "ConfigureVm of VM 8fce3318-aa0f-4de3-8664-278533573cd2",
            "Disable PCIROOT(20)#PCI(0300)#PCI(0000)",
            "Disable PCIROOT(20)#PCI(0300)#PCI(0001)",
            "Dismount PCIROOT(20)#PCI(0300)#PCI(0000)",
            "Dismount PCIROOT(20)#PCI(0300)#PCI(0001)",
            "Attach PCIROOT(20)#PCI(0300)#PCI(0000) of VM 8fce3318-aa0f-4de3-8664-278533573cd2",
            "Attach PCIROOT(20)#PCI(0300)#PCI(0001) of VM 8fce3318-aa0f-4de3-8664-278533573cd2",
            "StartVm of VM 8fce3318-aa0f-4de3-8664-278533573cd2",
            "Verify of VM 8fce3318-aa0f-4de3-8664-278533573cd2",
        ]
    "#]]
    .assert_debug_eq(&whole_way(&placement, &mut view, &mut memory));
    placement.intent = Intent::Detached;
    expect![[r#"
        [
            "StopVm of VM 8fce3318-aa0f-4de3-8664-278533573cd2",
            "Detach PCIROOT(20)#PCI(0300)#PCI(0000) of VM 8fce3318-aa0f-4de3-8664-278533573cd2",
            "Detach PCIROOT(20)#PCI(0300)#PCI(0001) of VM 8fce3318-aa0f-4de3-8664-278533573cd2",
            "Mount PCIROOT(20)#PCI(0300)#PCI(0000)",
            "Enable PCIROOT(20)#PCI(0300)#PCI(0000)",
            "Mount PCIROOT(20)#PCI(0300)#PCI(0001)",
            "Enable PCIROOT(20)#PCI(0300)#PCI(0001)",
            "RestoreVm of VM 8fce3318-aa0f-4de3-8664-278533573cd2",
        ]
    "#]]
    .assert_debug_eq(&whole_way(&placement, &mut view, &mut memory));
    assert_eq!(view.gpus, before.gpus);
    assert_eq!(view.companions, before.companions);
    assert_eq!(vm_of(&mut view).settings, fresh_settings());
}

#[test]
fn what_was_disabled_before_is_disabled_afterwards() {
    let disabled = || GpuState::Host { driver: HostDriver::Disabled };
    for before in [vec![AUDIO], vec![GPU], vec![GPU, AUDIO]] {
        let (mut view, mut memory) = (view(), Memory::default());
        before.iter().for_each(|function| set_state(&mut view, function, disabled()));
        let start = view.clone();
        whole_way(&desired(Intent::Attached), &mut view, &mut memory);
        whole_way(&desired(Intent::Detached), &mut view, &mut memory);
        assert_eq!((&view.gpus, &view.companions), (&start.gpus, &start.companions), "{before:?}");
        memory.forget_cards(&desired(Intent::Detached), &view);
        assert!(memory.taken.is_empty(), "{before:?}");
    }
    // However it comes out of the pool.
    check_from(
        view(),
        Intent::Detached,
        |v, d, m| {
            set_state(v, AUDIO, disabled());
            m.take(&at(GPU), d, v);
            set_state(v, AUDIO, GpuState::Host { driver: HostDriver::Bound });
        },
        expect!["do Disable PCIROOT(20)#PCI(0300)#PCI(0001)"],
    );
    // What was enabled is never disabled for a release.
    let refused =
        safety::check(&Step::Disable { address: at(GPU) }, &desired(Intent::Detached), &view(), &Memory::default());
    assert_eq!(refused, Err(Violation::NotWanted));
}

/// A card that stays in the pool keeps what it was until somebody gives it back to the host.
#[test]
fn what_a_pooled_card_was_is_known_to_whoever_takes_it_next() {
    let second =
        |intent| DesiredPlacement { uid: "00000000-0000-4000-8000-000000000002".parse().unwrap(), ..desired(intent) };
    let (mut view, mut memory) = (view(), Memory::default());
    set_state(&mut view, AUDIO, GpuState::Host { driver: HostDriver::Disabled });
    let start = view.clone();
    whole_way(&desired(Intent::Attached), &mut view, &mut memory);
    let to_pool = DesiredPlacement { return_to: ReturnTo::Pool, ..desired(Intent::Detached) };
    whole_way(&to_pool, &mut view, &mut memory);
    memory.forget_cards(&to_pool, &view);
    whole_way(&second(Intent::Attached), &mut view, &mut memory);
    whole_way(&second(Intent::Detached), &mut view, &mut memory);
    memory.forget_cards(&second(Intent::Detached), &view);
    assert_eq!((&view.gpus, &view.companions), (&start.gpus, &start.companions));
    // Somebody enabled it meanwhile: that is what it is from then on.
    set_state(&mut view, AUDIO, GpuState::Host { driver: HostDriver::Bound });
    let start = view.clone();
    whole_way(&desired(Intent::Attached), &mut view, &mut memory);
    whole_way(&desired(Intent::Detached), &mut view, &mut memory);
    assert_eq!(view.companions, start.companions);
}

/// Undo from every point on the way: after each step the wish turns, and everything must come back.
#[test]
fn turning_back_after_any_step_gives_everything_back() {
    for turn in 0.. {
        let (mut view, mut memory) = (view(), Memory::default());
        let before = view.clone();
        let mut placement = desired(Intent::Attached);
        let mut over = false;
        for _ in 0..turn {
            match plan(&placement, &view, &memory) {
                Next::Do(step) => {
                    if let Step::ConfigureVm { vm, .. } = &step {
                        memory.original.insert(vm.clone(), view.vms[vm].settings.clone());
                    }
                    carry_out(&mut view, &step);
                }
                Next::Done => over = true,
                other @ (Next::Wait(_) | Next::Impossible(..)) => panic!("{other:?}"),
            }
        }
        placement.intent = Intent::Detached;
        whole_way(&placement, &mut view, &mut memory);
        assert_eq!((&view.gpus, &view.companions), (&before.gpus, &before.companions), "turned after {turn}");
        assert_eq!(vm_of(&mut view).settings, fresh_settings(), "turned after {turn}");
        if over {
            assert!(turn > 8);
            return;
        }
    }
}
