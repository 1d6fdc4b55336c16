//! The agent's brain: what the host shows, what is wanted, what to do next.
//!
//! Pure functions over values: no I/O, no clock, no randomness. Must never know how a step is carried out.

pub mod observed;
pub mod step;
