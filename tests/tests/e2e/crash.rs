//! kill -9 of the controller and all its agents at random moments of a replay: nothing acknowledged is lost, nothing is
//! doubled.

use super::READY;
use berth_tests::process::{Dev, Process, free_port, other, run, wait_until};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

const ROUNDS: u64 = 20;
const SEED: u64 = 0x0be7_7400;
const NODES: u64 = 40;
/// Pods of one round's replay.
const PODS: usize = 200;
/// The replay's calls take about as long as this on a slow machine; later kills hit the work of the agents.
const LATEST_KILL_MS: u64 = 2500;

/// A pod list with arrivals and departures, the same for the same seed.
fn pods(random: &mut StdRng) -> String {
    let mut list =
        "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\n"
            .to_owned();
    for pod in 0..PODS {
        let gpus = [1, 1, 1, 1, 2, 4][random.random_range(0..6)];
        let stays = random.random_range(1..60);
        writeln!(list, "pod-{pod:04},4000,8192,{gpus},1000,,LS,Running,{pod},{},{pod}", pod + stays).unwrap();
    }
    list
}

fn replay(dev: &Dev, args: &[&str]) -> std::process::Command {
    let mut replay = other(env!("CARGO_BIN_EXE_replay"));
    replay.args(["--endpoint", &dev.endpoint, "-o", "json"]).args(args);
    replay
}

fn start(listen: &str, data: &Path) -> anyhow::Result<Dev> {
    let (nodes, data) = (NODES.to_string(), data.display().to_string());
    let dev = Dev::start_at(listen, &["--nodes", &nodes, "--data-dir", &data])?;
    dev.wait_ready(NODES, READY)?;
    Ok(dev)
}

#[test]
fn kills_at_random_moments_lose_and_double_nothing() -> anyhow::Result<()> {
    println!("seed {SEED:#x}");
    let mut random = StdRng::seed_from_u64(SEED);
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let list = dir.path().join("pods.csv");
    std::fs::write(&list, pods(&mut random))?;
    let list = list.display().to_string();
    let listen = format!("127.0.0.1:{}", free_port()?);

    let mut dev = start(&listen, &data)?;
    let mut killed_in_flight = 0;
    for round in 0..ROUNDS {
        let journal = dir.path().join(format!("journal-{round}"));
        let run_id = format!("round{round}-");
        let journal_arg = journal.display().to_string();
        let args = [list.as_str(), "--run-id", &run_id, "--journal", &journal_arg, "--in-flight", "8"];
        let mut replaying = Process::start(replay(&dev, &args))?;

        // It has begun: at least one placement is acknowledged.
        let begun = wait_until(READY, || Ok(std::fs::metadata(&journal).is_ok_and(|file| file.len() > 0)))?;
        anyhow::ensure!(begun, "round {round}: nothing was acknowledged; the replay said:\n{}", replaying.log());
        // The moment of the kill is the input of this test, not a wait for something.
        let moment = Duration::from_millis(random.random_range(0..LATEST_KILL_MS));
        let ended = replaying.ended_within(moment)?;
        killed_in_flight += u64::from(ended.is_none());
        dev.kill()?;

        dev = start(&listen, &data)?;
        // The replay repeats with the same ids what was not answered, goes on to its end, and checks.
        let clean = replaying.ended_within(READY * 3)?;
        let clean = clean.is_some_and(|status| status.success());
        anyhow::ensure!(
            clean,
            "round {round}, killed after {moment:?}: the replay said:\n{}\n\n{}",
            replaying.log(),
            dev.log()
        );
        let check = run(replay(&dev, &["--check-journal", &journal_arg]))?;
        anyhow::ensure!(
            check.code == Some(0),
            "round {round}, killed after {moment:?}: {}\n{}",
            check.stdout,
            check.stderr
        );

        // Make room for the next round.
        release_all(&dev, &run_id)?;
    }
    println!("{killed_in_flight} of {ROUNDS} kills hit a replay that was under way");
    assert!(killed_in_flight > ROUNDS / 2, "only {killed_in_flight} kills hit a replay: they come too late");
    Ok(())
}

/// Releases everything that a round left.
fn release_all(dev: &Dev, prefix: &str) -> anyhow::Result<()> {
    for (_, name) in super::claims(dev)? {
        if name.starts_with(prefix) {
            let answer = berth_tests::http::post(
                &dev.endpoint,
                "/berth.v1.Placements/Release",
                &format!("{{\"name\": {name:?}}}"),
            )?;
            anyhow::ensure!(answer.status == 200, "release {name}: {}", answer.body);
        }
    }
    let mut left = Vec::new();
    let free = wait_until(READY, || {
        left = super::claims(dev)?;
        Ok(left.is_empty())
    })?;
    anyhow::ensure!(free, "still claimed after their release: {left:?}");
    Ok(())
}
