//! Metrics that every process of Berth exports about itself.

use super::fleet::OUTCOME;
use super::{Chapter, Kind, Label, Metric};

/// Traces, metrics or logs.
pub const SIGNAL: &str = "signal";

const BY_SIGNAL: Label = Label { key: SIGNAL, values: "`traces`, `metrics`, `logs`" };

/// Telemetry that was lost.
pub const TELEMETRY_DROPPED: Metric = Metric {
    name: "berth.telemetry.dropped",
    kind: Kind::Counter,
    unit: "{item}",
    labels: &[BY_SIGNAL],
    what: "Spans, log records and exports of metrics that never reached the collector: there was no room to wait, or it did not take them.",
};
/// Telemetry that was not made.
pub const TELEMETRY_LEFT_OUT: Metric = Metric {
    name: "berth.telemetry.left_out",
    kind: Kind::Counter,
    unit: "{item}",
    labels: &[Label { key: SIGNAL, values: "`traces`, `logs`" }],
    what: "Traces that were not begun, and log lines at INFO and below that were not sent, because more came in one second \
           than `traces_per_second` and `lines_per_second` let through. The lines stand on stderr.",
};
/// Attempts to export.
pub const TELEMETRY_EXPORTS: Metric = Metric {
    name: "berth.telemetry.exports",
    kind: Kind::Counter,
    unit: "{export}",
    labels: &[BY_SIGNAL, Label { key: OUTCOME, values: "`ok`, `failed`" }],
    what: "Batches sent to the collector, by what came of them.",
};
/// Processor time.
pub const CPU_TIME: Metric = Metric {
    name: "process.cpu.time",
    kind: Kind::Counter,
    unit: "s",
    labels: &[Label { key: "cpu.mode", values: "`user`, `system`" }],
    what: "Processor time that the process took; Linux only.",
};
/// Memory.
pub const MEMORY_USAGE: Metric = Metric {
    name: "process.memory.usage",
    kind: Kind::Gauge,
    unit: "By",
    labels: &[],
    what: "Physical memory that the process takes; Linux only.",
};
/// Threads.
pub const THREAD_COUNT: Metric = Metric {
    name: "process.thread.count",
    kind: Kind::Gauge,
    unit: "{thread}",
    labels: &[],
    what: "Threads of the process; Linux only.",
};
/// Open files.
pub const OPEN_FILES: Metric = Metric {
    name: "process.unix.file_descriptor.count",
    kind: Kind::Gauge,
    unit: "{file_descriptor}",
    labels: &[],
    what: "Files and connections that the process has open; Linux only.",
};
/// Time since the start.
pub const UPTIME: Metric =
    Metric { name: "process.uptime", kind: Kind::Gauge, unit: "s", labels: &[], what: "Time since the process began." };

/// The chapter.
pub const CHAPTER: Chapter = Chapter {
    title: "Every process",
    about: "Exported by controllers and agents about themselves.",
    metrics: &[
        TELEMETRY_DROPPED,
        TELEMETRY_LEFT_OUT,
        TELEMETRY_EXPORTS,
        CPU_TIME,
        MEMORY_USAGE,
        THREAD_COUNT,
        OPEN_FILES,
        UPTIME,
    ],
};
