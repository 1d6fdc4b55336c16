//! What a process takes of its machine, read whenever somebody asks for metrics. Linux only, from `/proc/self`.

use crate::metrics::instruments::observe;
use crate::metrics::process::{CPU_TIME, MEMORY_USAGE, OPEN_FILES, THREAD_COUNT, UPTIME};
use opentelemetry::KeyValue;
use std::time::Instant;

/// Clock ticks in a second, as `/proc` counts them: 100 on every architecture that Linux runs Berth on (proc(5), USER_HZ).
const TICKS: f64 = 100.0;

/// Has the process's own figures exported.
pub(crate) fn register() {
    let start = Instant::now();
    observe(&UPTIME, move |to| to.observe(start.elapsed().as_secs_f64(), &[]));
    observe(&CPU_TIME, |to| {
        if let Some(Stat { user, system }) = stat() {
            to.observe(user, &[KeyValue::new("cpu.mode", "user")]);
            to.observe(system, &[KeyValue::new("cpu.mode", "system")]);
        }
    });
    observe(&MEMORY_USAGE, |to| {
        if let Some(kib) = status("VmRSS:") {
            to.observe(kib * 1024.0, &[]);
        }
    });
    observe(&THREAD_COUNT, |to| {
        if let Some(threads) = status("Threads:") {
            to.observe(threads, &[]);
        }
    });
    observe(&OPEN_FILES, |to| {
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            let files = u32::try_from(files.count()).unwrap_or(u32::MAX);
            to.observe(f64::from(files), &[]);
        }
    });
}

struct Stat {
    user: f64,
    system: f64,
}

fn stat() -> Option<Stat> {
    parse_stat(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

/// Fields 14 and 15 of proc(5); the second field is the program's name in parentheses and may hold blanks.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut seconds = || Some(fields.next()?.parse::<f64>().ok()? / TICKS);
    Some(Stat { user: seconds()?, system: seconds()? })
}

fn status(field: &str) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    text.lines().find_map(|line| line.strip_prefix(field)?.split_ascii_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let text = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0";
        let Stat { user, system } = parse_stat(text).unwrap();
        assert!((user - 2.5).abs() < 1e-9 && (system - 1.5).abs() < 1e-9, "{user} {system}");
        assert!(parse_stat("rubbish").is_none());
    }
}
