//! What Berth's processes say about themselves: logs, metrics, traces, the names they use, and the trace context they
//! pass on.
//!
//! Owns the start and the flush of all of them, every metric ([`metrics`]) and the names of spans, fields and events
//! ([`names`]). Must never decide anything, and never fail or delay a call because of what it could not record.

pub mod export;
pub mod journal;
mod log;
pub mod metrics;
pub mod names;
mod pace;
mod pipeline;
mod process;
mod room;
pub mod spans;
pub mod trace;
pub mod traces;

pub use export::{Export, Service};
pub use log::{Format, Guard, InitError, Options, UnknownFormat, init, start, start_with};
/// A label of a metric, with its value.
pub use opentelemetry::KeyValue;
/// Instruments that record at once.
pub use opentelemetry::metrics::{AsyncInstrument, Counter, Histogram};
pub use pipeline::{is_scraped, scrape};

/// An error with what caused it, as one line.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
