//! `berth adopt`: take over as placements what VMs have already.

use crate::args::{Adopt, Format, ReturnTo};
use crate::client::Client;
use crate::error::{Error, Unsure};
use crate::output::{Good, Out, judged, short, table};
use berth_proto::v1;
use comfy_table::{Cell, Table};

/// Runs the verb: what would be done is shown, then done.
///
/// # Errors
/// A refusal, or what the calls ran into. What was adopted before stays so, and asking again goes on.
pub async fn run(client: &Client, args: Adopt, out: &mut Out<'_>) -> Result<(), Error> {
    let (dry_run, format) = (args.dry_run, args.output.format);
    let request = request(args);
    let found = call(client, v1::AdoptRequest { dry_run: true, ..request.clone() }).await?;
    let table = matches!(format, Format::Table | Format::Wide);
    if table {
        out.table(rows(&found), "no VM of this node has a device that Berth did not give it")?;
    }
    // Only what was shown: a VM that gets a device meanwhile is for the next time.
    let meant: Vec<_> = (found.vms.iter())
        .filter(|vm| vm.outcome() == v1::AdoptOutcome::Would)
        .filter_map(|vm| vm.vm.as_ref().map(|vm| vm.id.clone()))
        .collect();
    if dry_run || meant.is_empty() {
        return if table {
            out.line(format_args!("\n{}", sum(&found)))
        } else {
            out.message(format, "AdoptResponse", &found)
        };
    }
    let mut done = v1::AdoptResponse::default();
    // A call takes so many names at most.
    for part in meant.chunks(berth_model::request::MAX_ALTERNATIVES) {
        let answer = call(client, v1::AdoptRequest { vms: part.to_vec(), ..request.clone() }).await?;
        done.vms.extend(answer.vms);
        done.revision = done.revision.max(answer.revision);
    }
    // What was skipped at first is part of the answer.
    let (adopted, revision) = (done.vms, done.revision);
    let id = |vm: &v1::AdoptedVm| vm.vm.as_ref().map(|vm| vm.id.clone());
    let merged = found.vms.into_iter().map(|vm| adopted.iter().find(|new| id(new) == id(&vm)).cloned().unwrap_or(vm));
    let done = v1::AdoptResponse { vms: merged.collect(), revision };
    if table { out.line(format_args!("\n{}", sum(&done))) } else { out.message(format, "AdoptResponse", &done) }
}

async fn call(client: &Client, request: v1::AdoptRequest) -> Result<v1::AdoptResponse, Error> {
    // Whatever came of a call whose answer was lost: what has a placement is skipped the next time.
    client
        .write(request, Unsure::Again, |r| {
            let mut api = client.placements();
            async move { api.adopt(r).await }
        })
        .await
}

fn request(args: Adopt) -> v1::AdoptRequest {
    let Adopt { node, vms, dry_run, name, name_prefix, owner, tags, return_to, output: _ } = args;
    let return_to = match return_to {
        ReturnTo::Host => v1::ReturnTo::Host,
        ReturnTo::Pool => v1::ReturnTo::Pool,
    };
    v1::AdoptRequest {
        node,
        vms,
        dry_run,
        name: name.unwrap_or_default(),
        name_prefix: name_prefix.unwrap_or_default(),
        owner: owner.unwrap_or_default(),
        tags,
        return_to: return_to.into(),
    }
}

fn rows(answer: &v1::AdoptResponse) -> Table {
    let mut grid = table::with(&["VM", "STATE", "GPUS", "MODELS", "ADDRESSES", "CHANGE"]);
    for found in &answer.vms {
        let vm = found.vm.clone().unwrap_or_default();
        let mut models: Vec<_> = found.gpus.iter().map(|gpu| gpu.model.clone()).collect();
        models.dedup();
        let addresses: Vec<_> = found.gpus.iter().map(|gpu| gpu.address.clone()).collect();
        grid.add_row([
            Cell::new(vm.name.clone()),
            Cell::new(short(vm.state().as_str_name(), "VM_STATE_")),
            Cell::new(found.gpus.len()),
            Cell::new(models.join(", ")),
            Cell::new(addresses.join(", ")),
            change(found),
        ]);
    }
    grid
}

fn change(found: &v1::AdoptedVm) -> Cell {
    match found.outcome() {
        v1::AdoptOutcome::Would => judged(
            format!("placement {}, Active; its GPUs claimed, the VM pinned; nothing on the host", found.placement),
            Good::Yes,
        ),
        v1::AdoptOutcome::Adopted => judged(format!("placement {}", found.placement), Good::Yes),
        v1::AdoptOutcome::Skipped if found.reason == "AlreadyPlaced" => Cell::new(format!("none: {}", found.text)),
        v1::AdoptOutcome::Skipped | v1::AdoptOutcome::Unspecified => {
            judged(format!("skipped ({}): {}", found.reason, found.text), Good::Wait)
        }
    }
}

/// What it came to, as a sentence.
fn sum(answer: &v1::AdoptResponse) -> String {
    let count = |outcome: v1::AdoptOutcome| answer.vms.iter().filter(|vm| vm.outcome() == outcome).count();
    let s = |count: usize| if count == 1 { "" } else { "s" };
    let (would, adopted, skipped) =
        (count(v1::AdoptOutcome::Would), count(v1::AdoptOutcome::Adopted), count(v1::AdoptOutcome::Skipped));
    if adopted > 0 {
        let later: Vec<_> = (answer.vms.iter())
            .filter(|vm| vm.outcome() == v1::AdoptOutcome::Skipped && vm.reason != "AlreadyPlaced")
            .filter_map(|vm| Some(format!("{} ({})", vm.vm.as_ref()?.name, vm.reason)))
            .collect();
        let left = if later.is_empty() { String::new() } else { format!("; left alone: {}", later.join(", ")) };
        format!("{adopted} VM{} adopted{left}. Nothing was changed on the host.", s(adopted))
    } else {
        format!("{would} VM{} can be adopted, {skipped} skipped. Nothing was changed.", s(would))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn found(name: &str, outcome: v1::AdoptOutcome, reason: &str) -> v1::AdoptedVm {
        v1::AdoptedVm {
            vm: Some(v1::ObservedVm { name: name.into(), state: v1::VmState::Running.into(), ..Default::default() }),
            gpus: vec![v1::AssignedGpu { model: "A16".into(), address: "0000:41:00.0".into(), ..Default::default() }],
            outcome: outcome.into(),
            placement: name.into(),
            reason: reason.into(),
            text: "it is so".into(),
        }
    }

    #[test]
    fn the_table_says_what_would_be_changed_and_why_not() {
        let answer = v1::AdoptResponse {
            vms: vec![
                found("render", v1::AdoptOutcome::Would, ""),
                found("sql", v1::AdoptOutcome::Skipped, "Clustered"),
                found("old", v1::AdoptOutcome::Skipped, "AlreadyPlaced"),
            ],
            revision: 1,
        };
        expect![[r#"
            VM       STATE     GPUS   MODELS   ADDRESSES      CHANGE
            render   Running      1   A16      0000:41:00.0   placement render, Active; its GPUs claimed, the VM pinned; nothing on the host
            sql      Running      1   A16      0000:41:00.0   skipped (Clustered): it is so
            old      Running      1   A16      0000:41:00.0   none: it is so"#]]
        .assert_eq(&table::render(&mut rows(&answer), false));
        assert_eq!(sum(&answer), "1 VM can be adopted, 2 skipped. Nothing was changed.");
        let mut done = answer;
        done.vms[0].set_outcome(v1::AdoptOutcome::Adopted);
        assert_eq!(sum(&done), "1 VM adopted; left alone: sql (Clustered). Nothing was changed on the host.");
    }
}
