//! Metrics about the fleet: what there is, who has it, what is wrong.

use super::{Chapter, Kind, Label, Metric, SLOW};

/// Name of a GPU model.
pub const MODEL: &str = "model";
/// Name of a cluster.
pub const CLUSTER: &str = "cluster";
/// A state, of a GPU or a node.
pub const STATE: &str = "state";
/// A GPU's health.
pub const HEALTH: &str = "health";
/// GPUs of one VM.
pub const SIZE: &str = "size";
/// Phase of a placement.
pub const PHASE: &str = "phase";
/// A reason.
pub const REASON: &str = "reason";
/// A condition of a placement.
pub const CONDITION: &str = "condition";
/// A kind.
pub const KIND: &str = "kind";
/// What came of something.
pub const OUTCOME: &str = "outcome";
/// A step on a host.
pub const STEP: &str = "step";
/// A class of errors.
pub const CLASS: &str = "class";

const BY_MODEL: Label = Label { key: MODEL, values: "models in the fleet, at most 100, then `other`" };
const BY_CLUSTER: Label = Label {
    key: CLUSTER,
    values: "clusters of the fleet, at most 1,000, then `other`; `none` for nodes of no cluster",
};
const BY_PHASE: Label = Label {
    key: PHASE,
    values: "`Queued`, `Held`, `Preparing`, `Attaching`, `Starting`, `Verifying`, `Active`, `Releasing`, `Released`, `Failed`",
};

/// GPUs by where they are.
pub const GPUS: Metric = Metric {
    name: "berth.gpus",
    kind: Kind::Gauge,
    unit: "{gpu}",
    labels: &[
        BY_MODEL,
        BY_CLUSTER,
        Label { key: STATE, values: "`Host`, `Pooled`, `Attached`, `Stale`, `Missing`, `Unknown`" },
        Label { key: HEALTH, values: "`Ok`, `Quarantined`, `NeedsHostReboot`" },
    ],
    what: "GPUs that were ever reported, by where they were last seen and by their health.",
};
/// GPUs that can be handed out.
pub const GPUS_AVAILABLE: Metric = Metric {
    name: "berth.gpus.available",
    kind: Kind::Gauge,
    unit: "{gpu}",
    labels: &[BY_MODEL, BY_CLUSTER],
    what: "GPUs that could be handed out now.",
};
/// GPUs that cannot be handed out.
pub const GPUS_UNAVAILABLE: Metric = Metric {
    name: "berth.gpus.unavailable",
    kind: Kind::Gauge,
    unit: "{gpu}",
    labels: &[
        BY_MODEL,
        Label {
            key: REASON,
            values: "`NotAssignable`, `NotMeasured`, `Quarantined`, `NeedsHostReboot`, `Claimed`, `Cordoned`, `InVm`, \
                     `StaleRecord`, `Missing`, `Unknown`, `NodeDisconnected`, `NodeNotFresh`, `SurveyFailed`, `Stranger`",
        },
    ],
    what: "GPUs that cannot be handed out now, each by the first of its reasons; a sum over reasons counts each once.",
};
/// GPUs of placements.
pub const GPUS_HELD: Metric = Metric {
    name: "berth.gpus.held",
    kind: Kind::Gauge,
    unit: "{gpu}",
    labels: &[BY_MODEL, BY_CLUSTER],
    what: "GPUs that belong to a placement, whatever its phase.",
};
/// GPU seconds of placements.
pub const GPU_HELD_TIME: Metric = Metric {
    name: "berth.gpu.held.time",
    kind: Kind::Counter,
    unit: "s",
    labels: &[BY_MODEL, BY_CLUSTER],
    what: "GPU seconds that placements held while this controller led: GPUs times time, divide by 3,600 for GPU hours.",
};
/// VMs that fit.
pub const SLOTS: Metric = Metric {
    name: "berth.slots",
    kind: Kind::Gauge,
    unit: "{vm}",
    labels: &[BY_MODEL, Label { key: SIZE, values: "GPUs of one VM: `1`, `2`, `4`, `8`, `16`" }],
    what: "VMs of so many GPUs of one model that would fit at once now, processor and memory aside.",
};
/// How much is lost to fragments.
pub const FRAGMENTATION: Metric = Metric {
    name: "berth.fragmentation",
    kind: Kind::Gauge,
    unit: "1",
    labels: &[BY_MODEL, Label { key: SIZE, values: "GPUs of one VM: `2`, `4`, `8`, `16`" }],
    what: "Share (0 to 1) of the available GPUs of a model that no VM of so many GPUs could use, because they are scattered \
           over nodes; absent while none is available.",
};
/// Placements by phase.
pub const PLACEMENTS: Metric = Metric {
    name: "berth.placements",
    kind: Kind::Gauge,
    unit: "{placement}",
    labels: &[BY_PHASE],
    what: "Placements by phase; those that are over are counted as long as their history is kept.",
};
/// Oldest placement by phase.
pub const PLACEMENTS_OLDEST: Metric = Metric {
    name: "berth.placements.oldest",
    kind: Kind::Gauge,
    unit: "s",
    labels: &[Label {
        key: PHASE,
        values: "as of `berth.placements`, without `Released` and `Failed`; `Undoing` for failed ones that still hold GPUs",
    }],
    what: "How long the placement that is in a phase for longest is in it; 0 while there is none.",
};
/// Placements past their deadline.
pub const PLACEMENTS_OVERDUE: Metric = Metric {
    name: "berth.placements.overdue",
    kind: Kind::Gauge,
    unit: "{placement}",
    labels: &[Label {
        key: PHASE,
        values: "phases with a deadline: `Queued`, `Held`, `Preparing`, `Attaching`, `Starting`, `Verifying`, `Releasing`",
    }],
    what: "Placements whose phase should have ended by itself more than 5 s ago: something is stuck.",
};
/// Placements with a condition.
pub const PLACEMENTS_CONDITIONS: Metric = Metric {
    name: "berth.placements.conditions",
    kind: Kind::Gauge,
    unit: "{placement}",
    labels: &[Label { key: CONDITION, values: "`NodeLost`, `Drifted`, `Stuck`" }],
    what: "Live placements with a condition that people must know; one placement can have several.",
};
/// Placements whose host shows something else.
pub const DRIFT: Metric = Metric {
    name: "berth.drift",
    kind: Kind::Gauge,
    unit: "{placement}",
    labels: &[Label { key: KIND, values: "`VmGone`, `VmClustered`, `NotAttached`, `InOtherVm`, `WrongCard`" }],
    what: "Active placements whose node shows something else than is wanted, without Berth's doing.",
};
/// Everything by which hosts differ.
pub const DIFFERENCES: Metric = Metric {
    name: "berth.differences",
    kind: Kind::Gauge,
    unit: "{difference}",
    labels: &[Label {
        key: KIND,
        values: "as of `berth.drift`, and of no placement `StaleRecord`, `AssignedByHand`, `LeftDismounted`, `Disabled`, `CardMissing`",
    }],
    what: "How hosts differ from what is wanted or known, without Berth's doing: what `ListDrift` lists. A device counts, not its placement.",
};
/// Placements that wait for room.
pub const QUEUE_DEPTH: Metric = Metric {
    name: "berth.queue.depth",
    kind: Kind::Gauge,
    unit: "{placement}",
    labels: &[],
    what: "Placements that wait for room.",
};
/// Nodes by state.
pub const NODES: Metric = Metric {
    name: "berth.nodes",
    kind: Kind::Gauge,
    unit: "{node}",
    labels: &[
        BY_CLUSTER,
        Label {
            key: STATE,
            values: "`Ready`, `Cordoned`, `NotReported` (connected, nothing told yet), `SurveyFailed`, `Stranger`, \
                     `Disconnected` (for less than 30 s), `Lost` (for longer)",
        },
    ],
    what: "Nodes by state, each counted once, by the worst that is true of it.",
};
/// Lost nodes that hold placements.
pub const NODES_LOST_HOLDING: Metric = Metric {
    name: "berth.nodes.lost.holding",
    kind: Kind::Gauge,
    unit: "{node}",
    labels: &[BY_CLUSTER],
    what: "Lost nodes (not heard of for 30 s or longer) whose GPUs belong to placements.",
};
/// Agents with a session.
pub const AGENTS_CONNECTED: Metric = Metric {
    name: "berth.agents.connected",
    kind: Kind::Gauge,
    unit: "{agent}",
    labels: &[],
    what: "Agents that have a session with the leader.",
};
/// The connected agent that was silent for longest.
pub const AGENTS_OLDEST: Metric = Metric {
    name: "berth.agents.oldest",
    kind: Kind::Gauge,
    unit: "s",
    labels: &[],
    what: "Time since anything was heard of the connected agent that was silent for longest: what is known is at least so fresh.",
};
/// Broken invariants.
pub const VIOLATIONS: Metric = Metric {
    name: "berth.invariants.violated",
    kind: Kind::Gauge,
    unit: "{violation}",
    labels: &[],
    what: "Invariants that the last check of the leader's world found broken; anything but 0 needs a person at once.",
};
/// How long placements waited for room.
pub const QUEUE_WAIT: Metric = Metric {
    name: "berth.queue.wait",
    kind: Kind::Histogram(SLOW),
    unit: "s",
    labels: &[Label { key: OUTCOME, values: "`placed`, `given_up`" }],
    what: "How long placements waited in the queue, by whether they were placed or given up (expired or released).",
};
/// Time from request to active.
pub const PLACEMENT_DURATION: Metric = Metric {
    name: "berth.placement.duration",
    kind: Kind::Histogram(SLOW),
    unit: "s",
    labels: &[],
    what: "Time from the request to the VM having its GPUs, waits in the queue and for the VM included.",
};
/// Placements that ended.
pub const PLACEMENTS_ENDED: Metric = Metric {
    name: "berth.placements.ended",
    kind: Kind::Counter,
    unit: "{placement}",
    labels: &[Label {
        key: REASON,
        values: "`Released`, and for those that failed `HoldExpired`, `QueueExpired`, `Step`, `Deadline`, `VmOnOtherNode`",
    }],
    what: "Placements that left their life as asked, or began to fail, by why.",
};
/// Steps that failed.
pub const STEPS_FAILED: Metric = Metric {
    name: "berth.steps.failed",
    kind: Kind::Counter,
    unit: "{attempt}",
    labels: &[
        Label {
            key: STEP,
            values: "the 14 steps: `Check`, `MakeStandalone`, `StopVm`, `ConfigureVm`, `Disable`, `Dismount`, `Attach`, `StartVm`, `Verify`, `InstallDriver`, `Detach`, `Mount`, `Enable`, `RestoreVm`",
        },
        Label { key: CLASS, values: "`Failed`, `TimedOut`, `NoEffect`, `Forbidden`, `NotThere`" },
    ],
    what: "Failed attempts at steps on hosts, as agents reported them to the leader.",
};

/// The chapter.
pub const CHAPTER: Chapter = Chapter {
    title: "The fleet",
    about: "Exported by the controller that leads, and by no other: a sum over all controllers is right without a filter. \
            For some seconds of a change of leaders there are none. Gauges are computed from one snapshot of the world, at \
            most once a second and only when somebody asks, away from the thread that decides.",
    metrics: &[
        GPUS,
        GPUS_AVAILABLE,
        GPUS_UNAVAILABLE,
        GPUS_HELD,
        GPU_HELD_TIME,
        SLOTS,
        FRAGMENTATION,
        PLACEMENTS,
        PLACEMENTS_OLDEST,
        PLACEMENTS_OVERDUE,
        PLACEMENTS_CONDITIONS,
        PLACEMENTS_ENDED,
        PLACEMENT_DURATION,
        DRIFT,
        DIFFERENCES,
        QUEUE_DEPTH,
        QUEUE_WAIT,
        STEPS_FAILED,
        NODES,
        NODES_LOST_HOLDING,
        AGENTS_CONNECTED,
        AGENTS_OLDEST,
        VIOLATIONS,
    ],
};
