//! The binary `berth-agent`. Everything is in the library.

use std::process::ExitCode;

// Two threads: an agent mostly waits, and must leave the host to its VMs.
#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match berth_node_agent::process::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[expect(clippy::print_stderr, reason = "the last words of the process, whether or not logging has begun")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("berth-agent: {error:#}");
    ExitCode::FAILURE
}
