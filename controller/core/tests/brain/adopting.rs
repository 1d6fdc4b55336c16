//! What is on a host without Berth's doing: taken over as placements, told as drift, doubted after a restart; and what was
//! done by force is written down.

use super::*;
use berth_core::adopt::{Naming, candidates};
use berth_core::decide::Adopt;
use berth_core::drift;
use berth_model::history::{Adoption, ClusterRole, Forced, Note};
use berth_model::install::{Install, InstallEnd, InstallOutput};
use berth_model::request::{ReturnTo, VerifyLevel};
use berth_model::vm::VmSelector;

/// A VM that lists these devices.
fn with_devices(number: u32, name: &str, slots: &[usize]) -> ObservedVm {
    ObservedVm {
        state: VmState::Running,
        devices: slots.iter().map(|slot| VmDevice::At(address(*slot))).collect(),
        ..vm(number, name)
    }
}

fn attached(slot: usize, vm: u32) -> ObservedGpu {
    let mut seen = gpu(slot, GpuState::Attached { vm: vm_id(vm) });
    seen.survey.verdict = Verdict::NotMeasured;
    seen
}

impl Fixture {
    fn adopt(&mut self, vm: u32, placement: &str) -> Result<Decision, Refusal> {
        self.uids += 1;
        self.try_input(Input::Adopt(Box::new(Adopt {
            node: node_name("n1"),
            vm: vm_id(vm),
            name: name(placement),
            adoption: Adoption { owner: Some("team-render".parse().unwrap()), tags: vec!["env=prod".parse().unwrap()] },
            return_to: ReturnTo::Host,
            uid: PlacementUid::new(format!("00000000-0000-0000-0002-{:012}", self.uids)).unwrap(),
            caller: "adopter".into(),
            trace: None,
        })))
    }

    /// The table: each VM with what becomes of it.
    fn table(&self, only: &[VmSelector]) -> String {
        let found = candidates(self.brain.world(), &node_name("n1"), only, &Naming::default()).unwrap();
        let line = |c: &berth_core::adopt::Candidate| match &c.outcome {
            Ok(name) => format!("{}: {name}, {} GPUs\n", c.vm.name, c.gpus.len()),
            Err(why) => format!("{}: {} ({why})\n", c.vm.name, why.name()),
        };
        found.iter().map(line).collect()
    }

    fn drift(&self) -> String {
        let world = self.brain.world();
        let on_purpose = drift::left_on_purpose(world);
        let node = world.node(&node_name("n1")).unwrap();
        let found = drift::of_node(world, node, &on_purpose);
        for copy in &self.mirrors {
            let node = copy.world().node(&node_name("n1")).unwrap();
            assert_eq!(drift::of_node(copy.world(), node, &on_purpose), found, "a copy tells otherwise");
        }
        let line = |d: &berth_model::drift::Difference| {
            assert!(!d.remedy().is_empty());
            let since = d.since.map_or("?".to_owned(), |at| at.as_millis().to_string());
            format!("{} since {since}: {}\n", d.kind, d.seen)
        };
        found.iter().map(line).collect()
    }
}

#[test]
fn what_is_there_becomes_a_placement_that_the_host_is_not_asked_to_change() {
    let mut f = Fixture::with_node(3);
    f.report("n1", vec![attached(0, 1), attached(1, 1), gpu(2, IN_HOST)], vec![with_devices(1, "render 07", &[0, 1])]);
    assert_eq!(f.table(&[]), "render 07: render-07, 2 GPUs\n");
    let decision = f.adopt(1, "render-07").unwrap();
    // One placement, its VM, its request, its two GPUs, and its node's generation: one transaction.
    assert_eq!(decision.changes.len(), 6, "{:#?}", decision.changes);
    f.check(expect![[r#"
        render-07 Active n1/PCIROOT(0)#PCI(0000) n1/PCIROOT(1)#PCI(0000)
        n1 generation 1 wants [render-07 Kept], 1 available
    "#]]);
    let placement = f.get("render-07").clone();
    let adoption = placement.adoption().unwrap();
    assert_eq!((placement.caller.as_str(), adoption.tags.len()), ("adopter", 1));
    assert_eq!(placement.vm_id, Some(vm_id(1)));

    // Again changes nothing; nor does another name, nor a placement asked for the usual way.
    for again in ["render-07", "other"] {
        let refused = f.adopt(1, again).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("VM {} cannot be adopted: it has placement render-07 already", vm_id(1))
        );
    }
    assert!(matches!(f.create(request("p", "render 07", 1)), Err(Refusal::VmHasPlacement { .. })));
    assert_eq!(f.table(&[]), "render 07: AlreadyPlaced (it has placement render-07 already)\n");

    // It ends as any other.
    f.release("render-07");
    f.check(expect![[r#"
        render-07 Releasing n1/PCIROOT(0)#PCI(0000) n1/PCIROOT(1)#PCI(0000)
        n1 generation 2 wants [render-07 Detached], 1 available
    "#]]);
    f.progress("render-07", StepReport::Satisfied);
    f.report("n1", (0..3).map(|slot| gpu(slot, IN_HOST)).collect(), vec![vm(1, "render 07")]);
    f.check(expect![[r#"
        render-07 Released n1/PCIROOT(0)#PCI(0000) n1/PCIROOT(1)#PCI(0000)
        n1 generation 3 wants [], 3 available
    "#]]);
    // And can be adopted anew, by its old name.
    f.report("n1", vec![attached(0, 1), gpu(1, IN_HOST), gpu(2, IN_HOST)], vec![with_devices(1, "render 07", &[0])]);
    f.adopt(1, "render-07").unwrap();
    assert_eq!(f.get("render-07").phase, Phase::Active);
}

#[test]
fn a_new_leader_knows_what_was_adopted() {
    let mut f = Fixture::with_node(1);
    f.report("n1", vec![attached(0, 1)], vec![with_devices(1, "a", &[0])]);
    f.adopt(1, "a").unwrap();
    let stored = |f: &Fixture| {
        let nodes = f.nodes.values().map(|n| StoredNode::clone(n)).collect();
        (nodes, f.placements.values().map(|p| Placement::clone(p)).collect())
    };
    let (nodes, placements) = stored(&f);
    f.brain = Brain::load(2, Limits::default(), nodes, placements, f.now).unwrap();
    assert_eq!(invariants::check_claims(f.brain.world(), &f.claims), []);
    // Nobody knows yet where anything is; nothing is adopted on such knowledge.
    let refused = candidates(f.brain.world(), &node_name("n1"), &[], &Naming::default()).unwrap_err();
    assert!(matches!(refused, Refusal::NodeNotReady { .. }), "{refused}");
    f.connect_at("n1", 1);
    f.report("n1", vec![attached(0, 1)], vec![with_devices(1, "a", &[0])]);
    assert!(matches!(f.adopt(1, "a"), Err(Refusal::NotAdoptable { .. })));
}

#[test]
fn everything_doubtful_or_somebody_elses_is_skipped_with_its_reason() {
    let mut f = Fixture::with_node(12);
    let with = |number, name: &str, change: fn(&mut ObservedVm)| {
        let mut vm = with_devices(number, name, &[number as usize]);
        change(&mut vm);
        vm
    };
    let pool = |address| VmDevice::Pool { pool: "GPUs".to_owned(), address };
    let mut mixed = with_devices(8, "mixed", &[8]);
    mixed.devices.push(pool(None));
    let mut late = vm(10, "late");
    late.devices = vec![pool(None)];
    let vms = vec![
        with(1, "clustered", |vm| vm.clustered = true),
        with(2, "unknown", |vm| vm.state = VmState::Unknown),
        with(3, "stale", |vm| vm.devices.push(VmDevice::Stale)),
        with(4, "foreign", |vm| vm.devices.push(VmDevice::At("PCIROOT(40)#PCI(0200)".parse().unwrap()))),
        with(5, "unseen", |_| ()),
        with(6, "shared", |_| ()),
        with_devices(7, "shared too", &[6]),
        mixed,
        with(9, "wrong card", |_| ()),
        late,
        with_devices(11, "fine", &[11]),
        vm(12, "bare"),
    ];
    let gpus = (0..12)
        .map(|slot| {
            let number = u32::try_from(slot).unwrap();
            let mut seen = if (1..12).contains(&number) { attached(slot, number) } else { gpu(slot, IN_HOST) };
            match slot {
                5 => seen.state = GpuState::Unknown,
                7 | 10 => seen.state = GpuState::Pooled,
                9 => seen.survey.fingerprint.id = "10de:2331".parse().unwrap(),
                _ => {}
            }
            seen
        })
        .collect();
    f.report("n1", gpus, vms);
    expect![[r#"
        clustered: Clustered (it is a clustered role, which fails over; take it out of the cluster first)
        unknown: Unobserved (what the VM does could not be observed; look again when it can)
        stale: StaleRecord (it names a device that is gone; remove that record first, or the VM does not start again)
        foreign: ForeignDevice (it has device PCIROOT(40)#PCI(0200), which is no GPU that Berth knows; take it out first, or leave the VM alone)
        unseen: Unobserved (where PCIROOT(5)#PCI(0000) is could not be observed; look again when it can)
        shared: InOtherVm (VM 00000000-0000-0000-0000-000000000007 lists PCIROOT(6)#PCI(0000), too; take it out of one of them first)
        shared too: InOtherVm (VM 00000000-0000-0000-0000-000000000006 lists PCIROOT(6)#PCI(0000), too; take it out of one of them first)
        mixed: NativePool (the cluster gives it GPUs from its own pool "GPUs"; one of the two must hand them out, not both)
        wrong card: Unhealthy (PCIROOT(9)#PCI(0000): another card is in the slot: expected 10de:25b6:10de:157e, found 10de:2331)
        late: NativePool (the cluster gives it GPUs from its own pool "GPUs"; one of the two must hand them out, not both)
        fine: fine, 1 GPUs
    "#]]
    .assert_eq(&f.table(&[]));
    assert_eq!(f.table(&[VmSelector::Name("BARE".parse().unwrap())]), "bare: NoGpu (it has no GPU)\n");
    for number in (1..=10).chain([12]) {
        assert!(matches!(f.adopt(number, "x"), Err(Refusal::NotAdoptable { .. })), "{number}");
    }
    let gone = VmSelector::Id(vm_id(99));
    let refused = candidates(f.brain.world(), &node_name("n1"), &[gone], &Naming::default()).unwrap_err();
    assert!(matches!(refused, Refusal::VmNotOnNode { .. }));
    f.adopt(11, "fine").unwrap();
    assert_eq!(f.brain.world().placement_count(), 1);
}

#[test]
fn names_are_the_vms_unless_somebody_has_them() {
    let mut f = Fixture::with_node(4);
    f.report(
        "n1",
        vec![gpu(0, IN_HOST), attached(1, 1), attached(2, 2), attached(3, 3)],
        vec![with_devices(1, "web", &[1]), with_devices(2, "Büro – №7", &[2]), with_devices(3, "web", &[3])],
    );
    f.create(request("web", "elsewhere", 1)).unwrap();
    // Two have one name, and somebody had it before them.
    expect![[r#"
        web: web-00000000, 1 GPUs
        Büro – №7: B-ro----7, 1 GPUs
        web: NameTaken (another placement is called web-00000000; give a name)
    "#]]
    .assert_eq(&f.table(&[]));
}

#[test]
fn drift_is_named_with_since_when_and_told_not_mended() {
    let mut f = Fixture::with_node(6);
    let generation = f.brain.desired(&node_name("n1")).unwrap().generation;
    let at = |f: &mut Fixture, seconds| f.now = f.now.after(Duration::from_secs(seconds));
    at(&mut f, 10);
    let mut wrong = gpu(4, IN_HOST);
    wrong.survey.fingerprint.id = "10de:2331".parse().unwrap();
    let mut pooled = gpu(5, GpuState::Pooled);
    pooled.health = GpuHealth::Quarantined(QuarantineReason::NativePool { pool: "GPUs".to_owned() });
    let seen = [
        attached(0, 1),
        gpu(1, GpuState::Pooled),
        gpu(2, GpuState::Host { driver: HostDriver::Disabled }),
        gpu(3, GpuState::Missing),
        wrong,
        pooled,
    ];
    let mut vms = vec![with_devices(1, "by hand", &[0]), vm(2, "stale")];
    vms[1].devices = vec![VmDevice::Stale, VmDevice::Stale];
    f.report("n1", seen.to_vec(), vms.clone());
    at(&mut f, 10);
    f.report("n1", seen.to_vec(), vms.clone());
    expect![[r#"
        AssignedByHand since 1010000: it is in VM by hand, and Berth did not put it there
        LeftDismounted since 1010000: it is dismounted from the host and in no VM, and no placement left it so
        Disabled since 1010000: it is disabled on the host, and no placement has it
        CardMissing since 1010000: it was here and is not in its slot any more
        WrongCard since 1010000: another card is in the slot: expected 10de:25b6:10de:157e, found 10de:2331
        StaleRecord since 1010000: VM stale has 2 records of devices that are gone
    "#]]
    .assert_eq(&f.drift());
    assert_eq!(f.brain.desired(&node_name("n1")).unwrap().generation, generation, "nobody is asked to mend it");

    // What is adopted is drift no more; what its VM takes along is, of another kind.
    f.adopt(1, "by-hand").unwrap();
    assert!(!f.drift().contains("AssignedByHand"));
    at(&mut f, 10);
    let mut moved = seen.to_vec();
    moved[0] = gpu(0, GpuState::Pooled);
    f.report("n1", moved, vec![]);
    expect![[r#"
        LeftDismounted since 1010000: it is dismounted from the host and in no VM, and no placement left it so
        Disabled since 1010000: it is disabled on the host, and no placement has it
        CardMissing since 1010000: it was here and is not in its slot any more
        WrongCard since 1010000: another card is in the slot: expected 10de:25b6:10de:157e, found 10de:2331
        VmGone since 1030000: the VM is not on its node any more
    "#]]
    .assert_eq(&f.drift());
    // Of a node that cannot be judged nothing is said.
    f.input(Input::Disconnected(node_name("n1")));
    assert_eq!(f.drift(), "");
}

#[test]
fn what_a_release_left_in_the_pool_is_no_orphan() {
    let mut f = Fixture::with_node(1);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    f.create(Draft { return_to: ReturnTo::Pool, ..request("p", "web", 1) }).unwrap();
    f.activate("p", 1);
    f.release("p");
    f.progress("p", StepReport::Satisfied);
    f.report("n1", vec![gpu(0, GpuState::Pooled)], vec![vm(1, "web")]);
    assert_eq!((f.get("p").phase.name(), f.drift()), ("Released", String::new()));
}

#[test]
fn after_a_restart_of_the_host_nothing_counts_as_known_until_the_next_whole_look() {
    let mut f = Fixture::with_node(2);
    f.report("n1", vec![attached(0, 1), gpu(1, IN_HOST)], vec![with_devices(1, "a", &[0])]);
    f.adopt(1, "a").unwrap();
    let states = |f: &Fixture| {
        let node = f.brain.world().node(&node_name("n1")).unwrap();
        let gpus: Vec<_> = node.gpus.values().map(|gpu| gpu.observed.state.name()).collect();
        (gpus.join(" "), node.vms.values().map(|vm| vm.state.name()).collect::<Vec<_>>().join(" "))
    };
    f.input(Input::Disconnected(node_name("n1")));
    // The same boot: an agent that was restarted alone.
    f.connect_at("n1", 1);
    assert_eq!(states(&f), ("Attached Host".into(), "Running".into()));
    let hello = Hello { boot: BootId::new("boot-2").unwrap(), ledger_generation: 1, ..hello("n1") };
    f.input(Input::Connected(Box::new(hello)));
    assert_eq!(states(&f), ("Unknown Unknown".into(), "Unknown".into()));
    // A part of a look, or one that failed, is not the whole.
    let failed = InventoryReport {
        sequence: 1,
        full: true,
        listing: Listing::Failed { why: "not yet".into() },
        gpus: vec![],
        vms: vec![],
        vms_gone: vec![],
    };
    f.input(Input::Report { node: node_name("n1"), report: Box::new(failed) });
    assert_eq!(states(&f), ("Unknown Unknown".into(), "Unknown".into()));
    f.check(expect![[r#"
        a Active n1/PCIROOT(0)#PCI(0000)
        n1 generation 1 wants [a Kept], 0 available
    "#]]);
    // The restart is told only of what the look shows.
    f.report("n1", vec![attached(0, 1), gpu(1, IN_HOST)], vec![with_devices(1, "a", &[0])]);
    assert_eq!(states(&f), ("Attached Host".into(), "Running".into()));
}

#[test]
fn each_use_of_force_is_kept_once_and_told_once() {
    let mut f = Fixture::with_node(1);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    f.create(request("p", "web", 1)).unwrap();
    let uid = f.get("p").uid.clone();
    let forced = |slot| Forced { step: StepKind::Dismount, device: address(slot) };
    let tell = |f: &mut Fixture, generation, forced: Vec<Forced>| {
        let report = StepReport::Working { step: StepKind::Dismount, attempt: 1, last_error: None };
        let progress =
            Box::new(Progress { generation, uid: uid.clone(), report, forced, install: None, removed_role: None });
        f.input(Input::Progress { node: node_name("n1"), progress })
    };
    let told = tell(&mut f, 1, vec![forced(0)]);
    assert_eq!((told.learned.len(), told.learned[0].caller.as_str()), (1, "tester"));
    // Again, by a report about an older wish, and one function more.
    assert!(tell(&mut f, 1, vec![forced(0)]).learned.is_empty());
    let told = tell(&mut f, 0, vec![forced(0), forced(7)]);
    assert_eq!(told.learned.iter().map(|learned| learned.what.clone()).collect::<Vec<_>>(), [Note::Forced(forced(7))]);
    let notes: Vec<_> = f.get("p").history.iter().map(|noted| noted.what.clone()).collect();
    assert_eq!(notes, [Note::Forced(forced(0)), Note::Forced(forced(7))]);
    assert!(tell(&mut f, 1, vec![forced(0), forced(7)]).changes.is_empty(), "what is known costs nothing");
}

#[test]
fn a_removed_role_is_kept_once_and_told_once() {
    let mut f = Fixture::with_node(1);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    f.create(request("p", "web", 1)).unwrap();
    let uid = f.get("p").uid.clone();
    let role = ClusterRole { name: "web".parse().unwrap(), owner: "NODE1".parse().ok(), priority: Some(2000) };
    let tell = |f: &mut Fixture, role: Option<ClusterRole>| {
        let report = StepReport::Working { step: StepKind::StopVm, attempt: 1, last_error: None };
        let progress =
            Progress { generation: 1, uid: uid.clone(), report, forced: Vec::new(), install: None, removed_role: role };
        f.input(Input::Progress { node: node_name("n1"), progress: Box::new(progress) })
    };
    assert!(tell(&mut f, None).learned.is_empty());
    let told = tell(&mut f, Some(role.clone())).learned;
    assert_eq!((told.len(), told[0].caller.as_str(), &told[0].what), (1, "tester", &Note::RoleRemoved(role.clone())));
    assert!(tell(&mut f, Some(role.clone())).changes.is_empty(), "what is known costs nothing");
    let notes: Vec<_> = f.get("p").history.iter().map(|noted| noted.what.to_string()).collect();
    assert_eq!(
        notes,
        [
            "the VM's clustered role \"web\" was removed; it was owned by NODE1, of priority 2000; Berth does not make it again: \
          after the release, Add-ClusterVirtualMachineRole -VMId … -Name …"
        ]
    );
}

/// The sound function of the card is in another VM: a release would pull the card from under it.
#[test]
fn a_card_of_which_another_vm_has_any_function_is_not_taken_over() {
    let mut f = Fixture::with_node(1);
    let mut seen = gpu(0, GpuState::Attached { vm: vm_id(1) });
    seen.survey.companions = vec![address(5)];
    f.report("n1", vec![seen], vec![with_devices(1, "a", &[0]), with_devices(2, "b", &[5])]);
    assert!(f.table(&[]).starts_with(
        "a: InOtherVm (VM 00000000-0000-0000-0000-000000000002 lists PCIROOT(5)#PCI(0000), too; take it out of one of them first)"
    ), "{}", f.table(&[]));
    assert!(matches!(f.adopt(1, "x"), Err(Refusal::NotAdoptable { .. })));
}

#[test]
fn what_was_run_in_a_guest_is_kept_once_and_again_when_more_is_known_of_it() {
    let mut f = Fixture::with_node(1);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    let wish = Draft { verify: VerifyLevel::DriverBound, install_driver: "nvidia".into(), ..request("p", "web", 1) };
    f.create(wish).unwrap();
    let uid = f.get("p").uid.clone();
    let run = |end| {
        Some(Install { command: "nvidia".parse().unwrap(), end, output: InstallOutput::of(b"no kernel headers") })
    };
    let tell = |f: &mut Fixture, generation, report, install| {
        let progress =
            Progress { generation, uid: uid.clone(), report, forced: Vec::new(), install, removed_role: None };
        f.input(Input::Progress { node: node_name("n1"), progress: Box::new(progress) })
    };
    let works = |step| StepReport::Working { step, attempt: 1, last_error: None };
    tell(&mut f, 1, works(StepKind::InstallDriver), None);
    assert_eq!(f.get("p").phase.name(), "Verifying");
    tell(&mut f, 1, works(StepKind::Verify), run(InstallEnd::Unknown));
    assert!(tell(&mut f, 1, works(StepKind::Verify), run(InstallEnd::Unknown)).changes.is_empty());
    // By a report about an older wish, too: what was run was run.
    tell(&mut f, 0, works(StepKind::Verify), run(InstallEnd::Exited(1)));
    let error = StepError { class: StepErrorClass::Failed, text: "exit code 1".to_owned() };
    tell(&mut f, 1, StepReport::Failed { step: StepKind::InstallDriver, error }, run(InstallEnd::Exited(1)));
    assert_eq!(f.get("p").phase.name(), "Releasing");
    let notes: Vec<_> = f.get("p").history.iter().map(|noted| noted.what.clone()).collect();
    let wanted = [InstallEnd::Unknown, InstallEnd::Exited(1)].map(|end| Note::Installed(run(end).unwrap()));
    assert_eq!(notes, wanted);
}

/// A release had to leave it, and it turned up in the pool: nobody gets it, and what was seen says why.
#[test]
fn a_card_that_turned_up_unclean_is_not_available_and_told_as_left_dismounted() {
    let mut f = Fixture::with_node(1);
    let mut seen = gpu(0, GpuState::Pooled);
    seen.health =
        GpuHealth::Quarantined(QuarantineReason::NotCleanAfterRelease { seen: "it was gone then".to_owned() });
    f.report("n1", vec![seen], Vec::new());
    let told = f.drift();
    assert!(
        told.starts_with("LeftDismounted since")
            && told.contains("did not come back clean after release: it was gone then"),
        "{told}"
    );
    f.check(expect!["n1 generation 0 wants [], 0 available\n"]);
}
