//! Spans: one trace from a caller's call to the step on a host.
//!
//! A thin hand on the SDK. Where nothing is exported, or a trace is not sampled, a [`Span`] is empty and costs a
//! comparison. Whether a trace is kept is decided once, where it begins; whoever continues it follows that decision. Must
//! never wait, and never fail what it tells of.

use crate::export::Export;
use crate::pace::Pace;
use berth_model::trace::TraceParent;
use opentelemetry::context::FutureExt as _;
use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::SdkTracer;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

static TRACING: OnceLock<Tracing> = OnceLock::new();

/// What makes spans in this process.
#[derive(Debug)]
pub(crate) struct Tracing {
    tracer: SdkTracer,
    choice: Choice,
}

impl Tracing {
    /// Makes spans with a tracer from now on. Only the first one in a process counts.
    pub(crate) fn install(tracer: SdkTracer, export: &Export, pace: Pace) {
        // A second one can only come from a test that starts telemetry twice.
        let _first_stays = TRACING.set(Self { tracer, choice: Choice::new(export, pace) });
    }
}

/// Which of the traces that begin here are kept: a share of them, and at most so many a second.
#[derive(Debug)]
struct Choice {
    millionths: u32,
    /// Adds up the share of each; whole ones are kept.
    owed: AtomicU32,
    pace: Pace,
}

impl Choice {
    fn new(export: &Export, pace: Pace) -> Self {
        Self { millionths: export.sample.millionths(), owed: AtomicU32::new(0), pace }
    }

    fn keeps(&self) -> bool {
        const WHOLE: u32 = 1_000_000;
        let owed = |owed: u32| {
            let sum = owed + self.millionths;
            Some(if sum >= WHOLE { sum - WHOLE } else { sum })
        };
        // The update never fails: it always gives a value.
        let before = self.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, owed).unwrap_or(0);
        before + self.millionths >= WHOLE && self.pace.admits()
    }
}

/// A span under way; ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span(Option<Context>);

/// Begins with a call: continues the caller's trace as the caller decided, or begins a new one.
pub fn begin(name: &'static str, trace: Option<&TraceParent>) -> Span {
    let Some(tracing) = TRACING.get() else { return Span::none() };
    match trace.map(span_context) {
        Some(caller) if caller.is_sampled() => tracing.span(name, SpanKind::Server, &remote(caller), None),
        Some(_) => Span::none(),
        None if tracing.choice.keeps() => tracing.span(name, SpanKind::Server, &Context::new(), None),
        None => Span::none(),
    }
}

/// Continues a trace that was begun elsewhere, if it is kept; never begins one.
pub fn follow(name: &'static str, trace: Option<&TraceParent>) -> Span {
    follow_since(name, trace, None)
}

/// The same of something that began before it was known to whom it belongs.
pub fn follow_since(name: &'static str, trace: Option<&TraceParent>, since: Option<SystemTime>) -> Span {
    let (Some(tracing), Some(trace)) = (TRACING.get(), trace) else { return Span::none() };
    match span_context(trace) {
        kept if kept.is_sampled() => tracing.span(name, SpanKind::Internal, &remote(kept), since),
        _ => Span::none(),
    }
}

fn remote(parent: SpanContext) -> Context {
    Context::new().with_remote_span_context(parent)
}

impl Tracing {
    fn span(&self, name: &'static str, kind: SpanKind, parent: &Context, since: Option<SystemTime>) -> Span {
        let builder = SpanBuilder::from_name(name).with_kind(kind);
        let builder = match since {
            Some(since) => builder.with_start_time(since),
            None => builder,
        };
        Span(Some(Context::new().with_span(builder.start_with_context(&self.tracer, parent))))
    }
}

impl Span {
    /// A span that is not kept.
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether anything is kept: what is costly to tell need not be worked out otherwise.
    pub fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Says something about it.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// Says that what it is about failed.
    pub fn fail(&self, class: &'static str, why: &str) {
        if let Some(context) = &self.0 {
            // OpenTelemetry's name for what an error is.
            context.span().set_attribute(KeyValue::new("error.type", class));
            context.span().set_status(Status::error(why.to_owned()));
        }
    }

    /// A span within this one.
    pub fn child(&self, name: &'static str) -> Self {
        Link(self.0.clone()).child(name)
    }

    /// For those who work for it elsewhere.
    pub fn link(&self) -> Link {
        Link(self.0.clone())
    }

    /// How others continue it.
    pub fn trace(&self) -> Option<TraceParent> {
        let context = self.0.as_ref()?.span().span_context().clone();
        format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8()).parse().ok()
    }

    /// Does something whose log lines belong to it.
    pub fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        let _attached = self.0.clone().map(Context::attach);
        work()
    }

    /// The same of something that takes time.
    pub async fn within<F: Future>(&self, work: F) -> F::Output {
        match &self.0 {
            Some(context) => work.with_context(context.clone()).await,
            None => work.await,
        }
    }
}

/// What a span is, for those who work for it elsewhere: they may begin spans within it, and do not end it.
#[derive(Clone, Debug, Default)]
pub struct Link(Option<Context>);

impl Link {
    /// Of nothing that is kept.
    pub fn none() -> Self {
        Self(None)
    }

    /// A span within it.
    pub fn child(&self, name: &'static str) -> Span {
        match (TRACING.get(), &self.0) {
            (Some(tracing), Some(context)) => tracing.span(name, SpanKind::Internal, context, None),
            (None, _) | (_, None) => Span::none(),
        }
    }
}

/// Which span is being worked for now, to be taken along to where work goes on.
#[derive(Clone, Debug)]
pub struct Here(Option<Context>);

impl Here {
    /// As it is here.
    pub fn now() -> Self {
        let kept = TRACING.get().is_some() && Context::map_current(|context| context.has_active_span());
        Self(kept.then(Context::current))
    }

    /// In a trace that was begun elsewhere, if it is kept.
    pub fn of(trace: Option<&TraceParent>) -> Self {
        let kept = TRACING.get().and(trace).map(span_context).filter(SpanContext::is_sampled);
        Self(kept.map(remote))
    }

    /// Does something whose log lines belong to it.
    pub fn in_scope<T>(self, work: impl FnOnce() -> T) -> T {
        let _attached = self.0.map(Context::attach);
        work()
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

/// A checked traceparent in the SDK's form.
fn span_context(trace: &TraceParent) -> SpanContext {
    let flags = u8::from_str_radix(trace.flags(), 16).unwrap_or(0);
    SpanContext::new(
        TraceId::from_hex(trace.trace_id()).unwrap_or(TraceId::INVALID),
        SpanId::from_hex(trace.span_id()).unwrap_or(SpanId::INVALID),
        TraceFlags::new(flags),
        true,
        TraceState::default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_kept_evenly_and_never_more_than_there_is_room_for() {
        let kept = |sample: &str, per_second, calls| {
            let export = Export { sample: sample.parse().unwrap(), ..Export::default() };
            let choice = Choice::new(&export, Pace::new(per_second));
            // One second for all of them: the test must not depend on how long it takes.
            (0..calls)
                .filter(|_| {
                    let before = choice.owed.fetch_add(0, Ordering::Relaxed);
                    let whole = before + choice.millionths >= 1_000_000;
                    let kept = choice.keeps();
                    assert!(whole || !kept);
                    kept
                })
                .count()
        };
        assert_eq!(kept("0", 1_000, 100), 0);
        assert_eq!(kept("1", 1_000, 100), 100);
        assert_eq!(kept("0.25", 1_000, 100), 25);
    }

    #[test]
    fn without_an_exporter_nothing_is_kept_and_nothing_fails() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        let span = begin("call", Some(&trace));
        assert!(!span.is_kept());
        span.set("a", 1);
        span.fail("x", "y");
        assert_eq!(span.child("b").trace(), None);
        assert_eq!(span.in_scope(|| 7), 7);
    }
}
