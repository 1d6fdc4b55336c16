//! What the tests across crates share: driving the real binaries, replaying a real cluster's requests, random faults.
//!
//! Must never be a dependency of anything that ships.

mod agenda;
mod behind;
pub mod bench;
pub mod chart;
pub mod config;
pub mod etcd;
pub mod faults;
pub mod http;
pub mod hyperv;
pub mod nemesis;
pub mod otlp;
pub mod pictures;
pub mod process;
pub mod prometheus;
pub mod pwsh;
pub mod replay;
mod scene;
pub mod sim;
#[cfg(unix)]
pub mod sshd;
pub mod wine;
