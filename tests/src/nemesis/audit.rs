//! The audit, held against history and journal: every change is in it exactly once, in the transaction that made it, and the
//! chain that the leaders sealed in turn is whole and holds all of that and nothing else.

use super::client::channel;
use super::history::History;
use super::journal::{Acknowledged, Method};
use anyhow::{Context as _, ensure};
use berth_proto::audit::{Chain, Mark, Taken};
use berth_proto::v1::operations_client::OperationsClient;
use berth_proto::v1::{AuditPart, AuditRecord, AuditRequest, Phase};
use berth_store::Revision;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long the last records may wait to be sealed: a leader seals each second, and five after trouble with its store.
const SEALED: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// The chain as a controller tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sealed {
    /// Its last block.
    pub head: Mark,
    /// All records, refused calls included, in the order of the chain.
    pub records: Vec<AuditRecord>,
    /// The term of each block.
    terms: Vec<u64>,
    /// Records that are not part of it.
    unsealed: usize,
}

/// Reads the chain at each controller, once all is sealed and all of them tell the same.
///
/// # Errors
/// When a chain is broken, something is never sealed, they go on to differ, or one does not answer.
pub async fn read(endpoints: &[String]) -> anyhow::Result<Sealed> {
    let begun = Instant::now();
    loop {
        let mut all = Vec::new();
        for endpoint in endpoints {
            all.push(read_one(endpoint).await.with_context(|| format!("the audit of {endpoint}"))?);
        }
        let unsealed = all.iter().map(|one| one.unsealed).max().unwrap_or(0);
        let agree = all.windows(2).all(|pair| pair[0] == pair[1]);
        if let (0, true, Some(sealed)) = (unsealed, agree, all.pop()) {
            return Ok(sealed);
        }
        let limit = SEALED.as_secs();
        ensure!(
            begun.elapsed() < SEALED,
            "{unsealed} records are not sealed after {limit} s, or audits differ: {agree}"
        );
        tokio::time::sleep(LOOK).await;
    }
}

async fn read_one(endpoint: &str) -> anyhow::Result<Sealed> {
    let mut api = OperationsClient::new(channel(endpoint)?);
    let mut answer = api.audit(AuditRequest { after: 0 }).await?.into_inner();
    let mut parts = Vec::new();
    while let Some(part) = answer.message().await? {
        parts.push(part);
    }
    check(&parts).context("the chain is broken")
}

fn check(parts: &[AuditPart]) -> anyhow::Result<Sealed> {
    let (mut chain, mut sealed) = (Chain::default(), Sealed::default());
    for part in parts {
        match chain.take(part)? {
            Taken::Base(base) => ensure!(base == Mark::default(), "it begins after block {}", base.number),
            Taken::Block(_, block) => {
                sealed.terms.push(block.term);
                sealed.records.extend(block.records);
            }
            Taken::Head(_) => {}
            Taken::Unsealed(records) => sealed.unsealed += records.len(),
        }
    }
    sealed.head = chain.finish()?;
    Ok(sealed)
}

/// Everything about it that must not be.
#[must_use]
pub fn judge(history: &History, acknowledged: &[Acknowledged], sealed: &Sealed) -> Vec<String> {
    let mut wrong = written_with_its_change(history);
    wrong.extend(answered(history, acknowledged));
    wrong.extend(sealed_once(history, sealed));
    if !sealed.terms.is_sorted() {
        wrong.push(format!("blocks of the audit are of terms {:?}", sealed.terms));
    }
    wrong
}

/// Whether coming into this phase must be in the audit by itself: GPUs are given or taken, or something ends.
fn counts(phase: Phase) -> bool {
    match phase {
        Phase::Queued | Phase::Held | Phase::Active | Phase::Releasing | Phase::Released | Phase::Failed => true,
        Phase::Unspecified | Phase::Preparing | Phase::Attaching | Phase::Starting | Phase::Verifying => false,
    }
}

/// Each revision's changes and records are about the same.
fn written_with_its_change(history: &History) -> Vec<String> {
    let mut by_revision: BTreeMap<Revision, Vec<&AuditRecord>> = BTreeMap::new();
    for (revision, record) in &history.audited {
        by_revision.entry(*revision).or_default().push(record);
    }
    let mut wrong = Vec::new();
    for entered in &history.entered {
        let records = by_revision.get(&entered.revision).map(Vec::as_slice).unwrap_or_default();
        let (revision, uid, phase) = (entered.revision, entered.uid.as_str(), entered.phase);
        let about = || records.iter().filter(|record| record.uid == uid);
        if entered.is_new && !about().any(|record| record.action == "Create") {
            wrong.push(format!("revision {revision} makes {uid}, and the audit does not say who asked"));
        }
        if counts(phase) && !about().any(|record| record.phase() == phase) {
            wrong.push(format!("revision {revision} brings {uid} to {phase:?}, and the audit does not say so"));
        }
    }
    let written: BTreeSet<(Revision, &str)> =
        history.written.iter().map(|((uid, _), written)| (written.revision, uid.as_str())).collect();
    for (revision, record) in &history.audited {
        if !written.contains(&(*revision, record.uid.as_str())) {
            wrong.push(format!("revision {revision} does not write what the audit says of it: {record:?}"));
        }
    }
    wrong
}

/// Whoever was told that something is so finds in the audit that it was asked for, once.
fn answered(history: &History, acknowledged: &[Acknowledged]) -> Vec<String> {
    let mut times: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (_, record) in &history.audited {
        *times.entry((record.action.as_str(), record.uid.as_str())).or_default() += 1;
    }
    let mut wrong = Vec::new();
    for (&(action, uid), &times) in &times {
        if times > 1 && matches!(action, "Create" | "Commit" | "Release") {
            wrong.push(format!("{action} of {uid} is in the audit {times} times"));
        }
    }
    for answer in acknowledged {
        let (action, may_be_nobodys) = match answer.method {
            Method::Create => ("Create", false),
            // The agent may have seen the VM first: then saying so changes nothing.
            Method::Commit => ("Commit", true),
            // What failed ends by itself.
            Method::Release => ("Release", answer.placement.phase() == Phase::Failed),
        };
        if !may_be_nobodys && !times.contains_key(&(action, answer.placement.uid.as_str())) {
            wrong.push(format!("{action} of {} was acknowledged, and is not in the audit", answer.name()));
        }
    }
    wrong
}

/// What was written beside the changes is in the chain, all of it and once.
fn sealed_once(history: &History, sealed: &Sealed) -> Vec<String> {
    let mut times: BTreeMap<Vec<u8>, (i64, &AuditRecord)> = BTreeMap::new();
    for (_, record) in &history.audited {
        times.entry(record.encode_to_vec()).or_insert((0, record)).0 += 1;
    }
    // Refused calls change nothing, and come straight into a block.
    for record in sealed.records.iter().filter(|record| record.refused.is_empty()) {
        times.entry(record.encode_to_vec()).or_insert((0, record)).0 -= 1;
    }
    let wrong = times.into_values().filter(|(times, _)| *times != 0);
    wrong
        .map(|(times, record)| {
            let what = if times > 0 { "is missing from the chain" } else { "is in the chain and was never written" };
            format!("{what}, {} times: {record:?}", times.abs())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Book, placement, put_placement, uid};
    use super::*;
    use berth_proto::v1::AuditBlock;
    use berth_proto::v1::audit_part::Part;
    use berth_store::Write;
    use berth_store::audit::{batch, fresh};

    fn record(action: &str, digit: u8, phase: Phase) -> AuditRecord {
        AuditRecord { action: action.to_owned(), uid: uid(digit), phase: phase.into(), ..AuditRecord::default() }
    }

    /// Writes a placement, and what the audit says of it.
    async fn put(book: &Book, version: u64, phase: Phase, records: Vec<AuditRecord>) -> Revision {
        let audited = Write::Put { key: fresh(Revision(1), version), value: batch(records) };
        book.write(vec![put_placement(&placement("a", 1, phase)), audited]).await
    }

    fn sealed(records: &[AuditRecord]) -> Sealed {
        Sealed { records: records.to_vec(), terms: vec![1, 1, 2], ..Sealed::default() }
    }

    fn acknowledged(method: Method, phase: Phase) -> Acknowledged {
        let (asked, told) = (Instant::now(), Instant::now());
        Acknowledged { asked, told, method, placement: placement("a", 1, phase), revision: 9 }
    }

    async fn told() -> (Book, [AuditRecord; 3]) {
        let book = Book::led().await;
        let records = [
            record("Create", 1, Phase::Held),
            record("Phase", 1, Phase::Active),
            record("Release", 1, Phase::Releasing),
        ];
        for (version, record) in (1..).zip(&records) {
            put(&book, version, record.phase(), vec![record.clone()]).await;
        }
        (book, records)
    }

    #[tokio::test]
    async fn an_audit_as_it_should_be_is_good() {
        let (book, records) = told().await;
        let answers = [acknowledged(Method::Create, Phase::Held), acknowledged(Method::Release, Phase::Releasing)];
        assert_eq!(judge(&book.history().await, &answers, &sealed(&records)), Vec::<String>::new());
    }

    fn finds(wrong: &[String], expected: &str) {
        assert!(wrong.iter().any(|wrong| wrong.contains(expected)), "{wrong:?} does not say {expected:?}");
    }

    #[tokio::test]
    async fn a_record_that_is_lost_doubled_or_made_up_on_the_way_into_the_chain_is_found() {
        let (book, records) = told().await;
        let history = book.history().await;
        finds(&judge(&history, &[], &sealed(&records[1..])), "is missing from the chain, 1 times");
        let twice = [&records[..], &records[..1]].concat();
        finds(&judge(&history, &[], &sealed(&twice)), "was never written, 1 times");
        let late = Sealed { terms: vec![2, 1], ..sealed(&records) };
        finds(&judge(&history, &[], &late), "terms [2, 1]");
        let refused = AuditRecord { refused: "QUEUE_FULL".to_owned(), ..AuditRecord::default() };
        assert!(judge(&history, &[], &sealed(&[&records[..], &[refused]].concat())).is_empty());
    }

    #[tokio::test]
    async fn a_change_of_which_nothing_is_said_is_found() {
        let book = Book::led().await;
        put(&book, 1, Phase::Held, vec![record("Phase", 1, Phase::Held)]).await;
        put(&book, 2, Phase::Active, Vec::new()).await;
        let history = book.history().await;
        let answers = [acknowledged(Method::Create, Phase::Held), acknowledged(Method::Release, Phase::Releasing)];
        let wrong = judge(&history, &answers, &sealed(&[record("Phase", 1, Phase::Held)]));
        finds(&wrong, "does not say who asked");
        finds(&wrong, "to Active, and the audit does not say so");
        finds(&wrong, "Create of a was acknowledged, and is not in the audit");
        finds(&wrong, "Release of a was acknowledged, and is not in the audit");
        // Nobody needs to ask for what failed by itself.
        let failed = [acknowledged(Method::Release, Phase::Failed)];
        assert_eq!(answered(&history, &failed), Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_is_said_twice_or_of_another_transaction_is_found() {
        let (book, _) = told().await;
        let again = record("Release", 1, Phase::Releasing);
        let alone = Write::Put { key: fresh(Revision(1), 9), value: batch(vec![again]) };
        book.write(vec![alone]).await;
        let wrong = judge(&book.history().await, &[], &Sealed::default());
        finds(&wrong, "is in the audit 2 times");
        finds(&wrong, "does not write what the audit says of it");
    }

    #[test]
    fn a_chain_that_is_not_whole_is_no_chain() {
        let block = AuditBlock { records: vec![record("Create", 1, Phase::Held)], term: 7, ..AuditBlock::default() };
        let block = berth_proto::audit::seal(Mark::default(), block);
        let part = |part| AuditPart { part: Some(part) };
        let whole = [
            part(Part::Base(Mark::default().into())),
            part(Part::Block(block.encoded)),
            part(Part::Head(block.mark.into())),
        ];
        let read = check(&whole).unwrap();
        assert_eq!((read.head.number, read.records.len(), read.terms.as_slice()), (1, 1, [7].as_slice()));
        assert!(check(&whole[..2]).is_err());
        assert!(check(&[whole[0].clone(), whole[2].clone()]).is_err());
        assert!(check(&[part(Part::Base(block.mark.into())), whole[2].clone()]).is_err());
    }
}
