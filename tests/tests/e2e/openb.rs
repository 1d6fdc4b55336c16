//! A real cluster's inventory and its requests.

use berth_tests::process::{Dev, berth, other, root, run_within, skip, wait_until};
use std::path::PathBuf;
use std::time::Duration;

const NODES: u64 = 1213;
/// From the start of the process to the last node ready.
const CONNECTED: Duration = Duration::from_secs(30);
/// The controller recomputes its invariants once a minute.
const CHECKED: Duration = Duration::from_secs(90);
/// One replay on a debug build and two cores.
const REPLAYED: Duration = Duration::from_secs(600);

/// A file of the trace, which lies beside the repository where somebody has put it.
fn trace(name: &str) -> Option<String> {
    let path: PathBuf = root().join("../shared/data/openb").join(name);
    path.exists().then(|| path.display().to_string())
}

#[test]
fn the_whole_cluster_connects_and_both_pod_lists_run_through() -> anyhow::Result<()> {
    let test = "the_whole_cluster_connects_and_both_pod_lists_run_through";
    let lists = ["openb_pod_list_default.csv", "openb_pod_list_gpuspec33.csv"].map(trace);
    let (Some(fleet), [Some(default), Some(by_model)]) = (trace("openb_node_list_gpu_node.csv"), lists) else {
        skip(test, "the openb trace is not in ../shared/data/openb");
        return Ok(());
    };
    // Built before the clock runs.
    berth()?;
    let begun = std::time::Instant::now();
    let dev = Dev::start(&["--fleet", &fleet])?;
    dev.wait_ready(NODES, CONNECTED)?;
    let connected = begun.elapsed();
    assert!(connected <= CONNECTED, "{NODES} nodes took {connected:?}");

    for (list, args) in [(&default, &["--drain"][..]), (&by_model, &["--keep", "--wait-active"])] {
        let mut replay = other(env!("CARGO_BIN_EXE_replay"));
        replay.args([list.as_str(), "--endpoint", &dev.endpoint, "-o", "json"]).args(args);
        let report = run_within(REPLAYED, replay)?.expect(0)?.json()?;
        assert_eq!(report["arrived"], 3986, "{report:#}");
        assert_eq!(report["errors"].as_array().map(Vec::len), Some(0), "{report:#}");
        assert_eq!(report["disagreements"].as_array().map(Vec::len), Some(0), "{report:#}");
        let refused: u64 = report["refused"].as_object().unwrap().values().filter_map(serde_json::Value::as_u64).sum();
        assert_eq!(report["placed"].as_u64().unwrap() + refused, 3986, "everybody got an answer: {report:#}");
        println!("{list}: {report}");
    }

    // The controller's own recomputation of all invariants, after everything that happened.
    let mut status = serde_json::Value::Null;
    let first = dev.run(&["status", "-o", "json"])?.expect(0)?.json()?["checkedAt"].clone();
    let checked = wait_until(CHECKED, || {
        status = dev.run(&["status", "-o", "json"])?.expect(0)?.json()?;
        Ok(status["checkedAt"].is_string() && status["checkedAt"] != first)
    })?;
    assert!(checked, "the invariants are not checked: {status:#}");
    assert!(status["violations"].as_array().is_none_or(Vec::is_empty), "{status:#}");
    Ok(())
}
