//! What the agent must not forget: facts that the host cannot show again.
//!
//! Everything else is looked up anew after a restart. The shell keeps this durably and writes a change before it carries
//! out the step that comes with it.

use crate::observed::VmSettings;
use berth_model::gpu::Survey;
use berth_model::history::Forced;
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
}

impl Memory {
    /// Forgets what a VM's settings were.
    pub fn forget_settings(&mut self, vm: &VmId) {
        self.original.remove(vm);
        self.prepared_for.remove(vm);
    }
}
