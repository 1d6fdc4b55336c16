//! `cargo xtask sim [--seeds N] [--seed S]`: a whole Berth in virtual time over many seeds, or the readable log of one.

use berth_tests::sim::{self, TROUBLES};
use clap::Parser;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

/// Runs agents, controllers, store and callers through random faults, then waits for all of it to come to rest.
#[derive(Parser)]
struct Args {
    /// How many seeds to run, from --first on.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Run only this seed and print all that happens.
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
}

fn main() -> anyhow::Result<ExitCode> {
    let Args { seeds, first, seed } = Args::parse();
    let mut out = std::io::stdout().lock();
    if let Some(seed) = seed {
        return Ok(match sim::run(seed, true) {
            Ok(summary) => {
                for line in summary.log {
                    writeln!(out, "{line}")?;
                }
                write!(out, "{}", summary.counts)?;
                writeln!(out, "seed {seed} is good")?;
                ExitCode::SUCCESS
            }
            Err(failure) => {
                writeln!(out, "{failure}")?;
                ExitCode::FAILURE
            }
        });
    }
    let begun = Instant::now();
    let (all, failures) = sim::run_many(first, seeds);
    for failure in &failures {
        writeln!(out, "{failure}")?;
    }
    write!(out, "{all}")?;
    for never in all.never(TROUBLES) {
        writeln!(out, "{:>10}  {never}", "never")?;
    }
    let took = begun.elapsed().as_secs_f64();
    let failed = u64::try_from(failures.len())?;
    let passed = seeds.saturating_sub(failed);
    writeln!(out, "{passed} of {seeds} seeds passed in {took:.1} s")?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
