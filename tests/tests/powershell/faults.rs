//! Every fault of the simulated host's steps on every operation, and the end of the process in the middle of each.

use crate::{alone, on, scenario};
use anyhow::{Context as _, ensure};
use berth_node_agent::driver::sim::StepFault;
use berth_tests::hyperv::{facts, fault};
use berth_tests::pwsh::Host;
use serde_json::{Value, json};

/// How the host ends up when nothing goes wrong.
fn undisturbed(host: &mut Host, scenario: &scenario::Scenario) -> anyhow::Result<Value> {
    host.set(&scenario.state)?;
    let result = host.ok(scenario.op, &scenario.args)?;
    ensure!(result["changed"] == json!(true), "{}: there was nothing to do", scenario.name);
    let after = facts(&host.state()?);
    ensure!(after != facts(&scenario.state), "{}: nothing changed", scenario.name);
    Ok(after)
}

/// Repeats the operation until it is done, and compares.
fn repeat(host: &mut Host, scenario: &scenario::Scenario, after: &Value) -> anyhow::Result<()> {
    host.ok(scenario.op, &scenario.args)?;
    ensure!(facts(&host.state()?) == *after, "{}: ended elsewhere: {}", scenario.name, host.state()?);
    // Once more: nothing is left to do, and nothing is done.
    let acts = host.acts()?.len();
    let result = host.ok(scenario.op, &scenario.args)?;
    ensure!(result["changed"] == json!(false), "{}: done twice", scenario.name);
    ensure!(host.acts()?.len() == acts, "{}: acted although all was done", scenario.name);
    ensure!(facts(&host.state()?) == *after, "{}: changed by repeating", scenario.name);
    Ok(())
}

#[test]
fn a_step_that_fails_says_so_shows_what_it_left_and_can_be_repeated() {
    on("faults of steps", &json!({}), |host| {
        for scenario in scenario::all() {
            let after = undisturbed(host, &scenario)?;
            let kinds = [
                (StepFault::Fails("Fehler: \u{201e}kaputt\u{201c}".to_owned()), "Failed"),
                (StepFault::NoEffect, "Unconfirmed"),
                (StepFault::HalfDone, "Failed"),
            ];
            for (kind, expected) in kinds {
                let mut state = scenario.state.clone();
                fault(&mut state, scenario.command, &kind, scenario.skip);
                host.set(&state)?;
                if scenario.name == "shut down" && kind == StepFault::HalfDone {
                    // Goes on in the background: that the VM is off is seen first, and then nobody asks for errors.
                    repeat(host, &scenario, &after)?;
                    continue;
                }
                let error =
                    host.err(scenario.op, &scenario.args).with_context(|| format!("{}: {kind:?}", scenario.name))?;
                ensure!(error["kind"] == expected, "{} {kind:?}: {error}", scenario.name);
                if expected == "Failed" {
                    ensure!(error["hresult"] == json!(-2_147_467_259_i64), "{} {kind:?}: {error}", scenario.name);
                    ensure!(error["cmdlet"] == scenario.command, "{} {kind:?}: {error}", scenario.name);
                }
                if let StepFault::Fails(text) = &kind {
                    ensure!(error["message"] == text.as_str(), "{}: {error}", scenario.name);
                }
                ensure!(error["seen"].is_object(), "{} {kind:?}: {error}", scenario.name);
                // Settings are set one by one; whichever is passed over, the others are set.
                let at_once = scenario.op != "configure-vm" && scenario.skip == 0;
                if kind != StepFault::HalfDone && at_once {
                    ensure!(facts(&host.state()?) == facts(&scenario.state), "{} {kind:?} changed it", scenario.name);
                }
                repeat(host, &scenario, &after)?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_process_that_is_killed_in_the_middle_of_a_step_is_replaced_and_the_step_repeated() {
    let Some(mut host) = alone("killed in the middle", &json!({})) else { return };
    let mut run = || -> anyhow::Result<()> {
        for scenario in scenario::all() {
            let after = undisturbed(&mut host, &scenario)?;
            for effect in [false, true] {
                let mut state = scenario.state.clone();
                fault(&mut state, scenario.command, &StepFault::Hangs { effect }, scenario.skip);
                host.set(&state)?;
                host.send(scenario.op, &scenario.args)?;
                host.wait_hanging(scenario.command)?;
                host.kill();
                repeat(&mut host, &scenario, &after).with_context(|| format!("killed, effect {effect}"))?;
            }
        }
        Ok(())
    };
    run().unwrap();
}
