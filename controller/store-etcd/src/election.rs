//! Leadership: a key that exists only as long as a lease is kept alive, and whose creation is the fence.
//!
//! | key      | lives            | says                                                          |
//! |----------|------------------|---------------------------------------------------------------|
//! | `leader` | with its lease   | who leads; its creation revision is in every write's compares |
//! | `term`   | for good         | the last term, so that terms grow while leaders come and go   |
//!
//! Both are written in one transaction that demands that nobody leads. Whoever leads takes itself for deposed *before*
//! the lease can have run out at etcd: the time is counted from before the last renewal was sent, and cut short by a
//! margin. Even a leader that slept through that cannot write: its fence is void.

use crate::Link;
use crate::space::revision;
use crate::trouble::Trouble;
use berth_store::{Error, Event, Fence, KeyValue, Leadership, Revision, key, record};
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use futures::StreamExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Part of a lease's time that is not relied on: what clocks may differ by, and what it takes to stop.
const MARGIN: u32 = 5;
/// Renewals in the time of a lease: three may fail in a row.
const RENEWALS: u32 = 4;
/// Between two attempts when etcd does not answer: it is asked through all its members each time.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a candidate trusts that no news is good news.
const LOOK: Duration = Duration::from_secs(1);
/// Attempts to become the leader while answers get lost or others come and go. Then the caller decides how to go on.
const ATTEMPTS: u32 = 3;

/// What a leader knows about its leadership.
#[derive(Clone, Copy, Debug)]
struct Standing {
    /// It surely leads until then, if nothing else is known.
    until: Instant,
    /// It does not lead any more.
    over: bool,
}

/// A leadership this process has. Dropping it lets the lease run out.
#[derive(Debug)]
pub(crate) struct Held {
    lease: i64,
    standing: watch::Sender<Standing>,
    tasks: JoinSet<()>,
}

impl Held {
    /// Ends it now, so that nobody has to wait for the lease to run out.
    pub(crate) async fn let_go(mut self, link: &Link) {
        self.tasks.shutdown().await;
        self.standing.send_modify(|standing| standing.over = true);
        revoke(link, self.lease).await;
    }
}

/// A lease that cannot be revoked runs out by itself.
async fn revoke(link: &Link, lease: i64) {
    let revoked = link.members.ask(|client| async move { client.lease_client().revoke(lease).await });
    match revoked.await {
        Ok(_) | Err(Trouble::LeaseGone) => {}
        Err(trouble) => tracing::debug!(error = %Error::from(trouble), "a lease is left to run out"),
    }
}

/// Waits until nobody leads, then leads.
pub(crate) async fn campaign(link: &Arc<Link>, candidate: &str, ttl: Duration) -> Result<(Leadership, Held), Error> {
    loop {
        match link.read_key(key::LEADER).await? {
            (Some(_), at) => until_vacant(link, at).await?,
            (None, _) => {
                if let Some(won) = try_to_lead(link, candidate, ttl).await? {
                    return Ok(won);
                }
            }
        }
    }
}

/// Waits until the leader key is deleted after revision `at`, or until that is worth asking about.
async fn until_vacant(link: &Link, at: Revision) -> Result<(), Error> {
    let mut changes = match link.watch(key::LEADER, Revision(at.0 + 1)).await {
        Ok(changes) => changes,
        // So old already that it must be read again.
        Err(Error::Compacted { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    loop {
        let Ok(event) = timeout(LOOK, changes.next()).await else {
            // Nothing to be heard, or nobody: a connection into a host that has lost its power says nothing for many seconds,
            // and a leader may be gone with it. Asking moves on to the next member.
            match link.read_key(key::LEADER).await? {
                (Some(_), _) => continue,
                (None, _) => return Ok(()),
            }
        };
        let Some(Ok(events)) = event else { break };
        if events.iter().any(|event| matches!(event, Event::Delete { key, .. } if key == key::LEADER)) {
            return Ok(());
        }
    }
    // Interrupted. What follows asks again, and fails if etcd stays away.
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

async fn try_to_lead(link: &Arc<Link>, candidate: &str, ttl: Duration) -> Result<Option<(Leadership, Held)>, Error> {
    let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    let sent = Instant::now();
    // If an answer is lost there is a lease too many, which runs out.
    let granted = link.members.ask(|client| async move { client.lease_client().grant(seconds, None).await }).await?;
    let lease = granted.id();
    // etcd may grant a longer one.
    let valid = Duration::from_secs(granted.ttl().unsigned_abs());
    let valid = valid - valid / MARGIN;
    match take_the_lead(link, candidate, lease).await {
        Ok(Some((term, created))) => {
            let (standing, told) = watch::channel(Standing { until: sent + valid, over: false });
            let mut tasks = JoinSet::new();
            tasks.spawn(keep_alive(Arc::clone(link), lease, valid, standing.clone()));
            tasks.spawn(look_out(Arc::clone(link), created, standing.clone()));
            let fence = Fence { key: key::leader(), created };
            let leadership = Leadership { term, fence, lost: Box::pin(lost(told)) };
            Ok(Some((leadership, Held { lease, standing, tasks })))
        }
        // Also makes sure that a transaction that is still under way somewhere cannot land any more.
        not_won => {
            revoke(link, lease).await;
            not_won.map(|_| None)
        }
    }
}

/// Creates the leader key; gives term and fence, or `None` when somebody else was faster.
async fn take_the_lead(link: &Link, candidate: &str, lease: i64) -> Result<Option<(u64, Revision)>, Error> {
    let mut last = "others keep taking and losing the lead".to_owned();
    for _ in 0..ATTEMPTS {
        let (before, _) = link.read_key(key::TERM).await?;
        let version = before.as_ref().map_or(0, etcd_client::KeyValue::version);
        let term = match before {
            Some(before) => record::read_term(&before.value().to_vec().into())? + 1,
            None => 1,
        };
        let leader_value = record::leader(&record::Leader { term, candidate: candidate.to_owned() }).to_vec();
        let term_value = record::term(term).to_vec();
        let (leader, term_key) = (link.space.key(key::LEADER), link.space.key(key::TERM));
        let transaction = Txn::new()
            .when([
                Compare::create_revision(leader.clone(), CompareOp::Equal, 0),
                Compare::version(term_key.clone(), CompareOp::Equal, version),
            ])
            .and_then([
                TxnOp::put(leader, leader_value, Some(PutOptions::new().with_lease(lease))),
                TxnOp::put(term_key, term_value, None),
            ]);
        match link.transact(|| transaction.clone()).await {
            Ok((true, created)) => return Ok(Some((term, created))),
            Ok((false, _)) => {}
            // Whether it was done shows in whose lease the key hangs on.
            Err(Trouble::Unsure(why)) => last = why,
            Err(trouble) => return Err(trouble.into()),
        }
        match link.read_key(key::LEADER).await? {
            (Some(leader), _) if leader.lease() == lease => {
                let won = record::read_leader(&leader.value().to_vec().into())?;
                return Ok(Some((won.term, revision(leader.create_revision()))));
            }
            (Some(_), _) => return Ok(None),
            (None, _) => {}
        }
    }
    Err(Error::Unavailable(last))
}

/// Renews the lease until it is gone or could be.
async fn keep_alive(link: Arc<Link>, lease: i64, valid: Duration, standing: watch::Sender<Standing>) {
    let every = valid / RENEWALS;
    loop {
        let sent = Instant::now();
        if standing.borrow().until <= sent {
            break;
        }
        let renewed = link.members.ask_within(valid / 2, |client| async move {
            let (_keeper, _answers) = client.lease_client().keep_alive(lease).await?;
            Ok(())
        });
        let pause = match renewed.await {
            Ok(()) => {
                standing.send_modify(|standing| standing.until = standing.until.max(sent + valid));
                every
            }
            Err(Trouble::LeaseGone) => break,
            Err(trouble) => {
                tracing::debug!(error = %Error::from(trouble), "the lease was not renewed");
                PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
    standing.send_modify(|standing| standing.over = true);
}

/// Watches the leader key until it is not ours any more.
async fn look_out(link: Arc<Link>, created: Revision, standing: watch::Sender<Standing>) {
    let still_ours = |item: &KeyValue| item.key != key::LEADER || item.created == created;
    let mut from = Revision(created.0 + 1);
    'watching: loop {
        if let Ok(mut changes) = link.watch(key::LEADER, from).await {
            while let Some(Ok(events)) = changes.next().await {
                for event in events {
                    let ours = match &event {
                        Event::Put(item) => still_ours(item),
                        Event::Delete { key, .. } => key != key::LEADER,
                    };
                    if !ours {
                        break 'watching;
                    }
                    from = Revision(event.revision().0 + 1);
                }
            }
        }
        // Without a watch, what the key says now is what counts. No answer means nothing: the lease decides then.
        match link.read_key(key::LEADER).await {
            Ok((Some(leader), at)) if revision(leader.create_revision()) == created => from = Revision(at.0 + 1),
            Ok(_) => break,
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
    standing.send_modify(|standing| standing.over = true);
}

/// Ends when the leadership is over or could be. Does not depend on the tasks getting their turn.
async fn lost(mut standing: watch::Receiver<Standing>) {
    loop {
        let Standing { until, over } = *standing.borrow_and_update();
        if over || Instant::now() >= until {
            return;
        }
        tokio::select! {
            changed = standing.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    fn standing(valid: Duration) -> (watch::Sender<Standing>, watch::Receiver<Standing>) {
        watch::channel(Standing { until: Instant::now() + valid, over: false })
    }

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn without_renewal_it_ends_in_time_though_no_task_says_so() {
        let begun = Instant::now();
        let (_leader, told) = standing(SHORT);
        lost(told).await;
        assert!(begun.elapsed() >= SHORT);
    }

    #[tokio::test]
    async fn renewals_put_the_end_off() {
        let begun = Instant::now();
        let (leader, told) = standing(SHORT);
        let mut end = Box::pin(lost(told));
        assert!((&mut end).now_or_never().is_none(), "it has just begun");
        leader.send_modify(|standing| standing.until += 3 * SHORT);
        end.await;
        assert!(begun.elapsed() >= 4 * SHORT);
    }

    #[tokio::test]
    async fn it_ends_at_once_when_it_is_over() {
        let (leader, told) = standing(Duration::from_secs(3600));
        leader.send_modify(|standing| standing.over = true);
        assert!(lost(told).now_or_never().is_some());
    }
}
