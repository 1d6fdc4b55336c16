//! Asking guests: PowerShell Direct to Windows, addresses for the way to Linux.

use crate::on;
use crate::scenario::assigned;
use anyhow::ensure;
use berth_node_agent::driver::sim::StepFault;
use berth_tests::hyperv::{UBUNTU, fault, vm_in};
use serde_json::json;

#[test]
fn a_windows_guest_tells_its_devices_and_the_password_is_told_to_nobody() {
    let mut state = assigned();
    let vm = vm_in(&mut state, UBUNTU);
    vm["state"] = json!("Running");
    vm["guest_password"] = json!("Geheim-4711");
    vm["guest"] = json!([
        { "id": "PCI\\VEN_10DE&DEV_25B6&SUBSYS_157E10DE&REV_A1\\4&1A2B3C4D&0&0000", "name": "NVIDIA A2", "status": "OK", "problem": 0 },
        { "id": "PCI\\VEN_10DE&DEV_2291&SUBSYS_157E10DE&REV_A1\\4&5E6F7A8B&0&0000", "name": "Gerät", "status": "Error", "problem": 28 },
        { "id": "ROOT\\BASICDISPLAY\\0000", "name": "Basic display", "status": "OK", "problem": 0 },
    ]);
    on("Windows guest", &state, |host| {
        let file = host.dir().join("guest.xml");
        std::fs::write(&file, json!({ "user": "admin", "password": "Geheim-4711" }).to_string())?;
        let args = json!({ "vm": UBUNTU, "credential_file": file });
        let result = host.ok("ask-windows-guest", &args)?;
        ensure!(result["devices"].as_array().map(Vec::len) == Some(2), "{result}");
        ensure!(result["devices"][0]["problem"] == 0 && result["devices"][1]["problem"] == 28, "{result}");
        ensure!(result["devices"][1]["name"] == "Gerät", "{result}");

        // A wrong password, a guest that is not up, a session that breaks.
        std::fs::write(&file, json!({ "user": "admin", "password": "Falsch-0815" }).to_string())?;
        let error = host.err("ask-windows-guest", &args)?;
        ensure!(error["kind"] == "Failed" && error["category"] == "AuthenticationError", "{error}");
        ensure!(!error.to_string().contains("Falsch") && !error.to_string().contains("Geheim"), "{error}");
        host.change(|state| fault(state, "Invoke-Command", &StepFault::Fails("kaputt".to_owned()), 0))?;
        ensure!(host.err("ask-windows-guest", &args)?["message"] == "kaputt", "the fault did not show");
        host.change(|state| vm_in(state, UBUNTU)["guest"] = json!(null))?;
        ensure!(host.err("ask-windows-guest", &args)?["category"] == "OpenError", "a guest answered that is not there");
        host.change(|state| vm_in(state, UBUNTU)["state"] = json!("Off"))?;
        ensure!(host.err("ask-windows-guest", &args)?["kind"] == "Refused", "a guest answered that is off");

        // Files that are none, hold something else, or are somebody else's.
        host.change(|state| vm_in(state, UBUNTU)["state"] = json!("Running"))?;
        std::fs::write(&file, "{}")?;
        ensure!(host.err("ask-windows-guest", &args)?["kind"] == "Invalid", "no credential, and no error");
        for path in [
            "",
            "guest.xml",
            "/nowhere/guest.xml",
            "\\\\server\\share\\guest.xml",
            "//server/guest.xml",
            "/tmp/*",
            "a\nb",
        ] {
            let error = host.err("ask-windows-guest", &json!({ "vm": UBUNTU, "credential_file": path }))?;
            ensure!(error["kind"] == "Invalid", "{path:?}: {error}");
        }
        ensure!(!std::fs::read_to_string(host.dir().join("stderr"))?.contains("Geheim"), "the password is on stderr");
        Ok(())
    });
}

/// A guest says what it likes, as much as it likes.
#[test]
fn a_guest_that_floods_its_host_is_heard_in_part() {
    let mut state = assigned();
    let vm = vm_in(&mut state, UBUNTU);
    vm["state"] = json!("Running");
    vm["guest_password"] = json!("Geheim-4711");
    let long = "x".repeat(5000);
    vm["guest"] = (0..700)
        .map(|at| json!({ "id": format!("PCI\\VEN_10DE&DEV_25B6&SUBSYS_157E10DE&REV_A1\\{at:04}"), "name": long, "status": "OK", "problem": 0 }))
        .collect();
    on("a guest that floods", &state, |host| {
        let file = host.dir().join("guest.xml");
        std::fs::write(&file, json!({ "user": "admin", "password": "Geheim-4711" }).to_string())?;
        let result = host.ok("ask-windows-guest", &json!({ "vm": UBUNTU, "credential_file": file }))?;
        let devices = result["devices"].as_array().map_or(0, Vec::len);
        ensure!(
            devices == 256 && result.to_string().len() < 200_000,
            "{devices} devices, {}",
            result.to_string().len()
        );
        Ok(())
    });
}

#[test]
fn addresses_of_a_guest_are_one_list_over_all_adapters() {
    let mut state = assigned();
    on("addresses", &state.clone(), |host| {
        for (adapters, expected) in [
            (json!([]), json!([])),
            (json!([[]]), json!([])),
            (json!([["192.0.2.7"]]), json!(["192.0.2.7"])),
            (json!([["192.0.2.7", "fe80::1"], [], ["198.51.100.9"]]), json!(["192.0.2.7", "fe80::1", "198.51.100.9"])),
        ] {
            vm_in(&mut state, UBUNTU)["addresses"] = adapters;
            host.set(&state)?;
            let result = host.ok("guest-addresses", &json!({ "vm": UBUNTU }))?;
            ensure!(result["addresses"] == expected, "{result}");
        }
        Ok(())
    });
}
