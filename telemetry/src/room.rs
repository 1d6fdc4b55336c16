//! Room for what waits to be exported, and the count of what was lost.
//!
//! Wraps the SDK's batch processors and exporters: the SDK drops what it has no room for without telling how much. Here
//! it is counted before it gets there, so that the SDK's own queue never overflows. Must never wait.

use crate::metrics::process::{SIGNAL, TELEMETRY_DROPPED, TELEMETRY_EXPORTS};
use crate::metrics::{fleet::OUTCOME, instruments};
use crate::pace::Pace;
use opentelemetry::logs::Severity;
use opentelemetry::metrics::Counter;
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter, LogProcessor, SdkLogRecord};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Most spans, and most log records, that wait or are under way. A span takes about one KiB, so that a collector that never
/// answers costs a process some ten MiB; at a hundred traces a second it bridges half a minute.
pub(crate) const ROOM: usize = 8_192;
/// Most in one message to the collector: some hundred KiB, far below the 4 MiB that receivers take.
pub(crate) const BATCH: usize = 512;

/// How much waits, and what was lost of one signal.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    waiting: Arc<AtomicUsize>,
    /// Made when first needed: the exporter of metrics is there before the counters are.
    counters: Arc<OnceLock<Counters>>,
    signal: KeyValue,
}

#[derive(Debug)]
struct Counters {
    dropped: Counter<u64>,
    exports: Counter<u64>,
}

impl Room {
    /// Room for one signal: `traces`, `metrics` or `logs`.
    pub(crate) fn of(signal: &'static str) -> Self {
        Self { waiting: Arc::default(), counters: Arc::default(), signal: KeyValue::new(SIGNAL, signal) }
    }

    /// Has the counts exported, before anything is lost. Only once there is somebody to export them to.
    pub(crate) fn begin(&self) {
        self.lost(0);
    }

    fn counters(&self) -> &Counters {
        self.counters.get_or_init(|| Counters {
            dropped: instruments::counter(&TELEMETRY_DROPPED),
            exports: instruments::counter(&TELEMETRY_EXPORTS),
        })
    }

    /// Whether one more may wait; counts it as waiting, or as lost.
    fn enter(&self) -> bool {
        let entered = self.waiting.fetch_add(1, Ordering::Relaxed) < ROOM;
        if !entered {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.lost(1);
        }
        entered
    }

    fn lost(&self, items: usize) {
        self.counters().dropped.add(u64::try_from(items).unwrap_or(u64::MAX), std::slice::from_ref(&self.signal));
    }

    /// Takes note of the end of an export of so many that waited.
    fn exported(&self, waited: usize, lost: usize, result: &OTelSdkResult) {
        self.waiting.fetch_sub(waited, Ordering::Relaxed);
        let outcome = if result.is_ok() { "ok" } else { "failed" };
        if result.is_err() {
            self.lost(lost);
        }
        self.counters().exports.add(1, &[self.signal.clone(), KeyValue::new(OUTCOME, outcome)]);
    }
}

/// A processor that lets in what there is room for.
#[derive(Debug)]
pub(crate) struct Door<P> {
    /// What it leads to.
    pub(crate) inner: P,
    /// The room behind it.
    pub(crate) room: Room,
    /// How much of what is of less weight it lets in.
    pub(crate) pace: Pace,
}

impl<P: SpanProcessor> SpanProcessor for Door<P> {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.inner.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.room.enter() {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl<P: LogProcessor> LogProcessor for Door<P> {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if self.room.enter() {
            self.inner.emit(record, scope);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn event_enabled(&self, level: Severity, target: &str, name: Option<&str>) -> bool {
        // Asked before the record is built: what is left out costs next to nothing.
        self.inner.event_enabled(level, target, name) && (level >= Severity::Warn || self.pace.admits())
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// An exporter that tells how its exports end.
#[derive(Debug)]
pub(crate) struct Counted<E> {
    /// The exporter.
    pub(crate) inner: E,
    /// Where it is told.
    pub(crate) room: Room,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.inner.export(batch).await;
        self.room.exported(spans, spans, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for Counted<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let records = batch.iter().count();
        let result = self.inner.export(batch).await;
        self.room.exported(records, records, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn event_enabled(&self, level: Severity, target: &str, name: Option<&str>) -> bool {
        self.inner.event_enabled(level, target, name)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Counted<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let result = self.inner.export(metrics).await;
        // Nothing waits, and the next export tells the same again: what is lost is one look.
        self.room.exported(0, 1, &result);
        result
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.inner.temporality()
    }
}
