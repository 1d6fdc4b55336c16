//! Each decision of the planner by itself; below, those on the way back, and whole ways.

mod giving_back;
mod ways;

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
