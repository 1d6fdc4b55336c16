//! Getting out of trouble, with agents that live on: a backup that is put back, and a store that is made anew from what
//! agents hold.
#![cfg(feature = "dev")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use berth::args::Cli;
use berth::error::Exit;
use berth::fleet;
use berth::output::{Style, system_clock};
use berth_controller as controller;
use berth_controller::config::{Rebuild, Restore};
use berth_controller::console::Console;
use berth_controller::{rebuild, restore};
use berth_model::{Timestamp, VmId};
use berth_node_agent as agent;
use berth_node_agent::driver::sim::{Delays, KeptHost, VmSpec};
use berth_store::embedded::Embedded;
use clap::Parser as _;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(60);
const NODES: u32 = 2;

fn now() -> Timestamp {
    system_clock()
}

/// Hosts with agents that live as long as the test, and a controller that comes and goes.
struct Scene {
    dir: tempfile::TempDir,
    config: controller::config::Config,
    controller: Option<controller::app::Running>,
    agents: Vec<agent::Running>,
}

impl Scene {
    /// With these VMs from the beginning, each on its node.
    async fn start(vms: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = controller::config::Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: dir.path().join("store"),
            heartbeat: Duration::from_millis(500),
            observe: Duration::from_millis(500),
            ..Default::default()
        };
        let mut scene = Self { dir, config, controller: None, agents: Vec::new() };
        scene.lead().await;
        let endpoint = agent::config::endpoint(&scene.endpoint()).unwrap();
        for spec in fleet::standard(NODES).unwrap().hosts() {
            let node = spec.node.clone();
            let dir = scene.dir.path().join(node.as_str());
            let host = Arc::new(KeptHost::open(spec, Delays::default(), &dir).unwrap());
            for (at, (_, name)) in vms.iter().enumerate().filter(|(_, (on, _))| *on == node.as_str()) {
                let id = VmId::new(format!("8fce3318-aa0f-4de3-8664-{at:012}")).unwrap();
                host.ensure_vm(VmSpec::new(id, name.parse().unwrap())).await.unwrap();
            }
            let mut config = agent::config::Config::new(node.clone(), vec![endpoint.clone()], dir);
            let soon = Duration::from_millis(100);
            config.retry.first = soon;
            config.retry.longest = soon;
            config.retry.refused = soon;
            scene.agents.push(agent::start(config, host).await.unwrap());
        }
        scene.ready().await;
        scene
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.config.listen)
    }

    /// Starts the controller, at the same address from the first time on.
    async fn lead(&mut self) {
        let end = Instant::now() + PATIENCE;
        let running = loop {
            match controller::app::start(self.config.clone()).await {
                Ok(running) => break running,
                // The store is closed a moment after the last handle is gone.
                Err(error) => assert!(Instant::now() < end, "{error:#}"),
            }
            tokio::task::yield_now().await;
        };
        self.config.listen = running.local_addr;
        self.controller = Some(running);
    }

    async fn stop_controller(&mut self) {
        self.controller.take().unwrap().stop().await;
    }

    async fn lose_store(&mut self) {
        self.stop_controller().await;
        let store = self.open_store().await;
        drop(store);
        let end = Instant::now() + PATIENCE;
        while let Err(error) = std::fs::remove_dir_all(&self.config.data_dir) {
            assert!(Instant::now() < end, "{error}");
        }
    }

    async fn open_store(&self) -> Embedded {
        let end = Instant::now() + PATIENCE;
        loop {
            match Embedded::open(&self.config.data_dir) {
                Ok(store) => return store,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
            tokio::task::yield_now().await;
        }
    }

    async fn run(&self, line: &str) -> (Exit, String) {
        let endpoint = self.endpoint();
        let words = std::iter::once("berth").chain(line.split_whitespace()).chain(["--endpoint", &endpoint]);
        let cli = Cli::try_parse_from(words).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = berth::run(cli, &mut out, &mut err, Style { colour: false, clock: system_clock }).await;
        out.extend_from_slice(&err);
        (exit, String::from_utf8(out).unwrap())
    }

    async fn good(&self, line: &str) -> String {
        let (exit, text) = self.run(line).await;
        assert_eq!(exit, Exit::Done, "{line}: {text}");
        text
    }

    async fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.good(&format!("{line} -o json")).await).unwrap()
    }

    async fn until<F: Future<Output = bool>>(&self, what: &str, holds: impl Fn() -> F) {
        let end = Instant::now() + PATIENCE;
        while !holds().await {
            assert!(Instant::now() < end, "in time: {what}\n{}", self.run("get placements -o wide --all").await.1);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn ready(&self) {
        let ready = || async { self.json("status").await["nodesReady"] == NODES };
        self.until("all nodes are ready", ready).await;
    }

    /// Waits until agents hold nothing any more: a release is over before its agent has heard so.
    async fn let_go(&self) {
        let gone = || async { self.agents.iter().all(|agent| agent.holds() == 0) };
        self.until("no agent holds anything", gone).await;
    }

    /// A placement without what it does not matter here: its history, and what it once was asked by.
    async fn placement(&self, name: &str) -> Value {
        let all = self.json(&format!("get placements {name}")).await;
        let one = if all["placements"].is_array() { all["placements"][0].clone() } else { all };
        assert_eq!(one["request"]["name"], name, "{one}");
        one
    }

    async fn claims(&self) -> Vec<(String, String)> {
        let gpus = self.json("get gpus").await;
        let gpus = gpus["gpus"].as_array().or_else(|| gpus.as_array()).cloned().unwrap();
        let owned = |gpu: &Value| Some((gpu["id"].as_str()?.to_owned(), gpu["placement"].as_str()?.to_owned()));
        gpus.iter().filter_map(owned).filter(|(_, owner)| !owner.is_empty()).collect()
    }

    /// Placements with their GPUs in their VMs, and nothing broken.
    async fn at_ease(&self, active: &[&str]) {
        for name in active {
            let reached = || async {
                let one = self.placement(name).await;
                one["phase"] == "PHASE_ACTIVE" && one["conditions"].as_array().is_none_or(Vec::is_empty)
            };
            self.until(&format!("{name} is active, without conditions"), reached).await;
        }
        assert_eq!(self.json("status").await.get("violations").cloned().unwrap_or_default(), Value::Null);
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("berth.backup")
    }

    async fn restore(&self) -> (anyhow::Result<()>, String) {
        let store = self.open_store().await;
        let (mut out, input) = (Vec::new(), &b""[..]);
        let options = Restore { file: self.file(), yes: true, into_nonempty: false };
        let ended = restore::run(&store, &self.config, &options, now(), &mut Console::new(&mut out, input)).await;
        (ended, String::from_utf8(out).unwrap())
    }
}

fn what_must_stay(placement: &Value) -> [Value; 4] {
    ["uid", "vmId", "phase", "assignment"].map(|field| match field {
        // When it was pinned is not known to agents.
        "assignment" => Value::from(format!("{}{}", placement["assignment"]["node"], placement["assignment"]["gpus"])),
        field => placement[field].clone(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_taken_under_load_comes_back_and_agents_that_went_on_obey() {
    let mut scene = Scene::start(&[("hv-01", "render"), ("hv-02", "later")]).await;
    scene.good("place render --vm render --gpus 2 --wait --timeout 60s").await;
    let before = scene.placement("render").await;

    // Placements come and go while backups are taken; each is whole and of one moment.
    let file = scene.file().display().to_string();
    let load = async {
        for number in 0..20 {
            scene.good(&format!("place load-{number} --vm load-{number}")).await;
            scene.good(&format!("release load-{number}")).await;
        }
    };
    let backups = async {
        for _ in 0..5 {
            let said = scene.good(&format!("backup {file} --force")).await;
            assert!(said.contains("records at revision"), "{said}");
        }
    };
    tokio::join!(load, backups);
    let (exit, said) = scene.run(&format!("backup {file}")).await;
    assert_eq!(exit, Exit::Usage, "{said}");
    assert!(said.contains("--force"), "{said}");

    // Agents go on beyond the backup: another placement, and other leaderships.
    scene.good("place later --vm later --wait --timeout 60s").await;
    for _ in 0..3 {
        scene.stop_controller().await;
        scene.lead().await;
    }
    scene.ready().await;
    let later = scene.claims().await.into_iter().find(|(_, owner)| owner == "later").unwrap().0;
    let term = scene.json("status").await["term"].as_str().unwrap().parse::<u64>().unwrap();

    scene.lose_store().await;
    // A backup that is not whole is refused, and the store stays empty.
    let whole = std::fs::read(scene.file()).unwrap();
    std::fs::write(scene.file(), &whole[..whole.len() - 1]).unwrap();
    let (ended, _) = scene.restore().await;
    let why = format!("{:#}", ended.unwrap_err());
    assert!(why.contains("cut off") && why.contains("nothing was changed"), "{why}");
    std::fs::write(scene.file(), &whole).unwrap();
    let (ended, said) = scene.restore().await;
    ended.unwrap();
    assert!(said.contains("1 Active"), "{said}");

    scene.lead().await;
    scene.ready().await;
    assert!(scene.json("status").await["term"].as_str().unwrap().parse::<u64>().unwrap() > term);
    scene.at_ease(&["render"]).await;
    assert_eq!(what_must_stay(&scene.placement("render").await), what_must_stay(&before));
    // What was placed since is not known; its GPU is in its VM, untouched, and nobody else gets it.
    assert_eq!(scene.run("describe placement later").await.0, Exit::NotFound);
    let gpu = scene.json(&format!("get gpus {later}")).await.to_string();
    assert!(gpu.contains("GPU_STATE_ATTACHED") && gpu.contains("InVm"), "{gpu}");
    // Agents obey again: what is asked now is done.
    scene.good("release render --wait --timeout 60s").await;
    scene.good("place render-2 --vm render --wait --timeout 60s").await;
    scene.at_ease(&["render-2"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_store_is_made_anew_from_what_agents_hold() {
    let mut scene = Scene::start(&[("hv-01", "one"), ("hv-02", "two"), ("hv-02", "gone")]).await;
    for name in ["one", "two", "gone"] {
        scene.good(&format!("place {name} --vm {name} --gpus 2 --wait --timeout 60s")).await;
    }
    scene.good("release gone --wait --timeout 60s").await;
    scene.good("place held --vm not-there-yet").await;
    let before = [scene.placement("one").await, scene.placement("two").await];
    let claims: Vec<_> = scene.claims().await.into_iter().filter(|(_, owner)| owner != "held").collect();
    assert_eq!(claims.len(), 4);
    // The release is over before its agent has heard so.
    let told = || async { scene.agents.iter().all(|agent| agent.holds() == 1) };
    scene.until("each agent holds one", told).await;

    scene.lose_store().await;
    let (mut out, input) = (Vec::new(), &b"y\n"[..]);
    let nodes = usize::try_from(NODES).unwrap();
    let options = Rebuild { wait: PATIENCE, nodes: Some(nodes), yes: false };
    let store = scene.open_store().await;
    let mut console = Console::new(&mut out, input);
    rebuild::run(&store, &scene.config, &options, now, &mut console).await.unwrap();
    drop(store);
    let said = String::from_utf8(out).unwrap();
    for part in ["2 nodes told what they hold: hv-01, hv-02", "Active", "queued or held", "Rebuilt: 2 nodes and 2"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(!said.contains("LEFT OUT"), "{said}");

    // Only once: what is in the store now is worth more.
    let store = scene.open_store().await;
    let (mut out, input) = (Vec::new(), &b"y\n"[..]);
    let again = rebuild::run(&store, &scene.config, &options, now, &mut Console::new(&mut out, input)).await;
    let why = format!("{:#}", again.unwrap_err());
    assert!(why.contains("2 placements among them"), "{why}");
    drop(store);

    scene.lead().await;
    scene.ready().await;
    scene.at_ease(&["one", "two"]).await;
    let after = [scene.placement("one").await, scene.placement("two").await];
    assert_eq!(after.each_ref().map(what_must_stay), before.each_ref().map(what_must_stay));
    assert_eq!(scene.claims().await, claims);
    assert_eq!(scene.run("describe placement held").await.0, Exit::NotFound, "no agent knew of it");
    scene.good("release one --wait --timeout 60s").await;
    scene.good("place one --vm one --gpus 2 --wait --timeout 60s").await;
    scene.at_ease(&["one", "two"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_lost_everything_is_obeyed_again() {
    let mut scene = Scene::start(&[("hv-01", "one")]).await;
    scene.good("place one --vm one --wait --timeout 60s").await;
    for _ in 0..2 {
        scene.stop_controller().await;
        scene.lead().await;
    }
    scene.ready().await;
    let term = |status: &Value| status["term"].as_str().unwrap().parse::<u64>().unwrap();
    let obeyed = term(&scene.json("status").await);
    // Agents must have heard of it, or there is nothing to rise above.
    scene.good("release one --wait --timeout 60s").await;
    scene.let_go().await;

    scene.lose_store().await;
    scene.lead().await;
    scene.ready().await;
    let now = term(&scene.json("status").await);
    assert!(now > obeyed, "term {now} after {obeyed}");
    scene.good("place one-again --vm one --wait --timeout 60s").await;
    scene.at_ease(&["one-again"]).await;
}

/// The wrong data directory, or one that was lost: what agents hold is the only copy of it, or will be wanted again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_on_another_store_takes_nothing_from_agents() {
    let mut scene = Scene::start(&[("hv-01", "one")]).await;
    scene.good("place one --vm one --gpus 2 --wait --timeout 60s").await;
    let (before, claims) = (scene.placement("one").await, scene.claims().await);
    let right = scene.config.data_dir.clone();
    let fleet = scene.json("status").await["fleet"].clone();

    let strange = async |scene: &Scene| {
        // The node that holds nothing joins; the other one is shown, and told nothing.
        let shown = || async {
            let status = scene.json("status").await;
            status["nodesReady"] == 1 && status["strangers"] == serde_json::json!(["hv-01"])
        };
        scene.until("one node is ready and the other a stranger", shown).await;
        let nodes = scene.good("get nodes").await;
        assert!(nodes.lines().any(|line| line.contains("hv-01") && line.contains("Stranger")), "{nodes}");
        let why = scene.good("describe node hv-01").await;
        for part in ["holds 1 placement of fleet", "data_dir", "berth-controller rebuild"] {
            assert!(why.contains(part), "{part} in {why}");
        }
        assert!(scene.good("status").await.contains("Strangers"));
        let (exit, refused) = scene.run("place other --vm other --node hv-01").await;
        assert_eq!(exit, Exit::NotPlaceable, "{refused}");
        assert_eq!(scene.agents.iter().map(agent::Running::holds).collect::<Vec<_>>(), [1, 0]);
    };
    scene.stop_controller().await;
    scene.config.data_dir = scene.dir.path().join("wrong");
    scene.lead().await;
    strange(&scene).await;
    assert_ne!(scene.json("status").await["fleet"], fleet);

    // Back on the right one, it is as if nothing had been.
    scene.stop_controller().await;
    scene.config.data_dir = right;
    scene.lead().await;
    scene.ready().await;
    scene.at_ease(&["one"]).await;
    assert_eq!(scene.json("status").await["strangers"], Value::Null);
    assert_eq!(scene.placement("one").await["version"], before["version"], "nothing was done to it");

    // Lost for good: a controller was started on the empty one, and all is there still.
    scene.lose_store().await;
    scene.lead().await;
    strange(&scene).await;
    scene.stop_controller().await;
    let (mut out, input) = (Vec::new(), &b"y\n"[..]);
    let options = Rebuild { wait: PATIENCE, nodes: Some(usize::try_from(NODES).unwrap()), yes: false };
    let store = scene.open_store().await;
    let mut console = Console::new(&mut out, input);
    rebuild::run(&store, &scene.config, &options, now, &mut console).await.unwrap();
    drop(store);
    scene.lead().await;
    scene.ready().await;
    scene.at_ease(&["one"]).await;
    assert_eq!(what_must_stay(&scene.placement("one").await), what_must_stay(&before));
    assert_eq!((scene.claims().await, &scene.json("status").await["fleet"]), (claims, &fleet));
    scene.good("release one --wait --timeout 60s").await;
    scene.let_go().await;

    // What holds nothing is nobody's: a fresh start is one.
    scene.lose_store().await;
    scene.lead().await;
    scene.ready().await;
    scene.good("place anew --vm one --wait --timeout 60s").await;
    scene.at_ease(&["anew"]).await;
}
