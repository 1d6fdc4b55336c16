//! The verdict on a run: history, callers' journal, logs, hosts and the controllers' own lists, held against one another.

use super::client::channel;
use super::cluster::{CONTROLLERS, Cluster};
use super::history::{self, History, is_over};
use super::hosts;
use super::journal::{Acknowledged, Method, Told};
use super::logs::{self, Logs};
use anyhow::Context as _;
use berth_model::PlacementUid;
use berth_model::placement::Phase;
use berth_proto::v1::placements_client::PlacementsClient;
use berth_proto::v1::{self, ListPlacementsRequest};
use berth_store::Revision;
use std::collections::BTreeMap;
use tokio::runtime::Handle;

/// Refusals that a caller who does what ours do may get, with the reason.
const REFUSALS: &[(Method, &str, &str)] = &[];

/// Most findings of one kind that are told: the first ones say it.
const TOLD: usize = 20;

/// What came out.
#[derive(Debug)]
pub struct Verdict {
    /// What must not be.
    pub wrong: Vec<String>,
    /// What was walked through.
    pub history: History,
    /// What was said.
    pub logs: Logs,
    /// Revisions with changes that a process says it has committed, and those of which the answer was lost.
    pub claimed: (usize, usize),
}

/// Judges everything, once all is at rest.
///
/// # Errors
/// When something cannot be read.
pub fn judge(cluster: &Cluster, told: &Told, runtime: &Handle) -> anyhow::Result<Verdict> {
    let lists = (0..CONTROLLERS)
        .map(|number| runtime.block_on(list(&cluster.direct(number))).with_context(|| format!("controller {number}")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let history = History::walk(runtime.block_on(history::read(&cluster.store))?);
    let logs = logs::read(&cluster.logs())?;
    let mut wrong = Vec::new();
    let mut add = |mut found: Vec<String>| {
        let more = found.len().saturating_sub(TOLD);
        found.truncate(TOLD);
        wrong.append(&mut found);
        if more > 0 {
            wrong.push(format!("… and {more} more of this kind"));
        }
    };
    add(history.wrong.clone());
    add(told.wrong.clone());
    add(refusals(told));
    add(told.acknowledged.iter().flat_map(|answer| kept(answer, &history)).collect());
    let (wrote, claimed) = writers(cluster, &history, &logs);
    add(wrote);
    for (number, (revision, placements)) in lists.iter().enumerate() {
        add(shown(number, *revision, placements, &history));
    }
    add(hosts::compare(&cluster.hosts, &history));
    add(logs.unlisted.iter().map(|(line, times)| format!("unlisted line, {times} times: {line}")).collect());
    Ok(Verdict { wrong, history, logs, claimed })
}

fn refusals(told: &Told) -> Vec<String> {
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for refused in &told.refused {
        let known = REFUSALS.iter().any(|(method, reason, _)| *method == refused.method && *reason == refused.reason);
        if !known {
            let text = format!("{:?} was refused: {}: {}", refused.method, refused.reason, refused.text);
            *found.entry(text).or_default() += 1;
        }
    }
    found.into_iter().map(|(text, times)| format!("{text} ({times} times)")).collect()
}

/// Whether what a caller was told was so at the revision it was told, and has not been forgotten.
fn kept(answer: &Acknowledged, history: &History) -> Vec<String> {
    let (method, name, is) = (answer.method, answer.name(), &answer.placement);
    let who = format!("{method:?} of {name} was acknowledged at revision {}", answer.revision);
    let uid = match is.uid.parse::<PlacementUid>() {
        Ok(uid) => uid,
        Err(error) => return vec![format!("{who} with the uid {:?}: {error}", is.uid)],
    };
    let Some(written) = history.written.get(&(uid.clone(), is.version)) else {
        return vec![format!("{who} with version {}, which was never written", is.version)];
    };
    let mut wrong = Vec::new();
    if written.revision > Revision(answer.revision) {
        wrong.push(format!("{who} and written at revision {}", written.revision));
    }
    let stored = v1::Placement::from(&written.placement);
    let differs = stored.phase != is.phase
        || stored.assignment != is.assignment
        || stored.vm_id != is.vm_id
        || stored.request != is.request;
    if differs {
        wrong.push(format!("{who} as {is:?} and written as {stored:?}"));
    }
    let fits = match (&written.placement.phase, method) {
        (Phase::Releasing { .. } | Phase::Released | Phase::Failed { .. }, Method::Release) => true,
        (_, Method::Release) => false,
        (_, Method::Commit) => written.placement.vm_id.is_some(),
        (_, Method::Create) => true,
    };
    if !fits {
        wrong.push(format!("{who} and was {} then", written.placement.phase.name()));
    }
    if history.placements.get(name).is_none_or(|last| last.uid != uid) {
        wrong.push(format!("{who} and nothing is known of it at the end"));
    }
    wrong
}

/// Whether every revision was written by whoever led then.
fn writers(cluster: &Cluster, history: &History, logs: &Logs) -> (Vec<String>, (usize, usize)) {
    let mut wrong = Vec::new();
    for (revision, committed) in &logs.committed {
        if let [one, other, ..] = committed.as_slice() {
            wrong.push(format!("revision {revision} was committed by {one:?} and by {other:?}"));
        }
        for by in committed {
            let led = history.led_at(*revision);
            let fits = led.is_some_and(|led| {
                by.fence == Some(led.created) && cluster.number_of(&led.candidate) == Some(by.controller)
            });
            if !fits {
                wrong.push(format!("revision {revision} was committed by {by:?} while {led:?} led"));
            }
        }
    }
    let claimed = history.changes.iter().filter(|revision| logs.committed.contains_key(revision)).count();
    (wrong, (claimed, history.changes.len() - claimed))
}

/// Everything that a controller shows, and the revision that it is consistent at.
async fn list(endpoint: &str) -> anyhow::Result<(Revision, Vec<v1::Placement>)> {
    let mut api = PlacementsClient::new(channel(endpoint)?);
    let mut all = Vec::new();
    let mut ask = ListPlacementsRequest { page_size: 10_000, ..ListPlacementsRequest::default() };
    loop {
        let mut page = api.list(ask.clone()).await?.into_inner();
        all.append(&mut page.placements);
        if page.next_page_token.is_empty() {
            return Ok((Revision(page.revision), all));
        }
        ask.page_token = page.next_page_token;
    }
}

/// Whether a controller shows what was stored at the revision that it names.
fn shown(number: usize, revision: Revision, listed: &[v1::Placement], history: &History) -> Vec<String> {
    let mut stored: BTreeMap<&str, u64> = BTreeMap::new();
    for ((uid, version), written) in &history.written {
        if written.revision <= revision {
            let known = stored.entry(uid.as_str()).or_default();
            *known = (*known).max(*version);
        }
    }
    let mut wrong = Vec::new();
    for placement in listed {
        let version = stored.remove(placement.uid.as_str());
        if version != Some(placement.version) {
            let (uid, is) = (&placement.uid, placement.version);
            wrong.push(format!("controller {number} shows {uid} as version {is}, stored is {version:?} at {revision}"));
        }
    }
    // What was over for long may be forgotten.
    let over = |uid: &str, version: u64| {
        let written = uid.parse().ok().and_then(|uid| history.written.get(&(uid, version)));
        written.is_some_and(|written| is_over(&written.placement.phase))
    };
    stored.retain(|uid, version| !over(uid, *version));
    wrong
        .extend(stored.into_keys().map(|uid| format!("controller {number} does not show {uid}, stored at {revision}")));
    wrong
}
