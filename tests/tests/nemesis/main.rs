//! A whole Berth as processes while everything goes wrong, at its everyday length; longer runs by `cargo xtask nemesis`.

use berth_tests::nemesis::experiments::Experiment;
use berth_tests::nemesis::{Options, run};
use berth_tests::process::skip;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const SEED: u64 = 0x0be7_7400;
const AGENTS: usize = 20;
const CALLERS: usize = 16;

/// Each has a machine's worth of processes, and bounds that are meant for one of them.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn check(experiment: Experiment, duration: Duration, rounds: u32) {
    if cfg!(not(unix)) {
        skip(experiment.name(), "processes are paused and asked to end with signals, which this system has not");
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let options = Options { experiment, seed: SEED, agents: AGENTS, callers: CALLERS, duration, rounds };
    match run(options) {
        // The harness shows the output of tests that end well to nobody, and these are figures to be seen.
        Ok(Some(report)) => drop(write!(std::io::stderr(), "\n{experiment}:\n{report}")),
        Ok(None) => {}
        Err(error) => panic!("{error:#}\nagain: cargo xtask nemesis --experiment {experiment} --seed {SEED}"),
    }
}

#[test]
fn whatever_goes_wrong_nothing_is_lost_or_doubled_and_everything_comes_to_rest() {
    check(Experiment::Mixed, Duration::from_secs(45), 0);
}

#[test]
fn a_leader_that_dies_is_replaced_within_seconds() {
    check(Experiment::LeaderKills, Duration::ZERO, 4);
}

#[test]
fn a_leader_that_slept_through_its_lease_writes_nothing() {
    check(Experiment::PausedLeader, Duration::ZERO, 1);
}

#[test]
fn a_rolling_restart_fails_nobody_who_tries_again() {
    check(Experiment::RollingRestart, Duration::ZERO, 1);
}
