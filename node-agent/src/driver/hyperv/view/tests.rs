//! Looks of real shape and what the brain is shown of them.

use super::super::answer::{self, Survey as Surveyed};
use super::*;
use expect_test::{Expect, expect};
use serde_json::{Value, json};
use std::fmt::Write as _;

const A2: [&str; 2] = ["PCIROOT(0)#PCI(0301)#PCI(0000)", "PCIROOT(0)#PCI(0301)#PCI(0001)"];

fn golden(name: &str) -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/hyperv/golden").join(name);
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

fn look(answer: &Value) -> Look {
    answer::read(answer.to_string().as_bytes(), 7).unwrap().unwrap()
}

fn measured() -> Measured {
    let survey: Surveyed = answer::read(golden("survey.json").to_string().as_bytes(), 7).unwrap().unwrap();
    let mut measured = Measured::new();
    measure(&mut measured, survey.devices);
    measured
}

fn shown(view: &HostView) -> String {
    let mut text = String::new();
    for gpu in view.gpus.values() {
        let survey = &gpu.survey;
        writeln!(
            text,
            "{} {} {:?} {:?} low {} MiB high {} MiB with {}",
            gpu.address,
            survey.model,
            gpu.state,
            survey.verdict,
            survey.mmio.low_bytes / MIB,
            survey.mmio.high_bytes / MIB,
            survey.companions.len()
        )
        .unwrap();
    }
    for (address, state) in &view.companions {
        writeln!(text, "  {address} {state:?}").unwrap();
    }
    for vm in view.vms.values() {
        writeln!(text, "{} {:?} {:?}", vm.vm.name, vm.vm.state, vm.vm.devices.len()).unwrap();
    }
    text
}

fn check(look: &Look, measured: &Measured, expected: &Expect) {
    expected.assert_eq(&shown(&view(look, &look.boot, &Host::default(), measured, &Guests::new())));
}

#[test]
fn a_host_at_rest_shows_its_cards_and_not_the_management_controllers_display() {
    let golden = golden("observe.json");
    let look = look(&golden);
    assert!(golden.to_string().contains("VEN_1A03") && needs_survey(&look, &Measured::new()));
    let measured = measured();
    assert!(!needs_survey(&look, &measured));
    check(
        &look,
        &measured,
        &expect![[r#"
            PCIROOT(0)#PCI(0301)#PCI(0000) A2 Host { driver: None } Assignable low 17 MiB high 16433 MiB with 1
            PCIROOT(20)#PCI(0300)#PCI(0000)#PCI(0000)#PCI(0000) A16 Host { driver: None } Assignable low 16 MiB high 16432 MiB with 0
            PCIROOT(20)#PCI(0300)#PCI(0000)#PCI(0400)#PCI(0000) A16 Host { driver: None } Assignable low 16 MiB high 16432 MiB with 0
            PCIROOT(20)#PCI(0300)#PCI(0000)#PCI(0800)#PCI(0000) A16 Host { driver: None } Assignable low 16 MiB high 16432 MiB with 0
            PCIROOT(20)#PCI(0300)#PCI(0000)#PCI(0C00)#PCI(0000) A16 Host { driver: None } Assignable low 16 MiB high 16432 MiB with 0
              PCIROOT(0)#PCI(0301)#PCI(0001) Host { driver: Bound }
            Büro – 会议室 №7 'x' $(1) Off 0
            ubuntu Off 0
        "#]],
    );
}

#[test]
fn a_busy_host_shows_who_has_what_and_forgets_nothing_that_was_measured() {
    let look = look(&golden("observe-busy.json"));
    check(
        &look,
        &measured(),
        &expect![[r#"
            PCIROOT(0)#PCI(0301)#PCI(0000) A2 Attached { vm: VmId("8fce3318-aa0f-4de3-8664-278533573cd2") } Assignable low 17 MiB high 16433 MiB with 1
            PCIROOT(20)#PCI(0300)#PCI(0000)#PCI(0000)#PCI(0000) A16 Host { driver: Disabled } Assignable low 16 MiB high 16432 MiB with 0
            PCIROOT(20)#PCI(0300)#PCI(0000)#PCI(0400)#PCI(0000) A16 Pooled Assignable low 16 MiB high 16432 MiB with 0
            PCIROOT(20)#PCI(0300)#PCI(0000)#PCI(0800)#PCI(0000) A16 Host { driver: None } Assignable low 16 MiB high 16432 MiB with 0
              PCIROOT(0)#PCI(0301)#PCI(0001) Attached { vm: VmId("8fce3318-aa0f-4de3-8664-278533573cd2") }
            Büro – 会议室 №7 'x' $(1) Saved 1
            ubuntu Running 2
        "#]],
    );
    // An agent that started just now has measured nothing: what cannot be measured is not called assignable.
    check(
        &look,
        &Measured::new(),
        &expect![[r#"
            PCIROOT(0)#PCI(0301)#PCI(0000) A2 Attached { vm: VmId("8fce3318-aa0f-4de3-8664-278533573cd2") } NotMeasured low 16 MiB high 16416 MiB with 1
            PCIROOT(20)#PCI(0300)#PCI(0000)#PCI(0000)#PCI(0000) A16 Host { driver: Disabled } NotMeasured low 16 MiB high 16416 MiB with 0
            PCIROOT(20)#PCI(0300)#PCI(0000)#PCI(0400)#PCI(0000) A16 Pooled NotMeasured low 16 MiB high 16416 MiB with 0
            PCIROOT(20)#PCI(0300)#PCI(0000)#PCI(0800)#PCI(0000) A16 Host { driver: None } NotMeasured low 16 MiB high 16416 MiB with 0
              PCIROOT(0)#PCI(0301)#PCI(0001) Attached { vm: VmId("8fce3318-aa0f-4de3-8664-278533573cd2") }
            Büro – 会议室 №7 'x' $(1) Saved 1
            ubuntu Running 2
        "#]],
    );
}

/// A look at the A2 alone, changed.
fn changed(change: impl FnOnce(&mut Value)) -> HostView {
    let mut answer = golden("observe.json");
    answer["result"]["functions"].as_array_mut().unwrap().truncate(2);
    change(&mut answer["result"]);
    let look = look(&answer);
    view(&look, &look.boot, &Host::default(), &measured(), &Guests::new())
}

#[test]
fn what_two_listings_say_differently_is_unknown_and_what_shows_nowhere_still_belongs_to_its_card() {
    let at = |which: usize| -> DeviceAddress { A2[which].parse().unwrap() };
    let both = changed(|result| {
        let mut pooled = result["functions"][0].clone();
        pooled
            .as_object_mut()
            .unwrap()
            .retain(|name, _| ["location_path", "instance_id", "base_class"].contains(&name.as_str()));
        pooled["native_pool"] = Value::Null;
        result["pool"] = json!([pooled]);
    });
    assert_eq!(both.state(&at(0)), GpuState::Unknown);
    let no_code = changed(|result| result["functions"][0]["problem"] = Value::Null);
    assert_eq!(no_code.state(&at(0)), GpuState::Unknown);
    let half = changed(|result| drop(result["functions"].as_array_mut().unwrap().remove(1)));
    assert_eq!(half.gpus[&at(0)].survey.companions, [at(1)]);
    assert_eq!(half.state(&at(1)), GpuState::Unknown);
    let restart = changed(|result| result["functions"][1]["problem"] = json!(14));
    assert_eq!(restart.gpus[&at(0)].health, GpuHealth::NeedsHostReboot);
    // In the hands of a VM although the host lists it: the VM's word goes first.
    let listed = changed(|result| {
        result["vms"][0]["devices"] = json!([{ "location_path": A2[0], "instance_id": null, "pool": null }]);
    });
    assert_eq!(listed.state(&at(0)).name(), "Attached");
}

#[test]
fn a_pool_that_does_not_tell_classes_is_read_by_ids() {
    let pooled = changed(|result| {
        let functions = result["functions"].as_array_mut().unwrap();
        let ids: Vec<_> = functions.drain(..).map(|f| (f["location_path"].clone(), f["instance_id"].clone())).collect();
        let odd = json!({ "location_path": "PCIROOT(9)#PCI(0100)", "instance_id": "PCIP\\VEN_144D&DEV_A820\\x", "base_class": null,
            "native_pool": null });
        result["pool"] = ids
            .into_iter()
            .map(|(path, id)| json!({ "location_path": path, "instance_id": id, "base_class": null, "native_pool": null }))
            .chain([odd])
            .collect();
    });
    let gpus: Vec<_> = pooled.gpus.keys().map(ToString::to_string).collect();
    assert_eq!(gpus, [A2[0]], "a disk is no GPU, and the sound function is the card's");
    assert_eq!(pooled.companions.len(), 1);
}

/// A survey costs the host much more than a look: none is asked for that would bring nothing new.
#[test]
fn a_survey_is_wanted_only_where_it_can_tell_something_new() {
    let mut answer = golden("observe.json");
    let functions = answer["result"]["functions"].as_array_mut().unwrap();
    let gpu = functions.remove(0);
    functions.truncate(1);
    answer["result"]["pool"] = json!([{
        "location_path": gpu["location_path"], "instance_id": gpu["instance_id"], "base_class": null, "native_pool": null,
    }]);
    assert!(!needs_survey(&look(&answer), &Measured::new()), "the sound function of a GPU in the pool");
    answer["result"]["pool"] = json!([]);
    answer["result"]["functions"] = json!([gpu]);
    assert!(needs_survey(&look(&answer), &Measured::new()));
    assert!(!needs_survey(&look(&answer), &measured()));
    // Known, but nobody could measure it then.
    let mut unmeasured = measured();
    unmeasured.get_mut(&A2[0].parse::<LocationPath>().unwrap()).unwrap().windows = None;
    assert!(needs_survey(&look(&answer), &unmeasured));
    answer["result"]["functions"][0]["problem"] = json!(22);
    assert!(!needs_survey(&look(&answer), &unmeasured));
    // Another card at a known place.
    let id = gpu["instance_id"].as_str().unwrap().replace("0019", "001A");
    answer["result"]["functions"][0]["instance_id"] = json!(id);
    assert!(needs_survey(&look(&answer), &measured()));
}

#[test]
fn nobodys_devices_are_known_by_their_ids() {
    for id in ["1a03:2000", "102b:0534", "102b:0536", "19e5:1711", "1414:0006", "10de:22a3", "10de:1af1"] {
        assert!(is_nobodys(&id.parse().unwrap()), "{id}");
    }
    for id in ["10de:25b6:10de:157e", "10de:2331", "1002:744c", "102b:0520", "102b:0540", "1a03:1150"] {
        assert!(!is_nobodys(&id.parse().unwrap()), "{id}");
    }
}

/// Present, and what it is or where is not told: the card at its place is neither gone nor free.
#[test]
fn a_device_that_does_not_say_where_it_is_keeps_its_place_as_unknown() {
    let at: DeviceAddress = A2[0].parse().unwrap();
    let seen = |change: &dyn Fn(&mut Value)| {
        let mut golden = golden("observe.json");
        change(&mut golden["result"]);
        look(&golden)
    };
    let shown = |look: &Look, measured: &Measured| view(look, &look.boot, &Host::default(), measured, &Guests::new());
    let lost = seen(&|result| {
        let function = result["functions"].as_array_mut().unwrap().remove(0);
        assert_eq!(function["location_path"], A2[0]);
        result["unreadable"] = json!([function["instance_id"], "PCI\\VEN_8086&DEV_1521\\x", "nonsense"]);
    });
    let view = shown(&lost, &measured());
    assert_eq!(view.gpus[&at].state, GpuState::Unknown);
    assert!(nowhere(&lost, &measured()).is_none());
    // Seen nowhere before, it may be any card: such a look is not all there is. What is no GPU is no matter.
    assert_eq!(nowhere(&lost, &Measured::new()).map(|id| id.pci.vendor), Some(0x10de));
    assert!(!shown(&lost, &Measured::new()).gpus.contains_key(&at));
    // Where it is, and not what.
    let odd = seen(&|result| result["functions"][0]["base_class"] = Value::Null);
    assert_eq!(shown(&odd, &measured()).gpus[&at].state, GpuState::Unknown);
    assert_eq!(shown(&odd, &Measured::new()).gpus[&at].survey.verdict, Verdict::NotMeasured);
}

#[test]
fn wide_windows_below_four_gib_count_for_above_and_legacy_ones_for_nothing() {
    let device = |windows: &[(u64, u64)], bar_types| {
        let mut device = measured().remove(&A2[0].parse().unwrap()).unwrap();
        device.windows = Some(windows.to_vec());
        device.bar_types = Some(bar_types);
        device
    };
    let size = |device: &Device| windows_of(device, std::iter::empty());
    let low = [(0xa_0000, 0x2_0000), (0xe000_0000, 16 * MIB), (0xd000_0000, 256 * MIB)];
    let both = MmioSize { low_bytes: 272 * MIB, high_bytes: 272 * MIB };
    assert_eq!(size(&device(&low, 0x0200_0100)), both);
    // Windows that are not prefetchable may be of 64 bits, too.
    assert_eq!(size(&device(&low, 0x0000_0300)), both);
    assert_eq!(size(&device(&low, 0x0002_0001)), MmioSize { high_bytes: 0, ..both });
    // One of them lies above: that says nothing of those below.
    let mixed = [low.as_slice(), &[(0x40_0000_0000, 16 << 30)]].concat();
    assert_eq!(size(&device(&mixed, 0x0200_0100)), MmioSize { high_bytes: 272 * MIB + (16 << 30), ..both });
}

/// Windows gives a device without room (12, 29) no windows, and nobody knows whether it gives one without a driver (28)
/// any: none is not a size.
#[test]
fn a_gpu_without_windows_is_not_measured_and_keeps_what_is_known_of_it() {
    let at: LocationPath = A2[0].parse().unwrap();
    let look = look(&golden("observe.json"));
    let seen = |measured: &Measured| {
        let seen = view(&look, &look.boot, &Host::default(), measured, &Guests::new());
        seen.gpus[&A2[0].parse::<DeviceAddress>().unwrap()].survey.clone()
    };
    let with = |change: &dyn Fn(&mut Device)| {
        let mut measured = measured();
        change(measured.get_mut(&at).unwrap());
        measured
    };
    let unlisted = |measured: &Measured| {
        let mut look = look.clone();
        let mut measured = measured.clone();
        let strange = |instance: &mut InstanceId| instance.pci = "10de:fffe".parse().unwrap();
        strange(&mut look.functions.get_mut(&at).unwrap().instance_id);
        strange(&mut measured.get_mut(&at).unwrap().instance_id);
        let seen = view(&look, &look.boot, &Host::default(), &measured, &Guests::new());
        let survey = &seen.gpus[&A2[0].parse::<DeviceAddress>().unwrap()].survey;
        (survey.verdict.clone(), survey.mmio)
    };
    assert_eq!(seen(&measured()).verdict, Verdict::Assignable);
    let table = cards::by_model(&"A2".parse().unwrap()).unwrap().mmio();
    for windows in [vec![], vec![(0xa_0000, 0x2_0000)]] {
        let empty = with(&|device| device.windows = Some(windows.clone()));
        // The table knows the size of this card, and what it does not know is not measured.
        assert_eq!((seen(&empty).verdict, seen(&empty).mmio), (Verdict::Assignable, table));
        assert_eq!(unlisted(&empty), (Verdict::NotMeasured, MmioSize::default()));
        // A later survey that finds none does not undo an earlier one.
        let mut known = measured();
        measure(&mut known, empty.clone().into_iter().collect());
        assert_eq!(known, measured());
        let mut unknown = empty.clone();
        measure(&mut unknown, measured());
        assert_eq!(unknown, measured());
        // It is asked for again once the card works, and not before.
        let mut answer = golden("observe.json");
        let problem = |answer: &mut Value, code: u32| {
            answer["result"]["functions"][0]["problem"] = json!(code);
            needs_survey(&super::tests::look(answer), &empty)
        };
        assert_eq!([28, 12, 22, 0].map(|code| problem(&mut answer, code)), [false, false, false, true]);
    }
    let quiet = |support| with(&move |device| (device.interrupts, device.interrupt_support) = (Some(0), support));
    assert_eq!(seen(&quiet(None)).verdict, Verdict::NotMeasured);
    assert_eq!(seen(&quiet(Some(1))).verdict, Verdict::Blocked(vec![Finding::LineInterruptsOnly]));
    assert_eq!(seen(&quiet(Some(3))).verdict, Verdict::Assignable);
}

#[test]
fn what_a_pool_of_the_cluster_has_is_told_and_is_nobodys() {
    let at: DeviceAddress = A2[0].parse().unwrap();
    let native = |view: &HostView| match &view.gpus[&at].health {
        GpuHealth::Quarantined(QuarantineReason::NativePool { pool }) => Some(pool.clone()),
        GpuHealth::Ok | GpuHealth::Quarantined(_) | GpuHealth::NeedsHostReboot => None,
    };
    // A VM has the sound function of its card from a pool: the whole card is the cluster's.
    let listed = changed(|result| {
        result["vms"][0]["devices"] = json!([{ "location_path": A2[1], "instance_id": null, "pool": "GPUs" }]);
    });
    assert_eq!(native(&listed).as_deref(), Some("GPUs"));
    // No device was chosen for it yet: the record is not stale, and no device is concerned.
    let late = changed(|result| {
        result["vms"][0]["devices"] = json!([{ "location_path": null, "instance_id": null, "pool": "GPUs" }]);
    });
    let vm = late.vms.values().find(|vm| !vm.vm.devices.is_empty()).unwrap();
    assert_eq!(vm.vm.devices, [VmDevice::Pool { pool: "GPUs".to_owned(), address: None }]);
    assert_eq!(native(&late), None);
    // In the root pool it is Berth's, whatever the case of its name.
    for (pool, whose) in [(json!("GPUs"), Some("GPUs")), (json!("primordial"), None), (Value::Null, None)] {
        let pooled = changed(|result| {
            let function = result["functions"].as_array_mut().unwrap().remove(0);
            result["pool"] = json!([{
                "location_path": function["location_path"], "instance_id": function["instance_id"],
                "base_class": 3, "native_pool": pool,
            }]);
        });
        assert_eq!((native(&pooled).as_deref(), pooled.state(&at)), (whose, GpuState::Pooled));
    }
    // A problem code is told as it is.
    let problem = changed(|result| result["functions"][0]["problem"] = json!(43));
    assert_eq!(problem.gpus[&at].problem, Some(43));
}

/// What a node's policy accepts, and what no policy can make work.
#[test]
fn a_policy_accepts_what_may_work_and_nothing_else() {
    let mut measured = measured();
    let device = measured.get_mut(&A2[0].parse::<LocationPath>().unwrap()).unwrap();
    device.reasons = vec![Finding::NoAcs, Finding::LineInterruptsOnly];
    let look = look(&golden("observe.json"));
    let verdict = |reasons: &[Finding], accepted: &[Finding]| {
        let seen = view(&look, &look.boot, &Host { reasons, accepted }, &measured, &Guests::new());
        seen.gpus[&A2[0].parse::<DeviceAddress>().unwrap()].survey.verdict.clone()
    };
    let all = vec![Finding::NoAcs, Finding::LineInterruptsOnly, Finding::NoIommu];
    assert_eq!(verdict(&[Finding::NoIommu], &[]), Verdict::Blocked(all.clone()));
    assert_eq!(verdict(&[Finding::NoIommu], &all), Verdict::Blocked(vec![Finding::LineInterruptsOnly]));
    assert_eq!(verdict(&[Finding::HostEdition], &[Finding::HostEdition, Finding::NoAcs]), {
        Verdict::Blocked(vec![Finding::LineInterruptsOnly, Finding::HostEdition])
    });
}
