//! Builds the Windows agent on Linux and makes a Wine ready to run it in, for the part `windows`.
//!
//! Owns `target/windows`. Must never change anything outside it, except on a machine of CI's, where it installs the packages
//! that are missing.

use crate::process::{Running, command, stream, wait_until, works};
use crate::tally::{SKIPPED, Tally};
use crate::{cargo, config, root};
use anyhow::{Context as _, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Debian's compiler for the web: rustup's has no standard library for Windows without a download; this one comes with the
/// source to build one. `std` is built for the target together with the agent.
const COMPILER: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "gcc-mingw-w64-x86-64-win32"];
const WINE: [&str; 2] = ["wine64", "wine"];
const CARGO: &str = "/usr/bin/cargo";
const RUSTC: &str = "/usr/bin/rustc";
const RUSTDOC: &str = "/usr/bin/rustdoc";
const GCC: &str = "x86_64-w64-mingw32-gcc";
/// Where Debian's package puts it: beside the path, because of the wrapper that is in it.
const WINE64: &str = "/usr/lib/wine/wine64";
const TARGET: &str = "x86_64-pc-windows-gnu";
/// Wine makes its drive C in that time even on a busy machine.
const BOOT: Duration = Duration::from_secs(300);

/// Runs the part: everything, or the check that can be made here, or nothing, with the reason.
pub(crate) fn run(choice: &[&str]) -> anyhow::Result<Tally> {
    let dir = root().join("target").join("windows");
    let missing = lacking();
    if !missing.is_empty() && config::is_ci() && works("apt-get", &["--version"]) {
        install(&missing)?;
    }
    let missing = lacking();
    if COMPILER.iter().any(|package| missing.contains(package)) {
        println!("{SKIPPED}windows: {}", how_to(&missing));
        return Ok(Tally::skip());
    }
    if !missing.is_empty() {
        let checked = stream(build("check", &dir), |_| ())?;
        println!("{SKIPPED}windows: compiled, not run: {}", how_to(&missing));
        let mut tally = Tally::one(checked.success());
        tally += Tally::skip();
        return Ok(tally);
    }
    ensure!(stream(build("build", &dir), |_| ())?.success(), "the Windows agent does not build");
    let programs = assemble(&dir)?;
    let variables = [(config::WINDOWS, programs), (config::WINE, PathBuf::from(WINE64))];
    // One at a time: there is one Windows.
    let tally = cargo::test_with(&variables, choice, &["--test-threads", "1"])?;
    let exe = dir.join(TARGET).join("wine").join("berth-agent.exe");
    println!("berth-agent.exe: {} MiB", fs::metadata(exe).map_or(0, |meta| meta.len()) >> 20);
    Ok(tally)
}

/// Packages whose programs are not here.
fn lacking() -> Vec<&'static str> {
    let version = |program: &str| works(program, &["--version"]);
    let here = [version(RUSTC), version(CARGO), has_std_source(), version(GCC)];
    let compiler = COMPILER.into_iter().zip(here);
    let wine = WINE.map(|package| (package, Path::new(WINE64).is_file()));
    compiler.chain(wine).filter(|(_, here)| !here).map(|(package, _)| package).collect()
}

/// Whether the standard library's source lies where cargo looks for it.
fn has_std_source() -> bool {
    let output = command(RUSTC).args(["--print", "sysroot"]).stderr(Stdio::null()).output();
    let sysroot = output.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    sysroot.is_some_and(|root| Path::new(&root).join("lib/rustlib/src/rust/library/std/Cargo.toml").is_file())
}

fn how_to(missing: &[&str]) -> String {
    format!("this machine lacks {0}; on Debian: apt-get install --no-install-recommends {0}", missing.join(" "))
}

/// As root of a machine that is thrown away afterwards.
fn install(missing: &[&str]) -> anyhow::Result<()> {
    let apt = |args: &[&str]| -> anyhow::Result<bool> {
        let mut apt = command("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=120", "--quiet"]).args(args);
        Ok(stream(apt, |_| ())?.success())
    };
    println!("Installing {}.", missing.join(" "));
    // Without a list of packages none can be installed, and an old one names those that are gone.
    apt(&["update"])?;
    let packages = [&["install", "--yes", "--no-install-recommends"], missing].concat();
    if !apt(&packages)? {
        println!("apt-get did not install them; see above");
    }
    Ok(())
}

/// Cargo for Windows. Its own target directory: another compiler.
fn build(what: &str, dir: &Path) -> Command {
    let mut cargo = command(CARGO);
    cargo.args([
        what,
        "-Z",
        "build-std=std,panic_abort",
        "--target",
        TARGET,
        "--profile",
        "wine",
        "-p",
        "berth-node-agent",
    ]);
    cargo.env("RUSTC", RUSTC).env("RUSTDOC", RUSTDOC).env("CARGO_TARGET_DIR", dir);
    // A stable compiler that may build the standard library.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    cargo
}

/// Puts together what runs: the agent, what stands for PowerShell, what Wine lacks, and a Windows.
fn assemble(dir: &Path) -> anyhow::Result<PathBuf> {
    let programs = dir.join("programs");
    fs::create_dir_all(&programs).with_context(|| format!("cannot make {}", programs.display()))?;
    let exe = dir.join(TARGET).join("wine").join("berth-agent.exe");
    fs::copy(&exe, programs.join("berth-agent.exe")).with_context(|| format!("cannot copy {}", exe.display()))?;
    let source = root().join("tests").join("windows");
    compile(&source.join("powershell.c"), &programs.join("powershell.exe"), &["-municode", "-lws2_32"])?;
    compile(&source.join("bcryptprimitives.c"), &programs.join("bcryptprimitives.dll"), &["-shared", "-ladvapi32"])?;
    let prefix = programs.join("wineprefix");
    let made = prefix.join("system.reg");
    if !made.is_file() {
        fs::create_dir_all(&prefix).with_context(|| format!("cannot make {}", prefix.display()))?;
        println!("Making a Windows in {}.", prefix.display());
        let mut wine = command(WINE64);
        wine.env("WINEPREFIX", &prefix).env("WINEDEBUG", "-all").env("WINEDLLOVERRIDES", "mscoree=;mshtml=");
        // Its output is nobody's: programs that stay would hold it open.
        wine.args(["wineboot.exe", "--init"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut wine = Running(wine.spawn().with_context(|| format!("cannot start {WINE64}"))?);
        wait_until("wineboot", BOOT, || Ok(wine.ended()?.is_some()))?;
        // What it has made is written down once the last program has ended.
        wait_until("a drive C", BOOT, || Ok(made.is_file()))?;
    }
    Ok(programs)
}

fn compile(source: &Path, to: &Path, options: &[&str]) -> anyhow::Result<()> {
    let mut gcc = command(GCC);
    // Options last: libraries are looked for in the order they stand in.
    gcc.args(["-O2", "-Wall", "-Wextra", "-o"]).arg(to).arg(source).args(options);
    if !stream(gcc, |_| ())?.success() {
        bail!("{} does not compile", source.display());
    }
    Ok(())
}
