//! For tests: a small host in memory, and a controller that does what a test says.

mod controller;
mod host;

pub(crate) use controller::Controller;
pub(crate) use host::{FakeHost, Faults};

use std::time::Duration;

/// How long a test waits for what must happen. Far more than it takes, so that only a real fault uses it up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for something that must come.
pub(crate) async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}
