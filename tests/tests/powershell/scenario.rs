//! Every operation that changes something, each on a host on which it has something to do.

use berth_tests::hyperv::{A2, UBUNTU, assign, at, usual, vm_in};
use serde_json::{Value, json};

/// One operation and where it is tried.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) op: &'static str,
    pub(crate) args: Value,
    /// The command that has its effect, and how many calls of it come before the one that is to go wrong.
    pub(crate) command: &'static str,
    pub(crate) skip: u64,
    pub(crate) state: Value,
}

/// What a VM must be for a device, as the planner asks for it.
pub(crate) fn for_devices() -> Value {
    json!({
        "stop_action": "TurnOff", "guest_cache_types": true, "mmio_low_bytes": 150_994_944, "mmio_high_bytes": 69_289_902_080_u64,
        "dynamic_memory": false, "checkpoint_type": "Disabled", "automatic_checkpoints": false,
    })
}

/// A VM that is as [`for_devices`] wants it and has the A2.
pub(crate) fn assigned() -> Value {
    let mut state = usual();
    let vm = vm_in(&mut state, UBUNTU);
    for (field, value) in [
        ("stop_action", json!("TurnOff")),
        ("guest_cache_types", json!(true)),
        ("mmio_low", json!(150_994_944)),
        ("mmio_high", json!(69_289_902_080_u64)),
        ("dynamic_memory", json!(false)),
        ("checkpoint_type", json!("Disabled")),
        ("automatic_checkpoints", json!(false)),
    ] {
        vm[field] = value;
    }
    for path in A2 {
        assign(&mut state, UBUNTU, path);
    }
    state
}

fn with(mut state: Value, change: impl FnOnce(&mut Value)) -> Value {
    change(&mut state);
    state
}

pub(crate) fn all() -> Vec<Scenario> {
    let device = json!({ "location_path": A2[0] });
    let vm = json!({ "vm": UBUNTU });
    let both = json!({ "vm": UBUNTU, "location_path": A2[0] });
    let disabled = || with(usual(), |state| at(state, A2[0])["disabled"] = json!(true));
    let pooled = || with(disabled(), |state| at(state, A2[0])["dismounted"] = json!(true));
    let running = || with(assigned(), |state| vm_in(state, UBUNTU)["state"] = json!("Running"));
    let scenario = |name, op, args: &Value, command, skip, state| {
        let args = with(args.clone(), |args| args["settle_ms"] = json!(300));
        Scenario { name, op, args, command, skip, state }
    };
    let settings = json!({ "vm": UBUNTU, "settings": for_devices() });
    let dismount = json!({ "location_path": A2[0], "force": false });
    vec![
        scenario(
            "make-standalone",
            "make-standalone",
            &json!({ "vm": UBUNTU, "allow": true, "role": "ubuntu" }),
            "Remove-ClusterGroup",
            0,
            with(usual(), |state| {
                state["cluster"] = json!("CLU1");
                vm_in(state, UBUNTU)["clustered"] = json!(true);
            }),
        ),
        scenario("shut down", "stop-vm", &json!({ "vm": UBUNTU, "how": "ShutDown" }), "Stop-VM", 0, running()),
        scenario("turn off", "stop-vm", &json!({ "vm": UBUNTU, "how": "TurnOff" }), "Stop-VM", 0, running()),
        scenario("configure, first setting", "configure-vm", &settings, "Set-VM", 0, usual()),
        scenario("configure, fifth setting", "configure-vm", &settings, "Set-VM", 4, usual()),
        scenario("disable", "disable", &device, "Disable-PnpDevice", 0, usual()),
        scenario("dismount", "dismount", &dismount, "Dismount-VMHostAssignableDevice", 0, disabled()),
        scenario("attach", "attach", &both, "Add-VMAssignableDevice", 0, pooled()),
        scenario("start", "start-vm", &vm, "Start-VM", 0, assigned()),
        scenario("detach", "detach", &both, "Remove-VMAssignableDevice", 0, assigned()),
        scenario(
            "detach stale, second record",
            "detach-stale",
            &json!({ "vm": UBUNTU, "records": 2 }),
            "Remove-VMAssignableDevice",
            1,
            with(assigned(), |state| A2.iter().for_each(|path| at(state, path)["in_slot"] = json!(false))),
        ),
        scenario("mount", "mount", &device, "Mount-VMHostAssignableDevice", 0, pooled()),
        scenario("enable", "enable", &device, "Enable-PnpDevice", 0, disabled()),
    ]
}
