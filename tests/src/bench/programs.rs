//! The binaries that are measured: built from what is in the tree now, in the profile of whoever measures.

use crate::process::{other, root};
use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Everything that a benchmark starts of ours; built together, so that one resolution of features serves all.
const PROGRAMS: [&str; 3] = ["berth-controller", "berth-agent", "bench"];

/// One of [`PROGRAMS`].
///
/// # Errors
/// When they do not build.
pub(super) fn program(name: &str) -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let dir = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    let dir = dir.as_deref().map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(dir.join(format!("{name}{}", std::env::consts::EXE_SUFFIX)))
}

fn build() -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe().context("cannot find out where this program is")?;
    let dir = me.parent().context("this program is in no folder")?;
    // A test lies in target/PROFILE/deps, a binary in target/PROFILE.
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    let mut cargo = other("cargo");
    cargo.current_dir(root()).args(["build", "--quiet", "--workspace"]);
    cargo.args(PROGRAMS.iter().flat_map(|name| ["--bin", name]));
    if Path::new(dir).ends_with("release") {
        cargo.arg("--release");
    }
    let output = cargo.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "what is measured does not build:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(dir.to_path_buf())
}
