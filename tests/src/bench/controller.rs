//! The controller that is measured: a process, asked as anybody asks it.

use super::figures::{self, Usage};
use super::programs::program;
use crate::process::{Process, other};
use anyhow::{Context as _, bail};
use berth_proto::v1::operations_client::OperationsClient;
use berth_proto::v1::{StatusRequest, StatusResponse};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// How long a controller may take to listen: a debug build on a busy machine.
const START: Duration = Duration::from_secs(60);
/// Between two questions how far it is.
const ASK: Duration = Duration::from_millis(5);

/// A controller on etcd.
pub(super) struct Controller {
    process: Option<Process>,
    id: u32,
    /// Where it is reached.
    pub(super) endpoint: String,
    operations: OperationsClient<Channel>,
}

impl Controller {
    /// Starts one with this etcd and its usual settings; it may follow.
    ///
    /// # Errors
    /// When it does not build or start.
    pub(super) async fn start(etcd: &str) -> anyhow::Result<Self> {
        Self::start_with(etcd, &[]).await
    }

    /// The same with some settings.
    ///
    /// # Errors
    /// As for [`Controller::start`].
    pub(super) async fn start_with(etcd: &str, settings: &[String]) -> anyhow::Result<Self> {
        let (etcd, settings) = (etcd.to_owned(), settings.to_vec());
        let started = tokio::task::spawn_blocking(move || {
            let mut command = other(program("berth-controller")?);
            command.args(["--listen", "127.0.0.1:0", "--etcd", &etcd]);
            command.args(settings.iter().flat_map(|setting| ["--set", setting]));
            let mut process = Process::start(command)?;
            // The log's own words: `serving endpoint=127.0.0.1:PORT`.
            let address = process.wait_for_line(START, |line| {
                let rest = line.split_once("serving ")?.1.split_once("endpoint=")?.1;
                rest.split_whitespace().next().map(str::to_owned)
            })?;
            anyhow::Ok((process, address))
        });
        let (process, address) = started.await??;
        let endpoint = format!("http://{address}");
        let channel = Endpoint::from_shared(endpoint.clone())?.tcp_nodelay(true).connect().await;
        let operations = OperationsClient::new(channel.context("the controller cannot be reached")?);
        Ok(Self { id: process.id(), process: Some(process), endpoint, operations })
    }

    /// What it has used so far.
    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        figures::usage(self.id)
    }

    /// Everything it said so far.
    pub(super) fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    pub(super) async fn status(&self) -> anyhow::Result<StatusResponse> {
        Ok(self.operations.clone().status(StatusRequest {}).await.context("no status")?.into_inner())
    }

    /// Waits until its status is as wanted.
    ///
    /// # Errors
    /// When that takes longer than `limit`; with the last status and all that it said.
    pub(super) async fn wait(
        &self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&StatusResponse) -> bool,
    ) -> anyhow::Result<StatusResponse> {
        let begun = Instant::now();
        loop {
            let status = self.status().await;
            match status {
                Ok(status) if done(&status) => return Ok(status),
                last if begun.elapsed() > limit => bail!("{what}: not within {limit:?}; {last:?}\n{}", self.log()),
                Ok(_) | Err(_) => tokio::time::sleep(ASK).await,
            }
        }
    }

    /// Ends it as a crash would.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.process.take().context("it runs no more")?.kill()
    }
}
