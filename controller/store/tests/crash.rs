//! Crash safety of the embedded store: a process that commits as fast as it can is killed without warning, again and
//! again; whatever it was told is there, whole, and all counters agree.

use berth_store::embedded::{Embedded, OpenError};
use berth_store::{Event, KeyValue, Revision, Store};
use futures::StreamExt as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const ROUNDS: u64 = 10;
const SEED: u64 = 0x0be7_74ed;
/// How far back the watch of each round looks: a few groups.
const LOOK_BACK: u64 = 300;

#[expect(clippy::disallowed_methods, reason = "a crash needs a process to crash")]
fn child(dir: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-store-crash-child"));
    command.arg(dir).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the child starts")
}

/// What the child was told before it died.
#[derive(Debug, Default)]
struct Told {
    term: u64,
    /// Revision by lane and number.
    done: BTreeMap<(u64, u64), Revision>,
}

impl Told {
    fn note(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap_or_else(|_| panic!("line {line:?}"));
        match words[0] {
            "term" => self.term = number(1),
            "done" => assert_eq!(self.done.insert((number(1), number(2)), Revision(number(3))), None, "told twice"),
            other => panic!("unexpected word {other}"),
        }
    }
}

/// Lets a child run until it has told `lines` lines, kills it, and reads what it told to the end.
fn run_and_kill(dir: &Path, lines: usize) -> Told {
    let mut child = child(dir);
    let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut told = Told::default();
    let mut count = 0;
    loop {
        let mut line = String::new();
        output.read_line(&mut line).expect("stdout is readable");
        // A line without an end was cut by the kill: nobody was told.
        let Some(line) = line.strip_suffix('\n') else { break };
        told.note(line);
        count += 1;
        if count == lines {
            child.kill().expect("the child can be killed");
        }
    }
    let output = child.wait_with_output().expect("the child ends");
    assert!(count >= lines, "the child ended by itself: {}", String::from_utf8_lossy(&output.stderr));
    told
}

async fn all(store: &Embedded, prefix: &str) -> Vec<KeyValue> {
    let mut page = store.range(prefix, None, None, 500).await.expect("a read is answered");
    let mut items = std::mem::take(&mut page.items);
    while page.more {
        let after = items.last().map(|item| item.key.clone());
        page = store.range(prefix, after.as_deref(), Some(page.revision), 500).await.expect("a read is answered");
        items.append(&mut page.items);
    }
    items
}

fn text(item: &KeyValue) -> String {
    String::from_utf8_lossy(&item.value).into_owned()
}

/// Checks the whole store against what it must be; gives its revision.
async fn check(store: &Embedded, told: &Told, round: u64) -> Revision {
    assert_eq!(told.term, round, "each round has had one leadership");
    let revision = store.range("lane/", None, None, 1).await.expect("a read is answered").revision;
    let lanes = all(store, "lane/").await;
    let mut transactions: BTreeMap<String, Vec<KeyValue>> = BTreeMap::new();
    for item in all(store, "transaction/").await {
        transactions.entry(text(&item)).or_default().push(item);
    }
    let mut expected = 0;
    for lane in &lanes {
        let number = lane.key.strip_prefix("lane/").expect("it has this prefix");
        assert_eq!(text(lane), format!("{number} {}", lane.version), "its version counts the lane's transactions");
        expected += lane.version;
        for n in 1..=lane.version {
            let parts = transactions.remove(&format!("{number} {n}"));
            let parts = parts.unwrap_or_else(|| panic!("transaction {n} of lane {number} is lost"));
            let keys: Vec<_> = parts.iter().map(|item| item.key.clone()).collect();
            let whole: Vec<_> = (0..3).map(|part| format!("transaction/{number}/{n}/{part}")).collect();
            assert_eq!(keys, whole, "a transaction is there in part");
            let revisions: Vec<_> = parts.iter().map(|item| (item.created, item.modified, item.version)).collect();
            assert_eq!(revisions, [(revisions[0].0, revisions[0].0, 1); 3], "it was one revision");
            if n == lane.version {
                assert_eq!(lane.modified, revisions[0].0);
            }
        }
    }
    assert_eq!(transactions.len(), 0, "transactions that their lane does not know: {transactions:?}");
    assert_eq!(revision.0, expected + round, "each transaction and each leadership took one revision");
    for ((lane, n), revision) in &told.done {
        let item = store.get(&format!("transaction/{lane}/{n}/0")).await.expect("a read is answered");
        let item = item.unwrap_or_else(|| panic!("transaction {n} of lane {lane} was acknowledged and is lost"));
        assert_eq!(item.modified, *revision, "it was acknowledged at another revision");
    }
    revision
}

/// The watch shows every revision from the past on, each whole, and then what is committed next.
async fn check_watch(store: &Embedded, revision: Revision) {
    let from = revision.0.saturating_sub(LOOK_BACK).max(1);
    let mut watch = store.watch("", Revision(from)).await.expect("that much is kept");
    for expected in from..=revision.0 {
        let item = watch.next().await.expect("the watch goes on").expect("the watch does not fail");
        let seen: Vec<_> = item.iter().map(|event| event.revision().0).collect();
        match item.as_slice() {
            [Event::Put(leader)] => assert_eq!(leader.key, berth_store::key::leader()),
            [Event::Put(a), Event::Put(b), Event::Put(c), Event::Put(d)] => {
                assert_eq!([text(b), text(c), text(d)], [text(a), text(a), text(a)], "one transaction's writes");
            }
            other => panic!("a revision has changes of no transaction: {other:?}"),
        }
        assert!(seen.iter().all(|seen| *seen == expected), "revision {expected} is missing: {seen:?}");
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_kills() {
    println!("seed {SEED:#x}");
    let mut random = StdRng::seed_from_u64(SEED);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut everything = Told::default();
    for round in 1..=ROUNDS {
        let Told { term, done } = run_and_kill(dir.path(), random.random_range(1..1_000));
        everything.term = term;
        for (transaction, revision) in done {
            assert_eq!(everything.done.insert(transaction, revision), None, "{transaction:?} was acknowledged twice");
        }
        let store = Embedded::open(dir.path()).expect("the store opens after a kill");
        let revision = check(&store, &everything, round).await;
        check_watch(&store, revision).await;
    }
}

#[test]
fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Embedded::open(dir.path()).expect("an empty directory opens");
    let output = child(dir.path()).wait_with_output().expect("the child ends");
    assert!(!output.status.success());
    let sentence = format!(
        "data directory {} is in use by another process: stop that one, or choose another directory\n",
        dir.path().display()
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), sentence);
    let again = Embedded::open(dir.path());
    assert!(matches!(again, Err(OpenError::InUse { .. })), "{again:?}");
    drop(store);
    Embedded::open(dir.path()).expect("it is free again");
}

#[test]
fn a_killed_process_leaves_the_directory_free() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    run_and_kill(dir.path(), 1);
    Embedded::open(dir.path()).expect("the lock went with the process");
}
