//! Transactions: the port's as etcd's, and what a refusal was for.
//!
//! The fence and every precondition are compares of the one transaction that writes. Must never send one twice.

use crate::Link;
use crate::read::kv;
use crate::space::{number, revision};
use crate::trouble::Trouble;
use berth_store::{CommitError, Fence, Precondition, Revision, Transaction, Write};
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp, TxnOpResponse};

/// One compare of a transaction, in the order they are looked at.
enum Condition<'a> {
    Fence(&'a Fence),
    Precondition(&'a Precondition),
}

impl Condition<'_> {
    fn key(&self) -> &str {
        match self {
            Self::Fence(fence) => &fence.key,
            Self::Precondition(precondition) => precondition.key(),
        }
    }

    fn compare(&self, link: &Link) -> Compare {
        let key = link.space.key(self.key());
        match self {
            Self::Fence(fence) => Compare::create_revision(key, CompareOp::Equal, number(fence.created)),
            Self::Precondition(Precondition::Version { version, .. }) => {
                Compare::version(key, CompareOp::Equal, i64::try_from(*version).unwrap_or(i64::MAX))
            }
            Self::Precondition(Precondition::Value { value, .. }) => {
                Compare::value(key, CompareOp::Equal, value.to_vec())
            }
        }
    }

    fn holds(&self, item: Option<&etcd_client::KeyValue>) -> bool {
        match self {
            Self::Fence(fence) => item.is_some_and(|item| revision(item.create_revision()) == fence.created),
            Self::Precondition(Precondition::Version { version, .. }) => {
                item.map_or(0, |item| item.version().unsigned_abs()) == *version
            }
            Self::Precondition(Precondition::Value { value, .. }) => item.is_some_and(|item| item.value() == value),
        }
    }

    fn refusal(&self) -> CommitError {
        match self {
            Self::Fence(_) => CommitError::Fenced,
            Self::Precondition(precondition) => CommitError::Precondition { key: precondition.key().to_owned() },
        }
    }
}

fn conditions(transaction: &Transaction) -> Vec<Condition<'_>> {
    let fence = transaction.fence.iter().map(Condition::Fence);
    fence.chain(transaction.preconditions.iter().map(Condition::Precondition)).collect()
}

impl Link {
    pub(crate) async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        transaction.check()?;
        let conditions = conditions(&transaction);
        let write = |write: &Write| match write {
            Write::Put { key, value } => TxnOp::put(self.space.key(key), value.to_vec(), None),
            Write::Delete { key } => TxnOp::delete(self.space.key(key), None),
        };
        let sent = self.transact(|| {
            let compares: Vec<_> = conditions.iter().map(|condition| condition.compare(self)).collect();
            let writes: Vec<_> = transaction.writes.iter().map(write).collect();
            Txn::new().when(compares).and_then(writes)
        });
        let (done, at) = sent.await?;
        if !done {
            return Err(self.refusal(&conditions, at).await);
        }
        // Which leadership wrote a revision is nowhere in etcd.
        let fence = transaction.fence.as_ref().map(|fence| fence.created.0);
        tracing::debug!(revision = at.0, fence, "committed");
        Ok(at)
    }

    /// Sends a transaction once. Gives whether its compares held, and the revision it was looked at, or made. It is built
    /// for each member that is asked, which is nearly always one: a full transaction is expensive to copy.
    pub(crate) async fn transact(&self, build: impl Fn() -> Txn) -> Result<(bool, Revision), Trouble> {
        let answer = self.members.tell(|client| {
            let transaction = build();
            async move { kv(&client).txn(transaction).await }
        });
        let answer = answer.await?;
        let header = answer.header().ok_or_else(|| Trouble::Unsure("etcd answered without a header".to_owned()))?;
        Ok((answer.succeeded(), revision(header.revision())))
    }

    /// Which condition did not hold: looked up afterwards, at the very revision at which etcd refused, because refusals
    /// are rare and every transaction would otherwise carry these reads.
    async fn refusal(&self, conditions: &[Condition<'_>], at: Revision) -> CommitError {
        let as_of = GetOptions::new().with_revision(number(at));
        let reads = conditions.iter().map(|condition| TxnOp::get(self.space.key(condition.key()), Some(as_of.clone())));
        let reads = Txn::new().and_then(reads.collect::<Vec<_>>());
        let answer = self.members.ask(|client| {
            let reads = reads.clone();
            async move { kv(&client).txn(reads).await }
        });
        let answer = match answer.await {
            Ok(answer) => answer,
            Err(trouble) => {
                let why = berth_store::Error::from(trouble);
                return CommitError::Unavailable(format!("a condition did not hold, which one is not known: {why}"));
            }
        };
        let broken = conditions.iter().zip(answer.op_responses()).find(|(condition, read)| match read {
            TxnOpResponse::Get(found) => !condition.holds(found.kvs().first()),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => false,
        });
        match broken {
            Some((condition, _)) => condition.refusal(),
            None => CommitError::Unavailable("etcd refused, though every condition held".to_owned()),
        }
    }
}
