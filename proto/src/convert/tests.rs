//! Round trips of every type; below, hostile messages.

mod refusals;

use crate::{store, v1};
use berth_model::desired::{DesiredGpu, DesiredNode, DesiredPlacement, Intent};
use berth_model::gpu::{
    Finding, Fingerprint, GpuHealth, GpuState, HostDriver, MmioSize, ObservedGpu, QuarantineReason, SerialNumber,
    Survey, Verdict,
};
use berth_model::history::{Adoption, ClusterRole, Forced, Note, Noted};
use berth_model::install::{Install, InstallEnd, InstallOutput};
use berth_model::inventory::{Hello, InventoryReport, Listing, MAX_GPUS_PER_NODE, MAX_VMS_PER_NODE};
use berth_model::node::{BootId, Cordon, HostFacts, Platform};
use berth_model::placement::{
    AssignedGpu, Assignment, FailureReason, Phase, Pin, PinReason, Placement, Progress, ReleaseCause, StepError,
    StepErrorClass, StepKind, StepReport,
};
use berth_model::request::{Draft, Locality, PlacementRequest, Resources, ReturnTo, VerifyLevel};
use berth_model::vm::{ObservedVm, VmDevice, VmState};
use berth_model::{PlacementUid, Timestamp, VmId};
use expect_test::{Expect, expect};
use proptest::prelude::*;
use std::fmt::Debug;
use std::time::Duration;

const UID: &str = "8fce3318-aa0f-4de3-8664-278533573cd2";
const PATH: &str = "PCIROOT(20)#PCI(0300)#PCI(0000)";
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Model → wire → bytes → wire → model gives the same.
fn round_trip<M, W>(model: &M)
where
    M: TryFrom<W, Error = super::Invalid> + PartialEq + Debug,
    W: for<'a> From<&'a M> + prost::Message + Default,
{
    let bytes = W::from(model).encode_to_vec();
    let wire = W::decode(bytes.as_slice()).unwrap();
    assert_eq!(&M::try_from(wire).unwrap(), model);
}

/// The message is refused for exactly these reasons.
fn refuse<M: TryFrom<W, Error = super::Invalid> + Debug, W>(wire: W, why: Expect) {
    let errors = M::try_from(wire).unwrap_err();
    why.assert_eq(&errors.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
}

fn fingerprint(serial: Option<&str>) -> Fingerprint {
    Fingerprint { id: "10de:25b6:10de:157e".parse().unwrap(), serial: serial.map(|s| SerialNumber::new(s).unwrap()) }
}

fn survey() -> Survey {
    Survey {
        model: "A2".parse().unwrap(),
        fingerprint: fingerprint(Some("1324")),
        vram_bytes: Some(16 << 30),
        mmio: MmioSize { low_bytes: 16 << 20, high_bytes: 17 << 30 },
        numa_node: Some(1),
        companions: vec!["PCIROOT(20)#PCI(0300)#PCI(0001)".parse().unwrap()],
        verdict: Verdict::Assignable,
    }
}

fn gpu() -> ObservedGpu {
    ObservedGpu {
        address: PATH.parse().unwrap(),
        survey: survey(),
        state: GpuState::Host { driver: HostDriver::Bound },
        health: GpuHealth::Ok,
        problem: Some(28),
    }
}

fn vm() -> ObservedVm {
    ObservedVm {
        id: UID.parse().unwrap(),
        name: "render 07".parse().unwrap(),
        state: VmState::Off,
        clustered: true,
        devices: vec![
            VmDevice::At(PATH.parse().unwrap()),
            VmDevice::Stale,
            VmDevice::Pool { pool: "GPUs".to_owned(), address: None },
            VmDevice::Pool { pool: "GPUs".to_owned(), address: Some(PATH.parse().unwrap()) },
        ],
    }
}

fn facts() -> HostFacts {
    HostFacts {
        platform: Platform::HyperV,
        system: "Windows Server 2025".to_owned(),
        cluster: Some("c1".parse().unwrap()),
        cpu_milli: 64_000,
        memory_bytes: 512 << 30,
        mmio_high_cap_bytes: None,
        notes: Vec::new(),
    }
}

fn request() -> PlacementRequest {
    PlacementRequest::new(Draft {
        request_id: "r1".into(),
        name: "p1".into(),
        vm: "render 07".into(),
        gpus: 2,
        models: vec!["A2".into(), "A16".into()],
        exclude_models: vec!["H100".into()],
        min_vram_bytes: 1 << 30,
        exclude_nodes: vec!["n9".into()],
        cluster: "c1".into(),
        spread_group: "g".into(),
        locality: Locality::Required,
        resources: Resources { cpu_milli: 8000, memory_bytes: 64 << 30 },
        hold: Some(Duration::from_millis(600_001)),
        queue: Some(Duration::from_secs(5)),
        allow_standalone: true,
        verify: VerifyLevel::DriverBound,
        return_to: ReturnTo::Pool,
        install_driver: "nvidia-550".to_owned(),
        ..Draft::default()
    })
    .unwrap()
}

fn placement(phase: Phase) -> Placement {
    Placement {
        uid: UID.parse().unwrap(),
        request: request(),
        caller: "127.0.0.1:5000".to_owned(),
        trace: Some(TRACE.parse().unwrap()),
        created: Timestamp::from_millis(1_795_382_868_999),
        version: 7,
        phase,
        phase_since: Timestamp::from_millis(1_795_382_869_001),
        assignment: Some(Assignment {
            node: "n1".parse().unwrap(),
            gpus: vec![AssignedGpu {
                address: PATH.parse().unwrap(),
                model: "A2".parse().unwrap(),
                fingerprint: fingerprint(None),
                mmio: MmioSize { low_bytes: 1, high_bytes: 2 },
            }],
            pin: Pin { reason: PinReason::DeviceAssignment, since: Timestamp::from_millis(5) },
        }),
        vm_id: Some(UID.parse().unwrap()),
        generation: 12,
        history: vec![
            Noted {
                at: Timestamp::from_millis(6),
                what: Note::Adopted(Adoption {
                    owner: Some("team render".parse().unwrap()),
                    tags: vec!["env=prod".parse().unwrap()],
                }),
            },
            Noted { at: Timestamp::from_millis(7), what: Note::Adopted(Adoption::default()) },
            Noted { at: Timestamp::from_millis(8), what: Note::Forced(forced()) },
            Noted { at: Timestamp::from_millis(9), what: Note::Installed(install(InstallEnd::Unknown)) },
            Noted { at: Timestamp::from_millis(9), what: Note::Installed(install(InstallEnd::Late(600))) },
            Noted { at: Timestamp::from_millis(9), what: Note::Installed(install(InstallEnd::Exited(-1))) },
            Noted { at: Timestamp::from_millis(10), what: Note::RoleRemoved(role()) },
            Noted {
                at: Timestamp::from_millis(10),
                what: Note::RoleRemoved(ClusterRole { owner: None, priority: None, ..role() }),
            },
        ],
    }
}

fn role() -> ClusterRole {
    ClusterRole { name: "R\u{f6}le 7".parse().unwrap(), owner: Some("NODE1".parse().unwrap()), priority: Some(2000) }
}

fn install(end: InstallEnd) -> Install {
    Install { command: "nvidia".parse().unwrap(), end, output: InstallOutput::of(b"unpacking\n\x1b[31mno headers") }
}

fn forced() -> Forced {
    Forced { step: StepKind::Dismount, device: PATH.parse().unwrap() }
}

fn step_error(class: StepErrorClass) -> StepError {
    StepError { class, text: "0xC035001E".to_owned() }
}

fn failures() -> Vec<FailureReason> {
    let mut all = vec![
        FailureReason::HoldExpired,
        FailureReason::QueueExpired,
        FailureReason::VmOnOtherNode { node: "n2".parse().unwrap() },
        FailureReason::Deadline { phase: "Held".to_owned(), step: None, last_error: None },
    ];
    for step in StepKind::ALL {
        all.push(FailureReason::Step { step, error: step_error(StepErrorClass::Failed) });
    }
    for class in StepErrorClass::ALL {
        all.push(FailureReason::Deadline {
            phase: "Attaching".to_owned(),
            step: Some(StepKind::Attach),
            last_error: Some(step_error(class)),
        });
    }
    all
}

fn phases() -> Vec<Phase> {
    let until = Timestamp::from_millis(1_795_382_999_123);
    let mut all = vec![
        Phase::Queued { until },
        Phase::Held { until },
        Phase::Preparing { until },
        Phase::Attaching { until },
        Phase::Starting { until },
        Phase::Verifying { until },
        Phase::Active,
        Phase::Releasing { cause: ReleaseCause::Asked, until },
        Phase::Released,
    ];
    for reason in failures() {
        all.push(Phase::Releasing { cause: ReleaseCause::Failure(reason.clone()), until });
        all.push(Phase::Failed { reason: reason.clone(), undone: true });
        all.push(Phase::Failed { reason, undone: false });
    }
    all
}

#[test]
fn placements_round_trip_in_every_phase() {
    for phase in phases() {
        round_trip::<Placement, v1::Placement>(&placement(phase));
    }
    let bare = Placement { trace: None, assignment: None, vm_id: None, ..placement(Phase::Released) };
    round_trip::<Placement, v1::Placement>(&bare);
}

#[test]
fn gpus_round_trip_in_every_state() {
    let vm: VmId = UID.parse().unwrap();
    let states = [
        GpuState::Host { driver: HostDriver::Bound },
        GpuState::Host { driver: HostDriver::None },
        GpuState::Host { driver: HostDriver::Disabled },
        GpuState::Pooled,
        GpuState::Attached { vm: vm.clone() },
        GpuState::Stale { vm },
        GpuState::Missing,
        GpuState::Unknown,
    ];
    let health = [
        GpuHealth::Ok,
        GpuHealth::NeedsHostReboot,
        GpuHealth::Quarantined(QuarantineReason::WrongCard {
            expected: fingerprint(None),
            found: fingerprint(Some("B")),
        }),
        GpuHealth::Quarantined(QuarantineReason::NotCleanAfterRelease { seen: String::new() }),
        GpuHealth::Quarantined(QuarantineReason::Operator { reason: "fan noise".to_owned() }),
        GpuHealth::Quarantined(QuarantineReason::NativePool { pool: "GPUs".to_owned() }),
    ];
    for state in states {
        for health in &health {
            round_trip::<ObservedGpu, v1::ObservedGpu>(&ObservedGpu {
                state: state.clone(),
                health: health.clone(),
                ..gpu()
            });
        }
    }
}

#[test]
fn surveys_round_trip_with_every_verdict() {
    for verdict in [Verdict::Assignable, Verdict::NotMeasured, Verdict::Blocked(Finding::ALL.to_vec())] {
        round_trip::<Survey, v1::Survey>(&Survey { verdict, ..survey() });
    }
    let bare = Survey { vram_bytes: None, numa_node: None, companions: vec![], ..survey() };
    round_trip::<Survey, v1::Survey>(&bare);
}

#[test]
fn what_agents_and_store_exchange_round_trips() {
    for state in VmState::ALL {
        round_trip::<ObservedVm, v1::ObservedVm>(&ObservedVm { state, ..vm() });
    }
    for platform in Platform::ALL {
        round_trip::<HostFacts, v1::HostFacts>(&HostFacts {
            platform,
            mmio_high_cap_bytes: Some(0),
            notes: vec!["a policy".to_owned()],
            ..facts()
        });
    }
    round_trip::<HostFacts, v1::HostFacts>(&HostFacts { cluster: None, ..facts() });
    let cordon = Cordon { label: "ops".to_owned(), reason: "fans".to_owned(), since: Timestamp::from_millis(0) };
    round_trip::<Cordon, v1::Cordon>(&cordon);
    round_trip::<Cordon, store::v1::Cordon>(&cordon);
    round_trip::<Hello, v1::Hello>(&Hello {
        node: "n1".parse().unwrap(),
        agent_version: "0.1.0".to_owned(),
        protocol: crate::AGENT_PROTOCOL,
        boot: BootId::new("b").unwrap(),
        facts: facts(),
        ledger_term: u64::MAX,
        ledger_generation: 3,
        ledger_fleet: Some("f1ee7000-0000-4000-8000-000000000001".parse().unwrap()),
        ledger_placements: Some(0),
    });
    for listing in [Listing::Complete, Listing::Failed { why: "WMI".to_owned() }] {
        round_trip::<InventoryReport, v1::InventoryReport>(&InventoryReport {
            sequence: 1,
            full: true,
            listing,
            gpus: vec![gpu()],
            vms: vec![vm()],
            vms_gone: vec![UID.parse().unwrap()],
        });
    }
    for report in [
        StepReport::Satisfied,
        StepReport::Working { step: StepKind::Dismount, attempt: 1, last_error: None },
        StepReport::Working {
            step: StepKind::Dismount,
            attempt: 2,
            last_error: Some(step_error(StepErrorClass::TimedOut)),
        },
        StepReport::Failed { step: StepKind::Attach, error: step_error(StepErrorClass::Forbidden) },
    ] {
        round_trip::<Progress, v1::Progress>(&Progress {
            generation: 9,
            uid: UID.parse().unwrap(),
            report,
            forced: vec![forced()],
            install: Some(install(InstallEnd::Exited(3))),
            removed_role: Some(role()),
        });
    }
}

fn desired(uid: PlacementUid) -> DesiredPlacement {
    DesiredPlacement {
        uid,
        name: "p1".parse().unwrap(),
        vm: UID.parse().unwrap(),
        gpus: vec![DesiredGpu {
            address: PATH.parse().unwrap(),
            fingerprint: fingerprint(Some("1")),
            mmio: MmioSize::default(),
        }],
        intent: Intent::Attached,
        allow_standalone: true,
        verify: VerifyLevel::None,
        return_to: ReturnTo::Host,
        install_driver: "nvidia".parse().ok(),
        trace: Some(TRACE.parse().unwrap()),
    }
}

#[test]
fn desired_nodes_round_trip() {
    for intent in [Intent::Attached, Intent::Kept, Intent::Detached] {
        round_trip::<DesiredNode, v1::DesiredNode>(&DesiredNode {
            term: 3,
            generation: 9,
            fleet: Some("f1ee7000-0000-4000-8000-000000000001".parse().unwrap()),
            placements: vec![DesiredPlacement { intent, trace: None, ..desired(UID.parse().unwrap()) }],
        });
    }
    round_trip::<DesiredNode, v1::DesiredNode>(&DesiredNode {
        term: 0,
        generation: 0,
        fleet: None,
        placements: vec![],
    });
}

#[test]
fn what_a_request_leaves_out_is_the_default() {
    let wire = v1::PlacementRequest {
        request_id: "r".into(),
        name: "p".into(),
        vm: "v".into(),
        gpus: 1,
        ..v1::PlacementRequest::default()
    };
    let request = PlacementRequest::try_from(wire).unwrap();
    assert_eq!(
        (request.locality, request.verify, request.return_to, request.hold, request.resources),
        (Locality::Preferred, VerifyLevel::None, ReturnTo::Host, None, Resources::default())
    );
}

#[test]
fn a_long_text_is_cut_on_its_way_out_at_a_whole_character() {
    let long = StepError { class: StepErrorClass::Failed, text: "ä".repeat(super::MAX_TEXT_BYTES) };
    let back = StepError::try_from(v1::StepError::from(&long)).unwrap();
    assert!(back.text.len() <= super::MAX_TEXT_BYTES && back.text.ends_with(" …"), "{} bytes", back.text.len());
}

proptest! {
    #[test]
    fn timestamps_round_trip(millis: u64) {
        let time = Timestamp::from_millis(millis);
        let back = super::read(|at| super::FromWire::read(super::timestamp(time), at)).unwrap();
        prop_assert_eq!(time, back);
    }

    #[test]
    fn durations_round_trip(millis in 0..=i64::MAX.unsigned_abs()) {
        let duration = Duration::from_millis(millis);
        prop_assert_eq!(super::read_duration(super::duration(duration)).unwrap(), duration);
    }

    #[test]
    fn durations_off_the_wire_are_taken_exactly_or_refused(seconds: i64, nanos: i32) {
        if let Ok(read) = super::read_duration(prost_types::Duration { seconds, nanos }) {
            prop_assert_eq!(super::duration(read), prost_types::Duration { seconds, nanos });
        }
    }

    /// Whatever bytes arrive: either refused with a reason, or taken and stable from then on.
    #[test]
    fn any_bytes_are_refused_or_understood(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        use prost::Message as _;
        if let Ok(wire) = v1::Placement::decode(bytes.as_slice()) {
            match Placement::try_from(wire) {
                Ok(read) => prop_assert_eq!(Placement::try_from(v1::Placement::from(&read)).unwrap(), read),
                Err(invalid) => prop_assert!(!invalid.0.is_empty()),
            }
        }
    }
}
