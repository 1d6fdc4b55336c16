//! How many durable transactions a second the embedded store commits on this machine, with 1 and with 64 in flight.
//!
//! `cargo run --release -p berth-store --example commit_rate [DIRECTORY]`; the directory decides which disk is measured.
//! A transaction is like a placement's: a record of half a KiB and three claims, under a fence and with preconditions.

#![expect(clippy::print_stdout, reason = "it is a program for people")]

use berth_store::embedded::Embedded;
use berth_store::{Fence, Precondition, Store, Transaction, Write};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TIME: Duration = Duration::from_secs(5);
const RECORD_BYTES: usize = 512;
const CLAIM_BYTES: usize = 60;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = match std::env::args_os().nth(1) {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    let store = Arc::new(Embedded::open(dir.path())?);
    let fence = store.campaign("commit_rate").await?.fence;
    let number = Arc::new(AtomicU64::new(0));
    for in_flight in [1, 64] {
        let begin = Instant::now();
        let mut lanes = tokio::task::JoinSet::new();
        for _ in 0..in_flight {
            lanes.spawn(run(Arc::clone(&store), fence.clone(), Arc::clone(&number), begin + TIME));
        }
        let mut times = Vec::new();
        while let Some(lane) = lanes.join_next().await {
            times.extend(lane??);
        }
        times.sort();
        let seconds = begin.elapsed().as_secs_f64();
        let per_second = f64::from(u32::try_from(times.len())?) / seconds;
        let [p50, p99] = [50, 99].map(|percent| times[(times.len() - 1) * percent / 100]);
        println!("{in_flight:>3} in flight: {per_second:>8.0} transactions/s, p50 {p50:.1?}, p99 {p99:.1?}");
    }
    Ok(())
}

async fn run(
    store: Arc<Embedded>,
    fence: Fence,
    number: Arc<AtomicU64>,
    end: Instant,
) -> Result<Vec<Duration>, berth_store::CommitError> {
    let mut times = Vec::new();
    while Instant::now() < end {
        let n = number.fetch_add(1, Ordering::Relaxed);
        let claims = [format!("claims/gpu/node-{}/{n}", n % 1000), format!("claims/vm/{n}"), format!("requests/{n}")];
        let record = (format!("placements/{n}"), vec![7; RECORD_BYTES]);
        let all: Vec<_> = claims.map(|key| (key, vec![7; CLAIM_BYTES])).into_iter().chain([record]).collect();
        let preconditions = all.iter().map(|(key, _)| Precondition::absent(key)).collect();
        let writes = all.into_iter().map(|(key, value)| Write::Put { key, value: value.into() }).collect();
        let begin = Instant::now();
        store.commit(Transaction { fence: Some(fence.clone()), preconditions, writes }).await?;
        times.push(begin.elapsed());
    }
    Ok(times)
}
