//! The binary `berth-controller`. Everything is in the library.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match berth_controller::process::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[expect(clippy::print_stderr, reason = "the last words of the process, whether or not logging has begun")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("berth-controller: {error:#}");
    ExitCode::FAILURE
}
