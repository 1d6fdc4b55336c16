//! What a controller measures of itself and of the fleet. The names are `berth_telemetry::metrics`'.
//!
//! Owns the instruments, and when what is read for a gauge is computed: on the thread of whoever asks for metrics, never
//! on the one that decides. Must never be what anything is decided by.

mod fleet;
mod store;

use crate::audit::Audit;
use crate::checked::SharedCheck;
use crate::last_seen::LastSeen;
use crate::replica::Replica;
use crate::standing::Board;
use berth_telemetry::metrics::controller as names;
use berth_telemetry::metrics::fleet as fleet_names;
use berth_telemetry::metrics::instruments::{counter, histogram, observe};
use berth_telemetry::{Counter, Histogram};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Instant;
pub(crate) use store::Measured;
use tonic::Code;

/// The instruments. Made when first used, which is after the process has begun to export.
pub(crate) static INSTRUMENTS: LazyLock<Instruments> = LazyLock::new(Instruments::new);

/// What records at once.
pub(crate) struct Instruments {
    pub(crate) api_duration: Histogram<f64>,
    pub(crate) decision_duration: Histogram<f64>,
    pub(crate) refusals: Counter<u64>,
    pub(crate) commit_duration: Histogram<f64>,
    pub(crate) commit_size: Histogram<f64>,
    pub(crate) store_duration: Histogram<f64>,
    pub(crate) queue_wait: Histogram<f64>,
    pub(crate) placement_duration: Histogram<f64>,
    pub(crate) placements_ended: Counter<u64>,
    pub(crate) steps_failed: Counter<u64>,
}

/// What is counted of the audit.
pub(crate) static AUDIT: LazyLock<OfAudit> =
    LazyLock::new(|| OfAudit { records: counter(&names::AUDIT_RECORDS), gaps: counter(&names::AUDIT_GAPS) });

/// See [`AUDIT`].
pub(crate) struct OfAudit {
    pub(crate) records: Counter<u64>,
    pub(crate) gaps: Counter<u64>,
}

impl Instruments {
    fn new() -> Self {
        Self {
            api_duration: histogram(&names::API_DURATION),
            decision_duration: histogram(&names::DECISION_DURATION),
            refusals: counter(&names::REFUSALS),
            commit_duration: histogram(&names::COMMIT_DURATION),
            commit_size: histogram(&names::COMMIT_SIZE),
            store_duration: histogram(&names::STORE_DURATION),
            queue_wait: histogram(&fleet_names::QUEUE_WAIT),
            placement_duration: histogram(&fleet_names::PLACEMENT_DURATION),
            placements_ended: counter(&fleet_names::PLACEMENTS_ENDED),
            steps_failed: counter(&fleet_names::STEPS_FAILED),
        }
    }
}

/// A gRPC code as a label.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "Ok",
        Code::Cancelled => "Cancelled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// Paths of the API's methods. Anybody can ask for any path; labels are bounded.
const PATHS: &str = "/berth.v1.";
static METHODS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let pool = prost_reflect::DescriptorPool::decode(berth_proto::DESCRIPTORS).unwrap_or_default();
    let methods = pool.services().flat_map(|service| {
        service
            .methods()
            .map(move |method| format!("{}/{}", method.parent_service().name(), method.name()))
            .collect::<Vec<_>>()
    });
    let mut methods: Vec<_> = methods.collect();
    methods.sort();
    methods
});

/// The method that a path means, as a label.
pub(crate) fn method_name(path: &str) -> &'static str {
    let methods: &'static Vec<String> = &METHODS;
    let found =
        path.strip_prefix(PATHS).and_then(|name| methods.binary_search_by(|known| known.as_str().cmp(name)).ok());
    found.and_then(|at| methods.get(at)).map_or(berth_telemetry::metrics::OTHER, String::as_str)
}

/// Has what this controller shows, and where it stands, read whenever somebody asks.
pub(crate) fn register(replica: Replica, board: Board, seen: Arc<dyn LastSeen>, checked: SharedCheck, audit: Audit) {
    observe(&names::AUDIT_UNSEALED, move |to| to.observe(number(audit.behind()), &[]));
    AUDIT.gaps.add(0, &[]);
    fleet::register(replica.clone(), board.clone(), seen, checked);
    let stands = board.clone();
    observe(&names::LEADER, move |to| to.observe(if stands.leads() { 1.0 } else { 0.0 }, &[]));
    let shows = replica.clone();
    observe(&names::TERM, move |to| to.observe(number(shows.now().term), &[]));
    let (shows, stands) = (replica.clone(), board.clone());
    observe(&names::REPLICA_LAG, move |to| to.observe(number(lag(&shows, &stands)), &[]));
    let behind_since = Mutex::new(None);
    observe(&names::REPLICA_AGE, move |to| {
        // A single assignment: nothing is half done under this lock.
        let mut since = behind_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = (lag(&replica, &board) > 0).then(|| since.unwrap_or_else(Instant::now));
        to.observe(since.map_or(0.0, |since| since.elapsed().as_secs_f64()), &[]);
    });
}

/// Revisions that the leader told of and that are not shown here.
fn lag(replica: &Replica, board: &Board) -> u64 {
    board.now().told.unwrap_or(0).saturating_sub(replica.now().revision)
}

/// As OpenTelemetry counts. Counts and revisions stay far below 2^53, where this becomes inexact.
#[expect(clippy::cast_precision_loss, reason = "what is measured is far below 2^53")]
pub(crate) fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_told_apart_and_whatever_else_is_asked_for_is_not() {
        assert_eq!(method_name("/berth.v1.Placements/Create"), "Placements/Create");
        assert_eq!(method_name("/berth.v1.NodeAgent/Session"), "NodeAgent/Session");
        for other in ["/", "/berth.v1.Placements/Creat", "/berth.v1.", "/x.y/Z", "/grpc.health.v1.Health/Check"] {
            assert_eq!(method_name(other), "other", "{other}");
        }
    }
}
