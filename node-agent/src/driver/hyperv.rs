//! Hyper-V hosts: Discrete Device Assignment by one long-lived PowerShell that runs Berth's host script.
//!
//! Owns what is asked of the host, how long that may take, and what was measured while it could be. Must never conclude
//! from an answer that a step worked (the brain looks again), nor send anything but names and arguments.

mod answer;
mod facts;
mod install;
mod powershell;
mod request;
pub mod script;
mod verify;
mod view;

use super::guest::install::Command;
use super::guest::ssh::Login;
use super::{DriverError, HostDriver};
use answer::{Failure, HostWords, Kind, Look, Stepped, Survey};
use async_trait::async_trait;
use berth_agent_core::observed::HostView;
use berth_agent_core::step::Step;
use berth_model::gpu::Finding;
use berth_model::install::Install;
use berth_model::node::{BootId, HostFacts};
use berth_model::placement::StepErrorClass;
use berth_model::vm::{VmDevice, VmState};
use berth_model::{CommandName, VmId};
use berth_telemetry::names;
use powershell::PowerShell;
#[cfg(test)]
pub(crate) use powershell::{END, START};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use verify::Way;

/// How a Hyper-V host is worked on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Windows PowerShell 5.1, by its whole path.
    pub powershell: PathBuf,
    /// Whether devices without a mitigation driver, or without access control on their way, are dismounted all the same.
    pub force: bool,
    /// Findings of surveys that do not keep a device from being offered. Only those count that a policy may accept.
    pub accept: Vec<Finding>,
    /// The credential for Windows guests, as `Export-Clixml` writes it for the agent's own account.
    pub guest_credential: Option<PathBuf>,
    /// The most address space above 4 GiB that a VM can have here, in bytes, where somebody measured it. No cmdlet tells it.
    pub mmio_high_cap_bytes: Option<u64>,
    /// How Linux guests are logged in to.
    pub guest_login: Option<Login>,
    /// What may be run in guests.
    pub guest_installs: BTreeMap<CommandName, Command>,
    /// How long a look may take.
    pub look: Duration,
    /// How long one step may take.
    pub step: Duration,
    /// How long a guest may take to shut down before its VM is turned off.
    pub shutdown: Duration,
}

impl Options {
    /// The usual limits.
    pub fn new(powershell: PathBuf) -> Self {
        Self {
            powershell,
            force: false,
            accept: Vec::new(),
            guest_credential: None,
            mmio_high_cap_bytes: None,
            guest_login: None,
            guest_installs: BTreeMap::new(),
            // Some seconds for each of PnP, pool and a hundred VMs.
            look: Duration::from_secs(100),
            // A device that hangs while it is dismounted takes a minute or two.
            step: Duration::from_secs(200),
            // Hyper-V itself forces a guest after five minutes.
            shutdown: Duration::from_secs(320),
        }
    }

    /// Whether there is such a PowerShell.
    ///
    /// # Errors
    /// What to do about it.
    pub fn check(&self) -> Result<(), NoPowerShell> {
        if self.powershell.is_file() { Ok(()) } else { Err(NoPowerShell(self.powershell.clone())) }
    }
}

/// There is no PowerShell where one should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no PowerShell at {}: the driver hyperv runs on Windows Server with the Hyper-V role and Windows PowerShell \
     5.1; if it lies elsewhere, name its program in hyperv.powershell",
    .0.display()
)]
pub struct NoPowerShell(PathBuf);

/// Pause between two looks at a guest that shuts down. Each holds the process for a moment only.
const SHUTDOWN_PAUSE: Duration = Duration::from_secs(2);
/// How long one question whether it is off may wait for it, in milliseconds.
const SHUTDOWN_SETTLE_MS: u64 = 1000;
/// How long one question to a Windows guest may take: a session is made, one listing of its devices comes back. It is asked
/// again, and others wait meanwhile.
const GUEST: Duration = Duration::from_secs(60);

/// The driver of a Hyper-V host.
#[derive(Debug)]
pub struct HyperV {
    options: Options,
    powershell: PowerShell,
    /// Another process for questions to Windows guests, which answer when they like: the host is not lost from sight for so
    /// long. Nothing on the host is changed in it.
    guests: PowerShell,
    /// Where their files lie.
    dir: PathBuf,
    known: Mutex<Known>,
}

/// What is known beside the last look. All of it may be lost: it is measured, or asked for, again.
#[derive(Debug, Default)]
struct Known {
    /// The boot, as the first look told it. This process ends with it, so it cannot change; what Windows says of it does,
    /// when somebody sets the clock.
    boot: Option<BootId>,
    host: Option<HostWords>,
    survey: SurveyState,
    measured: view::Measured,
    guests: view::Guests,
    /// Which way into a VM's guest led to an answer last.
    ways: BTreeMap<VmId, Way>,
    /// Records without a device, by VM, as the last look showed them.
    stale: BTreeMap<VmId, usize>,
    /// How long each running VM has run, as the last look showed it.
    uptime: BTreeMap<VmId, Option<u64>>,
}

/// Where surveying stands.
#[derive(Debug, Default)]
struct SurveyState {
    /// What the last one could not find out, for people.
    unknown: Vec<String>,
    /// How many in a row left something open.
    open: u32,
    /// No other one before then.
    not_before: Option<Instant>,
}

impl SurveyState {
    /// A survey costs a host far more than a look: after one that left something open, the next one waits, twice as long
    /// each time.
    const FIRST_PAUSE: Duration = Duration::from_secs(30);
    /// Whatever keeps it from being found out is a person's work by then.
    const LONGEST_PAUSE: Duration = Duration::from_secs(900);

    fn ended(&mut self, unknown: Vec<String>, open: bool, now: Instant) {
        self.unknown = unknown;
        self.open = if open { self.open.saturating_add(1) } else { 0 };
        let pause = Self::FIRST_PAUSE.saturating_mul(1 << self.open.saturating_sub(1).min(8));
        self.not_before = open.then(|| now + pause.min(Self::LONGEST_PAUSE));
    }
}

impl HyperV {
    /// A driver whose files lie in a folder of the agent's data directory. Nothing is started yet.
    pub fn new(options: Options, data_dir: &Path) -> Self {
        let dir = std::path::absolute(data_dir.join("hyperv")).unwrap_or_else(|_| data_dir.join("hyperv"));
        let powershell = PowerShell::new(options.powershell.clone(), dir.clone());
        // A folder of its own: each looks at its script before it starts, and writes it anew.
        let guests = PowerShell::new(options.powershell.clone(), dir.join("guests"));
        Self { options, powershell, guests, dir, known: Mutex::default() }
    }

    /// A panic elsewhere leaves nothing half written here.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Measures what this look shows and was not measured yet. Whatever goes wrong with it, the look stands: what could not
    /// be measured is told as not measured, and why in the host's notes.
    async fn survey(&self, look: &Look) {
        {
            let mut known = self.known();
            if known.host.is_some() && !view::needs_survey(look, &known.measured) {
                // Whatever was open is not there any more.
                known.survey = SurveyState::default();
                return;
            }
            if known.survey.not_before.is_some_and(|at| Instant::now() < at) {
                return;
            }
        }
        let survey = match self.powershell.call::<Survey>("survey", &json!({}), self.options.look).await {
            Ok(Ok(survey)) => Ok(survey),
            Ok(Err(failure)) => Err(failure.to_string()),
            Err(lost) => Err(lost.to_string()),
        };
        let mut known = self.known();
        let unknown = match survey {
            Ok(Survey { host, devices, unknown }) => {
                if let Some(host) = host {
                    if known.host.as_ref() != Some(&host) && !(host.reasons.is_empty() && host.iov_texts.is_empty()) {
                        tracing::warn!(reasons = ?host.reasons, says = ?host.iov_texts, "this host says it cannot assign devices");
                    }
                    known.host = Some(host);
                }
                view::measure(&mut known.measured, devices);
                unknown
            }
            Err(why) => vec![why],
        };
        if !unknown.is_empty() && known.survey.unknown != unknown {
            tracing::warn!(?unknown, "a survey of this host left something open");
        }
        let open = !unknown.is_empty() || known.host.is_none() || view::needs_survey(look, &known.measured);
        known.survey.ended(unknown, open, Instant::now());
    }

    async fn step(&self, op: &'static str, args: &Value) -> Result<(), DriverError> {
        let stepped: Stepped = self.powershell.call(op, args, self.options.step).await?.map_err(refused)?;
        tracing::debug!(operation = op, changed = stepped.changed, "the host reports success");
        Ok(())
    }

    /// Asks the guest first; whatever keeps it from shutting down, the VM is turned off in the end. The process is free
    /// in between.
    async fn stop(&self, vm: &VmId) -> Result<(), DriverError> {
        let begun = Instant::now();
        let mut ask = request::vm(vm)?;
        ask["how"] = json!("ShutDown");
        ask["settle_ms"] = json!(SHUTDOWN_SETTLE_MS);
        loop {
            let stopped = self.powershell.call::<Stepped>("stop-vm", &ask, self.options.step).await?;
            match stopped {
                Ok(_) => return Ok(()),
                Err(failure) => match failure.kind {
                    Kind::Unconfirmed | Kind::Failed if begun.elapsed() < self.options.shutdown => {}
                    Kind::Unconfirmed | Kind::Failed => break,
                    // Its guest does not run, so it cannot be asked. A saved state is left to people.
                    Kind::Refused if failure.vm_state() == Some("Paused") => break,
                    Kind::Refused | Kind::NotThere | Kind::Invalid => return Err(refused(failure)),
                },
            }
            sleep(SHUTDOWN_PAUSE).await;
        }
        tracing::warn!({ names::VM } = %vm, "the guest does not shut down; its VM is turned off");
        let mut plug = request::vm(vm)?;
        plug["how"] = json!("TurnOff");
        self.step("stop-vm", &plug).await
    }
}

/// What the script refused or the host failed.
fn refused(failure: Failure) -> DriverError {
    let text = failure.to_string();
    match failure.kind {
        Kind::NotThere => DriverError::NotThere(text),
        Kind::Invalid | Kind::Refused | Kind::Unconfirmed => DriverError::Failed(text),
        Kind::Failed => match failure.class() {
            Some(StepErrorClass::Forbidden) => DriverError::Forbidden(text),
            Some(StepErrorClass::NotThere) => DriverError::NotThere(text),
            Some(StepErrorClass::Failed | StepErrorClass::TimedOut | StepErrorClass::NoEffect) | None => {
                DriverError::Failed(text)
            }
        },
    }
}

#[async_trait]
impl HostDriver for HyperV {
    fn forces(&self) -> bool {
        self.options.force
    }

    async fn facts(&self) -> Result<HostFacts, DriverError> {
        let hello = self.powershell.hello();
        let module = hello.as_ref().and_then(|hello| hello.modules.get("Hyper-V").cloned().flatten());
        let absent = hello.map(|hello| hello.absent).unwrap_or_default();
        let known = self.known();
        let mut facts =
            facts::facts(known.host.as_ref(), module.as_deref(), &absent, &known.survey.unknown, &self.options.accept);
        facts.mmio_high_cap_bytes = self.options.mmio_high_cap_bytes;
        Ok(facts)
    }

    async fn observe(&self) -> Result<HostView, DriverError> {
        let look: Look = self.powershell.call("observe", &json!({}), self.options.look).await?.map_err(refused)?;
        self.survey(&look).await;
        let mut known = self.known();
        if let Some(id) = view::nowhere(&look, &known.measured) {
            return Err(DriverError::Failed(format!(
                "the device {id} is present and does not say where; if it stays so, restart the host, or look at it in the \
                 device manager"
            )));
        }
        known.guests.retain(|id, _| look.vms.iter().any(|vm| vm.id == *id && vm.state == VmState::Running));
        known.ways.retain(|id, _| look.vms.iter().any(|vm| vm.id == *id));
        known.uptime = look.vms.iter().map(|vm| (vm.id.clone(), vm.uptime_seconds)).collect();
        let boot = known.boot.get_or_insert_with(|| look.boot.clone()).clone();
        let reasons = known.host.as_ref().map(|host| host.reasons.clone()).unwrap_or_default();
        let host = view::Host { reasons: &reasons, accepted: &self.options.accept };
        let seen = view::view(&look, &boot, &host, &known.measured, &known.guests);
        let stale = |devices: &[VmDevice]| devices.iter().filter(|device| matches!(device, VmDevice::Stale)).count();
        known.stale = seen.vms.iter().map(|(id, vm)| (id.clone(), stale(&vm.vm.devices))).collect();
        Ok(seen)
    }

    async fn install(&self, vm: &VmId, command: &CommandName) -> Result<Install, DriverError> {
        self.install_driver(vm, command).await
    }

    async fn act(&self, step: &Step) -> Result<(), DriverError> {
        match step {
            Step::MakeStandalone { vm, role } => {
                let Some(role) = role else {
                    let text = format!(
                        "the cluster does not tell the role of VM {vm} (Get-ClusterGroup -VMId): nobody could make it one again"
                    );
                    return Err(DriverError::Failed(text));
                };
                let mut args = request::vm(vm)?;
                args["role"] = json!(role.name.as_str());
                // The planner takes this step only where the request allows it.
                args["allow"] = json!(true);
                self.step("make-standalone", &args).await
            }
            Step::StopVm { vm } => self.stop(vm).await,
            Step::ConfigureVm { vm, settings } => {
                self.step("configure-vm", &request::settings(vm, settings, true)?).await
            }
            Step::RestoreVm { vm, settings } => {
                self.step("configure-vm", &request::settings(vm, settings, false)?).await
            }
            Step::Disable { address } => self.step("disable", &request::device(address)?).await,
            Step::Dismount { address } => {
                let mut args = request::device(address)?;
                args["force"] = json!(self.options.force);
                if self.options.force {
                    tracing::warn!({ names::GPU } = %address, "dismounted with -Force, as hyperv.force says");
                }
                self.step("dismount", &args).await
            }
            Step::Attach { vm, address } => self.step("attach", &request::vm_device(vm, address)?).await,
            Step::StartVm { vm } => self.step("start-vm", &request::vm(vm)?).await,
            Step::Verify { vm } => self.verify(vm).await,
            Step::InstallDriver { vm, command } => self.install_driver(vm, command).await.map(drop),
            Step::Detach { vm, address } => self.step("detach", &request::vm_device(vm, address)?).await,
            Step::DetachStale { vm } => {
                let records = self.known().stale.get(vm).copied().unwrap_or(0);
                if records == 0 {
                    return Ok(());
                }
                let mut args = request::vm(vm)?;
                args["records"] = json!(records);
                self.step("detach-stale", &args).await
            }
            Step::Mount { address } => self.step("mount", &request::device(address)?).await,
            Step::Enable { address } => self.step("enable", &request::device(address)?).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surveys_that_leave_something_open_come_ever_less_often() {
        let (mut state, now) = (SurveyState::default(), Instant::now());
        let mut pause = |open: bool| {
            state.ended(Vec::new(), open, now);
            state.not_before.map(|at| at.duration_since(now).as_secs())
        };
        let pauses: Vec<_> = (0..8).map(|_| pause(true)).collect();
        assert_eq!(pauses, [30, 60, 120, 240, 480, 900, 900, 900].map(Some));
        assert_eq!([pause(false), pause(true)], [None, Some(30)]);
    }
}
