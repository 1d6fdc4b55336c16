//! What Berth's processes say about themselves: logs, the names they use, and the trace context they pass on.
//!
//! Owns the start and the flush of logging, and the names of spans, fields and events ([`names`]). Must never decide
//! anything, and never fail a call because of what it could not record.

pub mod journal;
mod log;
pub mod metrics;
pub mod names;
pub mod spans;
pub mod trace;

pub use log::{Format, Guard, InitError, Options, UnknownFormat, init, init_with};
