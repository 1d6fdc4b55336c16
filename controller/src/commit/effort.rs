//! One transaction on its way to a certain end: sent, and read back when its answer was lost.
//!
//! Owns what is known of it. Must never call something undone that may have happened, or may yet: a transaction whose
//! answer was lost is sent again only after a look has shown that it was not there, and then as it was. Every write of
//! it has a precondition that the write itself breaks, so that however many sendings arrive, at most one is committed.

use berth_store::{CommitError, Fence, Page, Precondition, Revision, Transaction, Write};

/// What to do next.
#[derive(Debug)]
pub enum Next {
    /// Send it, for the first time or again.
    Send,
    /// Read [`Effort::witness`], then whether the leadership of [`Effort::fence`] stands: its answer was lost.
    ReadBack,
    /// Nothing: this is how it ended.
    Settled(Result<Revision, CommitError>),
}

/// A transaction, and what is known of it.
#[derive(Debug)]
pub struct Effort {
    transaction: Transaction,
    /// What was sent may have been committed, or may be yet.
    unsure: bool,
    /// Why it did not end with the last answer.
    last: Option<CommitError>,
}

impl Effort {
    /// A transaction that was not sent yet, each write with its precondition in the same place.
    pub fn new(transaction: Transaction) -> Self {
        Self { transaction, unsure: false, last: None }
    }

    /// What to send.
    pub fn transaction(&self) -> &Transaction {
        &self.transaction
    }

    /// The key that shows whether it was committed.
    pub fn witness(&self) -> &str {
        self.witness_write().map_or("", |(_, write)| write.key())
    }

    /// A write that leaves something behind tells the revision, too; a deletion shows only that it happened.
    fn witness_write(&self) -> Option<(&Precondition, &Write)> {
        let Transaction { preconditions, writes, .. } = &self.transaction;
        let mut pairs = preconditions.iter().zip(writes);
        pairs.clone().find(|(_, write)| matches!(write, Write::Put { .. })).or_else(|| pairs.next())
    }

    /// Takes in what the store answered.
    pub fn answered(&mut self, result: Result<Revision, CommitError>) -> Next {
        match result {
            Err(error @ CommitError::Unknown(_)) => {
                self.unsure = true;
                self.last = Some(error);
                Next::ReadBack
            }
            // The refusal may be for what an earlier sending wrote.
            Err(error @ (CommitError::Precondition { .. } | CommitError::Unavailable(_) | CommitError::Full(_)))
                if self.unsure =>
            {
                self.last = Some(error);
                Next::ReadBack
            }
            Err(error @ CommitError::Unavailable(_)) => {
                self.last = Some(error);
                Next::Send
            }
            settled @ (Ok(_)
            | Err(
                CommitError::Precondition { .. } | CommitError::Fenced | CommitError::Illegal(_) | CommitError::Full(_),
            )) => Next::Settled(settled),
        }
    }

    /// The leadership that it is for, if any.
    pub fn fence(&self) -> Option<&Fence> {
        self.transaction.fence.as_ref()
    }

    /// Takes in what [`Effort::witness`] holds, a page that begins there, and whether the leadership still stood after that
    /// was read. If not, another leader may have written the very same.
    pub fn read_back(&mut self, page: &Page, leads: bool) -> Next {
        if !leads {
            return Next::Settled(Err(CommitError::Unknown("another controller leads by now".to_owned())));
        }
        if let Some(revision) = self.committed(page) {
            return Next::Settled(Ok(revision));
        }
        match self.last.take() {
            // Refused, and for nothing that it wrote itself; what was sent before may be under way yet.
            Some(error @ CommitError::Precondition { .. }) => {
                Next::Settled(Err(CommitError::Unknown(error.to_string())))
            }
            last => {
                self.last = last;
                Next::Send
            }
        }
    }

    fn committed(&self, page: &Page) -> Option<Revision> {
        let (before, write) = self.witness_write()?;
        let item = page.items.first().filter(|item| item.key == write.key());
        match (write, item) {
            (Write::Put { value, .. }, Some(item)) => {
                let written = match before {
                    Precondition::Version { version, .. } => item.version == version.saturating_add(1),
                    Precondition::Value { value: before, .. } => before != value,
                };
                (written && item.value == *value).then_some(item.modified)
            }
            (Write::Put { .. }, None) | (Write::Delete { .. }, Some(_)) => None,
            (Write::Delete { .. }, None) => Some(page.revision),
        }
    }

    /// What can be said when there is no more time.
    pub fn give_up(self) -> CommitError {
        match self.last {
            Some(error) if !self.unsure => error,
            Some(error) => CommitError::Unknown(error.to_string()),
            None => CommitError::Unknown("it was given up".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests;
