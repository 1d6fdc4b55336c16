//! The port: what the controller needs of a store. Its semantics are etcd's, because etcd is the production store:
//! one revision counter, multi-key compare-and-write transactions, watches that can start in the past.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::collections::BTreeSet;
use std::fmt;

/// Most operations (preconditions count, too) in one transaction: etcd's default limit (`--max-txn-ops`).
pub const MAX_OPERATIONS: usize = 128;
/// Largest value: far below etcd's request limit of 1.5 MiB, so that a full transaction of ordinary records fits.
pub const MAX_VALUE_BYTES: usize = 512 * 1024;

/// The store's version: grows by one with each committed transaction that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One key as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// Revision of its creation; a deleted and re-created key has a new one.
    pub created: Revision,
    /// Revision of its last write.
    pub modified: Revision,
    /// Number of writes since its creation, 1 for the first.
    pub version: u64,
}

/// What must hold for a transaction to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The key has been written exactly so often since its creation; 0 means it does not exist.
    Version {
        /// The key.
        key: String,
        /// Its version.
        version: u64,
    },
    /// The key exists with exactly this value.
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: Bytes,
    },
}

impl Precondition {
    /// The key does not exist.
    pub fn absent(key: impl Into<String>) -> Self {
        Self::Version { key: key.into(), version: 0 }
    }

    /// The key it looks at.
    pub fn key(&self) -> &str {
        match self {
            Self::Version { key, .. } | Self::Value { key, .. } => key,
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put {
        /// The key.
        key: String,
        /// Its new value, at most [`MAX_VALUE_BYTES`].
        value: Bytes,
    },
    /// Deletes a key; nothing happens if it does not exist.
    Delete {
        /// The key.
        key: String,
    },
}

impl Write {
    /// The key it changes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Proves leadership inside a transaction: the leader key was created at exactly this revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The leader key.
    pub key: String,
    /// The revision at which this leadership created it.
    pub created: Revision,
}

/// Changes that are committed together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// The writer's leadership. Writes without one are for set-up and tests only.
    pub fence: Option<Fence>,
    /// All must hold.
    pub preconditions: Vec<Precondition>,
    /// Applied in order; no key twice.
    pub writes: Vec<Write>,
}

impl Transaction {
    /// Operations it counts for under [`MAX_OPERATIONS`]: etcd counts the compares and the writes each against the
    /// limit, so the larger of the two decides.
    pub fn operations(&self) -> usize {
        self.writes.len().max(self.preconditions.len() + usize::from(self.fence.is_some()))
    }

    /// Checks the bounds that hold whatever is stored.
    ///
    /// # Errors
    /// [`CommitError::Illegal`], saying which bound is broken.
    pub fn check(&self) -> Result<(), CommitError> {
        let refuse = |why: String| Err(CommitError::Illegal(why));
        let operations = self.operations();
        if operations > MAX_OPERATIONS {
            return refuse(format!("it has {operations} operations, at most {MAX_OPERATIONS} are allowed: split it"));
        }
        let looked_at = self.preconditions.iter().map(Precondition::key);
        let fence = self.fence.iter().map(|fence| fence.key.as_str());
        if looked_at.chain(fence).chain(self.writes.iter().map(Write::key)).any(str::is_empty) {
            return refuse("a key is empty".to_owned());
        }
        let mut seen = BTreeSet::new();
        for write in &self.writes {
            let key = write.key();
            if !seen.insert(key) {
                return refuse(format!("it writes {key} twice"));
            }
            if let Write::Put { value, .. } = write
                && value.len() > MAX_VALUE_BYTES
            {
                return refuse(format!("the value of {key} is {} bytes long, at most {MAX_VALUE_BYTES}", value.len()));
            }
        }
        Ok(())
    }
}

/// One answer to a range read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The revision it is consistent at.
    pub revision: Revision,
    /// In order of key.
    pub items: Vec<KeyValue>,
    /// Whether more keys follow.
    pub more: bool,
}

/// One committed change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was set.
    Put(KeyValue),
    /// It was deleted.
    Delete {
        /// The key.
        key: String,
        /// The revision that deleted it.
        revision: Revision,
    },
}

impl Event {
    /// The revision that made it.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(item) => item.modified,
            Self::Delete { revision, .. } => *revision,
        }
    }

    /// The key it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(item) => &item.key,
            Self::Delete { key, .. } => key,
        }
    }
}

/// Changes as they are committed, each item all changes of one revision, in order, none left out.
pub type Watch = BoxStream<'static, Result<Vec<Event>, WatchError>>;

/// A leadership that was won.
pub struct Leadership {
    /// Its term: grows by one with every leadership.
    pub term: u64,
    /// What to put into every transaction.
    pub fence: Fence,
    /// Ends when the leadership is lost; never, for a store of one process.
    pub lost: futures::future::BoxFuture<'static, ()>,
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership").field("term", &self.term).field("fence", &self.fence).finish_non_exhaustive()
    }
}

/// Why a read or an election failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store did not answer in time or cannot be reached. A retry helps.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The revision asked for is not kept any more.
    #[error("revision {asked} is compacted, the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// What is still there.
        oldest: Revision,
    },
    /// What is stored makes no sense. A person must look.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
}

/// Why a transaction was not, or perhaps not, committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A precondition does not hold. Nothing was written.
    #[error("precondition on {key} does not hold")]
    Precondition {
        /// The first key whose precondition does not hold, where the store can tell.
        key: String,
    },
    /// The writer is not the leader any more. Nothing was written.
    #[error("leadership was lost")]
    Fenced,
    /// The transaction breaks a bound. Nothing was written.
    #[error("transaction is illegal: {0}")]
    Illegal(String),
    /// Nothing was written; a retry helps.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store is out of space: it refuses writes until a person has made room, and reads go on. Nothing was written.
    #[error("the store takes no writes: {0}")]
    Full(String),
    /// The answer was lost: it may or may not be written. Read back before doing anything else.
    #[error("it is not known whether the transaction was committed: {0}")]
    Unknown(String),
}

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The revision to start from, or to go on from, is not kept any more: list again, then watch.
    #[error("revision {asked} is compacted, the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// What is still there.
        oldest: Revision,
    },
    /// The connection to the store was lost: watch again from the last revision seen.
    #[error("the watch was interrupted: {0}")]
    Interrupted(String),
}

/// A durable key-value store with revisions.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Which kind: `memory`, `embedded`, `etcd`.
    fn kind(&self) -> &'static str;

    /// Reads one key.
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error>;

    /// Reads up to `limit` keys (at least 1) with a prefix, in order, beginning after `after` when given, as they stood
    /// at revision `at` (now when `None`). Take the first page's revision for the following ones.
    async fn range(&self, prefix: &str, after: Option<&str>, at: Option<Revision>, limit: usize)
    -> Result<Page, Error>;

    /// Commits a transaction durably and gives its revision. A transaction without writes only checks.
    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError>;

    /// All changes of keys with a prefix from revision `from` on (inclusive).
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error>;

    /// Waits until this candidate leads, then gives its term and fence. Every earlier fence is void from then on.
    /// A leadership that was won through this very store before is given up.
    async fn campaign(&self, candidate: &str) -> Result<Leadership, Error>;

    /// Gives up the leadership won through this store, if any, so that the next candidate need not wait for it to run
    /// out. For stores of one process there is nobody to wait.
    async fn resign(&self) {}
}
