//! `cargo xtask test [PART…]`: runs the parts and sums up.
//!
//! The last line is always `N passed, N failed, N skipped`. What a machine lacks is fetched by the part that needs it, or
//! counted as skipped with the reason.

use crate::process::works;
use crate::tally::{SKIPPED, Tally};
use crate::{cargo, chart, config, etcd, prometheus, root, sshd, windows};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// A part of the tests that can be run alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All libraries, documentation examples, formatting, lints, tidiness. Needs clippy and rustfmt for two of its checks.
    Unit,
    /// The Helm chart, its alerts and dashboards, and the systemd units. Needs helm, kubernetes-validate, promtool, etcd and
    /// systemd for a test or two each.
    Chart,
    /// The contract that every store passes, and kill -9 during writes. Needs nothing.
    Store,
    /// The same contract on etcd, and leadership, logins and trouble there. Needs an etcd server.
    Etcd,
    /// TLS: who is let in and what each side is told, with certificates made on the spot. Needs an etcd server for what
    /// is between several controllers.
    Tls,
    /// The Hyper-V host script in a real PowerShell over fake modules, and its text. Needs a PowerShell for the first.
    PowerShell,
    /// Linux guests asked over a real sshd. Needs an SSH server.
    Guest,
    /// The Windows agent under Wine, with the host script in a real PowerShell and a real controller. Needs Debian's compiler
    /// with the standard library's source, mingw and Wine, and a PowerShell; a machine of CI's installs the former itself.
    Windows,
    /// Seeded random faults against agent and simulated host. Needs nothing.
    Faults,
    /// A whole Berth in virtual time with everything going wrong, from seeds. Needs nothing.
    Sim,
    /// The real binaries. Needs Python 3 with pip for one test and ../shared/data/openb for another.
    EndToEnd,
    /// Traces, metrics and logs as a collector and a Prometheus get them. Needs an etcd server; Prometheus for one test.
    Telemetry,
    /// A whole Berth as processes while everything goes wrong. Needs an etcd server.
    Nemesis,
}

impl Part {
    /// In the order they run: what fails fast comes first.
    const ALL: [Self; 13] = [
        Self::Unit,
        Self::Chart,
        Self::Store,
        Self::Etcd,
        Self::Tls,
        Self::PowerShell,
        Self::Guest,
        Self::Windows,
        Self::Faults,
        Self::Sim,
        Self::EndToEnd,
        Self::Telemetry,
        Self::Nemesis,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Chart => "chart",
            Self::Store => "store",
            Self::Etcd => "etcd",
            Self::Tls => "tls",
            Self::PowerShell => "powershell",
            Self::Guest => "guest",
            Self::Windows => "windows",
            Self::Faults => "faults",
            Self::Sim => "sim",
            Self::EndToEnd => "e2e",
            Self::Telemetry => "telemetry",
            Self::Nemesis => "nemesis",
        }
    }

    fn needs(self) -> &'static str {
        match self {
            Self::Unit => "the Rust toolchain; clippy and rustfmt for two of its checks",
            Self::Chart => {
                "the Rust toolchain; helm, got with Go; kubernetes-validate, got with pip; promtool, got with apt-get; etcd; \
                 systemd-analyze"
            }
            Self::Store => "the Rust toolchain",
            Self::Etcd | Self::Tls => "the Rust toolchain; etcd for its tests, got with Go, pip or apt-get",
            Self::PowerShell => {
                "the Rust toolchain; a PowerShell, named by PWSH, at ../shared/tools/pwsh or in the PATH, for most of it; \
                 OpenSSH's server for one test"
            }
            Self::Guest => "the Rust toolchain; OpenSSH's server and client, installed where CI runs as root",
            Self::Windows => {
                "Debian's rustc-web, cargo-web, rust-web-src, gcc-mingw-w64-x86-64-win32, wine64 and wine, which CI installs \
                 itself; a PowerShell as above"
            }
            Self::Faults | Self::Sim => "the Rust toolchain",
            Self::EndToEnd => "the Rust toolchain; Python 3 with pip for one test, ../shared/data/openb for another",
            Self::Telemetry => {
                "the Rust toolchain; etcd, got with Go, pip or apt-get, and Prometheus for one test, got with apt-get"
            }
            Self::Nemesis => "the Rust toolchain; etcd, got with Go, pip or apt-get",
        }
    }

    /// Whether all of it can run on a machine, so that what is skipped there is a fault. Only CI's own machines are held to
    /// it: green because nothing ran is the one answer that nobody should get from them.
    fn must_run(self, machine: &Machine) -> bool {
        let Machine { ci, powershell, installs } = *machine;
        match self {
            Self::PowerShell | Self::Windows => ci && powershell && installs,
            Self::Guest => ci && installs,
            Self::Unit
            | Self::Chart
            | Self::Telemetry
            | Self::Store
            | Self::Etcd
            | Self::Tls
            | Self::Faults
            | Self::Sim
            | Self::EndToEnd
            | Self::Nemesis => false,
        }
    }

    /// Which part runs this integration test.
    fn of(package: &str, test: &str) -> Self {
        match (package, test) {
            ("berth-store", _) => Self::Store,
            ("berth-tests", "chart") => Self::Chart,
            ("berth-tests", "etcd") => Self::Etcd,
            ("berth-tls", _) | ("berth", "tls") | ("berth-tests", "peers") => Self::Tls,
            ("berth-tests", "powershell") => Self::PowerShell,
            ("berth-tests", "guest") => Self::Guest,
            ("berth-tests", "windows") => Self::Windows,
            ("berth-tests", "faults") => Self::Faults,
            ("berth-tests", "sim") => Self::Sim,
            ("berth-tests", "e2e" | "bench") => Self::EndToEnd,
            ("berth-tests", "telemetry") => Self::Telemetry,
            ("berth-tests", "nemesis") => Self::Nemesis,
            _ => Self::Unit,
        }
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|part| part.name() == text)
            .ok_or_else(|| format!("no part {text:?}; there are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// What decides which parts may skip nothing.
#[derive(Clone, Copy, Debug)]
struct Machine {
    /// It is CI's own, to change as it likes.
    ci: bool,
    /// A PowerShell is named, or lies beside the checkout.
    powershell: bool,
    /// Packages can be installed: this is root, and there is apt-get.
    installs: bool,
}

impl Machine {
    fn here() -> Self {
        let beside = root().parent().map(|dir| dir.join("shared").join("tools").join("pwsh"));
        Self {
            ci: config::is_ci(),
            powershell: config::named(config::PWSH).into_iter().chain(beside).any(|file| file.is_file()),
            installs: sshd::is_root() && works("apt-get", &["--version"]),
        }
    }
}

/// What a part comes to: where it had to run whole, something skipped is a failure.
fn judge(mut tally: Tally, must_run: bool) -> Tally {
    if must_run && tally.skipped > 0 {
        println!("{} skipped, on a machine of CI's that has or can get all that this part needs", tally.skipped);
        tally += Tally::one(false);
    }
    tally
}

/// Runs these parts, or all when none is named.
pub(crate) fn run(parts: &[Part]) -> ExitCode {
    let begun = Instant::now();
    let mut total = Tally::default();
    let integration_tests = cargo::integration_tests().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        total += Tally::one(false);
        Vec::new()
    });
    if total.failed == 0 {
        for part in Part::ALL.into_iter().filter(|part| parts.is_empty() || parts.contains(part)) {
            let tests: Vec<&str> = integration_tests
                .iter()
                .filter(|(package, test)| Part::of(package, test) == part)
                .map(|(_, test)| test.as_str())
                .collect();
            total += phase(part.name(), part.needs(), begun, || {
                Ok(judge(run_part(part, &tests)?, part.must_run(&Machine::here())))
            });
        }
    }
    println!("{total}");
    if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one thing between a headline and a line that says how it went and how long it took.
fn phase(name: &str, needs: &str, begun: Instant, run: impl FnOnce() -> anyhow::Result<Tally>) -> Tally {
    println!("== {name} (needs {needs}) [{}]", clock(begun.elapsed()));
    let started = Instant::now();
    let tally = run().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        Tally::one(false)
    });
    println!("== {name}: {tally}, took {}\n", clock(started.elapsed()));
    tally
}

fn clock(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

fn run_part(part: Part, integration_tests: &[&str]) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    let mut choice: Vec<&str> = integration_tests.iter().flat_map(|test| ["--test", test]).collect();
    match part {
        Part::Unit => {
            tally += tool("fmt", &["fmt", "--all", "--check"])?;
            choice.extend(["--lib", "--bins"]);
            tally += cargo::test(&choice, &[])?;
            tally += cargo::test(&["--doc"], &[])?;
            tally += tool("clippy", &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
        }
        Part::Chart
        | Part::Store
        | Part::Etcd
        | Part::Tls
        | Part::PowerShell
        | Part::Guest
        | Part::Windows
        | Part::Faults
        | Part::Sim
        | Part::EndToEnd
        | Part::Telemetry
        | Part::Nemesis
            if choice.is_empty() =>
        {
            anyhow::bail!("there is no test for this part");
        }
        Part::Chart => {
            let mut programs = [chart::tools(), etcd_for_tests()].concat();
            match prometheus::get() {
                Ok(program) => programs.push((config::PROMETHEUS, program)),
                Err(error) => println!("{error:#}"),
            }
            tally += cargo::test_with(&programs, &choice, &[])?;
        }
        Part::Etcd | Part::Tls => tally += cargo::test_with(&etcd_for_tests(), &choice, &[])?,
        Part::PowerShell | Part::Guest => {
            // Without one, each test that needs it says that it was skipped.
            if let Err(error) = sshd::get() {
                println!("{error:#}");
            }
            tally += cargo::test(&choice, &[])?;
        }
        Part::Store | Part::Faults | Part::Sim => tally += cargo::test(&choice, &[])?,
        Part::Windows => tally += windows::run(&choice)?,
        // One at a time: each starts whole fleets, and their time limits are meant for one of them on the machine.
        Part::EndToEnd => {
            cargo::build(&["berth"])?;
            tally += cargo::test_with(&etcd_for_tests(), &choice, &["--test-threads", "1"])?;
        }
        Part::Telemetry => {
            cargo::build(&["berth", "berth-controller", "berth-agent"])?;
            let mut tools = etcd_for_tests();
            match prometheus::get() {
                Ok(program) => tools.push((config::PROMETHEUS, program)),
                Err(error) => println!("{error:#}"),
            }
            tally += cargo::test_with(&tools, &choice, &["--test-threads", "1"])?;
        }
        Part::Nemesis => {
            cargo::build(&["berth-controller", "berth-agent"])?;
            tally += cargo::test_with(&etcd_for_tests(), &choice, &["--test-threads", "1"])?;
        }
    }
    Ok(tally)
}

/// Tells tests where etcd is. Without one, each test that needs it says that it was skipped.
pub(crate) fn etcd_for_tests() -> Vec<(&'static str, PathBuf)> {
    match etcd::get() {
        Ok(etcd) => vec![(config::ETCD, etcd)],
        Err(error) => {
            println!("{error:#}");
            Vec::new()
        }
    }
}

/// Runs a check that is one cargo command; it counts as one test.
fn tool(component: &str, args: &[&str]) -> anyhow::Result<Tally> {
    println!("$ cargo {}", args.join(" "));
    if !cargo::has(component) {
        println!("{SKIPPED}{component}: not installed; rustup component add {component} gets it");
        return Ok(Tally::skip());
    }
    let status = crate::process::stream(cargo::cargo(args), |_| ())?;
    Ok(Tally::one(status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_of_cis_that_can_run_a_part_may_skip_nothing_of_it() {
        let held = |ci, powershell, installs| {
            let machine = Machine { ci, powershell, installs };
            let names: Vec<_> = Part::ALL.into_iter().filter(|part| part.must_run(&machine)).map(Part::name).collect();
            names.join(" ")
        };
        assert_eq!(held(true, true, true), "powershell guest windows");
        assert_eq!(held(true, false, true), "guest");
        assert_eq!(held(true, true, false), "");
        assert_eq!(held(false, true, true), "");
        let half = || Tally { passed: 7, failed: 0, skipped: 2 };
        assert_eq!(judge(half(), false), half());
        assert_eq!(judge(half(), true), Tally { failed: 1, ..half() });
        assert_eq!(judge(Tally::one(true), true), Tally::one(true));
    }
}
