//! Where a PCI device sits and what it says it is: location paths, bus addresses, vendor and device ids, card grouping.
//!
//! Sources: Windows location paths name the route from a root bus, one `PCI(DDFF)` per hop, DD = device and FF =
//! function in hexadecimal; they stay the same when other cards are added. Linux names a function `DDDD:BB:DD.F`.
//! Hyper-V compares location paths byte by byte, so the text is kept exactly as given.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Why a text is no PCI address or id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPci {
    /// Neither a location path nor a bus address.
    #[error(
        "PCI address {0:?} is neither a location path like PCIROOT(20)#PCI(0300)#PCI(0000) nor a bus address like 0000:41:00.0"
    )]
    Address(String),
    /// Not `vvvv:dddd` or `vvvv:dddd:ssss:ssss`.
    #[error("PCI id {0:?} is not VENDOR:DEVICE or VENDOR:DEVICE:SUBVENDOR:SUBDEVICE in four hexadecimal digits each")]
    Id(String),
}

/// A Windows PCI location path, exactly as Windows gave it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocationPath(Arc<str>);

impl LocationPath {
    /// Longest text accepted. PCI allows 256 buses; 32 hops are far more than any host has.
    pub const MAX_BYTES: usize = 16 + 32 * 10;

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn upper_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
}

impl FromStr for LocationPath {
    type Err = InvalidPci;
    fn from_str(text: &str) -> Result<Self, InvalidPci> {
        let legal = || {
            let mut segments = text.split('#');
            let root = segments.next()?.strip_prefix("PCIROOT(")?.strip_suffix(')')?;
            let root_ok = (1..=4).contains(&root.len()) && upper_hex(root);
            let mut hops = 0_usize;
            for segment in segments {
                let hop = segment.strip_prefix("PCI(")?.strip_suffix(')')?;
                if hop.len() != 4 || !upper_hex(hop) {
                    return None;
                }
                hops += 1;
            }
            (root_ok && hops > 0 && text.len() <= Self::MAX_BYTES).then_some(())
        };
        legal().map(|()| Self(text.into())).ok_or_else(|| InvalidPci::Address(text.to_owned()))
    }
}

/// A Linux PCI function address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusAddress {
    /// PCI domain (segment).
    pub domain: u16,
    /// Bus number.
    pub bus: u8,
    /// Device on the bus, 0–31.
    pub device: u8,
    /// Function of the device, 0–7.
    pub function: u8,
}

impl fmt::Display for BusAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl FromStr for BusAddress {
    type Err = InvalidPci;
    fn from_str(text: &str) -> Result<Self, InvalidPci> {
        fn hex(text: &str, digits: usize) -> Option<u16> {
            (text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit()))
                .then(|| u16::from_str_radix(text, 16).ok())
                .flatten()
        }
        let parse = || {
            let (domain, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let address = Self {
                domain: hex(domain, 4)?,
                bus: u8::try_from(hex(bus, 2)?).ok()?,
                device: u8::try_from(hex(device, 2)?).ok()?,
                function: u8::try_from(hex(function, 1)?).ok()?,
            };
            (address.device < 32 && address.function < 8).then_some(address)
        };
        parse().ok_or_else(|| InvalidPci::Address(text.to_owned()))
    }
}

/// Where a device sits on its host, in the host's own terms.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceAddress {
    /// On Windows.
    Location(LocationPath),
    /// On Linux.
    Bus(BusAddress),
}

impl DeviceAddress {
    /// The board this function belongs to: the address with its function number cleared. All functions of one card
    /// (GPU, its HDMI audio, its USB) give the same key and are handed over together.
    pub fn card(&self) -> CardKey {
        match self {
            Self::Location(path) => {
                // The last segment is `PCI(DDFF)`; parsing made sure of it.
                let text = path.as_str();
                let cut = text.len().saturating_sub(3);
                CardKey(format!("{}00)", &text[..cut]).into())
            }
            Self::Bus(bus) => CardKey(BusAddress { function: 0, ..*bus }.to_string().into()),
        }
    }
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Location(path) => f.pad(path.as_str()),
            Self::Bus(bus) => f.pad(&bus.to_string()),
        }
    }
}

impl FromStr for DeviceAddress {
    type Err = InvalidPci;
    fn from_str(text: &str) -> Result<Self, InvalidPci> {
        text.parse().map(Self::Location).or_else(|_| text.parse().map(Self::Bus))
    }
}

/// Groups the functions of one physical card.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CardKey(Arc<str>);

impl fmt::Display for CardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a function says it is. The subsystem tells boards with the same chip apart: an A2 and one GPU of an A16 are
/// both `10de:25b6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciId {
    /// Vendor of the chip.
    pub vendor: u16,
    /// Device of that vendor.
    pub device: u16,
    /// Vendor and device of the board, where known.
    pub subsystem: Option<(u16, u16)>,
}

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)?;
        match self.subsystem {
            Some((vendor, device)) => write!(f, ":{vendor:04x}:{device:04x}"),
            None => Ok(()),
        }
    }
}

impl FromStr for PciId {
    type Err = InvalidPci;
    fn from_str(text: &str) -> Result<Self, InvalidPci> {
        let bad = || InvalidPci::Id(text.to_owned());
        let word = |part: &str| {
            (part.len() == 4 && part.bytes().all(|b| b.is_ascii_hexdigit()))
                .then(|| u16::from_str_radix(part, 16).ok())
                .flatten()
                .ok_or_else(bad)
        };
        let parts = text.split(':').map(word).collect::<Result<Vec<_>, _>>()?;
        match parts.as_slice() {
            [vendor, device] => Ok(Self { vendor: *vendor, device: *device, subsystem: None }),
            [vendor, device, sv, sd] => Ok(Self { vendor: *vendor, device: *device, subsystem: Some((*sv, *sd)) }),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_addresses_are_refused() {
        for text in [
            "",
            "PCIROOT(20)",
            "pciroot(20)#PCI(0300)",
            "PCIROOT(2g)#PCI(0300)",
            "PCIROOT(20)#PCI(300)",
            "PCIROOT(20)#PCI(030a)",
            "PCIROOT(20)#PCI(0300)#",
            "PCIROOT(20)#PCI(0300)\u{0}",
            "PCIROOT(12345)#PCI(0300)",
            "ACPI(_SB_)#ACPI(PCI0)",
            "0000:41:00",
            "0000:41:20.0",
            "0000:41:00.8",
            "41:00.0",
            "0000:+1:00.0",
        ] {
            assert!(text.parse::<DeviceAddress>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn functions_of_one_card_share_their_key() {
        let key = |text: &str| text.parse::<DeviceAddress>().unwrap().card().to_string();
        assert_eq!(key("PCIROOT(0)#PCI(0301)#PCI(0000)"), key("PCIROOT(0)#PCI(0301)#PCI(0001)"));
        assert_ne!(key("PCIROOT(0)#PCI(0301)#PCI(0000)"), key("PCIROOT(0)#PCI(0302)#PCI(0000)"));
        assert_eq!(key("0000:41:00.1"), "0000:41:00.0");
    }

    #[test]
    fn pci_ids_round_trip_and_refuse_the_rest() {
        for text in ["10de:25b6", "10de:25b6:10de:157e"] {
            assert_eq!(text.parse::<PciId>().unwrap().to_string(), text);
        }
        for text in ["", "10de", "10de:25b6:10de", "10DE:25b", "10de:25b6:+0de:157e", "a:b"] {
            assert!(text.parse::<PciId>().is_err(), "{text:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn addresses_round_trip(root in "[0-9A-F]{1,4}", hops in proptest::collection::vec("[0-9A-F]{4}", 1..8)) {
            let text = format!("PCIROOT({root}){}", hops.iter().map(|h| format!("#PCI({h})")).collect::<String>());
            prop_assert_eq!(text.parse::<DeviceAddress>().unwrap().to_string(), text);
        }

        #[test]
        fn bus_addresses_round_trip(domain: u16, bus: u8, device in 0_u8..32, function in 0_u8..8) {
            let address = BusAddress { domain, bus, device, function };
            prop_assert_eq!(address.to_string().parse::<BusAddress>().unwrap(), address);
        }

        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = text.parse::<DeviceAddress>();
            let _ = text.parse::<PciId>();
        }
    }
}
