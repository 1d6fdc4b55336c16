//! From what the script shows to what the brain knows: which functions are GPUs, what goes with them, where they are.
//!
//! Pure. Must never take for a GPU what is nobody's to give away, and never call free or gone what only does not show.

use super::answer::{Device, Function, InstanceId, Listed, Look, Pooled, Vm};
use berth_agent_core::cards;
use berth_agent_core::guest::GuestView;
use berth_agent_core::observed::{HostView, VmView};
use berth_model::ModelName;
use berth_model::VmId;
use berth_model::gpu::{
    Finding, Fingerprint, GpuHealth, GpuState, HostDriver, MmioSize, ObservedGpu, QuarantineReason, Survey, Verdict,
};
use berth_model::node::BootId;
use berth_model::pci::{CardKey, DeviceAddress, LocationPath, PciId};
use berth_model::vm::{ObservedVm, VmDevice, VmState};
use std::collections::{BTreeMap, BTreeSet};

const MIB: u64 = 1 << 20;
const GIB_4: u64 = 4 << 30;

/// PCI classes: display controllers and processing accelerators.
const GPU_CLASSES: [u8; 2] = [0x03, 0x12];
/// What a card may have beside its GPU and the script moves: display, sound, serial bus, accelerator.
const MOVABLE_CLASSES: [u8; 4] = [0x03, 0x04, 0x0c, 0x12];
const BRIDGE: u8 = 0x06;

/// Windows' problem codes.
const DISABLED: u32 = 22;
const NEEDS_RESTART: u32 = 14;

/// Whether a function with this id is never offered, whatever its class: a display that is the server's own or only
/// seems to be one, and what ties GPUs together rather than being one. A management controller's display is of the same
/// class as a graphics card's, so ids alone tell it.
///
/// Sources: `pci.ids` of 2023-04-10, as in Debian's package of that name: 1a03:2000 "ASPEED Graphics Family"; 102b:0522
/// "MGA G200e [Pilot]", 0530 "G200EV", 0532 "G200eW WPCM450", 0533 "G200EH" (iLO), 0534 "G200eR2", 0536 "Integrated
/// Matrox G200eW3", 0538 "G200eH3" (iLO5); 19e5:1711 "Hi171x Series [iBMC ... w/VGA support]"; 10de:1af1 "GA100 [A100
/// NVSwitch]". 10de:22a3, an NVSwitch that this edition lacks, from captured `lspci` of such machines. 1414: Microsoft,
/// the hypervisor's own devices.
fn is_nobodys(id: &PciId) -> bool {
    matches!(
        (id.vendor, id.device),
        (0x1414, _)
            | (0x1a03, 0x2000)
            | (0x102b, 0x0522 | 0x0530 | 0x0532 | 0x0533 | 0x0534 | 0x0536 | 0x0538)
            | (0x19e5, 0x1711)
            | (0x10de, 0x1af1 | 0x22a3)
    )
}

/// Vendors whose functions number 0 are GPUs where the class is not told: a pool does not tell it on every build, and a
/// device that Windows is rearranging may not.
const GPU_VENDORS: [u16; 2] = [0x10de, 0x1002];

/// What was measured so far, by place. It holds for the device that was there then.
pub(super) type Measured = BTreeMap<LocationPath, Device>;
/// What guests showed when they were last asked, with how long they had run.
pub(super) type Guests = BTreeMap<VmId, (Option<u64>, GuestView)>;

/// One function, wherever it is.
struct Part<'a> {
    host: Option<&'a Function>,
    pool: Option<&'a Pooled>,
    /// Present, and it does not say where: by its id, the device that was measured here.
    lost: Option<&'a InstanceId>,
}

impl Part<'_> {
    fn instance(&self) -> Option<&InstanceId> {
        self.host.map(|f| &f.instance_id).or(self.pool.map(|p| &p.instance_id)).or(self.lost)
    }

    fn class(&self) -> Option<u8> {
        self.host.and_then(|f| f.base_class).or(self.pool.and_then(|p| p.base_class))
    }

    fn is_gpu(&self, path: &LocationPath) -> bool {
        let Some(id) = self.instance().map(|instance| instance.pci) else { return false };
        if is_nobodys(&id) {
            return false;
        }
        match self.class() {
            Some(class) => GPU_CLASSES.contains(&class),
            None => {
                let first = path.as_str().ends_with("00)") && GPU_VENDORS.contains(&id.vendor);
                first || cards::by_id(&id).is_some()
            }
        }
    }
}

/// Whether a survey is needed to know what this look shows: something that can be measured was not, or another device is
/// where one was.
///
/// A survey tells of cards of which the host has a display or accelerator function; of what else a look shows (the sound
/// function of a card whose GPU is in the pool) it would say nothing, however often it is asked.
pub(super) fn needs_survey(look: &Look, measured: &Measured) -> bool {
    let card = |path: &LocationPath| DeviceAddress::Location(path.clone()).card();
    let told: BTreeSet<_> = (look.functions.iter())
        .filter(|(_, function)| function.base_class.is_some_and(|class| GPU_CLASSES.contains(&class)))
        .map(|(path, _)| card(path))
        .collect();
    look.functions.iter().filter(|(path, _)| told.contains(&card(path))).any(|(path, function)| {
        let enabled = function.problem.is_some_and(|problem| problem != DISABLED);
        let known = measured.get(path).filter(|device| device.instance_id == function.instance_id);
        // Without a driver, or without room, a GPU has no windows; once it works it does.
        let gpu = function.base_class.is_some_and(|class| GPU_CLASSES.contains(&class));
        let works = function.problem == Some(0) && gpu && !is_nobodys(&function.instance_id.pci);
        known.is_none_or(|device| enabled && (device.windows.is_none() || (works && !has_windows(device))))
    })
}

/// Whether windows were measured that a VM needs. A device without a driver or without room has none, which says nothing
/// of its size: Windows' problem codes 12 and 29 mean that it got no resources, and no source says that a device without
/// a driver (28) gets any. Windows below 1 MiB are legacy ones.
fn has_windows(device: &Device) -> bool {
    device.windows.iter().flatten().any(|(start, _)| *start >= MIB)
}

/// Takes in a survey. What was measured stays when the same device cannot be measured any more.
pub(super) fn measure(measured: &mut Measured, survey: BTreeMap<LocationPath, Device>) {
    for (path, device) in survey {
        let better = measured
            .get(&path)
            .is_none_or(|known| known.instance_id != device.instance_id || has_windows(&device) || !has_windows(known));
        if better {
            measured.insert(path, device);
        }
    }
}

/// Where a device was when it was measured.
fn place<'a>(instance: &InstanceId, measured: &'a Measured) -> Option<&'a LocationPath> {
    measured.iter().find(|(_, device)| device.instance_id == *instance).map(|(path, _)| path)
}

/// A device that may be a GPU, is present, and neither says where it is nor was seen anywhere before. What a look shows
/// beside it is not all: whoever believed it would take a card that is there for gone.
pub(super) fn nowhere<'a>(look: &'a Look, measured: &Measured) -> Option<&'a InstanceId> {
    let may_be = |id: &PciId| !is_nobodys(id) && (GPU_VENDORS.contains(&id.vendor) || cards::by_id(id).is_some());
    look.unreadable.iter().find(|id| may_be(&id.pci) && place(id, measured).is_none())
}

/// What holds for all devices of a host.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Host<'a> {
    /// Findings against all of them.
    pub(super) reasons: &'a [Finding],
    /// Findings, of any device, that the node's policy accepts.
    pub(super) accepted: &'a [Finding],
}

/// Joins a look with what was measured and asked before.
pub(super) fn view(look: &Look, boot: &BootId, host: &Host<'_>, measured: &Measured, guests: &Guests) -> HostView {
    let mut parts: BTreeMap<&LocationPath, Part<'_>> = BTreeMap::new();
    for (path, function) in &look.functions {
        parts.insert(path, Part { host: Some(function), pool: None, lost: None });
    }
    for (path, pooled) in &look.pool {
        parts.entry(path).or_insert(Part { host: None, pool: None, lost: None }).pool = Some(pooled);
    }
    for (path, instance) in look.unreadable.iter().filter_map(|id| Some((place(id, measured)?, id))) {
        parts.entry(path).or_insert(Part { host: None, pool: None, lost: Some(instance) });
    }
    let mut by_card: BTreeMap<CardKey, Vec<(&LocationPath, &Part<'_>)>> = BTreeMap::new();
    for (path, part) in &parts {
        by_card.entry(DeviceAddress::Location((*path).clone()).card()).or_default().push((path, part));
    }
    let mut seen = HostView {
        boot: boot.clone(),
        gpus: BTreeMap::new(),
        companions: BTreeMap::new(),
        vms: look.vms.iter().map(|vm| (vm.id.clone(), vm_view(vm, guests))).collect(),
        unseen: BTreeSet::new(),
    };
    for functions in by_card.values() {
        // Functions of a card come in the order of their numbers: the first that is a GPU is the card's GPU.
        let Some((path, part)) = functions.iter().find(|(path, part)| part.is_gpu(path)) else { continue };
        let Some(instance) = part.instance() else { continue };
        let others: Vec<_> =
            functions.iter().filter(|(other, part)| other != path && part.class() != Some(BRIDGE)).collect();
        for (other, part) in &others {
            seen.companions.insert(DeviceAddress::Location((*other).clone()), state(other, part, &look.vms));
        }
        let device = |path: &LocationPath, part: &Part<'_>| {
            measured.get(path).filter(|device| part.instance() == Some(&device.instance_id))
        };
        let own = device(path, part);
        let beside: Option<Vec<&Device>> = others.iter().map(|(path, part)| device(path, part)).collect();
        let card = cards::by_id(&instance.pci);
        let windows = own.filter(|own| has_windows(own));
        let mmio = match (windows, card) {
            (Some(own), _) => windows_of(own, beside.iter().flatten().copied()),
            (None, Some(card)) => card.mmio(),
            (None, None) => MmioSize::default(),
        };
        // All else was surveyed, and the size stands in the table.
        let surveyed = windows.or(own.filter(|own| own.windows.is_some() && card.is_some()));
        let verdict = match (surveyed, &beside) {
            // No interrupts, and not told which it could have: nobody can say that they are messages.
            (Some(own), _) if own.interrupts == Some(0) && own.interrupt_support.is_none() => Verdict::NotMeasured,
            (Some(own), Some(beside)) => {
                let odd = others.iter().any(|(_, p)| p.class().is_some_and(|class| !MOVABLE_CLASSES.contains(&class)));
                verdict(host, own, beside, odd)
            }
            (None, _) | (_, None) => Verdict::NotMeasured,
        };
        // A function that was measured on this card in this boot is on it, although just now it shows nowhere: between
        // host and pool it does not.
        let here = DeviceAddress::Location((*path).clone()).card();
        let mut companions: BTreeSet<_> =
            others.iter().map(|(path, _)| DeviceAddress::Location((*path).clone())).collect();
        let hidden = measured.keys().filter(|known| !parts.contains_key(known));
        companions.extend(hidden.cloned().map(DeviceAddress::Location).filter(|known| known.card() == here));
        let survey = Survey {
            model: card.and_then(|card| card.model.parse().ok()).unwrap_or_else(|| unknown_model(&instance.pci)),
            fingerprint: Fingerprint { id: instance.pci, serial: own.and_then(|own| own.serial.clone()) },
            vram_bytes: card.map(|card| card.vram_bytes),
            mmio,
            numa_node: own.and_then(|own| own.numa_node),
            companions: companions.into_iter().collect(),
            verdict,
        };
        let reboot = functions.iter().any(|(_, p)| p.host.is_some_and(|f| f.problem == Some(NEEDS_RESTART)));
        let address = DeviceAddress::Location((*path).clone());
        let gpu = ObservedGpu {
            address: address.clone(),
            survey,
            state: state(path, part, &look.vms),
            // What a cluster hands out is not Berth's, whatever else holds.
            health: match (pool_of(functions, &look.vms), reboot) {
                (Some(pool), _) => GpuHealth::Quarantined(QuarantineReason::NativePool { pool }),
                (None, true) => GpuHealth::NeedsHostReboot,
                (None, false) => GpuHealth::Ok,
            },
            problem: part.host.and_then(|function| function.problem),
        };
        seen.gpus.insert(address, gpu);
    }
    seen
}

/// A card that the table does not know is a model of its own: named by its id, never mixed with others.
fn unknown_model(id: &PciId) -> ModelName {
    let text = match id.subsystem {
        Some((vendor, device)) => format!("{:04x}-{:04x}-{vendor:04x}-{device:04x}", id.vendor, id.device),
        None => format!("{:04x}-{:04x}", id.vendor, id.device),
    };
    text.parse().unwrap_or_else(|_| unreachable!("digits, letters and dashes are a legal name"))
}

/// Address space of a whole card. Windows below 1 MiB are legacy ones that no VM needs. A window of 64 bits may lie below
/// 4 GiB, whether others lie above or not, and nobody can say which those are: what lies below counts for above as well,
/// unless the device has no window that can be of 64 bits. Prefetchable ones of 64 bits are counted by themselves; those
/// that are not prefetchable may be of either kind.
fn windows_of<'a>(own: &'a Device, beside: impl Iterator<Item = &'a Device>) -> MmioSize {
    let mut size = MmioSize::default();
    for device in std::iter::once(own).chain(beside) {
        let windows = || device.windows.iter().flatten().filter(|(start, _)| *start >= MIB);
        let sum = |above: bool| {
            let side = windows().filter(|(start, _)| (*start >= GIB_4) == above);
            side.fold(0_u64, |sum, (_, length)| sum.saturating_add(*length))
        };
        let (low, high) = (sum(false), sum(true));
        let wide = device.bar_types.is_none_or(|counts| counts & 0xff00_ff00 != 0);
        size.low_bytes = size.low_bytes.saturating_add(low);
        size.high_bytes = size.high_bytes.saturating_add(high.saturating_add(if wide { low } else { 0 }));
    }
    // Hyper-V keeps these in MiB.
    let up = |bytes: u64| bytes.checked_next_multiple_of(MIB).unwrap_or(bytes);
    MmioSize { low_bytes: up(size.low_bytes), high_bytes: up(size.high_bytes) }
}

fn verdict(host: &Host<'_>, own: &Device, beside: &[&Device], odd: bool) -> Verdict {
    let mut findings: BTreeSet<Finding> = host.reasons.iter().chain(&own.reasons).copied().collect();
    if own.interrupts == Some(0) && own.interrupt_support.is_some_and(|mask| mask & 6 == 0) {
        findings.insert(Finding::LineInterruptsOnly);
    }
    for device in beside {
        // What the host's driver for a sound function uses is not what the function can do.
        let messages = device.interrupt_support.is_some_and(|mask| mask & 6 != 0);
        findings.extend(device.reasons.iter().filter(|r| **r != Finding::LineInterruptsOnly || !messages));
    }
    if odd {
        findings.insert(Finding::NotAssignableKind);
    }
    // What cannot work cannot be accepted, whatever the settings say.
    findings.retain(|finding| !(finding.overridable() && host.accepted.contains(finding)));
    if findings.is_empty() { Verdict::Assignable } else { Verdict::Blocked(findings.into_iter().collect()) }
}

fn state(path: &LocationPath, part: &Part<'_>, vms: &[Vm]) -> GpuState {
    let lists = |vm: &&Vm| vm.devices.iter().any(|listed| listed.path.as_ref() == Some(path));
    if let Some(vm) = vms.iter().find(lists) {
        return GpuState::Attached { vm: vm.id.clone() };
    }
    match (part.host, part.pool) {
        (None, Some(_)) => GpuState::Pooled,
        // Half of what it is cannot be read.
        (Some(function), None) if function.base_class.is_none() => GpuState::Unknown,
        (Some(function), None) => match function.problem {
            Some(DISABLED) => GpuState::Host { driver: HostDriver::Disabled },
            Some(0) if function.service.is_some() => GpuState::Host { driver: HostDriver::Bound },
            Some(_) => GpuState::Host { driver: HostDriver::None },
            None => GpuState::Unknown,
        },
        // On its way from one to the other, or the two listings are of different moments.
        (Some(_), Some(_)) | (None, None) => GpuState::Unknown,
    }
}

/// The cluster's own pool that has a card: any function of it in such a pool, or in a VM that has it from one.
fn pool_of(functions: &[(&LocationPath, &Part<'_>)], vms: &[Vm]) -> Option<String> {
    let listed = |path: &LocationPath| {
        let devices = vms.iter().flat_map(|vm| &vm.devices);
        devices.filter(|listed| listed.path.as_ref() == Some(path)).find_map(|listed| listed.pool.clone())
    };
    let pooled = |part: &Part<'_>| part.pool.and_then(|pooled| pooled.native_pool.clone());
    functions.iter().find_map(|(path, part)| pooled(part).or_else(|| listed(path)))
}

fn vm_view(vm: &Vm, guests: &Guests) -> VmView {
    let device = |listed: &Listed| {
        let address = listed.path.clone().map(DeviceAddress::Location);
        match (&listed.pool, address) {
            (Some(pool), address) => VmDevice::Pool { pool: pool.clone(), address },
            (None, Some(address)) => VmDevice::At(address),
            (None, None) => VmDevice::Stale,
        }
    };
    // What it showed before it was last started is not what it shows now.
    let since = |asked: &Option<u64>| asked.zip(vm.uptime_seconds).is_some_and(|(asked, now)| now >= asked);
    let guest = guests.get(&vm.id).filter(|(asked, _)| vm.state == VmState::Running && since(asked));
    VmView {
        vm: ObservedVm {
            id: vm.id.clone(),
            name: vm.name.clone(),
            state: vm.state,
            clustered: vm.clustered,
            devices: vm.devices.iter().map(device).collect(),
        },
        settings: vm.settings.clone(),
        saved_checkpoints: vm.saved_checkpoints,
        role: vm.role.clone(),
        guest: guest.map(|(_, guest)| guest.clone()),
    }
}

#[cfg(test)]
mod tests;
