//! What a step costs beside the host's own work, and what an agent at rest costs: the shipped agent with the driver hyperv
//! on a stand-in for the host's PowerShell, which writes down when it was asked and when it had answered.
//!
//! The agent's own time is what lies between an answer and the next question: reading, deciding, writing its ledger,
//! asking. A step has two such gaps, before it and before the look that follows it.

use super::controller::Controller;
use super::figures::{self, Spread, number, percentile_ms};
use super::programs::program;
use super::report::{Goal, Report};
use super::standin::{Asked, VM, asked};
use super::store::Store;
use crate::process::{Process, other};
use anyhow::{Context as _, bail, ensure};
use berth_proto::v1::placements_client::PlacementsClient;
use berth_proto::v1::{CreatePlacementRequest, GetPlacementRequest, Phase, PlacementRequest, ReleasePlacementRequest};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

const LEADS: Duration = Duration::from_secs(60);
/// How long one way there or back may take.
const WAY: Duration = Duration::from_secs(60);
/// How often the host is looked at while nothing is to be done, here: short, so that there is something to count.
const OBSERVE: Duration = Duration::from_secs(1);
const GOAL_OWN_MS: f64 = 5.0;
const GOAL_AGENT_MIB: f64 = 20.0;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Placements, one after the other, each released again.
    pub rounds: usize,
    /// How long the agent is watched at rest.
    pub rest: Duration,
}

impl Options {
    /// The real one.
    pub const FULL: Self = Self { rounds: 50, rest: Duration::from_secs(60) };
    /// Shows that it works.
    pub const SHORT: Self = Self { rounds: 2, rest: Duration::from_secs(3) };
}

/// Measures.
///
/// # Errors
/// When anything does not start, or a placement fails.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let store = Store::start().await?;
    let controller = Controller::start_with(&store.endpoint(), &["agents.observe=1s".to_owned()]).await?;
    controller.wait("the controller leads", LEADS, |status| status.leader).await?;
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("asked");
    let agent = agent(&controller, dir.path(), &log).await?;
    controller.wait("the agent is ready", LEADS, |status| status.nodes_ready >= 1).await?;
    let channel = Endpoint::from_shared(controller.endpoint.clone())?.tcp_nodelay(true).connect().await?;
    let mut client = PlacementsClient::new(channel);
    let before = asked(&log)?.len();
    for round in 0..options.rounds {
        there_and_back(&mut client, round).await.with_context(|| format!("{}\n{}", agent.log(), controller.log()))?;
    }
    let all = asked(&log)?;
    let mut steps = steps(all.get(before..).unwrap_or_default());
    ensure!(!steps.is_empty(), "no step was taken: {all:?}");

    // At rest: from one answer to another, so that whole intervals are counted.
    tokio::time::sleep(2 * OBSERVE).await;
    let (from, usage) = (asked(&log)?.len(), figures::usage(agent.id())?);
    tokio::time::sleep(options.rest).await;
    let (until, after) = (asked(&log)?, figures::usage(agent.id())?);
    let rest = until.get(from.saturating_sub(1)..).unwrap_or_default();
    ensure!(rest.len() > 1 && rest.iter().all(|asked| asked.op == "observe"), "at rest it asks {rest:?}");
    let gaps = rest.windows(2).filter_map(|pair| Some((pair.first()?, pair.last()?)));
    let intervals: Vec<f64> = gaps.map(|(before, after)| (after.came - before.came).as_secs_f64()).collect();
    let shortest = intervals.iter().copied().fold(f64::INFINITY, f64::min);

    let mut report = Report::new("step", &store.version);
    report.note(format!(
        "{} placements of one GPU and their releases, {} steps; a stand-in for PowerShell that answers at once",
        options.rounds,
        steps.len()
    ));
    report.note(format!("then at rest for {} s, a look every {} s", options.rest.as_secs(), OBSERVE.as_secs()));
    let once = |value| Spread::of([value]);
    let of = |steps: &mut [Step], time: fn(&Step) -> Duration, percent| {
        percentile_ms(&mut steps.iter().map(time).collect::<Vec<_>>(), percent)
    };
    let own_50 = of(&mut steps, Step::own, 50);
    report.judged("a step: the agent's own time, p50", once(own_50), "ms", Goal::AtMost(GOAL_OWN_MS));
    let own_99 = of(&mut steps, Step::own, 99);
    report.judged("a step: the agent's own time, p99", once(own_99), "ms", Goal::AtMost(GOAL_OWN_MS));
    report.row("of it before the step, p50", once(of(&mut steps, |step| step.before, 50)), "ms");
    report.row("of it before the look that follows, p50", once(of(&mut steps, |step| step.after, 50)), "ms");
    report.row("a step with its look, as a whole, p50", once(of(&mut steps, |step| step.whole, 50)), "ms");
    let asked_at_rest = number(u64::try_from(intervals.len())?) / options.rest.as_secs_f64() * OBSERVE.as_secs_f64();
    report.row("at rest: questions an interval", once(asked_at_rest), "");
    report.row("at rest: between two questions", Spread::of(intervals), "s");
    // The clock of the pause and that of the stand-in are not the same; a hundredth is no question too many.
    let least = OBSERVE.as_secs_f64() * 0.99;
    report.judged("at rest: shortest time between two", once(shortest), "s", Goal::AtLeast(least));
    report.judged("at rest: the agent's memory", once(after.rss_mib), "MiB", Goal::AtMost(GOAL_AGENT_MIB));
    let share = (after.cpu_seconds - usage.cpu_seconds) / options.rest.as_secs_f64() * 100.0;
    report.row("at rest: the agent, share of a processor", once(share), "%");
    Ok(report)
}

/// One step, in times of the stand-in.
struct Step {
    /// From the answer to the look before to the step's question.
    before: Duration,
    /// From the step's answer to the question of the look after.
    after: Duration,
    /// From the answer to the look before to that of the look after.
    whole: Duration,
}

impl Step {
    fn own(&self) -> Duration {
        self.before + self.after
    }
}

/// Steps between two looks each.
fn steps(asked: &[Asked]) -> Vec<Step> {
    let step = |window: &[Asked]| match window {
        [look, step, next] if look.op == "observe" && step.op != "observe" && next.op == "observe" => Some(Step {
            before: step.came.saturating_sub(look.answered),
            after: next.came.saturating_sub(step.answered),
            whole: next.answered.saturating_sub(look.answered),
        }),
        _ => None,
    };
    asked.windows(3).filter_map(step).collect()
}

async fn there_and_back(client: &mut PlacementsClient<Channel>, round: usize) -> anyhow::Result<()> {
    let name = format!("step-{round}");
    let request = PlacementRequest {
        request_id: name.clone(),
        name: name.clone(),
        vm: VM.to_owned(),
        gpus: 1,
        ..PlacementRequest::default()
    };
    client.create(CreatePlacementRequest { request: Some(request) }).await.context("it is not placed")?;
    reach(client, &name, Phase::Active).await?;
    let release = ReleasePlacementRequest { name: name.clone(), ..ReleasePlacementRequest::default() };
    client.release(release).await.context("it is not released")?;
    reach(client, &name, Phase::Released).await
}

async fn reach(client: &mut PlacementsClient<Channel>, name: &str, phase: Phase) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let placement = client.get(GetPlacementRequest { name: name.to_owned() }).await?.into_inner();
        if placement.phase() == phase {
            return Ok(());
        }
        if begun.elapsed() > WAY || placement.phase() == Phase::Failed {
            bail!("{name} does not come to {phase:?}: {placement:?}");
        }
        // Rarely: what is measured shares the machine with whoever asks.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The shipped agent, with this very program in PowerShell's place.
async fn agent(controller: &Controller, dir: &Path, log: &Path) -> anyhow::Result<Process> {
    let (endpoint, dir, log) = (controller.endpoint.clone(), dir.to_owned(), log.to_owned());
    tokio::task::spawn_blocking(move || {
        let powershell = standin(&dir, &log)?;
        let mut command = other(program("berth-agent")?);
        command.args(["--node", "measured", "--controller", &endpoint, "--driver", "hyperv", "--hyperv-powershell"]);
        command.arg(powershell).arg("--data-dir").arg(dir.join("data"));
        Process::start(command)
    })
    .await?
}

/// A program that starts the stand-in, whatever it is started with.
fn standin(dir: &Path, log: &Path) -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe().context("cannot find out where this program is")?;
    let file = dir.join("powershell");
    std::fs::write(&file, format!("#!/bin/sh\nexec '{}' stand-in '{}' -- \"$@\"\n", me.display(), log.display()))?;
    let mut chmod = other("chmod");
    chmod.arg("755").arg(&file);
    ensure!(chmod.status().context("cannot start chmod")?.success(), "cannot make {} a program", file.display());
    Ok(file)
}
