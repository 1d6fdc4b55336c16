//! A whole Berth as processes of this machine: etcd members, controllers, agents with simulated hosts, and a proxy on every
//! way between them.
//!
//! Owns every process that is started, and stands for the supervisor that starts again what ended. Must never look inside
//! one: what it knows of a controller is what others see of it.

use super::client::channel;
use super::connections::Known;
use super::load::{Hosts, existing_vm};
use super::proxy::Proxy;
use super::supervised::Supervised;
use crate::etcd::{self, Etcd};
use crate::process::{Paused, Process, binary, free_port, other, wait_until};
use anyhow::{Context as _, bail, ensure};
use berth_node_agent::config::sim_host;
use berth_node_agent::driver::sim::KeptHost;
use berth_proto::v1::operations_client::OperationsClient;
use berth_proto::v1::{StatusRequest, StatusResponse};
use berth_store::{Revision, Store as _, key, record};
use berth_store_etcd::Options as StoreOptions;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Handle;

/// Members of etcd: the fewest that outlive the loss of one.
pub const MEMBERS: usize = 3;
/// Controllers.
pub const CONTROLLERS: usize = 3;
/// GPUs of each host.
const GPUS: usize = 4;
/// The lease that is meant for production.
pub const LEASE: Duration = Duration::from_secs(3);
/// How long one step on a host takes: long enough to be hit in the midst of it.
const STEP_MS: u32 = 30;
/// How long a start may take: debug builds on a machine that does other work, too.
const START: Duration = Duration::from_secs(120);
/// How long one question may take.
const ASK: Duration = Duration::from_secs(2);
/// What controllers log: each transaction, too, so that every revision can be told by whom it was written.
const LOG: &str = "info,berth_store_etcd::transaction=debug";

/// Of the clients of a controller's front: agents.
pub const AGENTS: usize = 0;
/// Of the clients of a controller's front: other controllers.
pub const PEERS: usize = 1;

/// One controller.
#[derive(Debug)]
pub struct Controller {
    listen: SocketAddr,
    /// Where agents and other controllers reach it.
    pub front: Proxy,
    /// Where callers reach it.
    pub callers: Proxy,
    /// How it reaches each member of etcd.
    pub store: Vec<Proxy>,
    process: Supervised,
}

/// One agent and its host.
#[derive(Debug)]
pub struct Agent {
    /// Its node.
    pub node: String,
    description: PathBuf,
    data_dir: PathBuf,
    process: Supervised,
}

/// How processes reach controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ways {
    /// Through proxies that can be made to fail.
    Proxies,
    /// As they listen.
    Direct,
}

/// A process that ended without being asked to by a test.
#[derive(Debug)]
pub struct Ended {
    /// Which.
    pub who: String,
    /// How.
    pub status: ExitStatus,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leading {
    /// The number of the controller.
    pub controller: usize,
    /// Its term.
    pub term: u64,
    /// The revision that created the leader key.
    pub created: Revision,
}

/// All of it.
#[derive(Debug)]
pub struct Cluster {
    /// The members of etcd.
    pub etcd: Etcd,
    /// The controllers.
    pub controllers: Vec<Controller>,
    /// The agents.
    pub agents: Vec<Agent>,
    /// The hosts of the agents.
    pub hosts: Hosts,
    /// A way to etcd that nobody stands in.
    pub store: berth_store_etcd::Etcd,
    runtime: Handle,
    ways: Ways,
    known: Known,
    members_down: Vec<bool>,
    members_paused: Vec<Option<Paused>>,
    programs: Programs,
    dir: TempDir,
}

#[derive(Debug)]
struct Programs {
    controller: PathBuf,
    agent: PathBuf,
}

fn loopback() -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)))
}

impl Cluster {
    /// Starts everything and waits until every agent is connected. `None` when there is no etcd here; that was said then.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start(test: &str, agents: usize, ways: Ways, runtime: &Handle) -> anyhow::Result<Option<Self>> {
        let programs = Programs { controller: binary("berth-controller")?, agent: binary("berth-agent")? };
        let Some(etcd) = Etcd::start(test, MEMBERS, &etcd::Options::default())? else { return Ok(None) };
        let dir = tempfile::Builder::new().prefix("berth-nemesis-").tempdir().context("no temporary directory")?;
        let options = StoreOptions { endpoints: etcd.endpoints(), ..StoreOptions::default() };
        let store = runtime.block_on(berth_store_etcd::Etcd::connect(options)).context("etcd does not answer")?;
        let members: Vec<SocketAddr> = etcd
            .endpoints()
            .iter()
            .map(|endpoint| endpoint.trim_start_matches("http://").parse().context("an endpoint without an address"))
            .collect::<anyhow::Result<_>>()?;
        let known = Known::default();
        let mut controllers = Vec::new();
        for number in 0..CONTROLLERS {
            let listen = loopback()?;
            let store = members.iter().map(|member| Proxy::start(runtime, *member)).collect::<anyhow::Result<_>>()?;
            let callers = Proxy::start(runtime, listen)?;
            let others = known.clone();
            let sort = move |port| if others.own(port) { PEERS } else { AGENTS };
            let front = Proxy::with_lanes(runtime, listen, 2, Arc::new(sort))?;
            let process = Supervised::new(format!("controller {number}"));
            controllers.push(Controller { listen, front, callers, store, process });
        }
        let mut hosts = BTreeMap::new();
        let mut described = Vec::new();
        for number in 0..agents {
            let (agent, host) = describe(dir.path(), number)?;
            hosts.insert(agent.node.clone(), host);
            described.push(agent);
        }
        let (members_down, members_paused) = (vec![false; MEMBERS], (0..MEMBERS).map(|_| None).collect());
        let mut cluster = Self {
            etcd,
            controllers,
            agents: described,
            hosts: Arc::new(hosts),
            store,
            runtime: runtime.clone(),
            ways,
            known,
            members_down,
            members_paused,
            programs,
            dir,
        };
        for number in 0..CONTROLLERS {
            cluster.start_controller(number)?;
        }
        for number in 0..agents {
            cluster.start_agent(number)?;
        }
        cluster.wait_ready(START)?;
        Ok(Some(cluster))
    }

    /// The directory with the log of every process.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    /// Keeps the directory beyond this process, for people to look at.
    pub fn keep(&mut self) -> &Path {
        self.dir.disable_cleanup(true);
        self.dir.path()
    }

    fn log(&self, who: &str) -> anyhow::Result<PathBuf> {
        let logs = self.logs();
        std::fs::create_dir_all(&logs).context("cannot make a directory for logs")?;
        Ok(logs.join(format!("{who}.log")))
    }

    /// Starts a controller that does not run.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_controller(&mut self, number: usize) -> anyhow::Result<()> {
        let log = self.log(&format!("controller-{number}"))?;
        let program = self.programs.controller.clone();
        let advertised = self.advertised(number);
        let controller = self.controllers.get(number).with_context(|| format!("there is no controller {number}"))?;
        let store: Vec<_> = controller.store.iter().map(Proxy::endpoint).collect();
        let mut command = other(program);
        command.args(["--listen", &controller.listen.to_string(), "--etcd", &store.join(",")]);
        command.args(["--log-format", "json", "--log-filter", LOG]);
        for setting in [
            format!("advertise={advertised}"),
            format!("etcd.lease_ttl={}s", LEASE.as_secs()),
            "agents.heartbeat=1s".to_owned(),
            "agents.observe=1s".to_owned(),
            "check_interval=2s".to_owned(),
        ] {
            command.args(["--set", &setting]);
        }
        let process = Process::start_logged(command, &log)?;
        let id = process.id();
        self.controller(number)?.started(process);
        self.known.add(id);
        Ok(())
    }

    /// Starts an agent that does not run.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self, number: usize) -> anyhow::Result<()> {
        let fronts: Vec<_> = (0..CONTROLLERS).map(|number| self.advertised(number)).collect();
        let program = self.programs.agent.clone();
        let agent = self.agents.get(number).with_context(|| format!("there is no agent {number}"))?;
        let log = self.log(&format!("agent-{number:02}"))?;
        let agent_name = agent.node.clone();
        let mut command = other(program);
        command.args(["--node", &agent_name, "--driver", "sim", "--log-format", "json"]);
        command.arg("--sim-host").arg(&agent.description).arg("--data-dir").arg(&agent.data_dir);
        for front in fronts {
            command.args(["--controller", &front]);
        }
        let process = Process::start_logged(command, &log)?;
        self.agent(number)?.started(process);
        Ok(())
    }

    /// The process of a controller.
    ///
    /// # Errors
    /// When there is no such controller.
    pub fn controller(&mut self, number: usize) -> anyhow::Result<&mut Supervised> {
        let controller =
            self.controllers.get_mut(number).with_context(|| format!("there is no controller {number}"))?;
        Ok(&mut controller.process)
    }

    /// The process of an agent.
    ///
    /// # Errors
    /// When there is no such agent.
    pub fn agent(&mut self, number: usize) -> anyhow::Result<&mut Supervised> {
        let agent = self.agents.get_mut(number).with_context(|| format!("there is no agent {number}"))?;
        Ok(&mut agent.process)
    }

    /// Ends a member of etcd as a crash would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_member(&mut self, number: usize) -> anyhow::Result<()> {
        self.etcd.kill(number)?;
        self.members_down[number] = true;
        Ok(())
    }

    /// Stops a member of etcd in its tracks, until [`Cluster::mend_member`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause_member(&mut self, number: usize) -> anyhow::Result<()> {
        self.members_paused[number] = Some(self.etcd.pause(number)?);
        Ok(())
    }

    /// A member of etcd runs again.
    ///
    /// # Errors
    /// When it does not start.
    pub fn mend_member(&mut self, number: usize) -> anyhow::Result<()> {
        self.members_paused[number] = None;
        if std::mem::take(&mut self.members_down[number]) {
            self.etcd.restart(number)?;
        }
        Ok(())
    }

    /// Starts again every process that ended by itself, as a supervisor does, and says which did.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn tend(&mut self) -> anyhow::Result<Vec<Ended>> {
        let mut ended = Vec::new();
        for number in 0..self.controllers.len() {
            let process = self.controller(number)?;
            if let Some(status) = process.ended_by_itself()? {
                ended.push(Ended { who: process.who().to_owned(), status });
                self.start_controller(number)?;
            }
        }
        for number in 0..self.agents.len() {
            let process = self.agent(number)?;
            if let Some(status) = process.ended_by_itself()? {
                ended.push(Ended { who: process.who().to_owned(), status });
                self.start_agent(number)?;
            }
        }
        Ok(ended)
    }

    /// Who leads according to etcd; `None` while nobody does.
    ///
    /// # Errors
    /// When etcd does not answer, or names nobody of these.
    pub fn leading(&self) -> anyhow::Result<Option<Leading>> {
        let item = self.runtime.block_on(self.store.get(key::LEADER)).context("etcd does not say who leads")?;
        let Some(item) = item else { return Ok(None) };
        let record::Leader { term, candidate } = record::read_leader(&item.value)?;
        let controller = self.number_of(&candidate).with_context(|| format!("nobody is {candidate}"))?;
        Ok(Some(Leading { controller, term, created: item.created }))
    }

    /// Which controller a candidate is.
    #[must_use]
    pub fn number_of(&self, candidate: &str) -> Option<usize> {
        let endpoint = candidate.split(' ').next()?;
        (0..CONTROLLERS).find(|number| self.advertised(*number) == endpoint)
    }

    /// Waits until somebody leads with a term above this one.
    ///
    /// # Errors
    /// When nobody does in time.
    pub fn wait_leader(&mut self, above: u64, limit: Duration) -> anyhow::Result<Leading> {
        let mut last = None;
        let led = wait_until(limit, || {
            self.tend()?;
            // etcd may be electing a leader of its own.
            last = self.leading().ok().flatten();
            Ok(last.as_ref().is_some_and(|leading| leading.term > above))
        })?;
        match last {
            Some(leading) if led => Ok(leading),
            last => bail!("nobody leads above term {above} after {} s; last seen: {last:?}", limit.as_secs()),
        }
    }

    /// Where agents and other controllers reach a controller.
    fn advertised(&self, number: usize) -> String {
        match (self.ways, self.controllers.get(number)) {
            (Ways::Proxies, Some(controller)) => controller.front.endpoint(),
            (Ways::Direct, _) | (_, None) => self.direct(number),
        }
    }

    /// Where callers reach a controller.
    #[must_use]
    pub fn callers(&self, number: usize) -> String {
        match (self.ways, self.controllers.get(number)) {
            (Ways::Proxies, Some(controller)) => controller.callers.endpoint(),
            (Ways::Direct, _) | (_, None) => self.direct(number),
        }
    }

    /// Where a controller is reached past all proxies.
    #[must_use]
    pub fn direct(&self, number: usize) -> String {
        self.controllers.get(number).map(|it| format!("http://{}", it.listen)).unwrap_or_default()
    }

    /// How a controller says it is.
    ///
    /// # Errors
    /// When it does not say.
    pub fn status(&self, number: usize) -> anyhow::Result<StatusResponse> {
        let endpoint = self.direct(number);
        self.runtime.block_on(async {
            let mut api = OperationsClient::new(channel(&endpoint)?);
            let answer =
                tokio::time::timeout(ASK, api.status(StatusRequest {})).await.context("no answer in time")??;
            Ok(answer.into_inner())
        })
    }

    /// Waits until every controller shows every node as ready; gives how long that took.
    ///
    /// # Errors
    /// When it takes longer than `limit`; with how each of them is.
    pub fn wait_ready(&mut self, limit: Duration) -> anyhow::Result<Duration> {
        let begun = std::time::Instant::now();
        let nodes = u32::try_from(self.agents.len())?;
        let mut last = String::new();
        let ready = wait_until(limit, || {
            self.tend()?;
            last.clear();
            let mut all = true;
            for number in 0..CONTROLLERS {
                match self.status(number) {
                    Ok(status) => {
                        all &= status.nodes_ready == nodes && (status.leader || status.leader_revision > 0);
                        let StatusResponse { leader, term, revision, nodes_ready, .. } = status;
                        let who = if leader { "leads" } else { "follows" };
                        writeln!(last, "controller {number} {who} in term {term} at {revision}, {nodes_ready} ready")?;
                    }
                    Err(error) => {
                        all = false;
                        writeln!(last, "controller {number}: {error:#}")?;
                    }
                }
            }
            Ok(all)
        })?;
        ensure!(ready, "not every controller shows {nodes} ready nodes after {} s:\n{last}", limit.as_secs());
        Ok(begun.elapsed())
    }
}

/// Writes the description of a host, and opens the host.
fn describe(dir: &Path, number: usize) -> anyhow::Result<(Agent, KeptHost)> {
    let node = format!("host-{number:02}");
    let data_dir = dir.join("nodes").join(&node);
    let description = dir.join("nodes").join(format!("{node}.toml"));
    let mut text = format!("step_ms = {STEP_MS}\n");
    for gpu in 0..GPUS {
        writeln!(text, "[[gpu]]\nmodel = \"A16\"\naddress = \"PCIROOT(20)#PCI(0{gpu}00)#PCI(0000)\"")?;
    }
    let id = format!("00000000-0000-4000-a000-{number:012}");
    writeln!(text, "[[vm]]\nid = \"{id}\"\nname = \"{}\"", existing_vm(number))?;
    std::fs::create_dir_all(&data_dir).with_context(|| format!("cannot make {}", data_dir.display()))?;
    std::fs::write(&description, text).with_context(|| format!("cannot write {}", description.display()))?;
    let sim_host::Described { spec, delays, faults: _ } = sim_host::read(&description, &node.parse()?)?;
    let host = KeptHost::open(spec, delays, &data_dir)?;
    let process = Supervised::new(format!("agent {number}"));
    Ok((Agent { node, description, data_dir, process }, host))
}
