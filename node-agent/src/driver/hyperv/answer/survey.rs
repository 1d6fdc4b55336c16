//! Measured facts of a host and its devices, as the script tells them.

use super::look::{InstanceId, boot};
use super::{MAX_DEVICES, parsed};
use berth_model::gpu::{Finding, SerialNumber};
use berth_model::id::ClusterName;
use berth_model::pci::LocationPath;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What a survey found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawSurvey")]
pub(in crate::driver::hyperv) struct Survey {
    /// `None` where it could not be found out.
    pub(in crate::driver::hyperv) host: Option<HostWords>,
    /// Those that could be found out.
    pub(in crate::driver::hyperv) devices: BTreeMap<LocationPath, Device>,
    /// What could not be found out and why, for people.
    pub(in crate::driver::hyperv) unknown: Vec<String>,
}

/// What the host says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::driver::hyperv) struct HostWords {
    pub(in crate::driver::hyperv) system: String,
    pub(in crate::driver::hyperv) version: String,
    pub(in crate::driver::hyperv) cluster: Option<ClusterName>,
    pub(in crate::driver::hyperv) logical_processors: u64,
    pub(in crate::driver::hyperv) memory_bytes: u64,
    /// Why none of its devices can be assigned.
    pub(in crate::driver::hyperv) reasons: Vec<Finding>,
    /// What it says about missing I/O virtualisation, in its language.
    pub(in crate::driver::hyperv) iov_texts: Vec<String>,
    /// Group policy about assigned devices.
    pub(in crate::driver::hyperv) policy: Policy,
}

/// Group policy about assigned devices: 1 demands, 0 does not, `None` where it is not set or cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::driver::hyperv) struct Policy {
    #[serde(deserialize_with = "super::nullable")]
    pub(in crate::driver::hyperv) require_secure: Option<u64>,
    #[serde(deserialize_with = "super::nullable")]
    pub(in crate::driver::hyperv) require_supported: Option<u64>,
}

/// What was measured of one function that the host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::driver::hyperv) struct Device {
    pub(in crate::driver::hyperv) instance_id: InstanceId,
    /// Start and length of its memory windows; `None` where it was disabled and could not be measured.
    pub(in crate::driver::hyperv) windows: Option<Vec<(u64, u64)>>,
    /// How many interrupts it has; `None` where it was disabled and could not be measured.
    pub(in crate::driver::hyperv) interrupts: Option<usize>,
    /// Bit mask: 1 line, 2 and 4 messages.
    pub(in crate::driver::hyperv) interrupt_support: Option<u64>,
    /// Counts of its windows, a byte a kind; the highest are those of 64 bits.
    pub(in crate::driver::hyperv) bar_types: Option<u32>,
    pub(in crate::driver::hyperv) numa_node: Option<u16>,
    pub(in crate::driver::hyperv) serial: Option<SerialNumber>,
    pub(in crate::driver::hyperv) reasons: Vec<Finding>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSurvey {
    #[serde(deserialize_with = "super::nullable")]
    host: Option<RawHost>,
    devices: Vec<RawDevice>,
    unknown: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHost {
    #[serde(rename = "computer")]
    #[serde(deserialize_with = "super::nullable")]
    _computer: Option<String>,
    #[serde(deserialize_with = "super::nullable")]
    system: Option<String>,
    #[serde(deserialize_with = "super::nullable")]
    version: Option<String>,
    boot_time: String,
    logical_processors: u64,
    memory_bytes: u64,
    #[serde(rename = "iov_support")]
    #[serde(deserialize_with = "super::nullable")]
    _iov_support: Option<bool>,
    iov_support_reasons: Vec<String>,
    #[serde(deserialize_with = "super::nullable")]
    cluster: Option<String>,
    policy: Policy,
    reasons: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "every field is there and is looked at, or the answer is none")]
struct RawDevice {
    #[serde(deserialize_with = "parsed")]
    location_path: LocationPath,
    #[serde(deserialize_with = "parsed")]
    instance_id: InstanceId,
    #[serde(deserialize_with = "super::number")]
    base_class: Option<u8>,
    #[serde(deserialize_with = "super::number")]
    sub_class: Option<u8>,
    #[serde(deserialize_with = "super::number")]
    problem: Option<u32>,
    #[serde(deserialize_with = "super::nullable")]
    name: Option<String>,
    measured: bool,
    #[serde(deserialize_with = "super::nullable")]
    windows: Option<Vec<RawWindow>>,
    #[serde(deserialize_with = "super::nullable")]
    interrupts: Option<Vec<i64>>,
    #[serde(deserialize_with = "super::number")]
    device_type: Option<u64>,
    #[serde(deserialize_with = "super::number")]
    bar_types: Option<u32>,
    #[serde(deserialize_with = "super::number")]
    interrupt_support: Option<u64>,
    #[serde(deserialize_with = "super::number")]
    interrupt_messages: Option<u64>,
    #[serde(deserialize_with = "super::number")]
    acs: Option<u64>,
    #[serde(deserialize_with = "super::nullable")]
    reserved_memory: Option<bool>,
    #[serde(deserialize_with = "super::nullable")]
    on_post_path: Option<bool>,
    #[serde(deserialize_with = "super::number")]
    numa_node: Option<u64>,
    #[serde(deserialize_with = "super::nullable")]
    serial: Option<String>,
    reasons: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWindow {
    start: u64,
    length: u64,
}

fn findings(words: &[String]) -> Result<Vec<Finding>, String> {
    let known = |word: &String| {
        let finding = Finding::ALL.into_iter().find(|finding| finding.name() == word);
        finding.ok_or_else(|| format!("{word:?} is no reason that is known"))
    };
    words.iter().map(known).collect()
}

/// Most things that one survey can fail to find out: its two halves.
const MAX_UNKNOWN: usize = 2;

impl TryFrom<RawSurvey> for Survey {
    type Error = String;
    fn try_from(RawSurvey { host, devices, unknown }: RawSurvey) -> Result<Self, String> {
        if devices.len() > MAX_DEVICES {
            return Err(format!("more than {MAX_DEVICES} devices"));
        }
        if unknown.len() > MAX_UNKNOWN || (host.is_none() && unknown.is_empty()) {
            return Err("what is not known does not fit what is said of it".to_owned());
        }
        let host = host.map(words).transpose()?;
        let mut survey = Self { host, devices: BTreeMap::new(), unknown };
        for raw in devices {
            let path = raw.location_path.clone();
            let device = device(raw).map_err(|why| format!("{}: {why}", path.as_str()))?;
            if survey.devices.insert(path.clone(), device).is_some() {
                return Err(format!("{} is listed twice", path.as_str()));
            }
        }
        Ok(survey)
    }
}

fn words(host: RawHost) -> Result<HostWords, String> {
    boot(&host.boot_time)?;
    Ok(HostWords {
        system: host.system.unwrap_or_else(|| "Windows".to_owned()),
        version: host.version.unwrap_or_default(),
        cluster: host.cluster.map(|name| ClusterName::new(name).map_err(|error| error.to_string())).transpose()?,
        logical_processors: host.logical_processors,
        memory_bytes: host.memory_bytes,
        reasons: findings(&host.reasons)?,
        iov_texts: host.iov_support_reasons,
        policy: host.policy,
    })
}

fn device(raw: RawDevice) -> Result<Device, String> {
    let windows = match (raw.measured, raw.windows) {
        (true, Some(windows)) => {
            let windows: Vec<_> = windows.into_iter().map(|window| (window.start, window.length)).collect();
            let sum = windows.iter().try_fold(0_u64, |sum, (_, length)| sum.checked_add(*length));
            if sum.is_none() || windows.iter().any(|(start, length)| start.checked_add(*length).is_none()) {
                return Err("windows beyond all address space".to_owned());
            }
            Some(windows)
        }
        (false, None) => None,
        (true, None) => return Err("measured, and no windows".to_owned()),
        (false, Some(_)) => return Err("not measured, and windows all the same".to_owned()),
    };
    Ok(Device {
        instance_id: raw.instance_id,
        interrupts: raw.interrupts.filter(|_| windows.is_some()).map(|interrupts| interrupts.len()),
        windows,
        interrupt_support: raw.interrupt_support,
        bar_types: raw.bar_types,
        // Windows says "none" as the largest number, and a serial that nobody can read is none.
        numa_node: raw.numa_node.and_then(|node| u16::try_from(node).ok()),
        serial: raw.serial.and_then(|text| SerialNumber::new(text).ok()),
        reasons: findings(&raw.reasons)?,
    })
}
