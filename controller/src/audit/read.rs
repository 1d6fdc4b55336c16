//! The audit as it is read: where it begins, its blocks, its end, what is not sealed yet. Works on any store, page by page.

use berth_proto::audit::Mark;
use berth_proto::v1::{AuditBatch, AuditPart, audit_part::Part};
use berth_store::audit::{self, BASE, BLOCKS, FRESH, HEAD};
use berth_store::{Error, Revision, Store};
use futures::stream::{self, Stream};
use std::collections::VecDeque;
use std::sync::Arc;

/// Blocks, and batches, read at once: some MiB at most.
const PAGE: usize = 16;

enum Next {
    Begin,
    Blocks(Option<String>),
    Head,
    Fresh(Option<String>),
    End,
}

struct Reading {
    store: Arc<dyn Store>,
    after: u64,
    /// All of it is read as it stood then.
    at: Option<Revision>,
    ready: VecDeque<Part>,
    next: Next,
}

/// Reads the blocks after one of them, or all that are kept.
pub(crate) fn read(store: Arc<dyn Store>, after: u64) -> impl Stream<Item = Result<AuditPart, Error>> + Send {
    let begin = Reading { store, after, at: None, ready: VecDeque::new(), next: Next::Begin };
    stream::try_unfold(begin, |mut reading| async move { Ok(reading.next().await?.map(|part| (part, reading))) })
}

/// The number of the last block; 0 before the first.
pub(crate) async fn last(store: &dyn Store) -> Result<u64, Error> {
    let head = store.get(HEAD).await?;
    head.as_ref().map_or(Ok(0), |item| audit::read_mark(item).map(|mark| mark.number))
}

impl Reading {
    async fn next(&mut self) -> Result<Option<AuditPart>, Error> {
        loop {
            if let Some(part) = self.ready.pop_front() {
                return Ok(Some(AuditPart { part: Some(part) }));
            }
            match std::mem::replace(&mut self.next, Next::End) {
                Next::Begin => self.begin().await?,
                Next::Blocks(after) => {
                    let page = self.store.range(BLOCKS, after.as_deref(), self.at, PAGE).await?;
                    self.next = match page.items.last() {
                        Some(last) if page.more => Next::Blocks(Some(last.key.clone())),
                        _ => Next::Head,
                    };
                    self.ready.extend(page.items.into_iter().map(|item| Part::Block(item.value.to_vec())));
                }
                Next::Head => {
                    let head = self.mark(HEAD).await?;
                    self.ready.push_back(Part::Head(head.into()));
                    self.next = Next::Fresh(None);
                }
                Next::Fresh(after) => {
                    let page = self.store.range(FRESH, after.as_deref(), self.at, PAGE).await?;
                    self.next = match page.items.last() {
                        Some(last) if page.more => Next::Fresh(Some(last.key.clone())),
                        _ => Next::End,
                    };
                    for item in &page.items {
                        self.ready.push_back(Part::Unsealed(AuditBatch { records: audit::read_batch(item)? }));
                    }
                }
                Next::End => return Ok(None),
            }
        }
    }

    async fn begin(&mut self) -> Result<(), Error> {
        self.at = Some(self.store.range(HEAD, None, None, 1).await?.revision);
        let mut base = self.mark(BASE).await?;
        // A block that is not there (any more) is no place to begin after; the chain then begins where it does.
        if self.after > base.number
            && let Some(item) = self.store.range(&audit::block(self.after), None, self.at, 1).await?.items.first()
        {
            base = Mark { number: self.after, hash: berth_proto::audit::hash(&item.value) };
        }
        self.next = Next::Blocks((base.number > 0).then(|| audit::block(base.number)));
        self.ready.push_back(Part::Base(base.into()));
        Ok(())
    }

    /// A mark as it stood when reading began.
    async fn mark(&self, key: &str) -> Result<Mark, Error> {
        let page = self.store.range(key, None, self.at, 1).await?;
        page.items.first().map_or_else(|| Ok(Mark::default()), audit::read_mark)
    }
}
