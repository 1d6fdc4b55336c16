//! Asking guests: PowerShell Direct to Windows, addresses for the way to Linux.

use crate::on;
use crate::scenario::assigned;
use anyhow::ensure;
use berth_node_agent::driver::sim::StepFault;
#[cfg(unix)]
use berth_tests::hyperv::habits;
use berth_tests::hyperv::{UBUNTU, fault, vm_in};
#[cfg(unix)]
use berth_tests::pwsh::Host;
#[cfg(unix)]
use serde_json::Value;
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

/// A running Windows guest in which these programs lie, each a script here.
#[cfg(unix)]
fn with_programs(host: &Host, state: &Value, programs: &[(&str, &str)]) -> anyhow::Result<Value> {
    let mut state = state.clone();
    let vm = vm_in(&mut state, UBUNTU);
    vm["state"] = json!("Running");
    vm["guest_password"] = json!("Geheim-4711");
    vm["guest"] = json!([]);
    state["programs"] = json!({});
    for (at, (path, text)) in programs.iter().enumerate() {
        let file = host.dir().join(format!("program-{at}"));
        std::fs::write(&file, format!("#!/bin/sh\n{text}"))?;
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        state["programs"][*path] = json!(file);
    }
    Ok(state)
}

#[cfg(unix)]
fn command(host: &Host, program: &str, words: &[&str], limit_ms: u64) -> anyhow::Result<Value> {
    let file = host.dir().join("guest.xml");
    std::fs::write(&file, json!({ "user": "admin", "password": "Geheim-4711" }).to_string())?;
    Ok(json!({ "vm": UBUNTU, "credential_file": file, "program": program, "words": words, "limit_ms": limit_ms }))
}

#[cfg(unix)]
#[test]
fn a_command_in_a_windows_guest_gets_its_words_as_they_are_and_its_end_is_told() {
    const OP: &str = "install-in-windows-guest";
    let setup = r"C:\NVIDIA 550\setup.exe";
    let says = "for word; do printf '<%s>' \"$word\"; done\necho\necho 'a warning' >&2\nexit ${1#-}\n";
    on("commands in Windows guests", &assigned(), |host| {
        let programs = [
            (setup, says),
            (r"C:\flood.exe", "head -c 3000000 /dev/zero | tr '\\0' x\necho\nseq 1 3000\necho 'the end'\n"),
            (r"C:\hangs.exe", "echo working\nexec sleep 20\n"),
        ];
        host.set(&with_programs(host, &assigned(), &programs)?)?;
        let odd = [
            "-3",
            "it's",
            "a b",
            "$(touch /tmp/x); `id`",
            "%PATH% & | > < * ? \\",
            "gr\u{fc}n",
            "@x",
            "-Verb:RunAs",
            "{ 1 }",
        ];
        let ran = host.ok(OP, &command(host, setup, &odd, 60_000)?)?;
        let words: String = odd.iter().map(|word| format!("<{word}>")).collect();
        ensure!(ran["ended"] == json!(true) && ran["code"] == 3 && ran["late"] == json!(false), "{ran}");
        let said: Vec<_> = ran["said"].as_str().unwrap_or_default().lines().collect();
        ensure!(said.contains(&words.as_str()) && said.contains(&"a warning") && said.len() == 2, "{said:?}");
        let ran = host.ok(OP, &command(host, setup, &["-0"], 60_000)?)?;
        ensure!(ran["code"] == 0, "{ran}");

        // Of what it says the end is kept.
        let ran = host.ok(OP, &command(host, r"C:\flood.exe", &[], 120_000)?)?;
        let said = ran["said"].as_str().unwrap_or_default();
        ensure!(ran["code"] == 0 && said.len() <= 8192 && said.ends_with("3000\nthe end\n"), "{} of {ran}", said.len());
        // What is not there cannot be started: a shell's code, and why.
        let ran = host.ok(OP, &command(host, r"C:\no-such-program.exe", &["x"], 60_000)?)?;
        ensure!(
            ran["code"] == 127 && ran["said"].as_str().is_some_and(|said| said.contains("no-such-program")),
            "{ran}"
        );
        // What does not end is left at its deadline, with what it said.
        let begun = std::time::Instant::now();
        let ran = host.ok(OP, &command(host, r"C:\hangs.exe", &[], 3000)?)?;
        ensure!(begun.elapsed() < std::time::Duration::from_secs(15), "it took {:?}", begun.elapsed());
        ensure!(ran == json!({ "ended": false, "code": null, "late": true, "said": "working\n" }), "{ran}");
        Ok(())
    });
}

#[cfg(unix)]
#[test]
fn a_command_that_surely_did_not_begin_is_an_error_and_one_that_did_is_none() {
    const OP: &str = "install-in-windows-guest";
    let setup = r"C:\setup.exe";
    on("commands that do not begin", &assigned(), |host| {
        let trace = host.dir().join("trace");
        let runs = format!("echo ran >>'{}'\necho half\n", trace.display());
        let state = with_programs(host, &assigned(), &[(setup, &runs)])?;
        let args = command(host, setup, &["/s"], 60_000)?;
        let ran = |host: &Host| std::fs::read_to_string(host.dir().join("trace")).unwrap_or_default().lines().count();
        // A wrong password, a guest that is not up, one that is off, a session that is not made.
        for (change, category) in [
            (("guest_password", json!("Falsch-0815")), "AuthenticationError"),
            (("guest", json!(null)), "OpenError"),
            (("state", json!("Off")), "InvalidOperation"),
        ] {
            let mut state = state.clone();
            vm_in(&mut state, UBUNTU)[change.0] = change.1;
            host.set(&state)?;
            let error = host.err(OP, &args)?;
            ensure!(error["category"] == category, "{category}: {error}");
            ensure!(!error.to_string().contains("Geheim") && !error.to_string().contains("Falsch"), "{error}");
        }
        host.set(&state)?;
        host.change(|state| fault(state, "Invoke-Command", &StepFault::Fails("kaputt".to_owned()), 0))?;
        ensure!(host.err(OP, &args)?["message"] == "kaputt", "the fault did not show");
        for (name, bad) in [
            ("program", json!("")),
            ("program", json!("a\"b")),
            ("program", json!(["x"])),
            ("words", json!(["a\nb"])),
            ("words", json!(["x", 7])),
            ("words", json!([""])),
            ("limit_ms", json!(0)),
            ("limit_ms", json!(3_600_001)),
            ("script", json!("Get-VM")),
        ] {
            let mut args = args.clone();
            args[name] = bad;
            ensure!(host.err(OP, &args)?["kind"] == "Invalid", "{args}");
        }
        ensure!(ran(host) == 0, "it ran");
        // The guest restarts in the middle: it was begun, and nobody knows how it ended.
        host.change(|state| habits(state, &["session-breaks"]))?;
        let told = host.ok(OP, &args)?;
        ensure!(told == json!({ "ended": false, "code": null, "late": false, "said": "half\n" }), "{told}");
        ensure!(ran(host) == 1, "not once");
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
