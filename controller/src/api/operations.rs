//! The controller about itself, and all that it keeps, to be put away.

use super::summary::Summaries;
use super::view::count;
use super::{Sources, overloaded};
use crate::clock;
use crate::{audit, backup};
use berth_model::reason::ErrorClass;
use berth_proto::v1::operations_server::Operations;
use berth_proto::{convert, status, v1};
use futures::StreamExt as _;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

/// Most violations told one by one: the first few say what is wrong, and a person must look anyway.
const MAX_VIOLATIONS: usize = 100;

/// Most strangers told by name: one is enough to know that something is wrong with the store.
const MAX_STRANGERS: usize = 20;

/// Backups at one time: each reads all of the store.
const MAX_BACKUPS: usize = 2;

/// Lets backups in, up to a bound.
#[derive(Clone)]
pub(crate) struct Backups(Arc<Semaphore>);

impl Default for Backups {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_BACKUPS)))
    }
}

/// `berth.v1.Operations`.
#[derive(Clone)]
pub(crate) struct OperationsService {
    pub(crate) sources: Sources,
    pub(crate) summaries: Summaries,
    pub(crate) backups: Backups,
    pub(crate) audits: Backups,
}

#[tonic::async_trait]
impl Operations for OperationsService {
    type BackupStream = super::watch::Stream<v1::BackupPart>;

    async fn backup(&self, _: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let place = Arc::clone(&self.backups.0).try_acquire_owned();
        let place = place.map_err(|_| overloaded("two backups are being taken already; try again later"))?;
        let about = backup::About {
            berth_version: env!("CARGO_PKG_VERSION"),
            taken_at: clock::now(),
            term: self.sources.replica.now().term,
        };
        let parts = backup::take(Arc::clone(&self.sources.records), about);
        let parts = parts.map(move |part| {
            let _until_the_last_part = &place;
            part.map_err(|error| failed(&error))
        });
        Ok(Response::new(Box::pin(parts)))
    }

    type AuditStream = super::watch::Stream<v1::AuditPart>;

    async fn audit(&self, request: Request<v1::AuditRequest>) -> Result<Response<Self::AuditStream>, Status> {
        let place = Arc::clone(&self.audits.0).try_acquire_owned();
        let place = place.map_err(|_| overloaded("two audits are being read already; try again later"))?;
        let (store, after) = (Arc::clone(&self.sources.records), request.get_ref().after);
        // Whoever has read further than there is reads another chain: that of before a restore, perhaps.
        let last = audit::last(store.as_ref()).await.map_err(|error| failed(&error))?;
        if after > last {
            let what =
                format!("there is no block {after}: the last one is {last}; after a restore the count begins anew");
            return Err(status::failure(ErrorClass::InvalidArgument, "NO_SUCH_BLOCK", &what));
        }
        let parts = audit::read(store, after);
        let parts = parts.map(move |part| {
            let _until_the_last_part = &place;
            part.map_err(|error| failed(&error))
        });
        Ok(Response::new(Box::pin(parts)))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let snapshot = self.sources.replica.now();
        let summary = self.summaries.of(&snapshot);
        let world = &snapshot.world;
        let gpus = world.nodes().flat_map(|node| node.gpus.values());
        let claims = gpus.filter(|gpu| gpu.claim.is_some()).count();
        let strangers = world.nodes().filter(|node| node.is_stranger());
        let checked = self.sources.checked.load();
        let standing = self.sources.forwarder.board().now();
        Ok(Response::new(v1::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            leader: standing.leads,
            term: snapshot.term,
            revision: snapshot.revision,
            store: self.sources.store.to_owned(),
            leading_since: standing.leads.then(|| convert::timestamp(snapshot.leading_since)),
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
            leader_endpoint: standing.leader.map(|leader| leader.endpoint).unwrap_or_default(),
            leader_revision: standing.told.unwrap_or(0),
            strangers: strangers.take(MAX_STRANGERS).map(|node| node.name.to_string()).collect(),
            fleet: world.fleet().map(ToString::to_string).unwrap_or_default(),
        }))
    }
}

fn failed(error: &berth_store::Error) -> Status {
    match error {
        berth_store::Error::Compacted { .. } => status::too_old(&format!("{error}: begin the backup again")),
        berth_store::Error::Unavailable(_) => {
            status::failure(ErrorClass::Unavailable, "STORE_UNAVAILABLE", &error.to_string())
        }
        berth_store::Error::Corrupt(_) => status::failure(ErrorClass::Internal, "STORE_DAMAGED", &error.to_string()),
    }
}
