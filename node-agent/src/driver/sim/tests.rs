//! The habits of the simulated host, each as the real one has it.

use super::*;
use crate::driver::HostDriver as _;
use berth_agent_core::plan::wanted_settings;
use berth_model::VmId;
use berth_model::gpu::{GpuState, HostDriver, Verdict};
use berth_model::node::Platform;
use berth_model::pci::DeviceAddress;
use berth_model::vm::{VmDevice, VmState};

const GPU: &str = "PCIROOT(20)#PCI(0300)#PCI(0000)";
const AUDIO: &str = "PCIROOT(20)#PCI(0300)#PCI(0001)";

fn at(text: &str) -> DeviceAddress {
    text.parse().unwrap()
}

fn vm(n: u8) -> VmId {
    format!("00000000-0000-4000-9000-0000000000{n:02x}").parse().unwrap()
}

fn spec() -> HostSpec {
    let gpu = GpuSpec::of(&"A2".parse().unwrap(), at(GPU)).with_companion(at(AUDIO));
    HostSpec {
        node: "hv-01".parse().unwrap(),
        facts: HostFacts {
            platform: berth_model::node::Platform::Simulated,
            system: "simulated".to_owned(),
            cluster: None,
            cpu_milli: 64_000,
            memory_bytes: 1 << 39,
            mmio_high_cap_bytes: None,
            notes: Vec::new(),
        },
        gpus: vec![GpuSpec { driver: HostDriver::Bound, ..gpu }],
        vms: vec![VmSpec::new(vm(1), "one".parse().unwrap()), VmSpec::new(vm(2), "two".parse().unwrap())],
    }
}

fn does(host: &mut Host, step: &Step) {
    assert_eq!(host.act(step), Outcome::Ended(Ok(())), "{step}");
}

#[track_caller]
fn fails(host: &mut Host, step: &Step, why: &str) {
    match host.act(step) {
        Outcome::Ended(Err(error)) => assert!(error.to_string().contains(why), "{step}: {error}"),
        other @ (Outcome::Ended(Ok(())) | Outcome::Hangs) => panic!("{step}: {other:?}"),
    }
}

fn pool(host: &mut Host) {
    for address in [GPU, AUDIO] {
        does(host, &Step::Disable { address: at(address) });
        does(host, &Step::Dismount { address: at(address) });
    }
}

fn configure(host: &mut Host, id: &VmId) {
    let settings = wanted_settings(&host.vm(id).unwrap().settings, &[spec().gpus[0].survey.mmio]);
    does(host, &Step::ConfigureVm { vm: id.clone(), settings });
}

fn give(host: &mut Host, id: &VmId) {
    configure(host, id);
    for address in [GPU, AUDIO] {
        does(host, &Step::Attach { vm: id.clone(), address: at(address) });
    }
}

fn state(host: &Host) -> GpuState {
    host.look().state(&at(GPU))
}

#[test]
fn a_driven_device_must_be_disabled_before_it_is_dismounted() {
    let mut host = Host::new(spec());
    fails(&mut host, &Step::Dismount { address: at(GPU) }, "disable it first");
    pool(&mut host);
    assert_eq!(state(&host), GpuState::Pooled);
    fails(&mut host, &Step::Dismount { address: at(GPU) }, "No matching device");
    fails(&mut host, &Step::Disable { address: at(GPU) }, "No matching device");
}

#[test]
fn a_disabled_or_dismounted_device_cannot_be_measured() {
    let mut host = Host::new(spec());
    let verdict = |host: &Host| host.look().gpus[&at(GPU)].survey.verdict.clone();
    assert_eq!(verdict(&host), Verdict::Assignable);
    does(&mut host, &Step::Disable { address: at(GPU) });
    assert_eq!(verdict(&host), Verdict::NotMeasured);
}

#[test]
fn what_matches_nothing_succeeds_silently() {
    let mut host = Host::new(spec());
    let before = host.look();
    does(&mut host, &Step::Mount { address: at(GPU) });
    does(&mut host, &Step::Detach { vm: vm(1), address: at(GPU) });
    does(&mut host, &Step::DetachStale { vm: vm(1) });
    assert_eq!(host.look(), before);
}

#[test]
fn mounted_again_a_device_is_still_disabled() {
    let mut host = Host::new(spec());
    pool(&mut host);
    does(&mut host, &Step::Mount { address: at(GPU) });
    assert_eq!(state(&host), GpuState::Host { driver: HostDriver::Disabled });
    does(&mut host, &Step::Enable { address: at(GPU) });
    assert_eq!(state(&host), GpuState::Host { driver: HostDriver::Bound });
}

#[test]
fn a_device_in_two_vms_is_accepted_and_fails_at_the_second_start() {
    let mut host = Host::new(spec());
    fails(&mut host, &Step::Attach { vm: vm(1), address: at(GPU) }, "was not found");
    pool(&mut host);
    give(&mut host, &vm(1));
    give(&mut host, &vm(2));
    assert_eq!(host.holders(&at(GPU)).count(), 2);
    does(&mut host, &Step::StartVm { vm: vm(1) });
    fails(&mut host, &Step::StartVm { vm: vm(2) }, "in use by another VM");
    fails(&mut host, &Step::Mount { address: at(GPU) }, "in use");
}

#[test]
fn a_running_vm_keeps_its_settings_and_devices() {
    let mut host = Host::new(spec());
    pool(&mut host);
    give(&mut host, &vm(1));
    does(&mut host, &Step::StartVm { vm: vm(1) });
    fails(&mut host, &Step::RestoreVm { vm: vm(1), settings: default_settings() }, "current state");
    fails(&mut host, &Step::Detach { vm: vm(1), address: at(GPU) }, "current state");
}

#[test]
fn a_vm_does_not_start_without_what_its_device_needs() {
    type Spoil = fn(&mut berth_agent_core::observed::VmSettings);
    let rows: [(&str, Spoil); 4] = [
        ("Insufficient system resources", |s| s.mmio_high_bytes -= 1),
        ("Insufficient system resources", |s| s.mmio_low_bytes -= 1),
        ("dynamic memory", |s| s.memory = berth_agent_core::observed::VmMemory::DYNAMIC),
        ("stop action", |s| s.stop_action = berth_agent_core::observed::StopAction::Save),
    ];
    for (why, spoil) in rows {
        let mut host = Host::new(spec());
        pool(&mut host);
        give(&mut host, &vm(1));
        let mut settings = host.vm(&vm(1)).unwrap().settings;
        spoil(&mut settings);
        does(&mut host, &Step::ConfigureVm { vm: vm(1), settings });
        fails(&mut host, &Step::StartVm { vm: vm(1) }, why);
        configure(&mut host, &vm(1));
        does(&mut host, &Step::StartVm { vm: vm(1) });
    }
}

#[test]
fn a_clustered_vm_with_a_device_does_not_start() {
    let mut host = Host::new(spec());
    pool(&mut host);
    give(&mut host, &vm(1));
    host.set_clustered(&vm(1), true).unwrap();
    fails(&mut host, &Step::StartVm { vm: vm(1) }, "high availability");
    does(&mut host, &Step::MakeStandalone { vm: vm(1), role: None });
    does(&mut host, &Step::StartVm { vm: vm(1) });
}

#[test]
fn a_deleted_vm_leaves_its_device_dismounted() {
    let mut host = Host::new(spec());
    pool(&mut host);
    give(&mut host, &vm(1));
    host.delete_vm(&vm(1)).unwrap();
    assert_eq!(state(&host), GpuState::Pooled);
    fails(&mut host, &Step::StartVm { vm: vm(1) }, "unable to find");
}

#[test]
fn after_a_reboot_devices_are_still_dismounted_and_only_autostarting_vms_run() {
    let mut host = Host::new(spec());
    host.create_vm(VmSpec { autostart: true, ..VmSpec::new(vm(3), "three".parse().unwrap()) }).unwrap();
    pool(&mut host);
    give(&mut host, &vm(1));
    does(&mut host, &Step::StartVm { vm: vm(1) });
    let boot = host.boot();
    host.reboot();
    assert_ne!(host.boot(), boot);
    assert_eq!(state(&host), GpuState::Attached { vm: vm(1) });
    assert_eq!(host.vm(&vm(1)).unwrap().state, VmState::Off);
    assert_eq!(host.vm(&vm(3)).unwrap().state, VmState::Running);
}

#[test]
fn a_pulled_card_leaves_records_without_an_address_until_it_is_back() {
    let mut host = Host::new(spec());
    pool(&mut host);
    give(&mut host, &vm(1));
    does(&mut host, &Step::StartVm { vm: vm(1) });
    let card = host.pull_card(&at(GPU)).unwrap();
    let look = host.look();
    assert_eq!(look.vms[&vm(1)].vm.devices, [VmDevice::Stale, VmDevice::Stale]);
    assert_eq!(look.vms[&vm(1)].vm.state, VmState::Off, "it crashed");
    fails(&mut host, &Step::StartVm { vm: vm(1) }, "Element not found");
    let other = Card::new(GpuSpec::of(&"A16".parse().unwrap(), at(GPU)));
    host.swap_card(&at(GPU), other);
    assert_eq!(host.look().vms[&vm(1)].vm.devices, [VmDevice::Stale, VmDevice::Stale], "another card is not that one");
    assert!(matches!(state(&host), GpuState::Host { .. }));
    host.swap_card(&at(GPU), card);
    assert_eq!(state(&host), GpuState::Attached { vm: vm(1) });
    does(&mut host, &Step::StartVm { vm: vm(1) });
}

#[test]
fn stale_records_go_without_touching_others() {
    let mut host = Host::new(spec());
    pool(&mut host);
    give(&mut host, &vm(1));
    does(&mut host, &Step::DetachStale { vm: vm(1) });
    assert_eq!(host.vm(&vm(1)).unwrap().devices.len(), 2);
    host.pull_card(&at(GPU));
    does(&mut host, &Step::DetachStale { vm: vm(1) });
    assert_eq!(host.vm(&vm(1)).unwrap().devices.len(), 0);
}

#[test]
fn the_guest_is_seen_once_asked() {
    let mut host = Host::new(spec());
    pool(&mut host);
    give(&mut host, &vm(1));
    fails(&mut host, &Step::Verify { vm: vm(1) }, "not running");
    does(&mut host, &Step::StartVm { vm: vm(1) });
    assert_eq!(host.look().vms[&vm(1)].guest, None);
    does(&mut host, &Step::Verify { vm: vm(1) });
    let guest = host.look().vms[&vm(1)].guest.clone().unwrap();
    assert_eq!(guest.devices.values().map(|d| (d.visible, d.driver_bound)).collect::<Vec<_>>(), [(1, 1)]);
}

#[test]
fn scripted_faults_come_once_each_in_order() {
    let mut host = Host::new(spec());
    let step = Step::Disable { address: at(GPU) };
    host.faults().script(step.kind(), StepFault::NoEffect);
    host.faults().script(step.kind(), StepFault::Hangs { effect: false });
    host.faults().script(step.kind(), StepFault::Fails("no".to_owned()));
    host.faults().script(step.kind(), StepFault::HalfDone);
    let disabled = |host: &Host| state(host) == GpuState::Host { driver: HostDriver::Disabled };
    does(&mut host, &step);
    assert!(!disabled(&host));
    assert_eq!(host.act(&step), Outcome::Hangs);
    assert!(!disabled(&host));
    fails(&mut host, &step, "no");
    assert!(!disabled(&host));
    fails(&mut host, &step, "in the middle");
    assert!(disabled(&host));
    host.faults().script_look(LookFault::NoGpus);
    host.faults().script_look(LookFault::Fails("no".to_owned()));
    assert!(matches!(host.observe(), Outcome::Ended(Ok(view)) if view.gpus.is_empty()));
    assert!(matches!(host.observe(), Outcome::Ended(Err(_))));
    assert_eq!(host.observe(), Outcome::Ended(Ok(host.look())));
}

#[test]
fn half_set_settings_stay_half_set() {
    let mut host = Host::new(spec());
    let before = host.vm(&vm(1)).unwrap().settings;
    let settings = wanted_settings(&before, &[spec().gpus[0].survey.mmio]);
    let step = Step::ConfigureVm { vm: vm(1), settings: settings.clone() };
    host.faults().script(step.kind(), StepFault::HalfDone);
    fails(&mut host, &step, "in the middle");
    let after = host.vm(&vm(1)).unwrap().settings;
    assert_eq!(after.stop_action, settings.stop_action);
    assert_eq!(after.mmio_high_bytes, before.mmio_high_bytes);
}

#[tokio::test]
async fn what_hangs_ends_by_the_deadline_and_delays_are_kept() {
    let host = Arc::new(Mutex::new(Host::new(spec())));
    let ms = Duration::from_millis;
    let mut delays = Delays { look: ms(5), deadline: ms(20), ..Delays::default() };
    delays.steps.insert(StepKind::Disable, ms(10));
    let driver = SimDriver::new(Arc::clone(&host), delays);
    assert_eq!(driver.facts().await.unwrap().platform, Platform::Simulated);
    let start = tokio::time::Instant::now();
    driver.observe().await.unwrap();
    assert!(start.elapsed() >= ms(5));
    let step = Step::Disable { address: at(GPU) };
    host.lock().unwrap().faults().script(step.kind(), StepFault::Hangs { effect: true });
    assert_eq!(driver.act(&step).await, Err(DriverError::TimedOut { limit_ms: 20 }));
    assert!(start.elapsed() >= ms(35));
    assert_eq!(state(&host.lock().unwrap()), GpuState::Host { driver: HostDriver::Disabled });
}

#[test]
fn a_device_on_its_way_shows_nowhere_and_arrives_after_some_looks_or_with_a_reboot() {
    for reboot in [false, true] {
        let mut host = Host::new(spec());
        does(&mut host, &Step::Disable { address: at(GPU) });
        host.faults().script(StepKind::Dismount, StepFault::Lingers { looks: 2 });
        let dismount = Step::Dismount { address: at(GPU) };
        assert_eq!(host.act(&dismount), Outcome::Hangs);
        assert!(host.look().gpus.is_empty() && host.look().companions.is_empty());
        assert!(matches!(host.act(&dismount), Outcome::Ended(Err(DriverError::NotThere(_)))));
        if reboot {
            host.reboot();
        } else {
            for _ in 0..2 {
                host.observe();
            }
        }
        assert_eq!(host.look().state(&at(GPU)), GpuState::Pooled);
    }
}

#[test]
fn a_saved_vm_is_not_turned_off_by_a_step() {
    let mut spec = spec();
    spec.vms[0].state = VmState::Saved;
    let mut host = Host::new(spec);
    fails(&mut host, &Step::StopVm { vm: vm(1) }, "saved state, which would be lost");
    assert_eq!(host.vm(&vm(1)).unwrap().state, VmState::Saved);
}
