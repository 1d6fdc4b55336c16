//! The ledger's content as bytes: protobuf, so that it can grow fields. What the wire can say is said as on the wire.
//!
//! A field is never given another meaning or number; a form that old agents must not read gets a new format version.

use super::State;
use berth_agent_core::ledger::Ledger;
use berth_agent_core::memory::{Memory, Taken};
use berth_agent_core::observed::{CheckpointKind, Checkpoints, StopAction, VmMemory, VmSettings};
use berth_model::gpu::Survey;
use berth_model::history::Forced;
use berth_model::install::Install;
use berth_model::pci::DeviceAddress;
use berth_model::{PlacementUid, VmId};
use berth_proto::v1;
use prost::Message as _;

#[derive(Clone, PartialEq, prost::Message)]
struct LedgerRecord {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(message, optional, tag = "2")]
    desired: Option<v1::DesiredNode>,
    #[prost(message, repeated, tag = "3")]
    original: Vec<VmRecord>,
    #[prost(message, repeated, tag = "4")]
    known: Vec<CardRecord>,
    #[prost(message, repeated, tag = "5")]
    forced: Vec<ForcedRecord>,
    #[prost(string, repeated, tag = "6")]
    left: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    installs: Vec<InstallRecord>,
    #[prost(message, repeated, tag = "8")]
    taken: Vec<TakenRecord>,
    #[prost(message, repeated, tag = "9")]
    roles: Vec<RoleRecord>,
}

/// What a card was on the host before it was taken from it.
#[derive(Clone, PartialEq, prost::Message)]
struct TakenRecord {
    #[prost(string, tag = "1")]
    gpu: String,
    #[prost(string, tag = "2")]
    by: String,
    #[prost(string, repeated, tag = "3")]
    disabled: Vec<String>,
}

/// The clustered role of one placement's VM.
#[derive(Clone, PartialEq, prost::Message)]
struct RoleRecord {
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(message, optional, tag = "2")]
    role: Option<v1::ClusterRole>,
}

/// The driver-install command that was begun for one placement.
#[derive(Clone, PartialEq, prost::Message)]
struct InstallRecord {
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(message, optional, tag = "2")]
    install: Option<v1::Install>,
}

/// What was done by force for one placement.
#[derive(Clone, PartialEq, prost::Message)]
struct ForcedRecord {
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(message, repeated, tag = "2")]
    forced: Vec<v1::Forced>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct VmRecord {
    #[prost(string, tag = "1")]
    vm: String,
    #[prost(enumeration = "StopActionRecord", tag = "2")]
    stop_action: i32,
    #[prost(bool, tag = "3")]
    guest_cache_types: bool,
    #[prost(uint64, tag = "4")]
    mmio_low_bytes: u64,
    #[prost(uint64, tag = "5")]
    mmio_high_bytes: u64,
    #[prost(bool, tag = "6")]
    static_memory: bool,
    #[prost(bool, tag = "7")]
    checkpoints: bool,
    /// Bounds of dynamic memory; absent in what older agents wrote, as what follows.
    #[prost(uint64, optional, tag = "8")]
    memory_minimum_bytes: Option<u64>,
    #[prost(uint64, optional, tag = "9")]
    memory_maximum_bytes: Option<u64>,
    #[prost(enumeration = "CheckpointRecord", tag = "10")]
    checkpoint_kind: i32,
    #[prost(bool, tag = "11")]
    automatic_checkpoints: bool,
    /// The placement that the VM was last prepared for.
    #[prost(string, optional, tag = "12")]
    prepared_for: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CardRecord {
    #[prost(string, tag = "1")]
    address: String,
    #[prost(message, optional, tag = "2")]
    survey: Option<v1::Survey>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum StopActionRecord {
    Unspecified = 0,
    TurnOff = 1,
    Save = 2,
    ShutDown = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum CheckpointRecord {
    Unspecified = 0,
    Disabled = 1,
    Production = 2,
    ProductionOnly = 3,
    Standard = 4,
}

/// The bytes of a state.
pub(super) fn write(state: &State) -> Vec<u8> {
    let State {
        ledger: Ledger { term, desired },
        memory: Memory { original, prepared_for, known, forced, left, installs, taken, roles },
    } = state;
    let record = LedgerRecord {
        term: *term,
        desired: desired.as_ref().map(Into::into),
        original: original
            .iter()
            .map(|(vm, settings)| VmRecord {
                prepared_for: prepared_for.get(vm).map(ToString::to_string),
                ..write_settings(vm, settings)
            })
            .collect(),
        known: known
            .iter()
            .map(|(address, survey)| CardRecord { address: address.to_string(), survey: Some(survey.into()) })
            .collect(),
        forced: forced
            .iter()
            .map(|(uid, forced)| ForcedRecord { uid: uid.to_string(), forced: forced.iter().map(Into::into).collect() })
            .collect(),
        left: left.iter().map(ToString::to_string).collect(),
        installs: installs
            .iter()
            .map(|(uid, install)| InstallRecord { uid: uid.to_string(), install: Some(install.into()) })
            .collect(),
        taken: taken
            .iter()
            .map(|(gpu, Taken { by, disabled })| TakenRecord {
                gpu: gpu.to_string(),
                by: by.to_string(),
                disabled: disabled.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        roles: roles.iter().map(|(uid, role)| RoleRecord { uid: uid.to_string(), role: Some(role.into()) }).collect(),
    };
    record.encode_to_vec()
}

fn write_settings(vm: &VmId, settings: &VmSettings) -> VmRecord {
    let VmSettings { stop_action, guest_cache_types, mmio_low_bytes, mmio_high_bytes, memory, checkpoints } = settings;
    let bounds = match memory {
        VmMemory::Static => None,
        VmMemory::Dynamic { minimum_bytes, maximum_bytes } => Some((*minimum_bytes, *maximum_bytes)),
    };
    let checkpoint_kind = match checkpoints.kind {
        CheckpointKind::Disabled => CheckpointRecord::Disabled,
        CheckpointKind::Production => CheckpointRecord::Production,
        CheckpointKind::ProductionOnly => CheckpointRecord::ProductionOnly,
        CheckpointKind::Standard => CheckpointRecord::Standard,
    };
    let stop_action = match stop_action {
        StopAction::TurnOff => StopActionRecord::TurnOff,
        StopAction::Save => StopActionRecord::Save,
        StopAction::ShutDown => StopActionRecord::ShutDown,
    };
    VmRecord {
        vm: vm.to_string(),
        stop_action: stop_action.into(),
        guest_cache_types: *guest_cache_types,
        mmio_low_bytes: *mmio_low_bytes,
        mmio_high_bytes: *mmio_high_bytes,
        static_memory: bounds.is_none(),
        checkpoints: checkpoints.kind != CheckpointKind::Disabled,
        memory_minimum_bytes: bounds.map(|(least, _)| least),
        memory_maximum_bytes: bounds.map(|(_, most)| most),
        checkpoint_kind: checkpoint_kind.into(),
        automatic_checkpoints: checkpoints.automatic,
        prepared_for: None,
    }
}

/// The state of some bytes, or what is wrong with them.
pub(super) fn read(bytes: &[u8]) -> Result<State, String> {
    let LedgerRecord { term, desired, original, known, forced, left, installs, taken, roles } =
        LedgerRecord::decode(bytes).map_err(|error| error.to_string())?;
    let desired = desired.map(TryInto::try_into).transpose().map_err(|error| format!("desired state: {error}"))?;
    let mut memory = Memory::default();
    for record in original {
        let prepared_for = record.prepared_for.clone();
        let (vm, settings) = read_settings(record)?;
        if let Some(uid) = prepared_for {
            let uid = uid.parse().map_err(|error| format!("VM {vm}: prepared for: {error}"))?;
            memory.prepared_for.insert(vm.clone(), uid);
        }
        memory.original.insert(vm, settings);
    }
    for CardRecord { address, survey } in known {
        let at: DeviceAddress = address.parse().map_err(|error| format!("card: {error}"))?;
        let survey = survey.ok_or_else(|| format!("card {address}: survey is missing"))?;
        let survey: Survey = survey.try_into().map_err(|error| format!("card {address}: {error}"))?;
        memory.known.insert(at, survey);
    }
    for ForcedRecord { uid, forced } in forced {
        let of: PlacementUid = uid.parse().map_err(|error| format!("forced: {error}"))?;
        for use_of_force in forced {
            let read: Forced = use_of_force.try_into().map_err(|error| format!("forced for {uid}: {error}"))?;
            memory.forced.entry(of.clone()).or_default().insert(read);
        }
    }
    for address in left {
        memory.left.insert(address.parse().map_err(|error| format!("left: {error}"))?);
    }
    for InstallRecord { uid, install } in installs {
        let of: PlacementUid = uid.parse().map_err(|error| format!("install: {error}"))?;
        let install = install.ok_or_else(|| format!("install for {uid} is missing"))?;
        let read: Install = install.try_into().map_err(|error| format!("install for {uid}: {error}"))?;
        memory.installs.insert(of, read);
    }
    for TakenRecord { gpu, by, disabled } in taken {
        let at: DeviceAddress = gpu.parse().map_err(|error| format!("taken: {error}"))?;
        let by = by.parse().map_err(|error| format!("taken {gpu}: {error}"))?;
        let disabled = disabled.iter().map(|address| address.parse()).collect::<Result<_, _>>();
        let disabled = disabled.map_err(|error| format!("taken {gpu}: {error}"))?;
        memory.taken.insert(at, Taken { by, disabled });
    }
    for RoleRecord { uid, role } in roles {
        let of: PlacementUid = uid.parse().map_err(|error| format!("role: {error}"))?;
        let role = role.ok_or_else(|| format!("role for {uid} is missing"))?;
        memory.roles.insert(of, role.try_into().map_err(|error| format!("role for {uid}: {error}"))?);
    }
    Ok(State { ledger: Ledger { term, desired }, memory })
}

fn read_settings(record: VmRecord) -> Result<(VmId, VmSettings), String> {
    let stop_action = match record.stop_action() {
        StopActionRecord::TurnOff => StopAction::TurnOff,
        StopActionRecord::Save => StopAction::Save,
        StopActionRecord::ShutDown => StopAction::ShutDown,
        StopActionRecord::Unspecified => return Err(format!("VM {}: stop action is missing", record.vm)),
    };
    let kind = match (record.checkpoint_kind(), record.checkpoints) {
        (CheckpointRecord::Disabled, _) | (CheckpointRecord::Unspecified, false) => CheckpointKind::Disabled,
        (CheckpointRecord::Production, _) => CheckpointKind::Production,
        (CheckpointRecord::ProductionOnly, _) => CheckpointKind::ProductionOnly,
        (CheckpointRecord::Standard, _) => CheckpointKind::Standard,
        (CheckpointRecord::Unspecified, true) => Checkpoints::PRODUCTION.kind,
    };
    let VmRecord {
        vm,
        stop_action: _,
        guest_cache_types,
        mmio_low_bytes,
        mmio_high_bytes,
        static_memory,
        checkpoints: _,
        memory_minimum_bytes,
        memory_maximum_bytes,
        checkpoint_kind: _,
        automatic_checkpoints,
        prepared_for: _,
    } = record;
    let memory = match (static_memory, memory_minimum_bytes, memory_maximum_bytes) {
        (true, _, _) => VmMemory::Static,
        (false, Some(minimum_bytes), Some(maximum_bytes)) => VmMemory::Dynamic { minimum_bytes, maximum_bytes },
        (false, None, None) => VmMemory::DYNAMIC,
        (false, Some(_), None) | (false, None, Some(_)) => {
            return Err(format!("VM {vm}: one bound of its memory is missing"));
        }
    };
    let vm = VmId::new(vm).map_err(|error| error.to_string())?;
    let checkpoints = Checkpoints { kind, automatic: automatic_checkpoints };
    let settings = VmSettings { stop_action, guest_cache_types, mmio_low_bytes, mmio_high_bytes, memory, checkpoints };
    Ok((vm, settings))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use berth_model::desired::{DesiredGpu, DesiredNode, DesiredPlacement, Intent};
    use berth_model::gpu::{Fingerprint, MmioSize, SerialNumber, Verdict};
    use berth_model::history::ClusterRole;
    use berth_model::install::{InstallEnd, InstallOutput};
    use berth_model::placement::StepKind;
    use berth_model::request::{ReturnTo, VerifyLevel};
    use berth_model::{ModelName, PlacementName};

    const ADDRESS: &str = "PCIROOT(20)#PCI(0300)#PCI(0000)";

    fn fingerprint() -> Fingerprint {
        Fingerprint { id: "10de:25b6:10de:157e".parse().unwrap(), serial: Some(SerialNumber::new("S1").unwrap()) }
    }

    pub(in crate::ledger) fn desired(term: u64, generation: u64) -> DesiredNode {
        let placement = DesiredPlacement {
            uid: PlacementUid::new("00000000-0000-0000-0000-000000000001").unwrap(),
            name: PlacementName::new("render").unwrap(),
            vm: VmId::new("8fce3318-aa0f-4de3-8664-278533573cd2").unwrap(),
            gpus: vec![DesiredGpu {
                address: ADDRESS.parse().unwrap(),
                fingerprint: fingerprint(),
                mmio: MmioSize { low_bytes: 1 << 24, high_bytes: 1 << 35 },
            }],
            intent: Intent::Attached,
            allow_standalone: true,
            verify: VerifyLevel::Visible,
            return_to: ReturnTo::Pool,
            install_driver: "nvidia".parse().ok(),
            trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().ok(),
        };
        DesiredNode { term, generation, fleet: None, placements: vec![placement] }
    }

    #[test]
    fn a_state_round_trips_with_everything_in_it() {
        let mut memory = Memory::default();
        let rows = [
            (StopAction::TurnOff, CheckpointKind::Disabled),
            (StopAction::Save, CheckpointKind::Production),
            (StopAction::ShutDown, CheckpointKind::ProductionOnly),
            (StopAction::Save, CheckpointKind::Standard),
        ];
        for (at, (stop_action, kind)) in rows.into_iter().enumerate() {
            let vm = VmId::new(format!("8fce3318-aa0f-4de3-8664-27853357300{at}")).unwrap();
            let settings = VmSettings {
                stop_action,
                guest_cache_types: at == 0,
                mmio_low_bytes: 3,
                mmio_high_bytes: u64::MAX,
                memory: if at == 1 {
                    VmMemory::Static
                } else {
                    VmMemory::Dynamic { minimum_bytes: 1 << 30, maximum_bytes: 64 << 30 }
                },
                checkpoints: Checkpoints { kind, automatic: at == 2 },
            };
            if at < 2 {
                let uid = PlacementUid::new("00000000-0000-0000-0000-000000000001").unwrap();
                memory.prepared_for.insert(vm.clone(), uid);
            }
            memory.original.insert(vm, settings);
        }
        let survey = Survey {
            model: ModelName::new("A2").unwrap(),
            fingerprint: fingerprint(),
            vram_bytes: Some(1 << 34),
            mmio: MmioSize::default(),
            numa_node: Some(0),
            companions: vec!["PCIROOT(20)#PCI(0300)#PCI(0001)".parse().unwrap()],
            verdict: Verdict::Assignable,
        };
        memory.known.insert(ADDRESS.parse().unwrap(), survey);
        memory.left.insert(ADDRESS.parse().unwrap());
        let forced = Forced { step: StepKind::Dismount, device: ADDRESS.parse().unwrap() };
        let uid = PlacementUid::new("00000000-0000-0000-0000-000000000001").unwrap();
        memory.forced.entry(uid.clone()).or_default().insert(forced);
        let output = InstallOutput::of(b"unpacking\n\x1bno headers");
        let install = Install { command: "nvidia".parse().unwrap(), end: InstallEnd::Exited(1), output };
        memory.installs.insert(uid.clone(), install);
        let disabled = ["PCIROOT(20)#PCI(0300)#PCI(0001)".parse().unwrap()].into();
        memory.taken.insert(ADDRESS.parse().unwrap(), Taken { by: uid.clone(), disabled });
        let role = ClusterRole {
            name: "R\u{f6}le 7".parse().unwrap(),
            owner: Some("NODE1".parse().unwrap()),
            priority: Some(0),
        };
        memory.roles.insert(uid, role);
        let state = State { ledger: Ledger { term: 9, desired: Some(desired(8, 3)) }, memory };
        assert_eq!(read(&write(&state)), Ok(state));
        assert_eq!(read(&write(&State::default())), Ok(State::default()));
    }

    /// Written by an agent that knew neither bounds nor kinds, byte by byte as protobuf has it.
    #[test]
    fn a_ledger_of_an_older_agent_is_read_as_it_was_meant() {
        let settings = |static_memory: u8, checkpoints: u8| {
            let mut vm = vec![0x0a, 36];
            vm.extend(b"8fce3318-aa0f-4de3-8664-278533573cd2");
            vm.extend([0x10, 2, 0x30, static_memory, 0x38, checkpoints]);
            let mut bytes = vec![0x1a, u8::try_from(vm.len()).unwrap()];
            bytes.extend(vm);
            let state = read(&bytes).unwrap();
            state.memory.original.into_values().next().unwrap()
        };
        let fresh = settings(0, 1);
        assert_eq!((fresh.memory, fresh.checkpoints), (VmMemory::DYNAMIC, Checkpoints::PRODUCTION));
        let set = settings(1, 0);
        assert_eq!((set.memory, set.checkpoints), (VmMemory::Static, Checkpoints::NONE));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let bad = |record: LedgerRecord| read(&record.encode_to_vec()).unwrap_err();
        let vm = || {
            write_settings(
                &VmId::new("8fce3318-aa0f-4de3-8664-278533573cd2").unwrap(),
                &VmSettings {
                    stop_action: StopAction::Save,
                    guest_cache_types: true,
                    mmio_low_bytes: 0,
                    mmio_high_bytes: 0,
                    memory: VmMemory::DYNAMIC,
                    checkpoints: Checkpoints::PRODUCTION,
                },
            )
        };
        let record = |vm| LedgerRecord { original: vec![vm], ..LedgerRecord::default() };
        assert!(bad(record(VmRecord { stop_action: 0, ..vm() })).contains("stop action is missing"));
        assert!(bad(record(VmRecord { stop_action: 77, ..vm() })).contains("stop action is missing"));
        assert!(bad(record(VmRecord { vm: "x".into(), ..vm() })).contains("VM id"));
        assert!(bad(record(VmRecord { memory_minimum_bytes: None, ..vm() })).contains("one bound of its memory"));
        let card = CardRecord { address: ADDRESS.into(), survey: None };
        assert!(bad(LedgerRecord { known: vec![card], ..LedgerRecord::default() }).contains("survey is missing"));
        let mut desired = v1::DesiredNode::from(&desired(1, 1));
        desired.placements[0].vm_id = "no".into();
        assert!(
            bad(LedgerRecord { desired: Some(desired), ..LedgerRecord::default() }).contains("placements[0].vm_id")
        );
    }
}
