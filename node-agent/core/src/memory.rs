//! What the agent must not forget: facts that the host cannot show again.
//!
//! Everything else is looked up anew after a restart. The shell keeps this durably and writes a change before it carries
//! out the step that comes with it.

use crate::observed::VmSettings;
use berth_model::VmId;
use berth_model::gpu::Survey;
use berth_model::pci::DeviceAddress;
use std::collections::BTreeMap;

/// Small: at most one entry for each GPU and each VM of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Settings of VMs as they were before Berth first changed them.
    pub original: BTreeMap<VmId, VmSettings>,
    /// The card that is known to sit at an address, as surveyed while the host still ran it: a disabled or dismounted
    /// device cannot be measured, and another card at a known address is an alarm, restart or not.
    pub known: BTreeMap<DeviceAddress, Survey>,
}
