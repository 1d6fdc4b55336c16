//! Commits numbered transactions to an embedded store as fast as it can, until it is killed; tells each on stdout once it
//! is acknowledged. Started by `tests/crash.rs` with the data directory as its only argument.
//!
//! Eight lanes commit at once, so that a kill meets groups. Transaction `n` of lane `l` writes `lane/l` and three keys of
//! its own, all with the text `l n`: whoever reopens the store can tell whether all of it is there.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "stdout and stderr are how it talks to the test")]

use berth_store::embedded::Embedded;
use berth_store::{Fence, Store, Transaction, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

const LANES: u64 = 8;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: berth-store-crash-child DIRECTORY");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    match Embedded::open(&dir) {
        Ok(store) => runtime.block_on(run(Arc::new(store))),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(store: Arc<Embedded>) -> ExitCode {
    let leadership = store.campaign("child").await.expect("a campaign is answered");
    println!("term {} {}", leadership.term, leadership.fence.created);
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..LANES {
        lanes.spawn(run_lane(Arc::clone(&store), leadership.fence.clone(), lane));
    }
    match lanes.join_next().await {
        Some(Err(error)) => eprintln!("a lane ended: {error}"),
        Some(Ok(())) | None => eprintln!("a lane ended"),
    }
    ExitCode::FAILURE
}

async fn run_lane(store: Arc<Embedded>, fence: Fence, lane: u64) {
    let own = format!("lane/{lane}");
    let last = store.get(&own).await.expect("a read is answered");
    // The lane's key is written once by each of its transactions, so its version is the last one's number.
    let mut n = last.map_or(0, |item| item.version);
    loop {
        n += 1;
        let text = format!("{lane} {n}");
        let keys = (0..3).map(|part| format!("transaction/{lane}/{n}/{part}")).chain([own.clone()]);
        let writes = keys.map(|key| Write::Put { key, value: text.clone().into() }).collect();
        let transaction = Transaction { fence: Some(fence.clone()), preconditions: Vec::new(), writes };
        let revision = store.commit(transaction).await.expect("nobody else leads");
        println!("done {lane} {n} {revision}");
    }
}
