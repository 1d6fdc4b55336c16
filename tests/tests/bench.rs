//! The benchmarks work: each in its short form, with every figure there. What the figures are is not looked at here.

#![expect(clippy::unwrap_used, reason = "tests")]

use berth_tests::process::{other, run_within, skip};
use serde_json::Value;
use std::sync::OnceLock;
use std::time::Duration;

/// A few seconds of measuring, in a debug build on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// The figures of a benchmark's short form. `None` when there is no etcd here; that was said then.
fn bench(what: &str) -> Option<Value> {
    if berth_tests::config::etcd().is_none() {
        skip(&format!("bench {what}"), "there is no etcd; cargo xtask test e2e gets one, or put it in the PATH");
        return None;
    }
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| berth_tests::bench::build().unwrap());
    let mut bench = other(env!("CARGO_BIN_EXE_bench"));
    bench.args([what, "--short", "-o", "json"]);
    let report = run_within(LIMIT, bench).unwrap().expect(0).unwrap().json().unwrap();
    assert_eq!(report["bench"], what);
    Some(report)
}

/// The median of the figure whose name ends so.
fn figure(report: &Value, ending: &str) -> f64 {
    let rows = report["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["what"].as_str().unwrap().ends_with(ending));
    row.unwrap_or_else(|| panic!("no figure ends with {ending:?}: {report:#}"))["median"].as_f64().unwrap()
}

#[test]
fn latency_compares_a_placement_with_a_bare_transaction() {
    let Some(report) = bench("latency") else { return };
    let (placed, bare) = (figure(&report, "placement, p50"), figure(&report, "bare transaction, p50"));
    assert!(placed > 0.0 && bare > 0.0, "{report:#}");
    assert!(figure(&report, "ratio at p50") > 0.5, "a placement cannot be twice as fast as etcd: {report:#}");
}

#[test]
fn throughput_shows_where_the_time_goes() {
    let Some(report) = bench("throughput") else { return };
    for what in ["durable placements", "same transactions", "one put", "processor time a placement, controller"] {
        assert!(figure(&report, what) > 0.0, "{what}: {report:#}");
    }
    assert!(figure(&report, "placements in one transaction") >= 1.0, "{report:#}");
}

#[test]
fn takeover_is_measured_cold_and_from_a_follower() {
    let Some(report) = bench("takeover") else { return };
    let lease = figure(&report, "from the kill to leading");
    assert!(lease > 1.0, "nobody leads before the dead leader's lease has run out: {report:#}");
    assert!(figure(&report, "cold start: from election to leading") < 60.0, "{report:#}");
}

#[test]
fn telemetry_is_measured_beside_none() {
    let Some(report) = bench("telemetry") else { return };
    assert!(figure(&report, "on: placements, of those with it off") > 0.1, "{report:#}");
    assert!(figure(&report, "on: durable placements") > 0.0, "{report:#}");
}

#[test]
fn a_fleet_at_rest_writes_nothing() {
    let Some(report) = bench("idle") else { return };
    assert!(figure(&report, "revisions written").abs() < 0.5, "{report:#}");
    assert!(figure(&report, "real agent, memory") > 0.5, "{report:#}");
}

#[test]
fn step_tells_the_agents_own_time_and_what_it_takes_at_rest() {
    let Some(report) = bench("step") else { return };
    let (own, whole) = (figure(&report, "own time, p50"), figure(&report, "as a whole, p50"));
    assert!(own > 0.0 && own < whole, "{report:#}");
    // Slower than asked for is a busy machine, quicker would be an agent that asks too often.
    assert!(figure(&report, "shortest time between two") > 0.9, "{report:#}");
    assert!(figure(&report, "the agent's memory") > 1.0, "{report:#}");
}
