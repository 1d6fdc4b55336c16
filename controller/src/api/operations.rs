//! The controller about itself.

use super::Sources;
use super::summary::Summaries;
use super::view::count;
use arc_swap::ArcSwap;
use berth_core::invariants::Violation;
use berth_model::Timestamp;
use berth_proto::v1::operations_server::Operations;
use berth_proto::{convert, v1};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Most violations told one by one: the first few say what is wrong, and a person must look anyway.
const MAX_VIOLATIONS: usize = 100;

/// What the last check of the invariants found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Broken invariants; empty is good.
    pub violations: Vec<Violation>,
    /// When it was made; none before the first.
    pub at: Option<Timestamp>,
}

/// Where the one who checks leaves the result for those who ask.
pub type SharedCheck = Arc<ArcSwap<Checked>>;

/// `berth.v1.Operations`.
#[derive(Clone)]
pub(crate) struct OperationsService {
    pub(crate) sources: Sources,
    pub(crate) summaries: Summaries,
}

#[tonic::async_trait]
impl Operations for OperationsService {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let snapshot = self.sources.replica.now();
        let summary = self.summaries.of(&snapshot);
        let world = &snapshot.world;
        let gpus = world.nodes().flat_map(|node| node.gpus.values());
        let claims = gpus.filter(|gpu| gpu.claim.is_some()).count();
        let checked = self.sources.checked.load();
        Ok(Response::new(v1::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            // Only the leader serves; one that loses leadership stops.
            leader: true,
            term: snapshot.term,
            revision: snapshot.revision,
            store: self.sources.store.to_owned(),
            leading_since: Some(convert::timestamp(snapshot.leading_since)),
            nodes: summary.nodes,
            nodes_connected: summary.nodes_connected,
            nodes_ready: summary.nodes_ready,
            gpus: summary.gpus,
            gpus_available: summary.gpus_available,
            placements_live: count(world.placement_count().saturating_sub(world.over_count())),
            placements_queued: count(world.queued()),
            claims: count(claims),
            violations: checked.violations.iter().take(MAX_VIOLATIONS).map(ToString::to_string).collect(),
            checked_at: checked.at.map(convert::timestamp),
        }))
    }
}
