//! Safety on arbitrary views: what the planner wants, what is checked, and what the rules say in their own words.

use super::*;
use crate::plan::tests::{AUDIO, GPU, OTHER_VM, VM, at, attach, desired, fresh_settings, id, set_state, view, vm_of};
use crate::plan::{Next, plan, wanted_settings};
use berth_model::request::ReturnTo;
use proptest::prelude::*;

const FOREIGN: &str = "PCIROOT(20)#PCI(0400)#PCI(0000)";

fn every_step() -> Vec<Step> {
    let mut steps = Vec::new();
    for vm in [VM, OTHER_VM].map(id) {
        let settings = wanted_settings(&fresh_settings(), &[]);
        steps.extend([
            Step::MakeStandalone { vm: vm.clone(), role: None },
            Step::StopVm { vm: vm.clone() },
            Step::ConfigureVm { vm: vm.clone(), settings: settings.clone() },
            Step::StartVm { vm: vm.clone() },
            Step::Verify { vm: vm.clone() },
            Step::InstallDriver { vm: vm.clone(), command: "nvidia".parse().unwrap() },
            Step::DetachStale { vm: vm.clone() },
            Step::RestoreVm { vm: vm.clone(), settings },
        ]);
        for address in [GPU, AUDIO, FOREIGN].map(at) {
            steps.push(Step::Attach { vm: vm.clone(), address: address.clone() });
            steps.push(Step::Detach { vm: vm.clone(), address });
        }
    }
    for address in [GPU, AUDIO, FOREIGN].map(at) {
        steps.extend([
            Step::Disable { address: address.clone() },
            Step::Dismount { address: address.clone() },
            Step::Mount { address: address.clone() },
            Step::Enable { address },
        ]);
    }
    steps
}

fn gpu_state() -> impl Strategy<Value = GpuState> {
    prop_oneof![
        Just(GpuState::Host { driver: HostDriver::Bound }),
        Just(GpuState::Host { driver: HostDriver::None }),
        Just(GpuState::Host { driver: HostDriver::Disabled }),
        Just(GpuState::Pooled),
        Just(GpuState::Missing),
        Just(GpuState::Unknown),
    ]
}

/// Any host with the placement's GPU, its audio function, its VM and another, in any state and any combination.
fn any_view() -> impl Strategy<Value = HostView> {
    let vm_state = || proptest::sample::select(VmState::ALL.to_vec());
    let flags = proptest::collection::vec(any::<bool>(), 10);
    (gpu_state(), gpu_state(), vm_state(), vm_state(), flags, 0_usize..3).prop_map(
        |(gpu, audio, ours, other, flags, stale)| {
            let mut view = view();
            set_state(&mut view, GPU, gpu);
            set_state(&mut view, AUDIO, audio);
            vm_of(&mut view).vm.state = ours;
            view.vms.get_mut(&id(OTHER_VM)).unwrap().vm.state = other;
            let mut flags = flags.into_iter();
            let mut on = || flags.next().unwrap();
            for (vm, address) in [(VM, GPU), (VM, AUDIO), (OTHER_VM, GPU), (OTHER_VM, AUDIO)] {
                if on() && on() {
                    attach(&mut view, vm, address);
                }
            }
            let vm = vm_of(&mut view);
            vm.vm.devices.extend(std::iter::repeat_n(VmDevice::Stale, stale));
            if on() {
                vm.settings = wanted_settings(&vm.settings, &[desired(Intent::Attached).gpus[0].mmio]);
            }
            if on() {
                view.gpus.get_mut(&at(GPU)).unwrap().survey.fingerprint.id.device = 1;
            }
            view
        },
    )
}

/// The rules once more, said the other way round: what must be true of any step that was let through.
fn assert_safe(step: &Step, desired: &DesiredPlacement, view: &HostView) {
    assert_ne!(desired.intent, Intent::Kept);
    if let Some(vm) = step.vm() {
        assert_eq!(vm, &desired.vm);
    }
    let vm = view.vms.get(&desired.vm);
    if let Some(address) = step.device() {
        assert!([at(GPU), at(AUDIO)].contains(address), "a device that is not the placement's");
        let gpu = &view.gpus[&at(GPU)];
        let ours = desired.gpus[0].fingerprint.matches(&gpu.survey.fingerprint);
        let record = matches!(step, Step::Detach { .. });
        assert!(ours || (record && gpu.state == GpuState::Missing), "another card");
        assert_ne!(gpu.state, GpuState::Unknown);
        if !record {
            assert!(
                [GPU, AUDIO].map(at).iter().all(|f| view.holders(f).all(|h| h.vm.id == desired.vm)),
                "another VM's"
            );
        }
        if matches!(step, Step::Mount { .. } | Step::Enable { .. }) {
            assert_eq!(view.holders(address).count(), 0, "back to the host out of a VM");
        }
    }
    let needs_off = match step {
        Step::ConfigureVm { .. }
        | Step::RestoreVm { .. }
        | Step::Attach { .. }
        | Step::Detach { .. }
        | Step::DetachStale { .. } => true,
        Step::MakeStandalone { .. }
        | Step::StopVm { .. }
        | Step::StartVm { .. }
        | Step::Verify { .. }
        | Step::InstallDriver { .. }
        | Step::Disable { .. }
        | Step::Dismount { .. }
        | Step::Mount { .. }
        | Step::Enable { .. } => false,
    };
    assert!(!needs_off || vm.is_some_and(|vm| vm.vm.state == VmState::Off), "a VM that is not off");
    if let Some(vm) = vm.filter(|_| matches!(step, Step::StopVm { .. } | Step::StartVm { .. })) {
        assert!(vm.vm.devices.iter().all(|d| *d != VmDevice::At(at(FOREIGN))), "a VM with a device of somebody else");
    }
    if matches!(step, Step::StartVm { .. }) {
        assert!([GPU, AUDIO].map(at).iter().all(|f| view.holders(f).count() == 1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_step_that_is_let_through_breaks_a_rule(
        view in any_view(),
        intent in proptest::sample::select(vec![Intent::Attached, Intent::Kept, Intent::Detached]),
        foreign in any::<bool>(),
    ) {
        let mut view = view;
        if foreign {
            vm_of(&mut view).vm.devices.push(VmDevice::At(at(FOREIGN)));
        }
        let desired = desired(intent);
        for step in every_step() {
            if check(&step, &desired, &view, &Memory::default()).is_ok() {
                assert_safe(&step, &desired, &view);
            }
        }
    }

    #[test]
    fn the_planner_only_wants_what_is_safe(
        view in any_view(),
        attached in any::<bool>(),
        standalone in any::<bool>(),
        pool in any::<bool>(),
        gone in any::<bool>(),
        remembered in any::<bool>(),
    ) {
        let mut view = view;
        let mut memory = Memory::default();
        if remembered {
            memory.original.insert(id(VM), fresh_settings());
        }
        if gone {
            view.vms.remove(&id(VM));
        }
        let mut desired = desired(if attached { Intent::Attached } else { Intent::Detached });
        desired.allow_standalone = standalone;
        desired.return_to = if pool { ReturnTo::Pool } else { ReturnTo::Host };
        if let Next::Do(step) = plan(&desired, &view, &memory) {
            prop_assert_eq!(check(&step, &desired, &view, &memory), Ok(()));
            assert_safe(&step, &desired, &view);
        }
    }
}

#[test]
fn stopping_needs_a_reason() {
    let mut view = view();
    vm_of(&mut view).vm.state = VmState::Running;
    let stop = Step::StopVm { vm: id(VM) };
    let refused = check(&stop, &desired(Intent::Detached), &view, &Memory::default());
    assert_eq!(refused, Err(Violation::NothingInVm(id(VM))));
    attach(&mut view, VM, GPU);
    assert_eq!(check(&stop, &desired(Intent::Detached), &view, &Memory::default()), Ok(()));
    assert_eq!(check(&stop, &desired(Intent::Kept), &view, &Memory::default()), Err(Violation::NotWanted));
}

#[test]
fn while_a_vm_does_not_show_nobody_knows_who_has_a_device() {
    for vm in [VM, OTHER_VM].map(id) {
        let mut view = view();
        set_state(&mut view, GPU, GpuState::Pooled);
        set_state(&mut view, AUDIO, GpuState::Pooled);
        view.vms.get_mut(&vm).unwrap().vm.state = VmState::Unknown;
        view.unseen.insert(vm.clone());
        for (intent, step) in [
            (Intent::Detached, Step::Mount { address: at(GPU) }),
            (Intent::Attached, Step::Disable { address: at(GPU) }),
            (Intent::Attached, Step::Dismount { address: at(GPU) }),
        ] {
            let refused = check(&step, &desired(intent), &view, &Memory::default()).unwrap_err();
            assert_eq!(refused, Violation::UnseenVm(vm.clone()));
            assert!(refused.may_pass());
        }
        for intent in [Intent::Attached, Intent::Detached] {
            let next = plan(&desired(intent), &view, &Memory::default());
            let waits = matches!(next, Next::Wait(_));
            // Its own VM is there and off: settings are its own business.
            let own = matches!(next, Next::Do(Step::ConfigureVm { .. })) && vm == id(OTHER_VM);
            assert!(waits || own, "{next:?}");
        }
    }
}

#[test]
fn a_placement_without_gpus_may_touch_no_device() {
    for intent in [Intent::Attached, Intent::Detached] {
        let mut desired = desired(intent);
        desired.gpus.clear();
        for step in every_step().iter().filter(|step| step.device().is_some()) {
            assert!(check(step, &desired, &view(), &Memory::default()).is_err(), "{step}");
        }
    }
}

#[test]
fn settings_that_would_break_devices_are_refused() {
    let mut view = view();
    attach(&mut view, VM, GPU);
    let present = vm_of(&mut view).settings.clone();
    let configure = |settings| {
        let step = Step::ConfigureVm { vm: id(VM), settings };
        check(&step, &desired(Intent::Attached), &view, &Memory::default())
    };
    let good = wanted_settings(&present, &[]);
    assert_eq!(configure(good.clone()), Ok(()));
    assert!(matches!(
        configure(VmSettings { stop_action: StopAction::Save, ..good.clone() }),
        Err(Violation::Settings { .. })
    ));
    let less = VmSettings { mmio_high_bytes: present.mmio_high_bytes - 1, ..good };
    assert!(matches!(configure(less), Err(Violation::Settings { .. })));
    let restore = Step::RestoreVm { vm: id(VM), settings: present };
    let refused = check(&restore, &desired(Intent::Detached), &view, &Memory::default());
    assert!(matches!(refused, Err(Violation::Settings { .. })));
}
