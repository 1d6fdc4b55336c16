//! What happens to a Hyper-V host while a placement has a card of it: the card pulled, put back or swapped, taken out of
//! its VM by hand, the host restarted. Whatever it is, a release afterwards ends well and touches nothing else.

use crate::agent::Here;
use anyhow::ensure;
use berth_tests::hyperv::site::{NODE, PATIENCE, Site, listed};
use berth_tests::hyperv::{A2, UBUNTU, at, usual, vm_in};
use berth_tests::process::wait_until;
use serde_json::{Value, json};
use std::time::Duration;

/// A site with the A2 in its VM.
fn placed(test: &str, state: &Value) -> anyhow::Result<Option<Here>> {
    let Some(mut site) = Here::new(test, state)? else { return Ok(None) };
    site.start_agent()?;
    site.place("one", UBUNTU, "1", &["--model", "A2"])?;
    site.wait_active("one")?;
    Ok(Some(site))
}

/// Waits until something that is described says all these words, be they broken over lines.
fn waits(site: &Site, of: [&str; 2], words: &[&str]) -> anyhow::Result<()> {
    let mut last = String::new();
    let said = wait_until(PATIENCE, || {
        let ran = site.berth(&["describe", of[0], of[1]])?;
        last = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(words.iter().all(|word| last.contains(word)))
    })?;
    ensure!(said, "{words:?} are not said: {last}\n{}", site.log());
    Ok(())
}

fn gpu() -> String {
    format!("{NODE}/{}", A2[0])
}

fn phase(site: &Site) -> anyhow::Result<Value> {
    Ok(site.ok(&["get", "placements", "one", "-o", "json"])?.json()?["phase"].clone())
}

/// Takes the card out of its slot, or puts it in. A VM that runs with it crashes.
fn slot(state: &mut Value, there: bool) {
    for path in A2 {
        at(state, path)["in_slot"] = json!(there);
    }
    if !there {
        vm_in(state, UBUNTU)["state"] = json!("Off");
    }
}

/// It may be on its way to the pool, for all an agent can see: nothing is concluded in the seconds in which it is away.
#[test]
fn a_card_that_is_away_for_a_while_is_waited_for_and_given_back_when_it_is_in_its_slot_again() -> anyhow::Result<()> {
    let state = usual();
    let Some(site) = placed("a pulled card on Hyper-V", &state)? else { return Ok(()) };
    site.host.change(|state| slot(state, false))?;
    waits(&site, ["gpu", &gpu()], &["Unknown"])?;
    site.ok(&["release", "one"])?;
    // Far more looks than make another thing gone.
    std::thread::sleep(Duration::from_secs(15));
    ensure!(phase(&site)? == "PHASE_RELEASING", "{}", site.log());
    let gpus = site.ok(&["get", "gpus", "-o", "json"])?.stdout;
    ensure!(gpus.contains("GPU_STATE_UNKNOWN") && !gpus.contains("GPU_STATE_MISSING"), "{gpus}");
    site.host.change(|state| slot(state, true))?;
    site.wait_phase("one", "PHASE_RELEASED")?;
    site.as_before(&state)?;
    site.only_named_things_were_touched()
}

#[test]
fn a_swapped_card_is_quarantined_and_a_release_takes_the_old_record_out_and_leaves_the_new_card_alone()
-> anyhow::Result<()> {
    let state = usual();
    let Some(site) = placed("a swapped card on Hyper-V", &state)? else { return Ok(()) };
    let swap = |state: &mut Value| {
        for path in A2 {
            let function = at(state, path);
            let tail = function["tail"].as_str().unwrap_or_default().replace("DEV_25B6", "DEV_1EB8");
            // A new card is a new device: the host has it, and knows nothing of the old one.
            function["tail"] = json!(tail.replace("SUBSYS_157E10DE", "SUBSYS_12A210DE"));
            function["dismounted"] = json!(false);
            function["disabled"] = json!(false);
        }
        vm_in(state, UBUNTU)["state"] = json!("Off");
    };
    site.host.change(swap)?;
    waits(&site, ["gpu", &gpu()], &["another card is in the slot"])?;
    site.release("one")?;
    let mut after = state.clone();
    swap(&mut after);
    site.as_before(&after)?;
    site.only_named_things_were_touched()
}

#[test]
fn a_card_that_somebody_took_out_of_the_vm_is_told_and_goes_back_to_the_host_with_the_release() -> anyhow::Result<()> {
    let state = usual();
    let Some(site) = placed("a card unassigned by hand on Hyper-V", &state)? else { return Ok(()) };
    site.host.change(|state| {
        let vm = vm_in(state, UBUNTU);
        (vm["state"], vm["devices"]) = (json!("Off"), json!([]));
    })?;
    waits(&site, ["gpu", &gpu()], &["Pooled"])?;
    waits(&site, ["placement", "one"], &["Active", "Drifted"])?;
    site.release("one")?;
    site.as_before(&state)
}

/// Devices stay dismounted and in their VMs; the VM starts with the host. The agent starts before anything is to be done.
#[test]
fn a_restarted_host_has_its_card_where_it_was_and_gives_it_back_as_before() -> anyhow::Result<()> {
    let state = usual();
    let Some(mut site) = placed("a restarted Hyper-V host", &state)? else { return Ok(()) };
    let boot = |site: &Site| -> anyhow::Result<Value> {
        Ok(site.ok(&["get", "nodes", NODE, "-o", "json"])?.json()?["boot"].clone())
    };
    let before = boot(&site)?;
    site.kill_agent()?;
    let seconds = state["host"]["boot_seconds"].as_u64().unwrap_or_default() + 86_400;
    site.host.change(|state| {
        state["host"]["boot_seconds"] = json!(seconds);
        vm_in(state, UBUNTU)["state"] = json!("Off");
    })?;
    site.start_agent()?;
    let mut last = Value::Null;
    let ready = wait_until(PATIENCE, || {
        let ran = site.berth(&["get", "nodes", NODE, "-o", "json"])?;
        last = ran.json().unwrap_or_default();
        Ok(last["ready"] == true)
    })?;
    ensure!(ready, "{last:#}\n{}", site.log());
    ensure!(before.is_null() || boot(&site)? != before, "the boot is the same: {last:#}");
    ensure!(phase(&site)? == "PHASE_ACTIVE", "{}", site.log());
    let mut during = site.host.state()?;
    assert_eq!(listed(&mut during, UBUNTU), A2.map(str::to_owned).to_vec());
    // Whoever starts it is the host, or a person.
    assert_eq!(vm_in(&mut during, UBUNTU)["state"], "Off");
    site.release("one")?;
    let mut after = state.clone();
    after["host"]["boot_seconds"] = json!(seconds);
    site.as_before(&after)
}
