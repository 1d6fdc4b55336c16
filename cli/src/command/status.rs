//! `berth status`: the controller itself.

use crate::args::{Format, Output};
use crate::client::Client;
use crate::error::Error;
use crate::output::{Good, Out, ago, count, judged, table};
use berth_proto::v1;
use comfy_table::Cell;

/// Runs the verb.
///
/// # Errors
/// What the call ran into.
pub async fn run(client: &Client, args: Output, out: &mut Out<'_>) -> Result<(), Error> {
    let status = client
        .read(v1::StatusRequest {}, |r| {
            let mut api = client.operations();
            async move { api.status(r).await }
        })
        .await?;
    if matches!(args.format, Format::Json | Format::Yaml) {
        return out.message(args.format, "StatusResponse", &status);
    }
    let style = out.style;
    let role = if status.leader {
        let since = ago(status.leading_since.as_ref(), style);
        judged(format!("leader for {since}, term {}", status.term), Good::Yes)
    } else {
        follower(&status)
    };
    let nodes = format!("{} known, {} connected, {} ready", status.nodes, status.nodes_connected, status.nodes_ready);
    let all_ready = status.nodes == status.nodes_ready;
    let checked =
        status.checked_at.as_ref().map(|_| format!(", checked {} ago", ago(status.checked_at.as_ref(), style)));
    let invariants = if status.violations.is_empty() {
        match checked {
            Some(checked) => judged(format!("hold{checked}"), Good::Yes),
            None => Cell::new("not checked yet"),
        }
    } else {
        judged(format!("BROKEN: {}{}", status.violations.join("; "), checked.unwrap_or_default()), Good::No)
    };
    let strangers = match status.strangers.as_slice() {
        [] => Vec::new(),
        names => {
            let told = format!(
                "{} hold placements that are not this store's, and are told nothing: `berth describe node {}` says more",
                names.join(", "),
                names.first().map_or("", String::as_str)
            );
            vec![("Strangers", judged(told, Good::No))]
        }
    };
    let rows = [
        ("Endpoint", Cell::new(client.endpoint())),
        ("Version", Cell::new(&status.version)),
        ("Role", role),
        ("Store", Cell::new(format!("{}, revision {}", status.store, status.revision))),
        ("Nodes", judged(nodes, if all_ready { Good::Plain } else { Good::Wait })),
    ]
    .into_iter()
    .chain(strangers)
    .chain([
        (
            "GPUs",
            Cell::new(format!("{} known, {} available, {} claimed", status.gpus, status.gpus_available, status.claims)),
        ),
        ("Placements", Cell::new(format!("{} live, {} queued", status.placements_live, status.placements_queued))),
        ("Invariants", invariants),
    ]);
    out.table(table::pairs(rows.map(|(label, cell)| (label.to_owned(), cell))), "")
}

/// Whom it follows, and how closely.
fn follower(status: &v1::StatusResponse) -> Cell {
    if status.leader_endpoint.is_empty() {
        return judged("follower, and no controller leads now".to_owned(), Good::Wait);
    }
    let leader = format!("follower of {}, term {}", status.leader_endpoint, status.term);
    match (status.leader_revision, status.leader_revision.saturating_sub(status.revision)) {
        (0, _) => judged(format!("{leader}, which is not heard: what is observed is not fresh"), Good::Wait),
        (_, 0) => Cell::new(format!("{leader}, up to date")),
        (_, behind) => judged(format!("{leader}, {} behind", count(behind, "revision")), Good::Wait),
    }
}
