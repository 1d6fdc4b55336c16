//! Directories and files that are not a whole store of this version are refused, each with its own sentence, and left as
//! they are.

use berth_store::embedded::{Embedded, OpenError};
use berth_store::{KeyValue, Revision, Store, Transaction, Write};
use expect_test::{Expect, expect};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use redb::TableDefinition;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn file(dir: &TempDir) -> PathBuf {
    dir.path().join("berth.redb")
}

/// A store with some content, closed.
async fn filled() -> (TempDir, Vec<KeyValue>) {
    let dir = temporary();
    let store = Embedded::open(dir.path()).expect("an empty directory opens");
    for n in 0..40 {
        let writes = vec![
            Write::Put { key: format!("k/{}", n % 15), value: vec![n; 300].into() },
            Write::Delete { key: format!("k/{}", n % 7) },
        ];
        let writes = if n % 15 == n % 7 { writes[..1].to_vec() } else { writes };
        store.commit(Transaction { writes, ..Transaction::default() }).await.expect("it is committed");
    }
    let items = content(&store).await;
    (dir, items)
}

async fn content(store: &Embedded) -> Vec<KeyValue> {
    let page = store.range("", None, None, 1000).await.expect("a read is answered");
    assert_eq!(page.revision, Revision(40));
    page.items
}

fn refused(dir: &Path, sentence: Expect) -> OpenError {
    let error = Embedded::open(dir).expect_err("it must be refused");
    sentence.assert_eq(&error.to_string().replace(&dir.display().to_string(), "DIR"));
    error
}

/// Damaged, with some reason of the library below in brackets; nothing was changed.
fn refused_as_damaged(dir: &TempDir, what: &str) {
    let before = std::fs::read(file(dir)).expect("it is readable");
    match Embedded::open(dir.path()) {
        Err(OpenError::Corrupt { path, .. }) => assert_eq!(path, file(dir)),
        other => panic!("{what}: {other:?}"),
    }
    assert!(std::fs::read(file(dir)).expect("it is readable") == before, "{what}: the file was changed");
}

/// Changes the file by hand, below the store.
fn tamper(dir: &TempDir, change: impl FnOnce(&redb::WriteTransaction)) {
    let database = redb::Database::open(file(dir)).expect("it opens");
    let write = database.begin_write().expect("it begins");
    change(&write);
    write.commit().expect("it is committed");
}

fn set(dir: &TempDir, name: &str, number: u64) {
    tamper(dir, |write| {
        write.open_table(META).expect("it is there").insert(name, number).expect("it is written");
    });
}

#[tokio::test]
async fn a_store_is_found_again_as_it_was_left() {
    let (dir, items) = filled().await;
    assert!(!items.is_empty());
    let store = Embedded::open(dir.path()).expect("a whole store opens");
    assert_eq!(content(&store).await, items);
    let old = store.range("k/", None, Some(Revision(3)), 10).await.expect("the past is kept, too");
    assert_eq!(old.items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(), ["k/0", "k/1", "k/2"]);
}

#[test]
fn missing_directories_are_created() {
    let dir = temporary();
    let deep = dir.path().join("a/b/c");
    Embedded::open(&deep).expect("it is created");
    assert!(deep.join("berth.redb").is_file());
}

#[test]
fn a_file_is_no_directory() {
    let dir = temporary();
    let path = dir.path().join("data");
    std::fs::write(&path, "notes").expect("it is written");
    let error = refused(&path, expect!["DIR is not a directory: choose a directory for the data"]);
    assert!(matches!(error, OpenError::NotADirectory { .. }));
    let below = path.join("deeper");
    assert!(matches!(refused(&below, expect!["cannot use DIR: creating the directory"]), OpenError::Io { .. }));
    assert_eq!(std::fs::read(&path).expect("it is readable"), b"notes");
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let (dir, _) = filled().await;
    set(&dir, "format", 2);
    let error = refused(
        dir.path(),
        expect!["DIR/berth.redb was written by a newer Berth (format 2, this one knows up to 1): use that version"],
    );
    assert!(matches!(error, OpenError::Newer { found: 2, known: 1, .. }));
}

#[tokio::test]
async fn numbers_that_do_not_agree_are_damage() {
    let (dir, _) = filled().await;
    set(&dir, "revision", 41);
    refused(
        dir.path(),
        expect![
            "DIR/berth.redb is damaged (its history has 40 rows from 1 to 40, it should go from 1 to 41): put it aside and restore a backup"
        ],
    );
    set(&dir, "revision", 40);
    tamper(&dir, |write| {
        write.open_table(LOG).expect("it is there").remove(20).expect("it is removed");
    });
    refused(
        dir.path(),
        expect![
            "DIR/berth.redb is damaged (its history has 39 rows from 1 to 40, it should go from 1 to 40): put it aside and restore a backup"
        ],
    );
    set(&dir, "format", 0);
    refused(
        dir.path(),
        expect!["DIR/berth.redb is damaged (format 0 never existed): put it aside and restore a backup"],
    );
    tamper(&dir, |write| {
        write.open_table(META).expect("it is there").remove("format").expect("it is removed");
    });
    refused(
        dir.path(),
        expect!["DIR/berth.redb is damaged (it does not say its format): put it aside and restore a backup"],
    );
    tamper(&dir, |write| {
        assert!(write.delete_table(META).expect("it is removed"));
    });
    refused(
        dir.path(),
        expect!["DIR/berth.redb is damaged (Table 'meta' does not exist): put it aside and restore a backup"],
    );
}

#[tokio::test]
async fn a_cut_file_is_damaged_and_never_taken_for_a_new_one() {
    let (dir, _) = filled().await;
    let whole = std::fs::read(file(&dir)).expect("it is readable");
    for length in [0, 1, 8, 100, 320, 4096, whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        std::fs::write(file(&dir), &whole[..length]).expect("it is written");
        refused_as_damaged(&dir, &format!("cut to {length} of {} bytes", whole.len()));
    }
}

#[tokio::test]
async fn garbage_is_damage() {
    let (dir, _) = filled().await;
    let whole = std::fs::read(file(&dir)).expect("it is readable");
    let mut random = StdRng::seed_from_u64(7);
    let mut noise = vec![0; whole.len()];
    random.fill_bytes(&mut noise);
    let mut headed = noise.clone();
    headed[..512].copy_from_slice(&whole[..512]);
    for (what, bytes) in [
        ("text", b"this is not a database\n".to_vec()),
        ("zeros", vec![0; whole.len()]),
        ("noise", noise),
        ("noise behind a header", headed),
    ] {
        std::fs::write(file(&dir), bytes).expect("it is written");
        refused_as_damaged(&dir, what);
    }
}

/// Bytes that went bad anywhere: either they matter and the file is refused, or they did not and everything is there.
#[tokio::test]
async fn flipped_bits_are_noticed_or_do_not_matter() {
    let (dir, items) = filled().await;
    let whole = std::fs::read(file(&dir)).expect("it is readable");
    let seed = 11;
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut noticed, mut harmless) = (0, 0);
    for _ in 0..200 {
        let (at, bit) = (random.random_range(0..whole.len()), random.random_range(0..8));
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << bit;
        std::fs::write(file(&dir), &bytes).expect("it is written");
        match Embedded::open(dir.path()) {
            Ok(store) => {
                assert!(content(&store).await == items, "bit {bit} of byte {at} changed the content unnoticed");
                harmless += 1;
            }
            Err(OpenError::Corrupt { .. }) => noticed += 1,
            Err(other) => panic!("bit {bit} of byte {at}: {other}"),
        }
    }
    println!("{noticed} noticed, {harmless} harmless");
    assert!(noticed > 0, "no flip hit anything that matters: the test looks at the wrong bytes");
}

#[test]
fn what_an_unfinished_start_left_is_no_obstacle() {
    let dir = temporary();
    std::fs::write(dir.path().join("berth.redb.new"), "half of a").expect("it is written");
    Embedded::open(dir.path()).expect("it begins anew");
    assert!(!dir.path().join("berth.redb.new").exists());
}

/// Closed and opened again, terms go on.
#[tokio::test]
async fn terms_grow_over_restarts() {
    let dir = temporary();
    let mut fence = None;
    for term in 1..=3 {
        let store = Embedded::open(dir.path()).expect("it opens");
        let leadership = store.campaign("one").await.expect("a campaign is answered");
        assert_eq!(leadership.term, term);
        if let Some(fence) = fence {
            let old = store.commit(Transaction { fence: Some(fence), ..Transaction::default() }).await;
            assert!(matches!(old, Err(berth_store::CommitError::Fenced)), "{old:?}");
        }
        fence = Some(leadership.fence);
    }
}
