//! A Berth to take pictures of: three controllers, agents with simulated hosts of three clusters, and callers who place and
//! release.
//!
//! Owns every process and thread that it starts.

use crate::etcd::Etcd;
use crate::http;
use crate::process::{Process, binary, free_port, other, wait_until};
use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Clusters: their names, hosts of each, GPUs of each host, their model.
const CLUSTERS: [(&str, usize, usize, &str); 3] =
    [("vdi", 10, 8, "A16"), ("render", 6, 4, "L40S"), ("train", 4, 8, "H100")];
/// The cluster whose agents are stopped.
const STOPPED: &str = "render";
const CONTROLLERS: usize = 3;
/// How long one step takes on a host: seconds, as on real ones.
const STEP_MS: u32 = 700;
/// How long a start may take: debug builds on a machine that does other work, too.
const START: Duration = Duration::from_secs(120);
/// Callers; they begin one after the other, so that the fleet fills.
const CALLERS: u32 = 44;
const BETWEEN_CALLERS: Duration = Duration::from_millis(1_700);
/// Between two looks of a caller who waits.
const LOOK: Duration = Duration::from_millis(500);
/// Equal callers every time; what they find differs by who is first.
const SEED: u64 = 7;

/// All of it.
#[derive(Debug)]
pub(super) struct Fleet {
    dir: PathBuf,
    etcd: Vec<String>,
    listen: Vec<String>,
    controllers: Vec<Option<Process>>,
    agents: Vec<Agent>,
}

#[derive(Debug)]
struct Agent {
    node: String,
    cluster: &'static str,
    gpus: usize,
    process: Option<Process>,
}

impl Fleet {
    /// Starts it and waits until every node is ready.
    pub(super) fn start(dir: &Path, etcd: &Etcd) -> anyhow::Result<Self> {
        let listen = (0..CONTROLLERS).map(|_| Ok(format!("127.0.0.1:{}", free_port()?)));
        let mut fleet = Self {
            dir: dir.to_owned(),
            etcd: etcd.endpoints(),
            listen: listen.collect::<anyhow::Result<_>>()?,
            controllers: (0..CONTROLLERS).map(|_| None).collect(),
            agents: Vec::new(),
        };
        for number in 0..CONTROLLERS {
            fleet.start_controller(number)?;
        }
        for (cluster, hosts, gpus, model) in CLUSTERS {
            for host in 1..=hosts {
                let node = format!("{cluster}-{host:02}");
                std::fs::write(fleet.host(&node), described(cluster, &node, gpus, model)?)?;
                fleet.agents.push(Agent { node, cluster, gpus, process: None });
            }
        }
        fleet.start_agents()?;
        let all = fleet.agents.len();
        let mut last = Value::Null;
        let ready = wait_until(START, || {
            let status = http::post(&format!("http://{}", fleet.listen[0]), "/berth.v1.Operations/Status", "{}");
            last = status.and_then(|answer| answer.json()).unwrap_or_default();
            Ok(last["nodesReady"].as_u64().is_some_and(|ready| usize::try_from(ready) == Ok(all)))
        })?;
        ensure!(ready, "{all} nodes are not ready; the first controller says {last}");
        Ok(fleet)
    }

    /// `HOST:PORT` of every controller.
    pub(super) fn controllers(&self) -> Vec<String> {
        self.listen.clone()
    }

    fn host(&self, node: &str) -> PathBuf {
        self.dir.join(format!("{node}.toml"))
    }

    /// Starts a controller that does not run.
    pub(super) fn start_controller(&mut self, number: usize) -> anyhow::Result<()> {
        let mut command = other(binary("berth-controller")?);
        command.args(["--listen", &self.listen[number], "--etcd", &self.etcd.join(",")]);
        for setting in ["agents.heartbeat=1s", "agents.observe=2s", "limits.hold=5m"] {
            command.args(["--set", setting]);
        }
        self.controllers[number] = Some(Process::start(command)?);
        Ok(())
    }

    /// Starts every agent that does not run.
    pub(super) fn start_agents(&mut self) -> anyhow::Result<()> {
        let program = binary("berth-agent")?;
        for number in 0..self.agents.len() {
            let Agent { node, process: None, .. } = &self.agents[number] else { continue };
            let mut command = other(&program);
            command.args(["--node", node, "--driver", "sim"]).arg("--sim-host").arg(self.host(node));
            command.arg("--data-dir").arg(self.dir.join("agents").join(node));
            for listen in &self.listen {
                command.args(["--controller", &format!("http://{listen}")]);
            }
            self.agents[number].process = Some(Process::start(command)?);
        }
        Ok(())
    }

    /// Kills the agents of one cluster; how many they are.
    pub(super) fn stop_agents(&mut self) -> anyhow::Result<usize> {
        let mut stopped = 0;
        for agent in self.agents.iter_mut().filter(|agent| agent.cluster == STOPPED) {
            agent.process.take().with_context(|| format!("the agent of {} does not run", agent.node))?.kill()?;
            stopped += 1;
        }
        Ok(stopped)
    }

    /// Kills the controller that leads; which it was.
    pub(super) fn kill_leader(&mut self) -> anyhow::Result<usize> {
        let leads = |listen: &String| {
            let status = http::post(&format!("http://{listen}"), "/berth.v1.Operations/Status", "{}");
            status.and_then(|answer| answer.json()).is_ok_and(|status| status["leader"] == true)
        };
        let leader = self.listen.iter().position(leads).context("nobody leads")?;
        self.controllers[leader].take().context("the leader does not run")?.kill()?;
        Ok(leader)
    }

    /// Callers at work.
    pub(super) fn load(&self) -> Load {
        let endpoints: Arc<[String]> = self.listen.iter().map(|listen| format!("http://{listen}")).collect();
        let (stop, placed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let vms: Vec<(String, usize)> = self
            .agents
            .iter()
            .flat_map(|agent| (0..vms_of(agent.gpus)).map(|vm| (vm_name(&agent.node, vm), agent.gpus)))
            .collect();
        let callers = (0..CALLERS).map(|number| {
            // Each caller has VMs of its own.
            let (first, all) = (number as usize, CALLERS as usize);
            let own = vms.iter().skip(first).step_by(all).cloned().collect();
            let random = StdRng::seed_from_u64(SEED + u64::from(number));
            let mut caller = Caller {
                endpoints: Arc::clone(&endpoints),
                turn: 0,
                stop: Arc::clone(&stop),
                placed: Arc::clone(&placed),
                random,
                vms: own,
                number,
                asked: 0,
            };
            std::thread::spawn(move || caller.work())
        });
        Load { callers: callers.collect(), stop, placed }
    }
}

fn vms_of(gpus: usize) -> usize {
    gpus - 1
}

fn vm_name(node: &str, number: usize) -> String {
    format!("{node}-vm-{number}")
}

/// The description of a host.
fn described(cluster: &str, node: &str, gpus: usize, model: &str) -> anyhow::Result<String> {
    let mut text = format!("cluster = \"{cluster}\"\nstep_ms = {STEP_MS}\n");
    for gpu in 0..gpus {
        writeln!(text, "[[gpu]]\nmodel = \"{model}\"\naddress = \"PCIROOT(20)#PCI(0{gpu}00)#PCI(0000)\"")?;
    }
    for vm in 0..vms_of(gpus) {
        let name = vm_name(node, vm);
        // Any number that no other VM has.
        let id = format!("{:08x}-0000-4000-a000-{vm:012}", crc(node));
        writeln!(text, "[[vm]]\nid = \"{id}\"\nname = \"{name}\"")?;
    }
    Ok(text)
}

fn crc(text: &str) -> u32 {
    text.bytes().fold(0, |sum: u32, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)))
}

/// Callers at work until they are told to stop.
#[derive(Debug)]
pub(super) struct Load {
    callers: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    placed: Arc<AtomicU64>,
}

impl Load {
    /// Ends them; says what they did.
    pub(super) fn stop(self) -> anyhow::Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))?;
        }
        let placed = self.placed.load(Ordering::Relaxed);
        ensure!(placed > 0, "nothing was placed");
        Ok(format!("{placed} VMs got GPUs."))
    }
}

/// Somebody who places VMs of their own, keeps each for a while, and gives it back.
struct Caller {
    endpoints: Arc<[String]>,
    turn: usize,
    stop: Arc<AtomicBool>,
    placed: Arc<AtomicU64>,
    random: StdRng,
    /// Names, and how many GPUs there are where the VM is.
    vms: Vec<(String, usize)>,
    number: u32,
    asked: u32,
}

impl Caller {
    fn work(&mut self) {
        let first = BETWEEN_CALLERS * self.number;
        self.rest(first);
        while !self.stopped() && !self.vms.is_empty() {
            let (vm, most) = self.vms[self.random.random_range(0..self.vms.len())].clone();
            let gpus = [1, 1, 2, 2, 4][self.random.random_range(0..5_usize)].min(most);
            self.asked += 1;
            let name = format!("p-{}-{}", self.number, self.asked);
            let request = json!({"requestId": name, "name": name, "vm": vm, "gpus": gpus, "queue": "40s"});
            if self.call("Create", &json!({"request": request})).is_some() && self.becomes(&name, "PHASE_ACTIVE") {
                self.placed.fetch_add(1, Ordering::Relaxed);
                let keep = Duration::from_millis(self.random.random_range(25_000..70_000));
                self.rest(keep);
            }
            if self.stopped() {
                return;
            }
            // What is over already cannot be released; that is as good.
            drop(self.call("Release", &json!({"name": name})));
            self.becomes(&name, "PHASE_RELEASED");
            let pause = Duration::from_millis(self.random.random_range(1_000..6_000));
            self.rest(pause);
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn rest(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.stopped() && Instant::now() < until {
            std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        }
    }

    /// Asks until somebody answers; none when it was refused, or nobody need know any more.
    fn call(&mut self, method: &str, body: &Value) -> Option<Value> {
        while !self.stopped() {
            let endpoint = &self.endpoints[self.turn % self.endpoints.len()];
            match http::post(endpoint, &format!("/berth.v1.Placements/{method}"), &body.to_string()) {
                Ok(answer) if answer.status == 200 => return answer.json().ok(),
                Ok(answer) if answer.status < 500 => return None,
                Ok(_) | Err(_) => self.turn += 1,
            }
            std::thread::sleep(LOOK);
        }
        None
    }

    /// Waits until a placement is in this phase; false when it is over before.
    fn becomes(&mut self, name: &str, wanted: &str) -> bool {
        while !self.stopped() {
            let Some(placement) = self.call("Get", &json!({"name": name})) else { return false };
            let phase = placement["phase"].as_str().unwrap_or_default();
            if phase == wanted {
                return true;
            }
            if matches!(phase, "PHASE_RELEASED" | "PHASE_FAILED") {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        false
    }
}
