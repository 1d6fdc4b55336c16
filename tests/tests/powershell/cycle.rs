//! From the host into a VM and back: everything is then as it was, field by field.

use crate::on;
use crate::scenario::for_devices;
use anyhow::ensure;
use berth_tests::hyperv::{A2, A16, BUERO, DISK, UBUNTU, facts, habits, usual};
use berth_tests::pwsh::Host;
use serde_json::{Value, json};

/// Places devices into a VM and takes them out again by single operations, as the planner orders them.
fn place_and_release(host: &mut Host, vm: &str, paths: &[&str]) -> anyhow::Result<()> {
    let before = facts(&host.state()?);
    let settings = json!({ "vm": vm, "settings": for_devices() });
    let former = host.ok("configure-vm", &settings)?["former"].take();
    for path in paths {
        host.ok("disable", &json!({ "location_path": path }))?;
        let seen = host.ok("dismount", &json!({ "location_path": path, "force": false }))?;
        ensure!(seen["seen"]["device"]["pool"]["location_path"] == *path, "{seen}");
        ensure!(seen["seen"]["device"]["host"].is_null(), "{seen}");
    }
    for path in paths {
        let seen = host.ok("attach", &json!({ "vm": vm, "location_path": path }))?;
        ensure!(seen["seen"]["device"]["listed_by"] == json!([vm]), "{seen}");
    }
    let started = host.ok("start-vm", &json!({ "vm": vm }))?;
    ensure!(started["seen"]["vm"]["state"] == "Running", "{started}");

    let look = host.ok("observe", &json!({}))?;
    let listed = |vms: &Value| {
        let of = vms.as_array().into_iter().flatten().find(|view| view["id"] == vm).cloned();
        let devices = of.map(|view| view["devices"].clone()).unwrap_or_default();
        devices
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|d| d["location_path"].as_str().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    ensure!(listed(&look["vms"]) == paths, "{look}");
    ensure!(look["pool"].as_array().map(Vec::len) == Some(paths.len()), "{look}");
    let mut pooled = Vec::from(paths);
    pooled.sort_unstable();
    let mut shown: Vec<_> =
        look["pool"].as_array().into_iter().flatten().filter_map(|p| p["location_path"].as_str()).collect();
    shown.sort_unstable();
    ensure!(shown == pooled, "{look}");

    host.ok("stop-vm", &json!({ "vm": vm, "how": "ShutDown" }))?;
    for path in paths {
        host.ok("detach", &json!({ "vm": vm, "location_path": path }))?;
    }
    for path in paths {
        let mounted = host.ok("mount", &json!({ "location_path": path }))?;
        // Mounting alone leaves it disabled, as it was.
        ensure!(mounted["seen"]["device"]["host"]["problem"] == 22, "{mounted}");
        host.ok("enable", &json!({ "location_path": path }))?;
    }
    let restored = host.ok("configure-vm", &json!({ "vm": vm, "settings": former }))?;
    ensure!(restored["seen"]["vm"]["settings"] == former, "{restored}");
    let after = facts(&host.state()?);
    ensure!(after == before, "before:\n{before:#}\nafter:\n{after:#}");
    Ok(())
}

#[test]
fn a_two_function_card_goes_into_a_vm_and_comes_back_and_all_is_as_before() {
    on("two functions", &usual(), |host| place_and_release(host, UBUNTU, &A2));
}

#[test]
fn four_gpus_go_into_one_vm_and_come_back_and_all_is_as_before() {
    on("four GPUs", &usual(), |host| {
        place_and_release(host, BUERO, &A16)?;
        // Each command that acted named one device or one VM, and nothing was taken by a pattern or by pool.
        for call in host.calls()? {
            let given = &call["given"];
            for name in ["ResourcePoolName", "VMName", "Name", "InstancePath", "HostAssignableDevice"] {
                ensure!(given[name].is_null(), "{call}");
            }
            ensure!(!call.to_string().contains(DISK), "{call}");
        }
        Ok(())
    });
}

#[test]
fn a_host_with_every_bad_habit_is_left_as_it_was_too() {
    let mut state = usual();
    habits(&mut state, &["registration-lag", "noisy", "text-problem-codes", "raw-keys", "silent-pool"]);
    habits(&mut state, &["static-memory-forgets-bounds"]);
    state["language"] = json!("de");
    on("every bad habit", &state, |host| place_and_release(host, UBUNTU, &A2));
}
