//! Rules of reading and writing keys.

use super::*;
use crate::store::{Error, MAX_OPERATIONS, MAX_VALUE_BYTES};
use tokio::task::JoinSet;

/// What was written is read; what was not is not there.
pub async fn a_key_is_read_as_written(subject: &dyn Subject) {
    let store = subject.fresh().await;
    assert_eq!(get(&store, "a").await, None);
    let bytes: Vec<u8> = (0..=255).collect();
    let revision = write(&store, vec![put("a", bytes.clone()), put("ä #(x)/ö", "")]).await;
    let item = get(&store, "a").await.expect("it was written");
    let expected =
        KeyValue { key: "a".to_owned(), value: bytes.into(), created: revision, modified: revision, version: 1 };
    assert_eq!(item, expected);
    assert_eq!(get(&store, "ä #(x)/ö").await.expect("it was written").value, Bytes::new());
    write(&store, vec![delete("a")]).await;
    assert_eq!(get(&store, "a").await, None);
}

/// A key's version counts from 1 again when it is deleted and created anew.
pub async fn versions_count_writes_since_creation(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let first = write(&store, vec![put("a", "1")]).await;
    write(&store, vec![put("other", "1")]).await;
    let second = write(&store, vec![put("a", "1")]).await;
    let item = get(&store, "a").await.expect("it was written");
    assert_eq!((item.created, item.modified, item.version), (first, second, 2), "the same value again is a write, too");
    write(&store, vec![put("a", "3"), put("other", "2")]).await;
    assert_eq!(get(&store, "a").await.expect("it was written").version, 3);
    write(&store, vec![delete("a")]).await;
    let third = write(&store, vec![put("a", "1")]).await;
    let item = get(&store, "a").await.expect("it was written");
    assert_eq!((item.created, item.modified, item.version), (third, third, 1));
}

/// Each transaction that changes something takes the next revision; none else takes one.
pub async fn revisions_count_transactions_that_write(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let start = now(&store).await;
    let after = |writes: u64| Revision(start.0 + writes);
    assert_eq!(write(&store, vec![put("a", "1"), put("b", "1"), put("c", "1")]).await, after(1));
    assert_eq!(store.commit(transaction(vec![version("a", 1)], vec![])).await.expect("it holds"), after(1));
    assert_eq!(write(&store, vec![delete("absent")]).await, after(1), "deleting what is not there changes nothing");
    assert_refused_by(store.commit(transaction(vec![version("a", 7)], vec![put("a", "2")])).await, "a");
    assert_eq!(now(&store).await, after(1));
    assert_eq!(write(&store, vec![delete("a"), delete("absent")]).await, after(2));
    assert_eq!(write(&store, vec![put("a", "1")]).await, after(3));
    assert_eq!(now(&store).await, after(3));
}

async fn keys(store: &Arc<dyn Store>, prefix: &str, after: Option<&str>, at: Option<Revision>, limit: usize) -> String {
    let page = store.range(prefix, after, at, limit).await.expect("a read is answered");
    let keys: Vec<_> = page.items.iter().map(|item| item.key.as_str()).collect();
    format!("{}{}", keys.join(" "), if page.more { " …" } else { "" })
}

/// A range has the keys with its prefix and no others, in order of their bytes.
pub async fn ranges_are_ordered_and_bounded_by_prefix(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let names = ["p/b", "p/a", "p", "p0", "q/a", "p/ü", "p/B", "p/a/a", "o"];
    write(&store, names.iter().map(|name| put(*name, *name)).collect()).await;
    assert_eq!(keys(&store, "p/", None, None, 100).await, "p/B p/a p/a/a p/b p/ü");
    assert_eq!(keys(&store, "p", None, None, 100).await, "p p/B p/a p/a/a p/b p/ü p0");
    assert_eq!(keys(&store, "", None, None, 100).await, "o p p/B p/a p/a/a p/b p/ü p0 q/a");
    assert_eq!(keys(&store, "x", None, None, 100).await, "");
    let page = store.range("p/a", None, None, 1).await.expect("a read is answered");
    assert_eq!(page.items, vec![get(&store, "p/a").await.expect("it was written")]);
}

/// Pages end at the limit, say whether more follows, and go on after a key, whether or not it is (still) there.
pub async fn ranges_are_paged(subject: &dyn Subject) {
    let store = subject.fresh().await;
    write(&store, ["p/1", "p/2", "p/3", "p/4", "q"].iter().map(|name| put(*name, "")).collect()).await;
    assert_eq!(keys(&store, "p/", None, None, 2).await, "p/1 p/2 …");
    assert_eq!(keys(&store, "p/", Some("p/2"), None, 2).await, "p/3 p/4", "what follows has another prefix");
    assert_eq!(keys(&store, "p/", Some("p/25"), None, 1).await, "p/3 …");
    assert_eq!(keys(&store, "p/", Some("p/4"), None, 2).await, "");
    assert_eq!(keys(&store, "p/", Some("a"), None, 2).await, "p/1 p/2 …", "after something before the prefix");
    assert_eq!(keys(&store, "p/", Some("q"), None, 2).await, "", "after something behind the prefix");
    assert_eq!(keys(&store, "p/", None, None, 4).await, "p/1 p/2 p/3 p/4");
    assert_eq!(keys(&store, "p/", None, None, 0).await, "p/1 …", "a page has room for one at least");
}

/// All pages at one revision show the state of that revision, whatever is written meanwhile.
pub async fn pages_at_a_revision_are_one_state(subject: &dyn Subject) {
    let store = subject.fresh().await;
    write(&store, (0..10).map(|n| put(format!("p/{n}"), "old")).collect()).await;
    write(&store, vec![put("p/3", "old")]).await;
    let first = store.range("p/", None, None, 4).await.expect("a read is answered");
    let whole = store.range("p/", None, None, 100).await.expect("a read is answered").items;
    write(&store, vec![put("p/5", "new"), delete("p/6"), put("p/65", "new"), delete("p/0"), put("q", "new")]).await;
    write(&store, vec![put("p/6", "new"), put("p/5", "newer"), delete("p/65"), delete("p/9")]).await;
    let mut pages = first.items.clone();
    let mut more = first.more;
    while more {
        let after = pages.last().map(|item| item.key.clone());
        let page = store.range("p/", after.as_deref(), Some(first.revision), 4).await.expect("a read is answered");
        assert_eq!(page.revision, first.revision);
        more = page.more;
        pages.extend(page.items);
    }
    assert_eq!(pages, whole, "values, versions and revisions are those of the time");
    assert_eq!(keys(&store, "p/", None, None, 100).await, "p/1 p/2 p/3 p/4 p/5 p/6 p/7 p/8");
    let between = Revision(first.revision.0 + 1);
    assert_eq!(keys(&store, "p/", None, Some(between), 100).await, "p/1 p/2 p/3 p/4 p/5 p/65 p/7 p/8 p/9");
    assert_eq!(keys(&store, "p/", Some("p/5"), Some(between), 2).await, "p/65 p/7 …");
}

/// The future cannot be read.
pub async fn a_revision_not_reached_yet_is_not_readable(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let revision = write(&store, vec![put("a", "1")]).await;
    let outcome = store.range("a", None, Some(Revision(revision.0 + 1)), 1).await;
    assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
}

/// A revision that was compacted is refused, with what can be read instead.
pub async fn a_compacted_revision_is_not_readable(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let old = write(&store, vec![put("a", "1")]).await;
    for _ in 0..4 {
        write(&store, vec![put("a", "2")]).await;
    }
    let kept = write(&store, vec![put("a", "3")]).await;
    subject.compact(&store, kept).await;
    match store.range("a", None, Some(old), 1).await {
        Err(Error::Compacted { asked, oldest }) => {
            assert_eq!(asked, old);
            assert!(old < oldest && oldest <= kept, "oldest {oldest}, compacted before {kept}");
            let page = store.range("a", None, Some(kept), 1).await.expect("what was not compacted is readable");
            assert_eq!(page.items.first().map(|item| item.value.clone()), Some("3".into()));
        }
        other => panic!("revision {old} is compacted before {kept}, but: {other:?}"),
    }
}

/// A key's version, 0 for one that is not there.
pub async fn a_version_precondition_holds_or_refuses(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let attempt = async |wanted: u64| store.commit(transaction(vec![version("a", wanted)], vec![put("b", "")])).await;
    attempt(0).await.expect("it is absent");
    assert_refused_by(attempt(1).await, "a");
    write(&store, vec![put("a", "")]).await;
    assert_refused_by(attempt(0).await, "a");
    attempt(1).await.expect("it was written once");
    write(&store, vec![put("a", "")]).await;
    assert_refused_by(attempt(1).await, "a");
    attempt(2).await.expect("it was written twice");
    write(&store, vec![delete("a")]).await;
    assert_refused_by(attempt(2).await, "a");
    attempt(0).await.expect("it was deleted");
}

/// A key's value; one that is not there has none, not even the empty one.
pub async fn a_value_precondition_holds_or_refuses(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let attempt =
        async |wanted: &'static str| store.commit(transaction(vec![value("a", wanted)], vec![put("b", "")])).await;
    assert_refused_by(attempt("").await, "a");
    write(&store, vec![put("a", "")]).await;
    attempt("").await.expect("it is empty");
    assert_refused_by(attempt("x").await, "a");
    write(&store, vec![put("a", "xy")]).await;
    assert_refused_by(attempt("x").await, "a");
    assert_refused_by(attempt("").await, "a");
    attempt("xy").await.expect("it has this value");
}

/// One precondition that does not hold is enough, wherever it stands, and then nothing is written.
pub async fn a_refused_transaction_changes_nothing(subject: &dyn Subject) {
    let store = subject.fresh().await;
    write(&store, vec![put("a", "1"), put("b", "1")]).await;
    let before = store.range("", None, None, 100).await.expect("a read is answered");
    let writes = vec![put("a", "2"), delete("b"), put("c", "2")];
    let outcome = store.commit(transaction(vec![version("a", 1), value("b", "1"), version("c", 1)], writes)).await;
    assert_refused_by(outcome, "c");
    assert_eq!(store.range("", None, None, 100).await.expect("a read is answered"), before);
}

/// What a transaction writes does not count for its own preconditions.
pub async fn preconditions_see_the_state_before_the_transaction(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let claim = || transaction(vec![Precondition::absent("a")], vec![put("a", "mine")]);
    store.commit(claim()).await.expect("it was free");
    assert_refused_by(store.commit(claim()).await, "a");
    let release = || transaction(vec![value("a", "mine")], vec![delete("a")]);
    store.commit(release()).await.expect("it is mine");
    assert_refused_by(store.commit(release()).await, "a");
}

/// A key twice in a transaction is illegal, whatever is done to it; so is an empty key.
pub async fn no_key_is_written_twice_in_a_transaction(subject: &dyn Subject) {
    let store = subject.fresh().await;
    for (first, second) in [(put("a", "1"), put("a", "2")), (put("a", "1"), delete("a")), (delete("a"), put("a", "1"))]
    {
        assert_illegal(store.commit(transaction(vec![], vec![first, put("b", ""), second])).await, "a key twice");
    }
    assert_illegal(store.commit(transaction(vec![], vec![put("", "1")])).await, "an empty key");
    assert_eq!(get(&store, "a").await, None);
    assert_eq!(get(&store, "b").await, None);
}

/// The limit holds for compares (the fence is one) and for writes, each for themselves, and is itself allowed.
pub async fn a_transaction_has_a_bounded_number_of_operations(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let writes = |count: usize| (0..count).map(|n| put(format!("w/{n}"), "")).collect::<Vec<_>>();
    let checks = |count: usize| (0..count).map(|n| version(format!("c/{n}"), 0)).collect::<Vec<_>>();
    let most = transaction(checks(MAX_OPERATIONS), writes(MAX_OPERATIONS));
    store.commit(most).await.expect("exactly the limit is allowed");
    assert_illegal(store.commit(transaction(vec![], writes(MAX_OPERATIONS + 1))).await, "a write too many");
    assert_illegal(store.commit(transaction(checks(MAX_OPERATIONS + 1), vec![])).await, "a precondition too many");
    let fence = Some(crate::Fence { key: "f".to_owned(), created: Revision(1) });
    let fenced = Transaction { fence, ..transaction(checks(MAX_OPERATIONS), vec![]) };
    assert_illegal(store.commit(fenced).await, "a fence beside as many preconditions as allowed");
}

/// The limit itself is allowed, one byte more is not.
pub async fn a_value_has_a_bounded_size(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let largest = Bytes::from(vec![7; MAX_VALUE_BYTES]);
    write(&store, vec![put("a", largest.clone())]).await;
    assert_eq!(get(&store, "a").await.expect("it was written").value, largest);
    let too_large = put("a", vec![7; MAX_VALUE_BYTES + 1]);
    assert_illegal(store.commit(transaction(vec![], vec![put("b", ""), too_large])).await, "a byte too many");
    assert_eq!(get(&store, "b").await, None);
}

/// Of many that claim the same absent key at once, exactly one gets it, and the key says who.
pub async fn one_of_many_claims_wins(subject: &dyn Subject) {
    let store = subject.fresh().await;
    for round in 0..8 {
        let key = format!("claim/{round}");
        let mut claims = JoinSet::new();
        for claimant in 0..32 {
            let (store, key) = (Arc::clone(&store), key.clone());
            claims.spawn(async move {
                let name = format!("claimant {claimant}");
                let won = store.commit(transaction(vec![Precondition::absent(&key)], vec![put(&key, name.clone())]));
                match won.await {
                    Ok(revision) => Some((name, revision)),
                    Err(error) => {
                        assert_refused_by(Err(error), &key);
                        None
                    }
                }
            });
        }
        let winners: Vec<_> = claims.join_all().await.into_iter().flatten().collect();
        let item = get(&store, &key).await.expect("somebody must win");
        let owner = (String::from_utf8_lossy(&item.value).into_owned(), item.modified);
        assert_eq!(winners, [owner], "exactly one wins, and it is the one the key names");
    }
}

/// Read, add one, write if nobody was faster, else again: every addition counts, and every write has its own revision.
pub async fn concurrent_counters_lose_nothing(subject: &dyn Subject) {
    const ADDERS: u64 = 8;
    const EACH: u64 = 8;
    let store = subject.fresh().await;
    write(&store, vec![put("n", "0")]).await;
    let mut adders = JoinSet::new();
    for _ in 0..ADDERS {
        let store = Arc::clone(&store);
        adders.spawn(async move {
            let mut revisions = Vec::new();
            while (revisions.len() as u64) < EACH {
                let item = get(&store, "n").await.expect("it is never deleted");
                let count: u64 = String::from_utf8_lossy(&item.value).parse().expect("only numbers are written");
                let add = transaction(vec![version("n", item.version)], vec![put("n", (count + 1).to_string())]);
                match store.commit(add).await {
                    Ok(revision) => revisions.push(revision),
                    Err(error) => assert_refused_by(Err(error), "n"),
                }
            }
            revisions
        });
    }
    let mut revisions = adders.join_all().await.concat();
    revisions.sort();
    revisions.dedup();
    assert_eq!(revisions.len() as u64, ADDERS * EACH, "no two transactions share a revision");
    let item = get(&store, "n").await.expect("it is never deleted");
    assert_eq!(item.value, (ADDERS * EACH).to_string());
    assert_eq!(item.version, ADDERS * EACH + 1);
    assert_eq!(Some(&item.modified), revisions.last());
}
