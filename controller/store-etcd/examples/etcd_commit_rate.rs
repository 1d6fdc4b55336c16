//! What the store adds to etcd: its transactions beside bare ones of etcd's client, in one run on one cluster.
//!
//! `cargo run --release -p berth-store-etcd --example etcd_commit_rate [ENDPOINT]`. A transaction is like a placement's: a record
//! of half a KiB and three claims, under a fence and with a precondition for each; a group has 25 of them in one.

#![expect(clippy::print_stdout, reason = "it is a program for people")]

use berth_store::{Fence, Precondition, Store as _, Transaction, Write};
use berth_store_etcd::{Etcd, Options};
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const TIME: Duration = Duration::from_secs(5);
const RECORD_BYTES: usize = 512;
const CLAIM_BYTES: usize = 60;
/// Placements in a group: 100 operations.
const GROUP: u64 = 25;

type Fault = Box<dyn Error + Send + Sync>;

/// Runs one kind of call with so many in flight; gives calls a second.
async fn rate<F>(what: &str, in_flight: usize, call: impl Fn(u64) -> F) -> Result<f64, Fault>
where
    F: Future<Output = Result<(), Fault>> + Send + 'static,
{
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let begin = Instant::now();
    let mut lanes = JoinSet::new();
    let mut times = Vec::new();
    let timed = |call: F| async move {
        let begin = Instant::now();
        call.await.map(|()| begin.elapsed())
    };
    for _ in 0..in_flight {
        lanes.spawn(timed(call(NUMBER.fetch_add(1, Ordering::Relaxed))));
    }
    while let Some(done) = lanes.join_next().await {
        times.push(done??);
        if begin.elapsed() < TIME {
            lanes.spawn(timed(call(NUMBER.fetch_add(1, Ordering::Relaxed))));
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    times.sort();
    let [p50, p99] = [50, 99].map(|percent| times[(times.len() - 1) * percent / 100]);
    let rate = f64::from(u32::try_from(times.len())?) / seconds;
    println!("{what:<44} {in_flight:>3} in flight: {rate:>8.0}/s, p50 {p50:>8.1?}, p99 {p99:>8.1?}");
    Ok(rate)
}

/// Keys and values of `count` placements, others for each `n`.
fn records(n: u64, count: u64) -> Vec<(String, Vec<u8>)> {
    let one = |n: u64| {
        let claims = [format!("try/gpu/node-{}/{n}", n % 1000), format!("try/vm/{n}"), format!("try/requests/{n}")];
        claims.map(|key| (key, vec![7; CLAIM_BYTES])).into_iter().chain([(format!("try/{n}"), vec![7; RECORD_BYTES])])
    };
    (0..count).flat_map(|at| one(n * GROUP + at)).collect()
}

async fn ours(store: Arc<Etcd>, fence: Fence, n: u64, count: u64) -> Result<(), Fault> {
    let all = records(n, count);
    let preconditions = all.iter().map(|(key, _)| Precondition::absent(key)).collect();
    let writes = all.into_iter().map(|(key, value)| Write::Put { key, value: value.into() }).collect();
    store.commit(Transaction { fence: Some(fence), preconditions, writes }).await?;
    Ok(())
}

async fn bare(client: Client, n: u64, count: u64) -> Result<(), Fault> {
    let all = records(n, count);
    let compares: Vec<_> = all.iter().map(|(key, _)| Compare::version(key.as_str(), CompareOp::Equal, 0)).collect();
    let puts: Vec<_> = all.into_iter().map(|(key, value)| TxnOp::put(key, value, None)).collect();
    let answer = client.kv_client().txn(Txn::new().when(compares).and_then(puts)).await?;
    if answer.succeeded() { Ok(()) } else { Err("a key was there already: use an empty etcd".into()) }
}

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:2379".to_owned());
    let options = Options { endpoints: vec![endpoint.clone()], ..Options::default() };
    let store = Arc::new(Etcd::connect(options).await?);
    let client = Client::connect([endpoint], None).await?;
    let fence = store.campaign("etcd_commit_rate").await?.fence;

    let put = |n: u64| {
        let client = client.clone();
        async move {
            client.kv_client().put(format!("try/put/{n}"), vec![7; RECORD_BYTES], None).await?;
            Ok(())
        }
    };
    rate("etcd: put", 1, put).await?;
    rate("etcd: put", 64, put).await?;
    for (what, in_flight, count) in [("one placement", 1, 1), ("one placement", 64, 1), ("25 placements", 4, GROUP)] {
        let theirs =
            rate(&format!("etcd: transaction of {what}"), in_flight, |n| bare(client.clone(), n, count)).await?;
        let call = |n| ours(Arc::clone(&store), fence.clone(), n, count);
        let with_fence = rate(&format!("berth: transaction of {what}, fenced"), in_flight, call).await?;
        let placements = with_fence * f64::from(u32::try_from(count)?);
        println!("    {:.2} of bare etcd; {placements:.0} placements/s", with_fence / theirs);
    }
    store.resign().await;
    Ok(())
}
