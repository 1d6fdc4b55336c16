//! One GPU: what it is, and each of the six terms that make it available.

use super::meaning;
use crate::client::Client;
use crate::command::list;
use crate::error::Error;
use crate::output::{Good, Out, Style, ago, judged, short, size, table};
use berth_model::gpu::MmioSize;
use berth_model::mmio::{check, required_high, required_low};
use berth_proto::v1;
use comfy_table::{Cell, Table};

/// The terms of "available" by their names on the wire, with what each means.
const TERMS: [(&str, &str); 6] = [
    ("assignable", "surveyed assignable"),
    ("healthy", "healthy"),
    ("unclaimed", "not claimed by a placement"),
    ("uncordoned", "its node is not cordoned"),
    ("in_reach", "seen in the host or the pool"),
    ("node_ready", "its node is connected and fresh"),
];

pub(super) async fn run(client: &Client, id: String, out: &mut Out<'_>) -> Result<(), Error> {
    let gpu = client
        .read(v1::GetGpuRequest { id }, |r| {
            let mut api = client.inventory();
            async move { api.get_gpu(r).await }
        })
        .await?;
    let get = v1::GetNodeRequest { name: gpu.node.clone() };
    let node = client
        .read(get, |r| {
            let mut api = client.inventory();
            async move { api.get_node(r).await }
        })
        .await?;
    out.table(facts(&gpu, &node, out.style), "")?;
    out.line(if gpu.available { "\nAvailable: yes" } else { "\nAvailable: no" })?;
    out.table(terms(&gpu), "")?;
    let mut drift =
        list::drift(client, v1::ListDriftRequest { node: gpu.node.clone(), ..Default::default() }).await?.items;
    let address = gpu.observed.as_ref().map(|observed| observed.address.clone()).unwrap_or_default();
    drift.retain(|difference| difference.device == address);
    out.line("\nDrift")?;
    out.table(
        table::drift(&drift, out.style),
        if node.ready { "none" } else { "not known while the node is not ready" },
    )?;
    if gpu.placement.is_empty() {
        return Ok(());
    }
    let placement = crate::command::wait::get(client, &gpu.placement).await?;
    let meant: Vec<_> = meaning::of_placement(&placement).collect();
    if !meant.is_empty() {
        out.line(format_args!("\nErrors of placement {}", gpu.placement))?;
    }
    for line in meant {
        out.line(line)?;
    }
    Ok(())
}

fn facts(gpu: &v1::Gpu, node: &v1::Node, style: Style) -> Table {
    let observed = gpu.observed.clone().unwrap_or_default();
    let survey = observed.survey.clone().unwrap_or_default();
    let fingerprint = survey.fingerprint.clone().unwrap_or_default();
    let mmio = survey.mmio.unwrap_or_default();
    let or = |text: String, none: &str| if text.is_empty() { none.to_owned() } else { text };
    let seen = match gpu.observed_at {
        Some(_) => format!("{}, {} ago", table::gpu_state(&observed), ago(gpu.observed_at.as_ref(), style)),
        None => format!("{}, not reported since the controller started", table::gpu_state(&observed)),
    };
    let vm = if observed.vm_id.is_empty() { "none".to_owned() } else { observed.vm_id.clone() };
    let findings: Vec<_> = survey.findings().map(|f| short(f.as_str_name(), "FINDING_")).collect();
    let verdict = short(survey.verdict().as_str_name(), "VERDICT_");
    let rows = [
        ("GPU", gpu.id.clone()),
        ("Model", survey.model.clone()),
        ("Memory", or(size(survey.vram_bytes), "not known")),
        ("PCI id", fingerprint.pci_id),
        ("Serial", or(fingerprint.serial, "not readable")),
        ("NUMA node", survey.numa_node.map_or_else(|| "not known".to_owned(), |n| n.to_string())),
        (
            "MMIO",
            format!("{} below 4 GiB, {} above", or(size(mmio.low_bytes), "none"), or(size(mmio.high_bytes), "none")),
        ),
        ("Address space", needs(mmio, node)),
        ("Companions", or(survey.companions.join(", "), "none")),
        ("Survey", if findings.is_empty() { verdict } else { format!("{verdict}: {}", findings.join(", ")) }),
        ("Seen", seen),
        ("Windows problem", meaning::problem(observed.problem)),
        ("In VM", vm),
        ("Placement", or(gpu.placement.clone(), "none")),
    ];
    table::pairs(rows.map(|(label, text)| (label.to_owned(), Cell::new(text))))
}

/// What a VM with this GPU alone needs of address space, and whether a VM there can have it.
fn needs(mmio: v1::MmioSize, node: &v1::Node) -> String {
    let v1::MmioSize { low_bytes, high_bytes } = mmio;
    let alone = [MmioSize { low_bytes, high_bytes }];
    let cap = node.facts.as_ref().and_then(|facts| facts.mmio_high_cap_bytes);
    let (low, high) = (required_low(&alone) >> 20, required_high(&alone).div_ceil(1 << 20));
    let fits = match (check(&alone, cap), cap) {
        (Err(excess), _) => format!("which does not fit: {excess} on {}", node.name),
        (Ok(()), Some(cap)) => format!("{} allows {} MiB high", node.name, cap >> 20),
        (Ok(()), None) => format!("how much {} allows was not measured", node.name),
    };
    format!("needs {low} MiB of low and {high} MiB of high MMIO alone; {fits}")
}

fn terms(gpu: &v1::Gpu) -> Table {
    let mut grid = table::with(&["", "TERM", "REASON"]);
    for (name, meaning) in TERMS {
        let against: Vec<_> = gpu.unavailable.iter().filter(|u| u.term == name).map(|u| u.text.clone()).collect();
        let mark = if against.is_empty() { judged("✓", Good::Yes) } else { judged("✗", Good::No) };
        grid.add_row([mark, Cell::new(meaning), Cell::new(against.join("; "))]);
    }
    // A newer controller may know a term that is not in the table; it must not look as if nothing spoke against it.
    for other in gpu.unavailable.iter().filter(|u| TERMS.iter().all(|(name, _)| *name != u.term)) {
        grid.add_row([judged("✗", Good::No), Cell::new(&other.term), Cell::new(&other.text)]);
    }
    grid
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn every_term_has_a_mark_and_those_against_it_a_reason() {
        let gpu = v1::Gpu {
            unavailable: vec![
                v1::Unavailable {
                    reason: "Claimed".into(),
                    term: "unclaimed".into(),
                    text: "claimed by placement p".into(),
                },
                v1::Unavailable { reason: "New".into(), term: "rested".into(), text: "it is tired".into() },
            ],
            ..Default::default()
        };
        expect![[r#"
                TERM                              REASON
            ✓   surveyed assignable
            ✓   healthy
            ✗   not claimed by a placement        claimed by placement p
            ✓   its node is not cordoned
            ✓   seen in the host or the pool
            ✓   its node is connected and fresh
            ✗   rested                            it is tired"#]]
        .assert_eq(&table::render(&mut terms(&gpu), false));
    }
}
