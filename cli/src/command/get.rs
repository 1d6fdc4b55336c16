//! `berth get`: lists, and single things.

use super::list;
use crate::args::{Format, Get, Kind};
use crate::client::Client;
use crate::error::Error;
use crate::output::{Out, table};
use berth_proto::v1;
use std::collections::BTreeSet;

/// Runs the verb.
///
/// # Errors
/// A flag that has no meaning for this kind, or what the call ran into.
pub async fn run(client: &Client, args: Get, out: &mut Out<'_>) -> Result<(), Error> {
    if args.all && args.kind != Kind::Placements {
        return Err(Error::Usage("--all is about placements only".into()));
    }
    match args.kind {
        Kind::Nodes => nodes(client, args, out).await,
        Kind::Gpus => gpus(client, args, out).await,
        Kind::Vms => vms(client, args, out).await,
        Kind::Placements => placements(client, args, out).await,
        Kind::Drift => drift(client, args, out).await,
    }
}

/// Notes that what is shown may be old, where the controller hears no leader. It is asked only when `unheard`, nothing of
/// what is shown is fresh: a second call for every list would be waste.
async fn note_if_old(client: &Client, unheard: bool, out: &mut Out<'_>) {
    if !unheard {
        return;
    }
    let asked = client.read(v1::StatusRequest {}, |r| {
        let mut api = client.operations();
        async move { api.status(r).await }
    });
    // The list was answered; that nobody says more of it is no failure.
    if let Ok(status) = asked.await
        && !status.leader
        && status.leader_revision == 0
    {
        out.aside("no controller leads, or it is not heard: what is shown may be old");
    }
}

/// Whether there is something and nothing of it is fresh.
fn all_old<T>(items: &[T], old: impl Fn(&T) -> bool) -> bool {
    !items.is_empty() && items.iter().all(old)
}

/// A filter has no meaning beside the name of one thing.
fn alone(args: &Get) -> Result<(), Error> {
    match [("--node", &args.node), ("--model", &args.model), ("--state", &args.state)]
        .into_iter()
        .find(|(_, v)| v.is_some())
    {
        Some((flag, _)) => Err(Error::Usage(format!("{flag} has no meaning beside a name"))),
        None => Ok(()),
    }
}

fn bad_state(state: &str, kind: &str, known: &[&str]) -> Error {
    Error::Usage(format!("--state {state:?} is no state of {kind}; there are {}", known.join(", ")))
}

fn is(state: &str, name: &str) -> bool {
    state.eq_ignore_ascii_case(name)
}

async fn nodes(client: &Client, args: Get, out: &mut Out<'_>) -> Result<(), Error> {
    let format = args.output.format;
    // A node on a node is that node.
    let name = match (&args.name, &args.node) {
        (Some(_), _) => {
            alone(&args)?;
            args.name.clone()
        }
        (None, Some(node)) if args.model.is_none() && args.state.is_none() => Some(node.clone()),
        (None, _) => None,
    };
    if let Some(name) = name {
        let node = client
            .read(v1::GetNodeRequest { name }, |r| {
                let mut api = client.inventory();
                async move { api.get_node(r).await }
            })
            .await?;
        note_if_old(client, !node.connected, out).await;
        return match format {
            Format::Table | Format::Wide => {
                out.table(table::nodes(std::slice::from_ref(&node), format == Format::Wide, out.style), "no nodes")
            }
            Format::Json | Format::Yaml => out.message(format, "Node", &node),
        };
    }
    let ready = match args.state.as_deref() {
        None => None,
        Some(state) if is(state, "ready") => Some(true),
        Some(state) if is(state, "notready") => Some(false),
        Some(state) => return Err(bad_state(state, "nodes", &["ready", "notready"])),
    };
    let list::Whole { items: mut found, revision } =
        list::nodes(client, v1::ListNodesRequest { ready, ..Default::default() }).await?;
    if let Some(node) = &args.node {
        found.retain(|n| n.name == *node);
    }
    if let Some(model) = args.model {
        let gpus = list::gpus(client, v1::ListGpusRequest { model, ..Default::default() }).await?;
        let having: BTreeSet<_> = gpus.items.into_iter().map(|gpu| gpu.node).collect();
        found.retain(|node| having.contains(&node.name));
    }
    note_if_old(client, all_old(&found, |node| !node.connected), out).await;
    match format {
        Format::Table | Format::Wide => out.table(table::nodes(&found, format == Format::Wide, out.style), "no nodes"),
        Format::Json | Format::Yaml => {
            let all = v1::ListNodesResponse { nodes: found, next_page_token: String::new(), revision };
            out.message(format, "ListNodesResponse", &all)
        }
    }
}

async fn gpus(client: &Client, args: Get, out: &mut Out<'_>) -> Result<(), Error> {
    let format = args.output.format;
    if let Some(id) = args.name.clone() {
        alone(&args)?;
        if !id.contains('/') {
            return Err(Error::Usage(format!(
                "{id:?} names no GPU: write NODE/ADDRESS as `berth get gpus` shows it; `--node {id}` lists those of a node"
            )));
        }
        let gpu = client
            .read(v1::GetGpuRequest { id }, |r| {
                let mut api = client.inventory();
                async move { api.get_gpu(r).await }
            })
            .await?;
        return match format {
            Format::Table | Format::Wide => {
                out.table(table::gpus(std::slice::from_ref(&gpu), format == Format::Wide, out.style), "no GPUs")
            }
            Format::Json | Format::Yaml => out.message(format, "Gpu", &gpu),
        };
    }
    let mut filter = v1::ListGpusRequest {
        node: args.node.unwrap_or_default(),
        model: args.model.unwrap_or_default(),
        ..Default::default()
    };
    if let Some(state) = args.state {
        let states = [
            ("host", v1::GpuState::Host),
            ("pooled", v1::GpuState::Pooled),
            ("attached", v1::GpuState::Attached),
            ("stale", v1::GpuState::Stale),
            ("missing", v1::GpuState::Missing),
            ("unknown", v1::GpuState::Unknown),
        ];
        match states.iter().find(|(name, _)| is(&state, name)) {
            Some((_, wanted)) => filter.set_state(*wanted),
            None if is(&state, "available") => filter.available = Some(true),
            None => {
                let mut known = vec!["available"];
                known.extend(states.iter().map(|(name, _)| *name));
                return Err(bad_state(&state, "GPUs", &known));
            }
        }
    }
    let list::Whole { items, revision } = list::gpus(client, filter).await?;
    let old = |gpu: &v1::Gpu| gpu.unavailable.iter().any(|why| why.term == "node_ready");
    note_if_old(client, all_old(&items, old), out).await;
    match format {
        Format::Table | Format::Wide => out.table(table::gpus(&items, format == Format::Wide, out.style), "no GPUs"),
        Format::Json | Format::Yaml => {
            let all = v1::ListGpusResponse { gpus: items, next_page_token: String::new(), revision };
            out.message(format, "ListGpusResponse", &all)
        }
    }
}

async fn vms(client: &Client, args: Get, out: &mut Out<'_>) -> Result<(), Error> {
    let format = args.output.format;
    if args.model.is_some() {
        return Err(Error::Usage(
            "--model has no meaning for VMs; `berth get placements --model M` lists who has one".into(),
        ));
    }
    let state = match args.state.as_deref() {
        None => None,
        Some(state) => {
            let states = [
                ("running", v1::VmState::Running),
                ("off", v1::VmState::Off),
                ("saved", v1::VmState::Saved),
                ("paused", v1::VmState::Paused),
                ("changing", v1::VmState::Changing),
                ("unknown", v1::VmState::Unknown),
            ];
            match states.iter().find(|(name, _)| is(state, name)) {
                Some((_, wanted)) => Some(*wanted),
                None => return Err(bad_state(state, "VMs", &states.map(|(name, _)| name))),
            }
        }
    };
    let filter = v1::ListVmsRequest { node: args.node.unwrap_or_default(), ..Default::default() };
    let list::Whole { mut items, revision } = list::vms(client, filter).await?;
    if let Some(state) = state {
        items.retain(|vm| vm.observed.as_ref().is_some_and(|o| o.state() == state));
    }
    if let Some(name) = &args.name {
        // Names compare without regard to case, as Hyper-V does.
        items.retain(|vm| {
            vm.observed.as_ref().is_some_and(|o| o.id.eq_ignore_ascii_case(name) || o.name.eq_ignore_ascii_case(name))
        });
        if items.is_empty() {
            return Err(Error::NotFound(format!("no VM {name} was seen on any node")));
        }
    }
    note_if_old(client, all_old(&items, |vm| !vm.fresh), out).await;
    match format {
        Format::Table | Format::Wide => out.table(table::vms(&items, format == Format::Wide), "no VMs"),
        Format::Json | Format::Yaml => {
            let all = v1::ListVmsResponse { vms: items, next_page_token: String::new(), revision };
            out.message(format, "ListVmsResponse", &all)
        }
    }
}

async fn drift(client: &Client, args: Get, out: &mut Out<'_>) -> Result<(), Error> {
    let format = args.output.format;
    if args.name.is_some() || args.model.is_some() {
        return Err(Error::Usage("drift has no names and no models; --node and --state KIND choose some of it".into()));
    }
    let (node, kind) = (args.node.unwrap_or_default(), args.state.unwrap_or_default());
    let list::Whole { items, revision } =
        list::drift(client, v1::ListDriftRequest { node, kind, ..Default::default() }).await?;
    match format {
        Format::Table | Format::Wide => {
            out.table(table::drift(&items, out.style), "no drift on any node that is ready")
        }
        Format::Json | Format::Yaml => {
            let all = v1::ListDriftResponse { differences: items, next_page_token: String::new(), revision };
            out.message(format, "ListDriftResponse", &all)
        }
    }
}

async fn placements(client: &Client, args: Get, out: &mut Out<'_>) -> Result<(), Error> {
    let format = args.output.format;
    if let Some(name) = args.name.clone() {
        alone(&args)?;
        let placement = super::wait::get(client, &name).await?;
        return match format {
            Format::Table | Format::Wide => {
                let one = table::placements(std::slice::from_ref(&placement), format == Format::Wide, out.style);
                out.table(one, "no placements")
            }
            Format::Json | Format::Yaml => out.message(format, "Placement", &placement),
        };
    }
    let mut filter = v1::ListPlacementsRequest { node: args.node.unwrap_or_default(), ..Default::default() };
    if let Some(state) = &args.state {
        let phases = [
            ("queued", v1::Phase::Queued),
            ("held", v1::Phase::Held),
            ("preparing", v1::Phase::Preparing),
            ("attaching", v1::Phase::Attaching),
            ("starting", v1::Phase::Starting),
            ("verifying", v1::Phase::Verifying),
            ("active", v1::Phase::Active),
            ("releasing", v1::Phase::Releasing),
            ("released", v1::Phase::Released),
            ("failed", v1::Phase::Failed),
        ];
        match phases.iter().find(|(name, _)| is(state, name)) {
            Some((_, wanted)) => filter.set_phase(*wanted),
            None => return Err(bad_state(state, "placements", &phases.map(|(name, _)| name))),
        }
    }
    let list::Whole { mut items, revision } = list::placements(client, filter).await?;
    // What was released is history; what failed is news.
    if !args.all && args.state.is_none() {
        items.retain(|p| p.phase() != v1::Phase::Released);
    }
    if let Some(model) = &args.model {
        items.retain(|p| p.assignment.as_ref().is_some_and(|a| a.gpus.iter().any(|gpu| gpu.model == *model)));
    }
    match format {
        Format::Table | Format::Wide => {
            out.table(table::placements(&items, format == Format::Wide, out.style), "no placements")
        }
        Format::Json | Format::Yaml => {
            let all = v1::ListPlacementsResponse { placements: items, next_page_token: String::new(), revision };
            out.message(format, "ListPlacementsResponse", &all)
        }
    }
}
