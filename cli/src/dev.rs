//! Controller and simulated hosts with their agents in one process: `berth dev`, and tests that want a whole Berth.
//!
//! The only place where both shells meet. Each agent talks to the controller over its own gRPC session on loopback, as
//! it would across a network; nothing is passed behind the API's back.

mod provision;

use crate::args::Tls;
use crate::client::Client;
use crate::error::Error;
use crate::fleet::Fleet;
use crate::progress::Progress;
use berth_controller as controller;
use berth_controller::app::StartError;
use berth_model::NodeName;
use berth_node_agent as agent;
use berth_node_agent::driver::sim::{Delays, KeptHost};
use berth_proto::v1;
use futures::StreamExt as _;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Hosts and agents started at once: each opens files, and a disk does not get faster by more.
const STARTING: usize = 32;
/// Between two questions whether all agents are connected: a quarter of what people notice.
const ASK: Duration = Duration::from_millis(50);
/// Above this many nodes, agents look at their hosts as seldom as in production; below, often enough for a person who
/// changes something and waits to see it.
const SMALL: usize = 200;
const LOOK_OFTEN: Duration = Duration::from_secs(1);

/// What to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which hosts.
    pub fleet: Fleet,
    /// Where the controller listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where store, ledgers and hosts are kept.
    pub data_dir: PathBuf,
    /// How long each step takes; none means what the fleet says.
    pub step_delay: Option<Duration>,
    /// Whether VMs of holds are created.
    pub provision: bool,
    /// Members of an etcd cluster to keep the truth in; none means a file in the data directory.
    pub etcd: Vec<String>,
}

/// A whole Berth at work.
pub struct Running {
    /// Where the controller listens.
    pub local_addr: SocketAddr,
    hosts: Hosts,
    left_out: usize,
    tasks: JoinSet<anyhow::Error>,
    /// Ends provisioning, then agents.
    stop: CancellationToken,
    /// Ends the controller, when the agents are gone.
    stop_controller: CancellationToken,
}

/// The simulated hosts by name.
type Hosts = Arc<BTreeMap<NodeName, Arc<KeptHost>>>;

/// Starts a whole Berth. Returns when the controller serves and every agent runs; they connect by themselves.
///
/// # Errors
/// What keeps any of them from starting; nothing runs then.
pub async fn start(options: Options) -> Result<Running, Error> {
    let Options { fleet, listen, data_dir, step_delay, provision, etcd } = options;
    let failed = |what: &dyn std::fmt::Display, error: anyhow::Error| Error::Dev(format!("{what}: {error:#}"));
    // Each agent takes two sockets and a file or two; the usual limit of 1,024 would end at 300 nodes.
    #[cfg(unix)]
    if let Err(e) = rlimit::increase_nofile_limit(rlimit::INFINITY) {
        tracing::warn!(error = %e, "the limit on open files stays as it is");
    }
    let left_out = left_out(&data_dir, &fleet);
    let mut hosts = BTreeMap::new();
    for (spec, node) in fleet.hosts().into_iter().zip(&fleet.nodes) {
        let step = step_delay.or(node.timing.step).unwrap_or_default();
        let delays = Delays { step, ..Delays::default() };
        let dir = node_dir(&data_dir, &node.name);
        let host = KeptHost::open(spec, delays, &dir).map_err(|e| failed(&node.name, e.into()))?;
        hosts.insert(node.name.clone(), Arc::new(host));
    }
    let hosts: Hosts = Arc::new(hosts);

    let mut config = controller::config::Config { listen, data_dir: data_dir.join("store"), ..Default::default() };
    if !etcd.is_empty() {
        config.store = controller::config::StoreKind::Etcd;
        config.etcd.endpoints = etcd;
    }
    if hosts.len() <= SMALL {
        config.observe = LOOK_OFTEN;
    }
    let started = controller::app::start(config).await;
    let mut running = started.map_err(|e| {
        let taken = matches!(&e, StartError::Listen { source, .. } if source.kind() == ErrorKind::AddrInUse);
        let way_out = if taken { "; --listen 127.0.0.1:0 takes a free one" } else { "" };
        Error::Dev(format!("the controller does not start: {:#}{way_out}", anyhow::Error::from(e)))
    })?;
    let local_addr = running.local_addr;
    let (stop, stop_controller) = (CancellationToken::new(), CancellationToken::new());
    let mut tasks = JoinSet::new();
    let token = stop_controller.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = token.cancelled() => {
                running.stop().await;
                anyhow::anyhow!("the controller was stopped")
            }
            error = running.failed() => error.context("the controller failed"),
        }
    });
    let this = Running { local_addr, hosts: Arc::clone(&hosts), left_out, tasks, stop, stop_controller };
    match this.start_agents(&data_dir, provision).await {
        (this, Ok(())) => Ok(this),
        (this, Err(error)) => {
            this.stop().await;
            Err(error)
        }
    }
}

/// Where everything about one node is kept.
fn node_dir(data_dir: &Path, node: &NodeName) -> PathBuf {
    data_dir.join("nodes").join(node.as_str())
}

/// Nodes that were there before and are not described now. A directory that is not there yet has none.
fn left_out(data_dir: &Path, fleet: &Fleet) -> usize {
    let Ok(known) = std::fs::read_dir(data_dir.join("nodes")) else { return 0 };
    let names = known.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| fleet.nodes.iter().all(|node| node.name.as_str() != name)).count()
}

impl Running {
    async fn start_agents(mut self, data_dir: &Path, provision: bool) -> (Self, Result<(), Error>) {
        let endpoint = self.endpoint();
        let uri = match agent::config::endpoint(&endpoint) {
            Ok(uri) => uri,
            Err(e) => return (self, Err(Error::Dev(e.to_string()))),
        };
        let hosts = Arc::clone(&self.hosts);
        let starts =
            hosts.iter().map(|(name, host)| {
                let config = agent::config::Config::new(name.clone(), vec![uri.clone()], node_dir(data_dir, name));
                let driver: Arc<dyn agent::driver::HostDriver> = Arc::clone(host) as _;
                async move {
                    agent::start(config, driver).await.map_err(|e| Error::Dev(format!("the agent of {name}: {e:#}")))
                }
            });
        let mut starting = futures::stream::iter(starts).buffer_unordered(STARTING);
        while let Some(started) = starting.next().await {
            let mut running = match started {
                Ok(running) => running,
                Err(error) => {
                    drop(starting);
                    return (self, Err(error));
                }
            };
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {
                        running.stop().await;
                        anyhow::anyhow!("the agent was stopped")
                    }
                    error = running.failed() => error,
                }
            });
        }
        drop(starting);
        if provision {
            let client = match Client::new(&endpoint, &Tls::default(), provision::DEADLINE) {
                Ok(client) => client,
                Err(error) => return (self, Err(error)),
            };
            let (stop, hosts) = (self.stop.clone(), Arc::clone(&self.hosts));
            self.tasks.spawn(async move {
                provision::run(client, hosts, stop).await;
                anyhow::anyhow!("provisioning ended")
            });
        }
        (self, Ok(()))
    }

    /// Where callers reach the controller.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.local_addr)
    }

    /// How many nodes the data directory knows that are not in the fleet: nobody speaks for them.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// How many hosts there are.
    pub fn nodes(&self) -> usize {
        self.hosts.len()
    }

    /// One of the simulated hosts, to do by hand what people do.
    pub fn host(&self, node: &NodeName) -> Option<&Arc<KeptHost>> {
        self.hosts.get(node)
    }

    /// Waits until the view of every node is complete.
    ///
    /// # Errors
    /// When that takes longer than `timeout`, or the controller does not answer.
    pub async fn ready(&self, timeout: Duration, progress: &mut Progress) -> Result<(), Error> {
        let client = Client::new(&self.endpoint(), &Tls::default(), timeout)?;
        let end = tokio::time::Instant::now() + timeout;
        let wanted = self.nodes();
        loop {
            let status = client
                .read(v1::StatusRequest {}, |r| {
                    let mut api = client.operations();
                    async move { api.status(r).await }
                })
                .await?;
            // A data directory may know nodes that are not in this fleet; they never come.
            let ready = usize::try_from(status.nodes_ready).unwrap_or(usize::MAX);
            progress.count(format!("{ready} of {wanted} nodes ready"));
            if ready >= wanted {
                return Ok(());
            }
            if tokio::time::Instant::now() >= end {
                let seconds = timeout.as_secs();
                return Err(Error::Dev(format!("after {seconds} s only {ready} of {wanted} nodes are ready")));
            }
            tokio::time::sleep(ASK).await;
        }
    }

    /// Waits until something goes wrong that must not: give it up then.
    pub async fn failed(&mut self) -> Error {
        match self.tasks.join_next().await {
            Some(Ok(error)) => Error::Dev(format!("{error:#}")),
            Some(Err(error)) => Error::Dev(format!("a part crashed: {error}")),
            None => Error::Dev("nothing runs any more".to_owned()),
        }
    }

    /// Stops: first the agents, then the controller that hears of it. A step under way on a host is left where it is.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // All but the controller.
        while self.tasks.len() > 1 {
            self.ended().await;
        }
        self.stop_controller.cancel();
        while !self.tasks.is_empty() {
            self.ended().await;
        }
    }

    async fn ended(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(how)) => tracing::debug!("{how:#}"),
            Some(Err(error)) => tracing::error!(%error, "a part crashed while stopping"),
            None => {}
        }
    }
}
