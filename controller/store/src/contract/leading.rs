//! Rules of leadership.

use super::*;
use crate::store::Fence;
use futures::FutureExt as _;

async fn lead(store: &Arc<dyn Store>, candidate: &str) -> Leadership {
    let campaign = tokio::time::timeout(PATIENCE, store.campaign(candidate));
    campaign.await.expect("nobody else leads, so the campaign must be won in time").expect("a campaign is answered")
}

fn fenced(fence: &Fence, key: &str) -> Transaction {
    Transaction { fence: Some(fence.clone()), ..transaction(vec![], vec![put(key, "")]) }
}

/// Every leadership has a higher term, and from its beginning no transaction under an earlier fence is committed.
pub async fn terms_grow_and_a_new_leadership_voids_the_old_fence(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let mut before: Option<Leadership> = None;
    for round in 0..4 {
        // The same candidate comes back, too: it is the leadership that counts, not who has it.
        let leadership = lead(&store, ["one", "other", "other", "one"][round]).await;
        if let Some(before) = &before {
            assert!(leadership.term > before.term, "{} after {}", leadership.term, before.term);
            let outcome = store.commit(fenced(&before.fence, "old")).await;
            assert!(matches!(outcome, Err(CommitError::Fenced)), "{outcome:?}");
        }
        store.commit(fenced(&leadership.fence, &format!("new/{round}"))).await.expect("the leader may write");
        subject.step_down(&leadership).await;
        before = Some(leadership);
    }
    assert_eq!(get(&store, "old").await, None);
}

/// Writing does not end a leadership; a new one does, and the old one is told.
pub async fn leadership_lasts_until_somebody_else_leads(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let mut old = lead(&store, "one").await;
    store.commit(fenced(&old.fence, "a")).await.expect("the leader may write");
    write(&store, vec![put("b", "")]).await;
    assert!((&mut old.lost).now_or_never().is_none(), "nobody else leads");
    subject.step_down(&old).await;
    let mut new = lead(&store, "other").await;
    tokio::time::timeout(PATIENCE, &mut old.lost).await.expect("the old leader must be told in time");
    assert!((&mut new.lost).now_or_never().is_none(), "the new one leads");
}

/// A fence is one more condition on everything: it refuses on its own, and does not replace the others.
pub async fn a_fence_guards_the_whole_transaction(subject: &dyn Subject) {
    let store = subject.fresh().await;
    let nobody = Fence { key: "nobody/leads".to_owned(), created: Revision(1) };
    let outcome = store.commit(fenced(&nobody, "a")).await;
    assert!(matches!(outcome, Err(CommitError::Fenced)), "{outcome:?}");
    let leadership = lead(&store, "one").await;
    let wrong = Fence { created: Revision(leadership.fence.created.0 + 1), ..leadership.fence.clone() };
    let outcome = store.commit(fenced(&wrong, "a")).await;
    assert!(matches!(outcome, Err(CommitError::Fenced)), "{outcome:?}");
    let mut both = fenced(&leadership.fence, "a");
    both.preconditions.push(version("a", 1));
    assert_refused_by(store.commit(both).await, "a");
    assert_eq!(get(&store, "a").await, None);
    let only_check = Transaction { writes: vec![], ..fenced(&nobody, "a") };
    let outcome = store.commit(only_check).await;
    assert!(matches!(outcome, Err(CommitError::Fenced)), "{outcome:?}");
    store.commit(fenced(&leadership.fence, "a")).await.expect("the leader may write");
}

/// A leader can make sure that its successors have terms above a given one; whoever does not lead cannot, and nobody can
/// take it back.
pub async fn a_raised_term_is_left_behind_by_every_later_leadership(subject: &dyn Subject) {
    use crate::term;
    let store = subject.fresh().await;
    let mut first = lead(&store, "one").await;
    let raised = first.term + 1_000;
    term::raise(store.as_ref(), &first.fence, raised).await.expect("the leader may raise the term");
    term::raise(store.as_ref(), &first.fence, raised - 1).await.expect("lower than what is there: nothing to do");
    let too_high = term::raise(store.as_ref(), &first.fence, term::HIGHEST + 1).await;
    assert!(matches!(too_high, Err(CommitError::Illegal(_))), "{too_high:?}");
    assert!((&mut first.lost).now_or_never().is_none(), "raising the term does not end a leadership");
    store.commit(fenced(&first.fence, "a")).await.expect("the leader may still write");
    subject.step_down(&first).await;
    let second = lead(&store, "other").await;
    assert!(second.term > raised, "{} after {raised}", second.term);
    let outcome = term::raise(store.as_ref(), &first.fence, second.term + 7).await;
    assert!(matches!(outcome, Err(CommitError::Fenced)), "{outcome:?}");
    subject.step_down(&second).await;
    let third = lead(&store, "one").await;
    assert!((second.term + 1..second.term + 7).contains(&third.term), "{} after {}", third.term, second.term);
}
