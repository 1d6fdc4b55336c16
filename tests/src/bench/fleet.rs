//! A fleet's agents as one process of their own, so that what they use of the machine is told apart.

use super::controller::Controller;
use super::figures::{self, Usage};
use super::programs::program;
use crate::process::other;
use anyhow::Context as _;
use std::process::{Child, Stdio};
use std::time::Duration;

/// Time for the first node; a debug build on a busy machine.
const START: Duration = Duration::from_secs(60);
/// Time for each further one, the same.
const EACH: Duration = Duration::from_millis(30);

/// The process; ends with its owner.
pub(super) struct Fleet {
    child: Child,
}

impl Fleet {
    /// Starts the agents of so many hosts.
    ///
    /// # Errors
    /// When they do not build or start.
    pub(super) fn start(controllers: &[&Controller], nodes: usize) -> anyhow::Result<Self> {
        let endpoints: Vec<_> = controllers.iter().map(|controller| controller.endpoint.as_str()).collect();
        let mut command = other(program("bench")?);
        command.args(["agents", "--endpoints", &endpoints.join(","), "--nodes", &nodes.to_string()]);
        // They end when this end of the pipe does, whatever becomes of us.
        let child = command.stdin(Stdio::piped()).spawn().context("cannot start the agents")?;
        Ok(Self { child })
    }

    /// Starts them and waits until the controller has heard from all.
    ///
    /// # Errors
    /// When it has not in time.
    pub(super) async fn ready(controller: &Controller, nodes: usize) -> anyhow::Result<Self> {
        let fleet = Self::start(&[controller], nodes)?;
        let wanted = u32::try_from(nodes)?;
        let limit = START + EACH * wanted;
        controller.wait("the nodes are ready", limit, |status| status.nodes_ready >= wanted).await?;
        Ok(fleet)
    }

    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        figures::usage(self.child.id())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
