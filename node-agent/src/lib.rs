//! The agent shell: session, ledger, reconcile loop and host drivers around the brain in `core/`.
//!
//! Owns all that is slow, durable or can fail: the stream to the controller, the ledger's file, the calls to the host.
//! Must never decide what is done to a host, nor in which order: `berth_agent_core` does.

pub mod app;
pub mod config;
pub mod driver;
#[cfg_attr(not(windows), expect(dead_code, reason = "only Windows has what it judges"))]
mod guarded;
pub mod ledger;
mod link;
mod metrics;
pub mod process;
pub mod reconcile;
mod scrape;
pub mod service;
pub mod session;
#[cfg(test)]
mod testing;
mod tls;

pub use app::{Running, StartError, start};
