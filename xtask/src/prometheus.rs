//! Gets a Prometheus for the tests of metrics, where this machine has none: Debian's package, kept under `target/tools`.
//!
//! Must never change anything outside that folder.

use crate::process::works;
use crate::{config, etcd, root};
use anyhow::{Context as _, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// A Prometheus: the one that is named or in the PATH, else the one that was got before, else Debian's.
///
/// # Errors
/// Why there is none.
pub(crate) fn get() -> anyhow::Result<PathBuf> {
    let dir = root().join("target").join("tools").join("prometheus");
    let kept = dir.join("prometheus");
    let here = config::named(config::PROMETHEUS).or_else(|| config::in_path("prometheus"));
    if let Some(program) = here.or_else(|| kept.is_file().then(|| kept.clone())) {
        return Ok(program);
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    etcd::unpack("prometheus", Path::new("usr/bin/prometheus"), &dir, &kept)
        .context("no Prometheus in the PATH, and none can be got with apt-get")?;
    ensure!(works(&kept.display().to_string(), &["--version"]), "the Prometheus that was got does not run");
    Ok(kept)
}
