//! The front door: the command line `berth`, and `berth dev`, which joins both shells in one process.
//!
//! Owns everything a person at a terminal sees. Decides nothing about GPUs: it asks the controller, or, for a described
//! fleet, the controller's brain.

pub mod args;
pub mod client;
pub mod command;
#[cfg(feature = "dev")]
pub mod dev;
pub mod error;
pub mod fleet;
pub mod output;
pub mod progress;
pub mod tls;
mod values;
pub mod workloads;

use args::Cli;
use clap::Parser as _;
use error::{Error, Exit};
use output::{Out, Style, system_clock};
use std::io::{IsTerminal as _, Write};
use std::process::ExitCode;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut stdout = std::io::stdout();
    let colour = !cli.global.no_color && stdout.is_terminal();
    let style = Style { colour, clock: system_clock };
    let mut stderr = std::io::stderr();
    let exit = match runtime() {
        Ok(runtime) => {
            let exit = runtime.block_on(run(cli, &mut stdout, &mut stderr, style));
            // Whatever is still running (a name look-up that hangs) must not keep the process.
            runtime.shutdown_background();
            exit
        }
        Err(e) => {
            // Nothing is left to say it to when even stderr is closed.
            let _ = writeln!(stderr, "error: cannot start: {e}");
            Exit::Failed
        }
    };
    ExitCode::from(exit.code())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// Runs one command line: answers go to `stdout`, errors to `stderr`.
pub async fn run(cli: Cli, stdout: &mut (dyn Write + Send), stderr: &mut (dyn Write + Send), style: Style) -> Exit {
    let mut out = Out::new(stdout, style);
    let done = command::run(cli, &mut out).await;
    for aside in out.asides() {
        // Nothing is left to say it to when even stderr is closed.
        let _ = writeln!(stderr, "{aside}");
    }
    match done {
        Ok(()) => Exit::Done,
        // `berth get gpus | head` closes the pipe when it has seen enough; that is no failure.
        Err(Error::Print(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => {
            // Nothing is left to say it to when even stderr is closed.
            let _ = writeln!(stderr, "{}", error.report());
            error.exit()
        }
    }
}
