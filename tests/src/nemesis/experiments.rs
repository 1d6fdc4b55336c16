//! The experiments: what is done to a cluster under load, and what is to be seen of it.

use super::Run;
use super::actions::Nemesis;
use super::cluster::{CONTROLLERS, LEASE, Ways};
use super::history::History;
use super::journal::Told;
use crate::replay::Caller;
use anyhow::{Context as _, ensure};
use berth_proto::v1::placements_client::PlacementsClient;
use berth_proto::v1::{CreatePlacementRequest, PlacementRequest};
use berth_store::{Revision, Store as _};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

/// Longest wait for what comes by itself within seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Goal for the time from the death of a leader to the next placement, on a machine that is not busy with other things.
const GOAL: Duration = Duration::from_secs(5);
/// Bound for the same here: debug builds, thirty processes and whatever else runs on a few cores.
const BOUND: Duration = Duration::from_secs(20);
/// Answers without which a run says nothing.
const ANSWERS: usize = 20;
/// Calls that wait in a paused leader's sockets for it to wake.
const TEMPTATIONS: usize = 16;
/// Names of what those calls ask for begin with it.
const TEMPTING: &str = "late-";

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experiment {
    /// Everything, at random.
    Mixed,
    /// kill -9 the leader, again and again.
    LeaderKills,
    /// Stop the leader in its tracks for longer than its lease, then wake it.
    PausedLeader,
    /// Restart all controllers in order.
    RollingRestart,
}

impl Experiment {
    /// Every experiment.
    pub const ALL: [Self; 4] = [Self::Mixed, Self::LeaderKills, Self::PausedLeader, Self::RollingRestart];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mixed => "mixed",
            Self::LeaderKills => "leader-kills",
            Self::PausedLeader => "paused-leader",
            Self::RollingRestart => "rolling-restart",
        }
    }

    /// How processes reach controllers: past the proxies where what a connection says of a process that is not there is
    /// part of the experiment. A proxy takes connections for one that would refuse them.
    #[must_use]
    pub fn ways(self) -> Ways {
        match self {
            Self::Mixed | Self::LeaderKills | Self::PausedLeader => Ways::Proxies,
            Self::RollingRestart => Ways::Direct,
        }
    }

    /// How long GPUs are held for a VM: longer than most faults last, so that few holds expire that somebody takes up, and
    /// short, because a run ends only when nothing changes by itself any more.
    #[must_use]
    pub fn hold(self) -> Duration {
        match self {
            Self::Mixed | Self::LeaderKills | Self::RollingRestart => Duration::from_secs(10),
            Self::PausedLeader => Duration::from_secs(6),
        }
    }
}

impl fmt::Display for Experiment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Experiment {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|experiment| experiment.name() == text);
        found.ok_or_else(|| format!("{text:?} is not one of: {known}"))
    }
}

/// For how long nothing is written where nothing is under way: longer than the audit gathers before it seals.
const STILL: Duration = Duration::from_secs(2);

/// What a controller that passes a change on says of the same, on its way to the leader.
const TORN_BETWEEN: &str = "the connection to the leader at ";

/// What a caller's own library says of a connection that closes in the moment in which a call is written to it.
const TORN: [(&str, &str); 2] = [("Cancelled", "operation was canceled"), ("Unknown", "transport error")];

/// What must be so beside everything that must always be so.
#[must_use]
pub fn check(experiment: Experiment, told: &Told, history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let answers = told.acknowledged.len();
    if answers < ANSWERS {
        wrong.push(format!("only {answers} calls were answered: a run in which nothing happens proves nothing"));
    }
    if experiment == Experiment::RollingRestart {
        let mut torn = 0;
        for ((code, text), times) in told.silences.iter().filter(|((code, _), _)| code != "Unavailable") {
            let between = code == "Unknown" && text.starts_with(TORN_BETWEEN);
            if between || TORN.contains(&(code.as_str(), text.as_str())) {
                torn += *times;
            } else {
                wrong.push(format!("{times} attempts failed with {code}, which says nothing of trying again: {text}"));
            }
        }
        // A server cannot help it altogether, only make it rare.
        if torn > u64::try_from(history.leaderships.len()).unwrap_or(u64::MAX) {
            wrong.push(format!("{torn} attempts were torn off with their connection: nobody was told to try again"));
        }
    }
    let tempted = history.placements.keys().filter(|name| name.starts_with(TEMPTING));
    wrong.extend(tempted.map(|name| format!("{name} was placed, which only a deposed leader was asked for")));
    wrong
}

/// Everything, at random.
pub(super) fn mixed(run: &mut Run) -> anyhow::Result<()> {
    let mut nemesis = Nemesis::new(StdRng::seed_from_u64(run.random.random()));
    let end = Instant::now() + run.options.duration;
    let mut next = Instant::now();
    while Instant::now() < end {
        run.tend()?;
        for over in nemesis.mend(&mut run.cluster)? {
            run.say(over);
        }
        if Instant::now() >= next
            && let Some(began) = nemesis.begin(&mut run.cluster)?
        {
            run.say(began);
            next = Instant::now() + nemesis.pause();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for over in nemesis.mend_all(&mut run.cluster)? {
        run.say(over);
    }
    let (all, done) = (nemesis.done.values().sum::<u64>(), std::mem::take(&mut nemesis.done));
    run.figure(format!("{all} troubles: {done:?}"));
    Ok(())
}

/// kill -9 of the leader under load: how long until somebody is placed again.
pub(super) fn leader_kills(run: &mut Run) -> anyhow::Result<()> {
    let mut took = Vec::new();
    for round in 1..=run.options.rounds {
        run.cluster.wait_ready(PATIENCE)?;
        let old = run.cluster.wait_leader(0, PATIENCE)?;
        // In the midst of its work, at a moment that the seed names.
        let (before, _) = run.journal.counts();
        let more = run.random.random_range(5..40);
        run.wait("answers before the kill", PATIENCE, |run| run.journal.counts().0 >= before + more)?;
        let killed = Instant::now();
        run.cluster.controller(old.controller)?.kill()?;
        let new = run.cluster.wait_leader(old.term, PATIENCE)?;
        let elected = killed.elapsed();
        run.wait("a placement after the kill", PATIENCE, |run| {
            run.journal.placed_after(killed, new.created.0).is_some()
        })?;
        let placed = run.journal.placed_after(killed, new.created.0).context("it was there")?;
        let time = placed.told - killed;
        let (was, is) = (old.controller, new.controller);
        run.say(format_args!(
            "round {round}: killed controller {was}; controller {is} leads after {elected:.2?}, somebody is placed after {time:.2?}"
        ));
        took.push(time);
        run.cluster.start_controller(old.controller)?;
    }
    took.sort();
    let (median, worst) = (took.get(took.len() / 2).copied(), took.last().copied());
    let (median, worst) = (median.context("no round")?, worst.context("no round")?);
    let late = took.iter().filter(|time| **time > GOAL).count();
    run.figure(format!(
        "{} kills of the leader: next placement after {median:.2?} (median), {worst:.2?} (worst); {late} above {GOAL:?}",
        took.len()
    ));
    ensure!(worst <= BOUND, "a placement came only {worst:.1?} after a kill of the leader");
    Ok(())
}

/// A leader that sleeps through its lease writes nothing when it wakes.
pub(super) fn paused_leader(run: &mut Run) -> anyhow::Result<()> {
    for round in 1..=run.options.rounds {
        run.cluster.wait_ready(PATIENCE)?;
        let old = run.cluster.wait_leader(0, PATIENCE)?;
        let (before, _) = run.journal.counts();
        run.wait("answers before the pause", PATIENCE, |run| run.journal.counts().0 >= before + 10)?;
        run.cluster.controller(old.controller)?.pause()?;
        let paused = Instant::now();
        run.say(format_args!("round {round}: controller {} sleeps while it leads", old.controller));
        let new = run.cluster.wait_leader(old.term, PATIENCE)?;
        run.say(format_args!("controller {} leads after {:.1?}", new.controller, paused.elapsed()));
        run.wait("a placement by the new leader", PATIENCE, |run| {
            run.journal.placed_after(paused, new.created.0).is_some()
        })?;
        let placed = run.journal.placed_after(paused, new.created.0).context("it was there")?.told - paused;
        run.say(format_args!("somebody is placed after {placed:.1?}"));
        let (before, _) = run.journal.counts();
        run.wait("answers of the new leader", PATIENCE, |run| run.journal.counts().0 >= before + 10)?;
        // Its sockets take them, although it sleeps: there is something to do when it wakes.
        let tempting = tempt(run, old.controller, round)?;
        // Nobody else writes from here on: whatever is written then, is written by the one who wakes.
        let load = run.load.as_ref().context("the load is over")?;
        load.hold();
        run.wait("the last answers", PATIENCE, |run| run.journal.counts().1 == 0)?;
        run.say("every caller is answered");
        quiet(run, new.controller)?;
        run.say("nothing is under way; it wakes");
        let at = revision(run)?;
        ensure!(paused.elapsed() > LEASE, "it slept for {:?} only", paused.elapsed());
        run.cluster.controller(old.controller)?.wake();
        let woken = Instant::now();
        let status = run.cluster.controller(old.controller)?.ends(PATIENCE)?;
        let ended = woken.elapsed();
        ensure!(!status.success(), "a controller that lost its lead ended with {status}");
        let told = run.runtime.block_on(async { tokio::time::timeout(PATIENCE, tempting.join_all()).await });
        let told = told.context("callers wait for one that has ended")?;
        let lied = told.iter().filter(|told| told.is_ok()).count();
        ensure!(lied == 0, "{lied} callers were told yes by a leader whose time is over");
        let after = revision(run)?;
        ensure!(after == at, "revision {at} became {after} after controller {} woke", old.controller);
        let slept = woken - paused;
        run.figure(format!(
            "a leader slept {slept:.1?} (next placement after {placed:.1?}), was asked {TEMPTATIONS} times meanwhile, woke and \
             ended after {ended:.1?} ({status}): 0 revisions after {at}"
        ));
        run.cluster.start_controller(old.controller)?;
        run.load.as_ref().context("the load is over")?.go_on();
    }
    Ok(())
}

/// Asks a controller for placements, once each, without waiting for the answers.
fn tempt(run: &Run, controller: usize, round: u32) -> anyhow::Result<JoinSet<Result<(), tonic::Status>>> {
    let _in_runtime = run.runtime.enter();
    // It must not give up on a controller that is silent.
    let way = Endpoint::from_shared(run.cluster.direct(controller))?.connect_lazy();
    let mut tempting = JoinSet::new();
    for number in 0..TEMPTATIONS {
        let name = format!("{TEMPTING}{round}-{number}");
        let request = PlacementRequest {
            request_id: name.clone(),
            vm: name.clone(),
            name,
            gpus: 1,
            ..PlacementRequest::default()
        };
        let mut api = PlacementsClient::new(way.clone());
        let ask = CreatePlacementRequest { request: Some(request) };
        tempting.spawn_on(async move { api.create(ask).await.map(|_| ()) }, run.runtime.handle());
    }
    Ok(tempting)
}

fn revision(run: &Run) -> anyhow::Result<Revision> {
    let page = run.runtime.block_on(run.cluster.store.range("", None, None, 1));
    Ok(page.context("etcd does not say how far it is")?.revision)
}

/// Waits until no placement will change by itself any more, according to this controller, and etcd has stood still since:
/// what was done last is sealed in the audit a moment later.
fn quiet(run: &mut Run, controller: usize) -> anyhow::Result<()> {
    let endpoint = run.cluster.direct(controller);
    let runtime = run.runtime.handle().clone();
    let _in_runtime = runtime.enter();
    let caller = Caller::new(&endpoint, Duration::from_secs(5))?;
    let runtime = runtime.clone();
    run.wait("nothing is under way", PATIENCE, move |_| {
        let live = runtime.block_on(caller.live_placements());
        // Whatever has a deadline will change.
        live.is_ok_and(|live| live.iter().all(|placement| placement.deadline.is_none()))
    })?;
    let (mut last, mut since) = (revision(run)?, Instant::now());
    run.wait("etcd stands still", PATIENCE, move |run| {
        let now = revision(run).unwrap_or_default();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() >= STILL
    })
}

/// Restarts all controllers in order, while callers go on.
pub(super) fn rolling_restart(run: &mut Run) -> anyhow::Result<()> {
    for round in 1..=run.options.rounds {
        for number in 0..CONTROLLERS {
            let (before, _) = run.journal.counts();
            run.wait("answers before a restart", PATIENCE, |run| run.journal.counts().0 >= before + 20)?;
            let leads = run.cluster.wait_leader(0, PATIENCE)?.controller == number;
            let what = if leads { "leads" } else { "follows" };
            run.cluster.controller(number)?.stop()?;
            let ended = run.cluster.controller(number)?.stopped()?;
            run.cluster.start_controller(number)?;
            let begun = Instant::now();
            run.cluster.wait_ready(PATIENCE)?;
            let back = begun.elapsed();
            run.say(format_args!(
                "round {round}: controller {number}, which {what}, ended within {ended:.1?}; all is ready after {back:.1?}"
            ));
        }
    }
    let rounds = run.options.rounds;
    run.figure(format!("{rounds} rolling restarts of {CONTROLLERS} controllers"));
    Ok(())
}
