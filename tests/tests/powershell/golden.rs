//! Answers as the script gives them on hosts of real shape, kept for whoever decodes them: `tests/hyperv/golden`.
//!
//! `UPDATE_EXPECT=1 cargo test -p berth-tests --test powershell golden` writes them anew.

use crate::on;
use crate::scenario::{assigned, for_devices};
use anyhow::ensure;
use berth_tests::hyperv::{A2, A16, BUERO, DISK, UBUNTU, at, usual, vm_in};
use berth_tests::process::root;
use berth_tests::pwsh::Host;
use expect_test::{ExpectFile, expect_file};
use serde_json::{Value, json};

/// Compares one answer, less what differs from machine to machine.
fn same(host: &mut Host, op: &str, args: &Value, file: &ExpectFile) -> anyhow::Result<()> {
    let mut answer = host.call(op, args)?;
    answer["id"] = json!(7);
    if op == "hello" {
        for (name, value) in
            [("powershell", "5.1.20348.2849"), ("edition", "Desktop"), ("computer", "NODE1"), ("culture", "en-US")]
        {
            ensure!(answer["result"][name].is_string(), "{answer}");
            answer["result"][name] = json!(value);
        }
    }
    file.assert_eq(&format!("{answer:#}\n"));
    Ok(())
}

#[test]
fn golden_answers_are_what_the_script_says() {
    let mut busy = assigned();
    vm_in(&mut busy, UBUNTU)["state"] = json!("Running");
    vm_in(&mut busy, BUERO)["state"] = json!("Saved");
    at(&mut busy, A16[0])["disabled"] = json!(true);
    at(&mut busy, A16[1])["dismounted"] = json!(true);
    at(&mut busy, A16[3])["in_slot"] = json!(false);
    let tail = at(&mut busy, A16[3])["tail"].clone();
    vm_in(&mut busy, BUERO)["devices"] = json!([{ "path": A16[3], "tail": tail, "key": "x" }]);
    let mut client = assigned();
    client["host"]["product_type"] = json!(1);
    client["language"] = json!("de");
    on("golden answers", &usual(), |host| {
        let device = json!({ "location_path": A2[0] });
        same(host, "hello", &json!({}), &expect_file!["../../hyperv/golden/hello.json"])?;
        same(host, "survey", &json!({}), &expect_file!["../../hyperv/golden/survey.json"])?;
        same(host, "observe", &json!({}), &expect_file!["../../hyperv/golden/observe.json"])?;
        same(host, "disable", &device, &expect_file!["../../hyperv/golden/disable.json"])?;
        same(
            host,
            "configure-vm",
            &json!({ "vm": UBUNTU, "settings": for_devices() }),
            &expect_file!["../../hyperv/golden/configure-vm.json"],
        )?;
        same(host, "disable", &json!({ "location_path": DISK }), &expect_file!["../../hyperv/golden/refused.json"])?;
        same(host, "mount", &json!({ "location_path": "" }), &expect_file!["../../hyperv/golden/invalid.json"])?;
        host.set(&busy)?;
        same(host, "observe", &json!({}), &expect_file!["../../hyperv/golden/observe-busy.json"])?;
        host.set(&client)?;
        same(host, "start-vm", &json!({ "vm": UBUNTU }), &expect_file!["../../hyperv/golden/start-vm-failed.json"])
    });
}

#[test]
fn hostile_answers_are_well_described() {
    let dir = root().join("tests").join("hyperv").join("golden");
    let hostile: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(dir.join("hostile.json")).unwrap()).unwrap();
    assert!(hostile.len() >= 30);
    let golden: Vec<Value> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("hostile.json"))
        .map(|path| serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
        .collect();
    for case in &hostile {
        let text = |name: &str| case[name].as_str().unwrap_or_else(|| panic!("{name} is no text in {case}"));
        assert!(!text("why").is_empty() && ["observe", "survey", "hello", "disable"].contains(&text("op")), "{case}");
        // None of them is an answer that the script gives.
        let parsed: Result<Value, _> = serde_json::from_str(text("line"));
        assert!(parsed.is_err() || !golden.contains(parsed.as_ref().unwrap()), "{case}");
    }
}
