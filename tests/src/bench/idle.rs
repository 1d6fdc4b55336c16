//! A fleet at rest: it writes nothing, and the controller stays small. And one real agent: how small it is.

use super::controller::Controller;
use super::figures::{self, Spread, number};
use super::fleet::Fleet;
use super::hosts;
use super::programs::program;
use super::report::{Goal, Report};
use super::store::Store;
use crate::process::{Process, other};
use anyhow::ensure;
use berth_model::gpu::ObservedGpu;
use berth_store::Revision;
use std::time::{Duration, Instant};

const LEADS: Duration = Duration::from_secs(60);
/// How long etcd's revision must stay the same before the fleet counts as being at rest.
const SETTLED: Duration = Duration::from_secs(2);
/// How long that may take.
const SETTLES: Duration = Duration::from_secs(120);
const GOAL_CONTROLLER_MIB: f64 = 600.0;
const GOAL_AGENT_MIB: f64 = 20.0;

/// How much of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Fleets by their number of hosts.
    pub nodes: Vec<usize>,
    /// How long each is watched.
    pub time: Duration,
}

impl Options {
    /// The real one.
    #[must_use]
    pub fn full() -> Self {
        Self { nodes: vec![1_000, 10_000], time: Duration::from_secs(60) }
    }

    /// Shows that it works.
    #[must_use]
    pub fn short() -> Self {
        Self { nodes: vec![20], time: Duration::from_secs(2) }
    }
}

/// Measures.
///
/// # Errors
/// When anything does not start, or does not come to rest.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let mut report = None;
    for nodes in &options.nodes {
        let store = Store::start().await?;
        let report = report.get_or_insert_with(|| Report::new("idle", &store.version));
        of_fleet(&store, *nodes, options.time, report).await?;
    }
    report.ok_or_else(|| anyhow::anyhow!("no fleet is named"))
}

async fn of_fleet(store: &Store, nodes: usize, time: Duration, report: &mut Report) -> anyhow::Result<()> {
    let controller = Controller::start(&store.endpoint()).await?;
    controller.wait("the controller leads", LEADS, |status| status.leader).await?;
    let begun = Instant::now();
    // Nobody knows these hosts yet: each is surveyed and written down.
    let fleet = Fleet::ready(&controller, nodes).await?;
    report.note(format!(
        "{nodes} nodes x {} GPUs, new to the controller, ready after {:.1} s; watched for {} s",
        hosts::GPUS,
        begun.elapsed().as_secs_f64(),
        time.as_secs()
    ));
    let (agent, _dir) = real_agent(&controller).await?;
    let wanted = u32::try_from(nodes + 1)?;
    controller.wait("the real agent is ready", LEADS, |status| status.nodes_ready >= wanted).await?;
    let revision = settled(store).await?;
    let before = [controller.usage()?, fleet.usage()?, store.usage()?];
    tokio::time::sleep(time).await;
    let after = [controller.usage()?, fleet.usage()?, store.usage()?];
    let written = store.revision().await?.0.saturating_sub(revision.0);
    let status = controller.status().await?;
    ensure!(status.nodes_ready >= wanted, "not all nodes are ready any more: {status:?}");
    let share = |at: usize| (after[at].cpu_seconds - before[at].cpu_seconds) / time.as_secs_f64() * 100.0;
    let once = |value| Spread::of([value]);
    let of = |what: &str| format!("{nodes} nodes: {what}");
    report.judged(of("revisions written"), once(number(written)), "", Goal::AtMost(0.0));
    report.judged(of("controller, memory"), once(after[0].rss_mib), "MiB", Goal::AtMost(GOAL_CONTROLLER_MIB));
    report.row(of("controller, most memory"), once(after[0].peak_mib), "MiB");
    report.row(of("controller, share of a processor"), once(share(0)), "%");
    report.row(of("etcd, share of a processor"), once(share(2)), "%");
    report.row(of("simulated agents, share of a processor"), once(share(1)), "%");
    let agent = figures::usage(agent.id())?;
    report.judged(of("one real agent, memory"), once(agent.rss_mib), "MiB", Goal::AtMost(GOAL_AGENT_MIB));
    Ok(())
}

/// Waits until nothing is written for a while; the revision then.
async fn settled(store: &Store) -> anyhow::Result<Revision> {
    let begun = Instant::now();
    let (mut last, mut since) = (store.revision().await?, Instant::now());
    while since.elapsed() < SETTLED {
        ensure!(begun.elapsed() < SETTLES, "etcd's revision still moves after {SETTLES:?}: {last}");
        tokio::time::sleep(SETTLED / 20).await;
        let now = store.revision().await?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

/// The shipped agent with a simulated host of eight GPUs, under a name of its own.
async fn real_agent(controller: &Controller) -> anyhow::Result<(Process, tempfile::TempDir)> {
    let endpoint = controller.endpoint.clone();
    tokio::task::spawn_blocking(move || {
        let dir = tempfile::tempdir()?;
        let host = dir.path().join("host.toml");
        let gpu =
            |gpu: ObservedGpu| format!("[[gpu]]\nmodel = \"{}\"\naddress = \"{}\"\n", gpu.survey.model, gpu.address);
        std::fs::write(&host, hosts::gpus(0).into_iter().map(gpu).collect::<String>())?;
        let mut command = other(program("berth-agent")?);
        command.args(["--node", "real", "--controller", &endpoint, "--driver", "sim"]);
        command.arg("--sim-host").arg(&host).arg("--data-dir").arg(dir.path().join("data"));
        Ok((Process::start(command)?, dir))
    })
    .await?
}
