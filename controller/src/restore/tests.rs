//! A backup that is put back brings everything back, able to go on; anything else changes nothing.

use super::*;
use crate::backup::{self as taking, About};
use crate::testing::{Scripted, create, hello, node, report, uid};
use berth_core::decide::{Brain, Change, Input};
use berth_model::placement::{Phase, Progress, StepReport};
use berth_proto::v1::backup_part::Part;
use berth_proto::v1::{BackupPart, BackupRecords};
use berth_store::memory::Memory;
use berth_store::{Transaction, Write, key};
use futures::TryStreamExt as _;
use std::sync::Arc;

const TAKEN: Timestamp = Timestamp::from_millis(1_000_000_000);

const FLEET: &str = "f1ee7000-0000-4000-8000-000000000001";

fn config() -> Config {
    Config { commit_deadline: Duration::from_millis(100), ..Config::default() }
}

/// A node of 70 GPUs with so many placements: the first active, the second being prepared, the others held.
fn world(placements: u32) -> Content {
    let mut brain = Brain::load(3, Limits::default(), vec![], vec![], TAKEN).unwrap();
    let mut latest = BTreeMap::new();
    let mut decide = |brain: &mut Brain, input| {
        for change in brain.decide(TAKEN, input).unwrap().changes {
            if let Change::PutNode(node) = change {
                latest.insert(node.name.clone(), (*node).clone());
            }
        }
    };
    decide(&mut brain, Input::Connected(Box::new(hello("n1"))));
    let vms = [(1, "vm-p1"), (2, "vm-p2")];
    decide(&mut brain, Input::Report { node: node("n1"), report: Box::new(report(70, &vms)) });
    for number in 1..=placements {
        decide(&mut brain, create(number, &format!("p{number}")));
    }
    if let Some(first) = brain.world().placement(&"p1".parse().unwrap()).cloned() {
        let progress = Progress {
            generation: first.generation,
            uid: uid(1),
            report: StepReport::Satisfied,
            forced: Vec::new(),
            install: None,
            removed_role: None,
        };
        decide(&mut brain, Input::Progress { node: node("n1"), progress: Box::new(progress) });
    }
    let placements = brain.world().placements().map(|p| Placement { version: 1, ..Placement::clone(p) }).collect();
    let nodes = latest.into_values().map(|node| berth_model::node::StoredNode { version: 1, ..node }).collect();
    Content { term: 3, fleet: Some(FLEET.parse().unwrap()), nodes, placements }
}

async fn filled(content: &Content) -> Arc<Memory> {
    let store = Arc::new(Memory::new());
    let led = lead(store.as_ref(), "test").await.unwrap();
    let deadline = Duration::from_secs(5);
    refill::write(store.as_ref(), &led.fence, "Restore", deadline, content, &Limits::default(), TAKEN).await.unwrap();
    store
}

async fn parts(store: Arc<dyn Store>) -> Vec<BackupPart> {
    let about = About { berth_version: "0.1.0", taken_at: TAKEN, term: 0 };
    taking::take(store, about).try_collect().await.unwrap()
}

struct File {
    dir: tempfile::TempDir,
}

impl File {
    fn new(parts: &[BackupPart]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = parts.iter().flat_map(prost::Message::encode_length_delimited_to_vec).collect();
        std::fs::write(dir.path().join("b"), bytes).unwrap();
        Self { dir }
    }

    fn options(&self, yes: bool, into_nonempty: bool) -> Restore {
        Restore { file: self.dir.path().join("b"), yes, into_nonempty }
    }
}

/// Restores a while after the backup; gives what was said.
async fn restore(store: &dyn Store, options: Restore, answer: &'static str) -> (anyhow::Result<()>, String) {
    let mut out = Vec::new();
    let now = TAKEN.after(Duration::from_secs(7_200));
    let ended = run(store, &config(), &options, now, &mut Console::new(&mut out, answer.as_bytes())).await;
    (ended, String::from_utf8(out).unwrap())
}

async fn content(store: &dyn Store) -> Content {
    let (mut nodes, mut placements) = (Vec::new(), Vec::new());
    for item in store.range(key::NODES, None, None, 10_000).await.unwrap().items {
        nodes.push(record::read_node(&item).unwrap());
    }
    for item in store.range(key::PLACEMENTS, None, None, 10_000).await.unwrap().items {
        placements.push(record::read_placement(&item).unwrap());
    }
    let fleet = berth_store::fleet::of(store).await.unwrap();
    Content { term: 0, fleet, nodes, placements }
}

async fn lead(store: &dyn Store, what: &str) -> anyhow::Result<berth_store::Leadership> {
    let mut out = Vec::new();
    refill::lead(store, what, &mut Console::new(&mut out, std::io::empty())).await
}

#[tokio::test]
async fn what_was_backed_up_comes_back_and_can_go_on() {
    let was = world(3);
    let file = File::new(&parts(filled(&was).await).await);
    let fresh = Memory::new();
    let (ended, said) = restore(&fresh, file.options(false, false), "yes\n").await;
    ended.unwrap();
    for part in ["3 placements", "1 Active", "1 Held", "1 Preparing", "70 GPUs", "2h ago", "which is empty"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let mut is = content(&fresh).await;
    let leap = 1_000 + 7_200;
    let generation = was.nodes[0].generation + leap;
    assert_eq!(is.nodes[0].generation, generation);
    for (is, was) in is.placements.iter_mut().zip(&was.placements) {
        // What an agent said of a wish made since must not answer one of these.
        let wished = !matches!(was.phase, Phase::Held { .. });
        assert_eq!(is.generation, if wished { generation } else { was.generation });
        assert_eq!(is.phase.deadline(), was.phase.deadline().map(|at| at.after(Duration::from_secs(7_200))));
        is.generation = was.generation;
        is.phase = was.phase.clone();
    }
    assert_eq!(is.placements, was.placements);
    let next = fresh.campaign("next").await.unwrap();
    assert!(next.term > was.term + leap, "term {}", next.term);
    load::load(&fresh, next.term, &Limits::default(), TAKEN).await.unwrap();
}

#[tokio::test]
async fn the_audit_tells_of_each_placement_that_came_back() {
    let content = world(3);
    let store = filled(&content).await;
    let fresh = store.range(berth_store::audit::FRESH, None, None, 100).await.unwrap().items;
    let mut told = Vec::new();
    for item in &fresh {
        let written: Vec<_> = content.placements.iter().map(|placement| key::placement(placement.name())).collect();
        for record in berth_store::audit::read_batch(item).unwrap() {
            let key = key::placement(&record.placement.parse().unwrap());
            let placement = store.get(&key).await.unwrap().unwrap();
            assert!(written.contains(&key) && placement.modified == item.modified, "{record:?}: another transaction");
            told.push((record.action.clone(), record.placement, record.uid));
        }
    }
    let expected =
        content.placements.iter().map(|it| ("Restore".to_owned(), it.name().to_string(), it.uid.to_string()));
    assert_eq!(told, expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn nothing_happens_without_a_yes() {
    let file = File::new(&parts(filled(&world(2)).await).await);
    for answer in ["", "\n", "n\n", "perhaps\n"] {
        let fresh = Memory::new();
        let (ended, said) = restore(&fresh, file.options(false, false), answer).await;
        assert!(ended.unwrap_err().to_string().contains("nothing was changed"), "{answer:?}: {said}");
        assert_eq!(refill::keys(&fresh).await.unwrap(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_store_with_something_in_it_is_replaced_only_as_a_whole_and_only_when_told() {
    let file = File::new(&parts(filled(&world(2)).await).await);
    let other = filled(&world(60)).await;
    let before = content(other.as_ref()).await;
    let (ended, _) = restore(other.as_ref(), file.options(true, false), "").await;
    let why = format!("{:#}", ended.unwrap_err());
    assert!(why.contains("60 placements") && why.contains("--into-nonempty"), "{why}");
    assert_eq!(content(other.as_ref()).await, before);

    let (ended, said) = restore(other.as_ref(), file.options(true, true), "").await;
    ended.unwrap();
    assert!(said.contains("records are REPLACED"), "{said}");
    let names: Vec<_> = content(other.as_ref()).await.placements.iter().map(|p| p.name().to_string()).collect();
    assert_eq!(names, ["p1", "p2"]);
    load::load(other.as_ref(), 1, &Limits::default(), TAKEN).await.unwrap();
}

/// Cut off after any transaction, nobody can lead what lies there, and doing it again completes it.
#[tokio::test]
async fn a_restore_that_is_cut_off_leaves_nothing_that_a_controller_would_lead() {
    for (before, after) in [(0, 65), (65, 2), (2, 65), (65, 0), (65, 65)] {
        let file = File::new(&parts(filled(&world(after)).await).await);
        let mut refused = 0;
        for permits in 0.. {
            let store = Scripted::new(10_000);
            let led = lead(store.as_ref(), "test").await.unwrap();
            let old = world(before);
            refill::write(
                store.as_ref(),
                &led.fence,
                "Restore",
                Duration::from_secs(5),
                &old,
                &Limits::default(),
                TAKEN,
            )
            .await
            .unwrap();
            store.gate.forget_permits(10_000);
            store.gate.add_permits(permits);
            let (ended, _) = restore(store.as_ref(), file.options(true, true), "").await;
            if ended.is_ok() {
                break;
            }
            let error = format!("{:#}", ended.unwrap_err());
            assert!(error.contains("no controller starts"), "{error}");
            match load::load(store.as_ref(), 1, &Limits::default(), TAKEN).await {
                Err(load::Error::Claims { .. }) => refused += 1,
                Err(error) => panic!("{before} to {after}, cut off after {permits}: {error}"),
                // Nothing but the term was written; or everything that matters was.
                Ok(loaded) => {
                    let there = u32::try_from(loaded.brain.world().placement_count()).unwrap();
                    assert!(there == before || there == after, "{there} of {before} or {after} after {permits}");
                }
            }
            store.gate.add_permits(10_000);
            let (ended, _) = restore(store.as_ref(), file.options(true, true), "").await;
            ended.unwrap();
        }
        assert!(refused > 0, "{before} to {after}: nothing was cut off in the middle");
    }
}

#[tokio::test]
async fn a_backup_that_contradicts_itself_is_refused_although_it_is_whole() {
    let store = filled(&world(2)).await;
    let good: Vec<BackupRecord> = records(&parts(Arc::clone(&store) as Arc<dyn Store>).await);
    let place = |name: &str| good.iter().position(|r| r.key.ends_with(&format!("placements/{name}"))).unwrap();
    type Change = Box<dyn Fn(&mut Vec<BackupRecord>)>;
    let rows: Vec<(&str, Change)> = vec![
        ("there is no such claim", Box::new(|all| all.retain(|r| !r.key.starts_with(key::GPU_CLAIMS)))),
        ("does not own it", Box::new(|all| all.retain(|r| !r.key.starts_with(key::PLACEMENTS)))),
        ("which is not known", Box::new(|all| all.retain(|r| !r.key.starts_with(key::NODES)))),
        ("is damaged", {
            let at = place("p1");
            Box::new(move |all| all[at].value.truncate(9))
        }),
        ("belongs under", {
            let (one, two) = (place("p1"), place("p2"));
            Box::new(move |all| {
                let value = all[one].value.clone();
                all[two].value = value;
            })
        }),
        ("not a key of this version", Box::new(|all| all[0].key = "berth/v1/a/b".into())),
        ("about who leads", Box::new(|all| all[0].key = key::TERM.into())),
    ];
    for (why, change) in rows {
        let mut bad = good.clone();
        change(&mut bad);
        bad.sort_by(|a, b| a.key.cmp(&b.key));
        let file = File::new(&sealed(bad));
        let fresh = Memory::new();
        let (ended, _) = restore(&fresh, file.options(true, false), "").await;
        let error = format!("{:#}", ended.unwrap_err());
        assert!(error.contains(why) && error.contains("nothing was changed"), "{why}: {error}");
        assert_eq!(fresh.range("", None, None, 10).await.unwrap().items, [], "{why}");
    }
}

fn records(parts: &[BackupPart]) -> Vec<BackupRecord> {
    let records = parts.iter().filter_map(|part| match &part.part {
        Some(Part::Records(BackupRecords { records })) => Some(records.clone()),
        Some(Part::Header(_) | Part::Trailer(_)) | None => None,
    });
    records.flatten().collect()
}

fn sealed(records: Vec<BackupRecord>) -> Vec<BackupPart> {
    let header = BackupHeader {
        format: backup::FORMAT,
        taken_at: Some(convert::timestamp(TAKEN)),
        revision: 9,
        ..BackupHeader::default()
    };
    let mut parts = vec![
        BackupPart { part: Some(Part::Header(header)) },
        BackupPart { part: Some(Part::Records(BackupRecords { records })) },
    ];
    let mut seal = backup::Seal::default();
    for part in &parts {
        seal.take(part).unwrap();
    }
    parts.push(seal.trailer());
    parts
}

#[tokio::test]
async fn a_controller_that_leads_meanwhile_is_not_overwritten() {
    let file = File::new(&parts(filled(&world(2)).await).await);
    let backup = backup::read(std::fs::read(file.dir.path().join("b")).unwrap().as_slice()).unwrap();
    let prepared = prepare(backup, &Limits::default(), TAKEN).unwrap();
    let store = Memory::new();
    let led = lead(&store, "restore").await.unwrap();
    store.campaign("a controller").await.unwrap();
    let writes = vec![Write::Put { key: key::NODES.to_owned() + "n9", value: "x".into() }];
    store.commit(Transaction { writes, ..Transaction::default() }).await.unwrap();
    let deadline = Duration::from_secs(5);
    let outcome = refill::write(&store, &led.fence, "Restore", deadline, &prepared.content, &Limits::default(), TAKEN)
        .await
        .unwrap_err();
    assert!(matches!(outcome, refill::Error::NotBegun(berth_store::CommitError::Fenced)));
    assert_eq!(refill::keys(&store).await.unwrap(), ["berth/v1/nodes/n9"]);
}
