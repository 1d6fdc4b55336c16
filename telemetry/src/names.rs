//! Names of spans, fields and events. Dashboards, alerts and people's searches depend on them: one place, stable texts.
//!
//! Use as `tracing::info!({ names::NODE } = %node, "…")`.

/// Span: one API call.
pub const SPAN_CALL: &str = "call";
/// Span: an agent's session, on either side.
pub const SPAN_SESSION: &str = "session";
/// Span: work on one placement.
pub const SPAN_PLACEMENT: &str = "placement";
/// Span: one step on a host.
pub const SPAN_STEP: &str = "step";

/// Trace span: the store transaction that made a decision durable, as the caller waits for it.
pub const TRACE_COMMIT: &str = "commit";
/// Trace span: the leader's decision, the choice of GPUs included.
pub const TRACE_SCHEDULE: &str = "schedule";
/// Trace span: what is wanted goes out on the session of a node's agent.
pub const TRACE_SEND: &str = "session.send";
/// Trace span: the agent takes in what is wanted, and has it durable.
pub const TRACE_ACCEPT: &str = "session.accept";
/// Trace span: one attempt at a step on a host.
pub const TRACE_STEP: &str = "step";
/// Trace span: the call of the host driver within a step.
pub const TRACE_DRIVER: &str = "driver.act";

/// Field: W3C trace id, 32 hexadecimal digits; the same from the API call to the step on the host.
pub const TRACE_ID: &str = "trace_id";
/// Field: W3C id of the span in which something is said, 16 hexadecimal digits; where a trace is kept, its span has this id.
pub const SPAN_ID: &str = "span_id";
/// Field: name of a placement.
pub const PLACEMENT: &str = "placement";
/// Field: uid of a placement.
pub const UID: &str = "uid";
/// Field: name of a node.
pub const NODE: &str = "node";
/// Field: address of a GPU on its node.
pub const GPU: &str = "gpu";
/// Field: id of a VM.
pub const VM: &str = "vm";
/// Field: kind of a step.
pub const STEP: &str = "step";
/// Field: how often a step was tried, counted from 1.
pub const ATTEMPT: &str = "attempt";
/// Field: phase of a placement.
pub const PHASE: &str = "phase";
/// Field: what it was before: a phase, or the state of a GPU.
pub const WAS: &str = "was";
/// Field: where a GPU is.
pub const STATE: &str = "state";
/// Field: a GPU's health.
pub const HEALTH: &str = "health";
/// Field: a leadership.
pub const TERM: &str = "term";
/// Field: version of a node's desired state.
pub const GENERATION: &str = "generation";
/// Field: version of the store.
pub const REVISION: &str = "revision";
/// Field: class of an error.
pub const ERROR_CLASS: &str = "error_class";
/// Field: the error as a sentence.
pub const ERROR: &str = "error";
/// Field: address that is dialled or listened on.
pub const ENDPOINT: &str = "endpoint";
/// Field: name of an API method.
pub const METHOD: &str = "method";
/// Field: who calls.
pub const CALLER: &str = "caller";
/// Field: address of whoever is at the other end of a connection.
pub const PEER: &str = "peer";
/// Field: what came of a call: its gRPC code.
pub const OUTCOME: &str = "outcome";
/// Field: a duration in milliseconds.
pub const DURATION_MS: &str = "duration_ms";

/// Field: whether a safeguard of the host was overridden.
pub const FORCED: &str = "forced";

/// Event: a session was agreed.
pub const EVENT_CONNECTED: &str = "connected";
/// Event: a session ended.
pub const EVENT_DISCONNECTED: &str = "disconnected";
/// Event: somebody asked for a change. One for each call that can change something, refused or not.
pub const EVENT_CHANGE_ASKED: &str = "a change was asked for";
/// Event: a safeguard of a host was overridden for a placement, as the node's policy says. One for each device.
pub const EVENT_FORCED: &str = "a device was dismounted by force";
/// Event: a desired state was accepted and is durable.
pub const EVENT_ACCEPTED: &str = "desired state accepted";
/// Event: a desired state was refused by the ledger's rule.
pub const EVENT_REFUSED: &str = "desired state refused";
/// Event: a step begins.
pub const EVENT_STEP_STARTED: &str = "step started";
/// Event: a step ended, with or without an error.
pub const EVENT_STEP_ENDED: &str = "step ended";
/// Event: a placement is as wanted.
pub const EVENT_SATISFIED: &str = "placement is as wanted";
/// Event: the agent gave up on what is wanted of a placement.
pub const EVENT_GAVE_UP: &str = "gave up on placement";
/// Event: the host could not be observed.
pub const EVENT_BLIND: &str = "host cannot be observed";
/// Event: the host can be observed again.
pub const EVENT_SEES_AGAIN: &str = "host is observed again";
/// Event: a placement is in another phase, by an agent's doing or because time has passed.
pub const EVENT_PHASE: &str = "placement changed phase";
/// Event: a GPU is seen elsewhere, or its health is another.
pub const EVENT_GPU: &str = "GPU changed state";
