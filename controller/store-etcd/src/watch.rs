//! Watches: from any revision that is kept, each revision's changes at once.
//!
//! Must never leave out a revision: whatever breaks a watch ends it, with the reason.

use crate::Link;
use crate::read::{LARGEST_ANSWER, damaged};
use crate::space::{Space, number, revision};
use crate::trouble::Trouble;
use berth_store::{Error, Event, Revision, Watch, WatchError};
use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use futures::{StreamExt as _, stream};
use std::collections::VecDeque;

struct Cursor {
    stream: WatchStream,
    space: Space,
    /// The revision to go on from.
    next: Revision,
    ready: VecDeque<Vec<Event>>,
}

fn ended() -> WatchError {
    WatchError::Interrupted("etcd ended it".to_owned())
}

impl Cursor {
    async fn next(&mut self) -> Result<Vec<Event>, WatchError> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(item);
            }
            let message = self.stream.message().await;
            let message =
                message.map_err(|error| WatchError::Interrupted(Error::from(Trouble::of(&error)).to_string()));
            self.take(&message?.ok_or_else(ended)?)?;
        }
    }

    /// Takes in one message: any number of whole revisions.
    fn take(&mut self, message: &WatchResponse) -> Result<(), WatchError> {
        if message.compact_revision() > 0 {
            return Err(WatchError::Compacted { asked: self.next, oldest: revision(message.compact_revision()) });
        }
        if message.canceled() {
            let why = message.cancel_reason();
            return Err(if why.is_empty() { ended() } else { WatchError::Interrupted(why.to_owned()) });
        }
        for event in message.events() {
            let event = self.space.event(event).map_err(|key| WatchError::Interrupted(damaged(key).to_string()))?;
            let revision = event.revision();
            match self.ready.back_mut() {
                Some(item) if item.first().is_some_and(|first| first.revision() == revision) => item.push(event),
                Some(_) | None => self.ready.push_back(vec![event]),
            }
            self.next = Revision(revision.0 + 1);
        }
        Ok(())
    }
}

impl Link {
    pub(crate) async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        // For etcd, 0 would mean from now on.
        let from = from.max(Revision(1));
        let span = self.space.span(prefix, None);
        let options = WatchOptions::new().with_range(span.end).with_start_revision(number(from));
        let begun = self.members.ask(|client| {
            let (start, options) = (span.start.clone(), options.clone());
            async move {
                // Revisions that are caught up with come in large messages.
                let mut watches = client.watch_client().max_decoding_message_size(LARGEST_ANSWER);
                let mut stream = watches.watch(start, Some(options)).await?;
                // Once this is here, nothing that is committed later can be missed.
                let created = stream.message().await?;
                Ok((stream, created))
            }
        });
        let (stream, created) = begun.await?;
        let mut cursor = Cursor { stream, space: self.space.clone(), next: from, ready: VecDeque::new() };
        let created = created.ok_or_else(|| Error::Unavailable("etcd ended the watch at once".to_owned()))?;
        cursor.take(&created).map_err(|error| match error {
            WatchError::Compacted { asked, oldest } => Error::Compacted { asked, oldest },
            WatchError::Interrupted(why) => Error::Unavailable(why),
        })?;
        let items = stream::unfold(Some(cursor), |cursor| async move {
            let mut cursor = cursor?;
            match cursor.next().await {
                Ok(item) => Some((Ok(item), Some(cursor))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(items.boxed())
    }
}
