//! What looks and surveys show, and what they do when the host shows less than there is.

use crate::scenario::assigned;
use crate::{alone, on};
use anyhow::ensure;
use berth_node_agent::driver::sim::{LookFault, StepFault};
use berth_tests::hyperv::{
    A2, A16, BUERO, UBUNTU, assign, at, fault, habits, host, look_fault, others, usual, vm, vm_in,
};
use serde_json::{Value, json};

fn none() -> Value {
    json!({})
}

/// One field of each entry of a list.
fn column(list: &Value, field: &str) -> Vec<Value> {
    list.as_array().into_iter().flatten().map(|entry| entry[field].clone()).collect()
}

fn find<'a>(list: &'a Value, path: &str) -> &'a Value {
    list.as_array().into_iter().flatten().find(|entry| entry["location_path"] == path).unwrap_or(&Value::Null)
}

#[test]
fn lists_of_none_one_and_many_are_lists() {
    on("lists", &usual(), |host| {
        host.set(&berth_tests::hyperv::host(others(), vec![]))?;
        let look = host.ok("observe", &none())?;
        ensure!(look["pool"] == json!([]) && look["vms"] == json!([]), "{look}");
        // The management controller's display is the one display there is.
        ensure!(look["functions"].as_array().map(Vec::len) == Some(1), "{look}");
        let mut one = self::host([others(), berth_tests::hyperv::a2()].concat(), vec![vm(UBUNTU, "ubuntu")]);
        assign(&mut one, UBUNTU, A2[0]);
        host.set(&one)?;
        let look = host.ok("observe", &none())?;
        ensure!(look["pool"].as_array().map(Vec::len) == Some(1), "{look}");
        ensure!(look["vms"][0]["devices"].as_array().map(Vec::len) == Some(1), "{look}");
        // The audio function of the card whose GPU is in the pool is shown, too.
        ensure!(column(&look["functions"], "location_path").contains(&json!(A2[1])), "{look}");
        let mut few = usual();
        few["host"]["iov_support"] = json!(false);
        few["host"]["iov_support_reasons"] = json!(["Für SR-IOV muss das BIOS aktualisiert werden."]);
        host.set(&few)?;
        let survey = host.ok("survey", &none())?;
        ensure!(survey["host"]["iov_support_reasons"] == few["host"]["iov_support_reasons"], "{survey}");
        ensure!(survey["host"]["reasons"] == json!(["NoIommu"]), "{survey}");
        Ok(())
    });
}

#[test]
fn each_place_a_device_can_be_in_is_told_from_the_others() {
    let mut state = usual();
    at(&mut state, A16[0])["disabled"] = json!(true);
    at(&mut state, A16[1])["dismounted"] = json!(true);
    at(&mut state, A16[2])["driver"] = json!("Bound");
    assign(&mut state, UBUNTU, A2[0]);
    assign(&mut state, BUERO, A2[1]);
    at(&mut state, A2[1])["in_slot"] = json!(false);
    vm_in(&mut state, BUERO)["state"] = json!("Saved");
    vm_in(&mut state, BUERO)["checkpoints"] = json!(["before", "after"]);
    on("places", &state, |host| {
        let look = host.ok("observe", &none())?;
        let functions = &look["functions"];
        ensure!(find(functions, A16[0])["problem"] == 22, "{look}");
        ensure!(find(functions, A16[2])["problem"] == 0, "{look}");
        ensure!(find(functions, A16[3])["problem"] == 28, "{look}");
        ensure!(find(functions, A16[1]).is_null() && find(functions, A2[0]).is_null(), "{look}");
        let pool = &look["pool"];
        ensure!(find(pool, A16[1])["base_class"] == 3 && find(pool, A2[0])["base_class"] == 3, "{look}");
        ensure!(find(pool, A2[1]).is_null(), "{look}");
        ensure!(look["vms"][0]["devices"][0]["location_path"] == A2[0], "{look}");
        // A record whose device is gone has neither path nor id; a saved VM is asked like any other.
        let gone = &look["vms"][1]["devices"][0];
        ensure!(gone["location_path"].is_null() && gone["instance_id"].is_null(), "{look}");
        ensure!(look["vms"][1]["state"] == "Saved" && look["vms"][1]["checkpoints"] == 2, "{look}");
        Ok(())
    });
}

#[test]
fn a_clustered_vm_tells_its_role() {
    let mut state = assigned();
    state["cluster"] = json!("CLU1");
    vm_in(&mut state, UBUNTU)["clustered"] = json!(true);
    vm_in(&mut state, BUERO)["clustered"] = json!(true);
    vm_in(&mut state, BUERO)["replication_mode"] = json!("Replica");
    vm_in(&mut state, BUERO)["role_name"] = json!("Büro");
    on("roles", &state, |host| {
        let look = host.ok("observe", &none())?;
        ensure!(look["vms"][0]["role"]["name"] == "ubuntu" && look["vms"][0]["clustered"] == json!(true), "{look}");
        let role = json!({ "name": "Büro", "owner": "NODE1", "priority": 2000 });
        ensure!(look["vms"][1]["role"] == role && look["vms"][1]["replication_mode"] == "Replica", "{look}");
        // Once for each, and again where it has a device; what is no role any more is none.
        host.change(|state| {
            vm_in(state, BUERO)["role_name"] = json!("Küche");
            vm_in(state, UBUNTU)["role_name"] = json!("other");
        })?;
        let look = host.ok("observe", &none())?;
        ensure!(look["vms"][1]["role"] == role && look["vms"][0]["role"]["name"] == "other", "{look}");
        host.change(|state| vm_in(state, BUERO)["clustered"] = json!(false))?;
        ensure!(host.ok("observe", &none())?["vms"][1]["role"].is_null(), "a role that is gone");
        host.change(|state| vm_in(state, BUERO)["clustered"] = json!(true))?;
        ensure!(host.ok("observe", &none())?["vms"][1]["role"]["name"] == "Küche", "a role of long ago");
        ensure!(host.ok("survey", &none())?["host"]["cluster"] == "CLU1", "no cluster");
        Ok(())
    });
}

#[test]
fn builds_that_answer_in_another_form_give_the_same_answer() {
    let mut state = assigned();
    at(&mut state, A16[0])["disabled"] = json!(true);
    on("forms", &state, |host| {
        let look = host.ok("observe", &none())?;
        let survey = host.ok("survey", &none())?;
        for habit in ["text-problem-codes", "no-problem-codes", "raw-keys", "cim-text-references"] {
            host.set(&state)?;
            host.change(|state| habits(state, &[habit]))?;
            ensure!(host.ok("observe", &none())? == look, "{habit}: {}", host.ok("observe", &none())?);
            ensure!(host.ok("survey", &none())? == survey, "{habit}: {}", host.ok("survey", &none())?);
        }
        host.set(&state)?;
        host.change(|state| habits(state, &["silent-pool"]))?;
        let look = host.ok("observe", &none())?;
        ensure!(column(&look["pool"], "base_class") == [Value::Null, Value::Null], "{look}");
        Ok(())
    });
}

#[test]
fn a_survey_names_every_reason_at_once_and_measures_only_what_runs() {
    let mut state = usual();
    let properties = &mut at(&mut state, A16[0])["properties"];
    properties["RequiresReservedMemoryRegion"] = json!(true);
    properties["AcsCompatibleUpHierarchy"] = json!(0);
    properties["DeviceType"] = json!(5);
    properties["OnPostPath"] = json!(true);
    at(&mut state, A16[0])["interrupts"] = json!([16, 17]);
    let properties = at(&mut state, A16[1])["properties"].as_object_mut().expect("properties");
    for missing in ["RequiresReservedMemoryRegion", "AcsCompatibleUpHierarchy", "DeviceType"] {
        properties.remove(missing);
    }
    at(&mut state, A16[1])["interrupts"] = json!([]);
    at(&mut state, A16[2])["disabled"] = json!(true);
    // Legacy endpoints are fine for graphics controllers only; one message among lines is enough.
    at(&mut state, A16[3])["properties"]["DeviceType"] = json!(3);
    at(&mut state, A16[3])["interrupts"] = json!([16, 4_294_967_280_u64]);
    at(&mut state, A2[1])["properties"]["DeviceType"] = json!(3);
    at(&mut state, A2[1])["interrupts"] = json!([4_294_967_281_u64]);
    state["host"]["product_type"] = json!(1);
    on("survey", &state, |host| {
        let survey = host.ok("survey", &none())?;
        ensure!(survey["host"]["reasons"] == json!(["HostEdition"]), "{survey}");
        let reasons = |path| find(&survey["devices"], path)["reasons"].clone();
        let all = ["ReservedMemory", "NoAcs", "FirmwareKeepsPcie", "LineInterruptsOnly", "BootDisplay"];
        ensure!(reasons(A16[0]) == json!(all), "{survey}");
        ensure!(reasons(A16[1]) == json!(["ReservedMemory", "NoAcs", "NotAssignableKind"]), "{survey}");
        ensure!(reasons(A16[2]) == json!([]) && reasons(A16[3]) == json!([]), "{survey}");
        ensure!(reasons(A2[1]) == json!(["NotAssignableKind"]), "{survey}");
        let disabled = find(&survey["devices"], A16[2]);
        ensure!(disabled["measured"] == json!(false) && disabled["windows"].is_null(), "{survey}");
        let measured = find(&survey["devices"], A16[3]);
        let lengths = column(&measured["windows"], "length");
        ensure!(lengths == [json!(16 << 20), json!(16_u64 << 30), json!(32 << 20)], "{survey}");
        // The names are those that Berth knows.
        let known: Vec<_> = berth_model::gpu::Finding::ALL.iter().map(|finding| json!(finding.name())).collect();
        for reason in survey["devices"].as_array().into_iter().flatten().flat_map(|d| d["reasons"].as_array()).flatten()
        {
            ensure!(known.contains(reason), "{reason}");
        }
        // Each class was asked for once, however many devices there are.
        let asked =
            host.calls()?.iter().filter(|call| call["given"]["ClassName"] == "Win32_PnPAllocatedResource").count();
        ensure!(asked == 1, "{asked}");
        Ok(())
    });
}

/// What a device says of itself comes from its firmware: nonsense hides no other device, and not even this one.
#[test]
fn nonsense_of_one_device_does_not_break_a_survey() {
    on("nonsense", &usual(), |host| {
        let whole = host.ok("survey", &none())?;
        let odd = [
            json!("lots"),
            json!(-1),
            json!(18_446_744_073_709_551_615_u64),
            json!([1, 2]),
            json!({ "a": 1 }),
            json!(true),
            json!(1.5),
            json!(""),
        ];
        for value in odd {
            let mut state = usual();
            let properties = &mut at(&mut state, A16[0])["properties"];
            for name in
                ["BarTypes", "InterruptSupport", "InterruptMessageMaximum", "NumaNode", "DeviceType", "SubClass"]
            {
                properties[name] = value.clone();
            }
            host.set(&state)?;
            let survey = host.ok("survey", &none())?;
            ensure!(survey["unknown"] == json!([]) && survey["host"] == whole["host"], "{value}: {survey}");
            let [of, others] = [&survey, &whole].map(|survey| {
                let devices = survey["devices"].as_array().cloned().unwrap_or_default();
                devices.into_iter().partition::<Vec<_>, _>(|device| device["location_path"] == A16[0])
            });
            ensure!(of.1 == others.1 && of.0.len() == 1, "{value}: {survey}");
            ensure!(of.0[0]["windows"] == others.0[0]["windows"], "{value}: {survey}");
        }
        Ok(())
    });
}

/// What the host is and what its devices are: neither hides the other.
#[test]
fn half_a_survey_is_told_with_what_is_missing_and_why() {
    on("half surveys", &usual(), |host| {
        let whole = host.ok("survey", &none())?;
        ensure!(whole["unknown"] == json!([]), "{whole}");
        let mut state = usual();
        fault(&mut state, "Get-VMHost", &StepFault::Fails("Zugriff verweigert".to_owned()), 0);
        host.set(&state)?;
        let survey = host.ok("survey", &none())?;
        ensure!(survey["host"].is_null() && survey["devices"] == whole["devices"], "{survey}");
        ensure!(survey["unknown"] == json!(["the host does not say what it is: Zugriff verweigert"]), "{survey}");
        // The third question to that command is about the devices' resources.
        let mut state = usual();
        fault(&mut state, "Get-CimInstance", &StepFault::Fails("kaputt".to_owned()), 2);
        host.set(&state)?;
        let survey = host.ok("survey", &none())?;
        ensure!(survey["host"] == whole["host"] && survey["devices"] == json!([]), "{survey}");
        ensure!(survey["unknown"] == json!(["its devices cannot be measured: kaputt"]), "{survey}");
        Ok(())
    });
}

#[test]
fn policies_about_assigned_devices_are_told_where_they_are_set() {
    on("policies", &usual(), |host| {
        for (set, told) in [
            (json!(null), json!({ "require_secure": null, "require_supported": null })),
            (json!({ "Other": 1 }), json!({ "require_secure": null, "require_supported": null })),
            (
                json!({ "RequireSecureDeviceAssignment": 1, "RequireSupportedDeviceAssignment": 0 }),
                json!({ "require_secure": 1, "require_supported": 0 }),
            ),
            (
                json!({ "RequireSecureDeviceAssignment": "x" }),
                json!({ "require_secure": null, "require_supported": null }),
            ),
        ] {
            host.change(|state| state["host"]["policy"] = set)?;
            let survey = host.ok("survey", &none())?;
            ensure!(survey["host"]["policy"] == told, "{survey}");
        }
        Ok(())
    });
}

#[test]
fn a_look_that_fails_or_is_empty_is_no_look_and_what_it_lacks_is_not_made_up() {
    on("faults of looks", &assigned(), |host| {
        let whole = host.ok("observe", &none())?;
        let mut fails = assigned();
        look_fault(&mut fails, &LookFault::Fails("die Auflistung".to_owned()));
        host.set(&fails)?;
        let error = host.err("observe", &none())?;
        ensure!(error["kind"] == "Failed" && error["message"] == "die Auflistung", "{error}");
        ensure!(host.ok("observe", &none())? == whole, "the next look differs");

        // No PCI device at all is no host.
        host.change(|state| state["look_fault"] = json!("NoDevices"))?;
        let error = host.err("observe", &none())?;
        ensure!(error["kind"] == "NotThere", "{error}");

        let mut empty = assigned();
        look_fault(&mut empty, &LookFault::NoGpus);
        host.set(&empty)?;
        let look = host.ok("observe", &none())?;
        ensure!(look["functions"] == json!([]) && look["pool"] == json!([]), "{look}");
        ensure!(look["vms"][0]["devices"].as_array().map(Vec::len) == Some(2), "{look}");

        let mut empty = assigned();
        look_fault(&mut empty, &LookFault::NoVms);
        host.set(&empty)?;
        let look = host.ok("observe", &none())?;
        ensure!(look["vms"] == json!([]) && look["pool"] == whole["pool"], "{look}");
        // A VM that does not show is not there for a step, either.
        let error = host.err("start-vm", &json!({ "vm": UBUNTU }))?;
        ensure!(error["kind"] == "NotThere" && error["seen"]["vm"].is_null(), "{error}");

        let mut lacks = assigned();
        look_fault(&mut lacks, &LookFault::LacksOne(1));
        host.set(&lacks)?;
        let look = host.ok("observe", &none())?;
        let count = |look: &Value| ["functions", "pool"].map(|list| look[list].as_array().map_or(0, Vec::len));
        ensure!(count(&look).iter().sum::<usize>() + 1 == count(&whole).iter().sum::<usize>(), "{look}");
        Ok(())
    });
}

/// Present, and it does not say where it is, or what: neither is it gone, nor is it no GPU.
#[test]
fn a_present_device_that_cannot_be_read_is_told() {
    let mut state = usual();
    at(&mut state, A16[0])["untold"] = json!(["LocationPaths"]);
    at(&mut state, A16[1])["untold"] = json!(["BaseClass"]);
    let id =
        |state: &mut Value, path: &str| json!(format!("PCI\\{}", at(state, path)["tail"].as_str().unwrap_or_default()));
    let lost = id(&mut state, A16[0]);
    on("unreadable devices", &state, |host| {
        let look = host.ok("observe", &none())?;
        ensure!(look["unreadable"] == json!([lost]), "{look}");
        let odd = find(&look["functions"], A16[1]);
        ensure!(odd.is_object() && odd["base_class"].is_null(), "{look}");
        let error = host.err("disable", &json!({ "location_path": A16[1] }))?;
        ensure!(error["kind"] == "Refused", "{error}");
        Ok(())
    });
}

/// What a VM lists that the listing of VMs left out is not free: whoever took it for free would give it away twice.
#[test]
fn a_record_of_a_vm_that_is_not_listed_fails_the_look_and_the_step() {
    let mut state = usual();
    assign(&mut state, BUERO, A2[0]);
    vm_in(&mut state, BUERO)["unlisted"] = json!(true);
    on("records of unlisted VMs", &state, |host| {
        ensure!(host.ok("observe", &none())?["vms"].as_array().map(Vec::len) == Some(2), "two VMs");
        host.change(|state| state["look_fault"] = json!("RecordOfUnlisted"))?;
        let error = host.err("observe", &none())?;
        ensure!(error["kind"] == "Refused" && error["message"].to_string().contains(BUERO), "{error}");
        for (op, args) in [
            ("attach", json!({ "vm": UBUNTU, "location_path": A2[0] })),
            ("detach", json!({ "vm": UBUNTU, "location_path": A2[0] })),
            ("mount", json!({ "location_path": A2[0] })),
        ] {
            let error = host.err(op, &args)?;
            ensure!(error["kind"] == "Refused" && error["message"].to_string().contains(BUERO), "{op}: {error}");
        }
        ensure!(host.acts()?.is_empty(), "{:?}", host.acts()?);
        Ok(())
    });
}

/// The module of 2020 can make pools and has no filter that tells what is in them.
#[test]
fn a_made_pool_on_a_build_that_cannot_say_what_is_in_it_fails_the_look() {
    let mut state = usual();
    habits(&mut state, &["pool-without-filters"]);
    at(&mut state, A16[0])["dismounted"] = json!(true);
    let Some(mut host) = alone("pools without filters", &state) else { return };
    let hello = host.ok("hello", &none()).unwrap();
    assert!(hello["absent"].to_string().contains("Get-VMHostAssignableDevice -ResourcePoolName"), "{hello}");
    // With the root pool alone there is nothing to ask about.
    assert_eq!(host.ok("observe", &none()).unwrap()["pool"].as_array().map(Vec::len), Some(1));
    host.change(|state| at(state, A16[0])["pool"] = json!("GPU Pool")).unwrap();
    for (op, args) in [
        ("observe", none()),
        ("attach", json!({ "vm": UBUNTU, "location_path": A16[0] })),
        ("mount", json!({ "location_path": A16[0] })),
    ] {
        let error = host.err(op, &args).unwrap();
        assert!(error["kind"] == "Refused" && error["message"].to_string().contains("GPU Pool"), "{op}: {error}");
    }
    assert!(host.acts().unwrap().is_empty());
}

#[test]
fn a_look_that_hangs_is_ended_from_outside_and_the_next_one_works() {
    let mut state = assigned();
    look_fault(&mut state, &LookFault::Hangs);
    let Some(mut host) = alone("hanging look", &state) else { return };
    host.send("observe", &none()).unwrap();
    host.wait_hanging("Get-VM").unwrap();
    host.kill();
    let look = host.ok("observe", &none()).unwrap();
    assert_eq!(look["vms"].as_array().map(Vec::len), Some(2));
}
