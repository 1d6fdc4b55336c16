//! Times, durations, GPUs, VMs and hosts.

use super::{At, FromWire, Invalid, cut, enumeration, read, readable, text};
use crate::v1;
use berth_model::gpu::{
    Finding, Fingerprint, GpuHealth, GpuState, HostDriver, MmioSize, ObservedGpu, QuarantineReason, SerialNumber,
    Survey, Verdict,
};
use berth_model::inventory::MAX_GPUS_PER_NODE;
use berth_model::node::{HostFacts, MAX_NOTE_BYTES, MAX_NOTES, Platform};
use berth_model::request::Resources;
use berth_model::vm::{ObservedVm, VmDevice, VmState};
use berth_model::{Timestamp, VmId};
use std::time::Duration;

/// Most other functions of one card. A PCI device has 8 functions; boards with a switch have a few devices.
const MAX_COMPANIONS: usize = 32;
/// Most devices in one VM's configuration: all GPUs of a node, each with three companions.
const MAX_VM_DEVICES: usize = 4 * MAX_GPUS_PER_NODE;
const NANOS_PER_MILLI: i32 = 1_000_000;

/// A moment on the wire.
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let millis = time.as_millis();
    prost_types::Timestamp {
        // u64::MAX / 1000 and 999 × 1,000,000 fit; the fall-backs are never reached.
        seconds: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(millis % 1000).unwrap_or_default() * NANOS_PER_MILLI,
    }
}

/// A duration on the wire. Longer ones than 292 billion years are cut.
pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

/// Reads a duration: whole milliseconds, not negative.
///
/// # Errors
/// What is wrong with it.
pub fn read_duration(wire: prost_types::Duration) -> Result<Duration, Invalid> {
    read(|at| Duration::read(wire, at))
}

/// Reads a moment: whole milliseconds, not before 1970.
///
/// # Errors
/// What is wrong with it.
pub fn read_timestamp(wire: prost_types::Timestamp) -> Result<Timestamp, Invalid> {
    read(|at| Timestamp::read(wire, at))
}

impl FromWire<prost_types::Timestamp> for Timestamp {
    fn read(wire: prost_types::Timestamp, at: At<'_>) -> Option<Self> {
        let prost_types::Timestamp { seconds, nanos } = wire;
        let Ok(seconds) = u64::try_from(seconds) else { return at.refuse("lies before 1970") };
        let millis = whole_millis(nanos, at)?;
        match seconds.checked_mul(1000).and_then(|s| s.checked_add(millis)) {
            Some(millis) => Some(Self::from_millis(millis)),
            None => at.refuse("lies too far in the future"),
        }
    }
}

impl FromWire<prost_types::Duration> for Duration {
    fn read(wire: prost_types::Duration, at: At<'_>) -> Option<Self> {
        let prost_types::Duration { seconds, nanos } = wire;
        if seconds < 0 || nanos < 0 {
            return at.refuse("is negative");
        }
        let millis = whole_millis(nanos, at)?;
        Some(Self::from_secs(u64::try_from(seconds).unwrap_or_default()) + Self::from_millis(millis))
    }
}

/// Nanoseconds as whole milliseconds below one second.
fn whole_millis(nanos: i32, at: At<'_>) -> Option<u64> {
    if !(0..1_000_000_000).contains(&nanos) {
        return at.refuse(format_args!("{nanos} nanoseconds are not from 0 to 999,999,999"));
    }
    if nanos % NANOS_PER_MILLI != 0 {
        return at.refuse("has parts of a millisecond; give whole milliseconds");
    }
    u64::try_from(nanos / NANOS_PER_MILLI).ok()
}

enumeration!(HostDriver, HostDriver, Bound, None, Disabled);
enumeration!(
    Finding,
    Finding,
    ReservedMemory,
    NoAcs,
    LineInterruptsOnly,
    FirmwareKeepsPcie,
    NoIommu,
    HostEdition,
    BootDisplay,
    NotAssignableKind
);
enumeration!(VmState, VmState, Running, Off, Saved, Paused, Changing, Unknown);
enumeration!(Platform, Platform, HyperV, Vfio, Simulated);
readable!(
    v1::Fingerprint => Fingerprint,
    v1::MmioSize => MmioSize,
    v1::Survey => Survey,
    v1::Quarantine => QuarantineReason,
    v1::ObservedGpu => ObservedGpu,
    v1::ObservedVm => ObservedVm,
    v1::HostFacts => HostFacts,
    v1::Resources => Resources,
);

impl From<&Fingerprint> for v1::Fingerprint {
    fn from(model: &Fingerprint) -> Self {
        let Fingerprint { id, serial } = model;
        Self { pci_id: id.to_string(), serial: serial.as_ref().map(ToString::to_string).unwrap_or_default() }
    }
}

impl FromWire<v1::Fingerprint> for Fingerprint {
    fn read(wire: v1::Fingerprint, at: At<'_>) -> Option<Self> {
        let v1::Fingerprint { pci_id, serial } = wire;
        let id = at.field("pci_id").parse(&pci_id);
        let serial = match serial.as_str() {
            "" => Some(None),
            text => match SerialNumber::new(text) {
                Ok(serial) => Some(Some(serial)),
                Err(problem) => at.field("serial").refuse(problem),
            },
        };
        Some(Self { id: id?, serial: serial? })
    }
}

impl From<&MmioSize> for v1::MmioSize {
    fn from(model: &MmioSize) -> Self {
        let MmioSize { low_bytes, high_bytes } = *model;
        Self { low_bytes, high_bytes }
    }
}

impl FromWire<v1::MmioSize> for MmioSize {
    fn read(wire: v1::MmioSize, _: At<'_>) -> Option<Self> {
        let v1::MmioSize { low_bytes, high_bytes } = wire;
        Some(Self { low_bytes, high_bytes })
    }
}

impl From<&Survey> for v1::Survey {
    fn from(model: &Survey) -> Self {
        let Survey { model, fingerprint, vram_bytes, mmio, numa_node, companions, verdict } = model;
        let (verdict, findings) = match verdict {
            Verdict::Assignable => (v1::Verdict::Assignable, Vec::new()),
            Verdict::Blocked(findings) => {
                (v1::Verdict::Blocked, findings.iter().map(|f| v1::Finding::from(*f).into()).collect())
            }
            Verdict::NotMeasured => (v1::Verdict::NotMeasured, Vec::new()),
        };
        Self {
            model: model.to_string(),
            fingerprint: Some(fingerprint.into()),
            vram_bytes: vram_bytes.unwrap_or_default(),
            mmio: Some(mmio.into()),
            numa_node: numa_node.map(u32::from),
            companions: companions.iter().map(ToString::to_string).collect(),
            verdict: verdict.into(),
            findings,
        }
    }
}

impl FromWire<v1::Survey> for Survey {
    fn read(wire: v1::Survey, at: At<'_>) -> Option<Self> {
        let v1::Survey { model, fingerprint, vram_bytes, mmio, numa_node, companions, verdict, findings } = wire;
        let model = at.field("model").parse(&model);
        let fingerprint = at.field("fingerprint").message(fingerprint);
        let mmio = at.field("mmio").message(mmio);
        let numa_node = match numa_node.map(u16::try_from).transpose() {
            Ok(node) => Some(node),
            Err(_) => at.field("numa_node").refuse("is above 65,535"),
        };
        let companions = at.field("companions").list(companions, MAX_COMPANIONS, |text, at| at.parse(&text));
        let verdict = read_verdict(verdict, findings, at);
        Some(Self {
            model: model?,
            fingerprint: fingerprint?,
            vram_bytes: (vram_bytes > 0).then_some(vram_bytes),
            mmio: mmio?,
            numa_node: numa_node?,
            companions: companions?,
            verdict: verdict?,
        })
    }
}

fn read_verdict(verdict: i32, findings: Vec<i32>, at: At<'_>) -> Option<Verdict> {
    let without = |verdict| {
        at.field("findings").absent(findings.is_empty(), "go with VERDICT_BLOCKED only")?;
        Some(verdict)
    };
    match v1::Verdict::try_from(verdict) {
        Ok(v1::Verdict::Assignable) => without(Verdict::Assignable),
        Ok(v1::Verdict::NotMeasured) => without(Verdict::NotMeasured),
        Ok(v1::Verdict::Blocked) if findings.is_empty() => {
            at.field("findings").refuse("are missing: VERDICT_BLOCKED goes with all its reasons")
        }
        Ok(v1::Verdict::Blocked) => at.field("findings").messages(findings, Finding::ALL.len()).map(Verdict::Blocked),
        Ok(v1::Verdict::Unspecified) => at.field("verdict").refuse("is missing"),
        Err(_) => at.field("verdict").refuse(format_args!("{verdict} is no Verdict")),
    }
}

impl From<&QuarantineReason> for v1::Quarantine {
    fn from(model: &QuarantineReason) -> Self {
        use v1::quarantine::Reason;
        Self {
            reason: Some(match model {
                QuarantineReason::WrongCard { expected, found } => {
                    Reason::WrongCard(v1::WrongCard { expected: Some(expected.into()), found: Some(found.into()) })
                }
                QuarantineReason::NotCleanAfterRelease { seen } => Reason::NotCleanAfterRelease(text(seen)),
                QuarantineReason::Operator { reason } => Reason::Operator(text(reason)),
                QuarantineReason::NativePool { pool } => Reason::NativePool(text(pool)),
            }),
        }
    }
}

impl FromWire<v1::Quarantine> for QuarantineReason {
    fn read(wire: v1::Quarantine, at: At<'_>) -> Option<Self> {
        use v1::quarantine::Reason;
        match at.field("reason").required(wire.reason)? {
            Reason::WrongCard(v1::WrongCard { expected, found }) => {
                let card = at.field("wrong_card");
                let expected = card.field("expected").message(expected);
                let found = card.field("found").message(found);
                Some(Self::WrongCard { expected: expected?, found: found? })
            }
            Reason::NotCleanAfterRelease(seen) => {
                Some(Self::NotCleanAfterRelease { seen: at.field("not_clean_after_release").text(seen)? })
            }
            Reason::Operator(reason) => Some(Self::Operator { reason: at.field("operator").text(reason)? }),
            Reason::NativePool(pool) => Some(Self::NativePool { pool: at.field("native_pool").text(pool)? }),
        }
    }
}

impl From<&GpuState> for v1::GpuState {
    fn from(model: &GpuState) -> Self {
        match model {
            GpuState::Host { .. } => Self::Host,
            GpuState::Pooled => Self::Pooled,
            GpuState::Attached { .. } => Self::Attached,
            GpuState::Stale { .. } => Self::Stale,
            GpuState::Missing => Self::Missing,
            GpuState::Unknown => Self::Unknown,
        }
    }
}

impl From<&ObservedGpu> for v1::ObservedGpu {
    fn from(model: &ObservedGpu) -> Self {
        let ObservedGpu { address, survey, state, health, problem } = model;
        let driver = match state {
            GpuState::Host { driver } => v1::HostDriver::from(driver.clone()),
            GpuState::Pooled
            | GpuState::Attached { .. }
            | GpuState::Stale { .. }
            | GpuState::Missing
            | GpuState::Unknown => v1::HostDriver::Unspecified,
        };
        let (health, quarantine) = match health {
            GpuHealth::Ok => (v1::GpuHealth::Ok, None),
            GpuHealth::Quarantined(reason) => (v1::GpuHealth::Quarantined, Some(reason.into())),
            GpuHealth::NeedsHostReboot => (v1::GpuHealth::NeedsHostReboot, None),
        };
        Self {
            address: address.to_string(),
            survey: Some(survey.into()),
            state: v1::GpuState::from(state).into(),
            driver: driver.into(),
            vm_id: state.vm().map(ToString::to_string).unwrap_or_default(),
            health: health.into(),
            quarantine,
            problem: *problem,
        }
    }
}

impl FromWire<v1::ObservedGpu> for ObservedGpu {
    fn read(wire: v1::ObservedGpu, at: At<'_>) -> Option<Self> {
        let v1::ObservedGpu { address, survey, state, driver, vm_id, health, quarantine, problem } = wire;
        let address = at.field("address").parse(&address);
        let survey = at.field("survey").message(survey);
        let state = read_state(state, driver, &vm_id, at);
        let health = read_health(health, quarantine, at);
        Some(Self { address: address?, survey: survey?, state: state?, health: health?, problem })
    }
}

fn read_state(state: i32, driver: i32, vm_id: &str, at: At<'_>) -> Option<GpuState> {
    let no_driver = || at.field("driver").absent(driver == 0, "goes with GPU_STATE_HOST only");
    let no_vm = || at.field("vm_id").absent(vm_id.is_empty(), "goes with GPU_STATE_ATTACHED and GPU_STATE_STALE only");
    let alone = |state| {
        let (driver, vm) = (no_driver(), no_vm());
        driver.and(vm).map(|()| state)
    };
    let vm = || {
        let (driver, vm) = (no_driver(), at.field("vm_id").parse::<VmId>(vm_id));
        driver.and(vm)
    };
    match v1::GpuState::try_from(state) {
        Ok(v1::GpuState::Host) => {
            let (driver, vm) = (at.field("driver").value(driver), no_vm());
            vm.and(driver).map(|driver| GpuState::Host { driver })
        }
        Ok(v1::GpuState::Pooled) => alone(GpuState::Pooled),
        Ok(v1::GpuState::Attached) => vm().map(|vm| GpuState::Attached { vm }),
        Ok(v1::GpuState::Stale) => vm().map(|vm| GpuState::Stale { vm }),
        Ok(v1::GpuState::Missing) => alone(GpuState::Missing),
        Ok(v1::GpuState::Unknown) => alone(GpuState::Unknown),
        Ok(v1::GpuState::Unspecified) => at.field("state").refuse("is missing"),
        Err(_) => at.field("state").refuse(format_args!("{state} is no GpuState")),
    }
}

fn read_health(health: i32, quarantine: Option<v1::Quarantine>, at: At<'_>) -> Option<GpuHealth> {
    let why = at.field("quarantine");
    let alone = |health| {
        why.absent(quarantine.is_none(), "goes with GPU_HEALTH_QUARANTINED only")?;
        Some(health)
    };
    match v1::GpuHealth::try_from(health) {
        Ok(v1::GpuHealth::Ok) => alone(GpuHealth::Ok),
        Ok(v1::GpuHealth::NeedsHostReboot) => alone(GpuHealth::NeedsHostReboot),
        Ok(v1::GpuHealth::Quarantined) => why.message(quarantine).map(GpuHealth::Quarantined),
        Ok(v1::GpuHealth::Unspecified) => at.field("health").refuse("is missing"),
        Err(_) => at.field("health").refuse(format_args!("{health} is no GpuHealth")),
    }
}

impl From<&ObservedVm> for v1::ObservedVm {
    fn from(model: &ObservedVm) -> Self {
        let ObservedVm { id, name, state, clustered, devices } = model;
        let device = |device: &VmDevice| v1::VmDevice {
            address: device.address().map(ToString::to_string).unwrap_or_default(),
            pool: match device {
                VmDevice::Pool { pool, .. } => text(pool),
                VmDevice::At(_) | VmDevice::Stale => String::new(),
            },
        };
        Self {
            id: id.to_string(),
            name: name.to_string(),
            state: v1::VmState::from(*state).into(),
            clustered: *clustered,
            devices: devices.iter().map(device).collect(),
        }
    }
}

impl FromWire<v1::ObservedVm> for ObservedVm {
    fn read(wire: v1::ObservedVm, at: At<'_>) -> Option<Self> {
        let v1::ObservedVm { id, name, state, clustered, devices } = wire;
        let id = at.field("id").parse(&id);
        let name = at.field("name").parse(&name);
        let state = at.field("state").value(state);
        let devices = at.field("devices").list(devices, MAX_VM_DEVICES, |device, at| {
            let v1::VmDevice { address, pool } = device;
            let address = at.field("address").optional(&address)?;
            Some(match (address, at.field("pool").text(pool)?) {
                (address, pool) if !pool.is_empty() => VmDevice::Pool { pool, address },
                (Some(address), _) => VmDevice::At(address),
                (None, _) => VmDevice::Stale,
            })
        });
        Some(Self { id: id?, name: name?, state: state?, clustered, devices: devices? })
    }
}

impl From<&HostFacts> for v1::HostFacts {
    fn from(model: &HostFacts) -> Self {
        let HostFacts { platform, system, cluster, cpu_milli, memory_bytes, mmio_high_cap_bytes, notes } = model;
        Self {
            platform: v1::Platform::from(*platform).into(),
            system: text(system),
            cluster: cluster.as_ref().map(ToString::to_string).unwrap_or_default(),
            cpu_milli: *cpu_milli,
            memory_bytes: *memory_bytes,
            mmio_high_cap_bytes: *mmio_high_cap_bytes,
            notes: notes.iter().take(MAX_NOTES).map(|note| cut(note, MAX_NOTE_BYTES)).collect(),
        }
    }
}

impl FromWire<v1::HostFacts> for HostFacts {
    fn read(wire: v1::HostFacts, at: At<'_>) -> Option<Self> {
        let v1::HostFacts { platform, system, cluster, cpu_milli, memory_bytes, mmio_high_cap_bytes, notes } = wire;
        let platform = at.field("platform").value(platform);
        let system = at.field("system").text(system);
        let cluster = at.field("cluster").optional(&cluster);
        let notes = at.field("notes").list(notes, MAX_NOTES, |note, at| at.text(note));
        Some(Self {
            platform: platform?,
            system: system?,
            cluster: cluster?,
            cpu_milli,
            memory_bytes,
            mmio_high_cap_bytes,
            notes: notes?,
        })
    }
}

impl From<&Resources> for v1::Resources {
    fn from(model: &Resources) -> Self {
        let Resources { cpu_milli, memory_bytes } = *model;
        Self { cpu_milli, memory_bytes }
    }
}

impl FromWire<v1::Resources> for Resources {
    fn read(wire: v1::Resources, _: At<'_>) -> Option<Self> {
        let v1::Resources { cpu_milli, memory_bytes } = wire;
        Some(Self { cpu_milli, memory_bytes })
    }
}
