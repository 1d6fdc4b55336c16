//! What a guest says of itself, as the script passes it on.

use super::{IgnoredAnyValue, MAX_DEVICES};
use serde::Deserialize;

/// Most addresses of one guest: a VM has at most a dozen adapters, with some addresses each.
const MAX_ADDRESSES: usize = 256;

/// What a Windows guest says it has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawLook")]
pub(in crate::driver::hyperv) struct GuestLook {
    pub(in crate::driver::hyperv) devices: Vec<GuestDevice>,
}

/// One PCI device in a guest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::driver::hyperv) struct GuestDevice {
    /// A guest says what it likes; what is no instance id is no device of ours.
    #[serde(deserialize_with = "super::nullable")]
    pub(in crate::driver::hyperv) instance_id: Option<String>,
    #[serde(deserialize_with = "super::nullable")]
    name: Option<IgnoredAnyValue>,
    #[serde(deserialize_with = "super::nullable")]
    status: Option<IgnoredAnyValue>,
    #[serde(deserialize_with = "super::nullable")]
    pub(in crate::driver::hyperv) problem: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLook {
    devices: Vec<GuestDevice>,
}

impl TryFrom<RawLook> for GuestLook {
    type Error = String;
    fn try_from(RawLook { devices }: RawLook) -> Result<Self, String> {
        if devices.len() > MAX_DEVICES { Err(format!("more than {MAX_DEVICES} devices")) } else { Ok(Self { devices }) }
    }
}

/// What became of a command in a Windows guest that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::driver::hyperv) struct GuestInstall {
    /// Whether it ended while it was listened to.
    pub(in crate::driver::hyperv) ended: bool,
    /// With which code, if the guest told one.
    #[serde(deserialize_with = "super::nullable")]
    pub(in crate::driver::hyperv) code: Option<i32>,
    /// Whether its time ran out.
    pub(in crate::driver::hyperv) late: bool,
    /// The last of what it said.
    pub(in crate::driver::hyperv) said: String,
}

/// Where a guest says it can be reached. What is no address is left to whoever dials.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawAddresses")]
pub(in crate::driver::hyperv) struct GuestAddresses {
    pub(in crate::driver::hyperv) addresses: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAddresses {
    addresses: Vec<String>,
}

impl TryFrom<RawAddresses> for GuestAddresses {
    type Error = String;
    fn try_from(RawAddresses { addresses }: RawAddresses) -> Result<Self, String> {
        if addresses.len() > MAX_ADDRESSES {
            return Err(format!("more than {MAX_ADDRESSES} addresses"));
        }
        Ok(Self { addresses })
    }
}
