//! Metrics about a controller: how it answers, decides, commits, leads.

use super::fleet::{OUTCOME, REASON};
use super::{COUNTS, Chapter, Kind, Label, Metric, QUICK};

/// A method of the API.
pub const METHOD: &str = "method";
/// A gRPC code.
pub const CODE: &str = "code";
/// What the leader was asked to decide.
pub const INPUT: &str = "input";
/// What the store was asked to do.
pub const OPERATION: &str = "operation";

/// API calls.
pub const API_DURATION: Metric = Metric {
    name: "berth.api.duration",
    kind: Kind::Histogram(QUICK),
    unit: "s",
    labels: &[
        Label { key: METHOD, values: "the methods of the API, as `Placements/Create`; `other` for what is none" },
        Label { key: CODE, values: "the 17 gRPC codes, as `Ok`, `ResourceExhausted`" },
    ],
    what: "Time from a call's arrival to its answer; of streams to their first part.",
};
/// Decisions.
pub const DECISION_DURATION: Metric = Metric {
    name: "berth.decision.duration",
    kind: Kind::Histogram(QUICK),
    unit: "s",
    labels: &[Label {
        key: INPUT,
        values: "`Create`, `Commit`, `Release`, `Adopt`, `Connected`, `Disconnected`, `Report`, `Progress`, `Tick`",
    }],
    what: "Time that one decision took the leader's brain, the choice of GPUs included.",
};
/// Refused requests.
pub const REFUSALS: Metric = Metric {
    name: "berth.refusals",
    kind: Kind::Counter,
    unit: "{refusal}",
    labels: &[Label {
        key: REASON,
        values: "the reasons in error details: `NOT_PLACEABLE`, `NAME_TAKEN`, `QUEUE_FULL`, `UNKNOWN_MODEL` and a dozen more",
    }],
    what: "Requests that the leader refused, by reason.",
};
/// From decided to durable.
pub const COMMIT_DURATION: Metric = Metric {
    name: "berth.commit.duration",
    kind: Kind::Histogram(QUICK),
    unit: "s",
    labels: &[],
    what: "Time from a decision to its being durable, as its caller waits for it.",
};
/// How large transactions are.
pub const COMMIT_SIZE: Metric = Metric {
    name: "berth.commit.size",
    kind: Kind::Histogram(COUNTS),
    unit: "{operation}",
    labels: &[],
    what: "Operations in one transaction of the leader, of at most 128: how well decisions are grouped.",
};
/// Calls of the store.
pub const STORE_DURATION: Metric = Metric {
    name: "berth.store.duration",
    kind: Kind::Histogram(QUICK),
    unit: "s",
    labels: &[
        Label { key: OPERATION, values: "`get`, `range`, `commit`, `watch`" },
        Label {
            key: OUTCOME,
            values: "`ok`, `unavailable`, `compacted`, `corrupt`, `precondition`, `fenced`, `illegal`, `full`, `unknown`",
        },
    ],
    what: "Time that the store took to answer; of a watch, until it was there.",
};
/// Leads or not.
pub const LEADER: Metric = Metric {
    name: "berth.leader",
    kind: Kind::Gauge,
    unit: "{leader}",
    labels: &[],
    what: "1 while this controller leads, else 0; the sum over all controllers should be 1.",
};
/// Term.
pub const TERM: Metric = Metric {
    name: "berth.term",
    kind: Kind::Gauge,
    unit: "{term}",
    labels: &[],
    what: "The leadership that this controller leads or follows; it grows with each change of leaders.",
};
/// How far behind a follower is.
pub const REPLICA_LAG: Metric = Metric {
    name: "berth.replica.lag",
    kind: Kind::Gauge,
    unit: "{revision}",
    labels: &[],
    what: "Revisions of the store that the leader has told of and this controller does not show yet; 0 for the leader.",
};
/// Age of what a follower shows.
pub const REPLICA_AGE: Metric = Metric {
    name: "berth.replica.age",
    kind: Kind::Gauge,
    unit: "s",
    labels: &[],
    what: "For how long this controller has been behind what the leader told of; 0 while it is not.",
};
/// Records of the audit.
pub const AUDIT_RECORDS: Metric = Metric {
    name: "berth.audit.records",
    kind: Kind::Counter,
    unit: "{record}",
    labels: &[Label { key: OUTCOME, values: "`done` (durable with the change itself), `refused`" }],
    what: "Records made for the audit.",
};
/// Gaps of the audit.
pub const AUDIT_GAPS: Metric = Metric {
    name: "berth.audit.gaps",
    kind: Kind::Counter,
    unit: "{record}",
    labels: &[],
    what: "Refused calls that the audit counts and does not tell one by one, because more came than may be kept for the next block.",
};
/// Records not sealed yet.
pub const AUDIT_UNSEALED: Metric = Metric {
    name: "berth.audit.unsealed",
    kind: Kind::Gauge,
    unit: "{record}",
    labels: &[],
    what: "Records that are durable and not yet part of the chain of hashes; above some thousands for minutes, sealing does not keep up.",
};

/// The chapter.
pub const CHAPTER: Chapter = Chapter {
    title: "A controller",
    about: "Exported by every controller about itself; decisions, commits and audit happen where the leader is.",
    metrics: &[
        API_DURATION,
        DECISION_DURATION,
        REFUSALS,
        COMMIT_DURATION,
        COMMIT_SIZE,
        STORE_DURATION,
        LEADER,
        TERM,
        REPLICA_LAG,
        REPLICA_AGE,
        AUDIT_RECORDS,
        AUDIT_GAPS,
        AUDIT_UNSEALED,
    ],
};
