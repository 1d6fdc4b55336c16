//! The agent's brain: what the host shows, what is wanted, what to do next.
//!
//! Pure functions over values: no I/O, no clock, no randomness. Must never know how a step is carried out.

pub mod cards;
pub mod guest;
pub mod ledger;
pub mod memory;
pub mod mmio;
pub mod observed;
pub mod plan;
pub mod report;
pub mod safety;
pub mod step;
pub mod work;
