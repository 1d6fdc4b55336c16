//! The brain through its only door: inputs go in, the story that follows is shown, and after every input the
//! invariants hold and the changes are what a store would take.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use berth_core::decide::{Brain, Change, Claimed, Decision, Input, Limits, MAX_GENERATION_LEAP};
use berth_core::mirror::{Mirror, SeenNode, Touched};
use berth_core::{condition, invariants};
use berth_model::gpu::*;
use berth_model::id::FleetId;
use berth_model::inventory::{Hello, InventoryReport, Listing};
use berth_model::node::{BootId, HostFacts, Platform, StoredNode};
use berth_model::placement::*;
use berth_model::reason::Refusal;
use berth_model::request::{Draft, PlacementRequest, Resources};
use berth_model::vm::{ObservedVm, VmDevice, VmState};
use berth_model::*;
use expect_test::{Expect, expect};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

#[path = "brain/adopting.rs"]
mod adopting;

/// A store that checks what the real ones check, and a brain on it.
struct Fixture {
    brain: Brain,
    now: Timestamp,
    placements: BTreeMap<PlacementName, Arc<Placement>>,
    nodes: BTreeMap<NodeName, Arc<StoredNode>>,
    claims: BTreeMap<Claimed, (PlacementName, PlacementUid)>,
    uids: u32,
    sequence: u64,
    /// Copies as followers have them: one hears from the store first, one from the leader.
    mirrors: [Mirror; 2],
}

/// What the store tells a follower.
/// What an agent says first that has obeyed nobody yet.
fn hello(node: &str) -> Hello {
    Hello {
        node: node_name(node),
        agent_version: "0.1.0".into(),
        protocol: 1,
        boot: BootId::new("boot-1").unwrap(),
        facts: facts(),
        ledger_term: 0,
        ledger_generation: 0,
        ledger_fleet: None,
        ledger_placements: Some(0),
    }
}

fn follow_store(mirror: &mut Mirror, changes: &[Change]) {
    let mut touched = Touched::default();
    for change in changes {
        match change {
            Change::PutPlacement(placement) => mirror.put_placement(Placement::clone(placement), &mut touched),
            Change::RemovePlacement { name, version: _ } => mirror.remove_placement(name, &mut touched),
            Change::PutNode(node) => mirror.put_node(StoredNode::clone(node), &mut touched),
            Change::Claim { .. } | Change::Unclaim { .. } => {}
        }
    }
}

/// What the leader tells a follower.
fn follow_leader(mirror: &mut Mirror, brain: &Brain, decision: &Decision) {
    let (world, mut touched) = (brain.world(), Touched::default());
    for node in decision.nodes.iter().filter_map(|name| world.node(name)) {
        mirror.see_node(SeenNode::of(node), &mut touched);
    }
    for name in &decision.touched {
        let live = world.live(name).map(|live| berth_core::world::Live::clone(live));
        mirror.see_live(name.clone(), live.unwrap_or_default(), &mut touched);
    }
}

fn facts() -> HostFacts {
    HostFacts {
        platform: Platform::Simulated,
        system: "test".into(),
        cluster: None,
        cpu_milli: 64_000,
        memory_bytes: 256 << 30,
        mmio_high_cap_bytes: None,
        notes: Vec::new(),
    }
}

fn address(slot: usize) -> pci::DeviceAddress {
    format!("PCIROOT({slot})#PCI(0000)").parse().unwrap()
}

fn gpu(slot: usize, state: GpuState) -> ObservedGpu {
    ObservedGpu {
        address: address(slot),
        survey: Survey {
            model: ModelName::new("A2").unwrap(),
            fingerprint: Fingerprint { id: "10de:25b6:10de:157e".parse().unwrap(), serial: None },
            vram_bytes: Some(16 << 30),
            mmio: MmioSize { low_bytes: 16 << 20, high_bytes: 16 << 30 },
            numa_node: Some(0),
            companions: vec![],
            verdict: Verdict::Assignable,
        },
        state,
        health: GpuHealth::Ok,
        problem: None,
    }
}

const IN_HOST: GpuState = GpuState::Host { driver: HostDriver::None };

fn vm_id(number: u32) -> VmId {
    VmId::new(format!("00000000-0000-0000-0000-{number:012}")).unwrap()
}

fn vm(number: u32, name: &str) -> ObservedVm {
    ObservedVm {
        id: vm_id(number),
        name: VmName::new(name).unwrap(),
        state: VmState::Off,
        clustered: false,
        devices: vec![],
    }
}

fn name(text: &str) -> PlacementName {
    PlacementName::new(text).unwrap()
}

fn node_name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn request(name: &str, vm: &str, gpus: u32) -> Draft {
    Draft { request_id: format!("r-{name}"), name: name.into(), vm: vm.into(), gpus, ..Draft::default() }
}

impl Fixture {
    fn new() -> Self {
        let now = Timestamp::from_millis(1_000_000);
        let limits = Limits { history: 3, ..Limits::default() };
        let brain = Brain::load(1, limits, vec![], vec![], now).unwrap();
        Self {
            brain,
            now,
            placements: BTreeMap::new(),
            nodes: BTreeMap::new(),
            claims: BTreeMap::new(),
            uids: 0,
            sequence: 0,
            mirrors: [Mirror::new(now), Mirror::new(now)],
        }
    }

    /// One node with GPUs in the host's hands.
    fn with_node(gpus: usize) -> Self {
        let mut fixture = Self::new();
        fixture.connect("n1");
        fixture.report("n1", (0..gpus).map(|slot| gpu(slot, IN_HOST)).collect(), vec![]);
        fixture
    }

    fn try_input(&mut self, input: Input) -> Result<Decision, Refusal> {
        let before = format!("{:?}", self.brain.world());
        match self.brain.decide(self.now, input) {
            Ok(decision) => {
                self.store(&decision);
                Ok(decision)
            }
            Err(refusal) => {
                assert_eq!(before, format!("{:?}", self.brain.world()), "a refusal changed something");
                Err(refusal)
            }
        }
    }

    fn input(&mut self, input: Input) -> Decision {
        self.try_input(input).unwrap()
    }

    /// Applies changes as a store would, preconditions and all.
    fn store(&mut self, decision: &Decision) {
        assert!(decision.changes.len() <= 110, "{} changes do not fit one transaction", decision.changes.len());
        for change in &decision.changes {
            match change.clone() {
                Change::PutPlacement(new) => {
                    let stored = self.placements.get(new.name()).map_or(0, |p| p.version);
                    assert_eq!(new.version, stored + 1, "version of {}", new.name());
                    self.placements.insert(new.name().clone(), new);
                }
                Change::RemovePlacement { name, version } => {
                    assert_eq!(self.placements.remove(&name).unwrap().version, version);
                }
                Change::PutNode(new) => {
                    assert_eq!(new.version, self.nodes.get(&new.name).map_or(0, |n| n.version) + 1);
                    self.nodes.insert(new.name.clone(), new);
                }
                Change::Claim { what, placement, uid } => {
                    assert_eq!(self.claims.insert(what.clone(), (placement, uid)), None, "{what:?} is claimed twice");
                }
                Change::Unclaim { what, placement, uid } => {
                    assert_eq!(self.claims.remove(&what), Some((placement, uid)), "{what:?} is another's");
                }
            }
        }
        let [first, second] = &mut self.mirrors;
        follow_store(first, &decision.changes);
        follow_leader(first, &self.brain, decision);
        follow_leader(second, &self.brain, decision);
        follow_store(second, &decision.changes);
        let world = self.brain.world();
        for mirror in &self.mirrors {
            assert_eq!(invariants::differences(world, mirror.world()), [""; 0], "a copy differs");
            assert_eq!(invariants::check(mirror.world()), []);
        }
        assert_eq!(invariants::check(world), []);
        assert_eq!(invariants::check_claims(world, &self.claims), []);
        let kept: Vec<_> = world.placements().map(|p| Placement::clone(p)).collect();
        assert_eq!(kept, self.placements.values().map(|p| Placement::clone(p)).collect::<Vec<_>>());
    }

    fn connect(&mut self, node: &str) {
        self.connect_at(node, 0);
    }

    /// An agent whose ledger holds this generation.
    fn connect_at(&mut self, node: &str, ledger_generation: u64) {
        self.connect_holding(node, ledger_generation, Some(0), None);
    }

    /// An agent whose ledger holds this generation with so many placements, of this fleet.
    fn connect_holding(
        &mut self,
        node: &str,
        ledger_generation: u64,
        ledger_placements: Option<u32>,
        ledger_fleet: Option<FleetId>,
    ) -> Decision {
        let hello = Hello { ledger_generation, ledger_fleet, ledger_placements, ..hello(node) };
        self.input(Input::Connected(Box::new(hello)))
    }

    fn report(&mut self, node: &str, gpus: Vec<ObservedGpu>, vms: Vec<ObservedVm>) -> Decision {
        self.sequence += 1;
        let report = InventoryReport {
            sequence: self.sequence,
            full: true,
            listing: Listing::Complete,
            gpus,
            vms,
            vms_gone: vec![],
        };
        self.input(Input::Report { node: node_name(node), report: Box::new(report) })
    }

    fn create(&mut self, draft: Draft) -> Result<Arc<Placement>, Refusal> {
        self.uids += 1;
        let uid = PlacementUid::new(format!("00000000-0000-0000-0001-{:012}", self.uids)).unwrap();
        let request = Box::new(PlacementRequest::new(draft).unwrap());
        self.try_input(Input::Create { request, uid, caller: "tester".into(), trace: None })
            .map(|d| d.placement.unwrap())
    }

    fn release(&mut self, placement: &str) -> Arc<Placement> {
        self.input(Input::Release { name: name(placement), uid: None, version: None }).placement.unwrap()
    }

    fn progress(&mut self, placement: &str, report: StepReport) {
        let uid = self.get(placement).uid.clone();
        let generation = self.brain.desired(&node_name("n1")).unwrap().generation;
        self.input(Input::Progress {
            node: node_name("n1"),
            progress: Box::new(Progress { generation, uid, report, forced: Vec::new(), install: None }),
        });
    }

    fn get(&self, placement: &str) -> &Arc<Placement> {
        self.brain.world().placement(&name(placement)).unwrap()
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        for _ in 0..1000 {
            if self.brain.next_deadline().is_none_or(|at| at > self.now) {
                return;
            }
            self.input(Input::Tick);
        }
        panic!("ticking does not come to rest");
    }

    /// Everything placed and everything wanted, in a few lines.
    fn show(&self) -> String {
        let mut text = String::new();
        for p in self.brain.world().placements() {
            let gpus = p.assignment.iter().flat_map(|a| a.gpu_ids()).map(|id| id.to_string()).collect::<Vec<_>>();
            let detail = if let Phase::Failed { reason, undone } = &p.phase {
                format!(" ({reason}; undone {undone})")
            } else if let Phase::Releasing { cause: ReleaseCause::Failure(reason), .. } = &p.phase {
                format!(" ({reason})")
            } else {
                String::new()
            };
            text += &format!("{} {}{detail} {}\n", p.name(), p.phase.name(), gpus.join(" "));
            for condition in condition::conditions(self.brain.world(), p, self.now) {
                text += &format!("  {condition:?}\n");
            }
        }
        for node in self.brain.world().nodes() {
            let desired = self.brain.desired(&node.name).unwrap();
            let wants: Vec<_> = desired.placements.iter().map(|p| format!("{} {:?}", p.name, p.intent)).collect();
            let free = node.gpus.values().filter(|gpu| node.is_available(gpu)).count();
            text += &format!(
                "{} generation {} wants [{}], {free} available\n",
                node.name,
                desired.generation,
                wants.join(", ")
            );
        }
        text
    }

    fn check(&self, want: Expect) {
        want.assert_eq(&self.show());
    }

    /// Brings a placement with an existing VM to Active.
    fn activate(&mut self, placement: &str, vm: u32) {
        self.progress(placement, StepReport::Satisfied);
        let gpus = self.get(placement).assignment.clone().unwrap().gpus;
        let node = self.brain.world().node(&node_name("n1")).unwrap();
        let seen: Vec<_> = node
            .gpus
            .values()
            .map(|known| {
                let mut seen = known.observed.clone();
                if gpus.iter().any(|g| g.address == seen.address) {
                    seen.state = GpuState::Attached { vm: vm_id(vm) };
                }
                seen
            })
            .collect();
        let vms = node.vms.values().cloned().collect();
        self.report("n1", seen, vms);
    }
}

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
fn an_old_satisfied_does_not_release() {
    let mut f = Fixture::with_node(1);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    f.create(request("p1", "web", 1)).unwrap();
    let uid = f.get("p1").uid.clone();
    let attached = f.brain.desired(&node_name("n1")).unwrap().generation;
    f.release("p1");
    let late = Progress { generation: attached, uid, report: StepReport::Satisfied, forced: Vec::new(), install: None };
    f.input(Input::Progress { node: node_name("n1"), progress: Box::new(late.clone()) });
    assert_eq!(f.get("p1").phase.name(), "Releasing", "it said that the GPU is attached, not that it is back");
    let foreign = Progress { generation: 99, ..late };
    f.connect("n2");
    f.input(Input::Progress { node: node_name("n2"), progress: Box::new(foreign) });
    assert_eq!(f.get("p1").phase.name(), "Releasing", "another node has no say");
}

#[test]
fn what_an_agent_did_for_a_later_wish_than_the_store_remembers_is_no_answer_to_the_older_one() {
    let mut f = Fixture::with_node(1);
    f.create(request("p1", "web", 1)).unwrap();
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    // The store was put back to before p1 became active and was released: the agent has given the GPU back since, for
    // generation 7, and tells that first of all.
    f.connect_at("n1", 7);
    let uid = f.get("p1").uid.clone();
    let report = StepReport::Satisfied;
    f.input(Input::Progress {
        node: node_name("n1"),
        progress: Box::new(Progress { generation: 7, uid, report, forced: Vec::new(), install: None }),
    });
    f.check(expect![[r#"
        p1 Preparing n1/PCIROOT(0)#PCI(0000)
        n1 generation 8 wants [p1 Attached], 0 available
    "#]]);
    f.progress("p1", StepReport::Satisfied);
    assert_eq!(f.get("p1").phase.name(), "Active", "what is said of the present wish counts");
}

#[test]
fn a_generation_beyond_belief_moves_nothing() {
    let mut f = Fixture::with_node(1);
    f.create(request("p1", "web", 1)).unwrap();
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    for damaged in [u64::MAX, u64::MAX - 1, 2 + MAX_GENERATION_LEAP] {
        f.connect_at("n1", damaged);
        assert_eq!(f.brain.desired(&node_name("n1")).unwrap().generation, 1, "{damaged}");
    }
    f.connect_at("n1", 1 + MAX_GENERATION_LEAP);
    assert_eq!(f.brain.desired(&node_name("n1")).unwrap().generation, 2 + MAX_GENERATION_LEAP);
}

/// An empty or another store vouches for nothing that an agent holds: it must not be told to forget it.
#[test]
fn an_agent_that_holds_what_is_not_this_stores_is_shown_and_told_nothing() {
    let fleet = |number: u8| Some(format!("f1ee7000-0000-4000-8000-{number:012}").parse::<FleetId>().unwrap());
    let told = |f: &Fixture, node: &str| f.brain.desired(&node_name(node)).is_some();
    let mut f = Fixture::with_node(1);
    f.brain = f.brain.clone().of_fleet(fleet(1));
    // Also of this fleet, when the store does not know the node: it was rebuilt while the node was away.
    let strange = [("n2", Some(3), None), ("n3", None, None), ("n4", Some(1), fleet(2)), ("n5", Some(2), fleet(1))];
    for (node, placements, of) in strange {
        let decision = f.connect_holding(node, 7, placements, of);
        assert_eq!((decision.changes.len(), told(&f, node)), (0, false), "{node}");
        let why = f.brain.world().node(&node_name(node)).unwrap().not_ready().unwrap();
        assert_eq!(why.name(), "Stranger");
        assert!(why.to_string().contains("berth-controller rebuild"), "{why}");
        let decision = f.report(node, vec![gpu(0, IN_HOST)], vec![vm(5, "strange")]);
        assert_eq!(decision.changes, [], "nothing of what it reports counts");
        assert!(matches!(f.create(Draft { node: node.to_owned(), ..request("p", "vm", 1) }), Err(Refusal::NoRoom(_))));
    }
    // One that the store knows, too, if it is of another fleet: what is decided for that node waits.
    f.create(request("mine", "web", 1)).unwrap();
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    assert!(told(&f, "n1"));
    f.connect_holding("n1", 7, Some(1), fleet(2));
    f.release("mine");
    assert!(!told(&f, "n1"));
    let answer = Progress {
        generation: 99,
        uid: f.get("mine").uid.clone(),
        report: StepReport::Satisfied,
        forced: Vec::new(),
        install: None,
    };
    assert_eq!(f.input(Input::Progress { node: node_name("n1"), progress: Box::new(answer) }).changes, []);

    // Whoever holds nothing, or what is ours, is welcome; so is one from before fleets that the store knows.
    f.connect_holding("n4", 7, Some(0), fleet(2));
    f.connect_holding("n6", 0, None, None);
    f.connect_holding("n1", 7, Some(1), None);
    for node in ["n1", "n4", "n6"] {
        assert!(told(&f, node), "{node}");
        assert_eq!(f.brain.desired(&node_name(node)).unwrap().fleet, fleet(1));
        assert!(f.nodes.contains_key(&node_name(node)), "{node} is stored");
    }
    f.input(Input::Disconnected(node_name("n2")));
    assert!(!f.nodes.contains_key(&node_name("n2")), "it is nobody's still");
}

#[test]
fn a_report_about_a_wish_that_was_never_made_is_no_answer() {
    let mut f = Fixture::with_node(1);
    f.create(request("p1", "web", 1)).unwrap();
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    let uid = f.get("p1").uid.clone();
    let report = StepReport::Satisfied;
    f.input(Input::Progress {
        node: node_name("n1"),
        progress: Box::new(Progress { generation: 2, uid, report, forced: Vec::new(), install: None }),
    });
    assert_eq!(f.get("p1").phase.name(), "Preparing");
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
fn unknown_is_never_free() {
    let mut f = Fixture::with_node(2);
    // A failed listing blocks and changes nothing else.
    let failed = InventoryReport {
        sequence: 9,
        full: true,
        listing: Listing::Failed { why: "Get-PnpDevice timed out".into() },
        gpus: vec![],
        vms: vec![],
        vms_gone: vec![],
    };
    f.input(Input::Report { node: node_name("n1"), report: Box::new(failed) });
    f.check(expect![[r#"
        n1 generation 0 wants [], 0 available
    "#]]);
    // A complete one that says nothing about a GPU makes that one unknown.
    f.report("n1", vec![gpu(0, IN_HOST)], vec![]);
    f.check(expect![[r#"
        n1 generation 0 wants [], 1 available
    "#]]);
    let node = f.brain.world().node(&node_name("n1")).unwrap();
    assert_eq!(node.gpus[&address(1)].observed.state, GpuState::Unknown);
    f.input(Input::Disconnected(node_name("n1")));
    f.check(expect![[r#"
        n1 generation 0 wants [], 0 available
    "#]]);
}

#[test]
fn another_card_in_the_slot_is_kept_back_and_the_measured_facts_stay() {
    let mut f = Fixture::with_node(1);
    let mut stranger = gpu(0, IN_HOST);
    stranger.survey.fingerprint.id = "10de:2331".parse().unwrap();
    f.report("n1", vec![stranger], vec![]);
    let node = f.brain.world().node(&node_name("n1")).unwrap().clone();
    let seen = &node.gpus[&address(0)].observed;
    assert!(matches!(seen.health, GpuHealth::Quarantined(QuarantineReason::WrongCard { .. })), "{seen:?}");
    assert_eq!(seen.survey, gpu(0, IN_HOST).survey);
    let mut pooled = gpu(0, GpuState::Pooled);
    pooled.survey.verdict = Verdict::NotMeasured;
    pooled.survey.mmio = MmioSize::default();
    f.report("n1", vec![pooled], vec![]);
    let node = f.brain.world().node(&node_name("n1")).unwrap();
    assert!(node.is_available(&node.gpus[&address(0)]), "what was measured once is remembered");
}

#[test]
fn cards_that_wander_from_slot_to_slot_do_not_fill_the_store() {
    let mut f = Fixture::with_node(1);
    f.create(request("p1", "web", 1)).unwrap();
    for round in 1..20 {
        f.now = f.now.after(Duration::from_secs(60));
        f.report("n1", (0..64).map(|slot| gpu(round * 100 + slot, IN_HOST)).collect(), vec![]);
    }
    let gpus = &f.brain.world().node(&node_name("n1")).unwrap().gpus;
    assert_eq!(gpus.len(), 256);
    assert!(gpus.contains_key(&address(0)), "what is owned stays");
    assert!((0..64).all(|slot| gpus.contains_key(&address(1900 + slot))), "what is listed stays");
    assert!(gpus.contains_key(&address(1800)) && !gpus.contains_key(&address(100)), "the oldest go first");
    assert_eq!(f.nodes[&node_name("n1")].gpus.len(), 256, "and out of the store");
}

#[test]
fn what_was_given_by_hand_is_not_available_and_drift_is_told_not_mended() {
    let mut f = Fixture::with_node(1);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    f.create(request("p1", "web", 1)).unwrap();
    f.activate("p1", 1);
    let generation = f.brain.desired(&node_name("n1")).unwrap().generation;
    let mut thief = vm(2, "thief");
    thief.devices = vec![VmDevice::At(address(0))];
    f.report("n1", vec![gpu(0, GpuState::Attached { vm: vm_id(2) })], vec![vm(1, "web"), thief]);
    f.check(expect![[r#"
        p1 Active n1/PCIROOT(0)#PCI(0000)
          Drifted { since: Timestamp(1000000), what: InOtherVm { address: Location(LocationPath("PCIROOT(0)#PCI(0000)")), vm: VmId("00000000-0000-0000-0000-000000000002") } }
        n1 generation 2 wants [p1 Kept], 0 available
    "#]]);
    assert_eq!(f.brain.desired(&node_name("n1")).unwrap().generation, generation);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![]);
    assert!(matches!(
        condition::conditions(f.brain.world(), f.get("p1"), f.now)[..],
        [Condition::Drifted { what: Drift::VmGone, .. }]
    ));
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
fn a_vm_id_on_two_nodes_is_ambiguous_and_one_of_them_can_go() {
    let mut f = Fixture::with_node(2);
    f.connect("n2");
    f.report("n2", vec![gpu(0, IN_HOST)], vec![]);
    // As with Hyper-V Replica: a VM and its replica have one id.
    f.report("n1", vec![gpu(0, IN_HOST), gpu(1, IN_HOST)], vec![vm(1, "web")]);
    f.report("n2", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    let by_id = |name: &str| request(name, vm_id(1).as_str(), 1);
    let both = f.create(by_id("p1")).unwrap_err().to_string();
    expect!["VM 00000000-0000-0000-0000-000000000001 is on several nodes (n1, n2); add a node"].assert_eq(&both);
    f.report("n2", vec![gpu(0, IN_HOST)], vec![]);
    assert_eq!(f.create(by_id("p1")).unwrap().assignment.as_ref().unwrap().node, node_name("n1"));
    f.report("n2", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    f.release("p1");
    let named = f.create(Draft { node: "n1".into(), ..by_id("p2") });
    assert!(matches!(named, Err(Refusal::VmHasPlacement { .. })), "{named:?}");
}

#[test]
fn a_lost_node_keeps_its_claims_and_says_so() {
    let mut f = Fixture::with_node(1);
    f.create(request("p1", "web", 1)).unwrap();
    f.input(Input::Disconnected(node_name("n1")));
    f.now = f.now.after(condition::LOST_AFTER);
    f.check(expect![[r#"
        p1 Held n1/PCIROOT(0)#PCI(0000)
          NodeLost { since: Timestamp(1000000) }
        n1 generation 0 wants [], 0 available
    "#]]);
}

#[test]
fn a_new_leader_knows_what_the_old_one_stored() {
    let mut f = Fixture::with_node(2);
    f.report("n1", vec![gpu(0, IN_HOST), gpu(1, IN_HOST)], vec![vm(1, "web")]);
    f.create(request("p1", "web", 1)).unwrap();
    f.create(Draft { resources: Resources { cpu_milli: 1000, memory_bytes: 1 << 30 }, ..request("p2", "db", 1) })
        .unwrap();
    let nodes = f.nodes.values().map(|n| StoredNode::clone(n)).collect();
    let placements: Vec<_> = f.placements.values().map(|p| Placement::clone(p)).collect();
    let loaded = Brain::load(2, Limits::default(), nodes, placements.clone(), f.now).unwrap();
    assert_eq!(invariants::check(loaded.world()), []);
    assert_eq!(invariants::check_claims(loaded.world(), &f.claims), []);
    let (old, new) = (f.brain.desired(&node_name("n1")).unwrap(), loaded.desired(&node_name("n1")).unwrap());
    assert_eq!((old.generation, old.placements), (new.generation, new.placements));
    assert!(loaded.world().nodes().all(|n| n.gpus.values().all(|g| !n.is_available(g))), "nothing is known to be free");
    let mut twice = placements[0].clone();
    twice.request.name = name("p9");
    let doubled = [placements, vec![twice]].concat();
    let nodes = f.nodes.values().map(|n| StoredNode::clone(n)).collect();
    assert!(Brain::load(2, Limits::default(), nodes, doubled, f.now).is_err());
}

#[test]
fn what_an_agent_did_while_no_controller_was_there_is_not_late() {
    let mut f = Fixture::with_node(1);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    f.create(request("p1", "web", 1)).unwrap();
    let generation = f.brain.desired(&node_name("n1")).unwrap().generation;
    // An hour without a controller. The agent has long finished, and the VM runs.
    f.now = f.now.after(Duration::from_secs(3600));
    let nodes = f.nodes.values().map(|n| StoredNode::clone(n)).collect();
    let placements = f.placements.values().map(|p| Placement::clone(p)).collect();
    f.brain = Brain::load(2, Limits::default(), nodes, placements, f.now).unwrap();
    assert_eq!(f.brain.decide(f.now, Input::Tick).unwrap().changes, []);
    f.now = f.now.after(Duration::from_secs(5));
    f.connect("n1");
    let uid = f.get("p1").uid.clone();
    let progress = Progress { generation, uid, report: StepReport::Satisfied, forced: Vec::new(), install: None };
    f.input(Input::Progress { node: node_name("n1"), progress: Box::new(progress) });
    assert_eq!(f.get("p1").phase, Phase::Active);
}

/// Nobody knows since when it is away: the time counts from when the new leader could have heard of it.
#[test]
fn a_new_leader_calls_no_node_lost_before_its_agent_had_time_to_come() {
    let mut f = Fixture::with_node(1);
    f.connect("n2");
    f.report("n2", vec![gpu(0, IN_HOST)], vec![]);
    f.create(Draft { node: "n1".into(), ..request("p1", "web", 1) }).unwrap();
    f.create(Draft { node: "n2".into(), ..request("p2", "db", 1) }).unwrap();
    let until = f.get("p1").phase.deadline();
    f.now = f.now.after(Duration::from_secs(60));
    let nodes = f.nodes.values().map(|n| StoredNode::clone(n)).collect();
    let placements = f.placements.values().map(|p| Placement::clone(p)).collect();
    f.brain = Brain::load(2, Limits::default(), nodes, placements, f.now).unwrap();
    assert_eq!(f.get("p1").phase.deadline(), until, "a hold's deadline is what was promised");
    let lost = |f: &Fixture, name: &str| {
        let conditions = condition::conditions(f.brain.world(), f.get(name), f.now);
        conditions.iter().any(|condition| matches!(condition, Condition::NodeLost { .. }))
    };
    f.now = f.now.after(condition::LOST_AFTER - Duration::from_millis(1));
    f.brain.decide(f.now, Input::Connected(Box::new(hello("n2")))).unwrap();
    assert!(!lost(&f, "p1") && !lost(&f, "p2"));
    f.now = f.now.after(Duration::from_millis(1));
    assert!(lost(&f, "p1") && !lost(&f, "p2"), "whoever did not come by then is lost");
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

#[test]
fn many_vms_at_once_are_taken_up_in_several_decisions() {
    let mut f = Fixture::with_node(12);
    for n in 0..12 {
        f.create(request(&format!("p{n}"), &format!("vm{n}"), 1)).unwrap();
    }
    let gpus = (0..12).map(|slot| gpu(slot, IN_HOST)).collect();
    f.report("n1", gpus, (0..12).map(|n| vm(n, &format!("vm{n}"))).collect());
    f.pass(Duration::ZERO);
    assert!(f.brain.world().placements().all(|p| p.phase.name() == "Preparing"), "{}", f.show());
}

#[test]
fn a_report_that_says_nothing_new_costs_the_store_nothing() {
    let mut f = Fixture::with_node(4);
    let again = f.report("n1", (0..4).map(|slot| gpu(slot, IN_HOST)).collect(), vec![]);
    assert_eq!(again.changes, []);
    let moved = f.report("n1", (0..4).map(|slot| gpu(slot, GpuState::Pooled)).collect(), vec![vm(1, "web")]);
    assert_eq!(moved.changes, [], "where a GPU is is observed, not stored");
    f.input(Input::Disconnected(node_name("n1")));
    let back = f.brain.decide(f.now, Input::Tick).unwrap();
    assert_eq!(back.changes, []);
}

/// A follower that hears no leader any more shows what it last knew, and none of it as available.
#[test]
fn a_copy_shows_nothing_as_available_that_nobody_vouches_for() {
    let mut fixture = Fixture::with_node(4);
    fixture.create(request("p", "vm-p", 1)).unwrap();
    let later = fixture.now.after(Duration::from_secs(5));
    let [mirror, _] = &mut fixture.mirrors;
    let free = |mirror: &Mirror| {
        let nodes = mirror.world().nodes();
        nodes.flat_map(|node| node.gpus.values().filter(|gpu| node.is_available(gpu))).count()
    };
    assert_eq!(free(mirror), 3);
    let mut touched = Touched::default();
    mirror.lose(later, &mut touched);
    assert_eq!((free(mirror), touched.nodes.len(), touched.placements.len()), (0, 1, 1));
    let node = mirror.world().node(&node_name("n1")).unwrap();
    assert!(node.gpus.values().all(|gpu| gpu.observed.state == IN_HOST), "it is remembered");
    assert_eq!(node.not_ready(), Some(reason::Unavailable::NodeNotFresh));
    assert_eq!(invariants::check(mirror.world()), []);
    let placement = mirror.world().placement(&name("p")).unwrap();
    let much_later = later.after(Duration::from_secs(3600));
    assert_eq!(condition::conditions(mirror.world(), placement, much_later), [], "nobody says that the node is lost");
    // The next leader tells of another node only: of this one it does not know where it is.
    mirror.complete(&mut touched);
    assert_eq!(free(mirror), 0);
    assert!(
        mirror.world().node(&node_name("n1")).unwrap().gpus.values().all(|gpu| gpu.observed.state == GpuState::Unknown)
    );
    follow_leader(mirror, &fixture.brain, &Decision { nodes: [node_name("n1")].into(), ..Decision::default() });
    assert_eq!(free(&fixture.mirrors[0]), 3);
}
