//! Messages that are refused, each for its own reason.

use super::*;

#[test]
fn an_undecided_placement_never_gets_back_in() {
    let wire = v1::Placement::from(&placement(Phase::Requested));
    refuse::<Placement, _>(wire, expect!["phase: is missing"]);
}

#[test]
fn an_order_that_gives_one_gpu_to_two_is_refused() {
    let other = "00000000-0000-0000-0000-000000000001".parse().unwrap();
    let placements = vec![desired(UID.parse().unwrap()), desired(other)];
    let node = DesiredNode { term: 1, generation: 1, fleet: None, placements };
    refuse::<DesiredNode, _>(
        v1::DesiredNode::from(&node),
        expect![
            "placements[1].gpus[0].address: PCIROOT(20)#PCI(0300)#PCI(0000) belongs to placement 8fce3318-aa0f-4de3-8664-278533573cd2 already"
        ],
    );
    let twice = DesiredNode { placements: vec![desired(UID.parse().unwrap()); 2], ..node };
    refuse::<DesiredNode, _>(
        v1::DesiredNode::from(&twice),
        expect![[r#"
            placements[1].uid: 8fce3318-aa0f-4de3-8664-278533573cd2 is listed twice
            placements[1].gpus[0].address: PCIROOT(20)#PCI(0300)#PCI(0000) belongs to placement 8fce3318-aa0f-4de3-8664-278533573cd2 already"#]],
    );
}

#[test]
fn an_order_that_leaves_something_out_is_refused() {
    refuse::<DesiredNode, _>(
        v1::DesiredNode { placements: vec![v1::DesiredPlacement::default()], ..v1::DesiredNode::default() },
        expect![[r#"
            placements[0].uid: placement uid "" is not of the form 8-4-4-4-12 hexadecimal digits
            placements[0].name: placement name is empty
            placements[0].vm_id: VM id "" is not of the form 8-4-4-4-12 hexadecimal digits
            placements[0].gpus: are missing: a placement has at least one
            placements[0].intent: is missing
            placements[0].verify: is missing
            placements[0].return_to: is missing"#]],
    );
}

#[test]
fn every_bad_field_of_a_create_is_named_with_its_path() {
    refuse::<PlacementRequest, _>(v1::CreatePlacementRequest { request: None }, expect!["request: is missing"]);
    refuse::<PlacementRequest, _>(
        v1::CreatePlacementRequest {
            request: Some(v1::PlacementRequest {
                name: "p/1".into(),
                vm: "v".repeat(101),
                gpus: u32::MAX,
                models: vec!["A2".into(), "A16".into(), "A 2".into()],
                node: "n1".into(),
                exclude_nodes: vec!["n1".into()],
                locality: 7,
                hold: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
                queue: Some(prost_types::Duration { seconds: 1, nanos: 1 }),
                verify: -1,
                ..v1::PlacementRequest::default()
            }),
        },
        expect![[r#"
            request.locality: 7 is no Locality
            request.hold: is negative
            request.queue: has parts of a millisecond; give whole milliseconds
            request.verify: -1 is no VerifyLevel
            request.request_id: request id is empty
            request.name: placement name "p/1" has the character '/' at position 1; allowed are letters, digits, '-', '.', '_', starting with a letter or digit
            request.vm: VM name is 101 bytes long, at most 100 are allowed
            request.gpus: 4294967295 is not from 1 to 16
            request.models[2]: model name "A 2" has the character ' ' at position 1; allowed are letters, digits, '-', '.', '_', starting with a letter or digit
            request.exclude_nodes: excludes n1, which node asks for"#]],
    );
}

#[test]
fn a_plan_is_bounded_and_names_the_request() {
    let bad = v1::PlanRequest { requests: vec![(&request()).into(), v1::PlacementRequest::default()] };
    refuse::<Vec<PlacementRequest>, _>(
        bad,
        expect![[r#"
            requests[1].request_id: request id is empty
            requests[1].name: placement name is empty
            requests[1].vm: VM name is empty
            requests[1].gpus: 0 is not from 1 to 16"#]],
    );
    let long = v1::PlanRequest { requests: vec![v1::PlacementRequest::default(); crate::convert::MAX_PLANNED + 1] };
    refuse::<Vec<PlacementRequest>, _>(long, expect!["requests: has 10001 items, at most 10000 are allowed"]);
}

#[test]
fn a_report_names_what_is_wrong_deep_inside() {
    let mut wire = v1::InventoryReport {
        sequence: 1,
        full: true,
        failed: String::new(),
        gpus: vec![(&gpu()).into(), (&gpu()).into()],
        vms: vec![(&vm()).into(), (&vm()).into()],
        vms_gone: vec!["x".into()],
    };
    refuse::<InventoryReport, _>(
        wire.clone(),
        expect![[r#"
            vms_gone[0]: VM id "x" is not of the form 8-4-4-4-12 hexadecimal digits
            gpus[1].address: PCIROOT(20)#PCI(0300)#PCI(0000) is listed twice
            vms[1].id: 8fce3318-aa0f-4de3-8664-278533573cd2 is listed twice"#]],
    );
    wire.vms_gone.clear();
    wire.gpus[0].survey.as_mut().unwrap().fingerprint.as_mut().unwrap().pci_id = "10de".into();
    wire.gpus[0].survey.as_mut().unwrap().numa_node = Some(70_000);
    wire.gpus[1].survey.as_mut().unwrap().fingerprint = None;
    wire.gpus[1].survey.as_mut().unwrap().mmio = None;
    wire.gpus[1].survey.as_mut().unwrap().companions = vec!["PCI(0)".into()];
    wire.vms[1].devices = vec![v1::VmDevice { address: "0000:41:20.0".into(), pool: String::new() }];
    refuse::<InventoryReport, _>(
        wire,
        expect![[r#"
            gpus[0].survey.fingerprint.pci_id: PCI id "10de" is not VENDOR:DEVICE or VENDOR:DEVICE:SUBVENDOR:SUBDEVICE in four hexadecimal digits each
            gpus[0].survey.numa_node: is above 65,535
            gpus[1].survey.fingerprint: is missing
            gpus[1].survey.mmio: is missing
            gpus[1].survey.companions[0]: PCI address "PCI(0)" is neither a location path like PCIROOT(20)#PCI(0300)#PCI(0000) nor a bus address like 0000:41:00.0
            vms[1].devices[0].address: PCI address "0000:41:20.0" is neither a location path like PCIROOT(20)#PCI(0300)#PCI(0000) nor a bus address like 0000:41:00.0"#]],
    );
}

#[test]
fn a_report_is_bounded() {
    let wire = v1::InventoryReport {
        failed: "x".repeat(crate::convert::MAX_TEXT_BYTES + 1),
        gpus: vec![v1::ObservedGpu::default(); MAX_GPUS_PER_NODE + 1],
        vms: vec![v1::ObservedVm::default(); MAX_VMS_PER_NODE + 1],
        vms_gone: vec![String::new(); MAX_VMS_PER_NODE + 1],
        ..v1::InventoryReport::default()
    };
    refuse::<InventoryReport, _>(
        wire,
        expect![[r#"
            failed: is 4097 bytes long, at most 4096 are allowed
            gpus: has 65 items, at most 64 are allowed
            vms: has 1025 items, at most 1024 are allowed
            vms_gone: has 1025 items, at most 1024 are allowed"#]],
    );
}

#[test]
fn a_failed_listing_never_turns_into_a_complete_one() {
    let report = InventoryReport {
        sequence: 1,
        full: true,
        listing: Listing::Failed { why: String::new() },
        gpus: vec![],
        vms: vec![],
        vms_gone: vec![],
    };
    let back = InventoryReport::try_from(v1::InventoryReport::from(&report)).unwrap();
    assert!(matches!(back.listing, Listing::Failed { .. }));
}

#[test]
fn a_state_goes_with_its_own_data_only() {
    let wire = |state: v1::GpuState, driver: v1::HostDriver, vm_id: &str| v1::ObservedGpu {
        state: state.into(),
        driver: driver.into(),
        vm_id: vm_id.to_owned(),
        ..(&gpu()).into()
    };
    use v1::{GpuState as S, HostDriver as D};
    refuse::<ObservedGpu, _>(wire(S::Unspecified, D::Bound, ""), expect!["state: is missing"]);
    refuse::<ObservedGpu, _>(wire(S::Host, D::Unspecified, ""), expect!["driver: is missing"]);
    refuse::<ObservedGpu, _>(
        wire(S::Host, D::Bound, UID),
        expect!["vm_id: goes with GPU_STATE_ATTACHED and GPU_STATE_STALE only"],
    );
    refuse::<ObservedGpu, _>(
        wire(S::Pooled, D::Bound, UID),
        expect![[r#"
            driver: goes with GPU_STATE_HOST only
            vm_id: goes with GPU_STATE_ATTACHED and GPU_STATE_STALE only"#]],
    );
    refuse::<ObservedGpu, _>(
        wire(S::Attached, D::Unspecified, ""),
        expect![[r#"vm_id: VM id "" is not of the form 8-4-4-4-12 hexadecimal digits"#]],
    );
    let quarantined = v1::ObservedGpu { health: v1::GpuHealth::Quarantined.into(), ..(&gpu()).into() };
    refuse::<ObservedGpu, _>(quarantined, expect!["quarantine: is missing"]);
    let unasked = v1::ObservedGpu { quarantine: Some(v1::Quarantine { reason: None }), ..(&gpu()).into() };
    refuse::<ObservedGpu, _>(unasked, expect!["quarantine: goes with GPU_HEALTH_QUARANTINED only"]);
    let blocked = v1::Survey { verdict: v1::Verdict::Blocked.into(), ..(&survey()).into() };
    refuse::<Survey, _>(blocked, expect!["findings: are missing: VERDICT_BLOCKED goes with all its reasons"]);
    let free = v1::Survey { findings: vec![1, 99], ..(&survey()).into() };
    refuse::<Survey, _>(free, expect!["findings: go with VERDICT_BLOCKED only"]);
    let odd = v1::Survey { verdict: v1::Verdict::Blocked.into(), findings: vec![1, 0, 99], ..(&survey()).into() };
    refuse::<Survey, _>(
        odd,
        expect![[r#"
            findings[1]: is missing
            findings[2]: 99 is no Finding"#]],
    );
}

#[test]
fn a_phase_goes_with_its_own_data_only() {
    let wire =
        |phase: v1::Phase| v1::Placement { phase: phase.into(), ..v1::Placement::from(&placement(Phase::Active)) };
    refuse::<Placement, _>(wire(v1::Phase::Held), expect!["deadline: is missing"]);
    refuse::<Placement, _>(wire(v1::Phase::Failed), expect!["failure: is missing"]);
    let mut released = wire(v1::Phase::Released);
    released.deadline = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    released.failure = Some((&FailureReason::HoldExpired).into());
    refuse::<Placement, _>(
        released.clone(),
        expect![[r#"
            deadline: goes only with a phase that ends by itself
            failure: goes only with PHASE_RELEASING and PHASE_FAILED"#]],
    );
    released.undone = true;
    released.phase = 1;
    refuse::<Placement, _>(released, expect!["phase: 1 is no Phase"]);
}

#[test]
fn moments_that_cannot_be_are_refused() {
    let with = |seconds, nanos| v1::Cordon {
        label: "l".into(),
        reason: String::new(),
        since: Some(prost_types::Timestamp { seconds, nanos }),
    };
    refuse::<Cordon, _>(with(-1, 0), expect!["since: lies before 1970"]);
    refuse::<Cordon, _>(with(0, -1), expect!["since: -1 nanoseconds are not from 0 to 999,999,999"]);
    refuse::<Cordon, _>(with(0, 1_000_000_000), expect!["since: 1000000000 nanoseconds are not from 0 to 999,999,999"]);
    refuse::<Cordon, _>(with(0, 1), expect!["since: has parts of a millisecond; give whole milliseconds"]);
    refuse::<Cordon, _>(with(i64::MAX, 0), expect!["since: lies too far in the future"]);
    refuse::<Cordon, _>(
        v1::Cordon::default(),
        expect![[r#"
            label: is empty
            since: is missing"#]],
    );
}
