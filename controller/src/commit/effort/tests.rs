//! Every answer in every state of knowledge, and the ways a lost one is found again.

use super::*;
use berth_store::KeyValue;
use bytes::Bytes;

fn put(key: &str) -> Write {
    Write::Put { key: key.into(), value: Bytes::from_static(b"ours") }
}

fn create() -> Transaction {
    let preconditions = vec![Precondition::absent("old"), Precondition::Version { key: "new".into(), version: 3 }];
    Transaction { fence: None, preconditions, writes: vec![Write::Delete { key: "old".into() }, put("new")] }
}

fn page(items: &[(&str, u64, &'static str)]) -> Page {
    let item = |(key, version, value): &(&str, u64, &'static str)| KeyValue {
        key: (*key).into(),
        value: Bytes::from_static(value.as_bytes()),
        created: Revision(1),
        modified: Revision(70),
        version: *version,
    };
    Page { revision: Revision(90), items: items.iter().map(item).collect(), more: false }
}

fn unknown() -> Result<Revision, CommitError> {
    Err(CommitError::Unknown("lost".into()))
}

fn unavailable() -> Result<Revision, CommitError> {
    Err(CommitError::Unavailable("away".into()))
}

fn broken() -> Result<Revision, CommitError> {
    Err(CommitError::Precondition { key: "new".into() })
}

fn full() -> Result<Revision, CommitError> {
    Err(CommitError::Full("full".into()))
}

/// What answers come to, one after the other; a page stands for a look.
fn check(story: &[Result<Result<Revision, CommitError>, Page>], expected: &str) {
    let mut effort = Effort::new(create());
    let mut steps = Vec::new();
    for event in story {
        let next = match event {
            Ok(Ok(revision)) => effort.answered(Ok(*revision)),
            Ok(Err(CommitError::Unknown(why))) => effort.answered(Err(CommitError::Unknown(why.clone()))),
            Ok(Err(CommitError::Unavailable(why))) => effort.answered(Err(CommitError::Unavailable(why.clone()))),
            Ok(Err(CommitError::Full(why))) => effort.answered(Err(CommitError::Full(why.clone()))),
            Ok(Err(CommitError::Illegal(why))) => effort.answered(Err(CommitError::Illegal(why.clone()))),
            Ok(Err(CommitError::Fenced)) => effort.answered(Err(CommitError::Fenced)),
            Ok(Err(CommitError::Precondition { key })) => {
                effort.answered(Err(CommitError::Precondition { key: key.clone() }))
            }
            Err(page) => effort.read_back(page, true),
        };
        steps.push(match next {
            Next::Send => "send".to_owned(),
            Next::ReadBack => "look".to_owned(),
            Next::Settled(Ok(revision)) => format!("done at {revision}"),
            Next::Settled(Err(error)) => error.to_string(),
        });
    }
    assert_eq!(steps.join(", "), expected);
}

#[test]
fn what_is_certain_is_believed() {
    check(&[Ok(Ok(Revision(5)))], "done at 5");
    check(&[Ok(broken())], "precondition on new does not hold");
    check(&[Ok(full())], "the store takes no writes: full");
    check(&[Ok(Err(CommitError::Fenced))], "leadership was lost");
    check(&[Ok(Err(CommitError::Illegal("size".into())))], "transaction is illegal: size");
}

#[test]
fn what_was_surely_not_written_is_sent_again() {
    check(&[Ok(unavailable()), Ok(unavailable()), Ok(Ok(Revision(5)))], "send, send, done at 5");
}

#[test]
fn a_lost_answer_is_looked_for_before_anything_is_sent() {
    check(&[Ok(unknown()), Err(page(&[("new", 4, "ours")]))], "look, done at 70");
    check(&[Ok(unknown()), Err(page(&[("new", 3, "before")])), Ok(Ok(Revision(80)))], "look, send, done at 80");
    // A longer key that begins alike is another one.
    check(&[Ok(unknown()), Err(page(&[("newer", 4, "ours")]))], "look, send");
    // Somebody else's value, though as often written.
    check(&[Ok(unknown()), Err(page(&[("new", 4, "theirs")]))], "look, send");
}

#[test]
fn a_refusal_after_a_lost_answer_may_be_for_what_was_written_itself() {
    check(
        &[Ok(unknown()), Err(page(&[("new", 3, "before")])), Ok(broken()), Err(page(&[("new", 4, "ours")]))],
        "look, send, look, done at 70",
    );
    check(
        &[Ok(unknown()), Err(page(&[("new", 3, "before")])), Ok(broken()), Err(page(&[("new", 9, "theirs")]))],
        "look, send, look, it is not known whether the transaction was committed: precondition on new does not hold",
    );
    check(
        &[Ok(unknown()), Err(page(&[])), Ok(unavailable()), Err(page(&[])), Ok(full()), Err(page(&[]))],
        "look, send, look, send, look, send",
    );
}

#[test]
fn a_deletion_shows_by_its_absence() {
    let precondition = Precondition::Value { key: "claim".into(), value: Bytes::from_static(b"owner") };
    let writes = vec![Write::Delete { key: "claim".into() }];
    let mut effort = Effort::new(Transaction { fence: None, preconditions: vec![precondition], writes });
    assert_eq!(effort.witness(), "claim");
    assert!(matches!(effort.answered(unknown()), Next::ReadBack));
    assert!(matches!(effort.read_back(&page(&[("claim", 1, "owner")]), true), Next::Send));
    assert!(matches!(effort.read_back(&page(&[("claims", 1, "owner")]), true), Next::Settled(Ok(Revision(90)))));
}

/// A node's record says nothing of who wrote it: the next leader's may be the same to the byte, and as often written.
#[test]
fn what_looks_like_ours_is_not_believed_once_another_leads() {
    for found in [&[("new", 4, "ours")][..], &[("new", 3, "before")]] {
        let mut effort = Effort::new(create());
        effort.answered(unknown());
        let next = effort.read_back(&page(found), false);
        assert!(matches!(next, Next::Settled(Err(CommitError::Unknown(_)))), "{found:?}: {next:?}");
    }
}

#[test]
fn out_of_time_is_unknown_only_if_something_may_have_been_written() {
    let mut effort = Effort::new(create());
    effort.answered(unavailable());
    assert!(matches!(effort.give_up(), CommitError::Unavailable(_)));
    let mut effort = Effort::new(create());
    effort.answered(unknown());
    effort.read_back(&page(&[]), true);
    effort.answered(unavailable());
    assert!(matches!(effort.give_up(), CommitError::Unknown(_)));
}
