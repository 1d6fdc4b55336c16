//! Running one of the node's driver-install commands in a guest, by the way that the guest was asked by.

use super::HyperV;
use super::verify::Way;
use crate::driver::DriverError;
use crate::driver::guest::install::{Command, Ran};
use berth_model::install::Install;
use berth_model::{CommandName, VmId};
use berth_telemetry::names;

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
            Some(Way::Ssh) => self.install_in_linux(vm, command).await?,
            Some(Way::PowerShellDirect) => return Err(no_linux()),
            None => return Err(DriverError::Failed("the guest has not been asked what it is".to_owned())),
        };
        let Ran { end, output } = ran;
        tracing::debug!({ names::VM } = %vm, command = %name, output = output.as_str(), "a driver-install command: {end}");
        Ok(Install { command: name.clone(), end, output })
    }

    async fn install_in_linux(&self, vm: &VmId, command: &Command) -> Result<Ran, DriverError> {
        let Some(login) = &self.options.guest_login else { return Err(no_linux()) };
        let addresses = self.addresses(vm).await?;
        // Not under the PowerShell's lock: looks and other VMs' steps go on meanwhile.
        let ran = login.install(vm, &addresses, &command.linux, command.limit).await;
        ran.map_err(|error| DriverError::Failed(error.to_string()))
    }
}

fn no_linux() -> DriverError {
    let text = "driver-install commands are run in Linux guests only, and this one was asked by PowerShell Direct: put its \
                driver into the VM's image, or place without a command";
    DriverError::Forbidden(text.to_owned())
}
