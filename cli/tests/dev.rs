//! A whole Berth in one process: place, look, release, and all of it again after a restart.
#![cfg(feature = "dev")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use berth::args::Cli;
use berth::dev::{Options, Running, start};
use berth::error::Exit;
use berth::fleet;
use berth::output::{Style, system_clock};
use berth::progress::Progress;
use clap::Parser as _;
use std::path::Path;
use std::time::Duration;

async fn dev(data_dir: &Path) -> Running {
    dev_with(data_dir, true).await
}

async fn dev_with(data_dir: &Path, provision: bool) -> Running {
    dev_of(data_dir, provision, 3).await
}

async fn dev_of(data_dir: &Path, provision: bool, nodes: u32) -> Running {
    let options = Options {
        fleet: fleet::standard(nodes).unwrap(),
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: data_dir.to_owned(),
        step_delay: Some(Duration::ZERO),
        provision,
        etcd: Vec::new(),
    };
    let running = start(options).await.unwrap();
    running.ready(Duration::from_secs(30), &mut Progress::silent()).await.unwrap();
    running
}

async fn berth(running: &Running, line: &str) -> (Exit, String) {
    let endpoint = running.endpoint();
    let words = std::iter::once("berth").chain(line.split_whitespace()).chain(["--endpoint", &endpoint]);
    let cli = Cli::try_parse_from(words).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let style = Style { colour: false, clock: system_clock };
    let exit = berth::run(cli, &mut out, &mut err, style).await;
    out.extend_from_slice(&err);
    (exit, String::from_utf8(out).unwrap())
}

async fn good(running: &Running, line: &str) -> String {
    let (exit, text) = berth(running, line).await;
    assert_eq!(exit, Exit::Done, "{line}: {text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gpus_are_placed_survive_a_restart_and_are_released() {
    let dir = tempfile::tempdir().unwrap();
    let running = dev(dir.path()).await;
    let placed = good(&running, "place one --vm one --gpus 4 --model A16 --wait --timeout 60s").await;
    assert!(placed.contains("Active"), "{placed}");
    good(&running, "place two --vm two --gpus 2 --model A30 --wait --timeout 60s").await;
    running.stop().await;

    let running = dev(dir.path()).await;
    let seen = good(&running, "get placements").await;
    assert_eq!(seen.matches("Active").count(), 2, "{seen}");
    let described = good(&running, "describe placement one").await;
    assert!(described.contains("DeviceAssignment"), "{described}");
    assert_eq!(good(&running, "get gpus --state attached").await.lines().count(), 1 + 6);

    // The same VM name right after its release: its node may not have seen yet that the old VM is gone.
    good(&running, "release one --wait --timeout 60s").await;
    good(&running, "place one --vm one --gpus 1 --model L40S --wait --timeout 60s").await;
    for name in ["one", "two"] {
        good(&running, &format!("release {name} --wait --timeout 60s")).await;
    }
    let free = good(&running, "capacity").await;
    assert!(
        free.lines()
            .any(|line| line.split_whitespace().collect::<Vec<_>>() == ["A16", "12", "12", "12", "6", "3", "0", "0"]),
        "{free}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_with_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let running = dev(dir.path()).await;
    for (line, exit) in [
        ("place big --vm big --gpus 16", Exit::NotPlaceable),
        ("place none --vm v --model A17", Exit::NotFound),
        ("place p --vm v --model A16 --exclude-model A16", Exit::Usage),
        ("describe node hv-99", Exit::NotFound),
        ("describe gpu hv-01/0000:41:00.0", Exit::NotFound),
        ("release nobody", Exit::NotFound),
        ("status", Exit::Done),
        ("describe node hv-01", Exit::Done),
        ("get nodes --model L40S --state ready -o json", Exit::Done),
        ("get vms -o yaml", Exit::Done),
    ] {
        let (got, text) = berth(&running, line).await;
        assert_eq!(got, exit, "{line}: {text}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_an_agent_that_is_gone_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let running = dev(dir.path()).await;
    good(&running, "place one --vm one --node hv-03 --wait --timeout 60s").await;
    running.stop().await;

    let running = dev_of(dir.path(), true, 2).await;
    let active = good(&running, "describe placement one").await;
    assert!(active.contains("hv-03's agent is not connected"), "{active}");
    let (exit, text) = berth(&running, "release one --wait --timeout 1s").await;
    assert_eq!(exit, Exit::Failed, "{text}");
    let wanted =
        "one is still Releasing after 1s of waiting; it waits for hv-03's agent, which is not connected since ";
    assert!(text.contains(wanted), "{text}");
    let releasing = good(&running, "describe placement one").await;
    assert!(releasing.contains("It waits for hv-03's agent, which is not connected since "), "{releasing}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let running = dev(dir.path()).await;
    let again = Options {
        fleet: fleet::standard(3).unwrap(),
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: dir.path().to_owned(),
        step_delay: None,
        provision: false,
        etcd: Vec::new(),
    };
    let Err(error) = start(again).await else { panic!("two controllers share a store") };
    let text = error.to_string();
    assert!(text.contains("in use"), "{text}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_provisioning_system_a_hold_waits_and_expires() {
    let dir = tempfile::tempdir().unwrap();
    let running = dev_with(dir.path(), false).await;
    let (exit, text) = berth(&running, "place slow --vm slow --wait --timeout 200ms").await;
    assert_eq!(exit, Exit::Failed, "{text}");
    assert!(text.contains("slow is still Held after") && text.contains("describe placement slow"), "{text}");
    let (exit, text) = berth(&running, "place brief --vm brief --hold 1s --wait --timeout 60s").await;
    assert_eq!(exit, Exit::Failed, "{text}");
    assert!(text.contains("the hold expired") && text.contains("everything was given back"), "{text}");
    good(&running, "release slow --wait --timeout 60s").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smaller_fleet_on_the_same_data_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    dev(dir.path()).await.stop().await;
    let fleet = fleet::standard(2).unwrap();
    let listen = "127.0.0.1:0".parse().unwrap();
    let options =
        Options { fleet, listen, data_dir: dir.path().to_owned(), step_delay: None, provision: true, etcd: Vec::new() };
    let running = start(options).await.unwrap();
    running.ready(Duration::from_secs(30), &mut Progress::silent()).await.unwrap();
    assert_eq!(running.left_out(), 1);
    let nodes = good(&running, "get nodes").await;
    assert_eq!(nodes.matches("Lost").count(), 1, "{nodes}");
    running.stop().await;
}
