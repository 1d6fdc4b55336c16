//! What steps refuse, and what they make of a host's errors.

use crate::scenario::{assigned, for_devices};
use crate::{alone, on};
use anyhow::ensure;
use berth_node_agent::driver::sim::StepFault;
use berth_tests::hyperv::site::PATIENCE;
use berth_tests::hyperv::{A2, A16, BUERO, DISK, HABITS, UBUNTU, assign, at, facts, fault, habits, usual, vm_in};
use berth_tests::process::wait_until;
use berth_tests::pwsh::Host;
use serde_json::{Value, json};

const NOBODY: &str = "99999999-9999-4999-8999-999999999999";

/// Fails in this way, and nothing that acts was called.
fn refused(host: &mut Host, state: &Value, op: &str, args: &Value, kind: &str, words: &str) -> anyhow::Result<()> {
    host.set(state)?;
    let error = host.err(op, args)?;
    ensure!(error["kind"] == kind, "{op} {args}: {error}");
    ensure!(error["message"].as_str().is_some_and(|message| message.contains(words)), "{op} {args}: {error}");
    ensure!(host.acts()?.is_empty(), "{op} {args} acted: {:?}", host.acts()?);
    ensure!(host.state()? == *state, "{op} {args} changed something");
    Ok(())
}

#[test]
fn what_would_do_harm_is_refused_before_anything_is_touched() {
    let mut pooled = usual();
    at(&mut pooled, A2[0])["dismounted"] = json!(true);
    let mut taken = pooled.clone();
    assign(&mut taken, BUERO, A2[0]);
    let mut running = assigned();
    vm_in(&mut running, UBUNTU)["state"] = json!("Running");
    let mut saved = usual();
    vm_in(&mut saved, UBUNTU)["state"] = json!("Saved");
    // One of a VM that ran, and one that does not say; the others hold no state.
    let checkpoints = ["Saved", ""].map(|of| {
        let mut state = pooled.clone();
        let checkpoints = json!(["off", { "name": "production", "state": "Off" }, { "name": "ran", "state": of }]);
        vm_in(&mut state, UBUNTU)["checkpoints"] = checkpoints;
        state
    });
    let mut paused = usual();
    vm_in(&mut paused, UBUNTU)["state"] = json!("Paused");
    let mut stale = assigned();
    for path in A2 {
        at(&mut stale, path)["in_slot"] = json!(false);
    }
    let mut clustered = usual();
    vm_in(&mut clustered, UBUNTU)["clustered"] = json!(true);
    let mut pool = pooled.clone();
    at(&mut pool, A2[0])["pool"] = json!("GPU Pool");
    let vm = json!({ "vm": UBUNTU });
    let device = json!({ "location_path": A2[0] });
    let both = json!({ "vm": UBUNTU, "location_path": A2[0] });
    let settings = json!({ "vm": UBUNTU, "settings": for_devices() });
    let for_placing = json!({ "vm": UBUNTU, "settings": for_devices(), "for_devices": true });
    let allow = |allow| json!({ "vm": UBUNTU, "allow": allow, "role": "ubuntu" });
    on("refusals", &usual(), |host| {
        let mut refused = |state: &Value, op: &str, args: &Value, kind: &str, words: &str| {
            refused(host, state, op, args, kind, words)
        };
        refused(&usual(), "disable", &json!({ "location_path": DISK }), "Refused", "class 1")?;
        refused(&usual(), "dismount", &json!({ "location_path": DISK, "force": true }), "Refused", "class 1")?;
        refused(&usual(), "disable", &json!({ "location_path": "PCIROOT(0)#PCI(0301)" }), "Refused", "class 6")?;
        refused(&usual(), "disable", &json!({ "location_path": "PCIROOT(9)#PCI(0000)" }), "NotThere", "no device at")?;
        refused(&usual(), "mount", &json!({ "location_path": "PCIROOT(9)#PCI(0000)" }), "NotThere", "no device at")?;
        refused(&usual(), "attach", &both, "NotThere", "is in the pool")?;
        refused(&pooled, "attach", &json!({ "vm": NOBODY, "location_path": A2[0] }), "NotThere", "no VM on this host")?;
        refused(&pooled, "enable", &device, "NotThere", "the host has no device")?;
        refused(&taken, "attach", &both, "Refused", "lists the device")?;
        refused(&taken, "mount", &device, "Refused", "lists the device")?;
        refused(&pool, "attach", &both, "Refused", "the pool GPU Pool")?;
        refused(&pool, "mount", &device, "Refused", "the pool GPU Pool")?;
        refused(&pool, "dismount", &json!({ "location_path": A2[0], "force": false }), "Refused", "the pool GPU Pool")?;
        refused(&running, "detach", &both, "Refused", "it must be Off")?;
        refused(
            &running,
            "configure-vm",
            &json!({ "vm": UBUNTU, "settings": { "guest_cache_types": false } }),
            "Refused",
            "must be Off",
        )?;
        refused(
            &assigned(),
            "configure-vm",
            &json!({ "vm": UBUNTU, "settings": { "stop_action": "Save" } }),
            "Refused",
            "cannot be saved",
        )?;
        refused(&saved, "stop-vm", &json!({ "vm": UBUNTU, "how": "TurnOff" }), "Refused", "saved state")?;
        refused(&saved, "start-vm", &vm, "Refused", "it must be Off")?;
        refused(&saved, "configure-vm", &settings, "Refused", "it must be Off")?;
        for state in &checkpoints {
            refused(state, "configure-vm", &for_placing, "Refused", "1 checkpoints that hold a saved state")?;
            refused(state, "attach", &both, "Refused", "1 checkpoints that hold a saved state")?;
        }
        refused(&paused, "stop-vm", &json!({ "vm": UBUNTU, "how": "ShutDown" }), "Refused", "cannot be asked")?;
        refused(&stale, "detach-stale", &json!({ "vm": UBUNTU, "records": 1 }), "Refused", "2 records")?;
        refused(&clustered, "make-standalone", &allow(false), "Refused", "does not allow")?;
        let nameless = json!({ "vm": UBUNTU, "allow": true });
        refused(&clustered, "make-standalone", &nameless, "Invalid", "must be the name of a role")?;
        // Another than the one that was written down; nobody could make it one again.
        let other = json!({ "vm": UBUNTU, "allow": true, "role": "Ubuntu" });
        refused(&clustered, "make-standalone", &other, "Refused", "not the one that was seen before")
    });
}

/// Giving settings back must not be held up by what somebody made meanwhile, and most checkpoints are no obstacle at all.
#[test]
fn checkpoints_hold_up_only_what_they_would_break() {
    let mut state = usual();
    vm_in(&mut state, UBUNTU)["checkpoints"] = json!([{ "name": "ran", "state": "Saved" }]);
    let restore = json!({ "vm": UBUNTU, "settings": { "guest_cache_types": true }, "for_devices": false });
    let prepare = json!({ "vm": UBUNTU, "settings": { "guest_cache_types": false }, "for_devices": true });
    on("checkpoints", &state, |host| {
        host.ok("configure-vm", &restore)?;
        let error = host.err("configure-vm", &prepare)?;
        ensure!(error["kind"] == "Refused" && error["seen"]["vm"]["saved_checkpoints"] == 1, "{error}");
        host.change(|state| vm_in(state, UBUNTU)["checkpoints"] = json!(["a", { "name": "b", "state": "Off" }]))?;
        let result = host.ok("configure-vm", &prepare)?;
        ensure!(result["seen"]["vm"]["checkpoints"] == 2 && result["seen"]["vm"]["saved_checkpoints"] == 0, "{result}");
        Ok(())
    });
}

#[test]
fn stale_records_go_and_records_that_name_a_device_stay() {
    let mut state = assigned();
    at(&mut state, A2[1])["in_slot"] = json!(false);
    on("stale records", &state, |host| {
        let result = host.ok("detach-stale", &json!({ "vm": UBUNTU, "records": 1 }))?;
        let devices = &result["seen"]["vm"]["devices"];
        ensure!(devices.as_array().map(Vec::len) == Some(1) && devices[0]["location_path"] == A2[0], "{result}");
        // And the other way round: the device by its path, while a record without one stays.
        host.set(&state)?;
        let result = host.ok("detach", &json!({ "vm": UBUNTU, "location_path": A2[0] }))?;
        let devices = &result["seen"]["vm"]["devices"];
        ensure!(devices.as_array().map(Vec::len) == Some(1) && devices[0]["location_path"].is_null(), "{result}");
        Ok(())
    });
}

#[test]
fn dismounting_without_a_mitigation_driver_takes_force_and_force_is_said_each_time() {
    let mut state = usual();
    at(&mut state, A2[0])["mitigation"] = json!(false);
    on("force", &state, |host| {
        let error = host.err("dismount", &json!({ "location_path": A2[0], "force": false }))?;
        ensure!(error["kind"] == "Failed" && error["cmdlet"] == "Dismount-VMHostAssignableDevice", "{error}");
        ensure!(error["seen"]["device"]["host"]["instance_id"].is_string(), "{error}");
        host.ok("dismount", &json!({ "location_path": A2[0], "force": true }))?;
        // The host comes up with firmware that keeps PCI Express: force does not help.
        host.set(&state)?;
        host.change(|state| habits(state, &["firmware-keeps-pcie"]))?;
        let error = host.err("dismount", &json!({ "location_path": A2[0], "force": true }))?;
        ensure!(error["kind"] == "Failed" && error["hresult"] == json!(-2_147_024_809_i64), "{error}");
        Ok(())
    });
}

#[test]
fn errors_in_another_language_keep_their_class_and_their_numbers() {
    let mut client = assigned();
    client["host"]["product_type"] = json!(1);
    let mut gone = assigned();
    at(&mut gone, A2[1])["in_slot"] = json!(false);
    let mut room = assigned();
    vm_in(&mut room, UBUNTU)["mmio_high"] = json!(1 << 30);
    on("languages", &usual(), |host| {
        for (state, code) in [(&client, "0xC035001E"), (&gone, "0x80070490"), (&room, "0x800705AA")] {
            let mut told = Vec::new();
            for language in ["en", "de"] {
                let mut state = state.clone();
                state["language"] = json!(language);
                host.set(&state)?;
                let mut error = host.err("start-vm", &json!({ "vm": UBUNTU }))?;
                ensure!(error["codes"] == json!([code]), "{error}");
                ensure!(error["kind"] == "Failed" && error["category"] == "NotSpecified", "{error}");
                // What the worker's log says of this VM, and not of another one.
                ensure!(error["events"].as_array().map(Vec::len) == Some(1), "{error}");
                ensure!(error["events"][0].as_str().is_some_and(|text| text.contains(UBUNTU)), "{error}");
                ensure!(error["seen"]["vm"]["state"] == "Off", "{error}");
                let text = error["message"].take();
                error["events"].take();
                told.push((text, error));
            }
            ensure!(told[0].0 != told[1].0, "it said the same in both languages: {}", told[0].0);
            ensure!(told[0].1 == told[1].1, "{told:?}");
        }
        Ok(())
    });
}

#[test]
fn a_guest_that_does_not_shut_down_is_waited_for_briefly_and_can_be_turned_off() {
    let mut state = assigned();
    vm_in(&mut state, UBUNTU)["state"] = json!("Running");
    habits(&mut state, &["slow-guest"]);
    on("slow guest", &state, |host| {
        let shut_down = json!({ "vm": UBUNTU, "how": "ShutDown", "settle_ms": 300 });
        for _ in 0..2 {
            let error = host.err("stop-vm", &shut_down)?;
            ensure!(error["kind"] == "Unconfirmed" && error["seen"]["vm"]["state"] == "Stopping", "{error}");
        }
        // Asked once, however often it is looked at.
        ensure!(host.acts()? == ["Stop-VM"], "{:?}", host.acts()?);
        let result = host.ok("stop-vm", &json!({ "vm": UBUNTU, "how": "TurnOff" }))?;
        ensure!(result["seen"]["vm"]["state"] == "Off", "{result}");
        Ok(())
    });
}

#[test]
fn a_mount_that_reports_failure_and_worked_shows_both() {
    let mut state = usual();
    at(&mut state, A2[0])["dismounted"] = json!(true);
    habits(&mut state, &["mount-reports-failure"]);
    on("mount reports failure", &state, |host| {
        let error = host.err("mount", &json!({ "location_path": A2[0] }))?;
        ensure!(error["kind"] == "Failed", "{error}");
        ensure!(error["seen"]["device"]["pool"].is_null() && error["seen"]["device"]["host"].is_object(), "{error}");
        let result = host.ok("mount", &json!({ "location_path": A2[0] }))?;
        ensure!(result["changed"] == json!(false), "{result}");
        Ok(())
    });
}

#[test]
fn a_vm_that_vanishes_with_its_role_is_told() {
    let mut state = usual();
    state["cluster"] = json!("CLU1");
    vm_in(&mut state, UBUNTU)["clustered"] = json!(true);
    let args = json!({ "vm": UBUNTU, "allow": true, "role": "ubuntu" });
    on("roles", &state, |host| {
        let mut gone = state.clone();
        habits(&mut gone, &["role-takes-the-vm"]);
        host.set(&gone)?;
        let error = host.err("make-standalone", &args)?;
        ensure!(error["kind"] == "NotThere" && error["seen"]["vm"].is_null(), "{error}");
        // A clustered VM without a role of its own is left alone.
        host.set(&state)?;
        host.change(|state| fault(state, "Get-ClusterGroup", &StepFault::NoEffect, 0))?;
        let error = host.err("make-standalone", &args)?;
        ensure!(error["kind"] == "NotThere" && host.acts()?.is_empty(), "{error}");
        Ok(())
    });
}

/// With a role goes all that is in it: what is not this VM's must be nobody's loss.
#[test]
fn a_role_that_holds_more_than_its_vm_is_left_alone() {
    let mut state = usual();
    state["cluster"] = json!("CLU1");
    vm_in(&mut state, UBUNTU)["clustered"] = json!(true);
    let args = json!({ "vm": UBUNTU, "allow": true, "role": "ubuntu" });
    on("roles that hold more", &state, |host| {
        for more in [
            json!({ "name": "Cluster Disk 2", "type": "Physical Disk" }),
            json!({ "name": "Virtual Machine other", "type": "Virtual Machine" }),
            json!({ "name": "File Server", "type": "Network Name" }),
        ] {
            let mut shared = state.clone();
            vm_in(&mut shared, UBUNTU)["role_resources"] = json!([more]);
            refused(host, &shared, "make-standalone", &args, "Refused", more["name"].as_str().unwrap_or_default())?;
        }
        // What cannot be listed may be anybody's.
        host.set(&state)?;
        host.change(|state| fault(state, "Get-ClusterResource", &StepFault::NoEffect, 0))?;
        let error = host.err("make-standalone", &args)?;
        ensure!(error["kind"] == "Refused" && host.acts()?.is_empty(), "{error}");
        for habit in ["", "plain-resource-types"] {
            host.set(&state)?;
            host.change(|state| habits(state, &[habit]))?;
            ensure!(host.ok("make-standalone", &args)?["seen"]["vm"]["clustered"] == json!(false), "{habit}");
        }
        Ok(())
    });
}

/// Its state may show nothing for as long as it is asked: it is asked once, not every two seconds.
#[test]
fn a_guest_that_is_being_asked_is_not_asked_again_until_the_vm_was_off() {
    let mut state = assigned();
    vm_in(&mut state, UBUNTU)["state"] = json!("Running");
    habits(&mut state, &["deaf-guest"]);
    on("deaf guest", &state, |host| {
        let shut_down = json!({ "vm": UBUNTU, "how": "ShutDown", "settle_ms": 100 });
        for _ in 0..3 {
            let error = host.err("stop-vm", &shut_down)?;
            ensure!(error["kind"] == "Unconfirmed" && error["seen"]["vm"]["state"] == "Running", "{error}");
        }
        ensure!(host.acts()? == ["Stop-VM"], "{:?}", host.acts()?);
        host.ok("stop-vm", &json!({ "vm": UBUNTU, "how": "TurnOff" }))?;
        host.ok("start-vm", &json!({ "vm": UBUNTU }))?;
        // Another run of it, another question.
        host.err("stop-vm", &shut_down)?;
        ensure!(host.acts()? == ["Stop-VM", "Stop-VM", "Start-VM", "Stop-VM"], "{:?}", host.acts()?);
        // Turned off by somebody else meanwhile.
        host.change(|state| vm_in(state, UBUNTU)["state"] = json!("Off"))?;
        ensure!(host.ok("stop-vm", &shut_down)?["changed"] == json!(false), "it is off");
        host.change(|state| vm_in(state, UBUNTU)["state"] = json!("Running"))?;
        host.err("stop-vm", &shut_down)?;
        ensure!(host.acts()?.iter().filter(|act| *act == "Stop-VM").count() == 4, "{:?}", host.acts()?);
        Ok(())
    });
}

/// A saved state is somebody's work, device or not.
#[test]
fn a_saved_vm_with_a_device_keeps_its_state() {
    let mut state = assigned();
    vm_in(&mut state, UBUNTU)["state"] = json!("Saved");
    on("saved with a device", &state, |host| {
        for how in ["ShutDown", "TurnOff"] {
            let error = host.err("stop-vm", &json!({ "vm": UBUNTU, "how": how }))?;
            ensure!(error["kind"] == "Refused" && host.acts()?.is_empty(), "{error}");
        }
        Ok(())
    });
}

/// On one host in a cluster this error means that there is no such VM; of a VM that is listed it says nothing.
#[test]
fn a_vm_that_is_listed_and_not_given_is_not_said_to_be_gone() {
    let mut state = assigned();
    habits(&mut state, &["ids-not-found"]);
    on("ids not found", &state, |host| {
        let error = host.err("start-vm", &json!({ "vm": UBUNTU }))?;
        ensure!(error["kind"] == "Refused" && error["message"].to_string().contains("lists"), "{error}");
        ensure!(host.err("start-vm", &json!({ "vm": NOBODY }))?["kind"] == "NotThere", "nobody is there");
        Ok(())
    });
}

/// Of the serial buses (class 12) only those that graphics cards have: the others lead to disks and networks.
#[test]
fn a_fibre_channel_or_infiniband_card_is_never_taken() {
    let place = "PCIROOT(40)#PCI(0300)#PCI(0000)";
    on("serial buses", &usual(), |host| {
        for (sub_class, kind) in [(4, "Refused"), (6, "Refused"), (0, "Refused"), (3, ""), (0x80, "")] {
            let mut state = usual();
            let ids = "VEN_1077&DEV_2261&SUBSYS_02BC1077&REV_01";
            let card = berth_tests::hyperv::function(place, ids, "Adapter", 12, sub_class);
            state["functions"].as_array_mut().into_iter().for_each(|all| all.push(card.clone()));
            let args = json!({ "location_path": place });
            if kind.is_empty() {
                host.set(&state)?;
                host.ok("disable", &args)?;
            } else {
                refused(host, &state, "disable", &args, kind, "class 12")?;
            }
        }
        Ok(())
    });
}

#[test]
fn an_old_module_without_automatic_checkpoints_is_configured_and_restored() {
    let mut state = usual();
    habits(&mut state, &["old-module"]);
    on("old module", &state, |host| {
        let before = facts(&host.state()?);
        let former = host.ok("configure-vm", &json!({ "vm": UBUNTU, "settings": for_devices() }))?["former"].take();
        ensure!(former["automatic_checkpoints"].is_null(), "{former}");
        host.ok("configure-vm", &json!({ "vm": UBUNTU, "settings": former }))?;
        ensure!(facts(&host.state()?) == before, "{}", host.state()?);
        Ok(())
    });
}

/// A listing of all of a machine's devices takes seconds. What a path's device is called is remembered, and believed only
/// once that device has said that it is at that path.
#[test]
fn a_step_asks_for_the_one_device_and_believes_no_memory() {
    on("remembered ids", &usual(), |host| {
        let of = |host: &mut Host, command: &str| -> anyhow::Result<(usize, usize)> {
            let calls: Vec<_> = host.calls()?.into_iter().filter(|call| call["command"] == command).collect();
            let alone = calls.iter().filter(|call| !call["given"]["InstanceId"].is_null()).count();
            Ok((alone, calls.len() - alone))
        };
        host.ok("observe", &json!({}))?;
        host.set(&usual())?;
        host.ok("disable", &json!({ "location_path": A2[0] }))?;
        let (alone, all) = of(host, "Get-PnpDevice")?;
        ensure!(alone >= 2 && all == 0, "{alone} alone, {all} of all");

        // Another card in the slot: another id at the same path.
        let mut swapped = usual();
        let other = at(&mut swapped, A2[0])["tail"].as_str().unwrap_or_default().replace("DEV_25B6", "DEV_2236");
        at(&mut swapped, A2[0])["tail"] = json!(other);
        host.set(&swapped)?;
        let result = host.ok("disable", &json!({ "location_path": A2[0] }))?;
        ensure!(result["seen"]["device"]["host"]["instance_id"] == format!("PCI\\{other}"), "{result}");
        ensure!(at(&mut host.state()?, A2[0])["disabled"] == json!(true), "the card that is there was not disabled");

        // Two cards that changed places: each still answers by its id, from elsewhere.
        host.ok("observe", &json!({}))?;
        let mut moved = swapped.clone();
        let (first, second) = (at(&mut swapped, A16[0])["tail"].clone(), at(&mut swapped, A16[1])["tail"].clone());
        at(&mut moved, A16[0])["tail"] = second.clone();
        at(&mut moved, A16[1])["tail"] = first;
        host.set(&moved)?;
        let result = host.ok("disable", &json!({ "location_path": A16[0] }))?;
        ensure!(
            result["seen"]["device"]["host"]["instance_id"] == format!("PCI\\{}", second.as_str().unwrap_or_default()),
            "{result}"
        );
        ensure!(at(&mut host.state()?, A16[1])["disabled"] == json!(false), "the card that was there was disabled");

        // One that is gone is said to be gone only after a listing of all.
        host.ok("observe", &json!({}))?;
        let mut gone = moved.clone();
        at(&mut gone, A16[2])["in_slot"] = json!(false);
        host.set(&gone)?;
        let error = host.err("disable", &json!({ "location_path": A16[2] }))?;
        ensure!(error["kind"] == "NotThere" && of(host, "Get-PnpDevice")?.1 >= 1, "{error}");
        Ok(())
    });
}

/// A step whose agent is gone goes on while it waits: by the time the host would take the device, it may be another VM's.
#[test]
fn an_attach_that_waits_for_the_host_gives_up_once_another_vm_has_the_device() {
    let mut state = usual();
    at(&mut state, A2[0])["dismounted"] = json!(true);
    state["late"] = json!([A2[0]]);
    habits(&mut state, &["cache-never"]);
    let Some(mut host) = alone("an attach that waits", &state) else { return };
    let id = host.send("attach", &json!({ "vm": UBUNTU, "location_path": A2[0], "settle_ms": 60_000 })).unwrap();
    let tried = || Ok(host.acts()?.contains(&"Add-VMAssignableDevice".to_owned()));
    assert!(wait_until(PATIENCE, tried).unwrap(), "it never tried");
    host.change(|state| {
        assign(state, BUERO, A2[0]);
        state["habits"] = json!(HABITS);
    })
    .unwrap();
    let answer = host.answer("attach", id).unwrap();
    assert_eq!(answer["error"]["kind"], "Refused", "{answer}");
    assert_eq!(vm_in(&mut host.state().unwrap(), UBUNTU)["devices"], json!([]));
}
