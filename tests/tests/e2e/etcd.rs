//! `berth dev --etcd`: the same demo on the production store, which outlives it.

use super::READY;
use berth_tests::etcd::Etcd;
use berth_tests::process::{Dev, Process, binary, other};
use std::time::Duration;

/// `berth/v1/leader` as etcd's JSON writes keys.
const LEADER: &str = "YmVydGgvdjEvbGVhZGVy";

fn start(etcd: &Etcd, data_dir: &std::path::Path) -> Dev {
    let dir = data_dir.display().to_string();
    let dev = Dev::start(&["--nodes", "2", "--etcd", &etcd.endpoints().join(","), "--data-dir", &dir]).unwrap();
    dev.wait_ready(2, READY).unwrap();
    dev
}

#[test]
fn what_is_placed_on_etcd_is_there_after_kill_9() {
    let Some(etcd) = Etcd::one("what_is_placed_on_etcd_is_there_after_kill_9").unwrap() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dev = start(&etcd, dir.path());
    let status = dev.run(&["status", "-o", "json"]).unwrap().expect(0).unwrap().json().unwrap();
    assert_eq!(status["store"], "etcd", "{status}");
    dev.run(&["place", "kept", "--vm", "kept", "--wait"]).unwrap().expect(0).unwrap();
    let placement =
        |dev: &Dev| dev.run(&["get", "placements", "kept", "-o", "json"]).unwrap().expect(0).unwrap().json().unwrap();
    let before = placement(&dev);
    dev.kill().unwrap();
    assert!(!dir.path().join("store").exists(), "the truth is in etcd alone");

    let dev = start(&etcd, dir.path());
    let after = placement(&dev);
    for field in ["uid", "assignment", "phase"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    dev.run(&["release", "kept", "--wait"]).unwrap().expect(0).unwrap();
}

#[test]
fn a_controller_that_lost_its_lead_ends() {
    let Some(etcd) = Etcd::one("a_controller_that_lost_its_lead_ends").unwrap() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut dev = start(&etcd, dir.path());
    let deleted = etcd.call("v3/kv/deleterange", &format!(r#"{{"key": "{LEADER}"}}"#)).unwrap();
    assert_eq!(deleted["deleted"], "1", "somebody led: {deleted}");
    let ended = dev.ended_within(Duration::from_secs(60)).unwrap();
    let status = ended.unwrap_or_else(|| panic!("it goes on though it does not lead; it said:\n{}", dev.log()));
    assert!(!status.success());
    assert!(dev.log().contains("leadership was lost"), "{}", dev.log());
}

#[test]
fn an_etcd_that_is_not_there_is_named() {
    let port = berth_tests::process::free_port().unwrap();
    let endpoint = format!("localhost:{port}");
    let error = Dev::start(&["--nodes", "1", "--etcd", &endpoint]).unwrap_err().to_string();
    assert!(error.contains(&format!("etcd at {endpoint} cannot be used")), "{error}");
}

/// Supervisors give up on what ends at once again and again.
#[test]
fn a_controller_waits_for_an_etcd_that_does_not_answer_yet() {
    let Some(etcd) = Etcd::one("a_controller_waits_for_an_etcd_that_does_not_answer_yet").unwrap() else { return };
    let start = |endpoint: &str| {
        let mut controller = other(binary("berth-controller").unwrap());
        controller.args(["--listen", "127.0.0.1:0", "--etcd", endpoint]);
        Process::start(controller).unwrap()
    };
    let said = |process: &mut Process, what: &str| {
        process.wait_for_line(READY, |line| line.contains(what).then_some(())).unwrap();
    };
    let asleep = etcd.pause(0).unwrap();
    let mut controller = start(&etcd.endpoints().join(","));
    said(&mut controller, "waiting for etcd");
    drop(asleep);
    said(&mut controller, "serving");

    let nobody = format!("http://127.0.0.1:{}", berth_tests::process::free_port().unwrap());
    let mut waiting = start(&nobody);
    said(&mut waiting, "waiting for etcd");
    for mut told_to_end in [controller, waiting] {
        told_to_end.terminate().unwrap();
        let status = told_to_end.ended_within(READY).unwrap().expect("it ends when it is asked to");
        assert!(status.success(), "{status}; it said:\n{}", told_to_end.log());
    }
}
