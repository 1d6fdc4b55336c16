//! A host in memory that does at once what it is told, unless a test tells it otherwise.

use crate::driver::{DriverError, HostDriver};
use async_trait::async_trait;
use berth_agent_core::observed::{Checkpoints, HostView, StopAction, VmMemory, VmSettings, VmView};
use berth_agent_core::step::Step;
use berth_model::desired::{DesiredGpu, DesiredPlacement, Intent};
use berth_model::gpu::{
    Fingerprint, GpuHealth, GpuState, HostDriver as Driver, MmioSize, ObservedGpu, Survey, Verdict,
};
use berth_model::node::{BootId, HostFacts, Platform};
use berth_model::pci::DeviceAddress;
use berth_model::request::{ReturnTo, VerifyLevel};
use berth_model::vm::{ObservedVm, VmDevice, VmState};
use berth_model::{ModelName, PlacementName, PlacementUid, VmId, VmName};
use std::collections::BTreeMap;
use std::sync::Mutex;
use tokio::sync::watch;

/// What the next calls do instead of working.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Looks fail with this text.
    pub(crate) look: Option<String>,
    /// Steps fail with this text.
    pub(crate) step: Option<String>,
    /// Steps never end.
    pub(crate) hang: bool,
}

/// A host with some cards, each meant for one VM.
pub(crate) struct FakeHost {
    view: Mutex<HostView>,
    faults: watch::Sender<Faults>,
    /// Steps under way, and the most there ever were.
    running: watch::Sender<(usize, usize)>,
    /// Steps wait until so many are under way.
    together: usize,
    /// Called when a step begins.
    pub(crate) on_act: Box<dyn Fn() + Send + Sync>,
    looks: watch::Sender<u64>,
}

fn address(card: u8) -> DeviceAddress {
    format!("PCIROOT(20)#PCI({card:02X}00)#PCI(0000)").parse().unwrap()
}

fn vm_id(card: u8) -> VmId {
    VmId::new(format!("00000000-0000-0000-0000-0000000000{card:02x}")).unwrap()
}

fn fingerprint() -> Fingerprint {
    Fingerprint { id: "10de:25b6:10de:157e".parse().unwrap(), serial: None }
}

fn mmio() -> MmioSize {
    MmioSize { low_bytes: 16 << 20, high_bytes: 17 << 30 }
}

impl FakeHost {
    /// A host with `cards` cards and as many VMs that are off.
    pub(crate) fn new(cards: u8) -> Self {
        let gpu = |card| ObservedGpu {
            address: address(card),
            survey: Survey {
                model: ModelName::new("A2").unwrap(),
                fingerprint: fingerprint(),
                vram_bytes: Some(16 << 30),
                mmio: mmio(),
                numa_node: None,
                companions: Vec::new(),
                verdict: Verdict::Assignable,
            },
            state: GpuState::Host { driver: Driver::Bound },
            health: GpuHealth::Ok,
            problem: None,
        };
        let vm = |card| VmView {
            vm: ObservedVm {
                id: vm_id(card),
                name: VmName::new(format!("vm{card}")).unwrap(),
                state: VmState::Off,
                clustered: false,
                devices: Vec::new(),
            },
            settings: VmSettings {
                stop_action: StopAction::Save,
                guest_cache_types: false,
                mmio_low_bytes: 128 << 20,
                mmio_high_bytes: 512 << 20,
                memory: VmMemory::DYNAMIC,
                checkpoints: Checkpoints::PRODUCTION,
            },
            saved_checkpoints: 0,
            role: None,
            guest: None,
        };
        let view = HostView {
            boot: BootId::new("boot-1").unwrap(),
            gpus: (0..cards).map(|card| (address(card), gpu(card))).collect(),
            companions: BTreeMap::new(),
            vms: (0..cards).map(|card| (vm_id(card), vm(card))).collect(),
            unseen: std::collections::BTreeSet::new(),
        };
        Self {
            view: Mutex::new(view),
            faults: watch::Sender::default(),
            running: watch::Sender::default(),
            together: 1,
            on_act: Box::new(|| {}),
            looks: watch::Sender::default(),
        }
    }

    /// Steps wait until `count` of them are under way at once.
    pub(crate) fn needing_together(self, count: usize) -> Self {
        Self { together: count, ..self }
    }

    /// What is wanted of one card: `intent` with its VM.
    pub(crate) fn placement(card: u8, intent: Intent) -> DesiredPlacement {
        DesiredPlacement {
            uid: PlacementUid::new(format!("10000000-0000-0000-0000-0000000000{card:02x}")).unwrap(),
            name: PlacementName::new(format!("p{card}")).unwrap(),
            vm: vm_id(card),
            gpus: vec![DesiredGpu { address: address(card), fingerprint: fingerprint(), mmio: mmio() }],
            intent,
            allow_standalone: false,
            verify: VerifyLevel::None,
            return_to: ReturnTo::Host,
            install_driver: None,
            trace: None,
        }
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.faults.send_replace(faults);
    }

    /// Another run of its system.
    pub(crate) fn reboot(&self, boot: &str) {
        self.view.lock().unwrap().boot = BootId::new(boot).unwrap();
    }

    /// Waits until a step is under way.
    pub(crate) async fn step_begun(&self) {
        self.running.subscribe().wait_for(|(now, _)| *now > 0).await.unwrap();
    }

    /// Most steps that were under way at once.
    pub(crate) fn most_at_once(&self) -> usize {
        self.running.borrow().1
    }

    /// Waits for looks at the host that begin from now on.
    pub(crate) async fn looks(&self, count: u64) {
        let mut looks = self.looks.subscribe();
        let until = *looks.borrow() + count;
        looks.wait_for(|seen| *seen >= until).await.unwrap();
    }

    /// Waits until a card is in its VM and the VM runs.
    pub(crate) async fn given(&self, card: u8) {
        let given = || {
            let view = self.view.lock().unwrap();
            let running = view.vms[&vm_id(card)].vm.state == VmState::Running;
            running && view.gpus[&address(card)].state == GpuState::Attached { vm: vm_id(card) }
        };
        let mut looks = self.looks.subscribe();
        looks.wait_for(|_| given()).await.unwrap();
    }

    /// Whether a card is still the host's.
    pub(crate) fn is_untouched(&self, card: u8) -> bool {
        self.view.lock().unwrap().gpus[&address(card)].state == GpuState::Host { driver: Driver::Bound }
    }

    fn apply(&self, step: &Step) {
        let mut view = self.view.lock().unwrap();
        let HostView { gpus, vms, .. } = &mut *view;
        let mut place = |address: &DeviceAddress, state| gpus.get_mut(address).unwrap().state = state;
        match step {
            Step::MakeStandalone { vm, .. } => vms.get_mut(vm).unwrap().vm.clustered = false,
            Step::StopVm { vm } => vms.get_mut(vm).unwrap().vm.state = VmState::Off,
            Step::StartVm { vm } => vms.get_mut(vm).unwrap().vm.state = VmState::Running,
            Step::ConfigureVm { vm, settings } | Step::RestoreVm { vm, settings } => {
                vms.get_mut(vm).unwrap().settings = settings.clone();
            }
            Step::Verify { .. } | Step::InstallDriver { .. } => {}
            Step::Disable { address } => place(address, GpuState::Host { driver: Driver::Disabled }),
            Step::Dismount { address } => place(address, GpuState::Pooled),
            Step::Mount { address } => place(address, GpuState::Host { driver: Driver::Disabled }),
            Step::Enable { address } => place(address, GpuState::Host { driver: Driver::Bound }),
            Step::Attach { vm, address } => {
                vms.get_mut(vm).unwrap().vm.devices.push(VmDevice::At(address.clone()));
                place(address, GpuState::Attached { vm: vm.clone() });
            }
            Step::Detach { vm, address } => {
                vms.get_mut(vm).unwrap().vm.devices.retain(|device| *device != VmDevice::At(address.clone()));
                place(address, GpuState::Pooled);
            }
            Step::DetachStale { vm } => vms.get_mut(vm).unwrap().vm.devices.retain(|d| *d != VmDevice::Stale),
        }
    }
}

/// Counts a step as under way for as long as it lives, however it ends.
struct UnderWay<'a>(&'a watch::Sender<(usize, usize)>);

impl<'a> UnderWay<'a> {
    fn begin(running: &'a watch::Sender<(usize, usize)>) -> Self {
        running.send_modify(|(now, most)| {
            *now += 1;
            *most = (*most).max(*now);
        });
        Self(running)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|(now, _)| *now -= 1);
    }
}

#[async_trait]
impl HostDriver for FakeHost {
    async fn facts(&self) -> Result<HostFacts, DriverError> {
        Ok(HostFacts {
            platform: Platform::Simulated,
            system: "a test".to_owned(),
            cluster: None,
            cpu_milli: 1000,
            memory_bytes: 1 << 30,
            mmio_high_cap_bytes: None,
            notes: Vec::new(),
        })
    }

    async fn observe(&self) -> Result<HostView, DriverError> {
        let fault = self.faults.borrow().look.clone();
        let view = self.view.lock().unwrap().clone();
        self.looks.send_modify(|looks| *looks += 1);
        fault.map_or(Ok(view), |why| Err(DriverError::Failed(why)))
    }

    async fn act(&self, step: &Step) -> Result<(), DriverError> {
        (self.on_act)();
        let _under_way = UnderWay::begin(&self.running);
        let together = self.together;
        self.running.subscribe().wait_for(|(_, most)| *most >= together).await.unwrap();
        self.faults.subscribe().wait_for(|faults| !faults.hang).await.unwrap();
        if let Some(why) = self.faults.borrow().step.clone() {
            return Err(DriverError::Failed(why));
        }
        self.apply(step);
        Ok(())
    }
}
