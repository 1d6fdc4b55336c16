//! Agents by the thousand in one process: each speaks `NodeAgent.Session` over a connection of its own, as a real one does,
//! and has neither ledger nor host behind it.
//!
//! What one says is what a real agent says whose host does at once whatever is wanted: Hello, a full inventory,
//! heartbeats and probes as often as real ones; to a desired state it answers with where the GPUs are now and that it is
//! satisfied. Must never be cheaper for the controller than a real agent.

use super::hosts;
use anyhow::Context as _;
use berth_model::gpu::{GpuState, HostDriver, ObservedGpu};
use berth_model::id::FleetId;
use berth_model::inventory::{Hello, InventoryReport, Listing};
use berth_proto::convert;
use berth_proto::v1::node_agent_client::NodeAgentClient;
use berth_proto::v1::{self, agent_message::Message as Say, controller_message::Message as Hear};
use clap::Parser;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// Connections being made at once: a whole fleet does not come in one millisecond either.
const GREETING: usize = 256;
/// How long connecting and being greeted may take.
const GREETED: Duration = Duration::from_secs(60);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(500);
/// As real agents probe (`node-agent/src/session/dial.rs`).
const PROBE: Duration = Duration::from_secs(5);
/// As long as real agents wait for the answer.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// Messages on their way out of one agent.
const QUEUE: usize = 4;

/// Which agents.
#[derive(Clone, Debug, Parser)]
pub struct Options {
    /// Controllers, with commas between.
    #[arg(long, value_delimiter = ',', required = true)]
    pub endpoints: Vec<String>,
    /// How many.
    #[arg(long)]
    pub nodes: usize,
}

/// Is all these agents until standard input ends.
///
/// # Errors
/// When an endpoint is no URL.
pub async fn run(options: Options) -> anyhow::Result<()> {
    #[cfg(unix)]
    rlimit::increase_nofile_limit(rlimit::INFINITY).context("cannot raise the limit on open files")?;
    let endpoints = options.endpoints.into_iter().map(endpoint).collect::<anyhow::Result<Vec<_>>>()?;
    let shared = Arc::new(Shared { endpoints, turn: AtomicUsize::new(0), greeting: Semaphore::new(GREETING) });
    let mut agents = JoinSet::new();
    for number in 0..options.nodes {
        agents.spawn(Agent::new(number, Arc::clone(&shared)).keep());
    }
    let mut rest = Vec::new();
    tokio::io::stdin().read_to_end(&mut rest).await.context("cannot read standard input")?;
    agents.shutdown().await;
    Ok(())
}

fn endpoint(text: String) -> anyhow::Result<Endpoint> {
    let endpoint = Endpoint::from_shared(text.clone()).with_context(|| format!("{text} is no URL"))?;
    Ok(endpoint
        .connect_timeout(GREETED)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PROBE)
        .keep_alive_timeout(PROBE_LIMIT)
        .keep_alive_while_idle(true)
        .buffer_size(QUEUE))
}

struct Shared {
    endpoints: Vec<Endpoint>,
    turn: AtomicUsize,
    greeting: Semaphore,
}

struct Agent {
    number: usize,
    shared: Arc<Shared>,
    /// What its ledger would hold.
    term: u64,
    generation: u64,
    fleet: Option<FleetId>,
    placements: u32,
    gpus: Vec<ObservedGpu>,
    sequence: u64,
}

type Out = mpsc::Sender<v1::AgentMessage>;

impl Agent {
    fn new(number: usize, shared: Arc<Shared>) -> Self {
        let gpus = hosts::gpus(number);
        Self { number, shared, term: 0, generation: 0, fleet: None, placements: 0, gpus, sequence: 0 }
    }

    async fn keep(mut self) {
        let mut leader = None;
        loop {
            // How a session ended makes no difference to the next.
            leader = self.session(leader).await.unwrap_or_default().and_then(|leader| endpoint(leader).ok());
            if leader.is_none() {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// One session; gives the leader, when this controller named it.
    async fn session(&mut self, leader: Option<Endpoint>) -> anyhow::Result<Option<String>> {
        let shared = Arc::clone(&self.shared);
        let place = shared.greeting.acquire().await?;
        let turn = shared.turn.fetch_add(1, Ordering::Relaxed);
        let endpoint = match &leader {
            Some(leader) => leader,
            None => shared.endpoints.get(turn % shared.endpoints.len()).context("there is no endpoint")?,
        };
        let (out, outgoing) = mpsc::channel(QUEUE);
        let hello = Hello {
            ledger_term: self.term,
            ledger_generation: self.generation,
            ledger_fleet: self.fleet.clone(),
            ledger_placements: Some(self.placements),
            ..hosts::hello(self.number)
        };
        say(&out, Say::Hello((&hello).into())).await?;
        let greeted = tokio::time::timeout(GREETED, async {
            let channel = endpoint.connect().await?;
            let mut inbound = NodeAgentClient::new(channel).session(ReceiverStream::new(outgoing)).await?.into_inner();
            let first = inbound.message().await?;
            anyhow::Ok((inbound, first))
        });
        let (mut inbound, first) = greeted.await??;
        drop(place);
        let heartbeat = match first.and_then(|first| first.message) {
            Some(Hear::Welcome(welcome)) => {
                self.term = self.term.max(welcome.term);
                convert::read_duration(welcome.heartbeat.context("a welcome without a heartbeat")?)?
            }
            Some(Hear::Redirect(v1::Redirect { leader })) if !leader.is_empty() => {
                return Ok(Some(leader));
            }
            Some(Hear::Redirect(_) | Hear::Desired(_) | Hear::Survey(_) | Hear::TellHoldings(_)) | None => {
                return Ok(None);
            }
        };
        self.sequence = 0;
        self.report(&out, true).await?;
        // Spread over the interval, as those of hosts are that were started at any time.
        let first_after = heartbeat.mul_f64(f64::from(u32::try_from(self.number % 1000)?) / 1000.0);
        let mut beat = tokio::time::interval_at(Instant::now() + first_after, heartbeat);
        loop {
            tokio::select! {
                message = inbound.message() => match message?.and_then(|message| message.message) {
                    Some(Hear::Desired(desired)) => self.obey(&out, desired).await?,
                    Some(Hear::Survey(_)) => self.report(&out, true).await?,
                    Some(Hear::Welcome(_) | Hear::Redirect(_) | Hear::TellHoldings(_)) | None => return Ok(None),
                },
                _ = beat.tick() => say(&out, Say::Heartbeat(v1::Heartbeat {})).await?,
            }
        }
    }

    async fn report(&mut self, out: &Out, full: bool) -> anyhow::Result<()> {
        self.sequence += 1;
        let report = InventoryReport {
            sequence: self.sequence,
            full,
            listing: Listing::Complete,
            gpus: self.gpus.clone(),
            vms: Vec::new(),
            vms_gone: Vec::new(),
        };
        say(out, Say::Inventory((&report).into())).await
    }

    /// Everything is as it is wanted, at once.
    async fn obey(&mut self, out: &Out, desired: v1::DesiredNode) -> anyhow::Result<()> {
        let v1::DesiredNode { term, generation, fleet, placements } = desired;
        if (term, generation) < (self.term, self.generation) {
            return Ok(());
        }
        (self.term, self.generation) = (term, generation);
        self.fleet = if fleet.is_empty() { None } else { Some(fleet.parse()?) };
        self.placements = u32::try_from(placements.len())?;
        let mut moved = false;
        for placement in &placements {
            let state = match placement.intent() {
                v1::Intent::Attached => GpuState::Attached { vm: placement.vm_id.parse()? },
                v1::Intent::Detached => GpuState::Host { driver: HostDriver::None },
                v1::Intent::Kept | v1::Intent::Unspecified => continue,
            };
            for wanted in &placement.gpus {
                let gpu = self.gpus.iter_mut().find(|gpu| gpu.address.to_string() == wanted.address);
                if let Some(gpu) = gpu.filter(|gpu| gpu.state != state) {
                    gpu.state = state.clone();
                    moved = true;
                }
            }
        }
        if moved {
            self.report(out, false).await?;
        }
        for v1::DesiredPlacement { uid: placement_uid, .. } in placements {
            let report = Some(v1::progress::Report::Satisfied(v1::progress::Satisfied {}));
            say(
                out,
                Say::Progress(v1::Progress {
                    generation,
                    placement_uid,
                    report,
                    forced: Vec::new(),
                    install: None,
                    removed_role: None,
                }),
            )
            .await?;
        }
        Ok(())
    }
}

async fn say(out: &Out, message: Say) -> anyhow::Result<()> {
    out.send(v1::AgentMessage { message: Some(message) }).await.context("the session is over")
}
