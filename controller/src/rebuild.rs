//! Makes the store anew from what agents hold, when it is lost: `berth-controller rebuild`.
//!
//! Three parts: [`gather`] listens to agents and decides nothing, [`reconstruct`] works out what they know, [`run`] shows
//! that, asks, and writes it. Must never send an agent anything it would act on, and never write while an agent that is
//! there has not told what it holds: the next controller would make it forget.

mod gather;
mod reconstruct;
mod serving;

use crate::app::StartError;
use crate::config::{Config, Rebuild};
use crate::console::{Console, list};
use crate::refill;
use anyhow::Context as _;
use berth_model::NodeName;
use berth_model::Timestamp;
use berth_model::id::FleetId;
use berth_store::key::Key;
use berth_store::{Store, key};
use gather::{Gatherer, Heard};
use reconstruct::Rebuilt;
use serving::Serving;
use std::fmt::Write as _;
use std::time::Duration;

/// Why nothing was rebuilt. The store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Fewer agents came than there are nodes.
    #[error("{heard} of {wanted} nodes told what they hold within {} s; wait longer (--wait), or see why the others do not \
             come. What the missing ones hold would be lost", .wait.as_secs())]
    TooFew {
        /// Nodes that told everything.
        heard: usize,
        /// Nodes there must be.
        wanted: usize,
        /// How long was waited.
        wait: Duration,
    },
    /// No agent came at all.
    #[error("no agent came within {} s: is this the address that agents dial?", .0.as_secs())]
    Nobody(Duration),
    /// Agents hold placements of several fleets.
    #[error(
        "agents hold placements of more than one fleet: {}. A store holds one; let only the agents of one fleet come, \
         then look at the hosts of the others",
        .0.join(", ")
    )]
    Fleets(Vec<String>),
    /// Agents are there and did not tell.
    #[error("these nodes are there and did not tell what they hold: {}. Update their agents, or wait longer (--wait): a \
             controller that does not know would make them forget it", .0.join(", "))]
    Silent(Vec<String>),
}

/// Rebuilds the empty `store`: serves agents at the configured address for a while, and ends.
///
/// # Errors
/// Why not; if writing had begun, the sentence says so.
pub async fn run(
    store: &dyn Store,
    config: &Config,
    options: &Rebuild,
    now: fn() -> Timestamp,
    console: &mut Console<'_>,
) -> anyhow::Result<()> {
    let Rebuild { wait, nodes, yes } = options;
    let place = config.which_store();
    let leadership = refill::lead(store, "rebuild", console).await?;
    let present = refill::keys(store).await?;
    // What a node is its agent tells again; a controller on a store that was lost has written it before anybody looked.
    refill::refuse_nonempty(
        &present,
        Some(key::NODES),
        "; rebuilding is for a store that was lost: a controller on this one knows more than agents do. To rebuild all the same, \
         put it aside first: another data directory, or another etcd.prefix",
    )
    .with_context(|| format!("nothing was changed in {place}"))?;
    let gathering = Gathering::start(config).await?;
    console.say(&format!(
        "Listening on {} for agents; nothing is decided, no host is touched. Waiting {}.",
        gathering.address,
        match nodes {
            Some(nodes) => format!("until {nodes} nodes have told what they hold, at most {} s", wait.as_secs()),
            None => format!("{} s", wait.as_secs()),
        }
    ))?;
    let heard = gathering.gatherer.wait(*wait, *nodes).await;
    judge(&heard, options)?;
    let rebuilt = reconstruct::reconstruct(&heard, &config.limits, now());
    rebuilt.content.check(&config.limits, now())?;
    console.say(&told(&heard, &rebuilt, &stored_nodes(&present), &place))?;
    if !yes && !console.confirm("Write it?").await? {
        gathering.stop().await;
        anyhow::bail!("not rebuilt: nothing was written");
    }
    let fence = &leadership.fence;
    refill::write(store, fence, "Rebuild", config.commit_deadline, &rebuilt.content, &config.limits, now()).await?;
    gathering.stop().await;
    console.say(&format!(
        "Rebuilt: {} nodes and {} placements. Start the controller now.",
        rebuilt.content.nodes.len(),
        rebuilt.content.placements.len()
    ))?;
    Ok(())
}

fn judge(heard: &[Heard], options: &Rebuild) -> Result<(), Error> {
    if heard.is_empty() {
        return Err(Error::Nobody(options.wait));
    }
    let silent = heard.iter().filter(|heard| heard.holdings.is_none());
    let silent: Vec<_> =
        silent.map(|heard| format!("{} (agent {})", heard.hello.node, heard.hello.agent_version)).collect();
    if !silent.is_empty() {
        return Err(Error::Silent(silent));
    }
    let fleets = reconstruct::fleets(heard);
    if fleets.len() > 1 {
        let told = |(fleet, nodes): (&FleetId, Vec<&NodeName>)| format!("{fleet} ({})", list(nodes));
        return Err(Error::Fleets(fleets.into_iter().map(told).collect()));
    }
    let complete = heard.iter().filter(|heard| heard.is_complete()).count();
    match options.nodes {
        Some(wanted) if complete < wanted => Err(Error::TooFew { heard: complete, wanted, wait: options.wait }),
        Some(_) | None => Ok(()),
    }
}

/// Nodes with a record.
fn stored_nodes(keys: &[String]) -> Vec<NodeName> {
    let node = |key: &String| match Key::parse(key) {
        Ok(Key::Node(name)) => Some(name),
        Ok(
            Key::Leader
            | Key::Term
            | Key::Fleet
            | Key::Placement(_)
            | Key::GpuClaim(_)
            | Key::VmClaim(_)
            | Key::Request(_),
        )
        | Err(_) => None,
    };
    keys.iter().filter_map(node).collect()
}

/// What will be written, and what will not be.
fn told(heard: &[Heard], rebuilt: &Rebuilt, stored: &[NodeName], place: &str) -> String {
    let Rebuilt { content, left_out } = rebuilt;
    let rows: Vec<[String; 5]> = content
        .placements
        .iter()
        .map(|placement| {
            let assignment = placement.assignment.as_ref();
            [
                placement.name().to_string(),
                placement.phase.name().to_owned(),
                assignment.map(|a| a.node.to_string()).unwrap_or_default(),
                placement.vm_id.as_ref().map(ToString::to_string).unwrap_or_default(),
                list(assignment.iter().flat_map(|a| &a.gpus).map(|gpu| &gpu.address)),
            ]
        })
        .collect();
    let mut text =
        format!("\n{} nodes told what they hold: {}\n", heard.len(), list(heard.iter().map(|heard| &heard.hello.node)));
    let blind: Vec<_> = heard.iter().filter(|heard| !heard.is_complete()).map(|heard| &heard.hello.node).collect();
    // Writing to a String cannot fail.
    if !blind.is_empty() {
        let _ = writeln!(
            text,
            "Of these the hardware is not known yet, because their hosts could not be looked at: {}",
            list(blind)
        );
    }
    let _ = writeln!(text, "\nTo be written to {place}:");
    text.push_str(&table(["PLACEMENT", "PHASE", "NODE", "VM", "GPUS"], &rows));
    if rows.is_empty() {
        text.push_str("no placements: no agent holds any\n");
    }
    if !left_out.is_empty() {
        let _ = writeln!(text, "\nLEFT OUT, because they contradict one another; their VMs are left as they are:");
        for left in left_out {
            let _ = writeln!(text, "  {left}");
        }
    }
    let dropped: Vec<_> = stored.iter().filter(|name| heard.iter().all(|heard| heard.hello.node != **name)).collect();
    if !dropped.is_empty() {
        let _ = writeln!(text, "\nIn the store are nodes that did not come; they are forgotten: {}", list(dropped));
    }
    text.push_str(
        "\nLost, because no agent knows of it: placements that were queued or held, history, cordons, and what was asked \
         beyond VM, GPUs and model.\nNodes that are not named above are strangers when they connect: they keep what they \
         hold, and nothing is placed on them. Go on only if none is missing.",
    );
    text
}

fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut all = vec![head.map(str::to_owned)];
    all.extend_from_slice(rows);
    let widths: Vec<usize> =
        (0..N).map(|at| all.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    all.iter().map(line).collect()
}

/// Agents being listened to.
struct Gathering {
    address: std::net::SocketAddr,
    gatherer: Gatherer,
    serving: Serving,
}

impl Gathering {
    async fn start(config: &Config) -> Result<Self, StartError> {
        let gatherer = Gatherer::new(config.heartbeat, config.observe);
        let router = gatherer.router();
        let serving = Serving::start(config, router).await?;
        Ok(Self { address: serving.local_addr, gatherer, serving })
    }

    async fn stop(self) {
        self.gatherer.stop();
        self.serving.stop().await;
    }
}

#[cfg(test)]
mod tests;
