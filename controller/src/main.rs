//! The binary `berth-controller`. Everything is in the library.

use std::process::ExitCode;

/// A placement is some hundreds of small allocations on several threads. With this allocator it costs the controller a
/// fifth less processor time than with the system's (`cargo xtask bench throughput`). Without huge pages (feature `no_thp`),
/// which would make 10,000 quiet connections half as large again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match berth_controller::process::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[expect(clippy::print_stderr, reason = "the last words of the process, whether or not logging has begun")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("berth-controller: {error:#}");
    ExitCode::FAILURE
}
