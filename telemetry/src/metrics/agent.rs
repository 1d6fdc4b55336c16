//! Metrics about one agent and the GPUs of its host.

use super::fleet::{CLASS, HEALTH, OUTCOME, STATE, STEP};
use super::{Chapter, Kind, Label, Metric, SLOW};

/// OpenTelemetry's id of a piece of hardware.
pub const HW_ID: &str = "hw.id";
/// OpenTelemetry's type of a piece of hardware.
pub const HW_TYPE: &str = "hw.type";
/// OpenTelemetry's state of a piece of hardware.
pub const HW_STATE: &str = "hw.state";
/// OpenTelemetry's model of a piece of hardware.
pub const HW_MODEL: &str = "hw.model";

const BY_ID: Label = Label { key: HW_ID, values: "the addresses of the node's GPUs, at most 64" };
const BY_TYPE: Label = Label { key: HW_TYPE, values: "`gpu`" };

/// Steps.
pub const STEP_DURATION: Metric = Metric {
    name: "berth.step.duration",
    kind: Kind::Histogram(SLOW),
    unit: "s",
    labels: &[
        Label { key: STEP, values: "the 14 steps, as of `berth.steps.failed`" },
        Label {
            key: CLASS,
            values: "`Ok`, else the class of the error: `Failed`, `TimedOut`, `NoEffect`, `Forbidden`, `NotThere`",
        },
    ],
    what: "Time that one attempt at a step on the host took.",
};
/// Looks.
pub const OBSERVE_DURATION: Metric = Metric {
    name: "berth.observe.duration",
    kind: Kind::Histogram(SLOW),
    unit: "s",
    labels: &[Label { key: OUTCOME, values: "`ok`, `failed`" }],
    what: "Time that one look at the whole host took.",
};
/// Age of the last look.
pub const OBSERVED_AGE: Metric = Metric {
    name: "berth.observed.age",
    kind: Kind::Gauge,
    unit: "s",
    labels: &[],
    what: "Time since the host was last seen completely; absent until it was once.",
};
/// Has a session.
pub const SESSION: Metric = Metric {
    name: "berth.session",
    kind: Kind::Gauge,
    unit: "{session}",
    labels: &[],
    what: "1 while the agent has a session with a leader, else 0.",
};
/// Sessions.
pub const SESSIONS: Metric = Metric {
    name: "berth.sessions",
    kind: Kind::Counter,
    unit: "{session}",
    labels: &[],
    what: "Sessions that were agreed with a leader.",
};
/// Placements in the ledger.
pub const LEDGER_PLACEMENTS: Metric = Metric {
    name: "berth.ledger.placements",
    kind: Kind::Gauge,
    unit: "{placement}",
    labels: &[],
    what: "Placements in the desired state that the agent last accepted.",
};
/// GPUs of the host.
pub const HOST_GPUS: Metric = Metric {
    name: "berth.host.gpus",
    kind: Kind::Gauge,
    unit: "{gpu}",
    labels: &[Label { key: STATE, values: "as of `berth.gpus`" }, Label { key: HEALTH, values: "as of `berth.gpus`" }],
    what: "GPUs of the host, as the agent last reported them.",
};
/// Status of each GPU.
pub const HW_STATUS: Metric = Metric {
    name: "hw.status",
    kind: Kind::Gauge,
    unit: "1",
    labels: &[
        BY_ID,
        BY_TYPE,
        Label {
            key: HW_STATE,
            values: "`ok` (healthy and seen), `degraded` (unknown, or needs the host restarted), `failed` (missing, stale or quarantined)",
        },
    ],
    what: "1 for the state that a GPU is in, 0 for the others, as OpenTelemetry's hardware conventions have it.",
};
/// Memory of each GPU.
pub const HW_GPU_MEMORY_LIMIT: Metric = Metric {
    name: "hw.gpu.memory.limit",
    kind: Kind::Gauge,
    unit: "By",
    labels: &[BY_ID, BY_TYPE, Label { key: HW_MODEL, values: "the GPU's model" }],
    what: "Memory of a GPU, where the table of cards knows it.",
};

/// The chapter.
pub const CHAPTER: Chapter = Chapter {
    title: "An agent",
    about: "Exported by every agent about its own host.",
    metrics: &[
        STEP_DURATION,
        OBSERVE_DURATION,
        OBSERVED_AGE,
        SESSION,
        SESSIONS,
        LEDGER_PLACEMENTS,
        HOST_GPUS,
        HW_STATUS,
        HW_GPU_MEMORY_LIMIT,
    ],
};
