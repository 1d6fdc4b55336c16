//! Answers of the real script, hostile ones, and every cut of the former: what is read, and what is not believed.

use super::*;
use expect_test::expect;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Answers of the real script, kept by its own tests.
pub(super) fn golden(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/hyperv/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What the decoder makes of a line that answers an operation, for comparison.
fn outcome(op: &str, line: &[u8]) -> Result<String, String> {
    fn of<T: DeserializeOwned + std::fmt::Debug>(line: &[u8]) -> Result<String, String> {
        read::<T>(line, 7).map(|answer| format!("{answer:?}")).map_err(|error| error.to_string())
    }
    match op {
        "observe" => of::<Look>(line),
        "survey" => of::<Survey>(line),
        "hello" => of::<Hello>(line),
        _ => of::<Stepped>(line),
    }
}

#[test]
fn every_golden_answer_is_read() {
    for (name, op, ok) in [
        ("hello.json", "hello", true),
        ("observe.json", "observe", true),
        ("observe-busy.json", "observe", true),
        ("survey.json", "survey", true),
        ("disable.json", "disable", true),
        ("configure-vm.json", "configure-vm", true),
        ("refused.json", "disable", false),
        ("invalid.json", "mount", false),
        ("start-vm-failed.json", "start-vm", false),
    ] {
        let read = outcome(op, &golden(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read.starts_with("Ok("), ok, "{name}: {read}");
    }
}

#[test]
fn failures_are_told_in_the_hosts_words_with_the_numbers_to_search_for() {
    let said = |name: &str| read::<Stepped>(&golden(name), 7).unwrap().unwrap_err().to_string();
    expect![[r#"Start-VM: Fehler beim Starten von "ubuntu". (ID des virtuellen Computers: 8fce3318-aa0f-4de3-8664-278533573cd2) Virtueller PCI-Express-Anschluss: Ein Hypervisorfeature ist für den Benutzer nicht verfügbar. (0xC035001E) [0x80070057 OperationFailed,Microsoft.HyperV.PowerShell.Commands.StartVM]"#]]
    .assert_eq(&said("start-vm-failed.json"));
    expect!["the device at PCIROOT(40)#PCI(0200)#PCI(0000) is of class 1, subclass 8, no function of a graphics card"]
        .assert_eq(&said("refused.json"));
    let failed = read::<Stepped>(&golden("start-vm-failed.json"), 7).unwrap().unwrap_err();
    assert_eq!((failed.kind, failed.vm_state()), (Kind::Failed, Some("Off")));
    // Its number tells that trying again is hopeless, in whatever language it is said.
    assert_eq!(failed.class(), Some(StepErrorClass::Forbidden));
    let other = Failure { codes: vec!["0x80070490".to_owned()], ..failed };
    assert_eq!(other.class(), None, "not proven: it decides nothing");
}

/// Hostile lines that are taken all the same, because a real host can say so and each is taken as "unknown", or says
/// nothing that anything rests on. All others are no answers.
const TAKEN: [&str; 13] = [
    // Told as what it is: unknown, or listed by both.
    "the same path in host and pool",
    "no problem code",
    "no class",
    "an unknown state",
    "no state",
    "two VMs list one device",
    // For people, or named by its id instead.
    "a name of control characters",
    "a VM without a name",
    "an endless VM name",
    "a VM id in capitals",
    // As if it had not been said.
    "a serial of odd characters",
    "a NUMA node of 4 billion",
    // The version is compared by whoever says hello.
    "another protocol",
];

#[test]
fn hostile_lines_are_refused_or_taken_with_care() {
    let cases: Vec<Value> = serde_json::from_slice(&golden("hostile.json")).unwrap();
    let mut taken = BTreeSet::new();
    for case in &cases {
        let text = |name: &str| case[name].as_str().unwrap();
        if let Ok(read) = outcome(text("op"), text("line").as_bytes()) {
            assert!(TAKEN.contains(&text("why")), "{}: believed: {read}", text("why"));
            taken.insert(text("why"));
        }
    }
    let never: Vec<_> = TAKEN.iter().filter(|why| !taken.contains(*why)).collect();
    assert!(never.is_empty(), "refused, against what stands here: {never:?}");
}

/// Every cut and every changed byte of real answers: nothing panics, and a cut one is never believed.
#[test]
fn no_cut_and_no_flipped_byte_does_harm() {
    for (name, op) in
        [("observe-busy.json", "observe"), ("survey.json", "survey"), ("start-vm-failed.json", "start-vm")]
    {
        let compact = serde_json::from_slice::<Value>(&golden(name)).unwrap().to_string().into_bytes();
        // All of the head, then one in seven: the rest repeats itself.
        let places = || (0..compact.len()).filter(|at| *at < 600 || at % 7 == 0);
        for at in places() {
            assert!(outcome(op, &compact[..at]).is_err(), "{name} cut at {at}");
        }
        for at in places() {
            let mut changed = compact.clone();
            changed[at] = changed[at].wrapping_add(1);
            drop(outcome(op, &changed));
        }
    }
}

/// What a device says of itself comes from its firmware.
#[test]
fn a_number_that_cannot_be_is_none_and_hides_nothing() {
    let whole = serde_json::from_slice::<Value>(&golden("survey.json")).unwrap();
    for odd in [json!(-1), json!(u64::MAX), json!(300), json!(1.5)] {
        let mut answer = whole.clone();
        let device = &mut answer["result"]["devices"][0];
        for name in ["sub_class", "bar_types", "interrupt_support", "interrupt_messages", "device_type", "numa_node"] {
            device[name] = odd.clone();
        }
        let id = answer["id"].as_u64().unwrap();
        let survey: super::Survey = read(answer.to_string().as_bytes(), id).unwrap().unwrap();
        assert_eq!(survey.devices.len(), whole["result"]["devices"].as_array().unwrap().len(), "{odd}");
    }
}

#[test]
fn null_is_neither_a_result_nor_an_error() {
    let result = json!({ "changed": true, "seen": {} });
    let error = serde_json::from_slice::<Value>(&golden("refused.json")).unwrap()["error"].clone();
    let read = |answer: Value| read::<Stepped>(answer.to_string().as_bytes(), 7);
    assert!(read(json!({ "id": 7, "ok": true, "result": result })).is_ok());
    assert!(read(json!({ "id": 7, "ok": false, "error": error })).is_ok());
    for answer in [
        json!({ "id": 7, "ok": true, "result": result, "error": null }),
        json!({ "id": 7, "ok": false, "error": error, "result": null }),
        json!({ "id": 7, "ok": true, "result": null }),
        json!({ "id": 7, "ok": false, "error": null }),
        json!({ "id": 7, "ok": true }),
        json!({ "id": 7, "ok": true, "result": result, "error": error }),
    ] {
        assert!(read(answer.clone()).is_err(), "{answer}");
    }
}

#[test]
fn instance_ids_say_what_a_device_is_whoever_has_it() {
    let id = |text: &str| text.parse::<look::InstanceId>();
    let host = id(r"PCI\VEN_10DE&DEV_25B6&SUBSYS_157E10DE&REV_A1\4&23AD3A43&0&0019").unwrap();
    assert_eq!(host.pci.to_string(), "10de:25b6:10de:157e");
    assert_eq!(id(r"PCIP\VEN_10DE&DEV_25B6&SUBSYS_157E10DE&REV_A1\4&23AD3A43&0&0019").unwrap(), host);
    assert_eq!(id(r"PCI\VEN_10DE&DEV_25B6&REV_A1\x").unwrap().pci.to_string(), "10de:25b6");
    for bad in [
        "",
        r"PCI\",
        r"PCI\VEN_10DE\x",
        r"PCI\VEN_10DE&DEV_25B6",
        r"PCI\VEN_10DE&DEV_25B6\",
        r"PCI\VEN_10de&DEV_25B6\x",
        r"PCI\VEN_10DE&DEV_25B6&SUBSYS_1\x",
        r"PCI\VEN_10DE&DEV_25B6&SUBSYS_157E10D\x",
        r"PCI\VEN_10DE&DEV_+5B6\x",
        r"ROOT\VEN_10DE&DEV_25B6\x",
        "PCI\\VEN_10DE&DEV_25B6&SUBSYS_\u{e9}\u{e9}\u{e9}\u{e9}\\x",
        "PCI\\VEN_10DE&DEV_25B6\\\n",
    ] {
        assert!(id(bad).is_err(), "{bad:?}");
    }
}
