//! Error class ↔ gRPC status, with details: which fields, which reason, when to try again, and why nothing fits.
//!
//! Owns the form of every error that leaves a controller: a code, a sentence, `google.rpc.ErrorInfo` (reason, domain
//! `berth`, metadata), `BadRequest` for fields, `RetryInfo` where a retry helps, and [`v1::Explanation`] as a detail of
//! its own. Must never put an error into a reply that says OK.

use crate::convert::{Invalid, cut};
use crate::v1;
use berth_model::reason::{ErrorClass, Refusal};
use berth_model::request::FieldError;
use prost::Message as _;
use prost_types::Any;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::pb;

/// The domain of all our reasons.
pub const DOMAIN: &str = "berth";
/// Reason of [`Refusal::NotPlaceable`]: tells it from the other meaning of RESOURCE_EXHAUSTED.
pub const NOT_PLACEABLE: &str = "NOT_PLACEABLE";
/// Reason of an overloaded controller.
pub const OVERLOADED: &str = "OVERLOADED";
/// Reason of a watch that asks for a revision that is not kept any more.
pub const REVISION_TOO_OLD: &str = "REVISION_TOO_OLD";

// Details travel in a trailer, in base64, beside the percent-encoded message. Python's grpcio refuses trailers above
// 8 KiB in all: 4/3 × 4,096 + 3 × 768 stays below.
const MAX_DETAILS_BYTES: usize = 4096;
const MAX_MESSAGE_BYTES: usize = 768;
const MAX_METADATA_BYTES: usize = 128;
// Somebody must give GPUs back first: minutes, but asking is cheap.
const RETRY_ROOM: Duration = Duration::from_secs(30);
// A new leader takes about that long, a full queue is empty by then.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// The gRPC code of a class.
pub fn code(class: ErrorClass) -> Code {
    match class {
        ErrorClass::InvalidArgument => Code::InvalidArgument,
        ErrorClass::NotFound => Code::NotFound,
        ErrorClass::AlreadyExists => Code::AlreadyExists,
        ErrorClass::FailedPrecondition => Code::FailedPrecondition,
        ErrorClass::NotPlaceable | ErrorClass::Overloaded => Code::ResourceExhausted,
        ErrorClass::Aborted => Code::Aborted,
        ErrorClass::Unavailable => Code::Unavailable,
        ErrorClass::Unknown => Code::Unknown,
        ErrorClass::Internal => Code::Internal,
    }
}

/// The class of a code; RESOURCE_EXHAUSTED has two, told apart by the reason. A call that was cut off (cancelled, out
/// of time) may have been carried out: unknown.
fn class(code: Code, reason: &str) -> ErrorClass {
    match code {
        Code::InvalidArgument => ErrorClass::InvalidArgument,
        Code::NotFound => ErrorClass::NotFound,
        Code::AlreadyExists => ErrorClass::AlreadyExists,
        Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated => ErrorClass::FailedPrecondition,
        Code::ResourceExhausted if reason == NOT_PLACEABLE => ErrorClass::NotPlaceable,
        Code::ResourceExhausted => ErrorClass::Overloaded,
        Code::Aborted | Code::OutOfRange => ErrorClass::Aborted,
        Code::Unavailable => ErrorClass::Unavailable,
        Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => ErrorClass::Unknown,
        Code::Internal | Code::DataLoss | Code::Unimplemented | Code::Ok => ErrorClass::Internal,
    }
}

/// When to try again.
fn retry(class: ErrorClass) -> Option<Duration> {
    match class {
        ErrorClass::NotPlaceable => Some(RETRY_ROOM),
        ErrorClass::Overloaded | ErrorClass::Unavailable | ErrorClass::Unknown => Some(RETRY_SOON),
        ErrorClass::InvalidArgument
        | ErrorClass::NotFound
        | ErrorClass::AlreadyExists
        | ErrorClass::FailedPrecondition
        | ErrorClass::Aborted
        | ErrorClass::Internal => None,
    }
}

/// The status of a refused call.
pub fn refusal_to_status(refusal: &Refusal) -> Status {
    let class = refusal.class();
    let message = refusal.to_string();
    let mut details = Details::new(code(class), &message, refusal.name(), metadata(refusal), retry(class));
    match refusal {
        Refusal::Invalid(errors) => details.fields(errors),
        Refusal::NotPlaceable(explanation) => details.explanation(v1::Explanation::from(explanation.as_ref())),
        Refusal::NoRoom(_)
        | Refusal::RequestIdReused { .. }
        | Refusal::NameTaken(_)
        | Refusal::VmHasPlacement { .. }
        | Refusal::VmAmbiguous { .. }
        | Refusal::VmClustered { .. }
        | Refusal::UnknownNode { .. }
        | Refusal::UnknownCluster { .. }
        | Refusal::UnknownModel { .. }
        | Refusal::UnknownVm { .. }
        | Refusal::UnknownPlacement { .. }
        | Refusal::UnknownGpu(_)
        | Refusal::VersionMismatch { .. }
        | Refusal::UidMismatch { .. }
        | Refusal::NotHeld { .. }
        | Refusal::VmNotSeen { .. }
        | Refusal::NodeNotReady { .. }
        | Refusal::VmNotOnNode { .. }
        | Refusal::NotAdoptable { .. }
        | Refusal::QueueFull { .. }
        | Refusal::TooManyPlacements { .. } => {}
    }
    details.status()
}

impl From<Invalid> for Status {
    fn from(invalid: Invalid) -> Self {
        refusal_to_status(&invalid.into())
    }
}

/// The status of a call that failed for a reason that is no [`Refusal`]. `reason` is a stable name in capitals.
pub fn failure(class: ErrorClass, reason: &'static str, message: &str) -> Status {
    Details::new(code(class), message, reason, Vec::new(), retry(class)).status()
}

/// The status of a watch whose place is not kept any more: list again, then watch from the list's revision.
pub fn too_old(message: &str) -> Status {
    Details::new(Code::OutOfRange, message, REVISION_TOO_OLD, Vec::new(), None).status()
}

/// What a program may want to act on, by key.
fn metadata(refusal: &Refusal) -> Vec<(&'static str, String)> {
    let nearest = |found: Option<String>| found.map(|name| ("nearest", name));
    match refusal {
        Refusal::Invalid(_) => vec![],
        Refusal::NotPlaceable(explanation) => {
            let near = explanation.nearest.as_ref().map(|n| n.node.to_string());
            [("gpus", explanation.gpus.to_string())].into_iter().chain(nearest(near)).collect()
        }
        Refusal::NoRoom(request) => vec![("gpus", request.gpus.to_string())],
        Refusal::RequestIdReused { request_id, placement, field } => vec![
            ("request_id", request_id.to_string()),
            ("placement", placement.to_string()),
            ("field", (*field).to_owned()),
        ],
        Refusal::NameTaken(placement) => vec![("placement", placement.to_string())],
        Refusal::VmHasPlacement { vm, placement } => {
            vec![("vm", vm.to_string()), ("placement", placement.to_string())]
        }
        Refusal::VmAmbiguous { vm, nodes } => {
            vec![("vm", vm.to_string()), ("nodes", nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))]
        }
        Refusal::VmClustered { vm, node } => vec![("vm", vm.to_string()), ("node", node.to_string())],
        Refusal::UnknownNode { node, nearest: near } => {
            let near = near.as_ref().map(ToString::to_string);
            [("node", node.to_string())].into_iter().chain(nearest(near)).collect()
        }
        Refusal::UnknownCluster { cluster, nearest: near } => {
            let near = near.as_ref().map(ToString::to_string);
            [("cluster", cluster.to_string())].into_iter().chain(nearest(near)).collect()
        }
        Refusal::UnknownModel { model, known: _ } => vec![("model", model.to_string())],
        Refusal::UnknownVm { vm } => vec![("vm", vm.to_string())],
        Refusal::UnknownPlacement { name, nearest: near } => {
            let near = near.as_ref().map(ToString::to_string);
            [("placement", name.to_string())].into_iter().chain(nearest(near)).collect()
        }
        Refusal::UnknownGpu(gpu) => vec![("gpu", gpu.to_string())],
        Refusal::VersionMismatch { name, expected, actual } => {
            vec![("placement", name.to_string()), ("expected", expected.to_string()), ("actual", actual.to_string())]
        }
        Refusal::UidMismatch { name, expected, actual } => {
            vec![("placement", name.to_string()), ("expected", expected.clone()), ("actual", actual.clone())]
        }
        Refusal::NotHeld { name, phase } => vec![("placement", name.to_string()), ("phase", (*phase).to_owned())],
        Refusal::VmNotSeen { vm, node } => vec![("vm", vm.to_string()), ("node", node.to_string())],
        Refusal::NodeNotReady { node, why } => vec![("node", node.to_string()), ("why", why.name().to_owned())],
        Refusal::VmNotOnNode { vm, node } => vec![("vm", vm.to_string()), ("node", node.to_string())],
        Refusal::NotAdoptable { vm, why } => vec![("vm", vm.to_string()), ("why", why.name().to_owned())],
        Refusal::QueueFull { queued } => vec![("queued", queued.to_string())],
        Refusal::TooManyPlacements { count } => vec![("count", count.to_string())],
    }
}

fn any(type_name: &str, message: &impl prost::Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{type_name}"), value: message.encode_to_vec() }
}

/// A status in the making. What is added later is shortened to what is left of [`MAX_DETAILS_BYTES`].
struct Details {
    code: Code,
    wire: pb::Status,
}

impl Details {
    fn new(
        code: Code,
        message: &str,
        reason: &'static str,
        metadata: Vec<(&'static str, String)>,
        retry: Option<Duration>,
    ) -> Self {
        let info = pb::ErrorInfo {
            reason: reason.to_owned(),
            domain: DOMAIN.to_owned(),
            metadata: metadata
                .into_iter()
                .map(|(key, value)| (key.to_owned(), cut(&value, MAX_METADATA_BYTES)))
                .collect::<HashMap<_, _>>(),
        };
        let mut details = vec![any("google.rpc.ErrorInfo", &info)];
        if let Some(delay) = retry {
            let retry = pb::RetryInfo { retry_delay: Some(crate::convert::duration(delay)) };
            details.push(any("google.rpc.RetryInfo", &retry));
        }
        Self { code, wire: pb::Status { code: code.into(), message: cut(message, MAX_MESSAGE_BYTES), details } }
    }

    /// Adds a detail if it fits.
    fn try_add(&mut self, detail: Any) -> bool {
        self.wire.details.push(detail);
        let fits = self.wire.encoded_len() <= MAX_DETAILS_BYTES;
        if !fits {
            self.wire.details.pop();
        }
        fits
    }

    /// Names bad fields, as many as fit; at least the message names them all.
    fn fields(&mut self, errors: &[FieldError]) {
        let mut bad = pb::BadRequest {
            field_violations: errors
                .iter()
                .map(|e| pb::bad_request::FieldViolation {
                    field: cut(&e.field, MAX_METADATA_BYTES),
                    description: cut(&e.problem, MAX_MESSAGE_BYTES),
                    ..pb::bad_request::FieldViolation::default()
                })
                .collect(),
        };
        while !bad.field_violations.is_empty() && !self.try_add(any("google.rpc.BadRequest", &bad)) {
            // Halving keeps this quick for thousands of bad fields.
            bad.field_violations.truncate(bad.field_violations.len() / 2);
        }
    }

    /// Says why nothing fits: the nodes one by one as far as there is room, the nearest first.
    fn explanation(&mut self, mut explanation: v1::Explanation) {
        explanation.text = cut(&explanation.text, MAX_MESSAGE_BYTES);
        while !self.try_add(any("berth.v1.Explanation", &explanation)) {
            if explanation.rejected.pop().is_none() && explanation.counts.pop().is_none() {
                // Only the nearest miss is left and too long: the message tells of it, cut.
                return;
            }
        }
    }

    fn status(self) -> Status {
        Status::with_details(self.code, self.wire.message.clone(), self.wire.encode_to_vec().into())
    }
}

/// An error as a client sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// What kind it is.
    pub class: ErrorClass,
    /// Stable name such as `NAME_TAKEN`; empty when the error does not come from a controller of ours.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// Bad fields of the request.
    pub fields: Vec<FieldError>,
    /// What a program may want to act on.
    pub metadata: BTreeMap<String, String>,
    /// When to try again, where that helps.
    pub retry_after: Option<Duration>,
    /// Why nothing fits; with [`ErrorClass::NotPlaceable`].
    pub explanation: Option<v1::Explanation>,
}

impl Problem {
    /// Reads a status. Details that cannot be understood are left out: an error must never hide behind another one.
    pub fn from_status(status: &Status) -> Self {
        let details = pb::Status::decode(status.details()).map(|s| s.details).unwrap_or_default();
        let find = |name: &str| {
            details.iter().find(|any| any.type_url.rsplit('/').next() == Some(name)).map(|any| any.value.as_slice())
        };
        let info = find("google.rpc.ErrorInfo").and_then(|bytes| pb::ErrorInfo::decode(bytes).ok());
        let info = info.filter(|info| info.domain == DOMAIN).unwrap_or_default();
        let bad = find("google.rpc.BadRequest").and_then(|bytes| pb::BadRequest::decode(bytes).ok());
        let retry = find("google.rpc.RetryInfo").and_then(|bytes| pb::RetryInfo::decode(bytes).ok());
        Self {
            class: class(status.code(), &info.reason),
            reason: info.reason,
            message: status.message().to_owned(),
            fields: bad
                .map(|bad| bad.field_violations)
                .unwrap_or_default()
                .into_iter()
                .map(|v| FieldError { field: v.field, problem: v.description })
                .collect(),
            metadata: info.metadata.into_iter().collect(),
            retry_after: retry.and_then(|r| r.retry_delay).and_then(|d| crate::convert::read_duration(d).ok()),
            explanation: find("berth.v1.Explanation").and_then(|bytes| v1::Explanation::decode(bytes).ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::reason::{Explanation, NearestMiss, Rejection};
    use expect_test::{Expect, expect};

    fn check(refusal: &Refusal, shown: Expect) {
        let status = refusal_to_status(refusal);
        let problem = Problem::from_status(&status);
        assert_eq!((problem.class, problem.reason.as_str()), (refusal.class(), refusal.name()));
        assert_eq!(problem.retry_after.is_some(), problem.class.retry_helps());
        let Problem { message, fields, metadata, .. } = problem;
        shown.assert_eq(&format!("{:?}: {message}\n{fields:?} {metadata:?}", status.code()));
    }

    #[test]
    fn a_refusal_arrives_as_it_was() {
        check(
            &Refusal::Invalid(vec![FieldError::new("request.gpus", "0 is not from 1 to 16")]),
            expect![[r#"
                InvalidArgument: request.gpus: 0 is not from 1 to 16
                [FieldError { field: "request.gpus", problem: "0 is not from 1 to 16" }] {}"#]],
        );
        check(
            &Refusal::UnknownNode { node: "n01".parse().unwrap(), nearest: Some("n1".parse().unwrap()) },
            expect![[r#"
                NotFound: node n01 is not known; did you mean n1?
                [] {"nearest": "n1", "node": "n01"}"#]],
        );
        check(
            &Refusal::VersionMismatch { name: "p".parse().unwrap(), expected: 3, actual: 4 },
            expect![[r#"
                Aborted: placement p is at version 4, not 3; read it again before deciding
                [] {"actual": "4", "expected": "3", "placement": "p"}"#]],
        );
        check(
            &Refusal::QueueFull { queued: 10_000 },
            expect![[r#"
                ResourceExhausted: 10000 placements are queued already, that is the limit; try again later or without a queue time
                [] {"queued": "10000"}"#]],
        );
    }

    /// An explanation over many nodes, all names as long as they may be.
    fn long_explanation() -> Explanation {
        let node = |at: usize| format!("{at:0>253}").parse().unwrap();
        let rejection = Rejection::TooSmall { has: 1 };
        Explanation {
            gpus: 8,
            nodes: 32,
            counts: vec![("TooSmall", 32)],
            rejected: (0..32).map(|at| (node(at), rejection.clone())).collect(),
            nearest: Some(NearestMiss { node: node(0), rejection, fixes: vec!["a larger node".to_owned()] }),
        }
    }

    #[test]
    fn not_placeable_carries_its_explanation() {
        let small = Explanation { rejected: vec![], nearest: None, ..long_explanation() };
        let problem = Problem::from_status(&refusal_to_status(&Refusal::NotPlaceable(Box::new(small.clone()))));
        assert_eq!(problem.class, ErrorClass::NotPlaceable);
        assert_eq!(problem.explanation, Some(v1::Explanation::from(&small)));
    }

    #[test]
    fn details_stay_small_and_keep_the_nearest() {
        let status = refusal_to_status(&Refusal::NotPlaceable(Box::new(long_explanation())));
        assert!(status.details().len() <= MAX_DETAILS_BYTES, "{} bytes", status.details().len());
        let explanation = Problem::from_status(&status).explanation.unwrap();
        assert!((3..32).contains(&explanation.rejected.len()), "{} nodes", explanation.rejected.len());
        assert_eq!(explanation.rejected[0].node, format!("{:0>253}", 0));
        assert_eq!(explanation.nearest.unwrap().fixes, ["a larger node"]);
        assert_eq!(explanation.counts, [v1::RejectionCount { rule: "TooSmall".to_owned(), nodes: 32 }]);
    }

    #[test]
    fn thousands_of_bad_fields_do_not_make_a_status_too_large() {
        let errors: Vec<_> =
            (0..10_000).map(|at| FieldError::new(format!("requests[{at}].name"), "ä".repeat(500))).collect();
        let status = refusal_to_status(&Refusal::Invalid(errors));
        assert!(status.details().len() <= MAX_DETAILS_BYTES, "{} bytes", status.details().len());
        assert!(status.message().len() <= MAX_MESSAGE_BYTES);
        assert_eq!(Problem::from_status(&status).fields[0].field, "requests[0].name");
    }

    #[test]
    fn every_class_comes_back_as_itself() {
        use ErrorClass as C;
        for class in [
            C::InvalidArgument,
            C::NotFound,
            C::AlreadyExists,
            C::FailedPrecondition,
            C::Aborted,
            C::Overloaded,
            C::Unavailable,
            C::Unknown,
            C::Internal,
        ] {
            let problem = Problem::from_status(&failure(class, "R", "m"));
            assert_eq!((problem.class, problem.reason.as_str()), (class, "R"));
        }
        assert_eq!(Problem::from_status(&failure(C::NotPlaceable, NOT_PLACEABLE, "m")).class, C::NotPlaceable);
        assert_eq!(Problem::from_status(&too_old("m")).class, C::Aborted);
    }

    #[test]
    fn a_status_from_elsewhere_is_understood_as_far_as_possible() {
        let problem = Problem::from_status(&Status::deadline_exceeded("slow"));
        assert_eq!(
            (problem.class, problem.reason.as_str(), problem.message.as_str()),
            (ErrorClass::Unknown, "", "slow")
        );
        let garbage = Status::with_details(Code::NotFound, "gone", vec![0xff; 9].into());
        assert_eq!(Problem::from_status(&garbage).class, ErrorClass::NotFound);
    }
}
