//! The edge that callers meet: gRPC, gRPC-Web and JSON on one port.
//!
//! Thin: convert, ask, convert. Writes go to the [`Leader`], reads to the [`Replica`]; neither decides anything here.
//! Must never wait for a node, and never put an error into an answer that says OK.
//!
//! Owns what callers see of the world ([`view`]), pages, watches, and the bounds of a call.

mod deadline;
pub(crate) mod forward;
pub(crate) mod health;
pub(crate) mod inventory;
pub(crate) mod json;
pub mod operations;
pub(crate) mod page;
pub(crate) mod placements;
pub(crate) mod plan;
pub(crate) mod probe;
pub mod server;
pub(crate) mod summary;
pub(crate) mod view;
pub(crate) mod watch;

use crate::checked::SharedCheck;
use crate::last_seen::LastSeen;
use crate::leader::{CallError, Leader};
use crate::replica::Replica;
use berth_model::reason::{ErrorClass, Refusal};
use berth_proto::status;
use berth_store::Store;
use std::sync::Arc;
use tonic::Status;

/// Largest message a caller may send: gRPC's own default. A plan of 10,000 requests takes about one MiB, the inventory
/// of the largest node less.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;
/// Largest list we send, with room below the 4 MiB that most gRPC clients accept unless told otherwise.
pub(crate) const MAX_ANSWER_BYTES: usize = 3 << 20;

/// What the API asks.
#[derive(Clone)]
pub struct Sources {
    /// Who decides.
    pub leader: Leader,
    /// What is committed.
    pub replica: Replica,
    /// When agents were last heard of.
    pub seen: Arc<dyn LastSeen>,
    /// What the last check of the invariants found.
    pub checked: SharedCheck,
    /// Kind of store.
    pub store: &'static str,
    /// The way to whoever leads.
    pub(crate) forwarder: forward::Forwarder,
    /// The store itself: for a backup, which is of records and not of what is shown.
    pub records: Arc<dyn Store>,
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        let reason = match &error {
            CallError::Refused(refusal) => return status::refusal_to_status(refusal),
            CallError::Overloaded => status::OVERLOADED,
            CallError::Unavailable(_) => "NO_LEADER",
            CallError::Unknown(_) => "OUTCOME_UNKNOWN",
        };
        status::failure(error.class(), reason, &error.to_string())
    }
}

/// A refusal as the answer to a call.
pub(crate) fn refused<T>(refusal: &Refusal) -> Result<T, Status> {
    Err(status::refusal_to_status(refusal))
}

/// Nobody can decide here and now; a retry helps, and another controller perhaps, too.
pub(crate) fn no_leader(message: &str) -> Status {
    status::failure(ErrorClass::Unavailable, "NO_LEADER", message)
}

/// A bound of the API was hit.
pub(crate) fn overloaded(message: &str) -> Status {
    status::failure(ErrorClass::Overloaded, status::OVERLOADED, message)
}

#[cfg(test)]
mod tests;
