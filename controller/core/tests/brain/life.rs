//! A placement from its request to its end: held, queued, committed, failed, released, forgotten.

use super::*;

#[test]
fn a_placement_lives_from_hold_to_release() {
    let mut f = Fixture::with_node(2);
    let held = f.create(request("p1", "web", 1)).unwrap();
    assert_eq!(held.version, 1);
    f.check(expect![[r#"
        p1 Held n1/PCIROOT(0)#PCI(0000)
        n1 generation 0 wants [], 1 available
    "#]]);
    let seen = (0..2).map(|slot| gpu(slot, IN_HOST)).collect::<Vec<_>>();
    f.report("n1", seen, vec![vm(1, "WEB")]);
    f.check(expect![[r#"
        p1 Preparing n1/PCIROOT(0)#PCI(0000)
        n1 generation 1 wants [p1 Attached], 1 available
    "#]]);
    f.progress("p1", StepReport::Working { step: StepKind::Attach, attempt: 1, last_error: None });
    f.check(expect![[r#"
        p1 Attaching n1/PCIROOT(0)#PCI(0000)
        n1 generation 1 wants [p1 Attached], 1 available
    "#]]);
    f.activate("p1", 1);
    f.check(expect![[r#"
        p1 Active n1/PCIROOT(0)#PCI(0000)
        n1 generation 2 wants [p1 Kept], 1 available
    "#]]);
    f.release("p1");
    assert_eq!(f.release("p1").phase.name(), "Releasing", "releasing twice is one release");
    f.progress("p1", StepReport::Satisfied);
    // Released, and yet not available: the agent has not reported it out of the VM.
    f.check(expect![[r#"
        p1 Released n1/PCIROOT(0)#PCI(0000)
        n1 generation 4 wants [], 1 available
    "#]]);
    f.report("n1", vec![gpu(0, IN_HOST), gpu(1, IN_HOST)], vec![vm(1, "web")]);
    f.check(expect![[r#"
        p1 Released n1/PCIROOT(0)#PCI(0000)
        n1 generation 4 wants [], 2 available
    "#]]);
    assert_eq!(f.release("p1").phase.name(), "Released");
}

#[test]
fn the_same_request_gets_the_same_answer_and_another_one_is_refused() {
    let mut f = Fixture::with_node(2);
    let first = f.create(request("p1", "web", 1)).unwrap();
    let again = f.create(request("p1", "web", 1)).unwrap();
    assert_eq!(first, again);
    let other = f.create(Draft { gpus: 2, ..request("p1", "web", 1) }).unwrap_err();
    expect!["request id r-p1 was used for placement p1 already, with another gpus"].assert_eq(&other.to_string());
    let taken = f.create(Draft { request_id: "r2".into(), ..request("p1", "db", 1) }).unwrap_err();
    expect!["placement p1 exists already; release it first or choose another name"].assert_eq(&taken.to_string());
    let vm = f.create(request("p2", "Web", 1)).unwrap_err();
    expect!["VM Web has placement p1 already; release that first"].assert_eq(&vm.to_string());
}

#[test]
fn a_vm_cannot_be_placed_twice_by_its_other_name() {
    let mut f = Fixture::with_node(2);
    f.report("n1", vec![gpu(0, IN_HOST), gpu(1, IN_HOST)], vec![vm(1, "web")]);
    f.create(request("p1", "web", 1)).unwrap();
    let refused = f.create(request("p2", vm_id(1).as_str(), 1)).unwrap_err();
    assert!(matches!(refused, Refusal::VmHasPlacement { .. }), "{refused}");
}

#[test]
fn a_failure_is_undone_before_the_gpu_is_free() {
    let mut f = Fixture::with_node(1);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    f.create(request("p1", "web", 1)).unwrap();
    let error = StepError { class: StepErrorClass::Failed, text: "0xC035001E".into() };
    f.progress("p1", StepReport::Failed { step: StepKind::StartVm, error });
    f.check(expect![[r#"
        p1 Releasing (step StartVm failed: 0xC035001E (Failed)) n1/PCIROOT(0)#PCI(0000)
        n1 generation 2 wants [p1 Detached], 0 available
    "#]]);
    // The undoing hangs: the placement is over for people, but its GPU stays claimed until the agent says it is clean.
    f.pass(Duration::from_secs(3600));
    f.check(expect![[r#"
        p1 Failed (step StartVm failed: 0xC035001E (Failed); undone false) n1/PCIROOT(0)#PCI(0000)
          Stuck { since: Timestamp(4600000), what: "giving the GPUs back, at step StartVm: 0xC035001E (Failed)" }
        n1 generation 2 wants [p1 Detached], 0 available
    "#]]);
    f.progress("p1", StepReport::Satisfied);
    f.check(expect![[r#"
        p1 Failed (step StartVm failed: 0xC035001E (Failed); undone true) n1/PCIROOT(0)#PCI(0000)
        n1 generation 3 wants [], 1 available
    "#]]);
}

#[test]
fn a_release_whose_answer_was_lost_may_be_asked_again_even_when_it_ran_out_of_time() {
    let mut f = Fixture::with_node(1);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    f.create(request("p1", "web", 1)).unwrap();
    f.activate("p1", 1);
    let version = Some(f.get("p1").version);
    let release = Input::Release { name: name("p1"), uid: None, version };
    for _ in 0..2 {
        let decision = f.try_input(release.clone()).unwrap();
        assert_eq!(decision.placement.unwrap().phase.name(), "Releasing");
    }
    f.pass(Duration::from_secs(3600));
    assert!(matches!(f.get("p1").phase, Phase::Failed { undone: false, .. }));
    let decision = f.try_input(release).unwrap();
    assert_eq!(decision.placement.unwrap().phase.name(), "Failed");
    assert_eq!(decision.changes, []);
}

#[test]
fn a_hold_expires_and_a_vm_made_elsewhere_is_named() {
    let mut f = Fixture::with_node(1);
    f.connect("n2");
    f.create(Draft { hold: Some(Duration::from_secs(60)), ..request("p1", "web", 1) }).unwrap();
    f.report("n2", vec![], vec![vm(1, "web")]);
    f.pass(Duration::from_secs(60));
    f.check(expect![[r#"
        p1 Failed (the VM appeared on node n2, not where its GPUs are held; undone true) n1/PCIROOT(0)#PCI(0000)
        n1 generation 0 wants [], 1 available
        n2 generation 0 wants [], 0 available
    "#]]);
}

#[test]
fn the_queue_is_served_oldest_first_when_room_appears() {
    let mut f = Fixture::with_node(1);
    f.create(request("p1", "a", 1)).unwrap();
    let wait = Some(Duration::from_secs(600));
    f.create(Draft { queue: wait, ..request("p2", "b", 1) }).unwrap();
    f.now = f.now.after(Duration::from_secs(1));
    f.create(Draft { queue: wait, ..request("p0", "c", 1) }).unwrap();
    assert!(matches!(f.create(request("p3", "d", 1)), Err(Refusal::NoRoom(_))));
    f.release("p1");
    f.pass(Duration::ZERO);
    f.check(expect![[r#"
        p0 Queued 
        p1 Released n1/PCIROOT(0)#PCI(0000)
        p2 Held n1/PCIROOT(0)#PCI(0000)
        n1 generation 0 wants [], 0 available
    "#]]);
    f.pass(Duration::from_secs(600));
    assert_eq!(f.get("p0").phase, Phase::Failed { reason: FailureReason::QueueExpired, undone: true });
}

#[test]
fn commit_takes_a_held_placement_to_its_vm() {
    let mut f = Fixture::with_node(2);
    f.create(request("p1", "web", 1)).unwrap();
    let commit = |f: &mut Fixture, id: Option<u32>, version| {
        f.try_input(Input::Commit { name: name("p1"), vm_id: id.map(vm_id), version })
            .map(|d| d.placement.unwrap().phase.name())
    };
    expect!["VM web was not seen on node n1 yet; name it by id, or wait until the agent reports it"]
        .assert_eq(&commit(&mut f, None, None).unwrap_err().to_string());
    expect!["placement p1 is at version 1, not 7; read it again before deciding"]
        .assert_eq(&commit(&mut f, Some(1), Some(7)).unwrap_err().to_string());
    assert_eq!(commit(&mut f, Some(1), Some(1)), Ok("Preparing"));
    assert_eq!(commit(&mut f, Some(1), None), Ok("Preparing"), "again is the same");
    assert!(matches!(commit(&mut f, Some(2), None), Err(Refusal::NotHeld { .. })));
    f.create(request("p2", "db", 1)).unwrap();
    let stolen = f.try_input(Input::Commit { name: name("p2"), vm_id: Some(vm_id(1)), version: None }).unwrap_err();
    assert!(matches!(stolen, Refusal::VmHasPlacement { .. }), "{stolen}");
}

#[test]
fn commit_refuses_a_vm_that_has_another_name() {
    let mut f = Fixture::with_node(2);
    f.create(request("p1", "web", 1)).unwrap();
    f.report("n1", vec![gpu(0, IN_HOST), gpu(1, IN_HOST)], vec![vm(2, "database")]);
    let wrong =
        f.try_input(Input::Commit { name: name("p1"), vm_id: Some(vm_id(2)), version: None }).unwrap_err().to_string();
    expect!["vm_id: 00000000-0000-0000-0000-000000000002 is VM database on n1, the request is for web"]
        .assert_eq(&wrong);
    // One that no report has shown yet is the caller's to know.
    f.input(Input::Commit { name: name("p1"), vm_id: Some(vm_id(1)), version: None });
    assert_eq!(f.get("p1").phase.name(), "Preparing");
}

#[test]
fn history_is_bounded_and_names_can_be_used_again() {
    let mut f = Fixture::with_node(1);
    for round in 0..8 {
        f.create(request(&format!("p{round}"), "web", 1)).unwrap();
        f.release(&format!("p{round}"));
        f.now = f.now.after(Duration::from_secs(1));
    }
    f.pass(Duration::ZERO);
    assert_eq!(f.brain.world().placement_count(), 3);
    let again = f.create(Draft { request_id: "another".into(), ..request("p7", "web", 1) }).unwrap();
    assert_eq!((again.phase.name(), again.version), ("Held", 3));
}

#[test]
fn what_ends_is_stored_before_it_is_forgotten() {
    let mut f = Fixture::new();
    f.brain = Brain::load(1, Limits { history: 0, ..Limits::default() }, vec![], vec![], f.now).unwrap();
    f.connect("n1");
    f.report("n1", vec![gpu(0, IN_HOST)], vec![]);
    f.create(Draft { hold: Some(Duration::from_secs(60)), ..request("p1", "web", 1) }).unwrap();
    f.now = f.now.after(Duration::from_secs(60));
    let ended = f.input(Input::Tick);
    let stored = ended.changes.iter().any(|change| matches!(change, Change::PutPlacement(p) if p.phase.is_over()));
    assert!(stored, "why it ended is told by nothing: {:?}", ended.changes);
    let forgotten = f.input(Input::Tick);
    assert!(matches!(forgotten.changes.as_slice(), [Change::Unclaim { .. }, Change::RemovePlacement { .. }]));
}
