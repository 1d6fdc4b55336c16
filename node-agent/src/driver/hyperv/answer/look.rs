//! One complete look, as the script tells it.

use super::{IgnoredAnyValue, MAX_DEVICES, parsed, parsed_option};
use berth_agent_core::observed::{CheckpointKind, Checkpoints, StopAction, VmMemory, VmSettings};
use berth_model::history::ClusterRole;
use berth_model::node::BootId;
use berth_model::pci::{LocationPath, PciId};
use berth_model::vm::VmState;
use berth_model::{VmId, VmName};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// What a look showed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawLook")]
pub(in crate::driver::hyperv) struct Look {
    pub(in crate::driver::hyperv) boot: BootId,
    /// Functions that the host has, on cards with a GPU.
    pub(in crate::driver::hyperv) functions: BTreeMap<LocationPath, Function>,
    /// Devices that are present and do not say where.
    pub(in crate::driver::hyperv) unreadable: Vec<InstanceId>,
    /// Functions that were taken from it, in VMs or not.
    pub(in crate::driver::hyperv) pool: BTreeMap<LocationPath, Pooled>,
    pub(in crate::driver::hyperv) vms: Vec<Vm>,
}

/// A function that the host has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::driver::hyperv) struct Function {
    #[serde(deserialize_with = "parsed")]
    location_path: LocationPath,
    #[serde(deserialize_with = "parsed")]
    pub(in crate::driver::hyperv) instance_id: InstanceId,
    #[serde(deserialize_with = "super::nullable")]
    pub(in crate::driver::hyperv) base_class: Option<u8>,
    #[serde(deserialize_with = "super::nullable")]
    sub_class: Option<u8>,
    /// Windows' problem code: 0 none, 22 disabled.
    #[serde(deserialize_with = "super::nullable")]
    pub(in crate::driver::hyperv) problem: Option<u32>,
    #[serde(deserialize_with = "super::nullable")]
    status: Option<IgnoredAnyValue>,
    #[serde(deserialize_with = "super::nullable")]
    name: Option<IgnoredAnyValue>,
    #[serde(deserialize_with = "super::nullable")]
    class: Option<IgnoredAnyValue>,
    /// The driver's service, if a driver runs it.
    #[serde(deserialize_with = "super::nullable")]
    pub(in crate::driver::hyperv) service: Option<String>,
    #[serde(deserialize_with = "super::nullable")]
    manufacturer: Option<IgnoredAnyValue>,
}

/// A function in the pool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::driver::hyperv) struct Pooled {
    #[serde(deserialize_with = "parsed_option")]
    location_path: Option<LocationPath>,
    #[serde(deserialize_with = "parsed")]
    pub(in crate::driver::hyperv) instance_id: InstanceId,
    /// Not known on every build.
    #[serde(deserialize_with = "super::nullable")]
    pub(in crate::driver::hyperv) base_class: Option<u8>,
    /// A pool below the host's root pool that has it, which a cluster hands out by itself. Not told on every build.
    #[serde(deserialize_with = "made")]
    pub(in crate::driver::hyperv) native_pool: Option<String>,
}

fn made<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Option::<String>::deserialize(from).map(made_pool)
}

/// A device's identity in Windows, without its enumerator, which changes from `PCI` to `PCIP` when it is dismounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::driver::hyperv) struct InstanceId {
    rest: String,
    /// What the device says it is.
    pub(in crate::driver::hyperv) pci: PciId,
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PCI\\{}", self.rest)
    }
}

impl FromStr for InstanceId {
    type Err = String;
    /// `PCI\VEN_10DE&DEV_25B6&SUBSYS_157E10DE&REV_A1\…`; the subsystem is device first, then vendor.
    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let rest = text.strip_prefix("PCI\\").or_else(|| text.strip_prefix("PCIP\\"))?;
            let (ids, tail) = rest.split_once('\\')?;
            let legal = text.len() <= 400 && !tail.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
            let hex = |text: &str| {
                let upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
                (text.len() == 4 && text.bytes().all(upper)).then(|| u16::from_str_radix(text, 16).ok()).flatten()
            };
            let part = |name: &str| ids.split('&').find_map(|part| part.strip_prefix(name));
            let subsystem = match part("SUBSYS_") {
                Some(text) => Some((hex(text.get(4..)?)?, hex(text.get(..4)?)?)),
                None => None,
            };
            let pci = PciId { vendor: hex(part("VEN_")?)?, device: hex(part("DEV_")?)?, subsystem };
            legal.then(|| Self { rest: rest.to_owned(), pci })
        };
        read()
            .ok_or_else(|| format!("{:?} is no instance id of a PCI device", text.chars().take(80).collect::<String>()))
    }
}

/// A VM with what it lists.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawVm")]
pub(in crate::driver::hyperv) struct Vm {
    pub(in crate::driver::hyperv) id: VmId,
    pub(in crate::driver::hyperv) name: VmName,
    pub(in crate::driver::hyperv) state: VmState,
    pub(in crate::driver::hyperv) clustered: bool,
    pub(in crate::driver::hyperv) settings: VmSettings,
    /// Records of the devices it lists.
    pub(in crate::driver::hyperv) devices: Vec<Listed>,
    /// Its clustered role, where it is told. One with a name that none can have is none.
    pub(in crate::driver::hyperv) role: Option<ClusterRole>,
    /// Checkpoints that hold a saved state, or do not say that they do not.
    pub(in crate::driver::hyperv) saved_checkpoints: u32,
    /// How long it has run.
    pub(in crate::driver::hyperv) uptime_seconds: Option<u64>,
}

/// A record of a device in a VM's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::driver::hyperv) struct Listed {
    /// Where the device is; none when it is gone, or when a cluster has not chosen one yet.
    pub(in crate::driver::hyperv) path: Option<LocationPath>,
    /// The cluster's own pool that it comes from; none for a device of the host's root pool.
    pub(in crate::driver::hyperv) pool: Option<String>,
}

/// The host's root pool: every device that can be assigned is in it. Any other pool somebody made, for a cluster to choose
/// from by itself.
const ROOT_POOL: &str = "Primordial";

/// A pool that is not the host's own root.
fn made_pool(name: Option<String>) -> Option<String> {
    name.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(ROOT_POOL))
        .map(|name| name.chars().filter(|c| !c.is_control()).take(MAX_POOL).collect())
}

/// Longest part of a pool's name that is kept: it is shown, never used.
const MAX_POOL: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLook {
    boot_time: String,
    functions: Vec<Function>,
    unreadable: Vec<String>,
    pool: Vec<Pooled>,
    vms: Vec<Vm>,
}

impl TryFrom<RawLook> for Look {
    type Error = String;
    fn try_from(raw: RawLook) -> Result<Self, String> {
        if [raw.functions.len(), raw.unreadable.len(), raw.pool.len()].iter().any(|count| *count > MAX_DEVICES) {
            return Err(format!("more than {MAX_DEVICES} devices"));
        }
        let mut look = Self {
            boot: boot(&raw.boot_time)?,
            functions: BTreeMap::new(),
            // What has no id of a card has none of a GPU.
            unreadable: raw.unreadable.iter().filter_map(|id| id.parse().ok()).collect(),
            pool: BTreeMap::new(),
            vms: raw.vms,
        };
        for function in raw.functions {
            let path = function.location_path.clone();
            if look.functions.insert(path.clone(), function).is_some() {
                return Err(format!("{} is listed twice among the host's", path.as_str()));
            }
        }
        for pooled in raw.pool {
            // Without a place nothing can be done with it, nor concluded.
            let Some(path) = pooled.location_path.clone() else { continue };
            if look.pool.insert(path.clone(), pooled).is_some() {
                return Err(format!("{} is listed twice in the pool", path.as_str()));
            }
        }
        let mut ids = BTreeSet::new();
        match look.vms.iter().find(|vm| !ids.insert(&vm.id)) {
            Some(twice) => Err(format!("VM {} is listed twice", twice.id)),
            None => Ok(look),
        }
    }
}

/// The moment the host's system started tells one run from the next: `2026-11-24T06:12:03Z`, nothing else.
pub(super) fn boot(text: &str) -> Result<BootId, String> {
    let number = |from: usize, to: usize| -> Option<u32> {
        let digits = text.get(from..to)?;
        if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
    };
    let marks = [(4, '-'), (7, '-'), (10, 'T'), (13, ':'), (16, ':'), (19, 'Z')];
    let legal = text.len() == 20
        && text.is_ascii()
        && marks.iter().all(|(at, mark)| text.chars().nth(*at) == Some(*mark))
        && [(0, 4, 1970, 9999), (5, 7, 1, 12), (8, 10, 1, 31), (11, 13, 0, 23), (14, 16, 0, 59), (17, 19, 0, 60)]
            .iter()
            .all(|(from, to, least, most)| number(*from, *to).is_some_and(|n| (*least..=*most).contains(&n)));
    if !legal {
        return Err(format!("{:?} is no time of a start", text.chars().take(40).collect::<String>()));
    }
    BootId::new(text).map_err(|error| error.to_string())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "every field is there and is looked at, or the answer is none")]
struct RawVm {
    #[serde(deserialize_with = "parsed")]
    id: VmId,
    #[serde(deserialize_with = "super::nullable")]
    name: Option<String>,
    #[serde(deserialize_with = "super::nullable")]
    state: Option<String>,
    #[serde(deserialize_with = "super::nullable")]
    generation: Option<u64>,
    clustered: bool,
    #[serde(deserialize_with = "super::nullable")]
    role: Option<RawRole>,
    #[serde(deserialize_with = "super::nullable")]
    replication_mode: Option<String>,
    #[serde(deserialize_with = "super::nullable")]
    start_action: Option<String>,
    settings: RawSettings,
    #[serde(deserialize_with = "super::nullable")]
    memory_startup_bytes: Option<u64>,
    #[serde(deserialize_with = "super::nullable")]
    processors: Option<u64>,
    checkpoints: u64,
    saved_checkpoints: u32,
    #[serde(deserialize_with = "super::nullable")]
    heartbeat: Option<String>,
    #[serde(deserialize_with = "super::nullable")]
    uptime_seconds: Option<i64>,
    #[serde(deserialize_with = "super::nullable")]
    version: Option<String>,
    devices: Vec<RawRecord>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRole {
    #[serde(deserialize_with = "super::nullable")]
    name: Option<String>,
    #[serde(deserialize_with = "super::nullable")]
    owner: Option<String>,
    /// Of any size: what no priority can be is none.
    #[serde(deserialize_with = "super::nullable")]
    priority: Option<serde_json::Number>,
}

fn role(RawRole { name, owner, priority }: RawRole) -> Option<ClusterRole> {
    Some(ClusterRole {
        name: name?.parse().ok()?,
        owner: owner.and_then(|owner| owner.parse().ok()),
        priority: priority.and_then(|number| u32::try_from(number.as_u64()?).ok()),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecord {
    #[serde(deserialize_with = "parsed_option")]
    location_path: Option<LocationPath>,
    #[serde(deserialize_with = "super::nullable")]
    instance_id: Option<String>,
    #[serde(deserialize_with = "super::nullable")]
    pool: Option<String>,
}

impl TryFrom<RawVm> for Vm {
    type Error = String;
    fn try_from(raw: RawVm) -> Result<Self, String> {
        let id = raw.id;
        if id.as_str().bytes().all(|b| matches!(b, b'0' | b'-')) {
            return Err("a VM has the id zero".to_owned());
        }
        // What a person called it must not keep Berth from seeing what it has.
        let name = raw.name.and_then(|name| VmName::new(name).ok());
        let name = name.map_or_else(|| VmName::new(id.as_str()), Ok).map_err(|error| error.to_string())?;
        let mut devices = Vec::new();
        for record in raw.devices {
            let RawRecord { location_path: path, instance_id, pool } = record;
            let pool = made_pool(pool);
            if path.is_none() && instance_id.is_some() && pool.is_none() {
                return Err(format!("VM {id} lists a device without a place"));
            }
            devices.push(Listed { path, pool });
        }
        Ok(Self {
            name,
            state: raw.state.as_deref().map_or(VmState::Unknown, state),
            clustered: raw.clustered,
            settings: settings(raw.settings).map_err(|why| format!("VM {id}: {why}"))?,
            devices,
            role: raw.role.and_then(role),
            saved_checkpoints: raw.saved_checkpoints,
            uptime_seconds: raw.uptime_seconds.and_then(|seconds| u64::try_from(seconds).ok()),
            id,
        })
    }
}

/// Hyper-V's words for what a VM does. A critical one has lost its storage: what it really does nobody knows.
fn state(word: &str) -> VmState {
    match word {
        "Running" => VmState::Running,
        "Off" => VmState::Off,
        "Saved" | "FastSaved" => VmState::Saved,
        "Paused" => VmState::Paused,
        "Starting" | "Stopping" | "Saving" | "FastSaving" | "Pausing" | "Resuming" | "Reset" => VmState::Changing,
        _ => VmState::Unknown,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSettings {
    stop_action: String,
    guest_cache_types: bool,
    mmio_low_bytes: u64,
    mmio_high_bytes: u64,
    dynamic_memory: bool,
    #[serde(deserialize_with = "super::nullable")]
    memory_minimum_bytes: Option<u64>,
    #[serde(deserialize_with = "super::nullable")]
    memory_maximum_bytes: Option<u64>,
    checkpoint_type: String,
    /// Null on builds that know none.
    #[serde(deserialize_with = "super::nullable")]
    automatic_checkpoints: Option<bool>,
}

fn settings(raw: RawSettings) -> Result<VmSettings, String> {
    let stop_action = match raw.stop_action.as_str() {
        "TurnOff" => StopAction::TurnOff,
        "Save" => StopAction::Save,
        "ShutDown" => StopAction::ShutDown,
        other => return Err(format!("{other:?} is no stop action")),
    };
    let kind = match raw.checkpoint_type.as_str() {
        "Disabled" => CheckpointKind::Disabled,
        "Production" => CheckpointKind::Production,
        "ProductionOnly" => CheckpointKind::ProductionOnly,
        "Standard" => CheckpointKind::Standard,
        other => return Err(format!("{other:?} is no type of checkpoints")),
    };
    let memory = match (raw.dynamic_memory, raw.memory_minimum_bytes, raw.memory_maximum_bytes) {
        (false, _, _) => VmMemory::Static,
        (true, Some(minimum_bytes), Some(maximum_bytes)) => VmMemory::Dynamic { minimum_bytes, maximum_bytes },
        (true, _, _) => return Err("dynamic memory without its bounds".to_owned()),
    };
    Ok(VmSettings {
        stop_action,
        guest_cache_types: raw.guest_cache_types,
        mmio_low_bytes: raw.mmio_low_bytes,
        mmio_high_bytes: raw.mmio_high_bytes,
        memory,
        checkpoints: Checkpoints { kind, automatic: raw.automatic_checkpoints.unwrap_or(false) },
    })
}
