//! `cargo xtask release`: what people get who have neither this repository nor helm.
//!
//! Owns `target/release-files`. The programs are not among it: the Dockerfile builds them static, on any machine.

use crate::etcd::run;
use crate::process::command;
use crate::{chart, root};
use anyhow::Context as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The list of checksums, as `sha256sum --check` reads it.
const SUMS: &str = "SHA256SUMS";

/// Makes everything anew.
///
/// # Errors
/// Without helm or `sha256sum`, and with what they say.
pub(crate) fn run_all() -> anyhow::Result<()> {
    let to = root().join("target").join("release-files");
    if to.exists() {
        fs::remove_dir_all(&to).with_context(|| format!("cannot empty {}", to.display()))?;
    }
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    chart::release(&to)?;
    for folder in ["charts/berth/dashboards", "charts/berth/rules", "packaging/systemd"] {
        copy(&root().join(folder), &to.join(Path::new(folder).file_name().unwrap_or_default()))?;
    }
    let mut files = Vec::new();
    list(&to, &to, &mut files)?;
    files.sort();
    let mut sums = command("sha256sum");
    sums.current_dir(&to).args(&files).stdout(File::create(to.join(SUMS)).context("cannot write checksums")?);
    run(sums)?;
    println!("{} has {} files and {SUMS}", to.display(), files.len());
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name())).context("cannot copy")?;
    }
    Ok(())
}

/// All files below a folder, by their paths from `top`.
fn list(folder: &Path, top: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), top, found)?;
        } else {
            found.push(entry.path().strip_prefix(top)?.to_path_buf());
        }
    }
    Ok(())
}
