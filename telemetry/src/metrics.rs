//! Every metric of Berth: name, kind, unit, labels with their bounds, and what it says. The one place where a metric is
//! named; `docs/metrics.md` is written from it.
//!
//! Names and units follow OpenTelemetry, the names of hardware and process metrics its semantic conventions
//! (<https://opentelemetry.io/docs/specs/semconv/hardware/common/>, <https://opentelemetry.io/docs/specs/semconv/system/process-metrics/>).
//! Must never hold a label whose values grow with requests, VMs, callers or GPUs of the whole fleet.

pub mod agent;
pub mod controller;
pub mod fleet;
pub mod instruments;
pub mod page;
pub mod process;

/// One metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Its OpenTelemetry name.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: Kind,
    /// Its unit, by the code of UCUM; in braces what is counted.
    pub unit: &'static str,
    /// What tells its series apart.
    pub labels: &'static [Label],
    /// What it says, in one sentence.
    pub what: &'static str,
}

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only grows, from zero at the start of the process.
    Counter,
    /// As it stands.
    Gauge,
    /// How often which value occurred, with these upper bounds of the buckets.
    Histogram(&'static [f64]),
}

impl Kind {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// A label and what bounds the number of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its key.
    pub key: &'static str,
    /// Its values, or what bounds them.
    pub values: &'static str,
}

/// Most models that are told apart; what comes after them, in order of name, is told as [`OTHER`]. A fleet has a few dozen.
pub const MAX_MODELS: usize = 100;
/// Most clusters that are told apart; further ones are told as [`OTHER`]. Fleets of hundreds of clusters exist.
pub const MAX_CLUSTERS: usize = 1_000;
/// Most series of one metric. Beyond it the SDK puts what it cannot tell apart into one series with the label
/// `otel.metric.overflow`. Reached by no fleet within the bounds above: few clusters have more than four models.
pub const MAX_SERIES: usize = 50_000;
/// The value of a label for all that is beyond its bound.
pub const OTHER: &str = "other";
/// The value of the label `cluster` for nodes of no cluster.
pub const NO_CLUSTER: &str = "none";

/// Upper bounds for what takes microseconds to milliseconds, in seconds.
pub const QUICK: &[f64] = &[
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Upper bounds for what takes a host seconds to minutes, in seconds.
pub const SLOW: &[f64] =
    &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_200.0, 3_600.0, 14_400.0];
/// Upper bounds for counts up to the largest transaction.
pub const COUNTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 48.0, 64.0, 96.0, 128.0];

impl Metric {
    /// The name it has for Prometheus: what is no letter, digit or underscore becomes an underscore, the unit is written
    /// out behind it, and a counter ends in `_total` (<https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>).
    pub fn prometheus(&self) -> String {
        let mut name: String = self.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let unit = match self.unit {
            "s" => "_seconds",
            "By" => "_bytes",
            "1" => "_ratio",
            _ => "",
        };
        name.push_str(unit);
        if self.kind == Kind::Counter {
            name.push_str("_total");
        }
        name
    }
}

/// A chapter of metrics: who exports them, and which they are.
#[derive(Clone, Copy, Debug)]
pub struct Chapter {
    /// Its heading.
    pub title: &'static str,
    /// Who exports them, and what to know about all of them.
    pub about: &'static str,
    /// The metrics.
    pub metrics: &'static [Metric],
}

/// All metrics, in the order of their page.
pub const CHAPTERS: &[Chapter] = &[fleet::CHAPTER, controller::CHAPTER, agent::CHAPTER, process::CHAPTER];

/// Every metric.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    CHAPTERS.iter().flat_map(|chapter| chapter.metrics)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_in_both_worlds() {
        let (mut names, mut prometheus) = (BTreeSet::new(), BTreeSet::new());
        for metric in all() {
            assert!(names.insert(metric.name), "{} is there twice", metric.name);
            assert!(prometheus.insert(metric.prometheus()), "{} is there twice", metric.prometheus());
        }
    }

    #[test]
    fn every_metric_is_named_as_opentelemetry_asks() {
        for metric in all() {
            let ours = ["berth.", "hw.", "process."].iter().any(|prefix| metric.name.starts_with(prefix));
            let plain = metric.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'.' || b == b'_');
            assert!(ours && plain, "{} is no name", metric.name);
            let unit = matches!(metric.unit, "s" | "By" | "1") || metric.unit.starts_with('{');
            assert!(unit, "{}: unit {}", metric.name, metric.unit);
            assert!(metric.what.ends_with('.'), "{}: {} is no sentence", metric.name, metric.what);
            for label in metric.labels {
                assert!(!label.values.is_empty(), "{}: {} has no bound", metric.name, label.key);
            }
        }
    }
}
