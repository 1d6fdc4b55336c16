//! The lines themselves: what comes in badly, what must never come out.

use crate::{alone, on};
use anyhow::{Context as _, ensure};
use berth_node_agent::driver::hyperv::script;
use berth_tests::hyperv::{A2, BUERO, UBUNTU, habits, usual, vm_in};
use berth_tests::process::{run_within, skip};
use berth_tests::pwsh::{self, Host};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

fn answer(host: &mut Host, line: &[u8]) -> anyhow::Result<Value> {
    host.write(line)?;
    let line = host.line()?;
    serde_json::from_slice(&line).with_context(|| String::from_utf8_lossy(&line).into_owned())
}

#[test]
fn hello_tells_what_the_host_has() {
    on("hello", &usual(), |host| {
        let hello = host.ok("hello", &json!({}))?;
        ensure!(hello["protocol"] == json!(script::PROTOCOL), "{hello}");
        ensure!(hello["missing"] == json!([]) && hello["absent"] == json!([]), "{hello}");
        ensure!(hello["modules"]["Hyper-V"] == "2.0.0.0", "{hello}");
        Ok(())
    });
}

#[test]
fn lines_that_are_no_request_are_answered_and_the_next_one_works() {
    on("bad lines", &usual(), |host| {
        let long = format!(r#"{{"id":1,"op":"hello","args":{{"x":"{}"}}}}"#, "y".repeat(70_000));
        let bad = [
            "no JSON",
            "{",
            "[]",
            "null",
            "7",
            "\"hello\"",
            r#"[{"id":1,"op":"hello","args":{}},{"id":2,"op":"hello","args":{}}]"#,
            r#"{"op":"hello","args":{}}"#,
            r#"{"id":null,"op":"hello","args":{}}"#,
            r#"{"id":"1","op":"hello","args":{}}"#,
            r#"{"id":-1,"op":"hello","args":{}}"#,
            r#"{"id":1.5,"op":"hello","args":{}}"#,
            r#"{"id":1,"op":"hello"}"#,
            r#"{"id":1,"op":"hello","args":[]}"#,
            r#"{"id":1,"op":"hello","args":null}"#,
            r#"{"id":1,"op":"hello","args":"x"}"#,
            r#"{"id":1,"op":["hello"],"args":{}}"#,
            r#"{"id":1,"op":"Hello","args":{}}"#,
            r#"{"id":1,"op":"Get-VM","args":{}}"#,
            r#"{"id":1,"op":"hello","args":{},"script":"Get-VM"}"#,
            r#"{"id":1,"OP":"hello","args":{}}"#,
            r#"{"id":1,"op":"hello","args":{"x":1}}"#,
            r#"{"id":1,"op":"disable","args":{"Location_Path":"PCIROOT(0)#PCI(0301)#PCI(0000)"}}"#,
            r#"{"id":1,"op":"disable","args":{"location_path":"PCIROOT(0)#PCI(0301)#PCI(0000)","LOCATION_PATH":""}}"#,
            long.as_str(),
        ];
        for line in bad {
            let shown: String = line.chars().take(80).collect();
            let answer = answer(host, format!("{line}\n").as_bytes())?;
            ensure!(answer["ok"] == json!(false) && answer["error"]["kind"] == "Invalid", "{shown}: {answer}");
        }
        // Empty lines are none; either line end will do; a byte order mark within a text is part of it.
        host.write(b"\n  \n")?;
        let good = answer(host, b"{\"id\":41,\"op\":\"hello\",\"args\":{}}\r\n")?;
        ensure!(good["id"] == json!(41) && good["ok"] == json!(true), "{good}");
        let not_utf8 = answer(host, b"{\"id\":42,\"op\":\"\xff\xfe\",\"args\":{}}\n")?;
        ensure!(not_utf8["id"] == json!(42) && not_utf8["error"]["kind"] == "Invalid", "{not_utf8}");
        ensure!(host.acts()?.is_empty(), "{:?}", host.acts()?);
        Ok(())
    });
}

/// Values that no argument takes, whatever it is about.
fn never() -> Vec<Value> {
    let quoted =
        ["\u{2018}x\u{2019}", "'; Remove-Item -Recurse C:\\ #", "$(Get-VM)", "`$x", "a\u{0}b", "*", "?", "[a-z]"];
    let mut values: Vec<_> = quoted.iter().map(|text| json!(text)).collect();
    values.extend([
        json!(""),
        json!(" "),
        json!(null),
        json!([]),
        json!({}),
        json!(7),
        json!(-1),
        json!(1.5),
        json!([1, 2]),
    ]);
    values
}

#[test]
fn hostile_arguments_reach_no_cmdlet_that_acts() {
    let paths = [
        "PCIROOT(0)",
        "pciroot(0)#pci(0301)#pci(0000)",
        "PCIROOT(0)#PCI(0301)#PCI(0000)\n",
        "PCIROOT(0)#PCI(0301)#PCI(000g)",
        "PCIROOT(0)#PCI(0301)#PCI(0000)#",
        "ACPI(_SB_)#ACPI(PCI0)",
        "\u{feff}PCIROOT(0)#PCI(0301)#PCI(0000)",
        "PCIROOT(0)#PCI(0301)#PCI(0000),PCIROOT(0)#PCI(0301)#PCI(0001)",
        "PCIROOT(00000)#PCI(0000)",
        "PCIROOT(\u{ff10})#PCI(0301)",
    ];
    let paths: Vec<_> =
        paths.iter().map(|path| json!(path)).chain(never()).chain([json!([A2[0]]), json!(true)]).collect();
    let ids = [
        "ubuntu",
        "00000000-0000-0000-0000-000000000000",
        "{8fce3318-aa0f-4de3-8664-278533573cd2}",
        "8fce3318aa0f4de38664278533573cd2",
        "8fce3318-aa0f-4de3-8664-278533573cd2\n",
        "8fce3318-aa0f-4de3-8664-27853357****",
    ];
    let ids: Vec<_> =
        ids.iter().map(|id| json!(id)).chain(never()).chain([json!([UBUNTU]), json!([UBUNTU, BUERO])]).collect();
    let flags: Vec<_> = never().into_iter().chain([json!("true"), json!(1), json!(0)]).collect();
    let times: Vec<_> = never()
        .into_iter()
        .filter(|v| !v.is_null() && *v != json!(7))
        .chain([json!("5"), json!(1e30), json!(true)])
        .collect();
    let settings: Vec<_> = never()
        .into_iter()
        .chain([
            json!({ "stop_action": "save" }),
            json!({ "stop_action": 3 }),
            json!({ "mmio_low_bytes": 4_294_967_296_u64 }),
            json!({ "mmio_low_bytes": -1 }),
            json!({ "mmio_high_bytes": "1" }),
            json!({ "mmio_high_bytes": 1e25 }),
            json!({ "guest_cache_types": "true" }),
            json!({ "name": "new" }),
            json!({ "Stop_Action": "TurnOff" }),
            json!({ "stop_action": "TurnOff", "notes": "x" }),
        ])
        .collect();
    // Any name: it is held against what the cluster says, and handed to no cmdlet.
    let roles: Vec<_> = never().into_iter().filter(|value| value.as_str().is_none_or(str::is_empty)).collect();
    let device = json!({ "location_path": A2[0] });
    let both = json!({ "vm": UBUNTU, "location_path": A2[0] });
    let vm = json!({ "vm": UBUNTU });
    let dismount = json!({ "location_path": A2[0], "force": false });
    let stop = json!({ "vm": UBUNTU, "how": "TurnOff" });
    let configure = json!({ "vm": UBUNTU, "settings": { "stop_action": "TurnOff" } });
    let operations: [(&str, &Value); 12] = [
        ("disable", &device),
        ("enable", &device),
        ("mount", &device),
        ("dismount", &dismount),
        ("attach", &both),
        ("detach", &both),
        ("start-vm", &vm),
        ("stop-vm", &stop),
        ("configure-vm", &configure),
        ("detach-stale", &json!({ "vm": UBUNTU, "records": 1 })),
        ("make-standalone", &json!({ "vm": UBUNTU, "allow": true, "role": "ubuntu" })),
        ("guest-addresses", &vm),
    ];
    on("hostile arguments", &usual(), |host| {
        for (op, good) in operations {
            let mut bad: Vec<Value> = Vec::new();
            for name in good.as_object().into_iter().flat_map(|args| args.keys()) {
                let mut without = good.clone();
                without.as_object_mut().map(|args| args.remove(name));
                bad.push(without);
                let values = match name.as_str() {
                    "location_path" => &paths,
                    "vm" => &ids,
                    "settings" => &settings,
                    "role" => &roles,
                    _ => &flags,
                };
                bad.extend(
                    values.iter().filter(|value| name != "records" || **value != json!(7) && **value != json!(1)).map(
                        |value| {
                            let mut args = good.clone();
                            args[name] = value.clone();
                            args
                        },
                    ),
                );
            }
            let more = ["x", "Forced", "Location-Path", "instance_id", "pool", "name"];
            bad.extend(more.iter().map(|name| {
                let mut args = good.clone();
                args[*name] = json!("x");
                args
            }));
            if op != "guest-addresses" {
                bad.extend(times.iter().map(|time| {
                    let mut args = good.clone();
                    args["settle_ms"] = time.clone();
                    args
                }));
            }
            for args in bad {
                let error = host.err(op, &args)?;
                ensure!(error["kind"] == "Invalid", "{op} {args}: {error}");
            }
        }
        ensure!(host.calls()?.is_empty(), "something was called: {:?}", host.calls()?);
        Ok(())
    });
}

#[test]
fn nothing_but_answers_comes_out_however_much_a_host_talks() {
    let mut state = usual();
    habits(&mut state, &["noisy"]);
    on("noise", &state, |host| {
        // `call` accepts nothing but one line of ASCII JSON for the request that was sent.
        host.ok("observe", &json!({}))?;
        host.ok("survey", &json!({}))?;
        host.ok("disable", &json!({ "location_path": A2[0] }))?;
        host.err("attach", &json!({ "vm": UBUNTU, "location_path": A2[0] }))?;
        Ok(())
    });
}

#[test]
fn names_of_all_scripts_and_characters_come_through() {
    let names = [
        "Büro",
        "会议室",
        "\u{1f5a5} №7",
        "a\"b\\c/d",
        "tab\tnewline\nend",
        "\u{7f}\u{80}\u{2028}\u{feff}",
        " ",
        "x\n",
    ];
    on("names", &usual(), |host| {
        for name in names {
            host.change(|state| vm_in(state, UBUNTU)["name"] = json!(name))?;
            let look = host.ok("observe", &json!({}))?;
            ensure!(look["vms"][0]["name"] == name, "{name:?}: {look}");
        }
        Ok(())
    });
}

#[test]
fn it_ends_with_its_input() {
    let Some(mut host) = alone("end of input", &usual()) else { return };
    // A byte order mark before the first request is none of it.
    let answer = answer(&mut host, "\u{feff}{\"id\":1,\"op\":\"hello\",\"args\":{}}\n".as_bytes()).unwrap();
    assert_eq!(answer["ok"], json!(true), "{answer}");
    assert_eq!(host.finish().unwrap(), Some(0));
}

/// Copies some of the fake modules.
fn some_modules(to: &Path, names: &[&str]) {
    for name in names {
        std::fs::create_dir(to.join(name)).unwrap();
        for file in std::fs::read_dir(pwsh::modules().join(name)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(name).join(file.file_name())).unwrap();
        }
    }
}

#[test]
fn a_host_that_lacks_a_command_is_only_told_about() {
    let Some(host) = alone("missing commands", &usual()) else { return };
    let dir = host.dir().join("modules");
    std::fs::create_dir(&dir).unwrap();
    some_modules(&dir, &["BerthFake", "CimCmdlets", "PnpDevice"]);
    // Another product's Get-VM is found by its name all the same.
    std::fs::create_dir(dir.join("OtherProduct")).unwrap();
    std::fs::write(dir.join("OtherProduct").join("OtherProduct.psm1"), "function Get-VM { 'not this one' }\n").unwrap();
    let mut host = host.with_modules(dir);
    let hello = host.ok("hello", &json!({})).unwrap();
    let missing: Vec<_> = hello["missing"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(missing.contains(&"Get-VM") && missing.contains(&"Add-VMAssignableDevice"), "{hello}");
    assert!(!missing.contains(&"Get-PnpDevice"), "{hello}");
    assert!(hello["absent"].as_array().unwrap().contains(&json!("Remove-ClusterGroup")), "{hello}");
    for op in ["observe", "survey"] {
        let error = host.err(op, &json!({})).unwrap();
        assert_eq!(error["kind"], "Refused", "{error}");
    }
}

#[test]
fn windows_powershell_5_1_can_read_it() {
    let test = "5.1 syntax";
    let Some(program) = pwsh::program(test) else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("host.ps1");
    std::fs::write(&file, script::TEXT).unwrap();
    let mut check = berth_tests::process::other(program);
    check.arg("-CheckSyntax51").arg(&file);
    let ran = run_within(Duration::from_secs(120), check).unwrap();
    match ran.code {
        Some(0) => {}
        Some(1) => panic!("{}{}", ran.stdout, ran.stderr),
        _ => skip(test, "this PowerShell has no -CheckSyntax51"),
    }
}
