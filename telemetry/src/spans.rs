//! Spans that carry a trace id, so that all lines about one placement can be found by it, in every process.

use crate::names;
use berth_model::placement::StepKind;
use berth_model::trace::TraceParent;
use berth_model::{NodeName, PlacementName, PlacementUid};
use tracing::field::Empty;
use tracing::{Span, info_span};

fn record_trace(span: &Span, trace: Option<&TraceParent>) {
    if let Some(trace) = trace {
        span.record(names::TRACE_ID, trace.trace_id());
        span.record(names::SPAN_ID, trace.span_id());
    }
}

/// An API call, by the name of its method.
pub fn call(method: &str, trace: Option<&TraceParent>) -> Span {
    let span = info_span!("call", { names::METHOD } = method, { names::TRACE_ID } = Empty, { names::SPAN_ID } = Empty);
    record_trace(&span, trace);
    span
}

/// An agent's session with its controller.
pub fn session(node: &NodeName) -> Span {
    info_span!("session", { names::NODE } = %node)
}

/// Work on one placement.
pub fn placement(node: &NodeName, name: &PlacementName, uid: &PlacementUid, trace: Option<&TraceParent>) -> Span {
    let span = info_span!(
        "placement",
        { names::NODE } = %node,
        { names::PLACEMENT } = %name,
        { names::UID } = %uid,
        { names::TRACE_ID } = Empty,
        { names::SPAN_ID } = Empty
    );
    record_trace(&span, trace);
    span
}

/// One step on a host, inside the span of its placement; `trace` is its own, where it is kept.
pub fn step(parent: &Span, kind: StepKind, attempt: u32, trace: Option<&TraceParent>) -> Span {
    let span = info_span!(
        parent: parent,
        "step",
        { names::STEP } = %kind,
        { names::ATTEMPT } = attempt,
        { names::SPAN_ID } = Empty
    );
    if let Some(trace) = trace {
        span.record(names::SPAN_ID, trace.span_id());
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Metadata;

    #[test]
    fn spans_have_the_names_that_dashboards_know() {
        let node = NodeName::new("n1").unwrap();
        let name = PlacementName::new("p1").unwrap();
        let uid = PlacementUid::new("8fce3318-aa0f-4de3-8664-278533573cd2").unwrap();
        let subscriber = tracing_subscriber::registry();
        tracing::subscriber::with_default(subscriber, || {
            let placement = placement(&node, &name, &uid, None);
            let spans = [
                (call("Create", None), names::SPAN_CALL),
                (session(&node), names::SPAN_SESSION),
                (step(&placement, StepKind::Attach, 1, None), names::SPAN_STEP),
                (placement, names::SPAN_PLACEMENT),
            ];
            for (span, expected) in spans {
                assert_eq!(span.metadata().map(Metadata::name), Some(expected));
            }
        });
    }
}
