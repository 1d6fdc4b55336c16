//! Replays a real cluster's arrivals and departures against any running controller, through the public API alone.
//!
//! Owns what is sent, in which order, and how answers are counted; at the end it asks the API whether store, controller
//! and agents agree. Must never look at anything that another client could not see.

mod agree;
mod caller;
mod drive;
mod journal;
mod pods;
mod report;
mod seen;

pub use agree::check_journal;
pub(crate) use agree::look;
pub use caller::{Caller, Problem};
pub use drive::run;
pub use report::Report;

use clap::Parser;
use std::path::PathBuf;
use std::time::Duration;

/// Replays an openb pod list: whole-GPU pods, in order of creation time, released at deletion time.
#[derive(Clone, Debug, Parser)]
#[command(name = "replay")]
pub struct Options {
    /// The pod list: CSV with the columns name, cpu_milli, memory_mib, num_gpu, gpu_milli, gpu_spec, creation_time,
    /// deletion_time.
    #[arg(required_unless_present = "check_journal", value_name = "PODS.csv")]
    pub pods: Option<PathBuf>,
    /// Where the controller listens.
    #[arg(long, env = "BERTH_ENDPOINT", default_value = "http://127.0.0.1:7600", value_name = "URL")]
    pub endpoint: String,
    /// How much faster than in the trace; 0 means without waiting, strictly in order.
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    pub speedup: f64,
    /// Only the first so many whole-GPU pods.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Most calls in flight at once.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096), value_name = "N")]
    pub in_flight: u16,
    /// Before the next call takes a call's place, wait until its placement is active or over.
    #[arg(long)]
    pub wait_active: bool,
    /// How long a placement may wait in the controller's queue when nothing fits.
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub queue: Option<Duration>,
    /// Release nothing: fills the fleet.
    #[arg(long, conflicts_with = "drain")]
    pub keep: bool,
    /// Also replay the departures after the last arrival: empties the fleet.
    #[arg(long)]
    pub drain: bool,
    /// Comes before every name and request id. Without it: drawn anew.
    #[arg(long, value_name = "ID")]
    pub run_id: Option<String>,
    /// How long one call is repeated while nobody answers.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub give_up: Duration,
    /// How long everything may take to come to rest before the check at the end.
    #[arg(long, default_value = "120s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub settle: Duration,
    /// Append every acknowledged result to this file, as JSON lines, before going on.
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// Replay nothing: check that everything in this journal is still so.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["pods", "journal"])]
    pub check_journal: Option<PathBuf>,
    /// Form of the result.
    #[arg(short = 'o', long = "output", value_enum, default_value = "text", value_name = "FORM")]
    pub output: Form,
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
}
