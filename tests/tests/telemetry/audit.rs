//! The audit: whatever is acknowledged is in it, exactly once, whoever is killed when; and nobody changes it unnoticed.

use super::scene::{PATIENCE, Scene};
use anyhow::{Context as _, bail, ensure};
use berth_proto::audit::{Mark, seal};
use berth_proto::v1::{AuditBlock, AuditMark};
use berth_store::audit::{BLOCKS, HEAD};
use berth_store::{Store as _, Transaction, Write};
use berth_store_etcd::{Etcd as Client, Options};
use berth_tests::etcd::Etcd;
use berth_tests::http;
use berth_tests::process::{Ran, berth, other, run, wait_until};
use prost::Message as _;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often the controller is killed.
const KILLS: u64 = 3;

/// A change that somebody was told has happened: what, and of which uid.
type Change = (String, String);

fn ask(endpoint: &str, method: &str, body: &str) -> anyhow::Result<Option<Value>> {
    match http::post(endpoint, &format!("/berth.v1.Placements/{method}"), body) {
        Ok(answer) if answer.status == 200 => Ok(Some(answer.json()?)),
        // Nobody was there, or it is not known: nothing was acknowledged.
        Ok(answer) if answer.status >= 500 || answer.status == 429 => Ok(None),
        Ok(answer) => bail!("{method}: {} {}", answer.status, answer.body),
        Err(_) => Ok(None),
    }
}

/// Holds GPUs for VMs that never come, and gives them back, until told to stop. Gives what was acknowledged.
fn work(endpoint: &str, stop: &AtomicBool) -> anyhow::Result<Vec<Change>> {
    let mut acknowledged = Vec::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let name = format!("held-{number}");
        let mut made = None;
        while made.is_none() && !stop.load(Ordering::Relaxed) {
            made = ask(endpoint, "Create", &Scene::request(&name, &name))?;
        }
        let Some(made) = made else { break };
        let uid = made["uid"].as_str().context("no uid")?.to_owned();
        acknowledged.push(("Create".to_owned(), uid.clone()));
        // Until it is done: what is held would fill the hosts.
        while ask(endpoint, "Release", &format!(r#"{{"name": "{name}"}}"#))?.is_none() {}
        acknowledged.push(("Release".to_owned(), uid));
    }
    Ok(acknowledged)
}

fn audit(scene: &Scene, args: &[&str]) -> anyhow::Result<Ran> {
    let mut command = other(berth()?);
    command.args(["audit", "--endpoint", &scene.endpoint]).args(args);
    run(command)
}

fn records(scene: &Scene) -> anyhow::Result<Vec<Value>> {
    let said = audit(scene, &["-o", "json"])?.expect(0)?;
    said.stdout.lines().map(|line| serde_json::from_str(line).context("no JSON")).collect()
}

/// The head, once nothing is left to be sealed.
fn head(scene: &Scene) -> anyhow::Result<String> {
    let mut last = String::new();
    let sealed = wait_until(PATIENCE, || {
        let said = audit(scene, &["--verify", "-o", "table"])?.expect(0)?;
        last = said.stdout;
        Ok(!last.contains("not sealed"))
    })?;
    ensure!(sealed, "the audit is never sealed:\n{last}\n{}", scene.controller.log());
    let head = last.lines().last().and_then(|line| line.split_once("head ")).context("no head")?.1;
    Ok(head.trim().to_owned())
}

#[test]
fn whatever_was_acknowledged_is_in_it_once_and_nobody_changes_it_unnoticed() -> anyhow::Result<()> {
    let Some(etcd) = Etcd::one("whatever_was_acknowledged_is_in_the_audit")? else { return Ok(()) };
    let collector = berth_tests::otlp::Collector::start()?;
    let mut scene = Scene::start(&collector.endpoint(), &["--etcd".to_owned(), etcd.endpoints().join(",")])?;
    let stop = Arc::new(AtomicBool::new(false));
    let worker = std::thread::spawn({
        let (endpoint, stop) = (scene.endpoint.clone(), Arc::clone(&stop));
        move || work(&endpoint, &stop)
    });
    for kill in 0..KILLS {
        // At another moment of the second between two sealings each time.
        std::thread::sleep(Duration::from_millis(2_000 + 350 * kill));
        scene = scene.crash()?;
        let leads = wait_until(PATIENCE, || {
            Ok(scene.call("Operations/Status", "{}").is_ok_and(|status| status["leader"] == true))
        })?;
        ensure!(leads, "it does not lead again:\n{}", scene.controller.log());
    }
    std::thread::sleep(Duration::from_secs(3));
    stop.store(true, Ordering::Relaxed);
    let acknowledged = worker.join().map_err(|_| anyhow::anyhow!("the worker crashed"))??;
    ensure!(acknowledged.len() > 20, "hardly anything was done: {}", acknowledged.len());

    // What is refused is told, too.
    scene.call("Placements/Create", &Scene::request("taken", "vm-taken"))?;
    let again = Scene::request("taken", "vm-other").replace("\"requestId\": \"taken\"", "\"requestId\": \"other\"");
    let refused = http::post(&scene.endpoint, "/berth.v1.Placements/Create", &again)?;
    ensure!(refused.status == 409, "{} {}", refused.status, refused.body);

    // A refusal is in the leader's memory until the next sealing.
    let refusal = |record: &Value| record["refused"] == "NAME_TAKEN" && record["placement"] == "taken";
    let told = wait_until(PATIENCE, || Ok(records(&scene)?.iter().any(refusal)))?;
    ensure!(told, "the refused call is not told");
    let written_down = head(&scene)?;
    let mut seen: BTreeMap<Change, usize> = BTreeMap::new();
    let records = records(&scene)?;
    for record in &records {
        let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        if text("refused").is_empty() {
            *seen.entry((text("action"), text("uid"))).or_default() += 1;
        }
        ensure!(text("action") == "Phase" || text("caller").starts_with("127.0.0.1:"), "nobody asked: {record}");
    }
    for change in &acknowledged {
        let times = seen.get(change).copied().unwrap_or(0);
        ensure!(times == 1, "{change:?} was acknowledged, and is in the audit {times} times");
    }
    tampered(&scene, &etcd, &written_down)
}

fn tampered(scene: &Scene, etcd: &Etcd, written_down: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let options = Options { endpoints: etcd.endpoints(), ..Options::default() };
    let store = runtime.block_on(Client::connect(options))?;
    let put = |key: &str, value: Vec<u8>| {
        let writes = vec![Write::Put { key: key.to_owned(), value: value.into() }];
        runtime.block_on(store.commit(Transaction { writes, ..Transaction::default() }))
    };
    let found = |what: &str| -> anyhow::Result<()> {
        let said = audit(scene, &["--verify"])?.expect(1)?;
        ensure!(said.stderr.contains("the audit is not whole"), "{what}: {}", said.stderr);
        Ok(())
    };
    let with_head = |head: &str| audit(scene, &["--verify", "--head", head]);
    with_head(written_down)?.expect(0)?;

    let blocks = runtime.block_on(store.range(BLOCKS, None, None, 200))?.items;
    ensure!(blocks.len() >= 3, "there are only {} blocks", blocks.len());
    let middle = &blocks[blocks.len() / 2];
    // One record says that somebody else asked.
    let mut block = AuditBlock::decode(middle.value.clone())?;
    block.records.iter_mut().for_each(|record| record.caller = "127.0.0.1:1".to_owned());
    put(&middle.key, block.encode_to_vec())?;
    found("a changed record")?;
    block.records.clear();
    put(&middle.key, block.encode_to_vec())?;
    found("removed records")?;
    let writes = vec![Write::Delete { key: middle.key.clone() }];
    runtime.block_on(store.commit(Transaction { writes, ..Transaction::default() }))?;
    found("a removed block")?;
    put(&middle.key, middle.value.to_vec())?;
    with_head(written_down)?.expect(0)?;

    // Somebody who can write to the store makes all of it anew: only a head that was written down elsewhere shows that.
    let mut mark = Mark::default();
    for item in &blocks {
        let mut block = AuditBlock::decode(item.value.clone())?;
        block.records.iter_mut().for_each(|record| record.caller = "127.0.0.1:1".to_owned());
        let sealed = seal(mark, block);
        mark = sealed.mark;
        put(&item.key, sealed.encoded)?;
    }
    put(HEAD, AuditMark::from(mark).encode_to_vec())?;
    audit(scene, &["--verify"])?.expect(0)?;
    let said = with_head(written_down)?.expect(1)?;
    ensure!(said.stderr.contains("another one than was written down"), "{}", said.stderr);
    Ok(())
}
