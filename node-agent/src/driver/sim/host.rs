//! A host that behaves like Hyper-V with device assignment. Synchronous and deterministic: it has no time of its own.
//!
//! Its habits are those of the real one: steps that match nothing succeed silently, one device can be put into two VMs
//! and only fails at start, a device survives its VM's deletion and the host's reboot dismounted, a VM whose card is gone
//! keeps a record without an address, and a card that is disabled or dismounted cannot be measured.

mod by_hand;
mod lingering;
mod saved;
mod steps;

use super::faults::{Faults, LookFault};
use super::spec::{GpuSpec, HostSpec, VmSpec};
use crate::driver::DriverError;
use berth_agent_core::guest::GuestView;
use berth_agent_core::observed::{HostView, VmMemory, VmSettings, VmView};
use berth_agent_core::step::Step;
use berth_model::gpu::{Fingerprint, GpuHealth, GpuState, HostDriver, ObservedGpu, Verdict};
use berth_model::history::ClusterRole;
use berth_model::id::VmName;
use berth_model::mmio::{required_high, required_low};
use berth_model::node::{BootId, HostFacts};
use berth_model::pci::DeviceAddress;
use berth_model::vm::{ObservedVm, VmDevice, VmState};
use berth_model::{NodeName, VmId};
use std::collections::{BTreeMap, BTreeSet};

pub use saved::{NotRestored, Saved};

/// A simulated host.
#[derive(Debug)]
pub struct Host {
    node: NodeName,
    facts: HostFacts,
    boots: u64,
    /// Slots by the address of their GPU.
    slots: BTreeMap<DeviceAddress, Option<Card>>,
    vms: BTreeMap<VmId, Vm>,
    /// Functions on their way between host and pool.
    /// The looks until they arrive.
    lingering: BTreeMap<DeviceAddress, u32>,
    faults: Faults,
}

/// A physical card, in a slot or taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    spec: GpuSpec,
    /// The GPU and its companions. What the host remembers of a card goes with it.
    functions: BTreeMap<DeviceAddress, Function>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Function {
    dismounted: bool,
    disabled: bool,
}

impl Card {
    /// A card as described.
    pub fn new(spec: GpuSpec) -> Self {
        let disabled = spec.pooled || spec.driver == HostDriver::Disabled;
        let function = Function { dismounted: spec.pooled, disabled };
        let addresses = std::iter::once(&spec.address).chain(&spec.survey.companions).cloned();
        Self { functions: addresses.map(|address| (address, function)).collect(), spec }
    }

    /// Which card it is.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.spec.survey.fingerprint
    }
}

#[derive(Clone, Debug)]
struct Vm {
    name: VmName,
    state: VmState,
    clustered: bool,
    settings: VmSettings,
    autostart: bool,
    guest_driver: bool,
    devices: Vec<Record>,
    /// Whether its guest was asked since it started.
    asked: bool,
}

/// What a VM's configuration says about a device. It names the card as well as its place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    address: DeviceAddress,
    card: Fingerprint,
}

/// How a call to a host ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// With an answer.
    Ended(Result<T, DriverError>),
    /// Not at all.
    Hangs,
}

/// Why something cannot be done by hand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotDone(pub String);

/// What a person sees of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSummary {
    /// What it does.
    pub state: VmState,
    /// Its settings.
    pub settings: VmSettings,
    /// Addresses its configuration names, devices that are gone included.
    pub devices: Vec<DeviceAddress>,
}

/// The role of a clustered VM is called as the VM is, as the wizard that makes one does.
fn role(vm: &VmName) -> Option<ClusterRole> {
    Some(ClusterRole { name: vm.as_str().parse().ok()?, owner: None, priority: None })
}

impl Host {
    /// A host as described. Devices that its VMs have are dismounted.
    pub fn new(spec: HostSpec) -> Self {
        let slots = spec.gpus.into_iter().map(|gpu| (gpu.address.clone(), Some(Card::new(gpu)))).collect();
        let mut host = Self {
            node: spec.node,
            facts: spec.facts,
            boots: 1,
            slots,
            vms: BTreeMap::new(),
            lingering: BTreeMap::new(),
            faults: Faults::default(),
        };
        for vm in spec.vms {
            host.insert_vm(vm);
        }
        host
    }

    fn insert_vm(&mut self, spec: VmSpec) {
        let VmSpec { id, name, state, clustered, settings, autostart, guest_driver, devices } = spec;
        let records = devices.into_iter().filter_map(|address| {
            let card = self.card_mut(&address)?;
            if let Some(function) = card.functions.get_mut(&address) {
                *function = Function { dismounted: true, disabled: true };
            }
            Some(Record { card: card.fingerprint().clone(), address })
        });
        let devices = records.collect();
        let vm = Vm { name, state, clustered, settings, autostart, guest_driver, devices, asked: false };
        self.vms.insert(id, vm);
    }

    /// Its name.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// What it is.
    pub fn facts(&self) -> &HostFacts {
        &self.facts
    }

    /// What goes wrong on it.
    pub fn faults(&mut self) -> &mut Faults {
        &mut self.faults
    }

    /// Its present boot.
    ///
    /// # Panics
    /// Never: the text is a legal boot id.
    pub fn boot(&self) -> BootId {
        #[expect(clippy::unwrap_used, reason = "the word boot and a number are printable and short")]
        BootId::new(format!("boot-{}", self.boots)).unwrap()
    }

    /// The card that has a function at an address.
    fn card(&self, address: &DeviceAddress) -> Option<&Card> {
        self.slots.values().flatten().find(|card| card.functions.contains_key(address))
    }

    fn card_mut(&mut self, address: &DeviceAddress) -> Option<&mut Card> {
        self.slots.values_mut().flatten().find(|card| card.functions.contains_key(address))
    }

    fn function(&self, address: &DeviceAddress) -> Option<Function> {
        self.card(address).and_then(|card| card.functions.get(address)).copied()
    }

    /// Whether a record names a card that is there.
    fn is_live(&self, record: &Record) -> bool {
        self.card(&record.address).is_some_and(|card| *card.fingerprint() == record.card)
    }

    /// VMs that list the device now at an address.
    pub fn holders<'a>(&'a self, address: &'a DeviceAddress) -> impl Iterator<Item = &'a VmId> {
        let lists = |vm: &Vm| vm.devices.iter().any(|record| record.address == *address && self.is_live(record));
        self.vms.iter().filter(move |(_, vm)| lists(vm)).map(|(id, _)| id)
    }

    /// A VM, as a person sees it.
    pub fn vm(&self, id: &VmId) -> Option<VmSummary> {
        self.vms.get(id).map(|vm| VmSummary {
            state: vm.state,
            settings: vm.settings.clone(),
            devices: vm.devices.iter().map(|record| record.address.clone()).collect(),
        })
    }

    /// Its VMs.
    pub fn vm_ids(&self) -> impl Iterator<Item = &VmId> {
        self.vms.keys()
    }

    /// One look, with whatever goes wrong with it.
    pub fn observe(&mut self) -> Outcome<HostView> {
        let fault = self.faults.next_look();
        let mut view = self.look();
        self.linger();
        match fault {
            None => {}
            Some(LookFault::Fails(why)) => return Outcome::Ended(Err(DriverError::Failed(why))),
            Some(LookFault::Hangs) => return Outcome::Hangs,
            Some(LookFault::NoGpus) => {
                view.gpus.clear();
                view.companions.clear();
            }
            Some(LookFault::NoVms) => {
                view.vms.clear();
                for state in view.gpus.values_mut().map(|gpu| &mut gpu.state).chain(view.companions.values_mut()) {
                    if matches!(state, GpuState::Attached { .. }) {
                        *state = GpuState::Pooled;
                    }
                }
            }
            Some(LookFault::LacksOne(which)) => {
                let lacking = which.checked_rem(view.gpus.len()).and_then(|which| view.gpus.keys().nth(which)).cloned();
                if let Some(gpu) = lacking.and_then(|address| view.gpus.remove(&address)) {
                    view.companions.retain(|address, _| !gpu.survey.companions.contains(address));
                }
            }
        }
        Outcome::Ended(Ok(view))
    }

    /// How things are, without anything going wrong.
    pub fn look(&self) -> HostView {
        let mut view = HostView {
            boot: self.boot(),
            gpus: BTreeMap::new(),
            companions: BTreeMap::new(),
            vms: BTreeMap::new(),
            unseen: BTreeSet::new(),
        };
        for (address, card) in self.slots.iter().filter_map(|(address, card)| Some((address, card.as_ref()?))) {
            // A card is told by its GPU.
            if self.is_lingering(address) {
                continue;
            }
            for (function, is) in card.functions.iter().filter(|(function, _)| !self.is_lingering(function)) {
                let state = self.state(card, function, *is);
                if function == address {
                    view.gpus.insert(address.clone(), self.gpu(card, state));
                } else {
                    view.companions.insert(function.clone(), state);
                }
            }
        }
        view.vms = self.vms.iter().map(|(id, vm)| (id.clone(), self.vm_view(id, vm))).collect();
        view
    }

    fn state(&self, card: &Card, address: &DeviceAddress, function: Function) -> GpuState {
        match self.holders(address).next() {
            Some(vm) => GpuState::Attached { vm: vm.clone() },
            None if function.dismounted => GpuState::Pooled,
            None if function.disabled => GpuState::Host { driver: HostDriver::Disabled },
            None => GpuState::Host {
                driver: if card.spec.driver == HostDriver::Bound { HostDriver::Bound } else { HostDriver::None },
            },
        }
    }

    fn gpu(&self, card: &Card, state: GpuState) -> ObservedGpu {
        let mut survey = card.spec.survey.clone();
        if !matches!(state, GpuState::Host { driver: HostDriver::Bound | HostDriver::None }) {
            survey.verdict = Verdict::NotMeasured;
        }
        ObservedGpu { address: card.spec.address.clone(), survey, state, health: GpuHealth::Ok, problem: None }
    }

    fn vm_view(&self, id: &VmId, vm: &Vm) -> VmView {
        let device = |record: &Record| {
            if self.is_live(record) { VmDevice::At(record.address.clone()) } else { VmDevice::Stale }
        };
        VmView {
            vm: ObservedVm {
                id: id.clone(),
                name: vm.name.clone(),
                state: vm.state,
                clustered: vm.clustered,
                devices: vm.devices.iter().map(device).collect(),
            },
            settings: vm.settings.clone(),
            saved_checkpoints: 0,
            role: vm.clustered.then(|| role(&vm.name)).flatten(),
            guest: (vm.state == VmState::Running && vm.asked).then(|| self.guest(vm)),
        }
    }

    /// What the guest shows: GPUs by PCI id.
    fn guest(&self, vm: &Vm) -> GuestView {
        let mut guest = GuestView::default();
        for record in vm.devices.iter().filter(|record| self.slots.contains_key(&record.address)) {
            let seen = guest.devices.entry(record.card.id).or_default();
            seen.visible += 1;
            seen.driver_bound += u32::from(vm.guest_driver);
        }
        guest
    }

    /// Takes one step, with whatever goes wrong with it.
    pub fn act(&mut self, step: &Step) -> Outcome<()> {
        let fault = self.faults.next_step(step.kind());
        self.act_with(step, fault)
    }

    /// Why a VM cannot start now, if anything.
    fn start_problem(&self, id: &VmId) -> Option<String> {
        let vm = self.vms.get(id)?;
        if vm.devices.is_empty() {
            return None;
        }
        if vm.devices.iter().any(|record| !self.is_live(record)) {
            return Some("Virtual PCI Express Port: Element not found (0x80070490)".to_owned());
        }
        let pooled = |record: &Record| self.function(&record.address).is_some_and(|function| function.dismounted);
        if !vm.devices.iter().all(pooled) {
            return Some("Virtual PCI Express Port: the device is in use by the host".to_owned());
        }
        if vm.clustered {
            return Some("a device of it does not support high availability".to_owned());
        }
        let settings = &vm.settings;
        if settings.memory != VmMemory::Static {
            return Some("dynamic memory and an assigned device exclude each other".to_owned());
        }
        if settings.stop_action == berth_agent_core::observed::StopAction::Save {
            return Some(
                "its state cannot be saved with an assigned device; change the automatic stop action".to_owned(),
            );
        }
        let running = |other: &&Vm| matches!(other.state, VmState::Running | VmState::Paused);
        let taken = |record: &Record| {
            let others = self.vms.iter().filter(|(other, _)| *other != id).map(|(_, vm)| vm);
            others.filter(running).any(|other| other.devices.contains(record))
        };
        if vm.devices.iter().any(taken) {
            return Some("Virtual PCI Express Port: the device is in use by another VM".to_owned());
        }
        let gpus = vm.devices.iter().filter_map(|record| self.slots.get(&record.address)?.as_ref());
        let sizes: Vec<_> = gpus.map(|card| card.spec.survey.mmio).collect();
        if settings.mmio_high_bytes < required_high(&sizes) || settings.mmio_low_bytes < required_low(&sizes) {
            return Some(
                "Insufficient system resources exist to complete the requested service (0x800705AA)".to_owned(),
            );
        }
        None
    }
}
