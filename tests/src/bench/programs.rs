//! The binaries that are measured lie beside the benchmark's own: whoever starts it has built them in the same profile.

use crate::process::{other, root};
use anyhow::{Context as _, ensure};
use std::path::PathBuf;

/// Everything that a benchmark starts of ours.
const PROGRAMS: [&str; 3] = ["berth-controller", "berth-agent", "bench"];

/// One of the binaries.
///
/// # Errors
/// When it is not there.
pub(super) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe().context("cannot find out where this program is")?;
    let program = me.with_file_name(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    ensure!(program.is_file(), "there is no {}; cargo xtask bench builds it", program.display());
    Ok(program)
}

/// Builds what the benchmarks start from what is in the tree now, for tests, which are not optimised.
///
/// # Errors
/// When it does not build.
pub fn build() -> anyhow::Result<()> {
    let mut cargo = other("cargo");
    // Together, so that one resolution of features serves all.
    cargo.current_dir(root()).args(["build", "--quiet", "--workspace"]);
    cargo.args(PROGRAMS.iter().flat_map(|name| ["--bin", name]));
    let output = cargo.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "what is measured does not build:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
