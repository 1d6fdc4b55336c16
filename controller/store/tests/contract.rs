//! Both stores of this crate keep the contract.

use async_trait::async_trait;
use berth_store::contract::Subject;
use berth_store::{Revision, Store, Transaction, WatchError, Write};
use futures::{FutureExt as _, StreamExt as _};
use std::sync::Arc;

/// Short, so that compacting takes few writes; long enough for what the other rules look back on.
const HISTORY: u64 = 200;

/// Both stores compact by going on.
async fn write_until_compacted(store: &Arc<dyn Store>, before: Revision) {
    let mut now = Revision(0);
    while now.0 < before.0 + HISTORY - 1 {
        let writes = vec![Write::Put { key: "compact/n".to_owned(), value: now.to_string().into() }];
        now = store
            .commit(Transaction { writes, ..Transaction::default() })
            .await
            .expect("an unconditional write is committed");
    }
}

/// A watcher that is not read until what it needs is gone learns so, instead of going on with a gap.
async fn a_slow_watch_ends(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let mut watch = store.watch("", Revision(1)).await.expect("nothing is compacted yet");
    write_until_compacted(&store, Revision(10)).await;
    let first = watch.next().await.expect("it says why it ends");
    assert!(
        matches!(first, Err(WatchError::Compacted { asked: Revision(1), oldest }) if oldest == Revision(10)),
        "{first:?}"
    );
    assert!(watch.next().await.is_none());
}

/// A watch does not keep a store open, and does not hang when it is closed.
async fn a_watch_ends_with_its_store(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let mut watch = store.watch("", Revision(1)).await.expect("nothing is compacted yet");
    let leadership = store.campaign("one").await.expect("a campaign is answered");
    assert!(matches!(watch.next().await, Some(Ok(_))));
    drop(store);
    let end = watch.next().await;
    assert!(matches!(end, Some(Err(WatchError::Interrupted(_)))), "{end:?}");
    assert!(leadership.lost.now_or_never().is_none(), "nobody else took over");
}

mod memory {
    use super::*;
    use berth_store::memory::Memory;

    struct InMemory;

    #[async_trait]
    impl Subject for InMemory {
        async fn fresh(&self) -> Arc<dyn Store> {
            Arc::new(Memory::with_history(HISTORY))
        }

        async fn compact(&self, store: &Arc<dyn Store>, before: Revision) {
            write_until_compacted(store, before).await;
        }
    }

    berth_store::contract!(InMemory);

    #[tokio::test]
    async fn a_slow_watch_ends() {
        super::a_slow_watch_ends(&InMemory).await;
    }

    #[tokio::test]
    async fn a_watch_ends_with_its_store() {
        super::a_watch_ends_with_its_store(&InMemory).await;
    }
}

mod embedded {
    use super::*;
    use berth_store::embedded::Embedded;

    /// The directory goes with the subject, at the end of the test.
    struct OnDisk(tempfile::TempDir);

    #[async_trait]
    impl Subject for OnDisk {
        async fn fresh(&self) -> Arc<dyn Store> {
            Arc::new(Embedded::open_with_history(self.0.path(), HISTORY).expect("an empty directory opens"))
        }

        async fn compact(&self, store: &Arc<dyn Store>, before: Revision) {
            write_until_compacted(store, before).await;
        }
    }

    fn on_disk() -> OnDisk {
        OnDisk(tempfile::tempdir().expect("a temporary directory"))
    }

    berth_store::contract!(on_disk());

    #[tokio::test]
    async fn a_slow_watch_ends() {
        super::a_slow_watch_ends(&on_disk()).await;
    }

    #[tokio::test]
    async fn a_watch_ends_with_its_store() {
        super::a_watch_ends_with_its_store(&on_disk()).await;
    }
}
