//! What is known about a hypervisor host.

use crate::gpu::Survey;
use crate::id::{ClusterName, InvalidName, NodeName};
use crate::pci::DeviceAddress;
use crate::time::Timestamp;
use std::fmt;
use std::sync::Arc;

/// How a host hands devices to VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Platform {
    /// Discrete Device Assignment by PowerShell.
    HyperV,
    /// VFIO on Linux/KVM.
    Vfio,
    /// A simulated host.
    Simulated,
}

impl Platform {
    /// Every platform, for tables and round trips.
    pub const ALL: [Self; 3] = [Self::HyperV, Self::Vfio, Self::Simulated];

    /// Stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::HyperV => "HyperV",
            Self::Vfio => "VFIO",
            Self::Simulated => "Simulated",
        }
    }
}

/// What a host is, as its agent reports it. Changes rarely.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostFacts {
    /// How it hands devices over.
    pub platform: Platform,
    /// Its operating system, in its own words.
    pub system: String,
    /// The cluster (failure domain) it belongs to.
    pub cluster: Option<ClusterName>,
    /// Processor capacity for VMs, in thousandths of a core.
    pub cpu_milli: u64,
    /// Memory for VMs, in bytes.
    pub memory_bytes: u64,
    /// Most address space a VM can have above 4 GiB for devices, in bytes, where it was measured.
    pub mmio_high_cap_bytes: Option<u64>,
    /// What people should know of it, a sentence each, at most [`MAX_NOTES`]: a policy that may be in the way, a survey that
    /// failed and why. Nothing is decided by them.
    pub notes: Vec<String>,
}

/// Most notes of one host: each is for a person to read.
pub const MAX_NOTES: usize = 8;
/// Longest note, in bytes: a sentence with an error of the host in it.
pub const MAX_NOTE_BYTES: usize = 600;

/// Tells one run of a host's operating system from the next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BootId(Arc<str>);

impl BootId {
    /// Checks and wraps `text`: 1 to 64 printable ASCII characters.
    ///
    /// # Errors
    /// [`InvalidName::Form`] otherwise.
    pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
        let text = text.as_ref();
        if (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName::Form {
                what: "boot id",
                text: text.to_owned(),
                form: "1 to 64 printable ASCII characters",
            })
        }
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One reason for not placing anything new on a node. Labels keep two people's cordons apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cordon {
    /// Whose cordon it is; lifting it names the label.
    pub label: String,
    /// Why.
    pub reason: String,
    /// When it was set.
    pub since: Timestamp,
}

/// What is durable about a node: what it is and what hardware it has. Where its GPUs are is observed, never stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredNode {
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
    /// Its hardware as last surveyed, in order of address.
    pub gpus: Vec<(DeviceAddress, Survey)>,
    /// Version of its desired state.
    pub generation: u64,
    /// How often its record was written: 1 for the first time.
    pub version: u64,
}
