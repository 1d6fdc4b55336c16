//! The verbs, one file each: call, then print.

pub mod adopt;
pub mod audit;
pub mod backup;
pub mod capacity;
pub mod commit;
pub mod completions;
pub mod describe;
#[cfg(feature = "dev")]
pub mod dev;
pub mod get;
pub(crate) mod list;
pub mod place;
pub mod plan;
pub mod release;
pub mod status;
pub mod wait;
pub mod watch;

use crate::args::{Cli, Command};
use crate::client::Client;
use crate::error::Error;
use crate::output::Out;

/// Runs a command line.
///
/// # Errors
/// Whatever the verb ran into; see [`Error::exit`].
pub async fn run(cli: Cli, out: &mut Out<'_>) -> Result<(), Error> {
    let Cli { global, command } = cli;
    let client = || Client::new(&global.endpoint, &global.tls, global.deadline);
    match command {
        #[cfg(feature = "dev")]
        Command::Dev(args) => dev::run(args, out).await,
        Command::Get(args) => get::run(&client()?, args, out).await,
        Command::Describe(args) => describe::run(&client()?, args, out).await,
        Command::Place(args) => place::run(&client()?, *args, out).await,
        Command::Commit(args) => commit::run(&client()?, args, out).await,
        Command::Release(args) => release::run(&client()?, args, out).await,
        Command::Adopt(args) => adopt::run(&client()?, args, out).await,
        Command::Plan(args) => plan::run(client, args, out).await,
        Command::Capacity(args) => capacity::run(&client()?, args, out).await,
        Command::Watch(args) => watch::run(&client()?, args, out).await,
        Command::Audit(args) => audit::run(&client()?, args, out).await,
        Command::Backup(args) => backup::run(&client()?, args, out).await,
        Command::Status(args) => status::run(&client()?, args, out).await,
        Command::Completions { shell } => completions::run(shell, out),
    }
}
