//! `berth audit`: who asked for what, what was decided, what was refused; and whether the chain of it is whole.

use crate::args::{Audit, Format};
use crate::client::{Client, broken};
use crate::error::Error;
use crate::output::{Good, Out, count, judged, moment, short, table};
use crate::progress::Progress;
use berth_proto::audit::{Broken, Chain, Mark, Taken};
use berth_proto::v1::{self, AuditRecord};
use comfy_table::Cell;
use std::fmt::Write as _;
use tonic::Status;

/// A record, and the block it is part of.
struct Told {
    /// None: not sealed yet.
    block: Option<u64>,
    record: AuditRecord,
}

/// Runs the verb.
///
/// # Errors
/// What the call ran into, or that the chain is not whole.
pub async fn run(client: &Client, args: Audit, out: &mut Out<'_>) -> Result<(), Error> {
    let Audit { verify, placement, after, head, format } = args;
    let broken = |status: &Status| broken(status, client.endpoint());
    let not_whole = |why: &Broken| Error::NotWhole(why.to_string());
    let mut parts = client.operations().audit(v1::AuditRequest { after }).await.map_err(|s| broken(&s))?.into_inner();
    let (mut chain, mut told) = (Chain::default(), Vec::new());
    let (mut base, mut blocks, mut not_recorded) = (Mark::default(), 0_u64, 0_u64);
    let mut marks = Vec::new();
    while let Some(part) = parts.message().await.map_err(|status| broken(&status))? {
        match chain.take(&part).map_err(|why| not_whole(&why))? {
            Taken::Base(mark) => {
                base = mark;
                marks.push(mark);
            }
            Taken::Block(mark, block) => {
                blocks += 1;
                not_recorded = not_recorded.saturating_add(block.not_recorded);
                told.extend(block.records.into_iter().map(|record| Told { block: Some(mark.number), record }));
                marks.push(mark);
            }
            Taken::Head(_) => {}
            Taken::Unsealed(records) => told.extend(records.into_iter().map(|record| Told { block: None, record })),
        }
    }
    let end = chain.finish().map_err(|why| not_whole(&why))?;
    if let Some((number, hash)) = head {
        match marks.iter().find(|mark| mark.number == number) {
            Some(mark) if hex(mark) == hash => {}
            Some(_) => return Err(Error::NotWhole(format!("block {number} is another one than was written down"))),
            None => {
                let text =
                    format!("block {number} is not kept; what is kept goes from {} to {}", base.number, end.number);
                return Err(Error::NotWhole(text));
            }
        }
    }
    told.retain(|told| placement.as_ref().is_none_or(|name| told.record.placement == *name));
    match format {
        None if verify => {}
        None | Some(Format::Table) => print(&told, false, out)?,
        Some(Format::Wide) => print(&told, true, out)?,
        Some(form @ (Format::Json | Format::Yaml)) => {
            for Told { record, .. } in &told {
                out.event(form, "AuditRecord", record)?;
            }
        }
    }
    if verify {
        let counted = if not_recorded > 0 {
            format!(", {} only counted", count(not_recorded, "refused call"))
        } else {
            String::new()
        };
        // The head stands last, for whoever cuts it off the line.
        let text = format!(
            "whole: {} after {}{counted}, head {}:{}",
            count(blocks, "block"),
            base.number,
            end.number,
            hex(&end)
        );
        match format {
            Some(Format::Json | Format::Yaml) => Progress::stderr().say(text),
            None | Some(Format::Table | Format::Wide) => out.line(text)?,
        }
    }
    Ok(())
}

fn hex(mark: &Mark) -> String {
    mark.hash.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

fn print(told: &[Told], wide: bool, out: &mut Out<'_>) -> Result<(), Error> {
    let mut headings = vec!["WHEN", "CALLER", "ACTION", "PLACEMENT", "OUTCOME", "NODE", "BLOCK"];
    if wide {
        headings.extend(["UID", "ON", "TRACE"]);
    }
    let mut rows = table::with(&headings);
    for Told { block, record } in told {
        let when = moment(record.at.as_ref()).map(|at| at.to_string()).unwrap_or_default();
        let phase = short(record.phase().as_str_name(), "PHASE_");
        let role = record.removed_role.as_ref().map(|role| role.name.as_str());
        let outcome = match (record.refused.as_str(), record.forced.as_str()) {
            ("", "") => role.map_or_else(
                || Cell::new(phase),
                |name| judged(format!("clustered role removed: {name:?}"), Good::Wait),
            ),
            ("", forced) => judged(format!("{phase}, forced: {forced}"), Good::Wait),
            (refused, _) => judged(format!("refused: {refused}"), Good::No),
        };
        let caller = if record.caller.is_empty() { "-" } else { &record.caller };
        let mut row = vec![
            Cell::new(when),
            Cell::new(caller),
            Cell::new(&record.action),
            Cell::new(&record.placement),
            outcome,
            Cell::new(&record.node),
            Cell::new(block.map_or_else(|| "not sealed".to_owned(), |number| number.to_string())),
        ];
        if wide {
            row.extend([&record.uid, &record.gpus.join(" "), &record.traceparent].map(Cell::new));
        }
        rows.add_row(row);
    }
    out.table(rows, "nothing was asked for yet")
}
