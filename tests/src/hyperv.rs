//! States of the fake Hyper-V host of `tests/hyperv`: hosts, cards and VMs as real captures show them.
//!
//! Instance ids, location paths and names follow real ones; where a number is made up it is consistent: the end of an
//! instance id is `FFBB`, function and bridge of the location path, each as device * 8 + function.

pub mod site;

use berth_node_agent::driver::sim::{LookFault, StepFault};
use serde_json::{Map, Value, json};

/// The habits of a real Hyper-V that can do harm. A test that wants a kinder host takes some away.
pub const HABITS: [&str; 5] = ["remove-all", "mount-all", "any-of-pool", "silent-no-match", "case-sensitive-paths"];

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The A2's GPU and the audio function on its card.
pub const A2: [&str; 2] = ["PCIROOT(0)#PCI(0301)#PCI(0000)", "PCIROOT(0)#PCI(0301)#PCI(0001)"];
/// The four GPUs of an A16.
pub const A16: [&str; 4] = [
    "PCIROOT(20)#PCI(0300)#PCI(0000)#PCI(0000)#PCI(0000)",
    "PCIROOT(20)#PCI(0300)#PCI(0000)#PCI(0400)#PCI(0000)",
    "PCIROOT(20)#PCI(0300)#PCI(0000)#PCI(0800)#PCI(0000)",
    "PCIROOT(20)#PCI(0300)#PCI(0000)#PCI(0C00)#PCI(0000)",
];
/// The host's boot disk.
pub const DISK: &str = "PCIROOT(40)#PCI(0200)#PCI(0000)";

/// Ids of VMs.
pub const UBUNTU: &str = "8fce3318-aa0f-4de3-8664-278533573cd2";
/// Another one, with a name that is not ASCII.
pub const BUERO: &str = "1b6c1f0e-52a5-4f5b-9a39-0c1c8b3e7a11";

/// The end of an instance id at a location path.
fn tail(ids: &str, bus: &str, path: &str) -> String {
    let hops: Vec<u8> = path
        .split('#')
        .skip(1)
        .map(|hop| {
            let number = |at: usize| u8::from_str_radix(&hop[at..at + 2], 16).unwrap_or_default();
            number(4) * 8 + number(6)
        })
        .collect();
    let (last, bridge) = match hops.as_slice() {
        [.., bridge, last] => (*last, *bridge),
        [last] => (*last, 0),
        [] => (0, 0),
    };
    format!("{ids}\\{bus}&0&{last:02X}{bridge:02X}")
}

/// A function as it comes: in its slot, in the host's hands, without a driver, assignable.
#[must_use]
pub fn function(path: &str, ids: &str, name: &str, class: u64, sub_class: u64) -> Value {
    json!({
        "path": path, "acpi": null, "acpi_after": null, "tail": tail(ids, "4&23AD3A43", path),
        "in_slot": true, "dismounted": false, "disabled": false, "driver": "None", "mitigation": true,
        "class": null, "service": null, "manufacturer": null, "name": name,
        "windows": [], "interrupts": [4_294_967_290_u64],
        "properties": {
            "DeviceType": 2, "BaseClass": class, "SubClass": sub_class,
            "InterruptSupport": 6, "InterruptMessageMaximum": 6, "BarTypes": 0x0200_0100,
            "AcsCompatibleUpHierarchy": 3, "RequiresReservedMemoryRegion": false, "OnPostPath": false,
            "NumaNode": 1, "SerialNumber": "1561A0B2C3D4",
        },
    })
}

fn windows(sizes: &[(u64, u64)]) -> Value {
    sizes.iter().map(|(start, length)| json!({ "start": start, "end": start + length - 1 })).collect()
}

/// The A2 with an audio function beside its GPU (a made-up pair of real ids): both in the host, the GPU without a driver.
#[must_use]
pub fn a2() -> Vec<Value> {
    let mut gpu = function(A2[0], "VEN_10DE&DEV_25B6&SUBSYS_157E10DE&REV_A1", "3D Video Controller", 3, 2);
    gpu["windows"] = windows(&[(0xE100_0000, 16 * MIB), (0x20_0000_0000, 16 * GIB), (0x24_0000_0000, 32 * MIB)]);
    // As captured: the ACPI path follows the PCI one.
    gpu["acpi_after"] = json!("ACPI(_SB_)#ACPI(PCI0)#ACPI(GPP8)#ACPI(VGA_)");
    let mut audio =
        function(A2[1], "VEN_10DE&DEV_2291&SUBSYS_157E10DE&REV_A1", "High Definition Audio Controller", 4, 3);
    for (field, value) in
        [("driver", "Bound"), ("class", "MEDIA"), ("service", "HDAudBus"), ("manufacturer", "Microsoft")]
    {
        audio[field] = json!(value);
    }
    audio["windows"] = windows(&[(0xE200_0000, 16 << 10)]);
    audio["interrupts"] = json!([17]);
    vec![gpu, audio]
}

/// An A16: four GPUs on one board, each a card of its own as far as location paths go.
#[must_use]
pub fn a16() -> Vec<Value> {
    let gpu = |(at, path): (usize, &&str)| {
        let mut gpu = function(path, "VEN_10DE&DEV_25B6&SUBSYS_14A910DE&REV_A1", "3D Video Controller", 3, 2);
        let at = at as u64;
        gpu["windows"] = windows(&[
            (0xC000_0000 + at * 32 * MIB, 16 * MIB),
            (0x40_0000_0000 + at * 32 * GIB, 16 * GIB),
            (0x44_0000_0000 + at * 32 * GIB, 32 * MIB),
        ]);
        gpu
    };
    A16.iter().enumerate().map(gpu).collect()
}

/// What else every host has: a bridge, the boot disk, the management controller's display.
#[must_use]
pub fn others() -> Vec<Value> {
    let mut bridge =
        function("PCIROOT(0)#PCI(0301)", "VEN_1022&DEV_1483&SUBSYS_14531022&REV_00", "PCI Express Root Port", 6, 4);
    let mut disk = function(DISK, "VEN_144D&DEV_A820&SUBSYS_1F951028&REV_03", "Standard NVM Express Controller", 1, 8);
    let mut display = function(
        "PCIROOT(60)#PCI(0100)#PCI(0000)#PCI(0000)",
        "VEN_1A03&DEV_2000&SUBSYS_20001A03&REV_41",
        "Microsoft Basic Display Adapter",
        3,
        0,
    );
    bridge["properties"]["DeviceType"] = json!(8);
    display["properties"]["DeviceType"] = json!(1);
    display["properties"]["OnPostPath"] = json!(true);
    display["interrupts"] = json!([16]);
    for (other, class, service) in [
        (&mut bridge, "System", "pci"),
        (&mut disk, "SCSIAdapter", "stornvme"),
        (&mut display, "Display", "BasicDisplay"),
    ] {
        other["driver"] = json!("Bound");
        other["class"] = json!(class);
        other["service"] = json!(service);
    }
    vec![bridge, disk, display]
}

/// A VM as a person makes it: off, nothing set.
#[must_use]
pub fn vm(id: &str, name: &str) -> Value {
    json!({
        "id": id, "name": name, "state": "Off", "generation": 2, "clustered": false,
        "stop_action": "Save", "start_action": "StartIfRunning", "dynamic_memory": true,
        "memory_startup": 4 * GIB, "memory_minimum": GIB, "memory_maximum": 64 * GIB, "processors": 8,
        "checkpoint_type": "Production", "automatic_checkpoints": true, "checkpoints": [],
        "guest_cache_types": false, "mmio_low": 128 * MIB, "mmio_high": 512 * MIB, "replication_mode": "None",
        "devices": [], "addresses": [], "guest": null, "guest_password": null,
    })
}

/// A host with these functions and VMs, a server that can assign devices.
#[must_use]
pub fn host(functions: Vec<Value>, vms: Vec<Value>) -> Value {
    json!({
        "language": "en", "habits": HABITS, "faults": [], "look_fault": null, "look_lacks": 0,
        "late": [], "pool_lag": 0, "cache_lag": 0, "events": [], "guest": [], "asking_guest": false, "cluster": null,
        "host": {
            "computer": "NODE1", "system": "Microsoft Windows Server 2022 Datacenter", "version": "10.0.20348",
            "product_type": 3, "sku": 8, "boot_seconds": 1_795_500_723, "processors": 64,
            "memory_bytes": 549_755_813_888_u64, "iov_support": true, "iov_support_reasons": null,
            "policy": null,
        },
        "functions": functions, "vms": vms,
    })
}

/// A host with an A2, an A16, the usual rest, and two VMs.
#[must_use]
pub fn usual() -> Value {
    let functions = [others(), a2(), a16()].concat();
    host(functions, vec![vm(UBUNTU, "ubuntu"), vm(BUERO, "Büro – 会议室 №7 'x' $(1)")])
}

/// The function at a path, to change it.
///
/// # Panics
/// When there is none.
pub fn at<'a>(state: &'a mut Value, path: &str) -> &'a mut Value {
    let functions = state["functions"].as_array_mut().into_iter().flatten();
    functions.into_iter().find(|function| function["path"] == path).unwrap_or_else(|| panic!("no function at {path}"))
}

/// The VM with an id, to change it.
///
/// # Panics
/// When there is none.
pub fn vm_in<'a>(state: &'a mut Value, id: &str) -> &'a mut Value {
    let vms = state["vms"].as_array_mut().into_iter().flatten();
    vms.into_iter().find(|vm| vm["id"] == id).unwrap_or_else(|| panic!("no VM {id}"))
}

/// Puts a device into a VM by hand, dismounting it.
pub fn assign(state: &mut Value, id: &str, path: &str) {
    let function = at(state, path);
    function["dismounted"] = json!(true);
    function["disabled"] = json!(true);
    let tail = function["tail"].clone();
    let vm = vm_in(state, id);
    let key = format!("{:08x}-0000-4000-8000-000000000000", vm["devices"].as_array().map_or(0, Vec::len));
    if let Some(devices) = vm["devices"].as_array_mut() {
        devices.push(json!({ "path": path, "tail": tail, "key": key }));
    }
}

/// Turns habits on beside those that are.
pub fn habits(state: &mut Value, more: &[&str]) {
    if let Some(habits) = state["habits"].as_array_mut() {
        habits.extend(more.iter().map(|habit| json!(habit)));
    }
}

/// The next call of a command goes wrong, as steps of the simulated host do, after so many calls that go well.
pub fn fault(state: &mut Value, on: &str, fault: &StepFault, skip: u64) {
    let (kind, effect, text) = match fault {
        StepFault::Fails(text) => ("Fails", false, Some(text)),
        StepFault::Hangs { effect } => ("Hangs", *effect, None),
        StepFault::NoEffect => ("NoEffect", false, None),
        StepFault::HalfDone => ("HalfDone", true, None),
        StepFault::Lingers { .. } => unreachable!("the fake Hyper-V counts no looks"),
    };
    if let Some(faults) = state["faults"].as_array_mut() {
        faults.push(json!({ "on": on, "kind": kind, "effect": effect, "text": text, "skip": skip }));
    }
}

/// What an agent calls on the host for a placement, in this order, each once at least.
pub const PLACING: [&str; 5] =
    ["Set-VM", "Disable-PnpDevice", "Dismount-VMHostAssignableDevice", "Add-VMAssignableDevice", "Start-VM"];

/// What it calls for a release, with how many calls of that command have hung by then: the second `Set-VM` gives the settings
/// back.
pub const RELEASING: [(&str, usize); 5] = [
    ("Stop-VM", 1),
    ("Remove-VMAssignableDevice", 1),
    ("Mount-VMHostAssignableDevice", 1),
    ("Enable-PnpDevice", 1),
    ("Set-VM", 2),
];

/// Every one of [`PLACING`] and [`RELEASING`] hangs once, so that an agent can be killed in it; every second takes effect all
/// the same. A placement of one VM on one card sets eight settings before those that its release gives back.
pub fn hang_in_each_step(state: &mut Value) {
    let commands =
        PLACING.into_iter().chain(RELEASING.into_iter().filter(|(_, nth)| *nth == 1).map(|(command, _)| command));
    for (at, command) in commands.enumerate() {
        fault(state, command, &StepFault::Hangs { effect: at % 2 == 1 }, 0);
    }
    // In the middle of giving the settings back, too: the agent must still know what they were.
    fault(state, "Set-VM", &StepFault::Hangs { effect: true }, 8);
}

/// The next look goes wrong as looks at the simulated host do; what it does not show is missing until this is taken back.
pub fn look_fault(state: &mut Value, fault_of_look: &LookFault) {
    match fault_of_look {
        LookFault::Fails(text) => fault(state, "Get-PnpDevice", &StepFault::Fails(text.clone()), 0),
        LookFault::Hangs => fault(state, "Get-VM", &StepFault::Hangs { effect: false }, 0),
        LookFault::NoGpus => state["look_fault"] = json!("NoGpus"),
        LookFault::NoVms => state["look_fault"] = json!("NoVms"),
        LookFault::LacksOne(which) => {
            state["look_fault"] = json!("LacksOne");
            state["look_lacks"] = json!(which);
        }
    }
}

/// A state without what only says how the fake behaves, and without what a host itself forgets: to compare hosts.
#[must_use]
pub fn facts(state: &Value) -> Value {
    let kept = ["host", "functions", "vms", "cluster"];
    let mut facts: Map<String, Value> = kept.iter().map(|name| ((*name).to_owned(), state[*name].clone())).collect();
    // Each assignment gets an id of its own.
    for device in facts.get_mut("vms").and_then(Value::as_array_mut).into_iter().flatten() {
        for record in device["devices"].as_array_mut().into_iter().flatten() {
            record["key"] = Value::Null;
        }
    }
    Value::Object(facts)
}
