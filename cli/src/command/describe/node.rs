//! One node: what it is, why it takes nothing, and what is on it.

use crate::client::Client;
use crate::command::list;
use crate::error::Error;
use crate::output::{Out, Style, ago, cores, short, size, table};
use berth_proto::v1;
use comfy_table::{Cell, Table};

pub(super) async fn run(client: &Client, name: String, out: &mut Out<'_>) -> Result<(), Error> {
    let get = v1::GetNodeRequest { name: name.clone() };
    let node = client
        .read(get, |r| {
            let mut api = client.inventory();
            async move { api.get_node(r).await }
        })
        .await?;
    let gpus = list::gpus(client, v1::ListGpusRequest { node: name.clone(), ..Default::default() }).await?.items;
    let vms = list::vms(client, v1::ListVmsRequest { node: name.clone(), ..Default::default() }).await?.items;
    let filter = v1::ListPlacementsRequest { node: name, live_only: true, ..Default::default() };
    let placements = list::placements(client, filter).await?.items;
    out.table(facts(&node, out.style), "")?;
    for (title, table, empty) in [
        ("Cordons", cordons(&node, out.style), "none: new placements may come"),
        ("GPUs", table::gpus(&gpus, false, out.style), "none"),
        ("VMs", table::vms(&vms, false), "none"),
        ("Placements", table::placements(&placements, false, out.style), "none"),
    ] {
        out.line(format_args!("\n{title}"))?;
        out.table(table, empty)?;
    }
    Ok(())
}

fn facts(node: &v1::Node, style: Style) -> Table {
    let facts = node.facts.clone().unwrap_or_default();
    let reserved = node.reserved.unwrap_or_default();
    let mut rows = vec![
        ("Node", Cell::new(&node.name)),
        ("Status", table::node_status(node)),
        ("Cluster", Cell::new(if facts.cluster.is_empty() { "none" } else { &facts.cluster })),
        ("Host", Cell::new(format!("{}, {}", short(facts.platform().as_str_name(), "PLATFORM_"), facts.system))),
        ("Agent", Cell::new(format!("{}, heard of {} ago", node.agent_version, ago(node.last_seen.as_ref(), style)))),
        (
            "Processor",
            Cell::new(format!(
                "{} cores, {} reserved by placements",
                cores(facts.cpu_milli),
                cores(reserved.cpu_milli)
            )),
        ),
        (
            "Memory",
            Cell::new(format!(
                "{}, {} reserved by placements",
                shown(facts.memory_bytes),
                shown(reserved.memory_bytes)
            )),
        ),
        (
            "MMIO",
            Cell::new(match facts.mmio_high_cap_bytes {
                Some(cap) => format!("a VM can have {} above 4 GiB", size(cap)),
                None => "not measured: how much a VM can have above 4 GiB is not known".to_owned(),
            }),
        ),
        ("GPUs", Cell::new(format!("{}, {} available", node.gpus, node.gpus_available))),
        ("Generation", Cell::new(node.generation)),
    ];
    if !node.ready {
        let since = ago(node.since.as_ref(), style);
        rows.insert(2, ("Because", Cell::new(format!("{} (for {since})", node.not_ready_reason))));
    }
    table::pairs(rows.into_iter().map(|(label, cell)| (label.to_owned(), cell)))
}

fn shown(bytes: u64) -> String {
    if bytes == 0 { "none".to_owned() } else { size(bytes) }
}

fn cordons(node: &v1::Node, style: Style) -> Table {
    let mut table = table::with(&["LABEL", "AGE", "REASON"]);
    for cordon in &node.cordons {
        table.add_row([
            Cell::new(&cordon.label),
            Cell::new(ago(cordon.since.as_ref(), style)),
            Cell::new(&cordon.reason),
        ]);
    }
    table
}
