//! A leader that writes as fast as it can, for tests that stop it in its tracks.
//!
//! `berth-tests-leader ENDPOINTS TTL_SECONDS PREFIX`. Exits with 3 when it finds that it does not lead any more, whether its own
//! clock or the store says so; it goes on writing through the first, so that only the fence stands in its way.

#![expect(clippy::print_stdout, reason = "the test reads how far it is")]

use anyhow::{Context as _, bail};
use berth_store::{CommitError, Store as _, Transaction, Write};
use berth_store_etcd::{Etcd, Options};
use std::process::ExitCode;
use std::time::Duration;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [endpoints, ttl, prefix] = args.as_slice() else { bail!("usage: ENDPOINTS TTL_SECONDS PREFIX") };
    let options = Options {
        endpoints: endpoints.split(',').map(str::to_owned).collect(),
        lease_ttl: Duration::from_secs(ttl.parse().context("TTL_SECONDS is no number")?),
        ..Options::default()
    };
    let store = Etcd::connect(options).await?;
    let leadership = store.campaign("the one who sleeps").await?;
    let mut n: u64 = 0;
    loop {
        let writes = vec![Write::Put { key: format!("{prefix}{n}"), value: n.to_string().into() }];
        let fence = Some(leadership.fence.clone());
        match store.commit(Transaction { fence, writes, ..Transaction::default() }).await {
            Ok(_) => {
                n += 1;
                println!("wrote {n}");
            }
            Err(CommitError::Fenced) => return Ok(ExitCode::from(3)),
            // Deliberately blind: the worst a leader could do.
            Err(CommitError::Unknown(_) | CommitError::Unavailable(_)) => {}
            Err(error @ (CommitError::Precondition { .. } | CommitError::Full(_) | CommitError::Illegal(_))) => {
                return Err(error.into());
            }
        }
    }
}
