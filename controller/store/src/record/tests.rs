//! Round trips, and records that must be refused.

use super::*;
use crate::store::Revision;
use berth_model::Timestamp;
use berth_model::gpu::{Fingerprint, MmioSize, SerialNumber, Verdict};
use berth_model::node::Platform;
use berth_model::placement::{
    AssignedGpu, Assignment, FailureReason, Pin, PinReason, ReleaseCause, StepError, StepErrorClass, StepKind,
};
use berth_model::request::{Draft, PlacementRequest};
use expect_test::{Expect, expect};

const UID: &str = "8fce3318-aa0f-4de3-8664-278533573cd2";
const GPU: &str = "PCIROOT(20)#PCI(0300)#PCI(0000)";

fn item(key: impl Into<String>, value: Bytes) -> KeyValue {
    KeyValue { key: key.into(), value, created: Revision(3), modified: Revision(9), version: 4 }
}

fn survey() -> Survey {
    Survey {
        model: "A2".parse().unwrap(),
        fingerprint: Fingerprint {
            id: "10de:25b6:10de:157e".parse().unwrap(),
            serial: Some(SerialNumber::new("1324").unwrap()),
        },
        vram_bytes: Some(16 << 30),
        mmio: MmioSize { low_bytes: 16 << 20, high_bytes: 17 << 30 },
        numa_node: Some(1),
        companions: vec!["PCIROOT(20)#PCI(0300)#PCI(0001)".parse().unwrap()],
        verdict: Verdict::Assignable,
    }
}

fn a_node() -> StoredNode {
    StoredNode {
        name: "hv-01".parse().unwrap(),
        facts: HostFacts {
            platform: Platform::HyperV,
            system: "Windows Server 2025".to_owned(),
            cluster: Some("c1".parse().unwrap()),
            cpu_milli: 64_000,
            memory_bytes: 512 << 30,
            mmio_high_cap_bytes: Some(1 << 40),
            notes: Vec::new(),
        },
        agent_version: "0.1.0".to_owned(),
        first_seen: Timestamp::from_millis(1_795_382_868_999),
        cordons: vec![Cordon {
            label: "ada".to_owned(),
            reason: "fan".to_owned(),
            since: Timestamp::from_millis(1_795_382_869_000),
        }],
        gpus: vec![(GPU.parse().unwrap(), survey())],
        generation: 17,
        version: 4,
    }
}

fn a_placement(phase: Phase) -> Placement {
    let draft =
        Draft { request_id: "order/1".into(), name: "p1".into(), vm: "Render 07".into(), gpus: 1, ..Draft::default() };
    let survey = survey();
    Placement {
        uid: UID.parse().unwrap(),
        request: PlacementRequest::new(draft).unwrap(),
        caller: "127.0.0.1:5000".to_owned(),
        trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap()),
        created: Timestamp::from_millis(1_795_382_868_999),
        version: 4,
        phase,
        phase_since: Timestamp::from_millis(1_795_382_869_001),
        assignment: Some(Assignment {
            node: "hv-01".parse().unwrap(),
            gpus: vec![AssignedGpu {
                address: GPU.parse().unwrap(),
                model: survey.model,
                fingerprint: survey.fingerprint,
                mmio: survey.mmio,
            }],
            pin: Pin { reason: PinReason::DeviceAssignment, since: Timestamp::from_millis(5) },
        }),
        vm_id: Some(UID.parse().unwrap()),
        generation: 12,
        history: Vec::new(),
    }
}

/// Every phase that can be stored.
fn phases() -> Vec<Phase> {
    let until = Timestamp::from_millis(1_795_382_900_000);
    let step = FailureReason::Step {
        step: StepKind::Attach,
        error: StepError { class: StepErrorClass::TimedOut, text: "0xC035001E".to_owned() },
    };
    vec![
        Phase::Queued { until },
        Phase::Held { until },
        Phase::Preparing { until },
        Phase::Attaching { until },
        Phase::Starting { until },
        Phase::Verifying { until },
        Phase::Active,
        Phase::Releasing { cause: ReleaseCause::Asked, until },
        Phase::Releasing { cause: ReleaseCause::Failure(step.clone()), until },
        Phase::Released,
        Phase::Failed { reason: step, undone: false },
        Phase::Failed { reason: FailureReason::HoldExpired, undone: true },
    ]
}

#[test]
fn placements_round_trip_in_every_phase() {
    for phase in phases() {
        let model = a_placement(phase);
        assert_eq!(read_placement(&item("berth/v1/placements/p1", placement(&model))).unwrap(), model);
    }
}

#[test]
fn nodes_round_trip() {
    let model = a_node();
    assert_eq!(read_node(&item("berth/v1/nodes/hv-01", node(&model))).unwrap(), model);
}

#[test]
fn claims_and_leaders_round_trip() {
    let model = Claim { placement: "p1".parse().unwrap(), uid: UID.parse().unwrap() };
    assert_eq!(read_claim(&item("k", claim(&model.placement, &model.uid))).unwrap(), model);
    let model = Leader { term: 7, candidate: "hv-01:7600".to_owned() };
    assert_eq!(read_leader(&leader(&model)).unwrap(), model);
}

#[test]
fn the_version_is_the_stores_and_never_written() {
    let mut model = a_placement(Phase::Active);
    let before = placement(&model);
    model.version = 99;
    assert_eq!(placement(&model), before);
    assert_eq!(read_placement(&item("berth/v1/placements/p1", before)).unwrap().version, 4);
    let mut model = a_node();
    let before = node(&model);
    model.version = 99;
    assert_eq!(node(&model), before);
    assert_eq!(read_node(&item("berth/v1/nodes/hv-01", before)).unwrap().version, 4);
}

#[test]
#[should_panic(expected = "p1 must be decided before it is stored")]
fn an_undecided_placement_has_no_stored_form() {
    placement(&a_placement(Phase::Requested));
}

fn refused<T: std::fmt::Debug>(read: Result<T, Error>, why: Expect) {
    why.assert_eq(&read.unwrap_err().to_string());
}

#[test]
fn records_of_a_newer_berth_are_refused() {
    let newer = |bytes: Bytes| {
        // Whatever else a newer schema changed, here even the type of another field.
        let mut record = ClaimRecord::decode(bytes).unwrap();
        record.schema = 2;
        let mut bytes = record.encode_to_vec();
        bytes.extend([0x98, 0x06, 0x01]);
        Bytes::from(bytes)
    };
    let value = newer(claim(&"p1".parse().unwrap(), &UID.parse().unwrap()));
    refused(
        read_claim(&item("berth/v1/requests/r", value)),
        expect![
            "record berth/v1/requests/r was written by a newer Berth (schema 2, this one knows up to 1): use that version"
        ],
    );
    // Schema 2, and `placement` has become a number.
    let value = Bytes::from_static(&[0x08, 0x02, 0x10, 0x05]);
    refused(
        read_placement(&item("berth/v1/placements/p1", value)),
        expect![
            "record berth/v1/placements/p1 was written by a newer Berth (schema 2, this one knows up to 1): use that version"
        ],
    );
}

#[test]
fn damaged_records_are_refused_naming_the_key() {
    let key = "berth/v1/placements/p1";
    refused(
        read_placement(&item(key, Bytes::from_static(b"garbage"))),
        expect![
            "record berth/v1/placements/p1 is damaged: failed to decode Protobuf message: invalid wire type value: 7"
        ],
    );
    refused(
        read_placement(&item(key, Bytes::new())),
        expect!["record berth/v1/placements/p1 is damaged: it does not say its schema"],
    );
    refused(
        read_placement(&item(key, PlacementRecord { schema: 1, placement: None }.encode_to_vec().into())),
        expect!["record berth/v1/placements/p1 is damaged: placement is missing"],
    );
    let mut wire = berth_proto::v1::Placement::from(&a_placement(Phase::Active));
    wire.uid = "x".to_owned();
    let record = PlacementRecord { schema: 1, placement: Some(wire) };
    refused(
        read_placement(&item(key, record.encode_to_vec().into())),
        expect![[
            r#"record berth/v1/placements/p1 is damaged: placement: uid: placement uid "x" is not of the form 8-4-4-4-12 hexadecimal digits"#
        ]],
    );
    let whole = placement(&a_placement(Phase::Active));
    refused(
        read_placement(&item(key, whole.slice(..whole.len() - 1))),
        expect!["record berth/v1/placements/p1 is damaged: failed to decode Protobuf message: buffer underflow"],
    );
    refused(
        read_placement(&item("berth/v1/placements/other", whole)),
        expect!["record berth/v1/placements/other is damaged: it belongs under berth/v1/placements/p1"],
    );
    refused(
        read_node(&item("berth/v1/nodes/other", node(&a_node()))),
        expect!["record berth/v1/nodes/other is damaged: it belongs under berth/v1/nodes/hv-01"],
    );
    let mut twice = a_node();
    twice.gpus.push(twice.gpus[0].clone());
    refused(
        read_node(&item("berth/v1/nodes/hv-01", node(&twice))),
        expect!["record berth/v1/nodes/hv-01 is damaged: a GPU is listed twice"],
    );
    let record = ClaimRecord { schema: 1, placement: "p1".to_owned(), uid: String::new() };
    refused(
        read_claim(&item("berth/v1/requests/r", record.encode_to_vec().into())),
        expect![[
            r#"record berth/v1/requests/r is damaged: uid: placement uid "" is not of the form 8-4-4-4-12 hexadecimal digits"#
        ]],
    );
}

#[test]
fn a_record_cut_anywhere_is_refused_or_says_something_else() {
    let model = a_node();
    let whole = node(&model);
    for end in 0..whole.len() {
        if let Ok(read) = read_node(&item("berth/v1/nodes/hv-01", whole.slice(..end))) {
            assert_ne!(read, model, "cut after {end} of {} bytes", whole.len());
        }
    }
}
