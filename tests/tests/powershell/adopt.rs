//! What a person did on a Hyper-V host before Berth came: seen, told, taken over; pools of the cluster left alone; force
//! written down.

use crate::agent::Here;
use anyhow::ensure;
use berth_node_agent::driver::sim::StepFault;
use berth_tests::hyperv::site::{NODE, PATIENCE, Site, listed};
use berth_tests::hyperv::{A2, A16, BUERO, UBUNTU, assign, at, facts, fault, habits, usual, vm, vm_in};
use berth_tests::process::wait_until;
use serde_json::{Value, json};

/// The VM that the cluster gives GPUs from its own pool.
const POOLED: &str = "5d1f6b52-7c1e-4a58-9a5b-2f0c55e0a001";

/// Gives a VM the settings that a guide tells to give, and a device, by hand.
fn by_hand(state: &mut Value, id: &str, path: &str) {
    assign(state, id, path);
    let vm = vm_in(state, id);
    for (field, value) in [
        ("state", json!("Running")),
        ("stop_action", json!("TurnOff")),
        ("dynamic_memory", json!(false)),
        ("guest_cache_types", json!(true)),
        ("mmio_low", json!(3_u64 << 30)),
        ("mmio_high", json!(33_312_u64 << 20)),
        ("checkpoint_type", json!("Disabled")),
        ("automatic_checkpoints", json!(false)),
    ] {
        vm[field] = value;
    }
}

/// Two VMs with devices given by hand, one of them clustered; one with a device from the cluster's pool and one that has
/// none of it yet; a device that lies in that pool, one left dismounted and one left disabled.
fn found() -> Value {
    let mut state = usual();
    let mut pooled = vm(POOLED, "pooled");
    pooled["devices"] = json!([{ "path": "", "tail": "none", "key": "p0", "pool": "ClusterGPUs" }]);
    if let Some(vms) = state["vms"].as_array_mut() {
        vms.push(pooled);
    }
    by_hand(&mut state, UBUNTU, A16[0]);
    by_hand(&mut state, BUERO, A16[1]);
    vm_in(&mut state, BUERO)["clustered"] = json!(true);
    let in_pool = at(&mut state, A16[2]);
    (in_pool["dismounted"], in_pool["pool"]) = (json!(true), json!("ClusterGPUs"));
    at(&mut state, A16[3])["disabled"] = json!(true);
    state
}

fn wait_seen(site: &Site) -> anyhow::Result<()> {
    let mut last = String::new();
    let seen = wait_until(PATIENCE, || {
        let ran = site.berth(&["get", "nodes", NODE, "-o", "json"])?;
        last = ran.stdout.clone();
        Ok(ran.code == Some(0) && ran.json().is_ok_and(|node| node["ready"] == true && node["vms"] == 3))
    })?;
    ensure!(seen, "the host is not seen: {last}\n{}", site.log());
    Ok(())
}

#[test]
fn what_was_given_by_hand_is_taken_over_without_touching_the_host_and_the_clusters_pool_is_left_alone()
-> anyhow::Result<()> {
    let state = found();
    let Some(mut site) = Here::new("adopting on Hyper-V", &state)? else { return Ok(()) };
    site.start_agent()?;
    wait_seen(&site)?;

    let drift = site.ok(&["get", "drift", "-o", "json"])?.json()?;
    let of = |path: &str| -> Vec<String> {
        let all = drift["differences"].as_array().cloned().unwrap_or_default();
        all.iter().filter(|d| d["device"] == path).filter_map(|d| Some(d["kind"].as_str()?.to_owned())).collect()
    };
    assert_eq!([of(A16[0]), of(A16[1]), of(A16[3])].concat(), ["AssignedByHand", "AssignedByHand", "Disabled"]);
    // What the cluster hands out is no drift, and nobody gets it.
    assert!(of(A16[2]).is_empty() && !drift.to_string().contains("StaleRecord"), "{drift:#}");
    let shown = site.ok(&["describe", "gpu", &format!("{NODE}/{}", A16[2])])?.stdout;
    assert!(shown.contains("the cluster's own GPU pool \"ClusterGPUs\""), "{shown}");

    let table = site.ok(&["adopt", "--node", NODE, "--dry-run"])?.stdout;
    for part in
        ["placement ubuntu, Active", "skipped (Clustered)", "skipped (NativePool)", "1 VM can be adopted, 2 skipped"]
    {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
    assert!(site.ok(&["get", "placements", "-o", "json"])?.json()?["placements"].is_null());
    let done = site.ok(&["adopt", "--node", NODE, "--owner", "team render", "--tag", "env=prod"])?.stdout;
    assert!(done.contains("1 VM adopted"), "{done}");
    let again = site.ok(&["adopt", "--node", NODE, "-o", "json"])?.json()?;
    let reasons: Vec<_> = again["vms"].as_array().into_iter().flatten().map(|vm| vm["reason"].clone()).collect();
    assert!(reasons.contains(&json!("AlreadyPlaced")) && reasons.len() == 3, "{again:#}");
    let told = site.ok(&["describe", "placement", "ubuntu"])?.stdout;
    for part in ["Active", "team render", "env=prod", "settings before its GPUs are not known"] {
        assert!(told.contains(part), "{part} is not in\n{told}");
    }
    // The agent has obeyed by now, and done nothing.
    assert_eq!(facts(&site.host.state()?), facts(&state), "{}", site.log());
    let acting = site.host.calls()?.iter().any(|call| {
        let command = call["command"].as_str().unwrap_or_default().to_owned();
        ["Set-", "Start-VM", "Stop-VM", "Add-", "Remove-", "Mount-", "Dismount-", "Disable-", "Enable-"]
            .iter()
            .any(|verb| command.starts_with(verb))
    });
    assert!(!acting, "{:#?}", site.host.calls()?);

    // It is released as any other; what its settings were is not known, and they stay.
    let settings = |state: &mut Value| {
        let vm = vm_in(state, UBUNTU);
        ["stop_action", "dynamic_memory", "mmio_low", "mmio_high", "checkpoint_type", "guest_cache_types"]
            .map(|field| vm[field].clone())
    };
    site.release("ubuntu")?;
    let mut after = site.host.state()?;
    assert_eq!(settings(&mut after), settings(&mut state.clone()));
    assert!(listed(&mut after, UBUNTU).is_empty());
    assert!(at(&mut after, A16[0])["dismounted"] == false && at(&mut after, A16[0])["disabled"] == false);
    for vm in [BUERO, POOLED] {
        assert_eq!(vm_in(&mut after, vm)["devices"], vm_in(&mut state.clone(), vm)["devices"]);
    }
    assert!(!site.log().contains("ERROR"), "{}", site.log());
    Ok(())
}

#[test]
fn force_is_used_only_by_policy_and_each_use_is_written_down() -> anyhow::Result<()> {
    let mut state = usual();
    for path in A2 {
        at(&mut state, path)["mitigation"] = json!(false);
    }
    let Some(mut site) = Here::new("force on Hyper-V", &state)? else { return Ok(()) };
    site.start_agent()?;
    // Without the policy it fails, and says what to do.
    site.place("one", UBUNTU, "1", &["--model", "A2"])?;
    let failed = wait_until(PATIENCE, || {
        let placement = site.berth(&["get", "placements", "one", "-o", "json"])?.json().unwrap_or_default();
        Ok(placement["phase"] == "PHASE_FAILED" && placement["undone"] == true)
    })?;
    ensure!(failed, "{}", site.log());
    let told = site.ok(&["describe", "placement", "one"])?.stdout;
    assert!(
        told.contains("No mitigation driver for this device is installed") && told.contains("hyperv.force"),
        "{told}"
    );
    assert!(!told.contains("History"), "{told}");

    site.kill_agent()?;
    site.settings = vec!["--hyperv-force".to_owned(), "true".to_owned()];
    site.start_agent()?;
    site.place("two", UBUNTU, "1", &["--model", "A2"])?;
    site.wait_active("two")?;
    let placement = site.ok(&["get", "placements", "two", "-o", "json"])?.json()?;
    let forced: Vec<_> = (placement["history"].as_array().into_iter().flatten())
        .map(|note| (note["forced"]["step"].clone(), note["forced"]["device"].clone()))
        .collect();
    assert_eq!(forced, A2.map(|path| (json!("STEP_DISMOUNT"), json!(path))), "{placement:#}");
    let told = site.ok(&["describe", "placement", "two"])?.stdout;
    assert!(told.contains("History") && told.contains("with -Force"), "{told}");
    let log = site.log();
    let written = log.lines().filter(|line| line.contains("a device was dismounted by force"));
    let written: Vec<_> = written.filter(|line| line.contains("forced=true") && line.contains("caller=")).collect();
    assert_eq!(written.len(), 2, "one line for each device:\n{log}");
    site.release("two")
}

/// Its role goes before its guest is shut down: the cluster would start it again. What the role was can be read afterwards by
/// whoever makes the VM one again; an agent that is killed while it removes the role does not forget it.
#[test]
fn a_role_that_was_removed_can_be_made_again_by_whoever_reads_what_it_was() -> anyhow::Result<()> {
    let mut state = usual();
    state["cluster"] = json!("CLU1");
    let vm = vm_in(&mut state, UBUNTU);
    (vm["clustered"], vm["state"], vm["role_name"]) = (json!(true), json!("Running"), json!("Rolle 7"));
    habits(&mut state, &["cluster-restarts"]);
    let mut faulty = state.clone();
    fault(&mut faulty, "Remove-ClusterGroup", &StepFault::Hangs { effect: true }, 0);
    let Some(mut site) = Here::new("a removed role on Hyper-V", &faulty)? else { return Ok(()) };
    site.start_agent()?;
    site.place("one", UBUNTU, "1", &["--model", "A2", "--allow-standalone"])?;
    site.wait_hanging("Remove-ClusterGroup", 1)?;
    site.kill_agent()?;
    site.start_agent()?;
    site.wait_active("one")?;
    let calls = site.host.calls()?;
    let first = |command: &str| calls.iter().position(|call| call["command"] == command);
    ensure!(first("Remove-ClusterGroup") < first("Stop-VM") && first("Stop-VM").is_some(), "{calls:#?}");
    let said =
        [r#"clustered role "Rolle 7" was removed"#, "owned by NODE1", "priority 2000", "Add-ClusterVirtualMachineRole"];
    let told = site.ok(&["describe", "placement", "one"])?.stdout;
    ensure!(told.contains("History") && said.iter().all(|text| told.contains(text)), "{told}");
    let placement = site.ok(&["get", "placements", "one", "-o", "json"])?.json()?;
    let role = json!({ "name": "Rolle 7", "owner": "NODE1", "priority": 2000 });
    let notes: Vec<_> =
        placement["history"].as_array().into_iter().flatten().map(|note| &note["roleRemoved"]).collect();
    ensure!(notes == [&role], "{placement:#}");
    let mut audit = String::new();
    let written = wait_until(PATIENCE, || {
        audit = site.ok(&["audit"])?.stdout;
        Ok(audit.contains("RoleRemoved") && audit.contains(r#"clustered role removed: "Rolle 7""#))
    })?;
    ensure!(written, "{audit}");
    site.release("one")?;
    // Still known when the placement is over.
    let told = site.ok(&["describe", "placement", "one"])?.stdout;
    ensure!(told.contains("Rolle 7"), "{told}");
    Ok(())
}
