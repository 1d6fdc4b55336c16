//! A GPU as it is surveyed, observed and judged.

use crate::id::{InvalidName, ModelName, VmId};
use crate::pci::{CardKey, DeviceAddress, PciId};
use std::fmt;

/// Which driver the host has on a device it owns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostDriver {
    /// A driver runs it.
    Bound,
    /// Present, but nothing drives it (Windows problem code 28).
    None,
    /// Disabled by an administrator or by us (Windows problem code 22).
    Disabled,
}

/// Where a GPU was last seen. What could not be seen is [`GpuState::Unknown`], never free and never gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GpuState {
    /// Owned by the host's operating system.
    Host {
        /// Its driver there.
        driver: HostDriver,
    },
    /// Dismounted from the host and in no VM's configuration.
    Pooled,
    /// In the configuration of a VM, running or not.
    Attached {
        /// That VM.
        vm: VmId,
    },
    /// A VM's configuration names a device that is not there.
    Stale {
        /// That VM.
        vm: VmId,
    },
    /// Was here and surely is not any more: several complete listings lacked it.
    Missing,
    /// Could not be observed.
    Unknown,
}

impl GpuState {
    /// The state's name without its data, as shown in tables and used to filter.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Host { .. } => "Host",
            Self::Pooled => "Pooled",
            Self::Attached { .. } => "Attached",
            Self::Stale { .. } => "Stale",
            Self::Missing => "Missing",
            Self::Unknown => "Unknown",
        }
    }

    /// The VM whose configuration holds the device.
    pub fn vm(&self) -> Option<&VmId> {
        match self {
            Self::Attached { vm } | Self::Stale { vm } => Some(vm),
            Self::Host { .. } | Self::Pooled | Self::Missing | Self::Unknown => None,
        }
    }
}

/// Why Berth will not hand a GPU out although it is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum QuarantineReason {
    /// Another card sits where this one was known to be.
    WrongCard {
        /// What was known.
        expected: Fingerprint,
        /// What answers now.
        found: Fingerprint,
    },
    /// The device came back from a VM in a state that is not clean.
    NotCleanAfterRelease {
        /// What was seen.
        seen: String,
    },
    /// An operator said so.
    Operator {
        /// Their words.
        reason: String,
    },
    /// It is in a pool of the host's own cluster, which hands it out by itself: two who hand out one GPU would collide.
    NativePool {
        /// The pool's name, as the host says it.
        pool: String,
    },
}

impl fmt::Display for QuarantineReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongCard { expected, found } => {
                write!(f, "another card is in the slot: expected {expected}, found {found}")
            }
            Self::NotCleanAfterRelease { seen } => write!(f, "did not come back clean after release: {seen}"),
            Self::Operator { reason } => write!(f, "quarantined by an operator: {reason}"),
            Self::NativePool { pool } => {
                write!(
                    f,
                    "it is in the cluster's own GPU pool {pool:?}, which the cluster hands out; Berth leaves it alone"
                )
            }
        }
    }
}

/// Whether a GPU may be handed out as far as its own condition goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GpuHealth {
    /// Nothing speaks against it.
    Ok,
    /// Not handed out until the reason is gone.
    Quarantined(QuarantineReason),
    /// Usable again only after the host was restarted.
    NeedsHostReboot,
}

impl GpuHealth {
    /// The name without data, as shown in tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ok => "Ok",
            Self::Quarantined(_) => "Quarantined",
            Self::NeedsHostReboot => "NeedsHostReboot",
        }
    }
}

/// Tells one card from another at the same place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint {
    /// What the device says it is.
    pub id: PciId,
    /// PCIe serial number, where the host can read it.
    pub serial: Option<SerialNumber>,
}

impl Fingerprint {
    /// Whether both can be the same card. A serial that only one side knows decides nothing.
    pub fn matches(&self, other: &Self) -> bool {
        let same_serial = match (&self.serial, &other.serial) {
            (Some(a), Some(b)) => a == b,
            (Some(_) | None, None) | (None, Some(_)) => true,
        };
        self.id == other.id && same_serial
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.serial {
            Some(serial) => write!(f, "{} serial {serial}", self.id),
            None => write!(f, "{}", self.id),
        }
    }
}

/// A card's serial number as text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SerialNumber(std::sync::Arc<str>);

impl SerialNumber {
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
                what: "serial number",
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

impl fmt::Display for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Address space a device's registers and memory windows take, in bytes. Measured while the host still runs the
/// device: it cannot be measured once disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct MmioSize {
    /// Sum of the memory BARs that must lie below 4 GiB.
    pub low_bytes: u64,
    /// Sum of the 64-bit memory BARs.
    pub high_bytes: u64,
}

/// One finding of a survey that speaks against assigning a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Finding {
    /// Firmware says the device must keep firmware-owned memory (RMRR).
    ReservedMemory,
    /// Its traffic could reach other devices: no ACS on the way up.
    NoAcs,
    /// Only line-based interrupts.
    LineInterruptsOnly,
    /// Firmware kept control of PCI Express.
    FirmwareKeepsPcie,
    /// The host says that it cannot give devices to VMs (Hyper-V's `IovSupport`). Its maker's survey takes that for a no,
    /// its newer pages for a warning ("you might encounter issues"), so a node's policy may accept it.
    NoIommu,
    /// This host edition cannot assign devices.
    HostEdition,
    /// The screen of the host's own boot is on it.
    BootDisplay,
    /// It lies outside an assignable type (a bridge, a management controller's VGA).
    NotAssignableKind,
}

impl Finding {
    /// Every finding, for tables and round trips.
    pub const ALL: [Self; 8] = [
        Self::ReservedMemory,
        Self::NoAcs,
        Self::LineInterruptsOnly,
        Self::FirmwareKeepsPcie,
        Self::NoIommu,
        Self::HostEdition,
        Self::BootDisplay,
        Self::NotAssignableKind,
    ];

    /// Stable name, used on the wire and in labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReservedMemory => "ReservedMemory",
            Self::NoAcs => "NoAcs",
            Self::LineInterruptsOnly => "LineInterruptsOnly",
            Self::FirmwareKeepsPcie => "FirmwareKeepsPcie",
            Self::NoIommu => "NoIommu",
            Self::HostEdition => "HostEdition",
            Self::BootDisplay => "BootDisplay",
            Self::NotAssignableKind => "NotAssignableKind",
        }
    }

    /// Whether a node's policy may allow it all the same: dismounting by force overrides ACS, a boot display is a loss to
    /// whoever looks at it, and what the host says of its IOMMU is disputed. All else cannot work.
    pub fn overridable(self) -> bool {
        match self {
            Self::NoAcs | Self::BootDisplay | Self::NoIommu => true,
            Self::ReservedMemory
            | Self::LineInterruptsOnly
            | Self::FirmwareKeepsPcie
            | Self::HostEdition
            | Self::NotAssignableKind => false,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReservedMemory => "firmware requires the device to keep reserved memory",
            Self::NoAcs => "its traffic may be redirected to other devices: no access control (ACS) on the way up",
            Self::LineInterruptsOnly => "it has only line-based interrupts",
            Self::FirmwareKeepsPcie => "firmware kept control of PCI Express",
            Self::NoIommu => "the host says that it cannot give devices to VMs (IovSupport is false)",
            Self::HostEdition => "this edition of the host's system cannot assign devices",
            Self::BootDisplay => "the host's boot display is on it",
            Self::NotAssignableKind => "it is not a kind of device that can be assigned",
        })
    }
}

/// What a survey concluded about one device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Can be assigned.
    Assignable,
    /// Cannot, for all these reasons at once.
    Blocked(Vec<Finding>),
    /// Was never measured completely (for example found already dismounted).
    NotMeasured,
}

/// The facts about a GPU and whether it can be assigned, gathered before anything is touched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Survey {
    /// Which model it is.
    pub model: ModelName,
    /// Which card it is.
    pub fingerprint: Fingerprint,
    /// Its memory, in bytes, where the card table knows it.
    pub vram_bytes: Option<u64>,
    /// Address space it takes.
    pub mmio: MmioSize,
    /// NUMA node its slot hangs on.
    pub numa_node: Option<u16>,
    /// Other functions of the same card that must move with it (audio, USB).
    pub companions: Vec<DeviceAddress>,
    /// The conclusion.
    pub verdict: Verdict,
}

/// One GPU as an agent saw it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObservedGpu {
    /// Where it sits.
    pub address: DeviceAddress,
    /// What it is.
    pub survey: Survey,
    /// Where it was seen.
    pub state: GpuState,
    /// Its condition.
    pub health: GpuHealth,
    /// Windows' problem code of the device on the host, where the host has it and says one; 0 is none. What it means stands
    /// in [`crate::errors`].
    pub problem: Option<u32>,
}

impl ObservedGpu {
    /// The physical card it belongs to.
    pub fn card(&self) -> CardKey {
        self.address.card()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(id: &str, serial: Option<&str>) -> Fingerprint {
        Fingerprint { id: id.parse().unwrap(), serial: serial.map(|s| SerialNumber::new(s).unwrap()) }
    }

    #[test]
    fn a_swapped_card_does_not_match() {
        let known = print("10de:25b6:10de:157e", Some("A1"));
        assert!(known.matches(&print("10de:25b6:10de:157e", None)));
        assert!(!known.matches(&print("10de:25b6:10de:157e", Some("B2"))));
        assert!(!known.matches(&print("10de:25b6:10de:14a9", Some("A1"))), "an A16 is no A2");
    }

    #[test]
    fn a_policy_may_accept_no_more_than_what_may_work() {
        let soft: Vec<_> = Finding::ALL.into_iter().filter(|f| f.overridable()).collect();
        assert_eq!(soft, [Finding::NoAcs, Finding::NoIommu, Finding::BootDisplay]);
    }
}
