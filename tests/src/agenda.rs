//! What will happen in a simulation, in order of time and then of making: virtual time moves from one entry to the next.

use berth_model::Timestamp;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Events to come.
#[derive(Debug)]
pub(crate) struct Agenda<E> {
    heap: BinaryHeap<Reverse<(Timestamp, u64)>>,
    events: BTreeMap<u64, E>,
    made: u64,
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), events: BTreeMap::new(), made: 0 }
    }
}

impl<E> Agenda<E> {
    /// Has something happen at a time.
    pub(crate) fn add(&mut self, at: Timestamp, event: E) {
        self.made += 1;
        self.heap.push(Reverse((at, self.made)));
        self.events.insert(self.made, event);
    }

    /// When the next thing happens.
    pub(crate) fn next_at(&self) -> Option<Timestamp> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes the next thing.
    pub(crate) fn next(&mut self) -> Option<(Timestamp, E)> {
        let Reverse((at, number)) = self.heap.pop()?;
        Some((at, self.events.remove(&number)?))
    }
}
