//! What a benchmark came to, for people and for programs.

use super::figures::Spread;
use serde::Serialize;
use std::fmt;

/// Where a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "<= {}", shown(*limit)),
            Self::AtLeast(limit) => write!(f, ">= {}", shown(*limit)),
        }
    }
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The median of all repetitions.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
    /// What it counts.
    pub unit: &'static str,
    /// Where it should be, as a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
    /// Whether it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

/// All figures of one benchmark.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Which benchmark.
    pub bench: &'static str,
    /// On what.
    pub machine: String,
    /// How it was done: everything that a figure depends on.
    pub notes: Vec<String>,
    /// The figures.
    pub rows: Vec<Row>,
}

impl Report {
    /// An empty one of a benchmark against this version of etcd.
    pub(super) fn new(bench: &'static str, etcd: &str) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let build = if cfg!(debug_assertions) { "DEBUG BUILD, figures mean nothing" } else { "release build" };
        Self { bench, machine: format!("{cores} cores, etcd {etcd}, {build}"), notes: Vec::new(), rows: Vec::new() }
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    pub(super) fn row(&mut self, what: impl Into<String>, value: Spread, unit: &'static str) {
        let Spread { median, min, max } = value;
        self.rows.push(Row { what: what.into(), median, min, max, unit, goal: None, met: None });
    }

    pub(super) fn judged(&mut self, what: impl Into<String>, value: Spread, unit: &'static str, goal: Goal) {
        self.row(what, value, unit);
        if let Some(row) = self.rows.last_mut() {
            row.goal = Some(goal.to_string());
            row.met = Some(goal.is_met(value.median));
        }
    }

    /// The figure of this name.
    #[must_use]
    pub fn find(&self, what: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.what == what)
    }
}

/// A number with as many digits as mean something.
fn shown(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 || size == size.trunc() && size >= 1.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "bench {}: {}", self.bench, self.machine)?;
        for note in &self.notes {
            writeln!(f, "  {note}")?;
        }
        let heading = ["", "MEDIAN", "MIN", "MAX", "UNIT", "GOAL", "VERDICT"].map(str::to_owned);
        let mut lines = vec![heading];
        for Row { what, median, min, max, unit, goal, met } in &self.rows {
            let verdict = met.map_or("", |met| if met { "met" } else { "missed" });
            let goal = goal.clone().unwrap_or_default();
            lines.push([
                what.clone(),
                shown(*median),
                shown(*min),
                shown(*max),
                (*unit).to_owned(),
                goal,
                verdict.to_owned(),
            ]);
        }
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        for line in &lines {
            let mut text = String::new();
            for (column, cell) in line.iter().enumerate() {
                let width = width(column);
                // Numbers stand under one another from the right.
                let padded =
                    if (1..=3).contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
                text.push_str(&padded);
                text.push_str("  ");
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_table_with_verdicts() {
        let mut report = Report::new("latency", "3.7.0");
        report.machine = "2 cores".to_owned();
        report.note("as it was done");
        report.row("one placement", Spread { median: 1.234, min: 0.9, max: 12.0 }, "ms");
        report.judged("ratio", Spread { median: 1.25, min: 1.0, max: 2.0 }, "x", Goal::AtMost(1.5));
        report.judged("rate", Spread { median: 4711.4, min: 1.0, max: 5000.0 }, "/s", Goal::AtLeast(5000.0));
        let expected = "\
bench latency: 2 cores
  as it was done
               MEDIAN    MIN   MAX  UNIT  GOAL     VERDICT
one placement    1.23  0.900    12  ms
ratio            1.25      1     2  x     <= 1.50  met
rate             4711      1  5000  /s    >= 5000  missed
";
        assert_eq!(report.to_string(), expected);
    }
}
