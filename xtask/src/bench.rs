//! `cargo xtask bench WHAT [OPTION…]`: builds for speed, gets an etcd as the tests do, and measures.
//!
//! What is measured, and how it is told, is the business of `berth-tests`.

use crate::process::{command, stream};
use crate::{cargo, config, etcd};
use anyhow::{Context as _, ensure};

/// What is measured, and what measures; built together, so that one resolution of features serves all.
const BUILD: [&str; 9] =
    ["build", "--release", "--workspace", "--bin", "berth-controller", "--bin", "berth-agent", "--bin", "bench"];

/// Runs one benchmark with its options.
pub(crate) fn run(args: &[&str]) -> anyhow::Result<()> {
    let etcd = etcd::get()?;
    let built = cargo::cargo(&BUILD).status().context("cannot start cargo")?;
    ensure!(built.success(), "what is measured does not build");
    // This program lies in target/debug.
    let me = std::env::current_exe().context("cannot find out where this program is")?;
    let target = me.ancestors().nth(2).context("this program is in no target directory")?;
    let mut bench = command(target.join("release").join(format!("bench{}", std::env::consts::EXE_SUFFIX)));
    bench.args(args);
    bench.env(config::ETCD, etcd);
    let status = stream(bench, |_| ())?;
    ensure!(status.success(), "it could not be measured; see above");
    Ok(())
}
