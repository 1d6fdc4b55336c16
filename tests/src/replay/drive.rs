//! Sends the events of a pod list in order, so many at a time, and counts what comes back.

use super::caller::{Caller, Problem};
use super::journal::{Entry, Journal};
use super::pods::{self, Departures, Event, Pod, What};
use super::report::{Percentiles, Report};
use super::seen::Seen;
use super::{Options, agree};
use anyhow::Context as _;
use berth_proto::v1::{
    CreatePlacementRequest, GetPlacementRequest, Phase, Placement, PlacementRequest, ReleasePlacementRequest, Resources,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

/// How long `--wait-active` waits for one placement: a simulated host takes seconds, a crash in between some more.
const ACTIVE_LIMIT: Duration = Duration::from_secs(120);
/// Points of the allocation over time: one line of text.
const POINTS: usize = 20;

/// What is counted while the replay runs.
#[derive(Debug, Default)]
struct Counts {
    report: Report,
    allocated: u64,
    allocation: Vec<(u64, u64)>,
    create: Vec<Duration>,
    begun: HashMap<String, Instant>,
    queued: Vec<(String, u32)>,
}

impl Counts {
    fn allocate(&mut self, gpus: u32) {
        self.report.placed += 1;
        self.report.placed_gpus += u64::from(gpus);
        self.allocated += u64::from(gpus);
        self.report.peak_allocated = self.report.peak_allocated.max(self.allocated);
    }

    fn error(&mut self, error: String) {
        // One of a kind says as much as ten thousand.
        if self.report.errors.len() < 100 {
            self.report.errors.push(error);
        }
    }
}

/// One replay; what all its calls share.
struct Replay {
    caller: Caller,
    run_id: String,
    queue: Option<Duration>,
    wait_active: bool,
    journal: Journal,
    seen: Seen,
    counts: Mutex<Counts>,
}

/// A placement that was made for a pod, as far as its departure needs it.
#[derive(Clone, Debug)]
struct Made {
    name: String,
    uid: String,
    gpus: u32,
    placed: bool,
}

/// Replays a pod list and checks at the end.
///
/// # Errors
/// When the list or the journal cannot be used, or the controller is not there to begin with.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let list = options.pods.as_deref().context("no pod list")?;
    let pods = pods::read(list, options.limit)?;
    let departures = match (options.keep, options.drain) {
        (true, _) => Departures::None,
        (false, true) => Departures::All,
        (false, false) => Departures::UntilLastArrival,
    };
    let events = pods::events(&pods, departures);
    let caller = Caller::new(&options.endpoint, options.give_up)?;
    let fleet_gpus = caller.gpus().await.context("cannot list the GPUs")?.len();

    let run_id = options.run_id.clone().unwrap_or_else(|| format!("r{:06x}-", rand::random::<u32>() & 0xff_ffff));
    let replay = Arc::new(Replay {
        caller: caller.clone(),
        run_id: run_id.clone(),
        queue: options.queue,
        wait_active: options.wait_active,
        journal: Journal::open(options.journal.as_deref())?,
        seen: Seen::new(),
        counts: Mutex::default(),
    });

    let mut watching = JoinSet::new();
    watching.spawn(replay.seen.clone().follow(caller.clone(), run_id.clone()));
    let begun = Instant::now();
    let behind = send(&replay, pods, &events, options.speedup, options.in_flight).await?;
    let seconds = begun.elapsed().as_secs_f64();

    let disagreements = agree::check(&caller, &replay.journal.entries(), options.settle).await?;
    replay.resolve_queued().await;
    replay.count_failures().await;
    watching.abort_all();
    Ok(replay.report(run_id, fleet_gpus, behind, seconds, disagreements))
}

/// Sends all events in order and waits for the last answer; gives how far it fell behind.
async fn send(
    replay: &Arc<Replay>,
    pods: Vec<Pod>,
    events: &[Event],
    speedup: f64,
    in_flight: u16,
) -> anyhow::Result<Duration> {
    let slots = Arc::new(Semaphore::new(usize::from(in_flight)));
    let mut calls: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let mut made: HashMap<usize, oneshot::Receiver<Made>> = HashMap::new();
    let pods: Vec<Arc<Pod>> = pods.into_iter().map(Arc::new).collect();
    let begun = tokio::time::Instant::now();
    let first = events.first().map_or(0, |event| event.at);
    let mut behind = Duration::ZERO;

    for event in events {
        if speedup > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "seconds of a trace of some months")]
            let due = begun + Duration::from_secs_f64((event.at - first) as f64 / speedup);
            tokio::time::sleep_until(due).await;
            behind = behind.max(due.elapsed());
        }
        let slot = slots.clone().acquire_owned().await.context("the slots are closed")?;
        while let Some(done) = calls.try_join_next() {
            done.context("a call panicked")??;
        }
        let replay = replay.clone();
        match event.what {
            What::Arrive => {
                let (tell, told) = oneshot::channel();
                made.insert(event.pod, told);
                let pod = pods[event.pod].clone();
                calls.spawn(async move {
                    let _slot = slot;
                    if let Some(new) = replay.arrive(&pod).await? {
                        // Nobody listens when the pod's departure is not replayed.
                        let _ = tell.send(new);
                    }
                    Ok(())
                });
            }
            What::Depart => {
                let told = made.remove(&event.pod).context("a pod goes before it comes")?;
                calls.spawn(async move {
                    let _slot = slot;
                    // Its arrival was sent before and holds a slot of its own, so this wait ends. It failed if nothing
                    // comes.
                    match told.await {
                        Ok(made) => replay.depart(made).await,
                        Err(_) => Ok(()),
                    }
                });
            }
        }
    }
    while let Some(done) = calls.join_next().await {
        done.context("a call panicked")??;
    }
    Ok(behind)
}

impl Replay {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod comes: asks for its GPUs.
    async fn arrive(&self, pod: &Pod) -> anyhow::Result<Option<Made>> {
        let name = format!("{}{}", self.run_id, pod.name);
        let request = PlacementRequest {
            // One id for all attempts: however often it is sent, it is one placement.
            request_id: name.clone(),
            name: name.clone(),
            vm: name.clone(),
            gpus: pod.gpus,
            models: pod.models.clone(),
            resources: Some(Resources { cpu_milli: pod.cpu_milli, memory_bytes: pod.memory_mib << 20 }),
            queue: self.queue.and_then(|queue| queue.try_into().ok()),
            ..PlacementRequest::default()
        };
        let begun = Instant::now();
        {
            let mut counts = self.counts();
            counts.report.arrived += 1;
            counts.report.arrived_gpus += u64::from(pod.gpus);
            counts.begun.insert(name.clone(), begun);
        }
        let ask = CreatePlacementRequest { request: Some(request) };
        let answer = self
            .caller
            .call(ask, |ask| {
                let mut api = self.caller.placements();
                async move { api.create(ask).await }
            })
            .await;
        let took = begun.elapsed();
        if let Ok(placement) = &answer {
            self.journal.note(Entry::created(placement))?;
        }
        let made = self.count_create(&name, pod.gpus, took, answer);
        if let Some(made) = made.as_ref().filter(|made| made.placed && self.wait_active)
            && !self.seen.decided(&made.name, ACTIVE_LIMIT).await
        {
            self.counts()
                .error(format!("placement {name} was neither active nor over after {} s", ACTIVE_LIMIT.as_secs()));
        }
        Ok(made)
    }

    fn count_create(&self, name: &str, gpus: u32, took: Duration, answer: Result<Placement, Problem>) -> Option<Made> {
        let mut counts = self.counts();
        let made = match answer {
            Ok(placement) => {
                counts.create.push(took);
                let placed = placement.assignment.is_some();
                if placed {
                    counts.allocate(gpus);
                } else if placement.phase() == Phase::Queued {
                    counts.queued.push((name.to_owned(), gpus));
                } else {
                    let phase = placement.phase();
                    counts.error(format!("placement {name} was acknowledged as {phase:?} without GPUs"));
                }
                Some(Made { name: name.to_owned(), uid: placement.uid, gpus, placed })
            }
            Err(Problem::Refused { reason, .. }) => {
                *counts.report.refused.entry(reason).or_default() += 1;
                None
            }
            Err(problem @ (Problem::NoReason(_) | Problem::Silent(_))) => {
                counts.error(format!("create {name}: {problem}"));
                None
            }
        };
        let point = (counts.report.arrived_gpus, counts.allocated);
        counts.allocation.push(point);
        made
    }

    /// A pod goes: gives its GPUs back.
    async fn depart(&self, made: Made) -> anyhow::Result<()> {
        let Made { name, uid, gpus, placed } = made;
        self.journal.note(Entry::Releasing { name: name.clone(), uid: uid.clone() })?;
        let ask = ReleasePlacementRequest { name: name.clone(), uid: uid.clone(), version: 0 };
        match self
            .caller
            .call(ask, |ask| {
                let mut api = self.caller.placements();
                async move { api.release(ask).await }
            })
            .await
        {
            Ok(_) => {
                self.journal.note(Entry::Released { name: name.clone(), uid })?;
                let placed = placed || self.seen.get(&name).is_some_and(|last| last.placed);
                let mut counts = self.counts();
                counts.report.released += 1;
                if placed {
                    counts.allocated = counts.allocated.saturating_sub(u64::from(gpus));
                }
            }
            Err(problem) => self.counts().error(format!("release {name}: {problem}")),
        }
        Ok(())
    }

    /// Asks what became of those that were only queued at first.
    async fn resolve_queued(&self) {
        let queued = std::mem::take(&mut self.counts().queued);
        for (name, gpus) in queued {
            let ask = GetPlacementRequest { name: name.clone() };
            let answer = self
                .caller
                .call(ask, |ask| {
                    let mut api = self.caller.placements();
                    async move { api.get(ask).await }
                })
                .await;
            let mut counts = self.counts();
            match answer {
                Ok(placement) if placement.assignment.is_some() => {
                    counts.report.placed += 1;
                    counts.report.placed_gpus += u64::from(gpus);
                }
                Ok(placement) if placement.phase() == Phase::Failed => {
                    *counts.report.refused.entry("QUEUE_EXPIRED".to_owned()).or_default() += 1;
                }
                Ok(_) => counts.report.still_queued += 1,
                Err(problem) => counts.error(format!("get {name}: {problem}")),
            }
        }
    }

    /// Asks why those failed that had got their GPUs.
    async fn count_failures(&self) {
        let names: Vec<String> = self.counts().begun.keys().cloned().collect();
        for name in names {
            let Some(last) = self.seen.get(&name).filter(|last| last.phase == Phase::Failed && last.placed) else {
                continue;
            };
            let ask = GetPlacementRequest { name: name.clone() };
            let answer = self
                .caller
                .call(ask, |ask| {
                    let mut api = self.caller.placements();
                    async move { api.get(ask).await }
                })
                .await;
            let mut counts = self.counts();
            match answer.map(|placement| placement.failure.map(|failure| failure.text)) {
                Ok(Some(text)) if !text.is_empty() => *counts.report.failed.entry(text).or_default() += 1,
                Ok(_) => counts.error(format!("placement {name} failed without a reason: {last:?}")),
                Err(problem) => counts.error(format!("get {name}: {problem}")),
            }
        }
    }

    fn report(
        &self,
        run_id: String,
        fleet_gpus: usize,
        behind: Duration,
        seconds: f64,
        disagreements: Vec<String>,
    ) -> Report {
        let mut counts = self.counts();
        let active: Vec<Duration> = counts
            .begun
            .iter()
            .filter_map(|(name, begun)| Some(self.seen.get(name)?.active_at?.saturating_duration_since(*begun)))
            .collect();
        let points = std::mem::take(&mut counts.allocation);
        let step = points.len().div_ceil(POINTS).max(1);
        let mut allocation: Vec<(u64, u64)> = points.iter().skip(step - 1).step_by(step).copied().collect();
        if let Some(last) = points.last().filter(|last| allocation.last() != Some(last)) {
            allocation.push(*last);
        }
        let report = std::mem::take(&mut counts.report);
        #[expect(clippy::cast_precision_loss, reason = "a count of placements")]
        let placed_per_second = report.placed as f64 / seconds.max(f64::EPSILON);
        Report {
            run_id,
            fleet_gpus: u64::try_from(fleet_gpus).unwrap_or(u64::MAX),
            final_allocated: counts.allocated,
            allocation,
            create: Percentiles::of(std::mem::take(&mut counts.create)),
            create_to_active: Percentiles::of(active),
            behind_ms: behind.as_millis(),
            seconds,
            placed_per_second,
            disagreements,
            ..report
        }
    }
}
