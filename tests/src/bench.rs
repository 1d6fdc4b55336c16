//! Benchmarks of the whole: a real `berth-controller`, a real etcd, thousands of agents over real sessions, one process
//! each.
//!
//! Owns what is measured and how it is told. Every figure that has a goal is a ratio to what bare etcd does in the same
//! run, or stands beside it, because machines differ and are shared. Must never look inside a process it measures: what
//! it cannot see through the API, etcd or the system's own accounts, it does not report.

mod agents;
mod controller;
mod figures;
mod fleet;
mod hosts;
pub mod idle;
pub mod latency;
mod load;
mod programs;
mod report;
mod standin;
pub mod step;
mod store;
mod stored;
pub mod takeover;
pub mod telemetry;
pub mod throughput;

pub use agents::{Options as AgentsOptions, run as agents};
pub use programs::build;
pub use report::Report;
pub use standin::{Options as StandInOptions, run as stand_in};
