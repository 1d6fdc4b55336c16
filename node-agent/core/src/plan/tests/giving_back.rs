//! Each decision on the way back.

use super::*;

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
