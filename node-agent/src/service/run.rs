//! The service at work: what the service control manager starts.
//!
//! Owns what the system is told about the agent's state. Must never do anything with the host: the agent does.

use super::event_log::EventLog;
use super::registration::{NAME, START_HINT, STOP_HINT};
use crate::config::Settings;
use crate::guarded;
use crate::process;
use anyhow::Context as _;
use berth_telemetry::journal::Journal as _;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::Level;
use windows_service::service::{
    ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{self, ServiceControlHandlerResult, ServiceStatusHandle};
use windows_service::service_dispatcher;

/// The file that the command line named: the service's own entry is called by Windows, with arguments of its own.
static CONFIG: OnceLock<PathBuf> = OnceLock::new();

/// Code of Windows (winerror.h): this process was not started as a service.
const NOT_STARTED_AS_SERVICE: i32 = 1063;

windows_service::define_windows_service!(ffi_entry, entry);

/// Runs until the service is stopped.
pub(super) fn run(config: PathBuf) -> anyhow::Result<()> {
    let config = CONFIG.get_or_init(|| config);
    match service_dispatcher::start(NAME, ffi_entry) {
        Err(windows_service::Error::Winapi(error)) if error.raw_os_error() == Some(NOT_STARTED_AS_SERVICE) => {
            anyhow::bail!(
                "`service run` is what the list of services starts; to run the agent in this window: berth-agent --config {}",
                config.display()
            )
        }
        other => other.context("the service control manager does not take this process"),
    }
}

/// What Windows calls. Nobody hears its errors but the event log and the exit code.
fn entry(_arguments: Vec<OsString>) {
    if let Err(error) = serve() {
        EventLog::open().write(Level::ERROR, &format!("the service cannot say how it stands: {error:#}"));
    }
}

fn serve() -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let told = stop.clone();
    let system = System(service_control_handler::register(NAME, move |control| match control {
        ServiceControl::Stop | ServiceControl::Shutdown => {
            told.cancel();
            ServiceControlHandlerResult::NoError
        }
        ServiceControl::Interrogate => ServiceControlHandlerResult::NoError,
        _ => ServiceControlHandlerResult::NotImplemented,
    })?);
    system.tell(ServiceState::StartPending, START_HINT, ServiceExitCode::NO_ERROR)?;
    let ended = agent(&system, stop);
    if let Err(error) = &ended {
        EventLog::open().write(Level::ERROR, &format!("the agent ends: {error:#}"));
    }
    // Anything but zero is a failure, for which the service is started again.
    let code = if ended.is_ok() { ServiceExitCode::NO_ERROR } else { ServiceExitCode::ServiceSpecific(1) };
    system.tell(ServiceState::Stopped, Duration::ZERO, code)
}

fn agent(system: &System, stop: CancellationToken) -> anyhow::Result<()> {
    let config = CONFIG.get().context("no configuration file was named")?;
    // It names what is run: others' words are not obeyed, whoever has put them there since the service was installed.
    guarded::in_place(config).context("the configuration is not safe")?;
    let settings = Settings::of_file(config)?;
    let about = process::about(&settings);
    let _until_the_end =
        berth_telemetry::start_with(&settings.log, &settings.export, about, Box::new(EventLog::open()))?;
    let running = || system.tell(ServiceState::Running, Duration::ZERO, ServiceExitCode::NO_ERROR);
    process::block_on(async {
        let stopped = async {
            stop.cancelled().await;
            // A stop that the system does not hear of is a stop all the same.
            if let Err(error) = system.tell(ServiceState::StopPending, STOP_HINT, ServiceExitCode::NO_ERROR) {
                tracing::warn!(%error, "the service control manager was not told that the agent stops");
            }
            tracing::info!("the service is being stopped");
            Ok(())
        };
        process::serve(settings, stopped, running).await
    })?
}

/// Whom the service tells how it stands.
struct System(ServiceStatusHandle);

impl System {
    fn tell(&self, state: ServiceState, hint: Duration, exit_code: ServiceExitCode) -> anyhow::Result<()> {
        let pending = matches!(state, ServiceState::StartPending | ServiceState::StopPending);
        let controls = match state {
            ServiceState::Running => ServiceControlAccept::STOP | ServiceControlAccept::SHUTDOWN,
            _ => ServiceControlAccept::empty(),
        };
        let status = ServiceStatus {
            service_type: ServiceType::OWN_PROCESS,
            current_state: state,
            controls_accepted: controls,
            exit_code,
            checkpoint: u32::from(pending),
            wait_hint: hint,
            process_id: None,
        };
        self.0.set_service_status(status).context("cannot tell the service control manager")
    }
}
