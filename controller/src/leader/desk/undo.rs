//! Decisions that were not committed: what waits for them is told so, and all else goes on.
//!
//! Must never let an answer out that rests on one of them, nor show one to a reader.

use super::{Desk, Sessions, Work};
use crate::commit::{Groups, Undone, Unfit};
use crate::leader::CallError;
use berth_core::decide::{Input, Stored};
use berth_model::{NodeName, Timestamp};
use berth_store::CommitError;
use std::collections::BTreeSet;

/// Who is concerned by decisions that were taken back.
#[derive(Debug)]
pub struct TakenBack<R> {
    /// Callers, each with what it is to be told.
    pub replies: Vec<(R, CallError)>,
    /// Nodes whose agents are to tell everything anew.
    pub nodes: BTreeSet<NodeName>,
}

impl<R> Desk<R> {
    /// Takes back decisions that are not to be. Only once nothing is in flight.
    ///
    /// # Errors
    /// As for [`Desk::decide`].
    pub fn undo(
        &mut self,
        groups: &mut Groups,
        now: Timestamp,
        sessions: &Sessions,
        (undone, stored): (&Undone, Stored),
        why: &CommitError,
    ) -> Result<TakenBack<R>, Unfit> {
        for (node, stored) in &stored.nodes {
            groups.put_back(node, stored.as_ref().map_or(0, |node| node.version));
        }
        let mut nodes = undone.nodes.clone();
        let placed = undone.placements.iter().filter_map(|name| self.brain.world().placement(name));
        nodes.extend(placed.filter_map(|placement| Some(placement.assignment.as_ref()?.node.clone())));
        self.brain.put_back(stored, now);

        let first = undone.groups.first().copied().unwrap_or(u64::MAX);
        let mut work = Work { placements: undone.placements.clone(), nodes: nodes.clone(), ..Work::default() };
        let mut replies = Vec::new();
        for batch in std::mem::take(&mut self.batches) {
            work.placements.extend(batch.placements);
            work.nodes.extend(batch.nodes);
            work.desired.extend(batch.desired.into_keys());
            work.inputs = work.inputs.saturating_add(batch.inputs);
            for reply in batch.replies {
                let lost = match reply.group {
                    Some(group) => undone.groups.contains(&group),
                    // It changed nothing, and may say so because of what is taken back.
                    None => batch.mark > first,
                };
                if lost {
                    replies.push((reply.to, CallError::Unavailable(why.to_string())));
                } else {
                    work.replies.push(reply);
                }
            }
        }
        self.untold = 0;
        // Readers are to see that nothing is there, if they see anything of it at all.
        work.inputs = work.inputs.max(1);
        self.enqueue(groups, work);
        // Apart from what waits already: that must not wait for what may fail once more.
        let mut work = Work::default();
        for node in &nodes {
            // What is added to a report that was taken back means nothing.
            self.awaited.insert(node.clone());
            let hello = sessions.open.get(node).map(|(_, hello)| hello).filter(|hello| !self.brain.has_taken_in(hello));
            if let Some(hello) = hello {
                // As if it had just come: nothing else would ever tell this once more.
                self.decide(groups, now, Input::Connected(hello.clone()), None, None, &mut work)?;
            }
        }
        self.enqueue(groups, work);
        Ok(TakenBack { replies, nodes })
    }
}
