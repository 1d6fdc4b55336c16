//! `cargo xtask`: what people and CI do with this repository, on a machine that has only a Rust toolchain.
//!
//! Owns the demo and the order, selection and summing up of the tests. Must never hold a check of its own: whatever can
//! fail is a test that `cargo test` finds, or a tool that cargo runs.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod bench;
mod cargo;
mod chart;
mod config;
mod demo;
mod etcd;
mod kube;
mod process;
mod prometheus;
mod release;
mod sshd;
mod tally;
mod test;
mod windows;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask demo [--once]     start a simulated fleet, place a VM on a GPU, show it; --once ends by itself
       cargo xtask test [PART...]    run all tests, or only these parts: unit chart store etcd tls powershell
                                                 guest windows telemetry faults sim e2e nemesis
       cargo xtask sim [--seeds N] [--seed S]    a whole Berth in virtual time with everything going wrong: many seeds, or
                                                 the log of one
       cargo xtask nemesis [--experiment NAME]... [--seed S] [--for 10m] [--rounds N]    a whole Berth as processes while
                                                 everything goes wrong; --help says more
       cargo xtask bench WHAT [--short] [-o json]    how fast and how small it is here: latency, throughput, takeover,
                                                     idle, step or telemetry; --help says more
       cargo xtask manifests FILE...    what the Helm chart makes of these values, as plain manifests under target/manifests
       cargo xtask release              chart package, plain manifests of every example, dashboards, alert rules, systemd
                                        units and checksums, under target/release-files
       cargo xtask kube-apiserver       a real one, compiled for the part chart to try the chart on
       cargo xtask pictures             panels of the dashboards, drawn from a Berth that runs for five minutes, in docs/pictures";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["demo"] => report(demo::run(demo::Stay::UntilStopped)),
        ["demo", "--once"] => report(demo::run(demo::Stay::Once)),
        ["test", parts @ ..] => match parts.iter().map(|part| part.parse()).collect::<Result<Vec<test::Part>, _>>() {
            Ok(parts) => test::run(&parts),
            Err(unknown) => usage(&unknown),
        },
        ["sim", options @ ..] => report(sim(options)),
        ["nemesis", options @ ..] => report(nemesis(options)),
        ["bench", args @ ..] => report(bench::run(args)),
        ["manifests"] => usage("manifests of which values? Examples are in charts/berth/examples"),
        ["manifests", values @ ..] => report(chart::manifests(values)),
        ["release"] => report(release::run_all()),
        ["kube-apiserver"] => report(kube::build()),
        ["pictures"] => report(pictures()),
        ["--help" | "-h" | "help"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        [] => usage("which task?"),
        other => usage(&format!("cannot make sense of: {}", other.join(" "))),
    }
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("error: {problem}\n\n{USAGE}");
    ExitCode::from(2)
}

fn report(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The simulation, with these options.
fn sim(options: &[&str]) -> anyhow::Result<()> {
    let run = ["run", "--quiet", "--package", "berth-tests", "--bin", "sim", "--"];
    let status = process::stream(cargo::cargo(&[&run, options].concat()), |_| ())?;
    anyhow::ensure!(status.success(), "the simulation found something; see above");
    Ok(())
}

/// The nemesis, with these options.
fn nemesis(options: &[&str]) -> anyhow::Result<()> {
    cargo::build(&["berth-controller", "berth-agent", "nemesis"])?;
    let mut run =
        cargo::cargo(&[&["run", "--quiet", "--package", "berth-tests", "--bin", "nemesis", "--"], options].concat());
    run.envs(test::etcd_for_tests());
    let status = process::stream(run, |_| ())?;
    anyhow::ensure!(status.success(), "the nemesis found something; see above");
    Ok(())
}

/// The repository this program was built from.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The pictures of docs/observability.md, made anew.
fn pictures() -> anyhow::Result<()> {
    cargo::build(&["berth-controller", "berth-agent", "pictures"])?;
    // As it was just built: `cargo run` for one package would build it once more, with other features.
    let mut run = process::command(cargo::built("pictures")?);
    run.env(config::ETCD, etcd::get()?).env(config::PROMETHEUS, prometheus::get()?);
    let status = process::stream(run, |_| ())?;
    anyhow::ensure!(status.success(), "no pictures were made; see above");
    Ok(())
}
