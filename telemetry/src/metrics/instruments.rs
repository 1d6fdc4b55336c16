//! Instruments for the metrics of the tables. Without [`crate::start`], or with nobody to export to, they record nothing
//! and cost next to nothing.

use super::{Kind, MAX_SERIES, Metric};
use opentelemetry::global;
use opentelemetry::metrics::{AsyncInstrument, Counter, Histogram, Meter};
use opentelemetry_sdk::metrics::{Instrument, InstrumentKind, Stream};

/// The scope of all of Berth's instruments.
const SCOPE: &str = "berth";

fn meter() -> Meter {
    global::meter(SCOPE)
}

/// A counter of whole things.
pub fn counter(metric: &Metric) -> Counter<u64> {
    debug_assert_eq!(metric.kind, Kind::Counter, "{}", metric.name);
    meter().u64_counter(metric.name).with_unit(metric.unit).with_description(metric.what).build()
}

/// A histogram.
pub fn histogram(metric: &Metric) -> Histogram<f64> {
    let meter = meter();
    let builder = meter.f64_histogram(metric.name).with_unit(metric.unit).with_description(metric.what);
    match metric.kind {
        Kind::Histogram(bounds) => builder.with_boundaries(bounds.to_vec()).build(),
        Kind::Counter | Kind::Gauge => builder.build(),
    }
}

/// Has a gauge, or a counter of what is counted elsewhere, read whenever somebody asks for metrics: on a thread that may
/// take its time, never on one that decides.
pub fn observe(metric: &Metric, look: impl Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static) {
    let meter = meter();
    match metric.kind {
        Kind::Counter => {
            let builder = meter.f64_observable_counter(metric.name).with_unit(metric.unit);
            let _registered = builder.with_description(metric.what).with_callback(look).build();
        }
        Kind::Gauge | Kind::Histogram(_) => {
            let builder = meter.f64_observable_gauge(metric.name).with_unit(metric.unit);
            let _registered = builder.with_description(metric.what).with_callback(look).build();
        }
    }
}

/// A count as OpenTelemetry takes it.
#[expect(clippy::cast_precision_loss, reason = "what is counted stays far below 2^53, where this becomes inexact")]
pub(crate) fn number(count: u64) -> f64 {
    count as f64
}

/// Lets what is read have as many series as the largest fleet needs; the SDK's own bound is 2,000.
pub(crate) fn view(instrument: &Instrument) -> Option<Stream> {
    let read = matches!(instrument.kind(), InstrumentKind::ObservableGauge | InstrumentKind::ObservableCounter);
    read.then(|| Stream::builder().with_cardinality_limit(MAX_SERIES).build().ok()).flatten()
}
