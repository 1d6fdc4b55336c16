//! Many callers at once: durable placements a second, beside what the same etcd takes bare, and where the processors' time
//! goes.
//!
//! Rounds of placements and of bare transactions take turns. A round's placements fit into the fleet; where the next
//! would not, they are given back in between, which is not measured.

use super::controller::Controller;
use super::figures::{self, Spread, Usage, number, percentile_ms};
use super::fleet::Fleet;
use super::hosts::GPUS;
use super::load::Callers;
use super::report::{Goal, Report};
use super::store::{Compares, Store};
use super::stored;
use anyhow::ensure;
use std::time::Duration;

const LEADS: Duration = Duration::from_secs(60);
const GOAL: f64 = 5_000.0;
/// Transactions that the controller has in flight (`controller/src/commit.rs`); bare ones are measured with as many.
const IN_FLIGHT: usize = 4;

/// How much of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Fleets by their number of hosts.
    pub nodes: Vec<usize>,
    /// Callers, each waiting for its answer.
    pub callers: usize,
    /// Rounds.
    pub rounds: usize,
    /// Most placements in a round; where the fleet is small, three quarters of its GPUs.
    pub round: usize,
    /// How long each kind of bare transactions is measured in a round.
    pub bare: Duration,
}

impl Options {
    /// The real one.
    #[must_use]
    pub fn full() -> Self {
        Self { nodes: vec![1_000, 10_000], callers: 64, rounds: 5, round: 12_000, bare: Duration::from_secs(2) }
    }

    /// Shows that it works.
    #[must_use]
    pub fn short() -> Self {
        Self { nodes: vec![20], callers: 8, rounds: 2, round: 1_000, bare: Duration::from_millis(200) }
    }
}

/// Measures.
///
/// # Errors
/// When anything does not start, or a placement is refused.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let mut report = None;
    for nodes in &options.nodes {
        of_fleet(*nodes, &options, &mut report).await?;
    }
    report.ok_or_else(|| anyhow::anyhow!("no fleet is named"))
}

/// What each process has used.
struct Used {
    controller: Usage,
    etcd: Usage,
    callers: Usage,
    agents: Usage,
}

impl Used {
    fn now(controller: &Controller, store: &Store, fleet: &Fleet) -> anyhow::Result<Self> {
        Ok(Self {
            controller: controller.usage()?,
            etcd: store.usage()?,
            callers: figures::usage(std::process::id())?,
            agents: fleet.usage()?,
        })
    }

    /// Processor time since `before`, in microseconds a piece: controller, etcd, callers, agents, and the first two.
    fn since(&self, before: &Self, pieces: f64) -> [f64; 5] {
        let each = |now: Usage, before: Usage| (now.cpu_seconds - before.cpu_seconds) / pieces * 1e6;
        let (controller, etcd) = (each(self.controller, before.controller), each(self.etcd, before.etcd));
        let (callers, agents) = (each(self.callers, before.callers), each(self.agents, before.agents));
        [controller, etcd, callers, agents, controller + etcd]
    }
}

async fn of_fleet(nodes: usize, options: &Options, report: &mut Option<Report>) -> anyhow::Result<()> {
    let Options { callers: count, rounds, round, bare, nodes: _ } = options;
    let room = nodes * GPUS;
    let round = (*round).min(room * 3 / 4);
    ensure!(round > 0 && *rounds > 0, "there is nothing to measure");
    let store = Store::start().await?;
    stored::fill(&store.client, nodes, 0).await?;
    let controller = Controller::start(&store.endpoint()).await?;
    controller.wait("the controller leads", LEADS, |status| status.leader).await?;
    let fleet = Fleet::ready(&controller, nodes).await?;
    let mut callers = Callers::connect(&controller, *count).await?;
    let shape = store.shape(callers.create_one().await?).await?;
    // Warm: every connection was used, and memory is there.
    let mut held = vec![callers.create(round / 10).await?.made];

    let report = report.get_or_insert_with(|| {
        let mut report = Report::new("throughput", &store.version);
        report.note(format!("{count} callers with a connection each, one question at a time; 1 GPU a placement, held"));
        report.note(format!("one placement writes {} keys, {} bytes with their keys", shape.puts(), shape.bytes()));
        report.note(format!("bare etcd: the controller's client, {IN_FLIGHT} transactions in flight"));
        report.note("agents: simulated sessions over connections of their own, all in one process");
        report
    });
    report.note(format!("{nodes} nodes x {GPUS} GPUs: {rounds} rounds of {round} placements"));
    let mut figures = [const { Vec::new() }; 14];
    for _ in 0..*rounds {
        if held.iter().map(std::ops::Range::len).sum::<usize>() + round > room * 9 / 10 {
            for made in held.drain(..) {
                callers.release(made).await?;
            }
        }
        let (used, revision) = (Used::now(&controller, &store, &fleet)?, store.revision().await?);
        let mut made = callers.create(round).await?;
        let (used_then, revision_then) = (Used::now(&controller, &store, &fleet)?, store.revision().await?);
        held.push(made.made);
        let transactions = usize::try_from(revision_then.0.saturating_sub(revision.0).max(1))?;
        let placements = number(u64::try_from(round)?);
        let [controller_us, etcd_us, callers_us, agents_us, both_us] = used_then.since(&used, placements);
        let rate = placements / made.took.as_secs_f64();

        // The same again, bare: as many placements in each transaction, to the nearest whole one.
        let group = (round + transactions / 2) / transactions;
        let grouped = number(u64::try_from(group.max(1))?);
        let same = shape.times(group.max(1));
        let etcd = store.usage()?;
        let bare_rate = store.rate(&same, Compares::Each, IN_FLIGHT, *bare).await?;
        let bare_placements = bare_rate * grouped;
        let bare_us = (store.usage()?.cpu_seconds - etcd.cpu_seconds) / (bare_placements * bare.as_secs_f64()) * 1e6;
        let single_rate = store.rate(&shape.single(), Compares::One, IN_FLIGHT, *bare).await?;
        let round = [
            rate,
            percentile_ms(&mut made.times, 50),
            percentile_ms(&mut made.times, 99),
            placements / number(u64::try_from(transactions)?),
            bare_placements,
            rate / bare_placements,
            bare_rate,
            single_rate,
            controller_us,
            etcd_us,
            both_us,
            bare_us,
            callers_us,
            agents_us,
        ];
        for (all, figure) in figures.iter_mut().zip(round) {
            all.push(figure);
        }
    }
    let memory = controller.usage()?;
    let [rate, p50, p99, grouped, bare_placements, share, bare_rate, single_rate, rest @ ..] = figures.map(Spread::of);
    let [controller_us, etcd_us, both_us, bare_us, callers_us, agents_us] = rest;
    let of = |what: &str| format!("{nodes} nodes: {what}");
    report.judged(of("durable placements"), rate, "/s", Goal::AtLeast(GOAL));
    report.row(of("a caller waits, p50"), p50, "ms");
    report.row(of("a caller waits, p99"), p99, "ms");
    report.row(of("placements in one transaction"), grouped, "");
    report.row(of("bare etcd, the same transactions"), bare_rate, "/s");
    report.row(of("  that many placements"), bare_placements, "/s");
    report.row(of("  Berth reaches of them"), share, "x");
    report.row(of("bare etcd, one put"), single_rate, "/s");
    report.row(of("processor time a placement, controller"), controller_us, "us");
    report.row(of("processor time a placement, etcd"), etcd_us, "us");
    report.row(of("  both"), both_us, "us");
    report.row(of("  bare etcd, the same transactions"), bare_us, "us");
    report.row(of("processor time a placement, callers"), callers_us, "us");
    report.row(of("processor time a placement, agents"), agents_us, "us");
    report.row(of("controller, memory"), Spread::of([memory.rss_mib]), "MiB");
    Ok(())
}
