//! The verdict on a run: history, callers' journal, audit, logs, hosts and the controllers' own lists, held against one
//! another.

use super::audit::{self, Sealed};
use super::client::channel;
use super::cluster::{CONTROLLERS, Cluster};
use super::experiments::Experiment;
use super::history::{self, History, is_over};
use super::hosts;
use super::journal::{Acknowledged, Method, Told};
use super::logs::{self, Logs};
use anyhow::Context as _;
use berth_model::PlacementUid;
use berth_model::placement::{FailureReason, Phase};
use berth_proto::v1::placements_client::PlacementsClient;
use berth_proto::v1::{self, ListPlacementsRequest};
use berth_store::Revision;
use std::collections::{BTreeMap, BTreeSet};
use tokio::runtime::Handle;

/// A refusal that a caller who does what ours do may get.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    /// Where; everywhere when empty.
    within: &'static [Experiment],
    method: Method,
    reason: &'static str,
    #[expect(dead_code, reason = "for whoever reads this list")]
    why: &'static str,
}

/// All of them.
const REFUSALS: &[Allowed] = &[
    Allowed {
        within: &[],
        method: Method::Create,
        reason: "NOT_PLACEABLE",
        why: "the VM that is there already is on a host without room",
    },
    Allowed {
        within: &[Experiment::Mixed, Experiment::PausedLeader],
        method: Method::Create,
        reason: "VM_HAS_PLACEMENT",
        why: "the one before for the same VM was left when its caller lost patience",
    },
    Allowed {
        within: &[Experiment::Mixed, Experiment::PausedLeader, Experiment::LeaderKills],
        method: Method::Commit,
        reason: "NOT_HELD",
        why: "the hold expired while its caller was cut off or nobody led, which the history must confirm",
    },
];

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
    /// What was audited.
    pub sealed: Sealed,
    /// Revisions with changes that a process says it has committed, and those of which the answer was lost.
    pub claimed: (usize, usize),
}

/// Judges everything, once all is at rest.
///
/// # Errors
/// When something cannot be read.
pub fn judge(experiment: Experiment, cluster: &Cluster, told: &Told, runtime: &Handle) -> anyhow::Result<Verdict> {
    let lists = (0..CONTROLLERS)
        .map(|number| runtime.block_on(list(&cluster.direct(number))).with_context(|| format!("controller {number}")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let endpoints: Vec<_> = (0..CONTROLLERS).map(|number| cluster.direct(number)).collect();
    let sealed = runtime.block_on(audit::read(&endpoints))?;
    let history = History::walk(runtime.block_on(history::read(&cluster.store))?);
    let logs = logs::read(&cluster.logs(), experiment)?;
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
    add(refusals(experiment, told, &history));
    add(told.acknowledged.iter().flat_map(|answer| kept(answer, &history)).collect());
    let (wrote, claimed) = writers(|candidate| cluster.number_of(candidate), &history, &logs);
    add(wrote);
    for (number, (revision, placements)) in lists.iter().enumerate() {
        add(shown(number, *revision, placements, &history));
    }
    add(audit::judge(&history, &told.acknowledged, &sealed));
    add(hosts::compare(&cluster.hosts, &history));
    add(logs.unlisted.iter().map(|(line, times)| format!("unlisted line, {times} times: {line}")).collect());
    Ok(Verdict { wrong, history, logs, sealed, claimed })
}

fn refusals(experiment: Experiment, told: &Told, history: &History) -> Vec<String> {
    let expired: BTreeSet<&str> = history
        .written
        .values()
        .filter(|written| written.placement.phase.failure() == Some(&FailureReason::HoldExpired))
        .map(|written| written.placement.request.name.as_str())
        .collect();
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for refused in &told.refused {
        let known = REFUSALS.iter().any(|allowed| {
            let here = allowed.within.is_empty() || allowed.within.contains(&experiment);
            here && allowed.method == refused.method && allowed.reason == refused.reason
        });
        let known = known && (refused.reason != "NOT_HELD" || expired.contains(refused.name.as_str()));
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
fn writers(number_of: impl Fn(&str) -> Option<usize>, history: &History, logs: &Logs) -> (Vec<String>, (usize, usize)) {
    let mut wrong = Vec::new();
    for (revision, committed) in &logs.committed {
        if let [one, other, ..] = committed.as_slice() {
            wrong.push(format!("revision {revision} was committed by {one:?} and by {other:?}"));
        }
        for by in committed {
            let led = history.led_at(*revision);
            let fits = led
                .is_some_and(|led| by.fence == Some(led.created) && number_of(&led.candidate) == Some(by.controller));
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

#[cfg(test)]
mod tests {
    use super::super::logs::Committed;
    use super::super::testing::{Book, placement};
    use super::*;
    use berth_proto::v1::Phase as Wire;
    use std::time::Instant;

    fn told(method: Method, placement: v1::Placement, version: u64, revision: Revision) -> Acknowledged {
        let now = Instant::now();
        let placement = v1::Placement { version, ..placement };
        Acknowledged { asked: now, told: now, method, placement, revision: revision.0 }
    }

    fn finds(answer: &Acknowledged, history: &History, expected: &str) {
        let found = kept(answer, history);
        assert!(found.iter().any(|found| found.contains(expected)), "{found:?} does not say {expected:?}");
    }

    #[tokio::test]
    async fn what_was_told_must_have_been_so() {
        let book = Book::led().await;
        let held = placement("a", 1, Wire::Held);
        let at = book.put(&held).await;
        book.put(&placement("a", 1, Wire::Active)).await;
        let history = book.history().await;
        assert_eq!(kept(&told(Method::Create, held.clone(), 1, at), &history), Vec::<String>::new());
        finds(&told(Method::Create, held.clone(), 1, Revision(at.0 - 1)), &history, "written at revision");
        finds(&told(Method::Create, held.clone(), 3, at), &history, "never written");
        finds(&told(Method::Create, placement("a", 1, Wire::Active), 1, at), &history, "and written as");
        finds(&told(Method::Create, placement("a", 2, Wire::Held), 1, at), &history, "never written");
        finds(&told(Method::Release, held.clone(), 1, at), &history, "was Held then");
        finds(&told(Method::Commit, held, 1, at), &history, "was Held then");
    }

    #[tokio::test]
    async fn what_was_told_must_not_be_forgotten() {
        let book = Book::led().await;
        let held = placement("a", 1, Wire::Held);
        let at = book.put(&held).await;
        book.put(&placement("a", 1, Wire::Released)).await;
        book.put(&placement("a", 2, Wire::Held)).await;
        finds(&told(Method::Create, held, 1, at), &book.history().await, "nothing is known of it");
    }

    #[tokio::test]
    async fn only_whoever_leads_may_have_written() {
        let book = Book::led().await;
        let at = book.put(&placement("a", 1, Wire::Held)).await;
        let history = book.history().await;
        let led = history.led_at(at).unwrap().created;
        let number_of = |candidate: &str| candidate.starts_with("http://c1 ").then_some(1);
        let wrong = |committed: &[(usize, Revision)]| {
            let by =
                |(controller, fence): &(usize, Revision)| Committed { controller: *controller, fence: Some(*fence) };
            let committed = [(at, committed.iter().map(by).collect())].into();
            writers(number_of, &history, &Logs { committed, ..Logs::default() })
        };
        assert_eq!(wrong(&[(1, led)]), (Vec::new(), (1, 0)));
        assert_eq!(wrong(&[(2, led)]).0.len(), 1, "another process");
        assert_eq!(wrong(&[(1, Revision(led.0 + 1))]).0.len(), 1, "another fence");
        assert_eq!(wrong(&[(1, led), (1, led)]).0.len(), 1, "two transactions, one revision");
    }

    #[tokio::test]
    async fn a_controller_shows_what_is_stored_at_the_revision_it_names() {
        let book = Book::led().await;
        let held = placement("a", 1, Wire::Held);
        let first = book.put(&held).await;
        let second = book.put(&placement("a", 1, Wire::Active)).await;
        let history = book.history().await;
        let at = |version| v1::Placement { version, ..held.clone() };
        assert_eq!(shown(0, first, &[at(1)], &history), Vec::<String>::new());
        assert_eq!(shown(0, second, &[at(2)], &history), Vec::<String>::new());
        assert!(shown(0, second, &[at(1)], &history)[0].contains("as version 1"));
        assert!(shown(0, second, &[], &history)[0].contains("does not show"));
    }
}
