//! Puts a backup back: `berth-controller restore`.
//!
//! Owns what must change in a backup so that it can go on where agents are today: terms and generations rise above what
//! they have obeyed since, and deadlines move by the time that has passed. Must never write anything of a backup that is
//! not whole or contradicts itself, nor touch a store that holds something unless it was told to.

use crate::config::{Config, Restore};
use crate::console::{Console, list};
use crate::leader::load;
use crate::refill::{self, Content};
use anyhow::Context as _;
use berth_core::decide::Limits;
use berth_core::desired;
use berth_model::Timestamp;
use berth_model::placement::Placement;
use berth_proto::backup::{self, Backup};
use berth_proto::convert;
use berth_proto::v1::{BackupHeader, BackupRecord};
use berth_store::key::{Key, UnknownKey};
use berth_store::{KeyValue, Revision, Store, record};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::time::Duration;

/// How far terms and generations rise at least above the backup's.
const LEAP: u64 = 1_000;
/// How far at most: half of what a leader believes an agent to be ahead, so that it still hears of those who are.
const LONGEST_LEAP: u64 = 500_000;

/// Why a backup is not restored. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not whole.
    #[error(transparent)]
    Backup(#[from] backup::Error),
    /// It has a key that this version does not know.
    #[error("record {0}: use the Berth that made the backup")]
    Key(#[from] UnknownKey),
    /// A record that no backup has.
    #[error("{0} is about who leads, which is no part of a backup")]
    Leads(String),
    /// A record cannot be read.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// Its records contradict one another.
    #[error("its records contradict one another")]
    World(#[from] refill::Error),
    /// It does not say when it was taken.
    #[error("its header does not say when it was taken")]
    TakenAt,
}

impl From<load::Error> for Error {
    fn from(error: load::Error) -> Self {
        Self::World(refill::Error::World(error))
    }
}

/// A backup that was found good, as it is to be written.
#[derive(Debug)]
struct Prepared {
    header: BackupHeader,
    taken_at: Timestamp,
    leap: u64,
    content: Content,
}

/// Restores a backup into the store of `config`, which must not be served by any controller.
///
/// # Errors
/// Why not; if writing had begun, the sentence says so.
pub async fn run(
    store: &dyn Store,
    config: &Config,
    options: &Restore,
    now: Timestamp,
    console: &mut Console<'_>,
) -> anyhow::Result<()> {
    let Restore { file, yes, into_nonempty } = options;
    let name = file.display();
    let opened = File::open(file).with_context(|| format!("cannot read {name}"))?;
    let read = backup::read(BufReader::new(opened)).map_err(Error::from);
    let prepared = read.and_then(|backup| prepare(backup, &config.limits, now));
    let prepared = prepared.with_context(|| format!("{name} cannot be restored, nothing was changed"))?;
    console.say(&told(&prepared, &name.to_string(), now))?;

    // From here on nobody else writes: what is found now is what is replaced.
    let place = config.which_store();
    let leadership = refill::lead(store, "restore", console).await?;
    let present = refill::keys(store).await?;
    if !into_nonempty {
        let hint = "; restore into an empty one, or replace everything with --into-nonempty";
        refill::refuse_nonempty(&present, None, hint).with_context(|| format!("nothing was changed in {place}"))?;
    }
    let replaced = if present.iter().all(|key| key == berth_store::key::FLEET) {
        "which is empty".to_owned()
    } else {
        format!("where {} records are REPLACED", present.len())
    };
    console.say(&format!("\nIt goes into {place}, {replaced}."))?;
    if !yes && !console.confirm("Restore it?").await? {
        anyhow::bail!("not restored: nothing was changed");
    }
    let fence = &leadership.fence;
    refill::write(store, fence, "Restore", config.commit_deadline, &prepared.content, &config.limits, now).await?;
    console.say(&format!(
        "Restored: {} nodes and {} placements. Start the controller now.",
        prepared.content.nodes.len(),
        prepared.content.placements.len()
    ))?;
    Ok(())
}

/// Checks every record, then makes of them what can go on today.
fn prepare(backup: Backup, limits: &Limits, now: Timestamp) -> Result<Prepared, Error> {
    let Backup { header, records } = backup;
    let taken_at = header.taken_at.ok_or(Error::TakenAt)?;
    let taken_at = convert::read_timestamp(taken_at).map_err(|_| Error::TakenAt)?;
    let (mut fleet, mut nodes, mut placements, mut claims) = (None, Vec::new(), Vec::new(), Vec::new());
    for BackupRecord { key, value } in records {
        let at = Revision(header.revision);
        let item = KeyValue { key, value: value.into(), created: at, modified: at, version: 1 };
        match Key::parse(&item.key)? {
            Key::Leader | Key::Term => return Err(Error::Leads(item.key)),
            Key::Fleet => fleet = Some(record::read_fleet(&item.value)?),
            Key::Node(_) => nodes.push(record::read_node(&item)?),
            Key::Placement(_) => placements.push(record::read_placement(&item)?),
            Key::GpuClaim(_) | Key::VmClaim(_) | Key::Request(_) => claims.push(item),
        }
    }
    load::check_claims(&placements, [claims])?;
    let as_it_was = Content { term: header.term, fleet, nodes, placements };
    as_it_was.check(limits, now)?;
    let passed = now.since(taken_at);
    let leap = LEAP.saturating_add(passed.as_secs()).min(LONGEST_LEAP);
    let content = carried_on(as_it_was, passed, leap);
    content.check(limits, now)?;
    Ok(Prepared { header, taken_at, leap, content })
}

/// The same world, able to go on: whatever agents have obeyed since is below its terms and generations, no report about a
/// wish made since answers one of its wishes, and no deadline passed while it lay in a file.
fn carried_on(was: Content, passed: Duration, leap: u64) -> Content {
    let Content { term, fleet, mut nodes, mut placements } = was;
    for node in &mut nodes {
        node.generation = node.generation.saturating_add(leap);
    }
    let generations: BTreeMap<_, _> = nodes.iter().map(|node| (node.name.clone(), node.generation)).collect();
    for placement in &mut placements {
        if let Some(until) = placement.phase.deadline_mut() {
            *until = until.after(passed);
        }
        let node = placement.assignment.as_ref().map(|assignment| &assignment.node);
        if let Some(generation) = node.and_then(|node| generations.get(node)).filter(|_| has_wish(placement)) {
            placement.generation = *generation;
        }
    }
    Content { term: term.saturating_add(leap), fleet, nodes, placements }
}

fn has_wish(placement: &Placement) -> bool {
    desired::entry(placement).is_some()
}

/// What the backup is, and what follows from restoring it.
fn told(prepared: &Prepared, file: &str, now: Timestamp) -> String {
    let Prepared { header, taken_at, leap, content } = prepared;
    let age = humantime::format_duration(Duration::from_secs(now.since(*taken_at).as_secs()));
    let gpus: usize = content.nodes.iter().map(|node| node.gpus.len()).sum();
    let mut phases: BTreeMap<&str, usize> = BTreeMap::new();
    for placement in &content.placements {
        *phases.entry(placement.phase.name()).or_default() += 1;
    }
    let phases = list(phases.iter().map(|(phase, count)| format!("{count} {phase}")));
    let claimed = content.claims().keys().filter(|key| key.starts_with(berth_store::key::GPU_CLAIMS)).count();
    format!(
        "{file} is whole and does not contradict itself:\n  \
         taken        {taken_at}, {age} ago, by Berth {} from the store of kind {}\n  \
         revision     {}, term {}\n  \
         nodes        {} with {gpus} GPUs\n  \
         placements   {}{}\n  \
         claims       {claimed} GPUs\n\
         \n\
         Restoring it goes back to that moment; no host is touched:\n  \
         - what was placed since is not known any more: those VMs keep their GPUs, which show as in use\n  \
         - what was released since comes back, and shows as drifted where the VM has its GPUs no more\n  \
         - deadlines move by {age}; terms and generations rise by {leap}, above what agents have obeyed since",
        header.berth_version,
        header.store,
        header.revision,
        header.term,
        content.nodes.len(),
        content.placements.len(),
        if phases.is_empty() { String::new() } else { format!(": {phases}") },
    )
}

#[cfg(test)]
mod tests;
