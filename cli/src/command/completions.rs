//! `berth completions`: a script that teaches a shell the command line.

use crate::args::Cli;
use crate::error::Error;
use crate::output::Out;
use clap::CommandFactory as _;

/// Runs the verb.
///
/// # Errors
/// When it cannot be printed.
pub fn run(shell: clap_complete::Shell, out: &mut Out<'_>) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "berth", &mut script);
    out.line(String::from_utf8_lossy(&script).trim_end())
}
