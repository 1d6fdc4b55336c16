//! The controller's shell: configuration, leadership, commits, sessions with agents, reads and the API, around the brain
//! in `core/`.
//!
//! [`app`] is the only module that knows all others. Nothing here decides about placements: that is
//! [`berth_core::decide`].

mod afterwards;
pub mod agents;
pub mod api;
pub mod app;
pub mod audit;
pub mod backup;
mod checked;
mod clock;
pub mod commit;
pub mod config;
pub mod console;
mod follower;
mod identity;
mod last_seen;
pub mod leader;
mod member;
mod metrics;
mod peers;
pub mod process;
pub mod rebuild;
pub(crate) mod refill;
pub mod replica;
pub mod restore;
mod serve;
pub mod standing;
#[cfg(test)]
mod testing;
