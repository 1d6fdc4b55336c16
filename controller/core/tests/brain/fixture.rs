//! A store that checks what the real ones check, a brain on it, and two followers.

use super::*;

/// A store that checks what the real ones check, and a brain on it.
pub(crate) struct Fixture {
    pub(crate) brain: Brain,
    pub(crate) now: Timestamp,
    pub(crate) placements: BTreeMap<PlacementName, Arc<Placement>>,
    pub(crate) nodes: BTreeMap<NodeName, Arc<StoredNode>>,
    pub(crate) claims: BTreeMap<Claimed, (PlacementName, PlacementUid)>,
    pub(crate) uids: u32,
    pub(crate) sequence: u64,
    /// Copies as followers have them: one hears from the store first, one from the leader.
    pub(crate) mirrors: [Mirror; 2],
}

/// What an agent says first that has obeyed nobody yet.
pub(crate) fn hello(node: &str) -> Hello {
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

/// What the store tells a follower.
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
pub(crate) fn follow_leader(mirror: &mut Mirror, brain: &Brain, decision: &Decision) {
    let (world, mut touched) = (brain.world(), Touched::default());
    for node in decision.nodes.iter().filter_map(|name| world.node(name)) {
        mirror.see_node(SeenNode::of(node), &mut touched);
    }
    for name in &decision.touched {
        let live = world.live(name).map(|live| berth_core::world::Live::clone(live));
        mirror.see_live(name.clone(), live.unwrap_or_default(), &mut touched);
    }
}

pub(crate) fn facts() -> HostFacts {
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

pub(crate) fn address(slot: usize) -> pci::DeviceAddress {
    format!("PCIROOT({slot})#PCI(0000)").parse().unwrap()
}

pub(crate) fn gpu(slot: usize, state: GpuState) -> ObservedGpu {
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

pub(crate) const IN_HOST: GpuState = GpuState::Host { driver: HostDriver::None };

pub(crate) fn vm_id(number: u32) -> VmId {
    VmId::new(format!("00000000-0000-0000-0000-{number:012}")).unwrap()
}

pub(crate) fn vm(number: u32, name: &str) -> ObservedVm {
    ObservedVm {
        id: vm_id(number),
        name: VmName::new(name).unwrap(),
        state: VmState::Off,
        clustered: false,
        devices: vec![],
    }
}

/// How a placement stands, with nothing to be known later.
pub(crate) fn said(generation: u64, uid: PlacementUid, report: StepReport) -> Progress {
    Progress { generation, uid, report, forced: Vec::new(), install: None, removed_role: None }
}

pub(crate) fn name(text: &str) -> PlacementName {
    PlacementName::new(text).unwrap()
}

pub(crate) fn node_name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

pub(crate) fn request(name: &str, vm: &str, gpus: u32) -> Draft {
    Draft { request_id: format!("r-{name}"), name: name.into(), vm: vm.into(), gpus, ..Draft::default() }
}

impl Fixture {
    pub(crate) fn new() -> Self {
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
    pub(crate) fn with_node(gpus: usize) -> Self {
        let mut fixture = Self::new();
        fixture.connect("n1");
        fixture.report("n1", (0..gpus).map(|slot| gpu(slot, IN_HOST)).collect(), vec![]);
        fixture
    }

    pub(crate) fn try_input(&mut self, input: Input) -> Result<Decision, Refusal> {
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

    pub(crate) fn input(&mut self, input: Input) -> Decision {
        self.try_input(input).unwrap()
    }

    /// Applies changes as a store would, preconditions and all.
    pub(crate) fn store(&mut self, decision: &Decision) {
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
        assert_eq!(self.brain.check(), []);
        assert_eq!(invariants::check_claims(world, &self.claims), []);
        let kept: Vec<_> = world.placements().map(|p| Placement::clone(p)).collect();
        assert_eq!(kept, self.placements.values().map(|p| Placement::clone(p)).collect::<Vec<_>>());
    }

    pub(crate) fn connect(&mut self, node: &str) {
        self.connect_at(node, 0);
    }

    /// An agent whose ledger holds this generation.
    pub(crate) fn connect_at(&mut self, node: &str, ledger_generation: u64) {
        self.connect_holding(node, ledger_generation, Some(0), None);
    }

    /// An agent whose ledger holds this generation with so many placements, of this fleet.
    pub(crate) fn connect_holding(
        &mut self,
        node: &str,
        ledger_generation: u64,
        ledger_placements: Option<u32>,
        ledger_fleet: Option<FleetId>,
    ) -> Decision {
        let hello = Hello { ledger_generation, ledger_fleet, ledger_placements, ..hello(node) };
        self.input(Input::Connected(Box::new(hello)))
    }

    pub(crate) fn report(&mut self, node: &str, gpus: Vec<ObservedGpu>, vms: Vec<ObservedVm>) -> Decision {
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

    pub(crate) fn create(&mut self, draft: Draft) -> Result<Arc<Placement>, Refusal> {
        self.uids += 1;
        let uid = PlacementUid::new(format!("00000000-0000-0000-0001-{:012}", self.uids)).unwrap();
        let request = Box::new(PlacementRequest::new(draft).unwrap());
        self.try_input(Input::Create { request, uid, caller: "tester".into(), trace: None })
            .map(|d| d.placement.unwrap())
    }

    pub(crate) fn release(&mut self, placement: &str) -> Arc<Placement> {
        self.input(Input::Release { name: name(placement), uid: None, version: None }).placement.unwrap()
    }

    pub(crate) fn progress(&mut self, placement: &str, report: StepReport) {
        let uid = self.get(placement).uid.clone();
        let generation = self.brain.desired(&node_name("n1")).unwrap().generation;
        self.input(Input::Progress { node: node_name("n1"), progress: Box::new(said(generation, uid, report)) });
    }

    pub(crate) fn get(&self, placement: &str) -> &Arc<Placement> {
        self.brain.world().placement(&name(placement)).unwrap()
    }

    pub(crate) fn pass(&mut self, time: Duration) {
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
    pub(crate) fn show(&self) -> String {
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

    pub(crate) fn check(&self, want: Expect) {
        want.assert_eq(&self.show());
    }

    /// Brings a placement with an existing VM to Active.
    pub(crate) fn activate(&mut self, placement: &str, vm: u32) {
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
