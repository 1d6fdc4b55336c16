//! One node: what it is, why it takes nothing, and what is on it.

use crate::client::Client;
use crate::command::list;
use crate::error::Error;
use crate::output::{Out, Style, ago, cores, short, size, table};
use berth_model::gpu::MmioSize;
use berth_model::mmio::check;
use berth_proto::v1;
use comfy_table::{Cell, Table};
use std::collections::BTreeMap;

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
    let drift = list::drift(client, v1::ListDriftRequest { node: name.clone(), ..Default::default() }).await?.items;
    let filter = v1::ListPlacementsRequest { node: name, live_only: true, ..Default::default() };
    let placements = list::placements(client, filter).await?.items;
    out.table(facts(&node, out.style), "")?;
    for line in bounded(&node, &gpus) {
        out.line(line)?;
    }
    for (title, table, empty) in [
        ("Cordons", cordons(&node, out.style), "none: new placements may come"),
        ("GPUs", table::gpus(&gpus, false, out.style), "none"),
        ("VMs", table::vms(&vms, false), "none"),
        ("Placements", table::placements(&placements, false, out.style), "none"),
        (
            "Drift",
            table::drift(&drift, out.style),
            if node.ready { "none" } else { "not known while the node is not ready" },
        ),
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
    rows.extend(facts.notes.iter().map(|note| ("Note", Cell::new(note))));
    if !node.ready {
        let since = ago(node.since.as_ref(), style);
        rows.insert(2, ("Because", Cell::new(format!("{} (for {since})", node.not_ready_reason))));
    }
    table::pairs(rows.into_iter().map(|(label, cell)| (label.to_owned(), cell)))
}

/// Models of which one VM cannot have address space for all that the node has: how many it can have, and why not more.
fn bounded(node: &v1::Node, gpus: &[v1::Gpu]) -> Vec<String> {
    let cap = node.facts.as_ref().and_then(|facts| facts.mmio_high_cap_bytes);
    let mut models: BTreeMap<&str, Vec<MmioSize>> = BTreeMap::new();
    for survey in gpus.iter().filter_map(|gpu| gpu.observed.as_ref()?.survey.as_ref()) {
        let v1::MmioSize { low_bytes, high_bytes } = survey.mmio.unwrap_or_default();
        models.entry(&survey.model).or_default().push(MmioSize { low_bytes, high_bytes });
    }
    let told = |(model, mut sizes): (&str, Vec<MmioSize>)| {
        sizes.sort_unstable_by_key(|size| (size.high_bytes, size.low_bytes));
        let (more, excess) = (1..=sizes.len()).find_map(|n| Some((n, check(&sizes[..n], cap).err()?)))?;
        Some(format!("A VM can have at most {} of {} {model}: {more} need {excess}", more - 1, sizes.len()))
    };
    models.into_iter().filter_map(told).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_by_address_space_is_told_with_its_numbers() {
        let gpu = v1::Gpu {
            observed: Some(v1::ObservedGpu {
                survey: Some(v1::Survey {
                    model: "A30".into(),
                    mmio: Some(v1::MmioSize { low_bytes: 16 << 20, high_bytes: (32 << 30) + (32 << 20) }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let facts = v1::HostFacts { mmio_high_cap_bytes: Some(131_072 << 20), ..Default::default() };
        let node = v1::Node { facts: Some(facts), ..Default::default() };
        let gpus = vec![gpu; 4];
        assert_eq!(
            bounded(&node, &gpus),
            ["A VM can have at most 1 of 4 A30: 2 need 131616 MiB of high MMIO, 131072 MiB can be had"]
        );
        assert!(bounded(&v1::Node::default(), &gpus).is_empty(), "nobody measured the cap");
    }
}
