//! What the agent must not forget: facts that the host cannot show again.
//!
//! Everything else is looked up anew after a restart. The shell keeps this durably and writes a change before it carries
//! out the step that comes with it.

use crate::observed::{HostView, VmSettings};
use crate::safety::{self, Slot};
use berth_model::desired::DesiredPlacement;
use berth_model::gpu::{GpuState, HostDriver, Survey};
use berth_model::history::{ClusterRole, Forced};
use berth_model::install::Install;
use berth_model::pci::DeviceAddress;
use berth_model::{PlacementUid, VmId};
use std::collections::{BTreeMap, BTreeSet};

/// Small: at most one entry for each GPU and each VM of a host, and for each placement one for each of its functions and
/// one for what was run in its guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Settings of VMs as they were before Berth first changed them.
    pub original: BTreeMap<VmId, VmSettings>,
    /// For which placement the VM of each of these was last prepared. A placement that Berth only took over afterwards has
    /// nothing to restore. Absent in what older agents kept.
    pub prepared_for: BTreeMap<VmId, PlacementUid>,
    /// The card that is known to sit at an address, as surveyed while the host still ran it: a disabled or dismounted
    /// device cannot be measured, and another card at a known address is an alarm, restart or not.
    pub known: BTreeMap<DeviceAddress, Survey>,
    /// What was done by force for a placement, kept before it is done and told again and again: a report may be lost, and an
    /// auditor must learn of it all the same. Forgotten when the placement is no longer wished.
    pub forced: BTreeMap<PlacementUid, BTreeSet<Forced>>,
    /// Functions that a release was to give back to the host and had to leave, because they were gone. One that turns up
    /// in the pool is not there on purpose. Forgotten when the host or a VM has it.
    pub left: BTreeSet<DeviceAddress>,
    /// The driver-install command that was begun in a placement's guest, kept before it is begun: it is run once, whatever
    /// becomes of the agent meanwhile, and told again and again. Forgotten when the placement is no longer wished.
    pub installs: BTreeMap<PlacementUid, Install>,
    /// The clustered role of a placement's VM, kept before it is removed: nobody can read it afterwards. Told again and again
    /// once the VM is a role no more, and forgotten when the placement is no longer wished.
    pub roles: BTreeMap<PlacementUid, ClusterRole>,
    /// What cards were on the host when they were taken from it, by the GPU's address: kept before the first step on one, for
    /// afterwards nobody can tell what Berth disabled from what was so before. Forgotten when the host has all of it back.
    pub taken: BTreeMap<DeviceAddress, Taken>,
}

/// A card as it was on the host before it was taken from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// For which placement it was last taken.
    pub by: PlacementUid,
    /// Its functions that were disabled already. A release leaves these disabled.
    pub disabled: BTreeSet<DeviceAddress>,
}

impl Memory {
    /// Forgets what a VM's settings were.
    pub fn forget_settings(&mut self, vm: &VmId) {
        self.original.remove(vm);
        self.prepared_for.remove(vm);
    }

    /// Keeps what the card of a device is on the host, unless this placement has begun to take it already.
    pub fn take(&mut self, device: &DeviceAddress, desired: &DesiredPlacement, view: &HostView) {
        let card = device.card();
        let Some(gpu) = desired.gpus.iter().find(|gpu| gpu.address.card() == card) else { return };
        let Slot::Here(functions) = safety::slot(gpu, view) else { return };
        if self.taken.get(&gpu.address).is_some_and(|taken| taken.by == desired.uid) {
            return;
        }
        let by = desired.uid.clone();
        if functions.iter().all(|function| matches!(view.state(function), GpuState::Host { .. })) {
            let is_disabled = |f: &DeviceAddress| view.state(f) == GpuState::Host { driver: HostDriver::Disabled };
            let disabled = functions.into_iter().filter(is_disabled).collect();
            self.taken.insert(gpu.address.clone(), Taken { by, disabled });
        } else if let Some(taken) = self.taken.get_mut(&gpu.address) {
            // Left in the pool in part by an earlier placement: what was before that is what was before.
            taken.by = by;
        }
    }

    /// Whether a function was disabled on the host before its card was taken from it.
    pub fn was_disabled(&self, function: &DeviceAddress) -> bool {
        self.taken.values().any(|taken| taken.disabled.contains(function))
    }

    /// Forgets what cards of a placement that is undone were, but for those that stay in the pool: whoever gives those back
    /// to the host one day must know.
    pub fn forget_cards(&mut self, desired: &DesiredPlacement, view: &HostView) {
        for gpu in &desired.gpus {
            let pooled = match safety::slot(gpu, view) {
                Slot::Here(functions) => functions.iter().any(|function| view.state(function) == GpuState::Pooled),
                Slot::Empty | Slot::Other(_) | Slot::Unknown => false,
            };
            if !pooled {
                self.taken.remove(&gpu.address);
            }
        }
    }
}
