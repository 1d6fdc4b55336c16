//! An etcd whose quota is used up: what can be read is read, whoever wants a change is told what to do, and whoever leads
//! leads on until somebody has done it.

use super::site::Site;
use anyhow::{Context as _, ensure};
use berth_tests::etcd::{Etcd, Options};
use berth_tests::http;
use serde_json::Value;
use std::time::{Duration, Instant};

const QUOTA_BYTES: usize = 4 << 20;
/// Longer than three leases of the site: whoever could not keep its own would have lost it.
const FULL_FOR: Duration = Duration::from_secs(8);

/// Everything until it is full, in large steps and then in small ones: what is left takes no record of Berth's.
fn fill(etcd: &Etcd) -> anyhow::Result<()> {
    for bytes in [256 << 10, 1 << 10] {
        // Base64 of so many zeros.
        let put = format!(r#"{{"key": "{}", "value": "{}"}}"#, "ZmlsbGVy", "A".repeat(bytes / 3 * 4));
        let mut puts = 0;
        let full = loop {
            match etcd.call("v3/kv/put", &put) {
                Ok(_) => puts += 1,
                Err(error) => break error.to_string(),
            }
            ensure!(puts * bytes < 4 * QUOTA_BYTES, "it is never full");
        };
        ensure!(full.contains("space exceeded"), "{full}");
    }
    Ok(())
}

/// What the sentence says to do: compact, defragment, disarm.
fn make_room(etcd: &Etcd) -> anyhow::Result<()> {
    let head = etcd.call("v3/kv/range", r#"{"key": "ZmlsbGVy", "keys_only": true}"#)?;
    let revision = head["header"]["revision"].as_str().context("an answer has a revision")?.to_owned();
    etcd.call("v3/kv/compaction", &format!(r#"{{"revision": "{revision}", "physical": true}}"#))?;
    etcd.call("v3/maintenance/defragment", "{}")?;
    let alarms = etcd.call("v3/maintenance/alarm", r#"{"action": "GET"}"#)?;
    let member = alarms["alarms"][0]["memberID"].as_str().context("an alarm is on")?.to_owned();
    let disarm = format!(r#"{{"action": "DEACTIVATE", "memberID": "{member}", "alarm": "NOSPACE"}}"#);
    etcd.call("v3/maintenance/alarm", &disarm).map(drop)
}

#[test]
fn a_leader_outlives_a_full_etcd_and_says_what_to_do() -> anyhow::Result<()> {
    let args = vec!["--quota-backend-bytes".to_owned(), QUOTA_BYTES.to_string()];
    let test = "a_leader_outlives_a_full_etcd_and_says_what_to_do";
    let Some(etcd) = Etcd::start(test, 1, &Options { args, tls: false })? else { return Ok(()) };
    let mut site = Site::start_on(etcd, 2, &["hv-01"])?;
    site.berth(&["place", "before", "--vm", "hv-01-vm", "--wait", "--timeout", "60s"])?;
    let leader = site.leader()?;
    let term = |site: &Site| -> anyhow::Result<Value> {
        let status = site.berth_at(leader, &["status", "-o", "json"])?.expect(0)?.json()?;
        ensure!(status["leader"] == true, "it does not lead any more: {status:#}\n{}", site.log());
        Ok(status["term"].clone())
    };
    let before = term(&site)?;
    fill(&site.etcd)?;

    let begun = Instant::now();
    let mut refused = 0;
    while begun.elapsed() < FULL_FOR {
        for number in 0..2 {
            let create = r#"{"request": {"requestId": "full", "name": "full", "vm": "full", "gpus": 1}}"#;
            for (method, body) in [("Create", create), ("Release", r#"{"name": "before"}"#)] {
                let answer = http::post(&site.endpoint(number), &format!("/berth.v1.Placements/{method}"), body)?;
                ensure!(answer.status == 503, "{method}: {} {}", answer.status, answer.body);
                for part in ["out of space", "defragment", "alarm disarm"] {
                    ensure!(answer.body.contains(part), "{part}: {}\n{}", answer.body, site.log());
                }
                refused += 1;
            }
            let read = site.berth_at(number, &["get", "placements", "before", "-o", "json"])?.expect(0)?.json()?;
            ensure!(read["phase"] == "PHASE_ACTIVE", "{read:#}");
        }
        ensure!(term(&site)? == before, "it leads anew");
    }
    println!("{refused} changes were refused in {:?}", begun.elapsed());
    ensure!(site.ended()?.is_none(), "a controller ended: {}", site.log());

    make_room(&site.etcd)?;
    site.berth(&["release", "before", "--wait", "--timeout", "60s"])?;
    site.berth(&["place", "after", "--vm", "hv-01-vm", "--gpus", "4", "--wait", "--timeout", "60s"])?;
    ensure!(term(&site)? == before, "it leads anew");
    ensure!(site.ended()?.is_none(), "a controller ended: {}", site.log());
    Ok(())
}
