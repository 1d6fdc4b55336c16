//! From winning the election to leading, over a fleet that is there already: by a controller that starts cold, and by one
//! that followed until its leader was killed.
//!
//! The election is won at the moment when etcd's watch shows the new leader's key, and led from the moment when the
//! controller says so to whoever asks: then it decides.

use super::controller::Controller;
use super::figures::{Spread, Usage};
use super::report::{Goal, Report};
use super::store::Store;
use super::stored;
use anyhow::{Context as _, bail, ensure};
use berth_store::{Event, Revision, Store as _, key};
use futures::StreamExt as _;
use std::time::{Duration, Instant};

/// Longest time until somebody leads again: a lease, and loading in a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at the leader's key.
const ASK: Duration = Duration::from_millis(50);
const GOAL_SECONDS: f64 = 3.0;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Hosts, each with eight GPUs.
    pub nodes: usize,
    /// Active placements on them.
    pub placements: usize,
    /// How often each kind of take-over is repeated.
    pub repeat: usize,
}

impl Options {
    /// The real one.
    pub const FULL: Self = Self { nodes: 10_000, placements: 40_000, repeat: 5 };
    /// Shows that it works.
    pub const SHORT: Self = Self { nodes: 20, placements: 80, repeat: 1 };
}

/// One take-over.
struct Taken {
    /// From the election to leading, in seconds.
    leads: f64,
    /// From the event that made it necessary to leading, in seconds.
    whole: f64,
    usage: Usage,
}

/// Measures.
///
/// # Errors
/// When anything does not start, or nobody leads in time.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let Options { nodes, placements, repeat } = options;
    let store = Store::start().await?;
    stored::fill(&store.client, nodes, placements).await?;
    let mut report = Report::new("takeover", &store.version);
    report.note(format!("{nodes} nodes, {placements} active placements; no agents connected; {repeat} times each"));

    let (mut cold, mut followed) = (Vec::new(), Vec::new());
    for _ in 0..repeat {
        nobody_leads(&store).await?;
        let after = store.revision().await?;
        let begun = Instant::now();
        let controller = Controller::start(&store.endpoint()).await?;
        cold.push(taken_over(&store, after, &controller, begun, options).await?);
        controller.kill()?;
    }
    let mut leader = Controller::start(&store.endpoint()).await?;
    leader.wait("the first leads", PATIENCE, |status| status.leader).await?;
    for _ in 0..repeat {
        let follower = Controller::start(&store.endpoint()).await?;
        let wanted = u32::try_from(placements)?;
        let follows = |status: &berth_proto::v1::StatusResponse| status.placements_live >= wanted && status.term > 0;
        follower.wait("the second follows", PATIENCE, follows).await?;
        let after = store.revision().await?;
        let killed = Instant::now();
        leader.kill()?;
        followed.push(taken_over(&store, after, &follower, killed, options).await?);
        leader = follower;
    }
    for (what, taken) in [("cold start", cold), ("follower", followed)] {
        let of = |figure: fn(&Taken) -> f64| Spread::of(taken.iter().map(figure));
        let whole = if what == "follower" { "from the kill to leading" } else { "from its start to leading" };
        report.judged(format!("{what}: from election to leading"), of(|t| t.leads), "s", Goal::AtMost(GOAL_SECONDS));
        report.row(format!("{what}: {whole}"), of(|t| t.whole), "s");
        report.row(format!("{what}: memory then"), of(|t| t.usage.rss_mib), "MiB");
        report.row(format!("{what}: most memory until then"), of(|t| t.usage.peak_mib), "MiB");
    }
    Ok(report)
}

/// Waits until a controller has won and leads.
async fn taken_over(
    store: &Store,
    after: Revision,
    controller: &Controller,
    begun: Instant,
    options: Options,
) -> anyhow::Result<Taken> {
    let leads = async {
        let status = controller.wait("it leads", PATIENCE, |status| status.leader).await?;
        anyhow::Ok((Instant::now(), status))
    };
    let (won, leads) = tokio::join!(elected(store, after), leads);
    let (won, (leads, status)) = (won?, leads?);
    let known = (status.nodes, status.placements_live);
    let stored = (u32::try_from(options.nodes)?, u32::try_from(options.placements)?);
    ensure!(known == stored, "it leads and knows {known:?} nodes and placements of {stored:?}");
    ensure!(status.violations.is_empty(), "it leads a world that is broken: {:?}", status.violations);
    Ok(Taken {
        leads: leads.saturating_duration_since(won).as_secs_f64(),
        whole: leads.saturating_duration_since(begun).as_secs_f64(),
        usage: controller.usage()?,
    })
}

/// Waits until the last leader's lease has run out.
async fn nobody_leads(store: &Store) -> anyhow::Result<()> {
    let begun = Instant::now();
    while store.client.get(key::LEADER).await?.is_some() {
        ensure!(begun.elapsed() < PATIENCE, "the lease of a dead leader does not run out");
        tokio::time::sleep(ASK).await;
    }
    Ok(())
}

/// Waits until the leader's key is written after a revision.
async fn elected(store: &Store, after: Revision) -> anyhow::Result<Instant> {
    let mut changes = store.client.watch(key::LEADER, Revision(after.0 + 1)).await?;
    let watching = async {
        while let Some(events) = changes.next().await {
            if events?.iter().any(|event| matches!(event, Event::Put(item) if item.key == key::LEADER)) {
                return Ok(Instant::now());
            }
        }
        bail!("etcd's watch ended")
    };
    tokio::time::timeout(PATIENCE, watching).await.context("nobody is elected")?
}
