//! The host script in a real PowerShell over the fake Hyper-V of `tests/hyperv`, and what can be said of its text.

#![expect(clippy::unwrap_used, reason = "tests")]

mod accidents;
mod adopt;
mod agent;
mod cycle;
mod fake;
mod faults;
mod golden;
mod guest;
mod install;
mod install_driver;
mod look;
mod protocol;
mod scenario;
mod steps;
mod text;

use anyhow::Context as _;
use berth_tests::pwsh::{self, Host};
use serde_json::Value;
use std::sync::{Mutex, PoisonError};

/// One PowerShell for all tests that need nothing special: a start costs more than most tests.
static SHARED: Mutex<Option<Host>> = Mutex::new(None);

/// Runs a test on a host in this state; skips it where there is no PowerShell.
fn on(test: &str, state: &Value, run: impl FnOnce(&mut Host) -> anyhow::Result<()>) {
    let Some(program) = pwsh::program(test) else { return };
    // A test that failed leaves nothing behind that `set` does not overwrite, once its process is gone.
    let mut shared = SHARED.lock().unwrap_or_else(|poisoned| {
        let mut shared = PoisonError::into_inner(poisoned);
        *shared = None;
        shared
    });
    let go = || -> anyhow::Result<()> {
        if shared.is_none() {
            *shared = Some(Host::new(program, state)?);
        }
        let host = shared.as_mut().context("there is no host")?;
        host.set(state)?;
        run(host)
    };
    if let Err(error) = go() {
        panic!("{test}: {error:#}");
    }
}

/// A host with a PowerShell of its own, for tests that kill it or start it otherwise; none where there is no PowerShell.
fn alone(test: &str, state: &Value) -> Option<Host> {
    let program = pwsh::program(test)?;
    Some(Host::new(program, state).unwrap_or_else(|error| panic!("{test}: {error:#}")))
}
