//! What is kept with a placement for whoever asks later what was done: how it began, what was done by force, and what was run
//! in its guest.

use crate::id::{NodeName, Owner, RoleName, Tag};
use crate::install::Install;
use crate::pci::DeviceAddress;
use crate::step::StepKind;
use crate::time::Timestamp;
use std::fmt;

/// Most notes of one placement: it is adopted once, each function of 16 cards with 8 functions is forced once, a command
/// runs in its guest once, of which an agent may first not know how it ended, and its clustered role is removed once.
pub const MAX_NOTES: usize = 132;
/// Most tags of one placement.
pub const MAX_TAGS: usize = 32;

/// Something that happened, and when the controller learned of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: Note,
}

/// What can be noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// It was not placed by Berth: it stands for an assignment that was there already.
    Adopted(Adoption),
    /// A safeguard of the host was overridden.
    Forced(Forced),
    /// A driver-install command was run in its guest.
    Installed(Install),
    /// Its VM's clustered role was removed.
    RoleRemoved(ClusterRole),
}

/// A VM's clustered role (its resource group) as its cluster shows it: what whoever makes the VM one again must know. Berth
/// never does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterRole {
    /// Its name.
    pub name: RoleName,
    /// The node that owned it, as the cluster calls it, where it says so.
    pub owner: Option<NodeName>,
    /// Its priority, where the cluster tells one: 3000 high, 2000 medium, 1000 low, 0 not started by itself.
    pub priority: Option<u32>,
}

impl fmt::Display for ClusterRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, owner, priority } = self;
        write!(f, "the VM's clustered role {:?} was removed", name.as_str())?;
        if let Some(owner) = owner {
            write!(f, "; it was owned by {owner}")?;
        }
        if let Some(priority) = priority {
            write!(f, "{} of priority {priority}", if owner.is_some() { "," } else { "; it was" })?;
        }
        f.write_str("; Berth does not make it again: after the release, Add-ClusterVirtualMachineRole -VMId … -Name …")
    }
}

/// Whose an adopted placement is. Who adopted it is its caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// Whose it is, as whoever adopted it said.
    pub owner: Option<Owner>,
    /// Tags, in the order given.
    pub tags: Vec<Tag>,
}

/// One use of force on a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Forced {
    /// The step that was taken by force.
    pub step: StepKind,
    /// The device it was about.
    pub device: DeviceAddress,
}

impl fmt::Display for Forced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, device } = self;
        write!(
            f,
            "{step} of {device} with -Force: the host's requirements of access control and of a mitigation driver did not count"
        )
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adopted(Adoption { owner, tags }) => {
                f.write_str(
                    "adopted as it was; the VM's settings before its GPUs are not known and are left as they are",
                )?;
                if let Some(owner) = owner {
                    write!(f, "; owner {owner}")?;
                }
                for (at, tag) in tags.iter().enumerate() {
                    write!(f, "{}{tag}", if at == 0 { "; tags " } else { ", " })?;
                }
                Ok(())
            }
            Self::Forced(forced) => forced.fmt(f),
            Self::Installed(install) => install.fmt(f),
            Self::RoleRemoved(role) => role.fmt(f),
        }
    }
}
