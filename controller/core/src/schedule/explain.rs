//! Why nothing fits: counts by rule, the nodes that came nearest, and what would make the nearest one fit.
//!
//! Owns the wording of fixes. Looks at every node, so it runs only for a refusal that somebody reads.

use super::ask::Ask;
use super::filter;
use crate::world::{Gpu, Node, World};
use berth_model::gpu::{Finding, QuarantineReason};
use berth_model::id::ClusterName;
use berth_model::pci::DeviceAddress;
use berth_model::reason::{Explanation, NearestMiss, Rejection, Unavailable};
use berth_model::{ModelName, NodeName, PlacementName, VmId};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

/// Explains why a request that has no place has none.
pub(super) fn explain(world: &World, ask: &Ask<'_>) -> Explanation {
    let mut counts: BTreeMap<&'static str, u32> = BTreeMap::new();
    let mut rejected: Vec<(Distance, &Node, Rejection)> = Vec::new();
    for node in world.nodes() {
        if let Err(rejection) = filter::check(world, ask, node) {
            *counts.entry(rejection.name()).or_default() += 1;
            rejected.push((Distance::of(ask, node, &rejection), node, rejection));
        }
    }
    rejected.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.name.cmp(&b.1.name)));
    rejected.truncate(Explanation::MAX_NODES);
    for (_, node, rejection) in &mut rejected {
        tell_blocked(ask, node, rejection);
    }
    let nearest = rejected.first().map(|(_, node, rejection)| NearestMiss {
        node: node.name.clone(),
        rejection: rejection.clone(),
        fixes: fixes(world, ask, node, rejection).iter().map(ToString::to_string).collect(),
    });
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(name, count)| (Reverse(*count), *name));
    Explanation {
        gpus: ask.request.gpus,
        nodes: u32::try_from(world.node_count()).unwrap_or(u32::MAX),
        counts,
        rejected: rejected.into_iter().map(|(_, node, rejection)| (node.name.clone(), rejection)).collect(),
        nearest,
    }
}

/// How far a node is from taking the request: first what kind of thing is in the way, then how many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Distance {
    kind: Obstacle,
    things: u32,
    rule: (u8, u32),
}

/// What is in the way, by how hard it is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    /// Something that passes or that people can change.
    Passing,
    /// Hardware that is there but not enough, or not usable.
    Hardware,
    /// No such hardware at all.
    OtherHardware,
    /// The request's own words.
    Request,
}

impl Distance {
    fn of(ask: &Ask<'_>, node: &Node, rejection: &Rejection) -> Self {
        let missing = || {
            let usable =
                best_model(ask, node).map_or(0, |(_, gpus)| gpus.iter().filter(|gpu| gpu.1.is_empty()).count());
            ask.request.gpus.saturating_sub(u32::try_from(usable).unwrap_or(u32::MAX))
        };
        let hopeless = || {
            let curable =
                best_model(ask, node).map_or(0, |(_, gpus)| gpus.iter().filter(|gpu| gpu.1.iter().all(passes)).count());
            curable < ask.request.gpus as usize
        };
        let (kind, things) = match rejection {
            Rejection::NotReady(_) if hopeless() => (Obstacle::Hardware, missing()),
            Rejection::NotReady(_) => (Obstacle::Passing, 1 + missing()),
            Rejection::NotEnoughFree { .. } if hopeless() => (Obstacle::Hardware, missing()),
            Rejection::NotEnoughFree { .. } => (Obstacle::Passing, missing()),
            Rejection::NotOneNuma { .. } | Rejection::Cpu { .. } | Rejection::Memory { .. } => (Obstacle::Passing, 1),
            Rejection::TooSmall { has } => (Obstacle::Hardware, ask.request.gpus.saturating_sub(*has)),
            Rejection::Mmio { .. } => (Obstacle::Hardware, ask.request.gpus),
            Rejection::NoSuchGpu { .. } => (Obstacle::OtherHardware, 0),
            Rejection::VmElsewhere { .. } | Rejection::ExcludedNode | Rejection::OtherCluster => (Obstacle::Request, 0),
            Rejection::OtherNode => (Obstacle::Request, 1),
        };
        Self { kind, things, rule: filter::progress(rejection) }
    }
}

/// Whether a reason goes away without other hardware.
fn passes(why: &Unavailable) -> bool {
    match why {
        Unavailable::NotAssignable(findings) => findings.iter().all(|finding| finding.overridable()),
        Unavailable::NotMeasured
        | Unavailable::Quarantined(_)
        | Unavailable::NeedsHostReboot
        | Unavailable::Claimed { .. }
        | Unavailable::Cordoned { .. }
        | Unavailable::InVm { .. }
        | Unavailable::StaleRecord { .. }
        | Unavailable::Missing
        | Unavailable::Unknown
        | Unavailable::NodeDisconnected { .. }
        | Unavailable::NodeNotFresh
        | Unavailable::SurveyFailed { .. }
        | Unavailable::Stranger { .. } => true,
    }
}

/// A GPU and the reasons against it that lie in itself, not in its node.
type Judged<'a> = (&'a Gpu, Vec<Unavailable>);

/// The model of a node that comes nearest to the request: with most usable GPUs, then with most at all.
fn best_model<'a>(ask: &Ask<'_>, node: &'a Node) -> Option<(&'a ModelName, Vec<Judged<'a>>)> {
    let mut models: BTreeMap<&ModelName, Vec<Judged<'a>>> = BTreeMap::new();
    for gpu in node.gpus.values().filter(|gpu| ask.takes(gpu)) {
        models.entry(gpu.model()).or_default().push((gpu, gpu.unavailable().collect()));
    }
    let enough = |gpus: &Vec<Judged<'a>>| gpus.len() >= ask.request.gpus as usize;
    let usable = |gpus: &Vec<Judged<'a>>| gpus.iter().filter(|gpu| gpu.1.is_empty()).count();
    models.into_iter().max_by_key(|(model, gpus)| (enough(gpus), usable(gpus), gpus.len(), Reverse(*model)))
}

/// Fills in what blocks each GPU, which the filter leaves out.
fn tell_blocked(ask: &Ask<'_>, node: &Node, rejection: &mut Rejection) {
    if let Rejection::NotEnoughFree { model, blocked, .. } = rejection {
        let of_model = node.gpus.iter().filter(|(_, gpu)| gpu.model() == &*model && ask.takes(gpu));
        blocked.extend(of_model.filter_map(|(address, gpu)| Some((address.clone(), node.unavailable(gpu).next()?))));
    }
}

/// One thing that would have to change.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fix {
    Release { placement: PlacementName, gpus: Vec<DeviceAddress>, model: ModelName },
    Uncordon { node: NodeName, labels: Vec<String> },
    Connect { node: NodeName },
    Report { node: NodeName },
    Survey { node: NodeName },
    Cure { gpu: DeviceAddress, model: ModelName, how: Cure },
    Restart { node: NodeName },
    MoreGpus { count: u32, model: Option<ModelName>, node: NodeName },
    Cpu { milli: u64, node: NodeName },
    Memory { bytes: u64, node: NodeName },
    AnyNuma,
    FewerGpus { gpus: u32 },
    NameVmNode { node: NodeName },
    NotNamed { node: NodeName },
    NotExcluded { node: NodeName },
    OtherCluster { cluster: Option<ClusterName> },
}

/// What makes one GPU usable.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cure {
    Allow(Vec<Finding>),
    Measure,
    LiftQuarantine(QuarantineReason),
    TakeFromVm(VmId),
    RemoveRecord(VmId),
    PutBack,
    Observe,
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release { placement, gpus, model } => {
                write!(f, "placement {placement} releases ")?;
                for (at, gpu) in gpus.iter().enumerate() {
                    write!(f, "{}{gpu}", if at > 0 { ", " } else { "" })?;
                }
                write!(f, " ({model})")
            }
            Self::Uncordon { node, labels } => write!(f, "node {node} is uncordoned ({})", labels.join(", ")),
            Self::Connect { node } => write!(f, "the agent of node {node} connects"),
            Self::Report { node } => write!(f, "the agent of node {node} reports"),
            Self::Survey { node } => write!(f, "a survey of node {node} succeeds"),
            Self::Cure { gpu, model, how } => match how {
                Cure::Allow(findings) => {
                    let names: Vec<_> = findings.iter().map(|finding| finding.name()).collect();
                    write!(f, "the policy of its node allows {} for {gpu} ({model})", names.join(", "))
                }
                Cure::Measure => write!(f, "{gpu} ({model}) is given to its host once and measured"),
                Cure::LiftQuarantine(reason) => write!(f, "{gpu} ({model}) leaves quarantine ({reason})"),
                Cure::TakeFromVm(vm) => write!(f, "VM {vm} gives up {gpu} ({model})"),
                Cure::RemoveRecord(vm) => write!(f, "VM {vm} no longer names {gpu} ({model})"),
                Cure::PutBack => write!(f, "{gpu} ({model}) is back in its slot"),
                Cure::Observe => write!(f, "{gpu} ({model}) can be observed again"),
            },
            Self::Restart { node } => write!(f, "node {node} is restarted"),
            Self::MoreGpus { count, model, node } => match model {
                Some(model) => write!(f, "node {node} has {count} more {model}"),
                None => write!(f, "node {node} has {count} GPUs as asked for"),
            },
            Self::Cpu { milli, node } => {
                write!(f, "{}.{:03} more cores are left on node {node}", milli / 1000, milli % 1000)
            }
            Self::Memory { bytes, node } => {
                write!(f, "{} MiB more memory is left on node {node}", bytes.div_ceil(1 << 20))
            }
            Self::AnyNuma => f.write_str("the request prefers one NUMA node instead of requiring it"),
            Self::FewerGpus { gpus } => write!(f, "the request asks for at most {gpus} GPUs a VM"),
            Self::NameVmNode { node } => write!(f, "the request names node {node}, where the VM is, or none"),
            Self::NotNamed { node } => write!(f, "the request does not name node {node}"),
            Self::NotExcluded { node } => write!(f, "the request does not exclude node {node}"),
            Self::OtherCluster { cluster: Some(cluster) } => write!(f, "the request names cluster {cluster} or none"),
            Self::OtherCluster { cluster: None } => f.write_str("the request names no cluster"),
        }
    }
}

/// What would make the request fit on this node, all of it together.
fn fixes(world: &World, ask: &Ask<'_>, node: &Node, rejection: &Rejection) -> Vec<Fix> {
    let request = ask.request;
    let name = || node.name.clone();
    match rejection {
        Rejection::OtherNode => match &ask.vm_node {
            Some(vm) => vec![Fix::NameVmNode { node: vm.clone() }],
            None => request.node.iter().map(|node| Fix::NotNamed { node: node.clone() }).collect(),
        },
        Rejection::VmElsewhere { node } => vec![Fix::NameVmNode { node: node.clone() }],
        Rejection::ExcludedNode => vec![Fix::NotExcluded { node: name() }],
        Rejection::OtherCluster => vec![Fix::OtherCluster { cluster: node.cluster().cloned() }],
        Rejection::NoSuchGpu { .. } => {
            let model = request.models.first().cloned().filter(|_| request.min_vram_bytes == 0);
            vec![Fix::MoreGpus { count: request.gpus, model, node: name() }]
        }
        Rejection::TooSmall { has } => {
            let model = best_model(ask, node).map(|(model, _)| model.clone());
            vec![Fix::MoreGpus { count: request.gpus.saturating_sub(*has), model, node: name() }]
        }
        Rejection::NotOneNuma { .. } => vec![Fix::AnyNuma],
        Rejection::Mmio { .. } => room_for(node, ask).map(|gpus| Fix::FewerGpus { gpus }).into_iter().collect(),
        Rejection::NotReady(_) | Rejection::NotEnoughFree { .. } | Rejection::Cpu { .. } | Rejection::Memory { .. } => {
            let mut fixes: Vec<Fix> = node.not_ready().into_iter().filter_map(|why| of_node(node, why)).collect();
            fixes.extend(node.cordoned().and_then(|why| of_node(node, why)));
            let released = free_gpus(ask, node, &mut fixes);
            let back = |amount: fn(&berth_model::request::Resources) -> u64| {
                let gets =
                    released.iter().filter_map(|name| world.placement(name)).map(|p| amount(&p.request.resources));
                gets.fold(amount(&node.left()), u64::saturating_add)
            };
            let cpu = request.resources.cpu_milli.saturating_sub(back(|r| r.cpu_milli));
            let memory = request.resources.memory_bytes.saturating_sub(back(|r| r.memory_bytes));
            fixes.extend((cpu > 0).then(|| Fix::Cpu { milli: cpu, node: name() }));
            fixes.extend((memory > 0).then(|| Fix::Memory { bytes: memory, node: name() }));
            fixes
        }
    }
}

/// The most GPUs that one VM can have address space for on this node, if any.
fn room_for(node: &Node, ask: &Ask<'_>) -> Option<u32> {
    let (model, _) = best_model(ask, node)?;
    let available: Vec<&Gpu> =
        node.gpus.values().filter(|g| g.model() == model && ask.takes(g) && node.is_available(g)).collect();
    Some(crate::world::index::room(node, &available).per_vm).filter(|gpus| *gpus > 0)
}

/// What cures a reason that concerns the node as a whole.
fn of_node(node: &Node, why: Unavailable) -> Option<Fix> {
    let node = node.name.clone();
    match why {
        Unavailable::NodeDisconnected { .. } => Some(Fix::Connect { node }),
        Unavailable::NodeNotFresh => Some(Fix::Report { node }),
        Unavailable::SurveyFailed { .. } => Some(Fix::Survey { node }),
        Unavailable::Cordoned { labels } => Some(Fix::Uncordon { node, labels }),
        Unavailable::NeedsHostReboot => Some(Fix::Restart { node }),
        Unavailable::NotAssignable(_)
        | Unavailable::NotMeasured
        | Unavailable::Quarantined(_)
        | Unavailable::Claimed { .. }
        | Unavailable::InVm { .. }
        | Unavailable::StaleRecord { .. }
        | Unavailable::Missing
        | Unavailable::Unknown
        | Unavailable::Stranger { .. } => None,
    }
}

/// Adds what would free enough GPUs; gives the placements that would have to go.
fn free_gpus(ask: &Ask<'_>, node: &Node, fixes: &mut Vec<Fix>) -> Vec<PlacementName> {
    let Some((model, gpus)) = best_model(ask, node) else { return Vec::new() };
    let wanted = ask.request.gpus as usize;
    let mut missing = wanted.saturating_sub(gpus.iter().filter(|gpu| gpu.1.is_empty()).count());
    // GPUs against which nothing speaks but a placement, by placement.
    let mut owned: BTreeMap<&PlacementName, Vec<DeviceAddress>> = BTreeMap::new();
    for (gpu, why) in &gpus {
        if let [Unavailable::Claimed { by }] = why.as_slice() {
            owned.entry(by).or_default().push(gpu.observed.address.clone());
        }
    }
    let mut released = Vec::new();
    while missing > 0
        && let Some(placement) = owned
            .iter()
            .min_by_key(
                |(_, gpus)| if gpus.len() >= missing { (0, gpus.len()) } else { (1, wanted - gpus.len().min(wanted)) },
            )
            .map(|(name, _)| *name)
    {
        let gpus = owned.remove(placement).unwrap_or_default();
        missing = missing.saturating_sub(gpus.len());
        released.push(placement.clone());
        fixes.push(Fix::Release { placement: placement.clone(), gpus, model: model.clone() });
    }
    // What is not merely owned: one cure after the other.
    let mut others: Vec<&Judged<'_>> = gpus
        .iter()
        .filter(|(_, why)| !why.is_empty() && !matches!(why.as_slice(), [Unavailable::Claimed { .. }]))
        .collect();
    others.sort_by_key(|(gpu, why)| (why.iter().filter(|why| !passes(why)).count(), why.len(), &gpu.observed.address));
    for (gpu, why) in others {
        if missing == 0 {
            break;
        }
        if !why.iter().all(passes) {
            continue;
        }
        missing -= 1;
        for fix in why.iter().filter_map(|why| of_gpu(node, gpu, why)) {
            if !fixes.contains(&fix) {
                fixes.push(fix);
            }
        }
    }
    if missing > 0 {
        let count = u32::try_from(missing).unwrap_or(u32::MAX);
        fixes.push(Fix::MoreGpus { count, model: Some(model.clone()), node: node.name.clone() });
    }
    released
}

/// What cures a reason that lies in one GPU.
fn of_gpu(node: &Node, gpu: &Gpu, why: &Unavailable) -> Option<Fix> {
    let how = match why {
        Unavailable::Claimed { by } => {
            let gpus = vec![gpu.observed.address.clone()];
            return Some(Fix::Release { placement: by.clone(), gpus, model: gpu.model().clone() });
        }
        Unavailable::NotAssignable(findings) => Cure::Allow(findings.clone()),
        Unavailable::NotMeasured => Cure::Measure,
        Unavailable::Quarantined(reason) => Cure::LiftQuarantine(reason.clone()),
        Unavailable::InVm { vm } => Cure::TakeFromVm(vm.clone()),
        Unavailable::StaleRecord { vm } => Cure::RemoveRecord(vm.clone()),
        Unavailable::Missing => Cure::PutBack,
        Unavailable::Unknown => Cure::Observe,
        Unavailable::NeedsHostReboot
        | Unavailable::Cordoned { .. }
        | Unavailable::NodeDisconnected { .. }
        | Unavailable::NodeNotFresh
        | Unavailable::SurveyFailed { .. }
        | Unavailable::Stranger { .. } => return of_node(node, why.clone()),
    };
    Some(Fix::Cure { gpu: gpu.observed.address.clone(), model: gpu.model().clone(), how })
}
