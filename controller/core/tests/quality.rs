//! How well the scheduler packs a real cluster. `cargo run --release -p berth-core --example quality` prints the table.

#![allow(clippy::print_stdout, reason = "helpers of tests are tests")]

#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/openb.rs"]
mod openb;

use openb::{Outcome, Trace, mean};

/// Goals as in the design, in percent: of GPUs allocated, of the demand of requests for four and more GPUs placed.
fn check(pods: &str, allocated: f64, large: f64) {
    let Some(folder) = openb::folder() else {
        println!("skipped: the openb trace is not beside this repository (shared/data/openb)");
        return;
    };
    let trace = Trace::load(&folder, pods);
    let outcomes: Vec<Outcome> = (42..=51).map(|seed| trace.run(seed)).collect();
    let (got, got_large) = (mean(&outcomes, Outcome::allocated), mean(&outcomes, Outcome::large_share));
    println!("{pods}: {got:.2} % allocated, {got_large:.2} % of large demand placed");
    assert!(got >= allocated, "{got:.2} % of GPUs allocated, goal {allocated} %: {outcomes:?}");
    assert!(got_large >= large, "{got_large:.2} % of large demand placed, goal {large} %: {outcomes:?}");
}

#[test]
fn the_default_trace_is_packed_tightly() {
    check("openb_pod_list_default.csv", 98.3, 97.0);
}

#[test]
fn requests_by_model_find_what_they_name() {
    check("openb_pod_list_gpuspec33.csv", 96.5, 97.0);
}
