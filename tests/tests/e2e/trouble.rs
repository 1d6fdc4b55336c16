//! Getting out of trouble on etcd, with the real binaries and agents that live on: backups under load, a store that is put
//! back, one that is made anew, and one that is not the agents' at all.

use super::site::Site;
use anyhow::{Context as _, ensure};
use berth_proto::backup::{self, Backup};
use berth_store::{Revision, Store as _, key};
use berth_store_etcd::{Etcd, Options};
use berth_tests::process::{Process, other, run};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const SEED: u64 = 0xbac0_5eed;
/// Bytes that are flipped in a backup, one at a time.
const FLIPS: usize = 12;

fn read(file: &Path) -> anyhow::Result<Backup> {
    Ok(backup::read(std::io::BufReader::new(std::fs::File::open(file)?))?)
}

/// What etcd held at a revision, who leads aside.
fn stored(site: &Site, at: Revision) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = Etcd::connect(Options { endpoints: site.etcd.endpoints(), ..Options::default() }).await?;
        let page = store.range(key::ALL, None, Some(at), 100_000).await?;
        ensure!(!page.more, "more than one page");
        let leads = |key: &str| key.starts_with(key::LEADER) || key == key::TERM;
        let items = page.items.into_iter().filter(|item| !leads(&item.key));
        Ok(items.map(|item| (item.key, item.value.to_vec())).collect())
    })
}

/// Creates and releases at every controller until it is told to stop.
fn load(endpoints: &[String], stop: &AtomicBool, done: &AtomicUsize) -> anyhow::Result<()> {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let endpoint = &endpoints[number % endpoints.len()];
        let name = format!("load-{number}");
        let request =
            format!(r#"{{"request": {{"requestId": "{name}", "name": "{name}", "vm": "{name}", "gpus": 1}}}}"#);
        let made = berth_tests::http::post(endpoint, "/berth.v1.Placements/Create", &request)?;
        ensure!(made.status == 200, "{name}: {} {}", made.status, made.body);
        let gone =
            berth_tests::http::post(endpoint, "/berth.v1.Placements/Release", &format!(r#"{{"name": "{name}"}}"#))?;
        ensure!(gone.status == 200, "{name}: {} {}", gone.status, gone.body);
        number += 1;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Uid, VM, phase, node and GPUs: what neither restore nor rebuild may change.
fn what_must_stay(placement: &Value) -> Value {
    let assignment = &placement["assignment"];
    serde_json::json!([placement["uid"], placement["vmId"], placement["phase"], assignment["node"], assignment["gpus"]])
}

#[test]
fn backups_of_leader_and_follower_under_load_are_of_one_revision_and_come_back() -> anyhow::Result<()> {
    let test = "backups_of_leader_and_follower_under_load_are_of_one_revision_and_come_back";
    println!("seed {SEED:#x}");
    let Some(mut site) = Site::start(test, 2, &["hv-01", "hv-02"])? else { return Ok(()) };
    for node in ["hv-01", "hv-02"] {
        site.berth(&["place", node, "--vm", &format!("{node}-vm"), "--gpus", "2", "--wait", "--timeout", "60s"])?;
    }
    let before = ["hv-01", "hv-02"].map(|name| site.at_ease(name).map(|placement| what_must_stay(&placement)));
    let leader = site.leader()?;
    let endpoints = [site.endpoint(0), site.endpoint(1)];
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let files = [site.file("leader.backup"), site.file("follower.backup")];
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let loading = scope.spawn(|| load(&endpoints, &stop, &done));
        let taken = (|| {
            for (file, at) in files.iter().zip([leader, 1 - leader]) {
                let begun = done.load(Ordering::Relaxed);
                let more = || Ok(done.load(Ordering::Relaxed) >= begun + 3);
                ensure!(berth_tests::process::wait_until(super::READY, more)?, "there is no load");
                site.berth_at(at, &["backup", &file.display().to_string()])?.expect(0)?;
            }
            anyhow::Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        loading.join().map_err(|_| anyhow::anyhow!("the load crashed"))??;
        taken
    })?;
    // Each is exactly what etcd held at its revision: etcd itself is asked, later.
    for file in &files {
        let Backup { header, records } = read(file)?;
        let records: BTreeMap<_, _> = records.into_iter().map(|record| (record.key, record.value)).collect();
        let there = stored(&site, Revision(header.revision))?;
        ensure!(records == there, "{}: {} records, etcd had {}", file.display(), records.len(), there.len());
    }
    site.stop_controllers()?;

    // Only into an empty etcd, and only what is whole.
    let restore = |site: &Site, file: &Path| {
        let mut restore = site.controller(0)?;
        restore.arg("restore").arg(file).arg("--yes");
        run(restore)
    };
    let refused = restore(&site, &files[1])?.expect(1)?;
    ensure!(refused.stderr.contains("restore into an empty one"), "{}", refused.stderr);
    site.lose_store(test)?;
    let whole = std::fs::read(&files[1])?;
    let flipped = site.file("flipped.backup");
    let mut random = StdRng::seed_from_u64(SEED);
    for _ in 0..FLIPS {
        let mut bytes = whole.clone();
        let at = random.random_range(0..bytes.len());
        bytes[at] ^= 1 << random.random_range(0..8);
        std::fs::write(&flipped, bytes)?;
        let refused = restore(&site, &flipped)?.expect(1)?;
        ensure!(refused.stderr.contains("nothing was changed"), "byte {at}: {}", refused.stderr);
    }
    let restored = restore(&site, &files[1])?.expect(0)?;
    // Two at least: the backup may hold one of the load, too, however far it had come.
    ensure!(restored.stdout.contains(" Active"), "{}", restored.stdout);

    site.start_controllers()?;
    site.wait_ready(2)?;
    for (name, before) in ["hv-01", "hv-02"].into_iter().zip(before) {
        let after = what_must_stay(&site.at_ease(name)?);
        ensure!(after == before?, "{name}: {after}");
    }
    site.wait_status("no agent is a stranger", |status| status["strangers"].is_null())?;
    // What the load had in hand at the backup's revision is there again, and is given back as anything else.
    let placements = site.json(&["get", "placements"])?;
    let names = placements["placements"].as_array().context("no list of placements")?.iter();
    for name in
        names.filter_map(|placement| placement["request"]["name"].as_str()).filter(|name| name.starts_with("load-"))
    {
        site.berth(&["release", name, "--wait", "--timeout", "60s"])?;
    }
    site.berth(&["release", "hv-01", "--wait", "--timeout", "60s"])?;
    site.berth(&["place", "again", "--vm", "hv-01-vm", "--gpus", "4", "--wait", "--timeout", "60s"])?;
    Ok(())
}

#[test]
fn a_lost_etcd_is_made_anew_from_agents_even_after_a_controller_led_the_empty_one() -> anyhow::Result<()> {
    let test = "a_lost_etcd_is_made_anew_from_agents_even_after_a_controller_led_the_empty_one";
    let Some(mut site) = Site::start(test, 2, &["hv-01", "hv-02", "hv-03"])? else { return Ok(()) };
    let placed = ["hv-01", "hv-02"];
    for node in placed {
        site.berth(&["place", node, "--vm", &format!("{node}-vm"), "--gpus", "2", "--wait", "--timeout", "60s"])?;
    }
    let before = placed.map(|name| site.at_ease(name).map(|placement| what_must_stay(&placement)));
    let claims = site.claims()?;
    ensure!(claims.len() == 4, "{claims:?}");
    let fleet = site.json(&["status"])?["fleet"].clone();

    // Somebody starts the controllers on the empty etcd: agents that hold something are told nothing.
    site.kill_controllers()?;
    site.lose_store(test)?;
    site.start_controllers()?;
    site.wait_status("two of three are strangers, as leader and follower see it", |status| {
        status["nodesReady"] == 1 && status["strangers"] == serde_json::json!(placed)
    })?;
    let log = site.log();
    ensure!(log.contains("ERROR") && log.contains("berth-controller rebuild"), "{log}");
    let nodes = site.berth(&["get", "nodes"])?.stdout;
    ensure!(nodes.matches("Stranger").count() == 2, "{nodes}");
    site.stop_controllers()?;

    let rebuild = |site: &Site, args: &[&str]| {
        let mut rebuild = site.controller(0)?;
        rebuild.args(["rebuild", "--wait", "60s", "--nodes", "3"]).args(args);
        run(rebuild)
    };
    // It shows first, and takes silence for no.
    let shown = rebuild(&site, &[])?.expect(1)?;
    for part in ["To be written to etcd at ", "hv-01  ", "hv-02  ", "Write it? [y/N]"] {
        ensure!(shown.stdout.contains(part), "{part}: {}", shown.stdout);
    }
    ensure!(shown.stderr.contains("nothing was written"), "{}", shown.stderr);
    let written = rebuild(&site, &["--yes"])?.expect(0)?;
    ensure!(written.stdout.contains("Rebuilt: 3 nodes and 2 placements"), "{}", written.stdout);
    let refused = rebuild(&site, &["--yes"])?.expect(1)?;
    ensure!(refused.stderr.contains("2 placements among them"), "{}", refused.stderr);

    site.start_controllers()?;
    site.wait_ready(3)?;
    for (name, before) in placed.into_iter().zip(before) {
        let after = what_must_stay(&site.at_ease(name)?);
        ensure!(after == before?, "{name}: {after}");
    }
    ensure!(site.claims()? == claims, "{:?}", site.claims()?);
    ensure!(site.json(&["status"])?["fleet"] == fleet, "it is another fleet");
    site.berth(&["release", "hv-01", "--wait", "--timeout", "60s"])?;
    site.berth(&["place", "again", "--vm", "hv-01-vm", "--gpus", "4", "--wait", "--timeout", "60s"])?;
    Ok(())
}

/// Addresses for documentation (RFC 5737): nobody is there, so that nothing leaves this machine.
#[test]
fn plain_text_beyond_this_machine_must_be_asked_for_and_is_warned_of() -> anyhow::Result<()> {
    let warning = "connections are neither encrypted nor authenticated, as configured";
    let dir = tempfile::tempdir()?;
    let controller = |args: &[&str]| {
        let mut controller = other(berth_tests::process::binary("berth-controller")?);
        controller.args(["--listen", "192.0.2.1:7600", "--store", "memory"]).args(args);
        run(controller)?.expect(1)
    };
    let refused = controller(&[])?;
    ensure!(refused.stderr.contains("insecure = true"), "{}", refused.stderr);
    let warned = controller(&["--insecure"])?;
    let said = warned.stdout + &warned.stderr;
    ensure!(said.contains("WARN") && said.contains(warning), "{said}");

    let host = dir.path().join("host.toml");
    std::fs::write(&host, "")?;
    let agent = |args: &[&str]| {
        let mut agent = other(berth_tests::process::binary("berth-agent")?);
        agent.args(["--node", "hv-01", "--driver", "sim", "--controller", "http://192.0.2.1:7600", "--sim-host"]);
        agent.arg(&host).arg("--data-dir").arg(dir.path().join("data")).args(args);
        anyhow::Ok(agent)
    };
    let refused = run(agent(&[])?)?.expect(1)?;
    ensure!(refused.stderr.contains("insecure"), "{}", refused.stderr);
    let mut warned = Process::start(agent(&["--insecure"])?)?;
    let limit = Duration::from_secs(60);
    warned
        .wait_for_line(limit, |line| (line.contains("WARN") && line.contains(warning)).then_some(()))
        .context("the agent does not warn")
}
