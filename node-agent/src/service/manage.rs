//! Puts the service into the list of services and takes it out.
//!
//! Owns every call to the service control manager that changes the list. Must never touch configuration or data.

use super::event_log;
use super::registration::{Account, DESCRIPTION, DISPLAY, FORGIVEN, HYPERV, NAME, RESTARTS, STOP_HINT};
use crate::config::Settings;
use crate::guarded;
use anyhow::{Context as _, bail};
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};
use windows_service::service::{
    Service, ServiceAccess, ServiceAction, ServiceActionType, ServiceDependency, ServiceErrorControl,
    ServiceFailureActions, ServiceFailureResetPeriod, ServiceInfo, ServiceStartType, ServiceState, ServiceType,
};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};

/// Codes of Windows (winerror.h) that have a plain remedy.
const ACCESS_DENIED: i32 = 5;
const SERVICE_DOES_NOT_EXIST: i32 = 1060;
const SERVICE_NOT_ACTIVE: i32 = 1062;
const SERVICE_MARKED_FOR_DELETE: i32 = 1072;
const SERVICE_EXISTS: i32 = 1073;
const INVALID_SERVICE_ACCOUNT: i32 = 1057;

const INSTALLED: &str = "the service berth-agent is installed already; `berth-agent service uninstall` takes it out";

/// Installs the service; it is not started.
pub(super) fn install(config: &Path, account: Account) -> anyhow::Result<()> {
    let config = std::path::absolute(config).with_context(|| format!("{} is no path", config.display()))?;
    // Better now than in the event log of a service that does not start.
    Settings::of_file(&config).context("the service would not start with this configuration")?;
    let exe = std::env::current_exe().context("cannot find out where this program is")?;
    for file in [&exe, &config] {
        guarded::in_place(file).with_context(|| {
            format!(
                "whoever can change {} could do anything on this host: the service is not installed",
                file.display()
            )
        })?;
    }
    let manager = connect(ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE)?;
    // Said before anything is asked for: not every system refuses a second one.
    if manager.open_service(NAME, ServiceAccess::QUERY_STATUS).is_ok() {
        bail!("{}", INSTALLED);
    }
    let dependencies = match manager.open_service(HYPERV, ServiceAccess::QUERY_STATUS) {
        Ok(_) => vec![ServiceDependency::Service(HYPERV.into())],
        Err(_) => Vec::new(),
    };
    let arguments = ["service", "run", "--config"].into_iter().map(OsString::from).chain([config.into()]);
    let info = ServiceInfo {
        name: NAME.into(),
        display_name: DISPLAY.into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: exe,
        launch_arguments: arguments.collect(),
        dependencies,
        account_name: match &account {
            Account::LocalSystem => None,
            Account::Managed(name) => Some(name.into()),
        },
        account_password: None,
    };
    let service =
        manager.create_service(&info, ServiceAccess::CHANGE_CONFIG | ServiceAccess::START).map_err(explain)?;
    let undone = furnish(&service);
    say(&format!("the service {NAME} is installed and runs as {account}; start it with: Start-Service {NAME}"));
    for what in undone {
        say(&format!("warning: {what}"));
    }
    Ok(())
}

/// What a service has beside its entry. None of it keeps it from running, so that a failure is told and no more.
fn furnish(service: &Service) -> Vec<String> {
    let restarts = RESTARTS.map(|delay| ServiceAction { action_type: ServiceActionType::Restart, delay });
    let actions = ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(FORGIVEN),
        reboot_msg: None,
        command: None,
        actions: Some(restarts.to_vec()),
    };
    let mut undone = Vec::new();
    let mut tell = |what: &str, error: String| undone.push(format!("{what}: {error}"));
    let wants: [(&str, windows_service::Result<()>); 4] = [
        ("its description was not set", service.set_description(DESCRIPTION)),
        ("it starts with the system at once, not delayed", service.set_delayed_auto_start(true)),
        ("it is not started again after a failure", service.update_failure_actions(actions)),
        // An agent that ends with an error has failed, too, although it did not crash.
        ("it is not started again after an error", service.set_failure_actions_on_non_crash_failures(true)),
    ];
    for (what, done) in wants {
        if let Err(error) = done {
            tell(what, format!("{:#}", explain(error)));
        }
    }
    if let Err(error) = event_log::register() {
        tell("the event viewer will not know its messages", error.to_string());
    }
    undone
}

/// Stops the service if it runs, and takes it out of the list.
pub(super) fn uninstall() -> anyhow::Result<()> {
    let manager = connect(ServiceManagerAccess::CONNECT)?;
    let access = ServiceAccess::QUERY_STATUS | ServiceAccess::STOP | ServiceAccess::DELETE;
    let service = manager.open_service(NAME, access).map_err(explain)?;
    stop(&service)?;
    service.delete().map_err(explain)?;
    say(&format!(
        "the service {NAME} is stopped and no longer installed; its configuration and its data are where they were"
    ));
    if let Err(error) = event_log::unregister() {
        say(&format!("warning: its source in the event log is still registered: {error}"));
    }
    Ok(())
}

fn stop(service: &Service) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut asked = false;
    loop {
        let state = service.query_status().map_err(explain)?.current_state;
        match state {
            ServiceState::Stopped => return Ok(()),
            // It takes no orders while it starts.
            ServiceState::Running if !asked => match service.stop() {
                Ok(_) => asked = true,
                Err(error) if code(&error) == Some(SERVICE_NOT_ACTIVE) => return Ok(()),
                Err(error) => return Err(explain(error)).context("the service cannot be stopped"),
            },
            ServiceState::Running
            | ServiceState::StartPending
            | ServiceState::StopPending
            | ServiceState::ContinuePending
            | ServiceState::PausePending
            | ServiceState::Paused => {}
        }
        if begun.elapsed() > 2 * STOP_HINT {
            bail!("the service is {state:?} and does not stop; end its process berth-agent.exe, then try again");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn connect(access: ServiceManagerAccess) -> anyhow::Result<ServiceManager> {
    ServiceManager::local_computer(None::<&str>, access).map_err(explain)
}

/// The code that Windows gave.
fn code(error: &windows_service::Error) -> Option<i32> {
    if let windows_service::Error::Winapi(error) = error { error.raw_os_error() } else { None }
}

/// An error with what to do about it.
fn explain(error: windows_service::Error) -> anyhow::Error {
    let remedy = match code(&error) {
        Some(ACCESS_DENIED) => {
            "this needs an administrator: open PowerShell with \"Run as administrator\" and try again"
        }
        Some(SERVICE_DOES_NOT_EXIST) => "the service berth-agent is not installed",
        Some(SERVICE_EXISTS) => {
            "the service berth-agent is installed already; `berth-agent service uninstall` takes it out"
        }
        Some(SERVICE_MARKED_FOR_DELETE) => {
            "the service berth-agent is being taken out of the list, once nobody has it open any more: close the services \
             console and try again"
        }
        Some(INVALID_SERVICE_ACCOUNT) => {
            "Windows does not know this account on this host; Test-ADServiceAccount NAME tells whether the host may use it"
        }
        Some(_) | None => "the service control manager says no",
    };
    match error {
        // Its own words add nothing to the system's.
        windows_service::Error::Winapi(error) => anyhow::Error::new(error).context(remedy),
        error => anyhow::Error::new(error).context(remedy),
    }
}

#[expect(clippy::print_stdout, reason = "a command for people")]
fn say(text: &str) {
    println!("{text}");
}
