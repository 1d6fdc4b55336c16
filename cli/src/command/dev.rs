//! `berth dev`: a whole Berth in one process, to try it on.

use crate::args::{Dev, Provision};
use crate::dev::{self, Options};
use crate::error::Error;
use crate::fleet;
use crate::output::{Out, count};
use crate::progress::Progress;
use std::path::PathBuf;
use std::time::Duration;

/// How long agents may take to connect before that is said; a slow machine goes on all the same.
const READY: Duration = Duration::from_secs(120);
/// What is logged: what a person must look at. A simulated fleet has nobody who reads the rest.
const LOG: &str = "warn";

/// Runs the verb until it is interrupted.
///
/// # Errors
/// What keeps it from starting, or makes it fail.
pub async fn run(args: Dev, out: &mut Out<'_>) -> Result<(), Error> {
    let Dev { nodes, fleet, listen, data_dir, etcd, step_delay, provision } = args;
    if !listen.ip().is_loopback() {
        let text = format!(
            "--listen {listen} can be reached from other machines, and `berth dev` neither encrypts nor asks who calls; listen on \
             127.0.0.1, or run berth-controller with certificates"
        );
        return Err(Error::Usage(text));
    }
    let fleet = match &fleet {
        Some(file) => fleet::read(file)?,
        None => fleet::standard(nodes)?,
    };
    let options = berth_telemetry::Options { filter: LOG.to_owned(), ..Default::default() };
    let export = berth_telemetry::Export { prometheus: true, ..Default::default() };
    let about = berth_telemetry::Service {
        name: "berth-dev",
        version: env!("CARGO_PKG_VERSION"),
        instance: std::process::id().to_string(),
        node: None,
    };
    let _log = berth_telemetry::start(&options, &export, about).map_err(|e| Error::Dev(e.to_string()))?;
    // Kept until the end: dropping it removes the directory.
    let temporary = match data_dir {
        Some(_) => None,
        None => Some(tempfile::tempdir().map_err(|e| Error::Dev(format!("cannot make a temporary directory: {e}")))?),
    };
    let data_dir =
        data_dir.or_else(|| temporary.as_ref().map(|dir| dir.path().to_owned())).unwrap_or_else(PathBuf::new);
    let mut stop = std::pin::pin!(interrupted()?);
    let gpus: usize = fleet.nodes.iter().map(|node| node.gpus.len()).sum();
    let what = format!("{} with {}", count(fleet.nodes.len(), "simulated node"), count(gpus, "GPU"));
    let provision = provision == Provision::Auto;
    let truth = etcd.join(", ");
    let options = Options { fleet, listen, data_dir: data_dir.clone(), step_delay, provision, etcd };
    let mut running = {
        let mut progress = Progress::stderr();
        progress.say(format!("starting a controller and {what}"));
        let running = tokio::select! {
            running = dev::start(options) => running?,
            () = &mut stop => return Ok(()),
        };
        let ready = tokio::select! {
            ready = running.ready(READY, &mut progress) => Some(ready),
            () = &mut stop => None,
        };
        match ready {
            Some(Ok(())) => progress.say("all nodes are ready"),
            Some(Err(error)) => progress.say(error.to_string()),
            None => {
                running.stop().await;
                return Ok(());
            }
        }
        running
    };
    let printed = greet(&running, &what, &truth, temporary.is_some(), &data_dir, provision, out);
    let failed = match printed {
        Ok(()) => tokio::select! {
            error = running.failed() => Some(error),
            () = &mut stop => None,
        },
        Err(error) => Some(error),
    };
    running.stop().await;
    failed.map_or(Ok(()), Err)
}

fn greet(
    running: &dev::Running,
    what: &str,
    etcd: &str,
    temporary: bool,
    data_dir: &std::path::Path,
    provision: bool,
    out: &mut Out<'_>,
) -> Result<(), Error> {
    let endpoint = running.endpoint();
    out.line(format_args!("Berth is at {endpoint}: a controller and {what}."))?;
    if temporary {
        out.line(format_args!("Data is in {}, removed at the end; --data-dir keeps it.", data_dir.display()))?;
    } else {
        out.line(format_args!("Data is in {}.", data_dir.display()))?;
    }
    if !etcd.is_empty() {
        out.line(format_args!("What is decided is in etcd at {etcd}."))?;
    }
    match running.left_out() {
        0 => {}
        1 => out.line("It knows 1 node that is not in this fleet; it shows as Lost.")?,
        n => out.line(format_args!("It knows {n} nodes that are not in this fleet; they show as Lost."))?,
    }
    if provision {
        out.line("VMs of holds are created as a provisioning system would; --provision none leaves that to you.")?;
    }
    let flag =
        if endpoint == crate::args::DEFAULT_ENDPOINT { String::new() } else { format!(" --endpoint {endpoint}") };
    out.line("\nTry, in another terminal:")?;
    for command in ["get nodes", "place demo --vm demo --gpus 2 --wait", "describe placement demo"] {
        out.line(format_args!("  berth {command}{flag}"))?;
    }
    out.line("\nCtrl-C ends it.")
}

/// Ends when somebody wants this process to end.
fn interrupted() -> Result<impl Future<Output = ()>, Error> {
    let failed = |e: std::io::Error| Error::Dev(format!("cannot listen for signals: {e}"));
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        Ok(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        })
    }
    #[cfg(not(unix))]
    {
        let mut interrupt = tokio::signal::windows::ctrl_c().map_err(failed)?;
        Ok(async move {
            interrupt.recv().await;
        })
    }
}
