//! What a guest says of its devices, and what it lacks of what a placement wants to see there.
//!
//! A guest belongs to its tenant and may say what it likes: it is believed only about itself, and nothing but the end of
//! its own placement's verification rests on it.

use berth_model::desired::DesiredPlacement;
use berth_model::pci::PciId;
use berth_model::request::VerifyLevel;
use std::collections::BTreeMap;
use std::fmt;

/// Most complaints of one guest that are kept: each says the same once more for another device.
pub const MAX_COMPLAINTS: usize = 8;
/// Longest text of a guest that is passed on, in characters.
pub const MAX_TEXT: usize = 160;

/// What a guest showed when it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestView {
    /// Its PCI devices by id, without those of the hypervisor itself.
    pub devices: BTreeMap<PciId, GuestDevices>,
    /// What its system complains about, at most [`MAX_COMPLAINTS`].
    pub complaints: Vec<Complaint>,
}

/// Devices of one PCI id in a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct GuestDevices {
    /// Listed by the guest.
    pub visible: u32,
    /// With a driver that runs them.
    pub driver_bound: u32,
}

/// What a guest's system says went wrong with an assigned device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// It found no room for a device's windows: the VM's gap for memory-mapped I/O is too small.
    NoSpace {
        /// Whether the room above 4 GiB is too small, or that below; `None` where it does not say.
        above: Option<bool>,
        /// How much it needs there for this device, in bytes.
        bytes: Option<u64>,
    },
    /// The host did not bring the device up: the status that it gave (`VSP failed D0 Entry`).
    NotBroughtUp {
        /// That status.
        status: u32,
    },
    /// A Windows guest's problem code for a device.
    Problem {
        /// Which device.
        id: PciId,
        /// Windows' code: 12 no room, 28 no driver, 43 the driver stopped it, …
        code: u32,
    },
    /// Something else, in its words: printable ASCII, at most [`MAX_TEXT`] characters.
    Said(String),
}

impl Complaint {
    /// A guest's words, made safe to pass on.
    pub fn said(text: &str) -> Self {
        let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
        Self::Said(text.trim().chars().map(plain).take(MAX_TEXT).collect())
    }
}

impl fmt::Display for Complaint {
    /// What it is, and what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSpace { above, bytes } => {
                let (place, setting) = match above {
                    Some(true) => (" above 4 GiB", "HighMemoryMappedIoSpace"),
                    Some(false) => (" below 4 GiB", "LowMemoryMappedIoSpace"),
                    None => ("", "HighMemoryMappedIoSpace or LowMemoryMappedIoSpace"),
                };
                match bytes {
                    Some(bytes) => write!(f, "its system needs {bytes:#x} bytes of address space{place} for a device")?,
                    None => write!(f, "its system finds no address space{place} for a device")?,
                }
                write!(f, ": the VM's {setting} is too small")
            }
            Self::NotBroughtUp { status } => {
                write!(f, "the host did not bring a device up for it (status {status:#x})")
            }
            Self::Problem { id, code } => {
                write!(f, "{id} has problem code {code}")?;
                f.write_str(match code {
                    12 => ": no room for it, the VM's HighMemoryMappedIoSpace or LowMemoryMappedIoSpace is too small",
                    22 => ": it is disabled in the guest",
                    28 => ": no driver is installed in the guest",
                    43 => ": the guest's driver refuses it",
                    _ => "",
                })
            }
            Self::Said(text) => write!(f, "its system says: {text}"),
        }
    }
}

/// What a guest lacks of what a placement wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shortfall {
    /// It has not been asked since it started.
    NotAsked,
    /// It lists fewer devices than it was given.
    Fewer {
        /// Of this id.
        id: PciId,
        /// How many it was given.
        wanted: u32,
        /// How many it lists.
        seen: u32,
        /// What may explain it.
        complaints: Vec<Complaint>,
    },
    /// It lists them, but its drivers run fewer.
    NoDriver {
        /// Of this id.
        id: PciId,
        /// How many it was given.
        wanted: u32,
        /// How many a driver runs.
        bound: u32,
        /// What may explain it.
        complaints: Vec<Complaint>,
    },
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let complaints = match self {
            Self::NotAsked => return f.write_str("the guest has not been asked since it started"),
            Self::Fewer { id, wanted, seen, complaints } => {
                write!(f, "the guest shows {seen} of {wanted} devices {id}")?;
                complaints
            }
            Self::NoDriver { id, wanted, bound, complaints } => {
                write!(f, "the guest shows its devices {id}, but a driver runs only {bound} of {wanted}")?;
                if complaints.is_empty() {
                    f.write_str(": install the vendor's driver in the guest")?;
                }
                complaints
            }
        };
        // Each says what to do; more than a few are the same once more.
        complaints.iter().take(3).try_for_each(|complaint| write!(f, "; {complaint}"))
    }
}

/// Whether two ids can be of one device. A guest need not tell the board.
fn same(a: &PciId, b: &PciId) -> bool {
    let boards = a.subsystem.is_none() || b.subsystem.is_none() || a.subsystem == b.subsystem;
    a.vendor == b.vendor && a.device == b.device && boards
}

/// What a guest lacks of what is wanted; `None` when nothing. Host and guest addresses share nothing: devices are counted
/// by PCI id.
pub fn shortfall(desired: &DesiredPlacement, guest: Option<&GuestView>) -> Option<Shortfall> {
    if desired.verify == VerifyLevel::None {
        return None;
    }
    let Some(guest) = guest else { return Some(Shortfall::NotAsked) };
    let complaints = || guest.complaints.clone();
    let mut no_driver = None;
    for gpu in &desired.gpus {
        let id = gpu.fingerprint.id;
        let wanted = desired.gpus.iter().filter(|other| same(&other.fingerprint.id, &id)).count();
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        let of = guest.devices.iter().filter(|(other, _)| same(other, &id)).map(|(_, devices)| *devices);
        let (seen, bound) = of.fold((0_u32, 0_u32), |(seen, bound), devices| {
            (seen.saturating_add(devices.visible), bound.saturating_add(devices.driver_bound))
        });
        if seen < wanted {
            return Some(Shortfall::Fewer { id, wanted, seen, complaints: complaints() });
        }
        if bound < wanted && desired.verify == VerifyLevel::DriverBound && no_driver.is_none() {
            no_driver = Some(Shortfall::NoDriver { id, wanted, bound, complaints: complaints() });
        }
    }
    no_driver
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::desired;
    use berth_model::desired::{DesiredGpu, Intent};
    use berth_model::gpu::Fingerprint;
    use expect_test::{Expect, expect};

    const A2: &str = "10de:25b6:10de:157e";
    const A16: &str = "10de:25b6:10de:14a9";

    fn id(text: &str) -> PciId {
        text.parse().unwrap()
    }

    fn guest(devices: &[(&str, u32, u32)], complaints: &[Complaint]) -> GuestView {
        let of = |(text, visible, driver_bound): &(&str, u32, u32)| {
            (id(text), GuestDevices { visible: *visible, driver_bound: *driver_bound })
        };
        GuestView { devices: devices.iter().map(of).collect(), complaints: complaints.to_vec() }
    }

    fn check(verify: VerifyLevel, gpus: &[&str], guest: Option<&GuestView>, want: Expect) {
        let mut wish = desired(Intent::Attached);
        let one = wish.gpus[0].clone();
        wish.gpus = (gpus.iter())
            .map(|text| DesiredGpu { fingerprint: Fingerprint { id: id(text), serial: None }, ..one.clone() })
            .collect();
        wish.verify = verify;
        let lack = shortfall(&wish, guest);
        want.assert_eq(&lack.map_or("nothing".to_owned(), |lack| lack.to_string()));
    }

    #[test]
    fn devices_are_counted_by_what_they_are() {
        use VerifyLevel::{DriverBound, None as Nothing, Visible};
        let check_bound = |devices: &[(&str, u32, u32)], want: Expect| {
            check(DriverBound, &[A2, A2], Some(&guest(devices, &[])), want);
        };
        check(Nothing, &[A2], None, expect!["nothing"]);
        check(Visible, &[A2], None, expect!["the guest has not been asked since it started"]);
        check(Visible, &[A2], Some(&guest(&[(A2, 1, 0)], &[])), expect!["nothing"]);
        check_bound(&[(A2, 1, 1)], expect!["the guest shows 1 of 2 devices 10de:25b6:10de:157e"]);
        check_bound(&[(A2, 2, 2)], expect!["nothing"]);
        // A guest that does not tell the board, and one that has another board.
        check_bound(&[("10de:25b6", 2, 2)], expect!["nothing"]);
        check_bound(&[(A16, 4, 4)], expect!["the guest shows 0 of 2 devices 10de:25b6:10de:157e"]);
        check_bound(
            &[(A2, 2, 1)],
            expect![
                "the guest shows its devices 10de:25b6:10de:157e, but a driver runs only 1 of 2: install the vendor's driver in the guest"
            ],
        );
        // What is not there at all is said before what is not driven.
        check(
            DriverBound,
            &[A2, "10de:2235"],
            Some(&guest(&[(A2, 1, 0)], &[])),
            expect!["the guest shows 0 of 1 devices 10de:2235"],
        );
        check_bound(&[(A2, u32::MAX, u32::MAX), ("10de:25b6", 5, 5)], expect!["nothing"]);
    }

    #[test]
    fn a_shortfall_is_told_with_what_the_guest_complains_about_and_what_to_do() {
        let told = |devices: &[(&str, u32, u32)], complaints: &[Complaint], want: Expect| {
            check(VerifyLevel::DriverBound, &[A2], Some(&guest(devices, complaints)), want);
        };
        told(
            &[],
            &[Complaint::NoSpace { above: Some(true), bytes: Some(0x8_0200_0000) }],
            expect![
                "the guest shows 0 of 1 devices 10de:25b6:10de:157e; its system needs 0x802000000 bytes of address space above 4 GiB for a device: the VM's HighMemoryMappedIoSpace is too small"
            ],
        );
        told(
            &[(A2, 1, 0)],
            &[
                Complaint::NoSpace { above: None, bytes: None },
                Complaint::NotBroughtUp { status: 0xc000_0001 },
                Complaint::said("nvidia\u{1b}[31m: probe with driver nvidia failed with error -1\n"),
                Complaint::said("one too many"),
            ],
            expect![
                "the guest shows its devices 10de:25b6:10de:157e, but a driver runs only 0 of 1; its system finds no address space for a device: the VM's HighMemoryMappedIoSpace or LowMemoryMappedIoSpace is too small; the host did not bring a device up for it (status 0xc0000001); its system says: nvidia?[31m: probe with driver nvidia failed with error -1"
            ],
        );
        told(
            &[(A2, 1, 0)],
            &[Complaint::Problem { id: id(A2), code: 28 }],
            expect![
                "the guest shows its devices 10de:25b6:10de:157e, but a driver runs only 0 of 1; 10de:25b6:10de:157e has problem code 28: no driver is installed in the guest"
            ],
        );
        assert_eq!(Complaint::said(&"x".repeat(5000)).to_string().len(), MAX_TEXT + "its system says: ".len());
    }
}
