//! Fleets as CSV with the columns of the openb trace: `sn,cpu_milli,memory_mib,gpu,model`.

use super::{At, Found, Gpu, MAX_NODES, Node, Slots, Timing};
use berth_agent_core::cards;
use berth_model::ModelName;
use berth_model::gpu::{Fingerprint, HostDriver, Survey, Verdict};
use berth_model::inventory::MAX_GPUS_PER_NODE;
use berth_model::node::{HostFacts, Platform};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    sn: String,
    cpu_milli: u64,
    memory_mib: u64,
    gpu: u16,
    model: String,
}

const COLUMNS: [&str; 5] = ["sn", "cpu_milli", "memory_mib", "gpu", "model"];

pub(super) fn parse(text: &str) -> Found {
    let mut found = Found::default();
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let headers = match reader.headers() {
        Ok(headers) => headers.clone(),
        Err(e) => {
            found.problem(Some(1), "", e);
            return found;
        }
    };
    let mut sorted: Vec<_> = headers.iter().collect();
    sorted.sort_unstable();
    if sorted != ["cpu_milli", "gpu", "memory_mib", "model", "sn"] {
        let is = headers.iter().collect::<Vec<_>>().join(",");
        found.problem(Some(1), "", format_args!("the columns must be {}, not {is}", COLUMNS.join(",")));
        return found;
    }
    for record in reader.records().take(MAX_NODES + 1) {
        match record {
            Ok(record) => {
                let line = record.position().map(|at| line(text, at));
                let row = record.deserialize::<Row>(Some(&headers)).map_err(|e| column_of(&e, &headers, &record));
                match row.and_then(node) {
                    Ok(node) => found.nodes.push(At { node, line, path: String::new() }),
                    Err((column, why)) => found.problem(line, format!("column {column}"), why),
                }
            }
            Err(e) => {
                let line = e.position().map(|at| line(text, at));
                let text = if let csv::ErrorKind::UnequalLengths { expected_len, len, .. } = e.kind() {
                    format!("{len} columns instead of {expected_len}")
                } else {
                    e.to_string()
                };
                found.problem(line, "", text);
            }
        }
    }
    found
}

/// The line a record is on. The reader's position lies before the empty lines it skips.
fn line(text: &str, at: &csv::Position) -> u64 {
    let rest = usize::try_from(at.byte()).ok().and_then(|byte| text.get(byte..)).unwrap_or_default();
    let skipped = rest.bytes().take_while(|b| matches!(b, b'\r' | b'\n')).filter(|b| *b == b'\n').count();
    at.line().saturating_add(u64::try_from(skipped).unwrap_or_default())
}

/// The column that could not be read, and why.
fn column_of(error: &csv::Error, headers: &csv::StringRecord, record: &csv::StringRecord) -> (String, String) {
    let column = if let csv::ErrorKind::Deserialize { err, .. } = error.kind() {
        err.field().and_then(|at| usize::try_from(at).ok())
    } else {
        None
    };
    match column.and_then(|at| headers.get(at).zip(record.get(at))) {
        Some((name, value)) => (name.to_owned(), format!("{value:?} is no whole number in its range")),
        None => ("?".to_owned(), error.to_string()),
    }
}

fn node(row: Row) -> Result<Node, (String, String)> {
    let Row { sn, cpu_milli, memory_mib, gpu, model } = row;
    let name = sn.parse().map_err(|e| ("sn".to_owned(), format!("{e}")))?;
    let memory_bytes = memory_mib
        .checked_mul(1 << 20)
        .ok_or_else(|| ("memory_mib".to_owned(), format!("{memory_mib} MiB are beyond counting")))?;
    if usize::from(gpu) > MAX_GPUS_PER_NODE {
        return Err(("gpu".to_owned(), format!("{gpu} GPUs, at most {MAX_GPUS_PER_NODE} are allowed")));
    }
    let mut gpus = Vec::with_capacity(usize::from(gpu));
    if gpu > 0 {
        let model: ModelName = model.parse().map_err(|e| ("model".to_owned(), format!("{e}")))?;
        // A trace may name models that no table of real cards knows: they get a card of ordinary size.
        let card = cards::by_model(&model).copied().unwrap_or(cards::GENERIC);
        let mut slots = Slots::new(gpu, 2);
        for _ in 0..gpu {
            let (paths, numa) = slots.board(1);
            for path in paths {
                let address = path.parse().map_err(|e| ("gpu".to_owned(), format!("{e}")))?;
                let survey = Survey {
                    model: model.clone(),
                    fingerprint: Fingerprint { id: card.id, serial: None },
                    vram_bytes: Some(card.vram_bytes),
                    mmio: card.mmio(),
                    numa_node: Some(numa),
                    companions: Vec::new(),
                    verdict: Verdict::Assignable,
                };
                gpus.push(Gpu { address, survey, driver: HostDriver::None });
            }
        }
    }
    gpus.sort_by(|a, b| a.address.cmp(&b.address));
    let facts = HostFacts {
        platform: Platform::Simulated,
        system: "openb trace".to_owned(),
        cluster: None,
        cpu_milli,
        memory_bytes,
        mmio_high_cap_bytes: None,
        notes: Vec::new(),
    };
    Ok(Node { name, facts, gpus, vms: Vec::new(), timing: Timing::default() })
}
