//! A request whose names are resolved against the world: what the filters and the score are asked about.

use crate::world::index::Share;
use crate::world::{Gpu, Node, World};
use berth_model::id::ClusterName;
use berth_model::reason::Refusal;
use berth_model::request::PlacementRequest;
use berth_model::vm::VmSelector;
use berth_model::{NodeName, VmId};
use std::collections::BTreeMap;

/// Most nodes told when a VM's name is ambiguous: more help nobody.
const MAX_AMBIGUOUS: usize = 8;

/// What is asked, with names resolved.
pub(super) struct Ask<'a> {
    /// The request itself.
    pub(super) request: &'a PlacementRequest,
    /// Where its VM is, if it exists.
    pub(super) vm_node: Option<NodeName>,
    /// What each of its GPUs brings along of processor and memory.
    pub(super) need: Share,
    /// Where the others of its spread group are, if any are placed.
    pub(super) group: Option<Group>,
}

/// What fails together: a cluster, or a node that belongs to none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Domain {
    Cluster(ClusterName),
    Node(NodeName),
}

impl Domain {
    fn of(node: &Node) -> Self {
        node.cluster().map_or_else(|| Self::Node(node.name.clone()), |cluster| Self::Cluster(cluster.clone()))
    }
}

/// How many placements of a spread group are where.
#[derive(Debug, Default)]
pub(super) struct Group {
    domains: BTreeMap<Domain, u32>,
    nodes: BTreeMap<NodeName, u32>,
}

impl Group {
    fn new(world: &World, request: &PlacementRequest) -> Option<Self> {
        let mut group = Self::default();
        for member in world.spread_group(request.spread_group.as_ref()?) {
            if let Some(node) = member.assignment.as_ref().and_then(|assignment| world.node(&assignment.node)) {
                *group.domains.entry(Domain::of(node)).or_default() += 1;
                *group.nodes.entry(node.name.clone()).or_default() += 1;
            }
        }
        // Nobody placed yet: nothing to keep away from.
        (!group.nodes.is_empty()).then_some(group)
    }

    /// Members in a node's failure domain, and on the node itself.
    pub(super) fn members(&self, node: &Node) -> (u32, u32) {
        let domain = self.domains.get(&Domain::of(node)).copied().unwrap_or(0);
        (domain, self.nodes.get(&node.name).copied().unwrap_or(0))
    }
}

impl<'a> Ask<'a> {
    /// Resolves the names of a request.
    pub(super) fn new(world: &World, request: &'a PlacementRequest) -> Result<Self, Refusal> {
        if let Some(node) = &request.node
            && world.node(node).is_none()
        {
            let nearest = super::nearest(node.as_str(), world.nodes().map(|known| &known.name)).cloned();
            return Err(Refusal::UnknownNode { node: node.clone(), nearest });
        }
        if let Some(cluster) = &request.cluster {
            known_cluster(world, cluster)?;
        }
        // One known alternative is enough: a list may be shared by fleets that differ.
        if let Some(model) = request.models.first()
            && request.models.iter().all(|model| world.index().model(model).is_none())
        {
            let known = world.index().models().map(|(name, _)| name.clone()).collect();
            return Err(Refusal::UnknownModel { model: model.clone(), known });
        }
        let vm = find_vm(world, request)?;
        if let Some((node, id)) = &vm {
            let clustered = world.node(node).and_then(|node| node.vms.get(id)).is_some_and(|vm| vm.clustered);
            if clustered && !request.allow_standalone {
                return Err(Refusal::VmClustered { vm: id.clone(), node: node.clone() });
            }
        }
        Ok(Self {
            request,
            vm_node: vm.map(|(node, _)| node),
            need: Share::of(request.resources.cpu_milli, request.resources.memory_bytes, request.gpus),
            group: Group::new(world, request),
        })
    }

    /// The only node that can be meant, if there is one.
    pub(super) fn only_node(&self) -> Option<&NodeName> {
        self.vm_node.as_ref().or(self.request.node.as_ref())
    }

    /// Whether the request would take this GPU, were it available.
    pub(super) fn takes(&self, gpu: &Gpu) -> bool {
        let request = self.request;
        (request.models.is_empty() || request.models.contains(gpu.model()))
            && !request.exclude_models.contains(gpu.model())
            // A card whose memory nobody knows cannot be said to have enough.
            && (request.min_vram_bytes == 0
                || gpu.observed.survey.vram_bytes.is_some_and(|bytes| bytes >= request.min_vram_bytes))
    }
}

/// Whether there is such a cluster. A node of it that has room is found at once, by the index.
fn known_cluster(world: &World, cluster: &ClusterName) -> Result<(), Refusal> {
    let has_room = world.index().models().any(|(_, entry)| entry.clusters.contains_key(cluster));
    if has_room || world.nodes().any(|node| node.cluster() == Some(cluster)) {
        return Ok(());
    }
    let nearest = super::nearest(cluster.as_str(), world.nodes().filter_map(|node| node.cluster())).cloned();
    Err(Refusal::UnknownCluster { cluster: cluster.clone(), nearest })
}

/// The VM of a request, where it was seen. A name that was never seen is a VM that does not exist yet.
fn find_vm(world: &World, request: &PlacementRequest) -> Result<Option<(NodeName, VmId)>, Refusal> {
    let mut found = world.find_vms(&request.vm);
    if found.is_empty() {
        return match &request.vm {
            VmSelector::Id(_) => Err(Refusal::UnknownVm { vm: request.vm.clone() }),
            VmSelector::Name(_) => Ok(None),
        };
    }
    if let Some(node) = &request.node
        && found.iter().any(|(seen, _)| seen == node)
    {
        found.retain(|(seen, _)| seen == node);
    }
    match <[_; 1]>::try_from(found) {
        Ok([one]) => Ok(Some(one)),
        Err(found) => {
            let mut nodes: Vec<NodeName> = found.into_iter().map(|(node, _)| node).collect();
            nodes.dedup();
            nodes.truncate(MAX_AMBIGUOUS);
            Err(Refusal::VmAmbiguous { vm: request.vm.clone(), nodes })
        }
    }
}
