//! Everything that is stored, read at one revision: what a backup consists of.
//!
//! Works on any store, page by page, so that memory stays bounded however large the fleet is and however slowly it is
//! taken. Must never leave a record out unsaid: what is not a part of it is only who leads.

use berth_model::Timestamp;
use berth_proto::backup::{FORMAT, Seal};
use berth_proto::convert;
use berth_proto::v1::{BackupHeader, BackupPart, BackupRecord, BackupRecords, backup_part::Part};
use berth_store::{Error, KeyValue, Revision, Store, key, record};
use futures::stream::{self, Stream};
use std::collections::VecDeque;
use std::sync::Arc;

/// Records read at once: some hundred KiB as a rule, and never more than the store's largest value times this.
const PAGE: usize = 256;
/// Bytes of records in one part, unless a single one is larger: well below what a gRPC client takes in one message.
const PART_BYTES: usize = 512 << 10;

/// What a backup says of itself and the store does not know.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Version of this Berth.
    pub berth_version: &'static str,
    /// Now.
    pub taken_at: Timestamp,
    /// The present leadership.
    pub term: u64,
}

/// Takes a backup: a header, records, and the trailer, which comes only if nothing is missing.
pub fn take(store: Arc<dyn Store>, about: About) -> impl Stream<Item = Result<BackupPart, Error>> + Send {
    let begin = Taking { store, about, seal: Seal::default(), ready: VecDeque::new(), next: Next::Begin };
    stream::try_unfold(begin, |mut taking| async move { Ok(taking.next().await?.map(|part| (part, taking))) })
}

enum Next {
    Begin,
    Page { at: Revision, after: String },
    Trailer,
    End,
}

struct Taking {
    store: Arc<dyn Store>,
    about: About,
    seal: Seal,
    ready: VecDeque<BackupPart>,
    next: Next,
}

impl Taking {
    async fn next(&mut self) -> Result<Option<BackupPart>, Error> {
        loop {
            if let Some(part) = self.ready.pop_front() {
                self.seal.take(&part).map_err(|error| Error::Corrupt(error.to_string()))?;
                return Ok(Some(part));
            }
            let (at, after) = match &self.next {
                Next::Begin => (None, None),
                Next::Page { at, after } => (Some(*at), Some(after.as_str())),
                Next::Trailer => {
                    self.next = Next::End;
                    return Ok(Some(self.seal.trailer()));
                }
                Next::End => return Ok(None),
            };
            let page = self.store.range(key::ALL, after, at, PAGE).await?;
            if at.is_none() {
                let header = self.header(page.revision).await?;
                self.ready.push_back(BackupPart { part: Some(Part::Header(header)) });
            }
            self.next = match page.items.last() {
                Some(last) if page.more => Next::Page { at: page.revision, after: last.key.clone() },
                _ => Next::Trailer,
            };
            self.ready.extend(parts(page.items));
        }
    }

    async fn header(&self, revision: Revision) -> Result<BackupHeader, Error> {
        let About { berth_version, taken_at, term } = self.about;
        let floor = self.store.range(key::TERM, None, Some(revision), 1).await?;
        let floor = match floor.items.first() {
            Some(item) => record::read_term(&item.value)?,
            None => 0,
        };
        Ok(BackupHeader {
            format: FORMAT,
            berth_version: berth_version.to_owned(),
            taken_at: Some(convert::timestamp(taken_at)),
            revision: revision.0,
            term: term.max(floor),
            store: self.store.kind().to_owned(),
        })
    }
}

/// Whether a key is about who leads: that is the store's present, and the header names the term.
pub(crate) fn leads(key: &str) -> bool {
    key.starts_with(key::LEADER) || key == key::TERM
}

fn parts(items: Vec<KeyValue>) -> Vec<BackupPart> {
    let mut parts: Vec<Vec<BackupRecord>> = Vec::new();
    let mut bytes = usize::MAX;
    for KeyValue { key, value, .. } in items.into_iter().filter(|item| !leads(&item.key)) {
        let size = key.len() + value.len();
        if bytes.saturating_add(size) > PART_BYTES {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.push(BackupRecord { key, value: value.to_vec() });
        }
    }
    parts.into_iter().map(|records| BackupPart { part: Some(Part::Records(BackupRecords { records })) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::backup::{self, Backup};
    use berth_store::memory::Memory;
    use berth_store::{Transaction, Write};
    use futures::{StreamExt as _, TryStreamExt as _};
    use prost::Message as _;

    fn about() -> About {
        About { berth_version: "0.0", taken_at: Timestamp::from_millis(5), term: 3 }
    }

    async fn put(store: &dyn Store, key: String, value: Vec<u8>) -> Revision {
        let writes = vec![Write::Put { key, value: value.into() }];
        store.commit(Transaction { writes, ..Transaction::default() }).await.unwrap()
    }

    fn node_key(at: usize) -> String {
        format!("{}n{at:05}", key::NODES)
    }

    fn whole(parts: &[BackupPart]) -> Backup {
        let file: Vec<u8> = parts.iter().flat_map(prost::Message::encode_length_delimited_to_vec).collect();
        backup::read(file.as_slice()).unwrap()
    }

    #[tokio::test]
    async fn a_backup_is_of_one_revision_whatever_is_written_meanwhile() {
        let store: Arc<dyn Store> = Arc::new(Memory::new());
        let won = store.campaign("one").await.unwrap();
        berth_store::term::raise(store.as_ref(), &won.fence, 40).await.unwrap();
        for at in 0..1_000 {
            put(store.as_ref(), node_key(at), at.to_string().into()).await;
        }
        let at = store.range("x", None, None, 1).await.unwrap().revision;
        let mut taking = Box::pin(take(Arc::clone(&store), about()));
        let mut parts = Vec::new();
        while let Some(part) = taking.next().await {
            parts.push(part.unwrap());
            // Changed, deleted and new under the reader's hands, before and after where it is.
            let writes = vec![
                Write::Put { key: node_key(parts.len()), value: "changed".into() },
                Write::Put { key: node_key(999), value: "changed".into() },
                Write::Delete { key: node_key(900 + parts.len()) },
                Write::Put { key: node_key(1_000 + parts.len()), value: "new".into() },
            ];
            store.commit(Transaction { writes, ..Transaction::default() }).await.unwrap();
        }
        assert!(parts.len() > 4, "it came in {} parts", parts.len());
        let Backup { header, records } = whole(&parts);
        assert_eq!((header.revision, header.term, header.store.as_str()), (at.0, 40, "memory"));
        assert_eq!(records.len(), 1_000, "who leads is not among them");
        for (at, record) in records.iter().enumerate() {
            assert_eq!(
                (record.key.as_str(), record.value.as_slice()),
                (node_key(at).as_str(), at.to_string().as_bytes())
            );
        }
    }

    #[tokio::test]
    async fn large_records_come_in_parts_that_a_client_takes() {
        let store: Arc<dyn Store> = Arc::new(Memory::new());
        for at in 0..20 {
            put(store.as_ref(), node_key(at), vec![7; 300 << 10]).await;
        }
        let parts: Vec<_> = take(store, about()).try_collect().await.unwrap();
        assert!(parts.iter().all(|part| part.encoded_len() < 1 << 20), "{:?}", parts.len());
        assert_eq!(whole(&parts).records.len(), 20);
    }

    #[tokio::test]
    async fn a_revision_that_is_gone_ends_the_backup_without_a_trailer() {
        let store: Arc<dyn Store> = Arc::new(Memory::with_history(10));
        for at in 0..600 {
            put(store.as_ref(), node_key(at), vec![1]).await;
        }
        let mut taking = Box::pin(take(Arc::clone(&store), about()));
        taking.next().await.unwrap().unwrap();
        for _ in 0..20 {
            put(store.as_ref(), node_key(0), vec![2]).await;
        }
        let rest: Vec<_> = taking.collect().await;
        assert!(matches!(rest.last(), Some(Err(Error::Compacted { .. }))), "{:?}", rest.last());
        let trailers = rest.iter().flatten().filter(|part| matches!(part.part, Some(Part::Trailer(_))));
        assert_eq!(trailers.count(), 0);
    }

    #[tokio::test]
    async fn an_empty_store_gives_an_empty_backup() {
        let parts: Vec<_> = take(Arc::new(Memory::new()), about()).try_collect().await.unwrap();
        assert_eq!(whole(&parts).records, []);
    }
}
