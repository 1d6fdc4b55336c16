//! What telemetry costs: the same placements with everything off, with everything on as it is meant, and with every single
//! call traced and every line of the log sent. Each has an etcd, a controller and agents of its own; rounds take turns.
//!
//! On means: traces, metrics and logs go to a collector in this process, and a scraper reads all metrics every second.

use super::controller::Controller;
use super::figures::{Spread, number, percentile_ms};
use super::fleet::Fleet;
use super::hosts::GPUS;
use super::load::Callers;
use super::report::{Goal, Report};
use super::store::{Compares, Store};
use super::stored;
use crate::otlp::Collector;
use anyhow::{Context as _, ensure};
use std::ops::Range;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const LEADS: Duration = Duration::from_secs(60);
/// Of the placements without telemetry.
const GOAL: f64 = 0.95;
/// As for a lone placement without it.
const LATENCY_GOAL: f64 = 1.5;
/// Between two scrapes: fifteen times as often as is usual.
const SCRAPE: Duration = Duration::from_secs(1);

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Hosts, each with eight GPUs and an agent.
    pub nodes: usize,
    /// Callers, each waiting for its answer.
    pub callers: usize,
    /// Rounds of each.
    pub rounds: usize,
    /// Most placements in a round.
    pub round: usize,
    /// Pairs of a lone placement and a bare transaction in a round.
    pub pairs: usize,
}

impl Options {
    /// The real one.
    pub const FULL: Self = Self { nodes: 1_000, callers: 64, rounds: 7, round: 3_000, pairs: 150 };
    /// Shows that it works.
    pub const SHORT: Self = Self { nodes: 20, callers: 8, rounds: 2, round: 60, pairs: 10 };
}

/// One way to run a controller.
struct Side {
    name: &'static str,
    store: Store,
    controller: Controller,
    _fleet: Fleet,
    callers: Callers,
    held: Vec<Range<usize>>,
    rates: Vec<f64>,
    lone: Vec<f64>,
    ratios: Vec<f64>,
    cpu: Vec<f64>,
}

impl Side {
    async fn start(name: &'static str, settings: &[String], options: Options) -> anyhow::Result<Self> {
        let store = Store::start().await?;
        stored::fill(&store.client, options.nodes, 0).await?;
        let controller = Controller::start_with(&store.endpoint(), settings).await?;
        controller.wait("the controller leads", LEADS, |status| status.leader).await?;
        let fleet = Fleet::ready(&controller, options.nodes).await?;
        let mut callers = Callers::connect(&controller, options.callers).await?;
        let held = vec![callers.create(options.round / 10).await?.made];
        let (rates, lone, ratios, cpu) = Default::default();
        Ok(Self { name, store, controller, _fleet: fleet, callers, held, rates, lone, ratios, cpu })
    }

    async fn round(&mut self, options: Options) -> anyhow::Result<()> {
        let room = options.nodes * GPUS;
        if self.held.iter().map(Range::len).sum::<usize>() + options.round + options.pairs > room * 9 / 10 {
            for made in self.held.drain(..) {
                self.callers.release(made).await?;
            }
        }
        let before = self.controller.usage()?;
        let made = self.callers.create(options.round).await?;
        let placements = number(u64::try_from(options.round)?);
        self.cpu.push((self.controller.usage()?.cpu_seconds - before.cpu_seconds) / placements * 1e6);
        self.rates.push(placements / made.took.as_secs_f64());
        self.held.push(made.made);

        let first = self.callers.create(1).await?.made;
        let last = self.callers.create_one().await?;
        let shape = self.store.shape(last).await?;
        let (mut placed, mut bare) = (Vec::new(), Vec::new());
        let mut end = first.end + 1;
        for pair in 0..options.pairs {
            for turn in 0..2 {
                let begun = Instant::now();
                if pair % 2 == turn {
                    self.callers.create_one().await?;
                    placed.push(begun.elapsed());
                    end += 1;
                } else {
                    self.store.bare(&shape, Compares::One).await?;
                    bare.push(begun.elapsed());
                }
            }
        }
        self.held.push(first.start..end);
        let (placed, bare) = (percentile_ms(&mut placed, 50), percentile_ms(&mut bare, 50));
        self.lone.push(placed);
        self.ratios.push(placed / bare);
        Ok(())
    }
}

/// Measures.
///
/// # Errors
/// When anything does not start, a placement is refused, or nothing comes to the collector.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    ensure!(options.round + options.pairs < options.nodes * GPUS / 2, "the fleet is too small");
    let collector = tokio::task::spawn_blocking(Collector::start).await??;
    let on = format!("telemetry.endpoint={}", collector.endpoint());
    let off = ["telemetry.prometheus=false".to_owned()];
    let all = ["traces_per_second", "lines_per_second"].map(|what| format!("telemetry.{what}=1000000"));
    let every = [std::slice::from_ref(&on), &all].concat();
    let mut sides = vec![
        Side::start("off", &off, options).await?,
        Side::start("on", std::slice::from_ref(&on), options).await?,
        Side::start("on, every call and line", &every, options).await?,
    ];
    let scraped: Vec<_> = sides.iter().skip(1).map(|side| side.controller.endpoint.clone()).collect();
    let mut scraper = JoinSet::new();
    scraper.spawn(async move {
        loop {
            for endpoint in scraped.clone() {
                // What is scraped is looked at by tests; here it only costs.
                let _page = tokio::task::spawn_blocking(move || crate::http::get(&endpoint, "/metrics")).await;
            }
            tokio::time::sleep(SCRAPE).await;
        }
    });
    for round in 0..options.rounds {
        for turn in 0..sides.len() {
            // Nobody always goes first.
            let at = (round + turn) % sides.len();
            sides.get_mut(at).context("no side")?.round(options).await?;
        }
    }
    scraper.shutdown().await;
    ensure!(!collector.received().spans.is_empty(), "no span came to the collector");

    let version = sides.first().map(|side| side.store.version.clone()).unwrap_or_default();
    let mut report = Report::new("telemetry", &version);
    report.note(format!(
        "{} nodes x {GPUS} GPUs; {} rounds of {} placements by {} callers, then {} lone ones, each side in turn",
        options.nodes, options.rounds, options.round, options.callers, options.pairs
    ));
    report.note("on: OTLP to a collector in the callers' process, and a scrape of all metrics each second");
    let off = sides.first().map(|side| (side.rates.clone(), side.lone.clone())).unwrap_or_default();
    for side in &sides {
        let of = |what: &str| format!("{}: {what}", side.name);
        report.row(of("durable placements"), Spread::of(side.rates.clone()), "/s");
        report.row(of("processor time a placement, controller"), Spread::of(side.cpu.clone()), "us");
        report.row(of("a lone placement, p50"), Spread::of(side.lone.clone()), "ms");
        report.judged(
            of("  against a bare transaction"),
            Spread::of(side.ratios.clone()),
            "x",
            Goal::AtMost(LATENCY_GOAL),
        );
    }
    for side in sides.iter().skip(1) {
        let shares = side.rates.iter().zip(&off.0).map(|(on, off)| on / off);
        let what = format!("{}: placements, of those with it off", side.name);
        report.judged(what, Spread::of(shares.collect::<Vec<_>>()), "x", Goal::AtLeast(GOAL));
        let longer = side.lone.iter().zip(&off.1).map(|(on, off)| on / off);
        let what = format!("{}: a lone placement takes, of one with it off", side.name);
        report.row(what, Spread::of(longer.collect::<Vec<_>>()), "x");
    }
    Ok(report)
}
