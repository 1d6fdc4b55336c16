//! Asking the guest of a VM what it sees: a Windows guest by PowerShell Direct, a Linux guest by the agent's own `ssh`.
//!
//! Which system a VM runs, the host does not tell: where the agent has a way into both, it takes the one that answered
//! last, and else the other as well.

use super::answer::{GuestAddresses, GuestLook, InstanceId};
use super::{GUEST, HyperV, refused, request};
use crate::driver::DriverError;
use crate::driver::guest::Secrecy;
use crate::driver::guest::ssh::Login;
use berth_agent_core::guest::{Complaint, GuestView, MAX_COMPLAINTS};
use berth_model::VmId;
use berth_telemetry::names;
use serde_json::json;
use std::path::Path;

/// A way into a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The host's own, into Windows.
    PowerShellDirect,
    /// The network's, into Linux.
    Ssh,
}

impl HyperV {
    /// Asks the guest which devices it has. What it says is shown by the looks that follow.
    pub(super) async fn verify(&self, vm: &VmId) -> Result<(), DriverError> {
        let (credential, login) = (self.options.guest_credential.as_deref(), self.options.guest_login.as_ref());
        let (uptime, way) = {
            let known = self.known();
            (known.uptime.get(vm).copied().flatten(), known.ways.get(vm).copied())
        };
        let (guest, way) = match (login, credential) {
            (None, None) => {
                let text = "no guest can be asked here: hyperv.guest names neither a credential (for Windows guests) nor a \
                            user, identity and known_hosts (for Linux guests); or place with verification None";
                return Err(DriverError::Forbidden(text.to_owned()));
            }
            (Some(login), None) => (self.ask_linux(vm, login).await?, Way::Ssh),
            (None, Some(credential)) => (self.ask_windows(vm, credential).await?, Way::PowerShellDirect),
            (Some(login), Some(credential)) => self.ask_either(vm, login, credential, way).await?,
        };
        tracing::debug!({ names::VM } = %vm, ?way, ?guest, "the guest has answered");
        let mut known = self.known();
        known.ways.insert(vm.clone(), way);
        known.guests.insert(vm.clone(), (uptime, guest));
        Ok(())
    }

    async fn ask_either(
        &self,
        vm: &VmId,
        login: &Login,
        credential: &Path,
        last: Option<Way>,
    ) -> Result<(GuestView, Way), DriverError> {
        // By ssh first: it does not hold up questions to other guests, and a guest without the key is asked nothing.
        let order = match last {
            Some(Way::PowerShellDirect) => [Way::PowerShellDirect, Way::Ssh],
            Some(Way::Ssh) | None => [Way::Ssh, Way::PowerShellDirect],
        };
        let mut reasons = Vec::new();
        for way in order {
            let answer = match way {
                Way::Ssh => self.ask_linux(vm, login).await,
                Way::PowerShellDirect => self.ask_windows(vm, credential).await,
            };
            match answer {
                Ok(guest) => return Ok((guest, way)),
                Err(error) => reasons.push(match way {
                    Way::Ssh => format!("as a Linux guest: {error}"),
                    Way::PowerShellDirect => format!("as a Windows guest: {error}"),
                }),
            }
        }
        Err(DriverError::Failed(reasons.join("; ")))
    }

    /// Where the guest can be reached, in its own words.
    pub(super) async fn addresses(&self, vm: &VmId) -> Result<Vec<String>, DriverError> {
        let args = request::vm(vm)?;
        let told: GuestAddresses =
            self.powershell.call("guest-addresses", &args, self.options.step).await?.map_err(refused)?;
        Ok(told.addresses)
    }

    async fn ask_linux(&self, vm: &VmId, login: &Login) -> Result<GuestView, DriverError> {
        let addresses = self.addresses(vm).await?;
        // Not under the PowerShell's lock: looks and other VMs' steps go on meanwhile.
        login.ask(vm, &addresses).await.map_err(|error| DriverError::Failed(error.to_string()))
    }

    async fn ask_windows(&self, vm: &VmId, credential: &Path) -> Result<GuestView, DriverError> {
        Secrecy::Secret.check(credential).map_err(|error| DriverError::Failed(error.to_string()))?;
        let mut args = request::vm(vm)?;
        args["credential_file"] = json!(credential);
        let limit = self.options.step.min(GUEST);
        let look = self.guests.call("ask-windows-guest", &args, limit).await?.map_err(refused)?;
        Ok(windows(look))
    }
}

/// What a Windows guest's devices are to the brain. What is no PCI device, or says it is Microsoft's own, is none.
fn windows(look: GuestLook) -> GuestView {
    let mut guest = GuestView::default();
    for device in look.devices {
        let Some(Ok(id)) = device.instance_id.map(|id| id.parse::<InstanceId>()) else { continue };
        let id = id.pci;
        if id.vendor == 0x1414 {
            continue;
        }
        let seen = guest.devices.entry(id).or_default();
        seen.visible = seen.visible.saturating_add(1);
        seen.driver_bound = seen.driver_bound.saturating_add(u32::from(device.problem == Some(0)));
        let code = device.problem.and_then(|code| u32::try_from(code).ok()).filter(|code| *code != 0);
        if let Some(complaint) = code.map(|code| Complaint::Problem { id, code })
            && guest.complaints.len() < MAX_COMPLAINTS
            && !guest.complaints.contains(&complaint)
        {
            guest.complaints.push(complaint);
        }
    }
    guest
}

#[cfg(test)]
mod tests {
    use super::super::answer;
    use super::*;
    use berth_agent_core::guest::GuestDevices;

    #[test]
    fn a_windows_guest_is_read_with_its_problem_codes() {
        let device = |id: &str, problem: serde_json::Value| json!({ "instance_id": id, "name": "x", "status": "OK", "problem": problem });
        let a2 = r"PCI\VEN_10DE&DEV_25B6&SUBSYS_157E10DE&REV_A1\4&1A2B3C4D&0&0000";
        let answer = json!({ "id": 7, "ok": true, "result": { "devices": [
            device(a2, json!(0)), device(a2, json!(43)), device(a2, json!(43)), device(a2, json!(null)),
            device(r"PCI\VEN_1414&DEV_008E&SUBSYS_00000000&REV_00\x", json!(0)), device("ROOT\\X", json!(0)),
        ] } });
        let look: GuestLook = answer::read(answer.to_string().as_bytes(), 7).unwrap().unwrap();
        let guest = windows(look);
        let id = "10de:25b6:10de:157e".parse().unwrap();
        assert_eq!(guest.devices.into_iter().collect::<Vec<_>>(), [(id, GuestDevices { visible: 4, driver_bound: 1 })]);
        assert_eq!(guest.complaints, [Complaint::Problem { id, code: 43 }]);
    }
}
