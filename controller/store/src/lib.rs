//! What is durable: one port, three implementations, one contract.
//!
//! Owns the [`Store`] trait, the key space ([`key`]), the stored form of records ([`record`]), the in-memory and the
//! embedded implementation, and the [`contract`] suite that every implementation passes. Must never decide anything.

pub mod audit;
pub mod contract;
pub mod embedded;
mod engine;
pub mod fleet;
mod follow;
pub mod key;
pub mod memory;
mod past;
pub mod record;
mod store;
pub mod term;
pub mod turns;

pub use store::{
    CommitError, Error, Event, Fence, KeyValue, Leadership, MAX_OPERATIONS, MAX_VALUE_BYTES, Page, Precondition,
    Revision, Store, Transaction, Watch, WatchError, Write,
};
