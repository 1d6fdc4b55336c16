//! One node and its GPUs as they are known, and whether they are available.

use berth_model::gpu::{GpuHealth, GpuState, ObservedGpu, Verdict};
use berth_model::id::ClusterName;
use berth_model::node::{BootId, Cordon, HostFacts};
use berth_model::pci::DeviceAddress;
use berth_model::placement::Placement;
use berth_model::reason::Unavailable;
use berth_model::request::Resources;
use berth_model::vm::ObservedVm;
use berth_model::{ModelName, NodeName, PlacementName, Timestamp, VmId};
use std::collections::BTreeMap;

/// Whether a node's agent is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Its session is open.
    Connected {
        /// Since when.
        since: Timestamp,
    },
    /// It has none, or has not been heard of for too long.
    Disconnected {
        /// Since when; the controller's own start when it was never connected since.
        since: Timestamp,
    },
    /// Nobody tells this controller: it does not lead, and hears of no leader, or not of this node yet. What is known is
    /// memory, and the node may be connected or not.
    Unheard {
        /// Since when.
        since: Timestamp,
    },
}

/// How good the view of a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// Nothing was reported in this session yet; what is known is memory.
    NotReported,
    /// The last listing was complete.
    Complete,
    /// The last listing failed; what is known is from before.
    Failed {
        /// In the agent's words.
        why: String,
    },
    /// Its agent holds placements that are not this store's: nothing is believed of it, and nothing told to it.
    Stranger {
        /// What it holds, and what to do.
        why: String,
    },
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// What it is.
    pub facts: HostFacts,
    /// Its agent's version.
    pub agent_version: String,
    /// When it first connected.
    pub first_seen: Timestamp,
    /// Reasons not to place anything new on it.
    pub cordons: Vec<Cordon>,
    /// How often its record was written.
    pub version: u64,
    /// Version of its desired state.
    pub generation: u64,
    /// Whether its agent is there.
    pub link: Link,
    /// How good the view of it is.
    pub view: View,
    /// Its current boot, once reported since the controller started.
    pub boot: Option<BootId>,
    /// Its GPUs: every one it ever reported.
    pub gpus: BTreeMap<DeviceAddress, Gpu>,
    /// Its VMs as last reported.
    pub vms: BTreeMap<VmId, ObservedVm>,
    /// Since when VMs have records of devices that are gone, as far as this controller knows.
    pub stale_since: BTreeMap<VmId, Timestamp>,
    /// What placements reserve of it.
    pub reserved: Resources,
}

/// One GPU of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// As last reported. Before the first report since the controller's start: the survey from the store, state unknown.
    pub observed: ObservedGpu,
    /// When it was last reported since the controller's start.
    pub observed_at: Option<Timestamp>,
    /// Since when it has been seen in this state and health without interruption, as far as this controller knows.
    pub since: Option<Timestamp>,
    /// The placement that owns it.
    pub claim: Option<PlacementName>,
}

impl Gpu {
    /// Its model.
    pub fn model(&self) -> &ModelName {
        &self.observed.survey.model
    }
}

impl Node {
    /// Whether new placements may use it, as far as the node as a whole goes.
    pub fn not_ready(&self) -> Option<Unavailable> {
        match (&self.link, &self.view) {
            (Link::Disconnected { since }, _) => Some(Unavailable::NodeDisconnected { since: *since }),
            (Link::Unheard { .. }, _) | (Link::Connected { .. }, View::NotReported) => Some(Unavailable::NodeNotFresh),
            (Link::Connected { .. }, View::Failed { why }) => Some(Unavailable::SurveyFailed { why: why.clone() }),
            (Link::Connected { .. }, View::Stranger { why }) => Some(Unavailable::Stranger { why: why.clone() }),
            (Link::Connected { .. }, View::Complete) => None,
        }
    }

    /// Whether its agent holds placements that are not this store's.
    pub fn is_stranger(&self) -> bool {
        matches!(self.view, View::Stranger { .. })
    }

    /// The cordons on it, as a reason.
    pub fn cordoned(&self) -> Option<Unavailable> {
        (!self.cordons.is_empty())
            .then(|| Unavailable::Cordoned { labels: self.cordons.iter().map(|c| c.label.clone()).collect() })
    }

    /// Every reason why a GPU of this node is not available; none means that it is. The one place where
    /// "available = surveyed assignable ∧ healthy ∧ unclaimed ∧ not cordoned ∧ in host or pool ∧ node ready" is written.
    pub fn unavailable<'a>(&'a self, gpu: &'a Gpu) -> impl Iterator<Item = Unavailable> + use<'a> {
        [Self::not_ready, Self::cordoned].into_iter().filter_map(|why| why(self)).chain(gpu.unavailable())
    }

    /// Whether a GPU is available: nothing speaks against it.
    pub fn is_available(&self, gpu: &Gpu) -> bool {
        self.unavailable(gpu).next().is_none()
    }

    /// Processor and memory not reserved by placements.
    pub fn left(&self) -> Resources {
        Resources {
            cpu_milli: self.facts.cpu_milli.saturating_sub(self.reserved.cpu_milli),
            memory_bytes: self.facts.memory_bytes.saturating_sub(self.reserved.memory_bytes),
        }
    }

    /// The failure domain it counts for.
    pub fn cluster(&self) -> Option<&ClusterName> {
        self.facts.cluster.as_ref()
    }
}

impl Gpu {
    /// The reasons that lie in the GPU itself, not in its node.
    pub(crate) fn unavailable(&self) -> impl Iterator<Item = Unavailable> {
        let terms = [Self::not_assignable, Self::not_healthy, Self::claimed, Self::out_of_reach];
        terms.into_iter().filter_map(|why| why(self))
    }

    fn not_assignable(&self) -> Option<Unavailable> {
        match &self.observed.survey.verdict {
            Verdict::Assignable => None,
            Verdict::Blocked(findings) => Some(Unavailable::NotAssignable(findings.clone())),
            Verdict::NotMeasured => Some(Unavailable::NotMeasured),
        }
    }

    fn not_healthy(&self) -> Option<Unavailable> {
        match &self.observed.health {
            GpuHealth::Ok => None,
            GpuHealth::Quarantined(reason) => Some(Unavailable::Quarantined(reason.clone())),
            GpuHealth::NeedsHostReboot => Some(Unavailable::NeedsHostReboot),
        }
    }

    fn claimed(&self) -> Option<Unavailable> {
        self.claim.clone().map(|by| Unavailable::Claimed { by })
    }

    fn out_of_reach(&self) -> Option<Unavailable> {
        match &self.observed.state {
            GpuState::Host { .. } | GpuState::Pooled => None,
            // In its own placement's VM it is claimed; that says enough.
            GpuState::Attached { .. } if self.claim.is_some() => None,
            GpuState::Attached { vm } => Some(Unavailable::InVm { vm: vm.clone() }),
            GpuState::Stale { vm } => Some(Unavailable::StaleRecord { vm: vm.clone() }),
            GpuState::Missing => Some(Unavailable::Missing),
            GpuState::Unknown => Some(Unavailable::Unknown),
        }
    }
}

/// Notes what a placement owns of its node.
pub(super) fn claim(node: &mut Node, placement: &Placement) {
    let Some(assignment) = &placement.assignment else { return };
    for assigned in &assignment.gpus {
        if let Some(gpu) = node.gpus.get_mut(&assigned.address) {
            gpu.claim = Some(placement.name().clone());
        }
    }
    let Resources { cpu_milli, memory_bytes } = placement.request.resources;
    node.reserved.cpu_milli = node.reserved.cpu_milli.saturating_add(cpu_milli);
    node.reserved.memory_bytes = node.reserved.memory_bytes.saturating_add(memory_bytes);
}

/// Notes that it owns that no more.
pub(super) fn unclaim(node: &mut Node, placement: &Placement) {
    let Some(assignment) = &placement.assignment else { return };
    for assigned in &assignment.gpus {
        if let Some(gpu) = node.gpus.get_mut(&assigned.address)
            && gpu.claim.as_ref() == Some(placement.name())
        {
            gpu.claim = None;
        }
    }
    let Resources { cpu_milli, memory_bytes } = placement.request.resources;
    node.reserved.cpu_milli = node.reserved.cpu_milli.saturating_sub(cpu_milli);
    node.reserved.memory_bytes = node.reserved.memory_bytes.saturating_sub(memory_bytes);
}
