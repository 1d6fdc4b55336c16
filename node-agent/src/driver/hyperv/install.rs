//! Running one of the node's driver-install commands in a guest, by the way that the guest was asked by.

use super::answer::GuestInstall;
use super::powershell::{Lost, PowerShell};
use super::verify::Way;
use super::{HyperV, refused, request};
use crate::driver::DriverError;
use crate::driver::guest::Secrecy;
use crate::driver::guest::install::{Command, Ran};
use berth_model::install::{Install, InstallEnd, InstallOutput};
use berth_model::{CommandName, VmId};
use berth_telemetry::names;
use serde_json::json;
use std::time::Duration;

impl HyperV {
    /// Runs it. What the guest showed before counts no longer, however it ends.
    pub(super) async fn install_driver(&self, vm: &VmId, name: &CommandName) -> Result<Install, DriverError> {
        let Some(command) = self.options.guest_installs.get(name) else {
            let names: Vec<_> = self.options.guest_installs.keys().map(CommandName::as_str).collect();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(DriverError::Forbidden(format!(
                "this node knows no driver-install command {name}; hyperv.guest.install names {known}"
            )));
        };
        let way = {
            let mut known = self.known();
            known.guests.remove(vm);
            known.ways.get(vm).copied()
        };
        let ran = match way {
            Some(Way::Ssh) => self.install_in_linux(vm, name, command).await?,
            Some(Way::PowerShellDirect) => self.install_in_windows(vm, name, command).await?,
            None => return Err(DriverError::Failed("the guest has not been asked what it is".to_owned())),
        };
        let Ran { end, output } = ran;
        tracing::debug!({ names::VM } = %vm, command = %name, output = output.as_str(), "a driver-install command: {end}");
        Ok(Install { command: name.clone(), end, output })
    }

    async fn install_in_linux(&self, vm: &VmId, name: &CommandName, command: &Command) -> Result<Ran, DriverError> {
        let (Some(login), Some(words)) = (&self.options.guest_login, &command.linux) else {
            return Err(not_for(name, "Linux", "linux"));
        };
        let addresses = self.addresses(vm).await?;
        // Not under the PowerShell's lock: looks and other VMs' steps go on meanwhile.
        let ran = login.install(vm, &addresses, words, command.limit).await;
        ran.map_err(|error| DriverError::Failed(error.to_string()))
    }

    /// In a PowerShell of its own, which is ended with it: looks, steps and questions to other guests go on meanwhile.
    async fn install_in_windows(&self, vm: &VmId, name: &CommandName, command: &Command) -> Result<Ran, DriverError> {
        let (Some(credential), Some([program, words @ ..])) =
            (self.options.guest_credential.as_deref(), command.windows.as_deref())
        else {
            return Err(not_for(name, "Windows", "windows"));
        };
        Secrecy::Secret.check(credential).map_err(|error| DriverError::Failed(error.to_string()))?;
        let mut args = request::vm(vm)?;
        args["credential_file"] = json!(credential);
        args["program"] = json!(program);
        args["words"] = json!(words);
        args["limit_ms"] = json!(u64::try_from(command.limit.as_millis()).unwrap_or(u64::MAX));
        let powershell = PowerShell::new(self.options.powershell.clone(), self.dir.join(format!("install-{vm}")));
        // Until then nothing was begun.
        powershell.ready().await?;
        let answer = powershell.call("install-in-windows-guest", &args, command.limit + ANSWER).await;
        powershell.close().await;
        let seconds = u32::try_from(command.limit.as_secs()).unwrap_or(u32::MAX);
        match answer {
            Ok(Ok(run)) => Ok(ran(&run, seconds)),
            // The script says so only of what was not begun.
            Ok(Err(failure)) => Err(refused(failure)),
            Err(Lost::Late { .. }) => Ok(Ran { end: InstallEnd::Late(seconds), output: InstallOutput::default() }),
            // It may have begun.
            Err(_) => Ok(Ran { end: InstallEnd::Unknown, output: InstallOutput::default() }),
        }
    }
}

/// How long the script may take beside the command itself: the session with the guest is made within the command's own time.
const ANSWER: Duration = Duration::from_secs(30);

fn ran(run: &GuestInstall, seconds: u32) -> Ran {
    let end = match (run.ended, run.code, run.late) {
        (true, Some(code), _) => InstallEnd::Exited(code),
        (_, _, true) => InstallEnd::Late(seconds),
        (_, _, false) => InstallEnd::Unknown,
    };
    Ran { end, output: InstallOutput::of(run.said.as_bytes()) }
}

fn not_for(name: &CommandName, system: &str, setting: &str) -> DriverError {
    DriverError::Forbidden(format!(
        "this is a {system} guest, and hyperv.guest.install.{name} on this node does not say what to run in one: name it as \
         {setting}, put the driver into the VM's image, or place without a command"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_tells_of_a_command_is_how_it_ended() {
        let told = |ended, code, late| {
            let run = GuestInstall { ended, code, late, said: "one\u{1b}\n".to_owned() };
            let Ran { end, output } = ran(&run, 60);
            assert_eq!(output.as_str(), "one\\u{1b}");
            end
        };
        assert_eq!(told(true, Some(0), false), InstallEnd::Exited(0));
        assert_eq!(told(true, Some(-1_073_741_819), false), InstallEnd::Exited(-1_073_741_819));
        assert_eq!(told(false, None, true), InstallEnd::Late(60));
        assert_eq!(told(false, None, false), InstallEnd::Unknown);
        // It ended, and nobody knows with which code.
        assert_eq!(told(true, None, false), InstallEnd::Unknown);
    }
}
