//! `cargo xtask bench WHAT [OPTION…]`: builds for speed, gets an etcd as the tests do, and measures.
//!
//! What is measured, and how it is told, is the business of `berth-tests`.

use crate::process::stream;
use crate::{cargo, config, etcd};
use anyhow::ensure;

/// Runs one benchmark with its options.
pub(crate) fn run(args: &[&str]) -> anyhow::Result<()> {
    let etcd = etcd::get()?;
    let run = ["run", "--quiet", "--release", "--workspace", "--bin", "bench", "--"];
    let mut bench = cargo::cargo(&[&run, args].concat());
    bench.env(config::ETCD, etcd);
    let status = stream(bench, |_| ())?;
    ensure!(status.success(), "it could not be measured; see above");
    Ok(())
}
