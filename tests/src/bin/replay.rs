//! Replays an openb pod list against a running controller and checks that everybody agrees at the end.
//!
//! Exit code 1 when anything was wrong; refusals with a reason are not.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

use anyhow::Context as _;
use berth_tests::replay::{Caller, Form, Options, check_journal, run};
use clap::Parser as _;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match replay(Options::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was well.
async fn replay(options: Options) -> anyhow::Result<bool> {
    if let Some(journal) = &options.check_journal {
        let caller = Caller::new(&options.endpoint, options.give_up)?;
        let wrong = check_journal(&caller, journal, options.settle).await?;
        match options.output {
            Form::Text => wrong.iter().for_each(|what| println!("{what}")),
            Form::Json => println!("{}", serde_json::json!({ "disagreements": wrong })),
        }
        return Ok(wrong.is_empty());
    }
    let report = run(&options).await?;
    match options.output {
        Form::Text => print!("{report}"),
        Form::Json => println!("{}", serde_json::to_string_pretty(&report).context("cannot encode the report")?),
    }
    Ok(report.is_clean())
}
