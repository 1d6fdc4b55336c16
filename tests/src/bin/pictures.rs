//! `cargo xtask pictures`: panels of the shipped dashboards, drawn from a running Berth into `docs/pictures`.

use anyhow::Context as _;
use std::io::Write as _;

fn main() -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    let mut failed = None;
    berth_tests::pictures::run(|line| failed = writeln!(out, "{line}").err().or(failed.take()))?;
    failed.map_or(Ok(()), |error| Err(error).context("cannot say what happens"))
}
