//! Each decision of the planner by itself, then whole ways by steps carried out on a small model of a host.

use super::*;
use crate::guest::{GuestDevices, GuestView};
use crate::observed::VmView;
use berth_model::VmId;
use berth_model::desired::DesiredGpu;
use berth_model::gpu::{Finding, Fingerprint, GpuHealth, ObservedGpu, QuarantineReason, Survey, Verdict};
use berth_model::install::{Install, InstallEnd, InstallOutput};
use berth_model::node::BootId;
use berth_model::pci::PciId;
use berth_model::request::VerifyLevel;
use berth_model::vm::{ObservedVm, VmDevice};
use expect_test::{Expect, expect};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const VM: &str = "8fce3318-aa0f-4de3-8664-278533573cd2";
pub(crate) const OTHER_VM: &str = "11111111-aa0f-4de3-8664-278533573cd2";
pub(crate) const GPU: &str = "PCIROOT(20)#PCI(0300)#PCI(0000)";
pub(crate) const AUDIO: &str = "PCIROOT(20)#PCI(0300)#PCI(0001)";

pub(crate) fn at(text: &str) -> DeviceAddress {
    text.parse().unwrap()
}

pub(crate) fn id(text: &str) -> VmId {
    text.parse().unwrap()
}

/// A placement of one A2 at [`GPU`] in [`VM`].
pub(crate) fn desired(intent: Intent) -> DesiredPlacement {
    let card = crate::cards::by_model(&"A2".parse().unwrap()).unwrap();
    DesiredPlacement {
        uid: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
        name: "p1".parse().unwrap(),
        vm: id(VM),
        gpus: vec![DesiredGpu {
            address: at(GPU),
            fingerprint: Fingerprint { id: card.id, serial: None },
            mmio: card.mmio(),
        }],
        intent,
        allow_standalone: false,
        verify: VerifyLevel::None,
        return_to: ReturnTo::Host,
        install_driver: None,
        trace: None,
    }
}

pub(crate) fn fresh_settings() -> VmSettings {
    VmSettings {
        stop_action: StopAction::Save,
        guest_cache_types: false,
        mmio_low_bytes: 128 << 20,
        mmio_high_bytes: 512 << 20,
        memory: VmMemory::DYNAMIC,
        checkpoints: Checkpoints::PRODUCTION,
    }
}

pub(crate) fn vm_view(vm: &str, state: VmState) -> VmView {
    let vm = ObservedVm { id: id(vm), name: "vm".parse().unwrap(), state, clustered: false, devices: Vec::new() };
    VmView { vm, settings: fresh_settings(), saved_checkpoints: 0, role: None, guest: None }
}

/// The A2 with an audio function in the host's hands, the VM off.
pub(crate) fn view() -> HostView {
    let desired = desired(Intent::Attached);
    let survey = Survey {
        model: "A2".parse().unwrap(),
        fingerprint: desired.gpus[0].fingerprint.clone(),
        vram_bytes: None,
        mmio: desired.gpus[0].mmio,
        numa_node: None,
        companions: vec![at(AUDIO)],
        verdict: Verdict::Assignable,
    };
    let state = GpuState::Host { driver: HostDriver::Bound };
    let gpu = ObservedGpu { address: at(GPU), survey, state: state.clone(), health: GpuHealth::Ok, problem: None };
    HostView {
        boot: BootId::new("boot-1").unwrap(),
        gpus: BTreeMap::from([(at(GPU), gpu)]),
        companions: BTreeMap::from([(at(AUDIO), state)]),
        vms: BTreeMap::from([(id(VM), vm_view(VM, VmState::Off)), (id(OTHER_VM), vm_view(OTHER_VM, VmState::Off))]),
        unseen: BTreeSet::new(),
    }
}

pub(crate) fn vm_of(view: &mut HostView) -> &mut VmView {
    view.vms.get_mut(&id(VM)).unwrap()
}

pub(crate) fn set_state(view: &mut HostView, address: &str, state: GpuState) {
    match view.gpus.get_mut(&at(address)) {
        Some(gpu) => gpu.state = state,
        None => {
            view.companions.insert(at(address), state);
        }
    }
}

pub(crate) fn attach(view: &mut HostView, vm: &str, address: &str) {
    set_state(view, address, GpuState::Attached { vm: id(vm) });
    view.vms.get_mut(&id(vm)).unwrap().vm.devices.push(VmDevice::At(at(address)));
}

fn configured(view: &mut HostView) {
    let sizes = [desired(Intent::Attached).gpus[0].mmio];
    let vm = vm_of(view);
    vm.settings = wanted_settings(&vm.settings, &sizes);
}

/// Everything as after a successful attaching.
pub(crate) fn running() -> HostView {
    let mut view = view();
    configured(&mut view);
    attach(&mut view, VM, GPU);
    attach(&mut view, VM, AUDIO);
    vm_of(&mut view).vm.state = VmState::Running;
    view
}

fn show(next: &Next) -> String {
    match next {
        Next::Do(step) => format!("do {step}"),
        Next::Done => "done".to_owned(),
        Next::Wait(why) => format!("wait: {why}"),
        Next::Impossible(step, error) => format!("impossible at {step}: {error}"),
    }
}

#[track_caller]
fn check(desired: &DesiredPlacement, view: &HostView, memory: &Memory, want: Expect) {
    want.assert_eq(&show(&plan(desired, view, memory)));
}

fn check_from(
    start: HostView,
    intent: Intent,
    change: impl FnOnce(&mut HostView, &mut DesiredPlacement, &mut Memory),
    want: Expect,
) {
    let (mut view, mut desired, mut memory) = (start, desired(intent), Memory::default());
    change(&mut view, &mut desired, &mut memory);
    check(&desired, &view, &memory, want);
}

#[test]
fn before_anything_is_touched_vm_and_card_are_checked() {
    let attached = |change: fn(&mut HostView, &mut DesiredPlacement), want| {
        check_from(view(), Intent::Attached, |v, d, _| change(v, d), want);
    };
    attached(
        |v, _| drop(v.vms.remove(&id(VM))),
        expect!["impossible at Check: VM 8fce3318-aa0f-4de3-8664-278533573cd2 is not on this host (NotThere)"],
    );
    attached(|_, d| d.gpus.clear(), expect!["impossible at Check: the placement names no GPU (Forbidden)"]);
    attached(
        |v, _| vm_of(v).vm.clustered = true,
        expect![
            "impossible at Check: VM 8fce3318-aa0f-4de3-8664-278533573cd2 is a clustered role, which fails over, and the request does not allow that to be changed (Forbidden)"
        ],
    );
    attached(
        |v, d| {
            vm_of(v).vm.clustered = true;
            d.allow_standalone = true;
        },
        expect!["do MakeStandalone of VM 8fce3318-aa0f-4de3-8664-278533573cd2"],
    );
    attached(
        |v, _| set_state(v, GPU, GpuState::Missing),
        expect!["impossible at Check: device PCIROOT(20)#PCI(0300)#PCI(0000) is not in its slot (NotThere)"],
    );
    attached(
        |v, _| set_state(v, GPU, GpuState::Unknown),
        expect!["wait: device PCIROOT(20)#PCI(0300)#PCI(0000) did not answer; nothing is known of it"],
    );
    attached(
        |v, _| v.gpus.clear(),
        expect!["wait: device PCIROOT(20)#PCI(0300)#PCI(0000) did not answer; nothing is known of it"],
    );
    attached(
        |v, _| set_state(v, AUDIO, GpuState::Unknown),
        expect!["wait: device PCIROOT(20)#PCI(0300)#PCI(0001) did not answer; nothing is known of it"],
    );
    attached(
        |v, _| attach(v, OTHER_VM, AUDIO),
        expect![
            "impossible at Check: device PCIROOT(20)#PCI(0300)#PCI(0001) is in VM 11111111-aa0f-4de3-8664-278533573cd2 (Forbidden)"
        ],
    );
    attached(
        |_, d| d.gpus[0].fingerprint.id = "10de:25b6:10de:14a9".parse().unwrap(),
        expect![
            "impossible at Check: another card is at PCIROOT(20)#PCI(0300)#PCI(0000): expected 10de:25b6:10de:14a9, found 10de:25b6:10de:157e (Forbidden)"
        ],
    );
    attached(
        |v, _| v.gpus.get_mut(&at(GPU)).unwrap().health = GpuHealth::NeedsHostReboot,
        expect![
            "impossible at Check: device PCIROOT(20)#PCI(0300)#PCI(0000) must not be used: its host must be restarted first (Forbidden)"
        ],
    );
    attached(
        |v, _| {
            v.gpus.get_mut(&at(GPU)).unwrap().health =
                GpuHealth::Quarantined(QuarantineReason::Operator { reason: "burnt".to_owned() })
        },
        expect![
            "impossible at Check: device PCIROOT(20)#PCI(0300)#PCI(0000) must not be used: quarantined by an operator: burnt (Forbidden)"
        ],
    );
    attached(
        |v, _| {
            v.gpus.get_mut(&at(GPU)).unwrap().survey.verdict =
                Verdict::Blocked(vec![Finding::NoAcs, Finding::ReservedMemory])
        },
        expect![
            "impossible at Check: device PCIROOT(20)#PCI(0300)#PCI(0000) must not be used: firmware requires the device to keep reserved memory (Forbidden)"
        ],
    );
    // What a policy accepts does not come here, so this it did not.
    attached(
        |v, _| v.gpus.get_mut(&at(GPU)).unwrap().survey.verdict = Verdict::Blocked(vec![Finding::BootDisplay]),
        expect![
            "impossible at Check: device PCIROOT(20)#PCI(0300)#PCI(0000) must not be used: the host's boot display is on it (Forbidden)"
        ],
    );
    attached(
        |v, _| {
            vm_of(v).vm.devices.push(VmDevice::At(at("PCIROOT(20)#PCI(0400)#PCI(0000)")));
            vm_of(v).vm.state = VmState::Running;
        },
        expect![
            "impossible at Check: VM 8fce3318-aa0f-4de3-8664-278533573cd2 has device PCIROOT(20)#PCI(0400)#PCI(0000), which Berth did not give it; take it out first (Forbidden)"
        ],
    );
    attached(
        |v, _| vm_of(v).vm.state = VmState::Saved,
        expect![
            "impossible at Check: VM 8fce3318-aa0f-4de3-8664-278533573cd2 has a saved state that would be lost; start it or delete the saved state first (Forbidden)"
        ],
    );
    // Not even its role is removed, nor its guest shut down, for what is refused then.
    attached(
        |v, d| {
            vm_of(v).vm.state = VmState::Running;
            vm_of(v).vm.clustered = true;
            d.allow_standalone = true;
            vm_of(v).saved_checkpoints = 2;
        },
        expect![
            "impossible at Check: VM 8fce3318-aa0f-4de3-8664-278533573cd2 has 2 checkpoints that hold a saved state, which no VM with a device can go back to; delete them first (Get-VMSnapshot, Remove-VMSnapshot), or place another VM (Forbidden)"
        ],
    );
    attached(
        |v, _| vm_of(v).vm.state = VmState::Unknown,
        expect!["wait: VM 8fce3318-aa0f-4de3-8664-278533573cd2 is Unknown"],
    );
    attached(
        |v, _| vm_of(v).vm.devices.push(VmDevice::Pool { pool: "GPUs".to_owned(), address: None }),
        expect![
            r#"impossible at ConfigureVm: VM 8fce3318-aa0f-4de3-8664-278533573cd2 has a device from the cluster's own pool "GPUs"; one of the two must give it GPUs, not both (Forbidden)"#
        ],
    );
    attached(
        |v, _| vm_of(v).vm.devices.push(VmDevice::Stale),
        expect![
            "impossible at ConfigureVm: VM 8fce3318-aa0f-4de3-8664-278533573cd2 has a record of a device that is gone and was not Berth's; remove the record first (Forbidden)"
        ],
    );
}

#[test]
fn attaching_goes_step_by_step_from_what_is_seen() {
    let attached = |change: fn(&mut HostView), want| check_from(view(), Intent::Attached, |v, _, _| change(v), want);
    let disabled = || GpuState::Host { driver: HostDriver::Disabled };
    attached(|v| vm_of(v).vm.state = VmState::Running, expect!["do StopVm of VM 8fce3318-aa0f-4de3-8664-278533573cd2"]);
    attached(
        |v| vm_of(v).vm.state = VmState::Changing,
        expect!["wait: VM 8fce3318-aa0f-4de3-8664-278533573cd2 is Changing"],
    );
    attached(|_| {}, expect!["do ConfigureVm of VM 8fce3318-aa0f-4de3-8664-278533573cd2"]);
    attached(configured, expect!["do Disable PCIROOT(20)#PCI(0300)#PCI(0000)"]);
    attached(
        |v| {
            configured(v);
            set_state(v, GPU, GpuState::Host { driver: HostDriver::Disabled });
        },
        expect!["do Disable PCIROOT(20)#PCI(0300)#PCI(0001)"],
    );
    let with = |gpu: GpuState, audio: GpuState, want: Expect| {
        let change = |v: &mut HostView, _: &mut DesiredPlacement, _: &mut Memory| {
            configured(v);
            set_state(v, GPU, gpu);
            set_state(v, AUDIO, audio);
        };
        check_from(view(), Intent::Attached, change, want);
    };
    with(disabled(), disabled(), expect!["do Dismount PCIROOT(20)#PCI(0300)#PCI(0000)"]);
    with(GpuState::Pooled, disabled(), expect!["do Dismount PCIROOT(20)#PCI(0300)#PCI(0001)"]);
    with(
        GpuState::Pooled,
        GpuState::Pooled,
        expect!["do Attach PCIROOT(20)#PCI(0300)#PCI(0000) of VM 8fce3318-aa0f-4de3-8664-278533573cd2"],
    );
    attached(
        |v| {
            configured(v);
            attach(v, VM, GPU);
            set_state(v, AUDIO, GpuState::Pooled);
        },
        expect!["do Attach PCIROOT(20)#PCI(0300)#PCI(0001) of VM 8fce3318-aa0f-4de3-8664-278533573cd2"],
    );
    let run = |state: VmState, want: Expect| {
        check_from(running(), Intent::Attached, |v, _, _| vm_of(v).vm.state = state, want);
    };
    run(VmState::Off, expect!["do StartVm of VM 8fce3318-aa0f-4de3-8664-278533573cd2"]);
    run(VmState::Changing, expect!["wait: VM 8fce3318-aa0f-4de3-8664-278533573cd2 is Changing"]);
    run(VmState::Running, expect!["done"]);
    run(
        VmState::Saved,
        expect![
            "impossible at StartVm: VM 8fce3318-aa0f-4de3-8664-278533573cd2 has a saved state that would be lost; start it or delete the saved state first (Forbidden)"
        ],
    );
}

/// Whatever the planner thought: what guards the host looks for itself.
#[test]
fn settings_and_devices_are_given_to_no_vm_with_a_saved_state() {
    for (state, saved_checkpoints) in [(VmState::Off, 1), (VmState::Saved, 0)] {
        let mut view = view();
        set_state(&mut view, GPU, GpuState::Pooled);
        set_state(&mut view, AUDIO, GpuState::Pooled);
        vm_of(&mut view).vm.state = state;
        vm_of(&mut view).saved_checkpoints = saved_checkpoints;
        let settings = wanted_settings(&fresh_settings(), &[]);
        for step in [Step::ConfigureVm { vm: id(VM), settings }, Step::Attach { vm: id(VM), address: at(GPU) }] {
            let refused = safety::check(&step, &desired(Intent::Attached), &view, &Memory::default());
            assert!(refused.is_err(), "{step} at {state:?} with {saved_checkpoints}");
        }
        // Giving back is not held up by a checkpoint that somebody made meanwhile.
        vm_of(&mut view).vm.state = VmState::Off;
        let restore = Step::RestoreVm { vm: id(VM), settings: fresh_settings() };
        assert_eq!(safety::check(&restore, &desired(Intent::Detached), &view, &Memory::default()), Ok(()));
    }
}

#[test]
fn the_guest_is_asked_as_far_as_wanted() {
    let guest = |visible, driver_bound| {
        let id = desired(Intent::Attached).gpus[0].fingerprint.id;
        let devices = BTreeMap::from([(PciId { subsystem: None, ..id }, GuestDevices { visible, driver_bound })]);
        Some(GuestView { devices, complaints: Vec::new() })
    };
    let ask = |verify, guest, want: Expect| {
        let change = |v: &mut HostView, d: &mut DesiredPlacement, _: &mut Memory| {
            d.verify = verify;
            vm_of(v).guest = guest;
        };
        check_from(running(), Intent::Attached, change, want);
    };
    let verify = || expect!["do Verify of VM 8fce3318-aa0f-4de3-8664-278533573cd2"];
    ask(VerifyLevel::None, None, expect!["done"]);
    ask(VerifyLevel::Visible, None, verify());
    ask(VerifyLevel::Visible, guest(0, 0), verify());
    ask(VerifyLevel::Visible, guest(1, 0), expect!["done"]);
    ask(VerifyLevel::DriverBound, guest(1, 0), verify());
    ask(VerifyLevel::DriverBound, guest(1, 1), expect!["done"]);
}

#[test]
fn kept_is_never_touched() {
    for start in [view(), running()] {
        check_from(start, Intent::Kept, |v, _, _| vm_of(v).vm.state = VmState::Off, expect!["done"]);
    }
}

#[test]
fn giving_back_goes_step_by_step_from_what_is_seen() {
    let detached = |change: fn(&mut HostView, &mut DesiredPlacement), want| {
        check_from(running(), Intent::Detached, |v, d, _| change(v, d), want);
    };
    let off = |v: &mut HostView| vm_of(v).vm.state = VmState::Off;
    fn empty(v: &mut HostView) {
        vm_of(v).vm.state = VmState::Off;
        vm_of(v).vm.devices.clear();
        set_state(v, GPU, GpuState::Pooled);
        set_state(v, AUDIO, GpuState::Pooled);
    }
    detached(|_, _| {}, expect!["do StopVm of VM 8fce3318-aa0f-4de3-8664-278533573cd2"]);
    detached(
        |v, _| vm_of(v).vm.state = VmState::Saved,
        expect![
            "impossible at StopVm: VM 8fce3318-aa0f-4de3-8664-278533573cd2 has a saved state that would be lost; start it or delete the saved state first (Forbidden)"
        ],
    );
    detached(
        |v, _| vm_of(v).vm.state = VmState::Changing,
        expect!["wait: VM 8fce3318-aa0f-4de3-8664-278533573cd2 is Changing"],
    );
    check_from(
        running(),
        Intent::Detached,
        |v, _, _| off(v),
        expect!["do Detach PCIROOT(20)#PCI(0300)#PCI(0000) of VM 8fce3318-aa0f-4de3-8664-278533573cd2"],
    );
    detached(|v, _| empty(v), expect!["do Mount PCIROOT(20)#PCI(0300)#PCI(0000)"]);
    detached(
        |v, _| {
            empty(v);
            set_state(v, GPU, GpuState::Host { driver: HostDriver::Disabled });
        },
        expect!["do Enable PCIROOT(20)#PCI(0300)#PCI(0000)"],
    );
    detached(
        |v, _| {
            empty(v);
            set_state(v, GPU, GpuState::Host { driver: HostDriver::None });
        },
        expect!["do Mount PCIROOT(20)#PCI(0300)#PCI(0001)"],
    );
    detached(
        |v, d| {
            empty(v);
            d.return_to = ReturnTo::Pool;
        },
        expect!["done"],
    );
    // The VM is gone: its cards go back all the same.
    detached(
        |v, _| {
            empty(v);
            v.vms.remove(&id(VM));
        },
        expect!["do Mount PCIROOT(20)#PCI(0300)#PCI(0000)"],
    );
}

#[test]
fn giving_back_always_comes_to_an_end() {
    let detached = |change: fn(&mut HostView, &mut DesiredPlacement, &mut Memory), want| {
        check_from(running(), Intent::Detached, change, want);
    };
    fn pulled(v: &mut HostView) {
        set_state(v, GPU, GpuState::Missing);
        v.companions.clear();
        vm_of(v).vm.devices = vec![VmDevice::Stale, VmDevice::Stale];
        vm_of(v).vm.state = VmState::Off;
    }
    fn remembered(v: &HostView, m: &mut Memory) {
        m.known.insert(at(GPU), v.gpus[&at(GPU)].survey.clone());
    }
    // The card is gone: its records go, no others.
    detached(
        |v, _, m| {
            remembered(v, m);
            pulled(v);
        },
        expect!["do Detach stale records of VM 8fce3318-aa0f-4de3-8664-278533573cd2"],
    );
    detached(
        |v, _, m| {
            remembered(v, m);
            pulled(v);
            vm_of(v).vm.devices.push(VmDevice::Stale);
        },
        expect!["done"],
    );
    detached(
        |v, _, _| {
            pulled(v);
            vm_of(v).vm.devices.clear();
        },
        expect!["done"],
    );
    // Another card is in the slot: not ours to touch.
    detached(
        |v, d, _| {
            vm_of(v).vm.state = VmState::Off;
            d.gpus[0].fingerprint.id = "10de:25b6:10de:14a9".parse().unwrap();
        },
        expect!["done"],
    );
    // Not surely gone: wait.
    detached(
        |v, _, _| {
            pulled(v);
            vm_of(v).vm.devices.clear();
            set_state(v, GPU, GpuState::Unknown);
        },
        expect!["wait: device PCIROOT(20)#PCI(0300)#PCI(0000) did not answer; nothing is known of it"],
    );
    // Somebody gave it to another VM as well: out of ours, and then it is theirs.
    detached(
        |v, _, _| {
            vm_of(v).vm.state = VmState::Off;
            attach(v, OTHER_VM, GPU);
        },
        expect!["do Detach PCIROOT(20)#PCI(0300)#PCI(0000) of VM 8fce3318-aa0f-4de3-8664-278533573cd2"],
    );
    detached(
        |v, _, _| {
            vm_of(v).vm.devices.clear();
            attach(v, OTHER_VM, GPU);
            set_state(v, AUDIO, GpuState::Pooled);
        },
        expect!["done"],
    );
    // A device that is not ours keeps the VM from being stopped.
    detached(
        |v, _, _| vm_of(v).vm.devices.push(VmDevice::At(at("PCIROOT(20)#PCI(0400)#PCI(0000)"))),
        expect![
            "impossible at StopVm: VM 8fce3318-aa0f-4de3-8664-278533573cd2 has device PCIROOT(20)#PCI(0400)#PCI(0000), which Berth did not give it; take it out first (Forbidden)"
        ],
    );
}

#[test]
fn settings_are_restored_once_the_last_device_is_out() {
    let original = |m: &mut Memory| m.original = BTreeMap::from([(id(VM), fresh_settings())]);
    fn given_back(v: &mut HostView) {
        vm_of(v).vm.devices.clear();
        for address in [GPU, AUDIO] {
            set_state(v, address, GpuState::Host { driver: HostDriver::Bound });
        }
    }
    let check_state = |state: VmState, want: Expect| {
        let change = |v: &mut HostView, _: &mut DesiredPlacement, m: &mut Memory| {
            given_back(v);
            vm_of(v).vm.state = state;
            original(m);
        };
        check_from(running(), Intent::Detached, change, want);
    };
    check_state(VmState::Off, expect!["do RestoreVm of VM 8fce3318-aa0f-4de3-8664-278533573cd2"]);
    // Somebody started it: it is not stopped for its settings.
    check_state(VmState::Running, expect!["done"]);
    check_state(VmState::Changing, expect!["wait: VM 8fce3318-aa0f-4de3-8664-278533573cd2 is Changing"]);
    check_from(
        running(),
        Intent::Detached,
        |v, _, _| {
            given_back(v);
            vm_of(v).vm.state = VmState::Off;
        },
        expect!["done"],
    );
    // A VM that never got a device is left alone, running or not.
    check_from(view(), Intent::Detached, |v, _, _| vm_of(v).vm.state = VmState::Running, expect!["done"]);
}

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

#[test]
fn a_driver_is_installed_once_and_only_where_the_device_shows_and_no_driver_runs_it() {
    let guest = |visible, driver_bound| {
        let seen = GuestDevices { visible, driver_bound };
        let ids = BTreeMap::from([(desired(Intent::Attached).gpus[0].fingerprint.id, seen)]);
        Some(GuestView { devices: ids, complaints: Vec::new() })
    };
    let with = |guest: Option<GuestView>, end: Option<InstallEnd>, want: Expect| {
        let change = |v: &mut HostView, d: &mut DesiredPlacement, m: &mut Memory| {
            (d.verify, d.install_driver) = (VerifyLevel::DriverBound, "nvidia".parse().ok());
            vm_of(v).guest = guest;
            let output = InstallOutput::of(b"unpacking\nno headers\n");
            let run = end.map(|end| Install { command: "nvidia".parse().unwrap(), end, output });
            m.installs.extend(run.map(|run| (d.uid.clone(), run)));
        };
        check_from(running(), Intent::Attached, change, want);
    };
    let verify = || expect!["do Verify of VM 8fce3318-aa0f-4de3-8664-278533573cd2"];
    with(None, None, verify());
    with(guest(0, 0), None, verify());
    with(guest(1, 1), None, expect!["done"]);
    with(guest(1, 0), None, expect!["do InstallDriver of VM 8fce3318-aa0f-4de3-8664-278533573cd2"]);
    // Once: whether it is known how it ended, or not.
    with(guest(1, 0), Some(InstallEnd::Exited(0)), verify());
    with(guest(1, 0), Some(InstallEnd::Unknown), verify());
    // Looked at first, whatever it said.
    for failed in [InstallEnd::Exited(1), InstallEnd::Late(600)] {
        with(None, Some(failed), verify());
        with(guest(1, 1), Some(failed), expect!["done"]);
    }
    with(
        guest(1, 0),
        Some(InstallEnd::Exited(1)),
        expect![
            "impossible at InstallDriver: the driver-install command nvidia ended with exit code 1, saying no headers; the guest shows its devices 10de:25b6:10de:157e, but a driver runs only 0 of 1: install the vendor's driver in the guest (Failed)"
        ],
    );
}
