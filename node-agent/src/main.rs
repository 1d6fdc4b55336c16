//! The binary `berth-agent`. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match berth_node_agent::process::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[expect(clippy::print_stderr, reason = "the last words of the process, whether or not logging has begun")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("berth-agent: {error:#}");
    ExitCode::FAILURE
}
