//! `berth capacity`: how many VMs of k GPUs fit now, for each model.

use crate::args::{Format, Output};
use crate::client::Client;
use crate::error::Error;
use crate::output::{Out, count, table};
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
            for (model, limit) in summary.models.iter().flat_map(|m| m.limits.iter().map(move |l| (&m.model, l))) {
                out.line(format_args!("\n{}", limited(model, limit)))?;
            }
            let v1::SummarizeResponse { nodes, nodes_ready, .. } = summary;
            let lost = nodes.saturating_sub(nodes_ready);
            if lost > 0 {
                let (nodes, are) = (count(nodes, "node"), if lost == 1 { "is" } else { "are" });
                out.line(format_args!(
                    "\n{lost} of {nodes} {are} not ready and not counted as free; `berth get nodes --state notready` lists them"
                ))?;
            }
            Ok(())
        }
        Format::Json | Format::Yaml => out.message(args.format, "SummarizeResponse", &summary),
    }
}

/// Why a VM cannot have more of a model than so many, although more are free.
fn limited(model: &str, limit: &v1::MmioLimit) -> String {
    let v1::MmioLimit { nodes, gpus_per_vm, node, text } = limit;
    let most = match gpus_per_vm {
        0 => format!("no VM can have {model}"),
        most => format!("a VM can have at most {most} × {model}"),
    };
    let more = gpus_per_vm.saturating_add(1);
    let nodes = count(*nodes, "node");
    format!("On {nodes} {most}, by address space: {more} would need {text} ({node})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_told_with_its_numbers() {
        let limit = |nodes, gpus_per_vm| v1::MmioLimit {
            nodes,
            gpus_per_vm,
            node: "n1".into(),
            text: "524800 MiB of high MMIO, 131072 MiB can be had".into(),
        };
        assert_eq!(
            limited("H100SXM", &limit(3, 1)),
            "On 3 nodes a VM can have at most 1 × H100SXM, by address space: 2 would need 524800 MiB of high MMIO, 131072 \
             MiB can be had (n1)"
        );
        assert!(
            limited("H100SXM", &limit(1, 0)).starts_with("On 1 node no VM can have H100SXM, by address space: 1 would")
        );
    }
}
