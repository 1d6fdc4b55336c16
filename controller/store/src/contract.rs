//! What every store must do, as one suite that each implementation runs against itself: the controller is written against
//! this and nothing else.
//!
//! An implementation gives a [`Subject`] and calls [`contract!`](crate::contract), which makes one test of each rule. A
//! broken rule panics with what was seen. Must never depend on how a store works inside: where one needs help (to
//! compact, to let go of leadership), the subject gives it.

mod keys;
mod leading;
mod watching;

pub use keys::*;
pub use leading::*;
pub use watching::*;

use crate::store::{
    CommitError, Event, KeyValue, Leadership, Precondition, Revision, Store, Transaction, Watch, Write,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use std::sync::Arc;
use std::time::Duration;

/// An implementation under test.
#[async_trait]
pub trait Subject: Send + Sync {
    /// A store that nobody has written to.
    async fn fresh(&self) -> Arc<dyn Store>;

    /// Makes the store forget what happened before `revision`. May write keys under `compact/`.
    async fn compact(&self, store: &Arc<dyn Store>, before: Revision);

    /// Gives up a leadership, where the next candidate would wait for that.
    async fn step_down(&self, leadership: &Leadership) {
        let _ = leadership;
    }
}

/// One test of each rule, for the subject that the expression makes. With `maybe` in front it makes an `Option`: where
/// there is no subject, the rule is not tested, and whoever made the `None` has said why.
#[macro_export]
macro_rules! contract {
    (@rules $how:ident $subject:expr) => {
        $crate::contract!(
            @tests $how $subject =>
            a_key_is_read_as_written,
            versions_count_writes_since_creation,
            revisions_count_transactions_that_write,
            ranges_are_ordered_and_bounded_by_prefix,
            ranges_are_paged,
            pages_at_a_revision_are_one_state,
            a_revision_not_reached_yet_is_not_readable,
            a_compacted_revision_is_not_readable,
            a_version_precondition_holds_or_refuses,
            a_value_precondition_holds_or_refuses,
            a_refused_transaction_changes_nothing,
            preconditions_see_the_state_before_the_transaction,
            no_key_is_written_twice_in_a_transaction,
            a_transaction_has_a_bounded_number_of_operations,
            a_value_has_a_bounded_size,
            one_of_many_claims_wins,
            concurrent_counters_lose_nothing,
            a_watch_sees_what_is_committed_from_now_on,
            a_watch_starts_in_the_past,
            a_watch_sees_its_prefix_only,
            a_watch_gives_all_changes_of_a_revision_at_once,
            a_watch_from_a_compacted_revision_is_refused,
            no_event_is_left_out_or_doubled_under_concurrent_commits,
            terms_grow_and_a_new_leadership_voids_the_old_fence,
            leadership_lasts_until_somebody_else_leads,
            a_fence_guards_the_whole_transaction,
            a_raised_term_is_left_behind_by_every_later_leadership
        );
    };
    (@tests always $subject:expr => $($rule:ident),+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $rule() {
            $crate::contract::$rule(&$subject).await;
        }
    )+};
    (@tests maybe $subject:expr => $($rule:ident),+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $rule() {
            if let Some(subject) = $subject {
                $crate::contract::$rule(&subject).await;
            }
        }
    )+};
    (maybe $subject:expr) => {
        $crate::contract!(@rules maybe $subject);
    };
    ($subject:expr) => {
        $crate::contract!(@rules always $subject);
    };
}

/// Longest wait for something that must happen: far above what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(30);

fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Write {
    Write::Put { key: key.into(), value: value.into() }
}

fn delete(key: impl Into<String>) -> Write {
    Write::Delete { key: key.into() }
}

fn version(key: impl Into<String>, version: u64) -> Precondition {
    Precondition::Version { key: key.into(), version }
}

fn value(key: impl Into<String>, value: impl Into<Bytes>) -> Precondition {
    Precondition::Value { key: key.into(), value: value.into() }
}

fn transaction(preconditions: Vec<Precondition>, writes: Vec<Write>) -> Transaction {
    Transaction { fence: None, preconditions, writes }
}

async fn write(store: &Arc<dyn Store>, writes: Vec<Write>) -> Revision {
    store.commit(transaction(Vec::new(), writes)).await.expect("an unconditional write is committed")
}

async fn get(store: &Arc<dyn Store>, key: &str) -> Option<KeyValue> {
    store.get(key).await.expect("a read is answered")
}

/// The revision the store is at: that of an empty page.
async fn now(store: &Arc<dyn Store>) -> Revision {
    store.range("nothing/", None, None, 1).await.expect("a read is answered").revision
}

#[track_caller]
fn assert_refused_by(outcome: Result<Revision, CommitError>, key: &str) {
    match outcome {
        Err(CommitError::Precondition { key: found }) if found == key => {}
        other => panic!("the precondition on {key} must refuse, but: {other:?}"),
    }
}

#[track_caller]
fn assert_illegal(outcome: Result<Revision, CommitError>, what: &str) {
    assert!(matches!(outcome, Err(CommitError::Illegal(_))), "{what} must be illegal, but: {outcome:?}");
}

/// The next item of a watch.
async fn next(watch: &mut Watch) -> Vec<Event> {
    let item = tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch must show the change in time");
    item.expect("the watch must not end").expect("the watch must not fail")
}
