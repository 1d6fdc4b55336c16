//! What a replay comes to, for people and for programs.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The result of a replay.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// What came before every name.
    pub run_id: String,
    /// Pods that arrived.
    pub arrived: usize,
    /// GPUs they asked for.
    pub arrived_gpus: u64,
    /// Pods that got their GPUs.
    pub placed: usize,
    /// GPUs they got.
    pub placed_gpus: u64,
    /// Pods that were refused, by reason.
    pub refused: BTreeMap<String, usize>,
    /// Pods that waited in the queue until the end, or until they were released.
    pub still_queued: usize,
    /// Placements that failed after they were made, by reason.
    pub failed: BTreeMap<String, usize>,
    /// Releases that were acknowledged.
    pub released: usize,
    /// Answers that no healthy controller gives, and calls that nobody answered.
    pub errors: Vec<String>,
    /// GPUs of the fleet.
    pub fleet_gpus: u64,
    /// Most GPUs allocated at once.
    pub peak_allocated: u64,
    /// GPUs allocated at the end.
    pub final_allocated: u64,
    /// Over the run: GPUs that had arrived, and GPUs that were allocated then.
    pub allocation: Vec<(u64, u64)>,
    /// How long Create took, over all that were placed or queued.
    pub create: Percentiles,
    /// From sending Create to Active as told by Watch.
    pub create_to_active: Percentiles,
    /// The longest that an event came later than it should have, in milliseconds. Without a speed there is no time to keep.
    pub behind_ms: u128,
    /// Time from the first to the last event, in seconds.
    pub seconds: f64,
    /// Placements made in each second of it.
    pub placed_per_second: f64,
    /// What does not fit together at the end; empty is good.
    pub disagreements: Vec<String>,
}

impl Report {
    /// Whether everything was as it must be. Refusals with a reason are.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.disagreements.is_empty()
    }
}

/// A distribution of times, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Percentiles {
    /// How many were measured.
    pub count: usize,
    /// Half are below.
    pub p50_ms: f64,
    /// All but one in a hundred are below.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Percentiles {
    pub(super) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| -> f64 {
            // The smallest time that so many percent are at or below.
            let rank = (times.len() * percent).div_ceil(100);
            times.get(rank.saturating_sub(1)).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
        };
        Self { count: times.len(), p50_ms: at(50), p99_ms: at(99), max_ms: at(100) }
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, p50_ms, p99_ms, max_ms } = self;
        write!(f, "p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms, longest {max_ms:.2} ms, of {count}")
    }
}

fn share(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a fleet has far fewer than 2^52 GPUs")]
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "arrived          {} pods, {} GPUs", self.arrived, self.arrived_gpus)?;
        writeln!(
            f,
            "placed           {} pods, {} GPUs ({:.2} % of the GPUs asked for)",
            self.placed,
            self.placed_gpus,
            share(self.placed_gpus, self.arrived_gpus)
        )?;
        writeln!(f, "refused          {} pods", self.refused.values().sum::<usize>())?;
        for (reason, count) in &self.refused {
            writeln!(f, "  {count:>6}  {reason}")?;
        }
        if self.still_queued > 0 {
            writeln!(f, "still queued     {}", self.still_queued)?;
        }
        if !self.failed.is_empty() {
            writeln!(f, "failed later     {}", self.failed.values().sum::<usize>())?;
            for (reason, count) in &self.failed {
                writeln!(f, "  {count:>6}  {reason}")?;
            }
        }
        writeln!(f, "released         {}", self.released)?;
        writeln!(
            f,
            "allocated        peak {} of {} GPUs ({:.2} %), at the end {} ({:.2} %)",
            self.peak_allocated,
            self.fleet_gpus,
            share(self.peak_allocated, self.fleet_gpus),
            self.final_allocated,
            share(self.final_allocated, self.fleet_gpus)
        )?;
        let line: Vec<_> =
            self.allocation.iter().map(|(_, allocated)| format!("{:.0}", share(*allocated, self.fleet_gpus))).collect();
        writeln!(f, "  over the run   {} %", line.join(" "))?;
        writeln!(f, "create           {}", self.create)?;
        writeln!(f, "create to active {}", self.create_to_active)?;
        writeln!(f, "took             {:.1} s, {:.0} placed a second", self.seconds, self.placed_per_second)?;
        if self.behind_ms > 0 {
            writeln!(f, "late             at most {} ms", self.behind_ms)?;
        }
        for error in &self.errors {
            writeln!(f, "ERROR            {error}")?;
        }
        match self.disagreements.as_slice() {
            [] => writeln!(f, "check at the end store, controller and agents agree"),
            wrong => {
                writeln!(f, "check at the end {} DISAGREEMENTS", wrong.len())?;
                wrong.iter().try_for_each(|what| writeln!(f, "  {what}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times = (1..=200).map(Duration::from_millis).collect();
        let Percentiles { count, p50_ms, p99_ms, max_ms } = Percentiles::of(times);
        assert_eq!((count, p50_ms, p99_ms, max_ms), (200, 100.0, 198.0, 200.0));
        assert_eq!(Percentiles::of(Vec::new()).count, 0);
        assert_eq!(Percentiles::of(vec![Duration::from_millis(3)]).p50_ms, 3.0);
    }
}
