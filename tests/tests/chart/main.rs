//! The Helm chart: what it renders, what it refuses, whether the programs take what it renders, its alerts and dashboards.
//!
//! `UPDATE_EXPECT=1 cargo test -p berth-tests --test chart render` writes the reviewed manifests anew.

#![expect(clippy::unwrap_used, reason = "tests")]

mod alerts;
mod deploy;
mod live;
mod members;
mod metrics;
mod network;
mod pictures;
mod refused;
mod render;
mod server;
mod settings;
