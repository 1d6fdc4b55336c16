//! What there is: nodes, GPUs, VMs, and counts of them.

use super::page::Page;
use super::summary::Summaries;
use super::watch::{GpuChanges, Stream, Watches};
use super::{Sources, refused, view};
use berth_core::drift;
use berth_core::schedule::nearest;
use berth_core::world::{Node, World};
use berth_model::drift::Kind;
use berth_model::id::ClusterName;
use berth_model::reason::Refusal;
use berth_model::{GpuId, ModelName, NodeName, VmId};
use berth_proto::v1::inventory_server::Inventory;
use berth_proto::{convert, v1};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// `berth.v1.Inventory`.
#[derive(Clone)]
pub(crate) struct InventoryService {
    pub(crate) sources: Sources,
    pub(crate) summaries: Summaries,
    pub(crate) watches: Watches,
}

/// A node that the caller names.
fn known_node<'a>(world: &'a World, name: &NodeName) -> Result<&'a Arc<Node>, Status> {
    match world.node(name) {
        Some(node) => Ok(node),
        None => refused(&Refusal::UnknownNode {
            node: name.clone(),
            nearest: nearest(name.as_str(), world.nodes().map(|node| &node.name)).cloned(),
        }),
    }
}

/// The nodes that a list goes through: one, or all from the node of the last item on.
fn nodes_from<'a>(
    world: &'a World,
    only: Option<&NodeName>,
    last: Option<&'a NodeName>,
) -> Result<Box<dyn Iterator<Item = &'a Arc<Node>> + 'a>, Status> {
    Ok(match (only, last) {
        (Some(only), _) => Box::new(std::iter::once(known_node(world, only)?)),
        (None, None) => Box::new(world.nodes()),
        (None, Some(last)) => Box::new(world.node(last).into_iter().chain(world.nodes_after(Some(last)))),
    })
}

/// Refuses a model that no GPU has, when a list asked for it and found nothing.
fn known_model(world: &World, model: &ModelName) -> Result<(), Status> {
    if world.index().model(model).is_some() {
        return Ok(());
    }
    let known = world.index().models().map(|(name, _)| name.clone()).collect();
    refused(&Refusal::UnknownModel { model: model.clone(), known })
}

#[tonic::async_trait]
impl Inventory for InventoryService {
    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let v1::ListNodesRequest { page_size, page_token, cluster, ready } = request.into_inner();
        let cluster = convert::read(|at| at.field("cluster").optional::<ClusterName>(&cluster))?;
        let page = Page::open(&self.sources.replica, page_size, &page_token, ("ListNodes", &cluster, ready))?;
        let after: Option<NodeName> = page.after()?;
        let nodes = page
            .snapshot
            .world
            .nodes_after(after.as_ref())
            .filter(|node| cluster.is_none() || node.cluster() == cluster.as_ref())
            .filter(|node| ready.is_none_or(|ready| ready == node.not_ready().is_none()));
        let seen = self.sources.seen.as_ref();
        let (nodes, next_page_token) = page.fill(nodes, |node| view::node(node, seen), |node| node.name.to_string());
        Ok(Response::new(v1::ListNodesResponse { nodes, next_page_token, revision: page.snapshot.revision }))
    }

    async fn get_node(&self, request: Request<v1::GetNodeRequest>) -> Result<Response<v1::Node>, Status> {
        let name = convert::read(|at| at.field("name").parse(&request.get_ref().name))?;
        let snapshot = self.sources.replica.now();
        Ok(Response::new(view::node(known_node(&snapshot.world, &name)?, self.sources.seen.as_ref())))
    }

    async fn list_gpus(&self, request: Request<v1::ListGpusRequest>) -> Result<Response<v1::ListGpusResponse>, Status> {
        let v1::ListGpusRequest { page_size, page_token, node, model, state, available } = request.into_inner();
        let (node, model, state) = convert::read(|at| {
            let node = at.field("node").optional::<NodeName>(&node);
            let model = at.field("model").optional::<ModelName>(&model);
            let state = match v1::GpuState::try_from(state) {
                Ok(v1::GpuState::Unspecified) => Some(None),
                Ok(state) => Some(Some(state)),
                Err(_) => at.field("state").refuse(format_args!("{state} is no GpuState")),
            };
            Some((node?, model?, state?))
        })?;
        let filters = ("ListGpus", &node, &model, state.map(i32::from), available);
        let page = Page::open(&self.sources.replica, page_size, &page_token, filters)?;
        let after: Option<GpuId> = page.after()?;
        let world = &page.snapshot.world;
        let gpus = nodes_from(world, node.as_ref(), after.as_ref().map(|gpu| &gpu.node))?
            .flat_map(|node| node.gpus.iter().map(move |(address, gpu)| (node, address, gpu)))
            .filter(|(node, address, _)| {
                after.as_ref().is_none_or(|after| node.name != after.node || **address > after.address)
            })
            .filter(|(_, _, gpu)| model.as_ref().is_none_or(|model| model == gpu.model()))
            .filter(|(_, _, gpu)| state.is_none_or(|state| state == v1::GpuState::from(&gpu.observed.state)))
            .filter(|(node, _, gpu)| available.is_none_or(|available| available == node.is_available(gpu)));
        let (gpus, next_page_token) = page.fill(
            gpus,
            |(node, address, gpu)| view::gpu(node, address, gpu),
            |(node, address, _)| view::gpu_key(node, address),
        );
        if let (true, None, Some(model)) = (gpus.is_empty(), &after, &model) {
            known_model(world, model)?;
        }
        Ok(Response::new(v1::ListGpusResponse { gpus, next_page_token, revision: page.snapshot.revision }))
    }

    async fn get_gpu(&self, request: Request<v1::GetGpuRequest>) -> Result<Response<v1::Gpu>, Status> {
        let id: GpuId = convert::read(|at| at.field("id").parse(&request.get_ref().id))?;
        let snapshot = self.sources.replica.now();
        let node = known_node(&snapshot.world, &id.node)?;
        match node.gpus.get(&id.address) {
            Some(gpu) => Ok(Response::new(view::gpu(node, &id.address, gpu))),
            None => refused(&Refusal::UnknownGpu(id)),
        }
    }

    async fn list_vms(&self, request: Request<v1::ListVmsRequest>) -> Result<Response<v1::ListVmsResponse>, Status> {
        let v1::ListVmsRequest { page_size, page_token, node } = request.into_inner();
        let node = convert::read(|at| at.field("node").optional::<NodeName>(&node))?;
        let page = Page::open(&self.sources.replica, page_size, &page_token, ("ListVms", &node))?;
        let after: Option<VmKey> = page.after()?;
        let world = &page.snapshot.world;
        let vms = nodes_from(world, node.as_ref(), after.as_ref().map(|after| &after.node))?
            .flat_map(|node| node.vms.values().map(move |vm| (node, vm)))
            .filter(|(node, vm)| after.as_ref().is_none_or(|after| node.name != after.node || vm.id > after.vm));
        let (vms, next_page_token) = page.fill(
            vms,
            |(node, vm)| view::vm(world, node, vm),
            |(node, vm)| VmKey { node: node.name.clone(), vm: vm.id.clone() }.to_string(),
        );
        Ok(Response::new(v1::ListVmsResponse { vms, next_page_token, revision: page.snapshot.revision }))
    }

    async fn list_drift(
        &self,
        request: Request<v1::ListDriftRequest>,
    ) -> Result<Response<v1::ListDriftResponse>, Status> {
        let v1::ListDriftRequest { page_size, page_token, node, kind } = request.into_inner();
        let (node, kind) = convert::read(|at| {
            let node = at.field("node").optional::<NodeName>(&node);
            let kind = match Kind::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(&kind)) {
                None if kind.is_empty() => Some(None),
                None => {
                    let known = Kind::ALL.map(Kind::name).join(", ");
                    at.field("kind").refuse(format_args!("{kind:?} is no kind of drift; there are {known}"))
                }
                known => Some(known),
            };
            Some((node?, kind?))
        })?;
        let page =
            Page::open(&self.sources.replica, page_size, &page_token, ("ListDrift", &node, kind.map(Kind::name)))?;
        let after: Option<DriftKey> = page.after()?;
        let world = &page.snapshot.world;
        let on_purpose = drift::left_on_purpose(world);
        let found = nodes_from(world, node.as_ref(), after.as_ref().map(|after| &after.node))?
            .flat_map(|node| drift::of_node(world, node, &on_purpose).into_iter().enumerate())
            // A page shows the world of the first: the place in a node's list names an item.
            .filter(|(at, found)| after.as_ref().is_none_or(|after| found.node != after.node || *at > after.at))
            .filter(|(_, found)| kind.is_none_or(|kind| kind == found.kind));
        let (differences, next_page_token) = page.fill(
            found,
            |(_, found)| v1::Difference::from(found),
            |(at, found)| DriftKey { node: found.node.clone(), at: *at }.to_string(),
        );
        Ok(Response::new(v1::ListDriftResponse { differences, next_page_token, revision: page.snapshot.revision }))
    }

    async fn summarize(&self, _: Request<v1::SummarizeRequest>) -> Result<Response<v1::SummarizeResponse>, Status> {
        let snapshot = self.sources.replica.now();
        let summary = self.summaries.of(&snapshot);
        Ok(Response::new(v1::SummarizeResponse {
            revision: snapshot.revision,
            nodes: summary.nodes,
            nodes_ready: summary.nodes_ready,
            models: summary.models.clone(),
        }))
    }

    type WatchStream = Stream<v1::GpuChange>;

    async fn watch(&self, request: Request<v1::WatchGpusRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let v1::WatchGpusRequest { after_revision } = request.into_inner();
        let changes = GpuChanges::new(&self.sources, after_revision)?;
        Ok(Response::new(self.watches.open(changes)?))
    }
}

/// Names a difference in a page token.
struct DriftKey {
    node: NodeName,
    at: usize,
}

impl std::fmt::Display for DriftKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.node, self.at)
    }
}

impl std::str::FromStr for DriftKey {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (node, at) = text.split_once('/').ok_or(())?;
        Ok(Self { node: node.parse().map_err(|_| ())?, at: at.parse().map_err(|_| ())? })
    }
}

/// Names a VM in a page token.
struct VmKey {
    node: NodeName,
    vm: VmId,
}

impl std::fmt::Display for VmKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.node, self.vm)
    }
}

impl std::str::FromStr for VmKey {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (node, vm) = text.split_once('/').ok_or(())?;
        Ok(Self { node: node.parse().map_err(|_| ())?, vm: vm.parse().map_err(|_| ())? })
    }
}
