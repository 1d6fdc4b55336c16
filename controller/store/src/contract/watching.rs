//! Rules of watches.

use super::*;
use crate::store::{Error, WatchError};
use tokio::task::JoinSet;

async fn watch(store: &Arc<dyn Store>, prefix: &str, from: Revision) -> Watch {
    store.watch(prefix, from).await.expect("a watch from a revision that is kept begins")
}

fn next_after(revision: Revision) -> Revision {
    Revision(revision.0 + 1)
}

async fn put_event(store: &Arc<dyn Store>, key: &str) -> Event {
    Event::Put(get(store, key).await.expect("it was written"))
}

/// From the next revision on, a watch shows each change once it is committed, creation, change and deletion.
pub async fn a_watch_sees_what_is_committed_from_now_on(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let before = write(&store, vec![put("a", "before")]).await;
    let mut watch = watch(&store, "", next_after(before)).await;
    write(&store, vec![put("a", "1")]).await;
    assert_eq!(next(&mut watch).await, [put_event(&store, "a").await]);
    write(&store, vec![put("b", "1")]).await;
    assert_eq!(next(&mut watch).await, [put_event(&store, "b").await]);
    let revision = write(&store, vec![delete("a")]).await;
    assert_eq!(next(&mut watch).await, [Event::Delete { key: "a".to_owned(), revision }]);
    assert_refused_by(store.commit(transaction(vec![version("b", 9)], vec![put("b", "refused")])).await, "b");
    write(&store, vec![delete("absent")]).await;
    write(&store, vec![put("a", "2")]).await;
    assert_eq!(next(&mut watch).await, [put_event(&store, "a").await], "what changed nothing is not shown");
}

/// From an old revision, a watch shows what was, as it was then, and goes on with what comes, in one row.
pub async fn a_watch_starts_in_the_past(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let start = now(&store).await;
    write(&store, vec![put("a", "1")]).await;
    let first = put_event(&store, "a").await;
    write(&store, vec![put("a", "2")]).await;
    let second = put_event(&store, "a").await;
    let third = Event::Delete { key: "a".to_owned(), revision: write(&store, vec![delete("a")]).await };
    let from = second.revision();
    let expected = [first, second, third];
    let mut all = watch(&store, "a", next_after(start)).await;
    let mut some = watch(&store, "a", from).await;
    for event in &expected {
        assert_eq!(next(&mut all).await, std::slice::from_ref(event));
    }
    for event in &expected[1..] {
        assert_eq!(next(&mut some).await, std::slice::from_ref(event), "the revision itself is included");
    }
    write(&store, vec![put("a", "3")]).await;
    let last = [put_event(&store, "a").await];
    assert_eq!(next(&mut all).await, last);
    assert_eq!(next(&mut some).await, last);
}

/// Changes of other keys are not shown, not even as an empty item.
pub async fn a_watch_sees_its_prefix_only(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let start = now(&store).await;
    write(&store, vec![put("q/a", "1")]).await;
    write(&store, vec![put("p/a", "1"), put("p", "1"), put("p0", "1")]).await;
    write(&store, vec![put("q/a", "2")]).await;
    write(&store, vec![put("p/b", "1")]).await;
    let mut watch = watch(&store, "p/", next_after(start)).await;
    assert_eq!(next(&mut watch).await, [put_event(&store, "p/a").await]);
    assert_eq!(next(&mut watch).await, [put_event(&store, "p/b").await]);
}

/// What one transaction changed comes as one item.
pub async fn a_watch_gives_all_changes_of_a_revision_at_once(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let before = write(&store, vec![put("b", "1"), put("c", "1")]).await;
    let mut live = watch(&store, "", next_after(before)).await;
    let revision = write(&store, vec![put("c", "2"), put("a", "2"), delete("b")]).await;
    let mut expected = vec![
        put_event(&store, "a").await,
        Event::Delete { key: "b".to_owned(), revision },
        put_event(&store, "c").await,
    ];
    expected.sort_by_key(|event| event.key().to_owned());
    let mut past = watch(&store, "", revision).await;
    for watch in [&mut live, &mut past] {
        let mut item = next(watch).await;
        // Within one revision no order is promised: no key is changed twice.
        item.sort_by_key(|event| event.key().to_owned());
        assert_eq!(item, expected);
    }
}

/// A watch from a revision that is compacted is refused at once or as its first item, never silently begun later.
pub async fn a_watch_from_a_compacted_revision_is_refused(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let old = write(&store, vec![put("a", "1")]).await;
    for _ in 0..4 {
        write(&store, vec![put("a", "2")]).await;
    }
    let kept = write(&store, vec![put("a", "3")]).await;
    let expected = put_event(&store, "a").await;
    subject.compact(&store, kept).await;
    let refusal = match store.watch("a", old).await {
        Err(Error::Compacted { asked, oldest }) => Some((asked, oldest)),
        Err(error) => panic!("a compacted revision must be named as such, but: {error}"),
        Ok(mut watch) => match tokio::time::timeout(PATIENCE, watch.next()).await.expect("it must say so in time") {
            Some(Err(WatchError::Compacted { asked, oldest })) => Some((asked, oldest)),
            other => panic!("revision {old} is compacted, but the watch gives {other:?}"),
        },
    };
    let (asked, oldest) = refusal.expect("it was refused");
    assert_eq!(asked, old);
    assert!(old < oldest && oldest <= kept, "oldest {oldest}, compacted before {kept}");
    assert_eq!(next(&mut watch(&store, "a", kept).await).await, [expected], "what is kept can be watched");
}

/// Watches begun before, during and after many concurrent commits, from the same revision, show the same: every
/// revision once, in order, agreeing with what the committers were told.
pub async fn no_event_is_left_out_or_doubled_under_concurrent_commits(subject: &dyn Subject) {
    const WRITERS: u64 = 8;
    const EACH: u64 = 12;
    let store = subject.fresh().await;
    let from = next_after(now(&store).await);
    let early = watch(&store, "w/", from).await;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            let mut committed = Vec::new();
            for n in 0..EACH {
                let text = format!("{writer}-{n}");
                let writes = vec![put(format!("w/own/{writer}"), text.clone()), put("w/shared", text.clone())];
                committed.push((write(&store, writes).await, text));
            }
            committed
        });
    }
    let mut readers = JoinSet::new();
    readers.spawn(collect(early, WRITERS * EACH));
    for _ in 0..3 {
        let during = watch(&store, "w/", from).await;
        readers.spawn(collect(during, WRITERS * EACH));
        tokio::task::yield_now().await;
    }
    let mut expected: Vec<_> = writers.join_all().await.concat();
    expected.sort();
    readers.spawn(collect(watch(&store, "w/", from).await, WRITERS * EACH));
    for seen in readers.join_all().await {
        assert_eq!(seen, expected);
    }
    let revisions: Vec<_> = expected.iter().map(|(revision, _)| revision.0).collect();
    assert_eq!(revisions, (from.0..from.0 + WRITERS * EACH).collect::<Vec<_>>(), "no revision is skipped");
}

/// The first `count` items of a watch, each a pair of puts with one text.
async fn collect(mut watch: Watch, count: u64) -> Vec<(Revision, String)> {
    let mut seen = Vec::new();
    while (seen.len() as u64) < count {
        let item = next(&mut watch).await;
        let texts = item.iter().map(|event| match event {
            Event::Put(item) => (item.modified, String::from_utf8_lossy(&item.value).into_owned()),
            Event::Delete { key, .. } => panic!("nobody deleted {key}"),
        });
        let mut texts: Vec<_> = texts.collect();
        assert_eq!(texts.len(), 2, "both writes of a transaction come together: {item:?}");
        texts.dedup();
        assert_eq!(texts.len(), 1, "one item has one transaction's writes: {item:?}");
        seen.extend(texts);
    }
    seen
}
