//! What cannot be seen from outside: what is synced when, and what happens when the disk fails. The disk here is one that
//! tells and can be told.

use super::open::fill;
use super::*;
use crate::store::{WatchError, Write};
use futures::{FutureExt as _, StreamExt as _};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use std::io;
use std::sync::{Condvar, Mutex};

#[derive(Debug, Default)]
struct Disk {
    memory: InMemoryBackend,
    state: Mutex<DiskState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct DiskState {
    /// Written and not synced since.
    dirty: bool,
    syncs: u64,
    /// Syncs wait while it is set.
    held: bool,
    /// A sync waits.
    waiting: bool,
    fail_writes: bool,
    fail_syncs: bool,
}

#[derive(Clone, Debug)]
struct Handle(Arc<Disk>);

impl Handle {
    fn change(&self, change: impl FnOnce(&mut DiskState)) {
        change(&mut self.0.state.lock().unwrap());
        self.0.changed.notify_all();
    }

    fn see<T>(&self, see: impl FnOnce(&DiskState) -> T) -> T {
        see(&self.0.state.lock().unwrap())
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.0.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|disk| disk.dirty = true);
        self.0.memory.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.state.lock().unwrap();
        disk.waiting = disk.held;
        self.0.changed.notify_all();
        let mut disk = self.0.changed.wait_while(disk, |disk| disk.held).unwrap();
        disk.waiting = false;
        if disk.fail_syncs {
            return Err(io::Error::other("the disk is gone"));
        }
        disk.dirty = false;
        disk.syncs += 1;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.see(|disk| disk.fail_writes) {
            return Err(io::Error::other("the disk is full"));
        }
        self.change(|disk| disk.dirty = true);
        self.0.memory.write(offset, data)
    }
}

fn store() -> (Arc<Embedded>, Handle) {
    let disk = Handle(Arc::default());
    let database = redb::Builder::new().create_with_backend(disk.clone()).unwrap();
    fill(&database).unwrap();
    let files = Arc::new(Files { database, _lock: tempfile::tempfile().unwrap() });
    (Arc::new(Embedded::start(files, Path::new("test"), HISTORY).unwrap()), disk)
}

fn put(key: String) -> Transaction {
    Transaction { writes: vec![Write::Put { key, value: "x".into() }], ..Transaction::default() }
}

#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_synced() {
    let (store, disk) = store();
    for n in 0..50 {
        let before = disk.see(|disk| disk.syncs);
        store.commit(put(format!("k/{n}"))).await.unwrap();
        assert!(disk.see(|disk| !disk.dirty && disk.syncs > before), "transaction {n}: {disk:?}");
    }
    disk.change(|disk| disk.held = true);
    let mut commit = Box::pin(store.commit(put("held".to_owned())));
    assert!((&mut commit).now_or_never().is_none());
    drop(disk.0.changed.wait_while(disk.0.state.lock().unwrap(), |disk| !disk.waiting).unwrap());
    assert!((&mut commit).now_or_never().is_none(), "it is written, but not synced");
    let now = store.get("held").await.unwrap();
    assert_eq!(now, None, "what is not durable is not shown");
    disk.change(|disk| disk.held = false);
    assert_eq!(commit.await.unwrap(), Revision(51));
}

#[tokio::test]
async fn what_waits_is_committed_with_one_sync_each_with_its_own_revision() {
    let (store, disk) = store();
    let before = disk.see(|disk| disk.syncs);
    store.commit(put("alone".to_owned())).await.unwrap();
    let one = disk.see(|disk| disk.syncs) - before;
    disk.change(|disk| disk.held = true);
    let first = Box::pin(store.commit(put("first".to_owned())));
    let mut all = vec![first];
    assert!((&mut all[0]).now_or_never().is_none());
    drop(disk.0.changed.wait_while(disk.0.state.lock().unwrap(), |disk| !disk.waiting).unwrap());
    for n in 0..100 {
        let mut commit = Box::pin(store.commit(put(format!("k/{n}"))));
        assert!((&mut commit).now_or_never().is_none());
        all.push(commit);
    }
    let before = disk.see(|disk| disk.syncs);
    disk.change(|disk| disk.held = false);
    let revisions: Vec<_> = futures::future::join_all(all).await.into_iter().map(|done| done.unwrap().0).collect();
    assert_eq!(revisions, (2..=102).collect::<Vec<_>>());
    assert_eq!(disk.see(|disk| disk.syncs) - before, 2 * one, "the first alone, the others together");
}

#[tokio::test]
async fn checks_and_refusals_cost_no_sync() {
    let (store, disk) = store();
    store.commit(put("a".to_owned())).await.unwrap();
    let before = disk.see(|disk| disk.syncs);
    let check = |version| Transaction {
        preconditions: vec![crate::Precondition::Version { key: "a".to_owned(), version }],
        ..put("b".to_owned())
    };
    store.commit(check(7)).await.unwrap_err();
    store.commit(Transaction { writes: vec![], ..check(1) }).await.unwrap();
    assert_eq!(disk.see(|disk| disk.syncs), before);
}

/// After the disk failed: nothing more is committed, the leader is told, watches end, what is durable stays readable.
async fn check_failed(store: &Embedded, leadership: crate::Leadership, mut watch: Watch) {
    assert!(matches!(store.commit(put("later".to_owned())).await, Err(CommitError::Unavailable(_))));
    assert!(matches!(store.campaign("other").await, Err(Error::Unavailable(_))));
    leadership.lost.await;
    assert!(matches!(watch.next().await, Some(Err(WatchError::Interrupted(_)))));
}

#[tokio::test]
async fn a_failed_sync_leaves_it_unknown_and_ends_the_writing() {
    let (store, disk) = store();
    let leadership = store.campaign("one").await.unwrap();
    let watch = store.watch("k", Revision(1)).await.unwrap();
    disk.change(|disk| (disk.held, disk.fail_syncs) = (true, true));
    let mut commit = Box::pin(store.commit(put("k".to_owned())));
    assert!((&mut commit).now_or_never().is_none());
    drop(disk.0.changed.wait_while(disk.0.state.lock().unwrap(), |disk| !disk.waiting).unwrap());
    let mut behind = Box::pin(store.commit(put("behind".to_owned())));
    assert!((&mut behind).now_or_never().is_none());
    disk.change(|disk| disk.held = false);
    let (outcome, behind) = (commit.await, behind.await);
    assert!(matches!(outcome, Err(CommitError::Unknown(_))), "{outcome:?}");
    assert!(matches!(behind, Err(CommitError::Unavailable(_))), "nobody began to write it: {behind:?}");
    check_failed(&store, leadership, watch).await;
}

#[tokio::test]
async fn a_failed_write_ends_the_writing() {
    let (store, disk) = store();
    let leadership = store.campaign("one").await.unwrap();
    let watch = store.watch("k", Revision(1)).await.unwrap();
    disk.change(|disk| disk.fail_writes = true);
    let outcome = store.commit(put("k".to_owned())).await;
    assert!(matches!(outcome, Err(CommitError::Unknown(_) | CommitError::Unavailable(_))), "{outcome:?}");
    check_failed(&store, leadership, watch).await;
}
