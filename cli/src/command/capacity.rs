//! `berth capacity`: how many VMs of k GPUs fit now, for each model.

use crate::args::{Format, Output};
use crate::client::Client;
use crate::error::Error;
use crate::output::{Out, table};
use berth_proto::v1;

/// Runs the verb.
///
/// # Errors
/// What the call ran into.
pub async fn run(client: &Client, args: Output, out: &mut Out<'_>) -> Result<(), Error> {
    let summary = client
        .read(v1::SummarizeRequest {}, |r| {
            let mut api = client.inventory();
            async move { api.summarize(r).await }
        })
        .await?;
    match args.format {
        Format::Table | Format::Wide => {
            out.table(table::capacity(&summary.models, args.format == Format::Wide), "no GPUs")?;
            let v1::SummarizeResponse { nodes, nodes_ready, .. } = summary;
            let lost = nodes.saturating_sub(nodes_ready);
            if lost > 0 {
                out.line(format_args!("\n{lost} of {nodes} nodes are not ready and not counted as free; `berth get nodes --state notready` lists them"))?;
            }
            Ok(())
        }
        Format::Json | Format::Yaml => out.message(args.format, "SummarizeResponse", &summary),
    }
}
