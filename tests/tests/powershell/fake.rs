//! The fake itself: it has the documented parameters and no others, and the real one's dangerous habits.

use crate::{alone, text};
use berth_tests::hyperv::{A2, A16, BUERO, HABITS, UBUNTU, assign, at, usual, vm_in};
use berth_tests::process::run_within;
use berth_tests::pwsh::Host;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Runs a line of PowerShell on the fake. What it prints; none when it failed.
fn powershell(host: &Host, line: &str) -> Option<String> {
    let mut command = host.powershell();
    let line = format!("$ErrorActionPreference = 'Stop'; Import-Module Hyper-V, PnpDevice; {line}");
    command.args(["-NoProfile", "-NonInteractive", "-Command", &line]);
    let ran = run_within(Duration::from_secs(120), command).unwrap();
    (ran.code == Some(0)).then_some(ran.stdout)
}

#[test]
fn its_commands_have_the_documented_parameter_sets() {
    let Some(host) = alone("parameters of the fake", &usual()) else { return };
    let table = text::table();
    let line = "Import-Module Hyper-V, PnpDevice, FailoverClusters, CimCmdlets, BerthFake
        $common = [System.Management.Automation.Cmdlet]::CommonParameters
        foreach ($name in NAMES) {
            foreach ($set in (Get-Command $name).ParameterSets) {
                foreach ($parameter in $set.Parameters) {
                    if ($common -notcontains $parameter.Name) { $name + '/' + $set.Name + '/' + $parameter.Name }
                }
            }
        }";
    let names: Vec<_> = table.cmdlets.iter().map(|cmdlet| format!("'{}'", cmdlet.name)).collect();
    let printed = powershell(&host, &line.replace("NAMES", &names.join(", "))).expect("the fake can be asked");
    let mut found: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for line in printed.lines() {
        let [name, set, parameter] = line.splitn(3, '/').collect::<Vec<_>>().try_into().expect(line);
        found.entry(name.to_owned()).or_default().entry(set.to_owned()).or_default().insert(parameter.to_owned());
    }
    for cmdlet in &table.cmdlets {
        assert_eq!(found.get(&cmdlet.name), Some(&cmdlet.sets), "{}", cmdlet.name);
    }
    assert_eq!(found.len(), table.cmdlets.len());
}

#[test]
fn a_parameter_that_nobody_documented_is_refused() {
    let Some(host) = alone("unknown parameters", &usual()) else { return };
    for line in [
        "Mount-VMHostAssignableDevice -VMName ubuntu",
        "Remove-VMAssignableDevice -VM (Get-VM -Name ubuntu)",
        "Get-VM -Nothing 1",
        "Disable-PnpDevice -Force",
        "Set-VM -VM (Get-VM -Name ubuntu) -LowMemoryMappedIoSpace 4294967296",
        "Set-VM -VM 'ubuntu' -StaticMemory",
        "Remove-VMAssignableDevice -VMName ubuntu -LocationPath ''",
    ] {
        assert_eq!(powershell(&host, line), None, "{line}");
    }
    assert_eq!(host.state().unwrap(), usual());
}

/// A host on which everything is in the pool, and some of it in a VM.
fn full() -> Value {
    let mut state = usual();
    for path in A2 {
        assign(&mut state, UBUNTU, path);
    }
    for path in A16 {
        at(&mut state, path)["dismounted"] = json!(true);
    }
    state
}

fn pooled(host: &Host) -> usize {
    let state = host.state().unwrap();
    state["functions"].as_array().unwrap().iter().filter(|function| function["dismounted"] == json!(true)).count()
}

#[test]
fn it_does_the_harm_that_the_real_one_does_and_each_habit_can_be_taken_away() {
    let Some(host) = alone("habits", &full()) else { return };
    // Each: the habit, what to run, and whether the host shows the harm.
    type Harm = fn(&Host) -> bool;
    let devices = |host: &Host| host.state().unwrap()["vms"][0]["devices"].as_array().map_or(0, Vec::len);
    let cases: [(&str, String, Harm); 6] = [
        ("remove-all", "Remove-VMAssignableDevice -VMName ubuntu".to_owned(), |host| {
            host.state().unwrap()["vms"][0]["devices"] == json!([])
        }),
        ("mount-all", "Mount-VMHostAssignableDevice -LocationPath ''".to_owned(), |host| pooled(host) == 0),
        ("mount-all", "Mount-VMHostAssignableDevice".to_owned(), |host| pooled(host) == 0),
        ("any-of-pool", "Add-VMAssignableDevice -VMName 'B*' -ResourcePoolName ''".to_owned(), |host| {
            host.state().unwrap()["vms"][1]["devices"].as_array().map(Vec::len) == Some(1)
        }),
        (
            "silent-no-match",
            "Mount-VMHostAssignableDevice -LocationPath 'PCIROOT(9)#PCI(0000)'; 'went on'".to_owned(),
            |host| pooled(host) == 6,
        ),
        (
            "silent-no-match",
            "Remove-VMAssignableDevice -VMName ubuntu -LocationPath 'PCIROOT(9)#PCI(0000)'; 'went on'".to_owned(),
            |host| host.state().unwrap() == full(),
        ),
    ];
    for (habit, line, harm) in &cases {
        host.set(&full()).unwrap();
        assert!(powershell(&host, line).is_some(), "{line}");
        assert!(harm(&host), "{habit}: {line}");
        let mut kinder = full();
        kinder["habits"] = HABITS.iter().filter(|other| *other != habit).map(|other| json!(other)).collect();
        host.set(&kinder).unwrap();
        assert_eq!(powershell(&host, line), None, "without {habit}: {line}");
        assert_eq!(host.state().unwrap(), kinder, "without {habit}: {line}");
    }
    // Byte by byte: a path in small letters is another path.
    host.set(&full()).unwrap();
    let small = format!("Mount-VMHostAssignableDevice -LocationPath '{}'", A16[3].to_lowercase());
    assert!(powershell(&host, &small).is_some() && pooled(&host) == 6);
    host.change(|state| state["habits"] = json!(["silent-no-match"])).unwrap();
    assert!(powershell(&host, &small).is_some() && pooled(&host) == 5);
    // One device in two VMs: no error until the second one starts.
    let mut two = full();
    two["vms"][0]["name"] = json!("first");
    for id in [UBUNTU, BUERO] {
        let vm = vm_in(&mut two, id);
        vm["stop_action"] = json!("TurnOff");
        vm["dynamic_memory"] = json!(false);
        vm["mmio_high"] = json!(1_u64 << 40);
    }
    host.set(&two).unwrap();
    let add = format!("Add-VMAssignableDevice -VMName 'B*' -LocationPath '{}'; Start-VM -Name first", A2[0]);
    assert!(powershell(&host, &add).is_some());
    assert_eq!(devices(&host), 2);
    assert_eq!(powershell(&host, "Start-VM -Name 'B*'"), None);
    // One thing alone is no list.
    host.set(&full()).unwrap();
    let one = powershell(&host, "(Get-VM -Name ubuntu).GetType().Name + (Get-VM).GetType().Name").unwrap();
    assert_eq!(one.trim(), "PSCustomObjectObject[]");
}
