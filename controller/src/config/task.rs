//! What a process does: control, or one of the tasks that are done once.

use super::values::{count, duration};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// What a process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Be a controller.
    Control,
    /// Do something once, then end.
    Once(Once),
}

/// Tasks beside being a controller.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum Once {
    /// Put a backup into the store. Stop every controller first
    #[command(after_help = "Example:
  berth-controller restore berth.backup --config /etc/berth/controller.toml

Checks the whole file before it touches the store, says what it will do, and asks. See docs/backup.md.")]
    Restore(Restore),
    /// Make a store that was lost anew, from what agents hold
    #[command(after_help = "Example:
  berth-controller rebuild --config /etc/berth/controller.toml --nodes 12

Listens for agents where the controller would, decides nothing, shows what they hold, asks, writes it and ends. See
docs/backup.md.")]
    Rebuild(Rebuild),
}

/// What to restore, and how.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// The backup, as `berth backup` wrote it.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Replace whatever is in the store.
    #[arg(long)]
    pub into_nonempty: bool,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

/// How to rebuild.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Rebuild {
    /// How long to wait for agents.
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub wait: Duration,
    /// How many nodes there must be. Waiting ends when all have told what they hold; with fewer nothing is written.
    #[arg(long, value_name = "N", value_parser = count)]
    pub nodes: Option<usize>,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}
