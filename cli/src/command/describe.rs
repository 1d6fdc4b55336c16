//! `berth describe`: everything about one thing, and what happens next.

pub mod gpu;
mod meaning;
pub mod node;
pub mod placement;

use crate::args::{Describe, Described};
use crate::client::Client;
use crate::error::Error;
use crate::output::Out;

/// Runs the verb.
///
/// # Errors
/// What the calls ran into.
pub async fn run(client: &Client, args: Describe, out: &mut Out<'_>) -> Result<(), Error> {
    let Describe { kind, name } = args;
    match kind {
        Described::Node => node::run(client, name, out).await,
        Described::Gpu => gpu::run(client, name, out).await,
        Described::Placement => placement::run(client, &name, out).await,
    }
}
