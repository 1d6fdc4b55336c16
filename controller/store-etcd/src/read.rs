//! Reads: always of the cluster, never of what one member happens to know.

use crate::Link;
use crate::space::{number, revision};
use crate::trouble::Trouble;
use berth_store::{Error, KeyValue, Page, Revision};
use etcd_client::{Client, GetOptions, GetResponse, KvClient, WatchOptions};

/// Largest answer taken: a full page of ordinary records is some MiB, and this is far above a page of the largest.
pub(crate) const LARGEST_ANSWER: usize = 1024 * 1024 * 1024;

pub(crate) fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(LARGEST_ANSWER)
}

pub(crate) fn damaged(key: String) -> Error {
    Error::Corrupt(format!("{key} is not a key that Berth writes"))
}

/// The revision an answer is of.
fn answered_at(answer: &GetResponse) -> Result<Revision, Trouble> {
    let header = answer.header().ok_or_else(|| Trouble::Unsure("etcd answered without a header".to_owned()))?;
    Ok(revision(header.revision()))
}

impl Link {
    /// One key as etcd has it, and the revision of the answer.
    pub(crate) async fn read_key(&self, key: &str) -> Result<(Option<etcd_client::KeyValue>, Revision), Trouble> {
        let key = self.space.key(key);
        let answer = self.members.ask(|client| {
            let key = key.clone();
            async move { kv(&client).get(key, None).await }
        });
        let mut answer = answer.await?;
        let at = answered_at(&answer)?;
        Ok((answer.take_kvs().pop(), at))
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        let (item, _) = self.read_key(key).await?;
        item.map(|item| self.space.item(item).map_err(damaged)).transpose()
    }

    pub(crate) async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Option<Revision>,
        limit: usize,
    ) -> Result<Page, Error> {
        if at == Some(Revision(0)) {
            // For etcd this would mean now.
            return Err(Error::Compacted { asked: Revision(0), oldest: Revision(1) });
        }
        let span = self.space.span(prefix, after);
        let limit = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
        let options = GetOptions::new().with_range(span.end).with_limit(limit).with_revision(at.map_or(0, number));
        let answer = self.members.ask(|client| {
            let (start, options) = (span.start.clone(), options.clone());
            async move { kv(&client).get(start, Some(options)).await }
        });
        let mut answer = match (answer.await, at) {
            (Err(Trouble::Compacted), Some(asked)) => return Err(self.compacted(asked).await),
            (Err(Trouble::Future), Some(asked)) => {
                return Err(Error::Unavailable(format!("revision {asked} was asked for, etcd is not there yet")));
            }
            (answer, _) => answer?,
        };
        let revision = match at {
            Some(at) => at,
            None => answered_at(&answer)?,
        };
        let more = answer.more();
        let items = answer.take_kvs().into_iter().map(|item| self.space.item(item).map_err(damaged));
        Ok(Page { revision, items: items.collect::<Result<_, _>>()?, more })
    }

    /// What to say of a compacted revision. Only a watch is told what is kept.
    async fn compacted(&self, asked: Revision) -> Error {
        let key = self.space.key(berth_store::key::LEADER);
        let oldest = self.members.ask(|client| {
            let key = key.clone();
            async move {
                let from = WatchOptions::new().with_start_revision(number(asked));
                let mut watch = client.watch_client().watch(key, Some(from)).await?;
                loop {
                    match watch.message().await? {
                        Some(told) if told.compact_revision() > 0 => return Ok(revision(told.compact_revision())),
                        Some(told) if told.created() && !told.canceled() => {}
                        Some(_) | None => {
                            let text = format!("revision {asked} is compacted, and what is kept is not known");
                            return Err(etcd_client::Error::WatchError(text));
                        }
                    }
                }
            }
        });
        match oldest.await {
            Ok(oldest) => Error::Compacted { asked, oldest },
            Err(trouble) => trouble.into(),
        }
    }

    pub(crate) async fn compact(&self, before: Revision) -> Result<(), Error> {
        // Asked twice, the second time finds it done.
        let done = self.members.ask(|client| async move { client.kv_client().compact(number(before), None).await });
        match done.await {
            Ok(_) | Err(Trouble::Compacted) => Ok(()),
            Err(trouble) => Err(trouble.into()),
        }
    }
}
