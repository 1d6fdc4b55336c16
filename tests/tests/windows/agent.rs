//! The agent as a program: the whole way, and whatever is killed on it.

use super::{Kill, Windows};
use berth_node_agent::driver::hyperv::script;
use berth_node_agent::driver::sim::StepFault;
use berth_tests::hyperv::site::{NODE, listed};
use berth_tests::hyperv::{A2, A16, BUERO, PLACING, RELEASING, UBUNTU, fault, habits, hang_in_each_step, usual, vm_in};
use serde_json::json;

#[test]
fn a_card_of_two_functions_and_four_gpus_go_into_vms_and_come_back_and_all_is_as_before() -> anyhow::Result<()> {
    let mut state = usual();
    habits(&mut state, &["registration-lag", "noisy", "raw-keys", "static-memory-forgets-bounds"]);
    state["language"] = json!("de");
    let Some(mut site) = Windows::new("the Windows agent, a whole placement", &state)? else { return Ok(()) };
    site.start_agent()?;
    site.place("one", UBUNTU, "1", &["--model", "A2"])?;
    site.place("four", BUERO, "4", &["--model", "A16"])?;
    site.wait_active("one")?;
    site.wait_active("four")?;
    let mut during = site.host.state()?;
    assert_eq!(
        (listed(&mut during, UBUNTU), listed(&mut during, BUERO)),
        (A2.map(str::to_owned).to_vec(), A16.map(str::to_owned).to_vec())
    );
    for vm in [UBUNTU, BUERO] {
        assert_eq!(vm_in(&mut during, vm)["state"], "Running");
    }
    let shown = site.ok(&["describe", "node", NODE])?.stdout;
    assert!(shown.contains("Windows Server 2022") && shown.contains("Hyper-V module"), "{shown}");
    assert_eq!(std::fs::read_to_string(site.script())?, script::TEXT);

    site.release("one")?;
    site.release("four")?;
    site.as_before(&state)?;
    println!("the agent: {}", site.cost());
    assert_eq!(site.relay.started(), 1, "one PowerShell is enough:\n{}", site.log());
    assert!(!site.log().contains("ERROR"), "{}", site.log());
    site.check()
}

#[test]
fn a_cmdlet_that_hangs_is_ended_at_its_deadline_and_a_killed_powershell_is_replaced() -> anyhow::Result<()> {
    let state = usual();
    let mut faulty = state.clone();
    // One takes effect and never returns; in the middle of another the process is killed.
    fault(&mut faulty, "Dismount-VMHostAssignableDevice", &StepFault::Hangs { effect: true }, 0);
    fault(&mut faulty, "Add-VMAssignableDevice", &StepFault::Hangs { effect: false }, 1);
    let Some(mut site) = Windows::new("the Windows agent, hangs and kills", &faulty)? else { return Ok(()) };
    site.configure("step_seconds = 10")?;
    site.start_agent()?;
    site.place("one", UBUNTU, "1", &["--model", "A2"])?;
    site.wait_hanging("Add-VMAssignableDevice", 1)?;
    assert_eq!(site.relay.started(), 2, "the first was not ended at its deadline:\n{}", site.log());
    assert_eq!(site.relay.running()?, 1, "the first still runs");
    site.relay.kill_last()?;
    site.wait_active("one")?;
    // Between two requests, too.
    site.relay.kill_last()?;
    site.release("one")?;
    site.as_before(&state)?;
    let log = site.log();
    assert!(log.contains("not done after 10000 ms") || log.contains("within 10000 ms"), "{log}");
    assert!(log.contains("ended without an answer"), "{log}");
    assert!(site.relay.started() >= 4, "{log}");
    site.check()
}

#[test]
fn an_agent_that_is_killed_at_any_step_goes_on_where_the_host_is() -> anyhow::Result<()> {
    let before = usual();
    let mut state = before.clone();
    hang_in_each_step(&mut state);
    let Some(mut site) = Windows::new("the Windows agent, killed at each step", &state)? else { return Ok(()) };
    let mut ways = [Kill::Signal, Kill::TerminateProcess].into_iter().cycle();
    let mut kill = |site: &mut Windows| -> anyhow::Result<()> {
        site.kill_agent(ways.next().unwrap())?;
        site.start_agent()
    };
    site.start_agent()?;
    site.place("one", UBUNTU, "1", &["--model", "A2"])?;
    for command in PLACING {
        site.wait_hanging(command, 1)?;
        kill(&mut site)?;
    }
    site.wait_active("one")?;
    site.ok(&["release", "one"])?;
    for (command, times) in RELEASING {
        site.wait_hanging(command, times)?;
        kill(&mut site)?;
    }
    site.wait_phase("one", "PHASE_RELEASED")?;
    site.as_before(&before)?;
    site.check()
}
