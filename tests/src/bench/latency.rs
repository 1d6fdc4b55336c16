//! One client, one placement, durable: how long it takes, beside one bare etcd transaction that writes the same.
//!
//! The two take turns, so that whatever else the machine does hits both. Beside them, what one more hop costs at least on this
//! machine: a call to the controller that asks for next to nothing.

use super::controller::Controller;
use super::figures::{Spread, number, percentile_ms};
use super::fleet::Fleet;
use super::load::Callers;
use super::report::{Goal, Report};
use super::store::{Compares, Store};
use super::stored;
use anyhow::ensure;
use std::time::{Duration, Instant};

/// Placements before anything is measured: connections open, caches fill.
const WARM_UP: usize = 100;
/// Of the pairs of a block, this part of calls that ask for nothing.
const EMPTY_PART: usize = 3;
/// How long a controller may take to lead a fleet that nobody led before.
const LEADS: Duration = Duration::from_secs(60);
const GOAL: f64 = 1.5;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Hosts, each with eight GPUs and an agent.
    pub nodes: usize,
    /// Blocks; each gives one median and one 99th percentile.
    pub blocks: usize,
    /// Pairs of a placement and a bare transaction in a block.
    pub pairs: usize,
}

impl Options {
    /// The real one.
    pub const FULL: Self = Self { nodes: 1_000, blocks: 10, pairs: 300 };
    /// Shows that it works.
    pub const SHORT: Self = Self { nodes: 20, blocks: 2, pairs: 20 };
}

/// Measures.
///
/// # Errors
/// When anything does not start, or a placement is refused.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let Options { nodes, blocks, pairs } = options;
    let placements = WARM_UP.min(pairs) + blocks * pairs;
    ensure!(placements <= nodes * super::hosts::GPUS, "{nodes} hosts have fewer than {placements} GPUs");
    let store = Store::start().await?;
    stored::fill(&store.client, nodes, 0).await?;
    let controller = Controller::start(&store.endpoint()).await?;
    controller.wait("the controller leads", LEADS, |status| status.leader).await?;
    let _fleet = Fleet::ready(&controller, nodes).await?;
    let mut callers = Callers::connect(&controller, 1).await?;
    let mut last = store.revision().await?;
    for _ in 0..WARM_UP.min(pairs) {
        last = callers.create_one().await?;
    }
    let shape = store.shape(last).await?;

    let mut report = Report::new("latency", &store.version);
    report.note(format!("one caller, {nodes} nodes connected; {blocks} blocks of {pairs} pairs, in turn"));
    report.note(format!(
        "a placement's transaction has {} puts of {} bytes in all; the bare one the same, and one compare",
        shape.puts(),
        shape.bytes()
    ));
    let mut figures = [const { Vec::new() }; 8];
    let (mut cpu_seconds, begun) = (0.0, Instant::now());
    for _ in 0..blocks {
        let before = controller.usage()?.cpu_seconds;
        let (mut placed, mut bare) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            for turn in 0..2 {
                let begun = Instant::now();
                // Neither always goes first.
                if pair % 2 == turn {
                    callers.create_one().await?;
                    placed.push(begun.elapsed());
                } else {
                    store.bare(&shape, Compares::One).await?;
                    bare.push(begun.elapsed());
                }
            }
        }
        cpu_seconds += controller.usage()?.cpu_seconds - before;
        // After a transaction, too, so that they find the machine as placements do: half asleep, its caches full of etcd.
        let mut empty = Vec::new();
        for _ in 0..pairs.div_ceil(EMPTY_PART) {
            store.bare(&shape, Compares::One).await?;
            let begun = Instant::now();
            callers.ask_for_nothing().await?;
            empty.push(begun.elapsed());
        }
        let empty_50 = percentile_ms(&mut empty, 50);
        let of = |times: &mut [Duration]| [percentile_ms(times, 50), percentile_ms(times, 99)];
        let ([placed_50, placed_99], [bare_50, bare_99]) = (of(&mut placed), of(&mut bare));
        let least = (bare_50 + empty_50) / bare_50;
        let block = [placed_50, placed_99, bare_50, bare_99, placed_50 / bare_50, placed_99 / bare_99, empty_50, least];
        for (all, figure) in figures.iter_mut().zip(block) {
            all.push(figure);
        }
    }
    let cpu = cpu_seconds / number(u64::try_from(blocks * pairs)?) * 1e6;
    report.note(format!("it took {:.1} s", begun.elapsed().as_secs_f64()));
    let [placed_50, placed_99, bare_50, bare_99, ratio_50, ratio_99, empty_50, least] = figures.map(Spread::of);
    report.row("placement, p50", placed_50, "ms");
    report.row("placement, p99", placed_99, "ms");
    report.row("bare transaction, p50", bare_50, "ms");
    report.row("bare transaction, p99", bare_99, "ms");
    report.row("empty call to the controller, p50", empty_50, "ms");
    report.row("least ratio: transaction and empty call, p50", least, "x");
    report.judged("ratio at p50", ratio_50, "x", Goal::AtMost(GOAL));
    report.judged("ratio at p99", ratio_99, "x", Goal::AtMost(GOAL));
    report.row("controller, processor time a placement", Spread::of([cpu]), "us");
    Ok(report)
}
