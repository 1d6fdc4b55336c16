//! A whole Berth as real processes, under load, while everything goes wrong: then a verdict on all that happened.
//!
//! Each experiment starts a cluster of its own ([`cluster`]) with callers ([`load`]), makes trouble ([`actions`],
//! [`experiments`]), mends everything, waits until all is at rest, and holds history, journal, logs and hosts against one
//! another ([`judge`]). Whatever is drawn by chance is drawn from a seed, which is printed; what the system makes of it
//! in time is its own, so that a seed gives the same troubles and not the same run.

#![expect(clippy::print_stdout, reason = "what happens is told while it happens")]

pub mod actions;
pub mod audit;
pub mod client;
pub mod cluster;
pub mod connections;
pub mod experiments;
pub mod history;
pub mod hosts;
pub mod journal;
pub mod judge;
pub mod load;
pub mod logs;
pub mod proxy;
pub mod supervised;
#[cfg(test)]
mod testing;

use crate::process::{other, wait_until};
use crate::replay::{Caller, Problem, look};
use anyhow::{Context as _, bail, ensure};
use cluster::{CONTROLLERS, Cluster};
use experiments::Experiment;
use journal::Journal;
use judge::Verdict;
use load::Load;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

/// How long callers may wait for their last answers once nothing is wrong any more: a leader is found within a lease,
/// agents are back within seconds, and a call that was lost is made again after three.
const ANSWERED: Duration = Duration::from_secs(60);
/// How long agents may take to be connected and seen by all controllers.
const CONNECTED: Duration = Duration::from_secs(60);
/// How long placements may take to come to rest, holds included that nobody takes up.
const AT_REST: Duration = Duration::from_secs(90);

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which experiment.
    pub experiment: Experiment,
    /// Where chance begins.
    pub seed: u64,
    /// Agents, each with a host.
    pub agents: usize,
    /// Callers.
    pub callers: usize,
    /// How long trouble is made, where there is no count of rounds.
    pub duration: Duration,
    /// How often it is done, where it is counted.
    pub rounds: u32,
}

/// What came of a run that found nothing wrong.
#[derive(Debug)]
pub struct Report {
    /// Figures, a line each.
    pub lines: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// One run.
#[derive(Debug)]
pub struct Run {
    options: Options,
    random: StdRng,
    begun: Instant,
    cluster: Cluster,
    load: Option<Load>,
    journal: Arc<Journal>,
    /// Processes that ended by themselves.
    ended: BTreeMap<String, u64>,
    lines: Vec<String>,
    // The last to go: everything above has tasks in it.
    _watching: JoinSet<()>,
    runtime: Runtime,
}

/// Runs one experiment. `None` when there is no etcd here; that was said then.
///
/// # Errors
/// Everything that was found wrong.
pub fn run(options: Options) -> anyhow::Result<Option<Report>> {
    let Options { experiment, seed, agents, callers, duration: _, rounds: _ } = options;
    println!("{experiment}: seed {seed}, {agents} agents, {callers} callers");
    // What a build has just written is on its way to the disk, and whatever etcd writes waits behind it, for seconds.
    if let Err(error) = other("sync").status() {
        println!("the disk may still be busy: sync: {error}");
    }
    let begun = Instant::now();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().context("no runtime")?;
    let Some(cluster) = Cluster::start(experiment.name(), agents, experiment.ways(), runtime.handle())? else {
        return Ok(None);
    };
    let journal = Arc::new(Journal::default());
    let endpoints: Vec<_> = (0..CONTROLLERS).map(|number| cluster.callers(number)).collect();
    let load = Load::start(
        runtime.handle(),
        &endpoints,
        &cluster.hosts,
        &journal,
        load::Options { callers, seed, hold: experiment.hold() },
    )?;
    let watching = hosts::watch(runtime.handle(), &cluster.hosts, &journal);
    let mut run = Run {
        random: StdRng::seed_from_u64(seed),
        options,
        begun,
        cluster,
        load: Some(load),
        journal,
        ended: BTreeMap::new(),
        lines: Vec::new(),
        _watching: watching,
        runtime,
    };
    run.say("everything runs");
    let outcome = run.experiment_and_judge();
    if outcome.is_err() {
        let kept = run.cluster.keep().display().to_string();
        return outcome.with_context(|| format!("{experiment} with seed {seed}; logs are kept in {kept}")).map(Some);
    }
    outcome.map(Some)
}

impl Run {
    /// Tells something that happened.
    fn say(&self, what: impl fmt::Display) {
        println!("{:8.2}s  {what}", self.begun.elapsed().as_secs_f64());
    }

    /// Tells a figure, and keeps it for the report.
    fn figure(&mut self, line: String) {
        self.say(&line);
        self.lines.push(line);
    }

    /// Starts again what ended by itself.
    fn tend(&mut self) -> anyhow::Result<()> {
        for ended in self.cluster.tend()? {
            self.say(format_args!("{} ended by itself ({}) and is started again", ended.who, ended.status));
            let kind = ended.who.split(' ').next().unwrap_or_default().to_owned();
            *self.ended.entry(kind).or_default() += 1;
        }
        Ok(())
    }

    /// Tends while it waits until something is so.
    fn wait(&mut self, what: &str, limit: Duration, mut so: impl FnMut(&mut Self) -> bool) -> anyhow::Result<()> {
        let came = wait_until(limit, || {
            self.tend()?;
            Ok(so(self))
        })?;
        let (answers, open) = self.journal.counts();
        ensure!(came, "{what}: not within {} s; {answers} answers, {open} calls wait", limit.as_secs());
        Ok(())
    }

    fn experiment_and_judge(&mut self) -> anyhow::Result<Report> {
        match self.options.experiment {
            Experiment::Mixed => experiments::mixed(self)?,
            Experiment::LeaderKills => experiments::leader_kills(self)?,
            Experiment::PausedLeader => experiments::paused_leader(self)?,
            Experiment::RollingRestart => experiments::rolling_restart(self)?,
        }
        self.calm_down()?;
        let told = self.journal.told();
        let verdict = judge::judge(self.options.experiment, &self.cluster, &told, self.runtime.handle())?;
        self.sum_up(&told, &verdict);
        let mut wrong = verdict.wrong;
        wrong.extend(experiments::check(self.options.experiment, &told, &verdict.history));
        if self.ended.contains_key("agent") {
            wrong.push("an agent ended by itself".to_owned());
        }
        // Where nobody keeps a controller from etcd, a leader may lose its lease once to a machine that stands still for
        // seconds, as when the disk is busy.
        let lost = self.ended.get("controller").copied().unwrap_or(0);
        if matches!(self.options.experiment, Experiment::LeaderKills | Experiment::RollingRestart) && lost > 1 {
            wrong.push(format!("controllers ended by themselves {lost} times, and nobody kept them from etcd"));
        }
        if !wrong.is_empty() {
            bail!("{} findings:\n{}", wrong.len(), wrong.join("\n"));
        }
        Ok(Report { lines: std::mem::take(&mut self.lines) })
    }

    /// All is well from now on: everybody must be answered, connected and at rest within bounds.
    fn calm_down(&mut self) -> anyhow::Result<()> {
        self.say("calm: everything is mended");
        let begun = Instant::now();
        self.tend()?;
        if let Some(load) = self.load.take() {
            // Somebody must start again what ends meanwhile.
            let answered = std::thread::scope(|scope| -> anyhow::Result<Duration> {
                let finishing = scope.spawn(move || load.finish(ANSWERED));
                while !finishing.is_finished() {
                    self.tend()?;
                    std::thread::sleep(Duration::from_millis(20));
                }
                finishing.join().map_err(|_| anyhow::anyhow!("waiting for callers crashed"))?
            })?;
            self.say(format_args!("every caller is answered after {answered:.1?}"));
        }
        let connected = self.cluster.wait_ready(CONNECTED)?;
        self.say(format_args!("every agent is connected after another {connected:.1?}"));
        self.wait_at_rest()?;
        let took = begun.elapsed();
        self.figure(format!("calm after {took:.1?}"));
        Ok(())
    }

    /// Waits until all controllers agree, with nothing under way and nothing that will change by itself: a hold may yet
    /// find its VM.
    fn wait_at_rest(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut last = Vec::new();
        let runtime = self.runtime.handle().clone();
        let _in_runtime = runtime.enter();
        let rests = wait_until(AT_REST, || {
            self.tend()?;
            last.clear();
            for number in 0..CONTROLLERS {
                let caller = Caller::new(&self.cluster.direct(number), Duration::from_secs(5))?;
                let shown = self.runtime.block_on(async {
                    let mut wrong = look(&caller).await?;
                    let live = caller.live_placements().await?;
                    let timed = live.iter().filter(|placement| placement.deadline.is_some());
                    wrong.extend(timed.map(|placement| format!("{} is {:?}", placement.uid, placement.phase())));
                    Ok::<_, Problem>(wrong)
                });
                match shown {
                    Ok(wrong) => last.extend(wrong.into_iter().map(|what| format!("controller {number}: {what}"))),
                    Err(problem) => last.push(format!("controller {number}: {problem}")),
                }
            }
            Ok(last.is_empty())
        })?;
        ensure!(rests, "not at rest after {} s:\n{}", AT_REST.as_secs(), last.join("\n"));
        self.say(format_args!("everything is at rest after another {:.1?}", begun.elapsed()));
        Ok(())
    }

    fn sum_up(&mut self, told: &journal::Told, verdict: &Verdict) {
        let Verdict { history, logs, claimed, .. } = verdict;
        let by_method = |method| told.acknowledged.iter().filter(|answer| answer.method == method).count();
        let (created, committed, released) = (
            by_method(journal::Method::Create),
            by_method(journal::Method::Commit),
            by_method(journal::Method::Release),
        );
        self.figure(format!(
            "{} calls: {created} created, {committed} committed, {released} released, {} refused",
            told.calls,
            told.refused.len()
        ));
        let mut phases: BTreeMap<&str, u64> = BTreeMap::new();
        for placement in history.placements.values() {
            *phases.entry(placement.phase.name()).or_default() += 1;
        }
        self.figure(format!("{} placements at the end: {phases:?}", history.placements.len()));
        let mut refused: BTreeMap<String, u64> = BTreeMap::new();
        for refusal in &told.refused {
            *refused.entry(format!("{:?} {}", refusal.method, refusal.reason)).or_default() += 1;
        }
        let mut silences: BTreeMap<&str, u64> = BTreeMap::new();
        for ((code, _), times) in &told.silences {
            *silences.entry(code).or_default() += times;
        }
        self.figure(format!("refusals {refused:?}; attempts without an answer {silences:?}"));
        self.figure(format!(
            "{} revisions walked up to {}, {} leaderships, {} changes of which {} are told by the one who led and {} by nobody",
            history.revisions,
            history.revision,
            history.leaderships.len(),
            history.changes.len(),
            claimed.0,
            claimed.1
        ));
        self.figure(format!(
            "{} records of the audit beside {} changes of phase, in {} blocks",
            history.audited.len(),
            history.entered.len(),
            verdict.sealed.head.number
        ));
        self.figure(format!(
            "{} lines of log, allowed {:?}; ended by themselves {:?}",
            logs.lines, logs.allowed, self.ended
        ));
    }
}
