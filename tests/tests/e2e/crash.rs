//! kill -9 of the controller and all its agents at random moments of a replay: nothing acknowledged is lost, nothing is
//! doubled.

use super::READY;
use berth_tests::process::{Dev, Process, free_port, other, run, wait_until};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

const ROUNDS: u64 = 20;
const SEED: u64 = 0x0be7_7400;
const NODES: u64 = 40;
/// Pods of one round's replay.
const PODS: usize = 200;
/// A replay of so many pods writes more lines than this, so a kill at any of them is one in the midst of it.
const LINES: usize = 350;
/// Every fourth kill comes up to so much later, when nothing is asked for any more and the agents still work.
const LATER_MS: u64 = 1500;

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
        let began = Instant::now();
        let journal = dir.path().join(format!("journal-{round}"));
        let run_id = format!("round{round}-");
        let journal_arg = journal.display().to_string();
        let args = [list.as_str(), "--run-id", &run_id, "--journal", &journal_arg, "--in-flight", "8"];
        let mut replaying = Process::start(replay(&dev, &args))?;

        // The moment of the kill is the input of this test, drawn as progress, so that it means the same on any machine.
        let line = random.random_range(1..LINES);
        let later =
            if round % 4 == 3 { Duration::from_millis(random.random_range(0..LATER_MS)) } else { Duration::ZERO };
        let moment = format!("after line {line} of the journal and {later:?}");
        let mut ended = false;
        wait_until(READY, || {
            ended = replaying.ended_within(Duration::ZERO)?.is_some();
            Ok(ended || lines(&journal) >= line)
        })?;
        ended = ended || replaying.ended_within(later)?.is_some();
        anyhow::ensure!(
            lines(&journal) > 0,
            "round {round}: nothing was acknowledged; the replay said:\n{}",
            replaying.log()
        );
        let before = lines(&journal);
        dev.kill()?;

        dev = start(&listen, &data)?;
        // The replay repeats with the same ids what was not answered, goes on to its end, and checks.
        let clean = replaying.ended_within(READY * 3)?;
        let clean = clean.is_some_and(|status| status.success());
        anyhow::ensure!(
            clean,
            "round {round}, killed {moment}: the replay said:\n{}\n\n{}",
            replaying.log(),
            dev.log()
        );
        let check = run(replay(&dev, &["--check-journal", &journal_arg]))?;
        anyhow::ensure!(check.code == Some(0), "round {round}, killed {moment}: {}\n{}", check.stdout, check.stderr);

        killed_in_flight += u64::from(!ended && lines(&journal) > before);

        // Make room for the next round.
        release_all(&dev, &run_id)?;
        println!("round {round}: killed {moment}, whole again after {:.1?}", began.elapsed());
    }
    println!("{killed_in_flight} of {ROUNDS} kills hit calls that were under way");
    assert!(killed_in_flight > ROUNDS / 2, "only {killed_in_flight} kills hit calls under way: they come too late");
    Ok(())
}

/// How many results a journal holds.
fn lines(journal: &Path) -> usize {
    std::fs::read_to_string(journal).map_or(0, |text| text.lines().count())
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
