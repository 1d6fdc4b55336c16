//! The fleet in figures: one walk through a snapshot, at most once a second, for all gauges together.

use super::number;
use crate::checked::SharedCheck;
use crate::last_seen::LastSeen;
use crate::replica::Replica;
use crate::standing::Board;
use berth_core::condition::{LOST_AFTER, conditions};
use berth_core::drift;
use berth_core::schedule::capacity;
use berth_core::world::{Link, Node, View, World};
use berth_model::drift::Kind;
use berth_model::gpu::GpuState;
use berth_model::placement::{Drift, Phase, Placement};
use berth_model::{NodeName, Timestamp};
use berth_telemetry::KeyValue;
use berth_telemetry::metrics::fleet as names;
use berth_telemetry::metrics::instruments::observe;
use berth_telemetry::metrics::{MAX_CLUSTERS, MAX_MODELS, Metric, NO_CLUSTER, OTHER};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long figures are good for: a scrape reads twenty metrics one after the other, and several collectors may ask.
const FRESH: Duration = Duration::from_secs(1);
/// Time after which a phase should have ended by itself: the leader looks once a second, and does much at a time.
const GRACE: Duration = Duration::from_secs(5);

/// The value of a series, by the values of its labels.
type Series = BTreeMap<Vec<String>, f64>;

/// Most labels of one metric of the fleet.
const LABELS: usize = 4;

/// Figures being counted. Tens of thousands are added up once a second, so that no label is copied before the end.
#[derive(Default)]
struct Counting<'a>(BTreeMap<&'static str, BTreeMap<[&'a str; LABELS], f64>>);

impl<'a> Counting<'a> {
    fn slot(&mut self, metric: &Metric, labels: &[&'a str]) -> &mut f64 {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let mut key = [""; LABELS];
        for (slot, label) in key.iter_mut().zip(labels) {
            *slot = label;
        }
        self.0.entry(metric.name).or_default().entry(key).or_insert(0.0)
    }

    fn add(&mut self, metric: &Metric, labels: &[&'a str], value: f64) {
        *self.slot(metric, labels) += value;
    }

    fn most(&mut self, metric: &Metric, labels: &[&'a str], value: f64) {
        let slot = self.slot(metric, labels);
        *slot = slot.max(value);
    }

    fn done(self) -> Figures {
        let labels_of =
            |name: &str| names::CHAPTER.metrics.iter().find(|it| it.name == name).map_or(0, |it| it.labels.len());
        let owned = |(name, series): (&'static str, BTreeMap<[&str; LABELS], f64>)| {
            let labels = labels_of(name);
            let owned = |(key, value): ([&str; LABELS], f64)| {
                (key.into_iter().take(labels).map(str::to_owned).collect(), value)
            };
            (name, series.into_iter().map(owned).collect())
        };
        Figures(self.0.into_iter().map(owned).collect())
    }
}

/// All figures of one moment.
#[derive(Debug, Default)]
pub(super) struct Figures(BTreeMap<&'static str, Series>);

#[cfg(test)]
impl Figures {
    /// One series.
    fn get(&self, metric: &Metric, labels: &[&str]) -> Option<f64> {
        self.0.get(metric.name)?.get(&labels.iter().map(|&label| label.to_owned()).collect::<Vec<_>>()).copied()
    }
}

/// Names of a label that are told apart; the rest is told as one.
struct Known(BTreeSet<String>);

impl Known {
    fn new(names: impl Iterator<Item = String>, most: usize) -> Self {
        Self(names.collect::<BTreeSet<_>>().into_iter().take(most).collect())
    }

    fn label<'a>(&self, name: &'a str) -> &'a str {
        if self.0.contains(name) { name } else { OTHER }
    }
}

/// The state of a node, each by the worst that is true of it.
fn node_state(node: &Node, now: Timestamp) -> &'static str {
    match (&node.link, &node.view) {
        (Link::Disconnected { since }, _) if now.since(*since) >= LOST_AFTER => "Lost",
        (Link::Disconnected { .. }, _) => "Disconnected",
        (Link::Connected { .. }, View::Stranger { .. }) => "Stranger",
        (Link::Connected { .. }, View::Failed { .. }) => "SurveyFailed",
        (Link::Connected { .. }, View::NotReported) | (Link::Unheard { .. }, _) => "NotReported",
        (Link::Connected { .. }, View::Complete) if !node.cordons.is_empty() => "Cordoned",
        (Link::Connected { .. }, View::Complete) => "Ready",
    }
}

fn drift_kind(drift: &Drift) -> &'static str {
    match drift {
        Drift::VmGone => "VmGone",
        Drift::VmClustered => "VmClustered",
        Drift::NotAttached { .. } => "NotAttached",
        Drift::InOtherVm { .. } => "InOtherVm",
        Drift::WrongCard { .. } => "WrongCard",
    }
}

/// GPUs of one VM, as a label.
fn size(gpus: u32) -> &'static str {
    match gpus {
        1 => "1",
        2 => "2",
        4 => "4",
        8 => "8",
        16 => "16",
        _ => OTHER,
    }
}

/// Counts everything. `violations` were found by the last check.
pub(super) fn figures(
    world: &World,
    now: Timestamp,
    last_seen: &dyn Fn(&NodeName) -> Option<Timestamp>,
    violations: usize,
) -> Figures {
    let capacity = capacity(world);
    let mut figures = Counting::default();
    let models = Known::new(capacity.iter().map(|model| model.model.to_string()), MAX_MODELS);
    let clusters = Known::new(world.nodes().filter_map(|node| Some(node.cluster()?.to_string())), MAX_CLUSTERS);
    for model in &capacity {
        let name = models.label(model.model.as_str());
        for (reason, count) in &model.unavailable {
            figures.add(&names::GPUS_UNAVAILABLE, &[name, reason], f64::from(*count));
        }
        for slots in &model.slots {
            let size = size(slots.gpus);
            figures.add(&names::SLOTS, &[name, size], f64::from(slots.vms));
            if slots.gpus > 1 && model.available > 0 && name != OTHER {
                let used = f64::from(slots.vms) * f64::from(slots.gpus) / f64::from(model.available);
                figures.add(&names::FRAGMENTATION, &[name, size], (1.0 - used).max(0.0));
            }
        }
    }
    for node in world.nodes() {
        count_node(&mut figures, node, now, last_seen, (&models, &clusters));
    }
    // Shown while nothing is wrong, too: an alert on what is absent never fires.
    for phase in Phase::NAMES.into_iter().filter(|phase| *phase != "Requested") {
        figures.add(&names::PLACEMENTS, &[phase], 0.0);
        if !matches!(phase, "Released" | "Failed") {
            figures.add(&names::PLACEMENTS_OLDEST, &[phase], 0.0);
        }
        if !matches!(phase, "Active" | "Released" | "Failed") {
            figures.add(&names::PLACEMENTS_OVERDUE, &[phase], 0.0);
        }
    }
    figures.add(&names::PLACEMENTS_OLDEST, &["Undoing"], 0.0);
    for condition in ["NodeLost", "Drifted", "Stuck"] {
        figures.add(&names::PLACEMENTS_CONDITIONS, &[condition], 0.0);
    }
    for drift in ["VmGone", "VmClustered", "NotAttached", "InOtherVm", "WrongCard"] {
        figures.add(&names::DRIFT, &[drift], 0.0);
    }
    for kind in Kind::ALL {
        figures.add(&names::DIFFERENCES, &[kind.name()], 0.0);
    }
    let on_purpose = drift::left_on_purpose(world);
    for found in world.nodes().flat_map(|node| drift::of_node(world, node, &on_purpose)) {
        figures.add(&names::DIFFERENCES, &[found.kind.name()], 1.0);
    }
    for placement in world.placements() {
        count_placement(&mut figures, world, placement, now);
    }
    figures.add(&names::QUEUE_DEPTH, &[], number(u64::try_from(world.queued()).unwrap_or(u64::MAX)));
    figures.add(&names::VIOLATIONS, &[], number(u64::try_from(violations).unwrap_or(u64::MAX)));
    figures.done()
}

fn count_node<'a>(
    figures: &mut Counting<'a>,
    node: &'a Node,
    now: Timestamp,
    last_seen: &dyn Fn(&NodeName) -> Option<Timestamp>,
    (models, clusters): (&Known, &Known),
) {
    let cluster = node.cluster().map_or(NO_CLUSTER, |cluster| clusters.label(cluster.as_str()));
    let state = node_state(node, now);
    figures.add(&names::NODES, &[cluster, state], 1.0);
    // Shown while it is nought, too: what another reader of these metrics was told last lingers for one scrape otherwise.
    let holds = state == "Lost" && node.gpus.values().any(|gpu| gpu.claim.is_some());
    figures.add(&names::NODES_LOST_HOLDING, &[cluster], if holds { 1.0 } else { 0.0 });
    figures.add(&names::AGENTS_CONNECTED, &[], 0.0);
    figures.add(&names::AGENTS_OLDEST, &[], 0.0);
    if matches!(node.link, Link::Connected { .. }) {
        figures.add(&names::AGENTS_CONNECTED, &[], 1.0);
        let silence = last_seen(&node.name).map_or(0.0, |at| now.since(at).as_secs_f64());
        figures.most(&names::AGENTS_OLDEST, &[], silence);
    }
    for gpu in node.gpus.values() {
        let model = models.label(gpu.model().as_str());
        let state = match &gpu.observed.state {
            state @ (GpuState::Host { .. }
            | GpuState::Pooled
            | GpuState::Attached { .. }
            | GpuState::Stale { .. }
            | GpuState::Missing
            | GpuState::Unknown) => state.name(),
        };
        figures.add(&names::GPUS, &[model, cluster, state, gpu.observed.health.name()], 1.0);
        let available = if node.is_available(gpu) { 1.0 } else { 0.0 };
        figures.add(&names::GPUS_AVAILABLE, &[model, cluster], available);
        let held = if gpu.claim.is_some() { 1.0 } else { 0.0 };
        figures.add(&names::GPUS_HELD, &[model, cluster], held);
    }
}

fn count_placement(figures: &mut Counting<'_>, world: &World, placement: &Placement, now: Timestamp) {
    let phase = placement.phase.name();
    figures.add(&names::PLACEMENTS, &[phase], 1.0);
    let age = now.since(placement.phase_since).as_secs_f64();
    match &placement.phase {
        Phase::Released | Phase::Failed { undone: true, .. } => return,
        Phase::Failed { undone: false, .. } => figures.most(&names::PLACEMENTS_OLDEST, &["Undoing"], age),
        Phase::Requested
        | Phase::Queued { .. }
        | Phase::Held { .. }
        | Phase::Preparing { .. }
        | Phase::Attaching { .. }
        | Phase::Starting { .. }
        | Phase::Verifying { .. }
        | Phase::Active
        | Phase::Releasing { .. } => figures.most(&names::PLACEMENTS_OLDEST, &[phase], age),
    }
    if placement.phase.deadline().is_some_and(|at| at.after(GRACE) < now) {
        figures.add(&names::PLACEMENTS_OVERDUE, &[phase], 1.0);
    }
    for condition in conditions(world, placement, now) {
        figures.add(&names::PLACEMENTS_CONDITIONS, &[condition.name()], 1.0);
    }
    if let Some((_, drift)) = world.live(placement.name()).and_then(|live| live.drift.as_ref()) {
        figures.add(&names::DRIFT, &[drift_kind(drift)], 1.0);
    }
}

/// The last figures, and what adds up from one to the next.
struct Cache {
    replica: Replica,
    board: Board,
    seen: Arc<dyn LastSeen>,
    checked: SharedCheck,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    figures: Option<(Instant, Arc<Figures>)>,
    /// GPU seconds, by model and cluster.
    held: Series,
}

impl Cache {
    /// Figures that are fresh enough where a scrape begins, and the same again as it goes on, so that all of it is of one
    /// moment; none in a controller that does not lead.
    fn figures(&self, begins: bool) -> Option<(Arc<Figures>, Series)> {
        // Whoever comes while they are computed waits for them. Nothing is left half done under this lock.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.board.leads() {
            // What was held while another one led is that one's to tell.
            kept.figures = None;
            return None;
        }
        if let Some((_, figures)) = kept.figures.as_ref().filter(|(at, _)| !begins || at.elapsed() < FRESH) {
            return Some((Arc::clone(figures), kept.held.clone()));
        }
        let snapshot = self.replica.now();
        let violations = self.checked.load().violations.len();
        let seen = |node: &NodeName| self.seen.last_seen(node);
        let figures = figures(&snapshot.world, crate::clock::now(), &seen, violations);
        let (at, figures) = (Instant::now(), Arc::new(figures));
        let now_held = figures.0.get(names::GPUS_HELD.name).cloned().unwrap_or_default();
        let (since, was_held) = match &kept.figures {
            Some((since, before)) => (at - *since, before.0.get(names::GPUS_HELD.name).cloned().unwrap_or_default()),
            None => (Duration::ZERO, Series::new()),
        };
        for labels in now_held.into_keys() {
            let held = was_held.get(&labels).copied().unwrap_or(0.0);
            *kept.held.entry(labels).or_insert(0.0) += held * since.as_secs_f64();
        }
        kept.figures = Some((at, Arc::clone(&figures)));
        Some((figures, kept.held.clone()))
    }
}

/// Has the fleet's figures read whenever somebody asks.
pub(super) fn register(replica: Replica, board: Board, seen: Arc<dyn LastSeen>, checked: SharedCheck) {
    let cache = Arc::new(Cache { replica, board, seen, checked, kept: Mutex::default() });
    let metrics = [
        &names::GPUS,
        &names::GPUS_AVAILABLE,
        &names::GPUS_UNAVAILABLE,
        &names::GPUS_HELD,
        &names::GPU_HELD_TIME,
        &names::SLOTS,
        &names::FRAGMENTATION,
        &names::PLACEMENTS,
        &names::PLACEMENTS_OLDEST,
        &names::PLACEMENTS_OVERDUE,
        &names::PLACEMENTS_CONDITIONS,
        &names::DRIFT,
        &names::DIFFERENCES,
        &names::QUEUE_DEPTH,
        &names::NODES,
        &names::NODES_LOST_HOLDING,
        &names::AGENTS_CONNECTED,
        &names::AGENTS_OLDEST,
        &names::VIOLATIONS,
    ];
    for (at, metric) in metrics.into_iter().enumerate() {
        let cache = Arc::clone(&cache);
        observe(metric, move |to| {
            // They are read in the order in which they are registered here.
            let Some((figures, held)) = cache.figures(at == 0) else { return };
            let series = if *metric == names::GPU_HELD_TIME { Some(&held) } else { figures.0.get(metric.name) };
            for (values, value) in series.into_iter().flatten() {
                let labels = metric.labels.iter().zip(values);
                let labels: Vec<_> = labels.map(|(label, value)| KeyValue::new(label.key, value.clone())).collect();
                to.observe(*value, &labels);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standing::Standing;
    use crate::testing::{hello, node, report, request, uid};
    use berth_core::decide::{Brain, Input, Limits};
    use std::time::Duration;

    const START: Timestamp = Timestamp::from_millis(1_000_000);

    /// Two nodes of four GPUs, and a placement of three on one of them.
    fn brain() -> Brain {
        let mut brain = Brain::load(1, Limits::default(), vec![], vec![], START).unwrap();
        for name in ["n1", "n2"] {
            brain.decide(START, Input::Connected(Box::new(hello(name)))).unwrap();
            let input = Input::Report { node: node(name), report: Box::new(report(4, &[])) };
            brain.decide(START, input).unwrap();
        }
        let request = Box::new(request("held", 3));
        let input = Input::Create { request, uid: uid(1), caller: "test".into(), trace: None };
        brain.decide(START, input).unwrap();
        brain
    }

    fn of(brain: &Brain, now: Timestamp) -> Figures {
        figures(brain.world(), now, &|_| Some(START), 0)
    }

    struct Nobody;

    impl LastSeen for Nobody {
        fn last_seen(&self, _: &NodeName) -> Option<Timestamp> {
            None
        }
    }

    /// However long it takes, and however it falls with the second for which figures are good.
    #[test]
    fn a_scrape_is_of_one_moment() {
        let brain = brain();
        let (replica, _publisher) = Replica::new(brain.world().clone(), 1, 1, START);
        let (board, _writer) = Board::new(Standing { leads: true, ..Standing::default() });
        let checked = SharedCheck::default();
        let cache = Cache { replica, board, seen: Arc::new(Nobody), checked, kept: Mutex::default() };
        let figures = |begins| cache.figures(begins).unwrap().0;
        let first = figures(true);
        assert!(Arc::ptr_eq(&first, &figures(true)), "they are good for a second");
        cache.kept.lock().unwrap().figures.as_mut().unwrap().0 -= FRESH;
        assert!(Arc::ptr_eq(&first, &figures(false)), "the rest of a scrape is of another moment");
        let second = figures(true);
        assert!(!Arc::ptr_eq(&first, &second), "they are never read anew");
        assert!(Arc::ptr_eq(&second, &figures(false)));
    }

    #[test]
    fn everything_is_counted_once() {
        let brain = brain();
        let figures = of(&brain, START);
        let sum = |metric: &Metric| figures.0[metric.name].values().sum::<f64>();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}: {figures:#?}");
        close(sum(&names::GPUS), 8.0);
        close(sum(&names::GPUS_AVAILABLE), 5.0);
        close(sum(&names::GPUS_UNAVAILABLE), 3.0);
        close(sum(&names::GPUS_HELD), 3.0);
        close(sum(&names::NODES), 2.0);
        close(figures.get(&names::NODES, &[NO_CLUSTER, "Ready"]).unwrap(), 2.0);
        close(figures.get(&names::PLACEMENTS, &["Held"]).unwrap(), 1.0);
        close(figures.get(&names::PLACEMENTS, &["Active"]).unwrap(), 0.0);
        close(figures.get(&names::AGENTS_CONNECTED, &[]).unwrap(), 2.0);
        // Five are available: one here, four there. Of VMs with two GPUs two fit, and one GPU is of no use to any.
        let slots: Vec<_> =
            figures.0[names::SLOTS.name].iter().map(|(labels, vms)| (labels[1].clone(), *vms)).collect();
        let vms = |size: &str| slots.iter().find(|(of, _)| of == size).unwrap().1;
        close(vms("1"), 5.0);
        close(vms("2"), 2.0);
        close(vms("4"), 1.0);
        let lost = |size: &str| {
            let series = &figures.0[names::FRAGMENTATION.name];
            series.iter().find(|(labels, _)| labels[1] == size).map(|(_, share)| *share).unwrap()
        };
        close(lost("2"), 0.2);
        close(lost("8"), 1.0);
    }

    #[test]
    fn what_lasts_too_long_and_who_is_silent_is_told() {
        let mut brain = brain();
        let later = START.after(Duration::from_secs(3600));
        // Nobody looked for an hour: the hold should have expired long since.
        let figures = of(&brain, later);
        assert_eq!(figures.get(&names::PLACEMENTS_OVERDUE, &["Held"]), Some(1.0));
        assert_eq!(figures.get(&names::PLACEMENTS_OLDEST, &["Held"]), Some(3600.0));
        assert_eq!(figures.get(&names::AGENTS_OLDEST, &[]), Some(3600.0));
        for name in ["n1", "n2"] {
            brain.decide(START, Input::Disconnected(node(name))).unwrap();
        }
        let figures = of(&brain, later);
        assert_eq!(figures.get(&names::NODES, &[NO_CLUSTER, "Lost"]), Some(2.0));
        assert_eq!(figures.get(&names::NODES_LOST_HOLDING, &[NO_CLUSTER]), Some(1.0));
        assert_eq!(figures.get(&names::PLACEMENTS_CONDITIONS, &["NodeLost"]), Some(1.0));
        assert_eq!(figures.get(&names::AGENTS_CONNECTED, &[]), Some(0.0));
    }

    #[test]
    fn names_beyond_the_bound_are_told_as_one() {
        let known = Known::new((0..5).map(|number| format!("m{number}")), 3);
        assert_eq!(["m0", "m2", "m3", "m9"].map(|name| known.label(name)), ["m0", "m2", OTHER, OTHER]);
    }
}
