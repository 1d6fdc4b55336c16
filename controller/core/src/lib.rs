//! The controller's brain: the world as it is known, and every decision about it.
//!
//! [`decide::Brain`] is the only door the shell uses: events go in, decisions and what must be committed come out. No
//! I/O, no clock, no randomness: equal input, equal output.

pub mod adopt;
mod claims;
pub mod condition;
pub mod decide;
pub mod desired;
pub mod drift;
pub mod invariants;
pub mod lifecycle;
pub mod limits;
pub mod mirror;
pub mod schedule;
pub mod world;
