//! How the embedded store lies on disk: its tables, its rows, and reading them in one consistent view.
//!
//! Owns the format. Any change of what a row means takes a new [`FORMAT`].

use crate::engine::{Change, Keys, Stored};
use crate::follow::{CHUNK, Chunk};
use crate::past::{self, Span, Undo};
use crate::store::{Error, KeyValue, Page, Revision};
use bytes::Bytes;
use prost::Message as _;
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};
use std::ops::Bound;

/// Version of what is written here. A file that says more was written by a newer Berth and is left alone.
pub(super) const FORMAT: u64 = 1;

/// Created, modified, version, value.
type Row<'a> = (u64, u64, u64, &'a [u8]);

/// Each key as it stands.
pub(super) const KEYS: TableDefinition<'_, &str, Row<'_>> = TableDefinition::new("keys");
/// What each revision that is kept changed: revision to an encoded [`LogRow`].
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// The few numbers below.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// In [`META`]: [`FORMAT`].
pub(super) const META_FORMAT: &str = "format";
/// In [`META`]: the last revision.
pub(super) const META_REVISION: &str = "revision";
/// In [`META`]: the last revision that is not in [`LOG`] any more.
pub(super) const META_COMPACTED: &str = "compacted";

#[derive(Clone, PartialEq, prost::Message)]
struct LogRow {
    #[prost(message, repeated, tag = "1")]
    changes: Vec<LogChange>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LogChange {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    before: Option<LogState>,
    #[prost(message, optional, tag = "3")]
    after: Option<LogState>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LogState {
    #[prost(uint64, tag = "1")]
    created: u64,
    #[prost(uint64, tag = "2")]
    modified: u64,
    #[prost(uint64, tag = "3")]
    version: u64,
    #[prost(bytes = "bytes", tag = "4")]
    value: Bytes,
}

impl From<&Stored> for LogState {
    fn from(stored: &Stored) -> Self {
        let Stored { created, modified, version, value } = stored;
        Self { created: created.0, modified: modified.0, version: *version, value: value.clone() }
    }
}

impl From<LogState> for Stored {
    fn from(state: LogState) -> Self {
        let LogState { created, modified, version, value } = state;
        Self { created: Revision(created), modified: Revision(modified), version, value }
    }
}

/// A row of [`LOG`].
pub(super) fn encode(changes: &[Change]) -> Vec<u8> {
    let change = |change: &Change| LogChange {
        key: change.key.clone(),
        before: change.before.as_ref().map(LogState::from),
        after: change.after.as_ref().map(LogState::from),
    };
    LogRow { changes: changes.iter().map(change).collect() }.encode_to_vec()
}

fn decode(revision: u64, row: &[u8]) -> Result<Vec<Change>, Error> {
    // One copy of the row, which the values then share.
    let row = LogRow::decode(Bytes::copy_from_slice(row))
        .map_err(|error| Error::Corrupt(format!("history of revision {revision}: {error}")))?;
    let change = |LogChange { key, before, after }| Change {
        key,
        before: before.map(Stored::from),
        after: after.map(Stored::from),
    };
    Ok(row.changes.into_iter().map(change).collect())
}

fn stored((created, modified, version, value): Row<'_>) -> Stored {
    Stored { created: Revision(created), modified: Revision(modified), version, value: Bytes::copy_from_slice(value) }
}

/// Damage needs a person; everything else may pass.
pub(super) fn failed(error: impl Into<redb::Error>) -> Error {
    let error = error.into();
    let damaged = matches!(
        error,
        redb::Error::Corrupted(_)
            | redb::Error::TableDoesNotExist(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableIsMultimap(_)
    );
    if damaged { Error::Corrupt(error.to_string()) } else { Error::Unavailable(error.to_string()) }
}

/// The table of keys inside a write transaction.
pub(super) struct KeyTable<'txn>(pub(super) redb::Table<'txn, &'static str, Row<'static>>);

impl Keys for KeyTable<'_> {
    type Error = redb::StorageError;

    fn get(&self, key: &str) -> Result<Option<Stored>, redb::StorageError> {
        Ok(self.0.get(key)?.map(|row| stored(row.value())))
    }

    fn put(&mut self, key: &str, item: &Stored) -> Result<(), redb::StorageError> {
        let Stored { created, modified, version, value } = item;
        self.0.insert(key, (created.0, modified.0, *version, &**value)).map(drop)
    }

    fn delete(&mut self, key: &str) -> Result<(), redb::StorageError> {
        self.0.remove(key).map(drop)
    }
}

/// One consistent view.
pub(super) struct View {
    keys: redb::ReadOnlyTable<&'static str, Row<'static>>,
    log: redb::ReadOnlyTable<u64, &'static [u8]>,
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
}

impl View {
    pub(super) fn open(database: &redb::Database) -> Result<Self, Error> {
        let read = database.begin_read().map_err(failed)?;
        let meta = read.open_table(META).map_err(failed)?;
        let number = |name: &str| match meta.get(name).map_err(failed)? {
            Some(number) => Ok(Revision(number.value())),
            None => Err(Error::Corrupt(format!("its {name} is missing"))),
        };
        Ok(Self {
            keys: read.open_table(KEYS).map_err(failed)?,
            log: read.open_table(LOG).map_err(failed)?,
            revision: number(META_REVISION)?,
            compacted: number(META_COMPACTED)?,
        })
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        let row = self.keys.get(key).map_err(failed)?;
        Ok(row.map(|row| stored(row.value()).into_key_value(key.to_owned())))
    }

    pub(super) fn range(&self, span: Span<'_>, at: Option<Revision>, limit: usize) -> Result<Page, Error> {
        let at = past::readable(at, self.compacted, self.revision)?;
        let mut undo = Undo::new();
        if at < self.revision {
            for row in self.log.range(at.0 + 1..).map_err(failed)? {
                let (revision, row) = row.map_err(failed)?;
                for change in decode(revision.value(), row.value())? {
                    span.undo(&mut undo, change);
                }
            }
        }
        let rows = self.keys.range::<&str>((span.start(), Bound::Unbounded)).map_err(failed)?;
        let now = rows.map_while(|row| match row {
            Err(error) => Some(Err(failed(error))),
            Ok((key, row)) => {
                key.value().starts_with(span.prefix).then(|| Ok((key.value().to_owned(), stored(row.value()))))
            }
        });
        past::page(at, limit, now, undo)
    }

    pub(super) fn history(&self, prefix: &str, from: Revision) -> Result<Chunk, Error> {
        past::kept(from, self.compacted)?;
        let mut chunk = Chunk { items: Vec::new(), next: from };
        for row in self.log.range(from.0..from.0.saturating_add(CHUNK)).map_err(failed)? {
            let (revision, row) = row.map_err(failed)?;
            let revision = Revision(revision.value());
            if revision != chunk.next {
                return Err(Error::Corrupt(format!("history of revision {} is missing", chunk.next)));
            }
            let changes = decode(revision.0, row.value())?.into_iter();
            let matching = changes.filter(|change| change.key.starts_with(prefix));
            let events: Vec<_> = matching.map(|change| change.into_event(revision)).collect();
            if !events.is_empty() {
                chunk.items.push(events);
            }
            chunk.next = Revision(revision.0 + 1);
        }
        Ok(chunk)
    }

    /// Whether the history has exactly the revisions it should have: as many, from the first to the last.
    pub(super) fn check(&self) -> Result<(), Error> {
        use redb::ReadableTableMetadata as _;
        let number = |entry: Option<(redb::AccessGuard<'_, u64>, _)>| entry.map(|(revision, _)| revision.value());
        let first = number(self.log.first().map_err(failed)?);
        let last = number(self.log.last().map_err(failed)?);
        let rows = self.log.len().map_err(failed)?;
        let whole = match (first, last) {
            (None, None) => self.revision == self.compacted,
            (Some(first), Some(last)) => {
                first == self.compacted.0 + 1 && last == self.revision.0 && rows == last - self.compacted.0
            }
            (Some(_), None) | (None, Some(_)) => false,
        };
        if whole {
            Ok(())
        } else {
            let end = |end: Option<u64>| end.map_or_else(|| "nothing".to_owned(), |end| end.to_string());
            Err(Error::Corrupt(format!(
                "its history has {rows} rows from {} to {}, it should go from {} to {}",
                end(first),
                end(last),
                self.compacted.0 + 1,
                self.revision
            )))
        }
    }
}
