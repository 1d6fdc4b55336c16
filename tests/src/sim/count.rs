//! How often each thing happened, by name, so that one sees that every kind of trouble was there.

use std::collections::BTreeMap;
use std::fmt;

/// Counters by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    counts: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Counts one.
    pub(super) fn add(&mut self, what: &'static str) {
        *self.counts.entry(what).or_insert(0) += 1;
    }

    /// Adds another run's.
    pub fn merge(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_insert(0) += count;
        }
    }

    /// How often something happened.
    pub fn of(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    /// Which of these never happened.
    pub fn never<'a>(&self, of: &[&'a str]) -> Vec<&'a str> {
        of.iter().copied().filter(|what| self.of(what) == 0).collect()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, count) in &self.counts {
            writeln!(f, "{count:>10}  {what}")?;
        }
        Ok(())
    }
}

/// Everything that is to go wrong: over many seeds each must happen.
pub const TROUBLES: &[&str] = &[
    "agent: crash",
    "agent: crash after a step, before it heard of it",
    "agent: crash after it wrote its memory",
    "agent: ledger cannot be written",
    "agent: obeys a later leader",
    "agent: starts with a clock that is far off",
    "call: answer lost",
    "call: lost on its way",
    "call: overtaken by a later one",
    "call: same id, other content",
    "call: same id, same content",
    "call: retried after an unknown answer",
    "call: sent twice on its way",
    "call: release with a wrong uid",
    "call: release with a wrong version",
    "call: plan",
    "call: commit",
    "controller: clock steps",
    "controller: crash",
    "controller: cut off from the store",
    "controller: decisions taken back",
    "controller: decisions taken back, others kept",
    "controller: lease lost",
    "controller: makes way for another leader",
    "controller: paused",
    "controller: paused longer than its lease",
    "controller: world loaded anew",
    "host: card pulled",
    "host: card put back",
    "host: card swapped",
    "host: device given to a VM by hand",
    "host: device on its way for long",
    "host: look fails",
    "host: look hangs",
    "host: reboot",
    "host: step fails",
    "host: step hangs",
    "host: VM clustered by hand",
    "host: VM deleted by hand",
    "host: VM made late",
    "host: VM made on a wrong node",
    "host: VM never made",
    "host: VM started or stopped by hand",
    "net: agent told the same twice",
    "net: connection breaks",
    "net: connection refused, the node has one",
    "net: late message after a new session began",
    "net: message delayed",
    "net: message lost with its session",
    "net: partition",
    "net: progress heard twice",
    "placement: given back after all",
    "placement: release out of time",
    "placement: undoing out of time",
    "store: a lost answer found by reading back",
    "store: answer lost, transaction committed",
    "store: contradicts",
    "store: down",
    "store: error before the commit",
    "store: fenced",
    "store: full",
    "store: nothing found by reading back",
    "store: slow",
    "store: transaction lands after it was given up",
    "store: transactions land in another order",
];
