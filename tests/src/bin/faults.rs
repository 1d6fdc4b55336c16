//! `cargo run -p berth-tests --bin faults -- --seeds N [--seed S]`: the random-fault run over many seeds, or the readable
//! log of one.

use berth_tests::faults::{self, Summary};
use clap::Parser;
use std::io::Write;
use std::process::ExitCode;

/// Runs both brains and a simulated host through random faults, kills and accidents.
#[derive(Parser)]
struct Args {
    /// How many seeds to run, from --first on.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Run only this seed and print all that happens.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
}

fn main() -> anyhow::Result<ExitCode> {
    let Args { seeds, first, seed } = Args::parse();
    let mut out = std::io::stdout().lock();
    if let Some(seed) = seed {
        return Ok(match faults::run(seed, true) {
            Ok((summary, log)) => {
                for line in log {
                    writeln!(out, "{line}")?;
                }
                writeln!(out, "seed {seed} is good: {summary:?}")?;
                ExitCode::SUCCESS
            }
            Err(failure) => {
                writeln!(out, "{failure}")?;
                ExitCode::FAILURE
            }
        });
    }
    let mut all = Summary::default();
    let mut failed = 0_u64;
    for seed in first..first.saturating_add(seeds) {
        match faults::run(seed, false) {
            Ok((summary, _)) => all.add(&summary),
            Err(failure) => {
                failed += 1;
                writeln!(out, "{failure}")?;
            }
        }
    }
    writeln!(out, "{} of {seeds} seeds passed: {all:?}", seeds - failed)?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
