//! Numbers from many measurements, and what the system says of a process.

use anyhow::{Context as _, ensure};
use std::time::Duration;

/// Ticks of processor time a second in `/proc`: Linux shows 100 to programs on every machine (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// The middle of some measurements, and how far they lie apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// Of measurements in any order.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or_default();
        let last = values.len().saturating_sub(1);
        Self { median: f64::midpoint(at(last / 2), at(values.len() / 2)), min: at(0), max: at(last) }
    }
}

/// The time that so many percent of all are at or below, in milliseconds.
pub(super) fn percentile_ms(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100);
    times.get(rank.saturating_sub(1)).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}

/// A count as a number to calculate with. None here comes near 2^52.
#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
pub(super) fn number(count: u64) -> f64 {
    count as f64
}

/// What a process has used of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Usage {
    /// Processor time since it began, its own and the system's for it, in seconds.
    pub(super) cpu_seconds: f64,
    /// Memory it holds now, in MiB.
    pub(super) rss_mib: f64,
    /// Most that it ever held, in MiB.
    pub(super) peak_mib: f64,
}

/// What a process has used so far.
///
/// # Errors
/// When there is no such process, or no `/proc`.
pub(super) fn usage(process: u32) -> anyhow::Result<Usage> {
    let read = |file: &str| {
        let path = format!("/proc/{process}/{file}");
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}; benchmarks need Linux"))
    };
    let stat = read("stat")?;
    // The second field is the program's name in parentheses, which may hold anything.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    let (Some(user), Some(system)) = (ticks(11), ticks(12)) else { anyhow::bail!("cannot make sense of {stat:?}") };
    let status = read("status")?;
    let mib = |name: &str| -> anyhow::Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<u64>().ok());
        ensure!(kib.is_some(), "process {process} says no {name}");
        Ok(number(kib.unwrap_or_default()) / 1024.0)
    };
    Ok(Usage { cpu_seconds: number(user + system) / TICKS_PER_SECOND, rss_mib: mib("VmRSS")?, peak_mib: mib("VmHWM")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle_of_what_was_measured() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of([]), Spread::default());
        let mut times: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!((percentile_ms(&mut times, 50), percentile_ms(&mut times, 99)), (100.0, 198.0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_accounts_for_this_process() {
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(50) {}
        let used = usage(std::process::id()).unwrap();
        assert!(used.cpu_seconds > 0.0 && used.rss_mib > 1.0 && used.peak_mib >= used.rss_mib, "{used:?}");
    }
}
