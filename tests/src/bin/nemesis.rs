//! `cargo xtask nemesis [--experiment NAME]… [--seed S] [--for 10m] [--rounds N]`: a whole Berth as processes while everything
//! goes wrong, for as long as one likes.

use anyhow::Context as _;
use berth_tests::nemesis::experiments::Experiment;
use berth_tests::nemesis::{Options, run};
use clap::Parser;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

/// Starts three etcd members, three controllers and agents with simulated hosts, makes trouble, and judges what came of it.
#[derive(Parser)]
struct Args {
    /// Which experiment: mixed, leader-kills, paused-leader or rolling-restart. May be given several times; all without it.
    #[arg(long = "experiment", value_name = "NAME")]
    experiments: Vec<Experiment>,
    /// Where chance begins; drawn anew without it.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// How long the experiment mixed makes trouble.
    #[arg(long = "for", default_value = "2m", value_parser = humantime::parse_duration, value_name = "DURATION")]
    duration: Duration,
    /// How often the others do what they do.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    rounds: u32,
    /// Agents, each with a host of four GPUs.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=200), value_name = "N")]
    agents: u16,
    /// Callers at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=400), value_name = "N")]
    callers: u16,
    /// How often all of it is done, each time with the next seed.
    #[arg(long, default_value_t = 1, value_name = "N")]
    times: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let Args { experiments, seed, duration, rounds, agents, callers, times } = Args::parse();
    let experiments = if experiments.is_empty() { Experiment::ALL.to_vec() } else { experiments };
    let first = seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let mut failed = 0_u64;
    let mut out = std::io::stdout();
    for seed in (0..times).map(|more| first.wrapping_add(more)) {
        for experiment in &experiments {
            let (agents, callers) = (usize::from(agents), usize::from(callers));
            let options = Options { experiment: *experiment, seed, agents, callers, duration, rounds };
            match run(options) {
                Ok(report) => {
                    let report = report.context("the nemesis needs etcd")?;
                    writeln!(out, "{experiment}, seed {seed}: good\n{report}")?;
                }
                Err(error) => {
                    failed += 1;
                    writeln!(out, "{experiment}, seed {seed}: {error:#}\n")?;
                }
            }
        }
    }
    writeln!(out, "{failed} of {} runs found something", times.saturating_mul(experiments.len() as u64))?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
