//! From what agents hold to a world: the pure part of rebuilding.
//!
//! Must never guess between two that cannot both be true: what contradicts is left out and named. The one exception is a
//! placement that is being taken back, which gives way to one that is not.

use super::gather::Heard;
use crate::refill::Content;
use berth_core::decide::Limits;
use berth_model::desired::{DesiredGpu, DesiredPlacement, Intent};
use berth_model::gpu::{Survey, Verdict};
use berth_model::id::FleetId;
use berth_model::node::StoredNode;
use berth_model::pci::DeviceAddress;
use berth_model::placement::{AssignedGpu, Assignment, Phase, Pin, PinReason, Placement, ReleaseCause};
use berth_model::request::{Draft, PlacementRequest};
use berth_model::{GpuId, ModelName, NodeName, PlacementName, PlacementUid, Timestamp, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The model of a card that no report names yet. The first report puts the right one in its place.
const UNKNOWN_MODEL: &str = "unknown";

/// What was worked out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rebuilt {
    pub(super) content: Content,
    pub(super) left_out: Vec<LeftOut>,
}

/// A placement that an agent holds and that cannot be taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    name: PlacementName,
    uid: PlacementUid,
    node: NodeName,
    vm: VmId,
    gpus: Vec<DeviceAddress>,
    why: String,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, uid, node, vm, gpus, why } = self;
        let gpus = crate::console::list(gpus);
        write!(f, "{name} ({uid}) on {node}, VM {vm}, GPUs {gpus}: {why}")
    }
}

/// What only one placement can have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Single {
    Name(PlacementName),
    Uid(PlacementUid),
    Vm(VmId),
    Gpu(GpuId),
}

impl fmt::Display for Single {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "the name {name}"),
            Self::Uid(uid) => write!(f, "the uid {uid}"),
            Self::Vm(vm) => write!(f, "the VM {vm}"),
            Self::Gpu(gpu) => write!(f, "the GPU {gpu}"),
        }
    }
}

/// A placement as one agent holds it.
struct Held<'a> {
    node: &'a Heard,
    generation: u64,
    placement: &'a DesiredPlacement,
}

impl Held<'_> {
    fn singles(&self) -> BTreeSet<Single> {
        let DesiredPlacement { uid, name, vm, gpus, .. } = self.placement;
        let node = &self.node.hello.node;
        let gpu = |gpu: &DesiredGpu| Single::Gpu(GpuId { node: node.clone(), address: gpu.address.clone() });
        let mut singles: BTreeSet<_> = gpus.iter().map(gpu).collect();
        singles.extend([Single::Name(name.clone()), Single::Uid(uid.clone()), Single::Vm(vm.clone())]);
        singles
    }

    fn left_out(&self, why: String) -> LeftOut {
        let DesiredPlacement { uid, name, vm, gpus, .. } = self.placement;
        LeftOut {
            name: name.clone(),
            uid: uid.clone(),
            node: self.node.hello.node.clone(),
            vm: vm.clone(),
            gpus: gpus.iter().map(|gpu| gpu.address.clone()).collect(),
            why,
        }
    }
}

/// The world that agents know.
pub(super) fn reconstruct(heard: &[Heard], limits: &Limits, now: Timestamp) -> Rebuilt {
    let held: Vec<Held<'_>> = heard
        .iter()
        .filter_map(|node| Some((node, node.holdings.as_ref()?.as_ref()?)))
        .flat_map(|(node, desired)| {
            let generation = following(desired.generation);
            desired.placements.iter().map(move |placement| Held { node, generation, placement })
        })
        .collect();
    let mut rebuilt = Rebuilt::default();
    rebuilt.content.term = heard.iter().map(|heard| heard.hello.ledger_term).max().unwrap_or(0);
    rebuilt.content.fleet = fleets(heard).into_keys().next().cloned();
    rebuilt.content.nodes = heard.iter().map(|heard| node(heard, now)).collect();
    let surveys: BTreeMap<&NodeName, BTreeMap<&DeviceAddress, &Survey>> = rebuilt
        .content
        .nodes
        .iter()
        .map(|node| (&node.name, node.gpus.iter().map(|(address, survey)| (address, survey)).collect()))
        .collect();
    for (held, against) in held.iter().zip(contradictions(&held)) {
        let outcome = match against {
            Some(why) => Err(why),
            None => placement(held, surveys.get(&held.node.hello.node), limits, now),
        };
        match outcome {
            Ok(placement) => rebuilt.content.placements.push(placement),
            Err(why) => rebuilt.left_out.push(held.left_out(why)),
        }
    }
    rebuilt.content.placements.sort_by(|a, b| a.name().cmp(b.name()));
    rebuilt
}

/// The fleets whose placements agents hold, each with the nodes that do. What an agent without placements remembers of a
/// fleet counts for nothing.
pub(super) fn fleets(heard: &[Heard]) -> BTreeMap<&FleetId, Vec<&NodeName>> {
    let mut fleets: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for one in heard {
        let held = one.holdings.iter().flatten().filter(|desired| !desired.placements.is_empty());
        for fleet in held.filter_map(|desired| desired.fleet.as_ref()) {
            fleets.entry(fleet).or_default().push(&one.hello.node);
        }
    }
    fleets
}

/// Above what the agent accepted, so that it takes the next wish for a new one whatever is in it.
fn following(generation: u64) -> u64 {
    generation.saturating_add(1)
}

/// For each, why it cannot be taken over beside the others.
fn contradictions(held: &[Held<'_>]) -> Vec<Option<String>> {
    let mut claimed: BTreeMap<Single, Vec<usize>> = BTreeMap::new();
    for (at, one) in held.iter().enumerate() {
        for single in one.singles() {
            claimed.entry(single).or_default().push(at);
        }
    }
    let mut against: Vec<Option<String>> = vec![None; held.len()];
    for (single, by) in claimed.iter().filter(|(_, by)| by.len() > 1) {
        let stays = |at: &usize| held.get(*at).is_some_and(|held| held.placement.intent != Intent::Detached);
        let staying: Vec<_> = by.iter().filter(|at| stays(at)).collect();
        for at in by {
            if staying.as_slice() == [at] {
                continue;
            }
            let others = by.iter().filter(|other| *other != at).filter_map(|other| held.get(*other));
            let others = others.map(|other| format!("{} on {}", other.placement.name, other.node.hello.node));
            if let Some(slot) = against.get_mut(*at) {
                slot.get_or_insert_with(|| format!("{single} also belongs to {}", crate::console::list(others)));
            }
        }
    }
    against
}

fn placement(
    held: &Held<'_>,
    surveys: Option<&BTreeMap<&DeviceAddress, &Survey>>,
    limits: &Limits,
    now: Timestamp,
) -> Result<Placement, String> {
    let Held { node, generation, placement } = held;
    let DesiredPlacement { uid, name, vm, gpus, intent, allow_standalone, verify, return_to, install_driver, trace } =
        placement;
    let model = |address| surveys.and_then(|surveys| surveys.get(address)).map_or_else(unknown, |s| s.model.clone());
    let assigned: Vec<AssignedGpu> = gpus
        .iter()
        .map(|DesiredGpu { address, fingerprint, mmio }| AssignedGpu {
            address: address.clone(),
            model: model(address),
            fingerprint: fingerprint.clone(),
            mmio: *mmio,
        })
        .collect();
    let models: BTreeSet<_> = assigned.iter().map(|gpu| &gpu.model).filter(|model| **model != unknown()).collect();
    let request = PlacementRequest::new(Draft {
        request_id: format!("rebuilt-{uid}"),
        name: name.to_string(),
        vm: vm.to_string(),
        gpus: u32::try_from(gpus.len()).unwrap_or(u32::MAX),
        models: models.into_iter().map(ToString::to_string).collect(),
        allow_standalone: *allow_standalone,
        verify: *verify,
        return_to: *return_to,
        install_driver: install_driver.as_ref().map(ToString::to_string).unwrap_or_default(),
        ..Draft::default()
    });
    let request = request.map_err(crate::console::list)?;
    let phase = match intent {
        Intent::Kept => Phase::Active,
        // How far it had come, its agent says again.
        Intent::Attached => Phase::Preparing { until: now.after(limits.prepare) },
        Intent::Detached => Phase::Releasing { cause: ReleaseCause::Asked, until: now.after(limits.release) },
    };
    Ok(Placement {
        uid: uid.clone(),
        request,
        caller: "rebuild".to_owned(),
        trace: trace.clone(),
        created: now,
        version: 1,
        phase,
        phase_since: now,
        assignment: Some(Assignment {
            node: node.hello.node.clone(),
            gpus: assigned,
            pin: Pin { reason: PinReason::DeviceAssignment, since: now },
        }),
        vm_id: Some(vm.clone()),
        generation: *generation,
        // What was noted is gone with the store.
        history: Vec::new(),
    })
}

#[expect(clippy::expect_used, reason = "a constant that is a legal name")]
fn unknown() -> ModelName {
    ModelName::new(UNKNOWN_MODEL).expect("it is a legal name")
}

/// A node with its hardware: as reported, and where an agent holds a card that no report names, what it knows of it.
fn node(heard: &Heard, now: Timestamp) -> StoredNode {
    let Heard { hello, holdings, report } = heard;
    let desired = holdings.as_ref().and_then(Option::as_ref);
    let seen = report.iter().flat_map(|report| &report.gpus);
    let mut gpus: BTreeMap<DeviceAddress, Survey> = seen.map(|gpu| (gpu.address.clone(), gpu.survey.clone())).collect();
    for gpu in desired.iter().flat_map(|desired| &desired.placements).flat_map(|placement| &placement.gpus) {
        let DesiredGpu { address, fingerprint, mmio } = gpu;
        match gpus.get_mut(address) {
            // Another card sits there now. The one that was chosen stays on record, so that the stranger is noticed.
            Some(survey) if !survey.fingerprint.matches(fingerprint) => survey.fingerprint = fingerprint.clone(),
            Some(_) => {}
            None => {
                let survey = Survey {
                    model: unknown(),
                    fingerprint: fingerprint.clone(),
                    vram_bytes: None,
                    mmio: *mmio,
                    numa_node: None,
                    companions: Vec::new(),
                    verdict: Verdict::NotMeasured,
                };
                gpus.insert(address.clone(), survey);
            }
        }
    }
    StoredNode {
        name: hello.node.clone(),
        facts: hello.facts.clone(),
        agent_version: hello.agent_version.clone(),
        first_seen: now,
        cordons: Vec::new(),
        gpus: gpus.into_iter().collect(),
        generation: desired.map_or(hello.ledger_generation, |desired| following(desired.generation)),
        version: 1,
    }
}
