//! `berth plan`: what fits where, what does not and why; nothing is claimed.

use crate::args::{Format, Plan};
use crate::client::Client;
use crate::error::{Error, explain};
use crate::output::{Good, Out, judged, table};
use crate::{fleet, workloads};
use berth_model::Timestamp;
use berth_model::request::PlacementRequest;
use berth_proto::v1;
use comfy_table::Cell;

/// Runs the verb; `client` is made only when the controller is to be asked.
///
/// # Errors
/// [`Error::DoNotFit`] when something does not fit, and what files or call ran into.
pub async fn run(client: impl Fn() -> Result<Client, Error>, args: Plan, out: &mut Out<'_>) -> Result<(), Error> {
    let Plan { file, fleet, output } = args;
    let requests = workloads::read(&file)?;
    let answer = match fleet {
        Some(fleet) => locally(&fleet::read(&fleet)?, &requests, out.style.now()),
        None => {
            let client = client()?;
            let wire = v1::PlanRequest { requests: requests.iter().map(Into::into).collect() };
            client
                .read(wire, |r| {
                    let mut api = client.placements();
                    async move { api.plan(r).await }
                })
                .await?
        }
    };
    let unfit = answer.planned.iter().filter(|p| p.assignment.is_none()).count();
    match output.format {
        Format::Json | Format::Yaml => out.message(output.format, "PlanResponse", &answer)?,
        Format::Table | Format::Wide => print(&requests, &answer, output.format == Format::Wide, out)?,
    }
    if unfit == 0 { Ok(()) } else { Err(Error::DoNotFit { unfit, all: answer.planned.len() }) }
}

fn print(requests: &[PlacementRequest], answer: &v1::PlanResponse, wide: bool, out: &mut Out<'_>) -> Result<(), Error> {
    let mut headings = vec!["WORKLOAD", "GPUS", "ASKED", "FITS", "NODE", "MODEL"];
    if wide {
        headings.push("ADDRESSES");
    }
    let mut grid = table::with(&headings);
    for (request, planned) in requests.iter().zip(&answer.planned) {
        let asked: Vec<_> = request.models.iter().map(ToString::to_string).collect();
        let asked = if asked.is_empty() { "any".to_owned() } else { asked.join("|") };
        let fits = if planned.assignment.is_some() { judged("yes", Good::Yes) } else { judged("no", Good::No) };
        let assignment = planned.assignment.clone().unwrap_or_default();
        let model = assignment.gpus.first().map(|gpu| gpu.model.clone()).unwrap_or_default();
        let mut row = vec![
            Cell::new(&planned.name),
            Cell::new(request.gpus),
            Cell::new(asked),
            fits,
            Cell::new(&assignment.node),
            Cell::new(model),
        ];
        if wide {
            let addresses: Vec<_> = assignment.gpus.iter().map(|gpu| gpu.address.clone()).collect();
            row.push(Cell::new(addresses.join(",")));
        }
        grid.add_row(row);
    }
    out.table(grid, "nothing to plan")?;
    // Twenty alike that fail alike are told once.
    let mut told: Vec<(String, Vec<&str>)> = Vec::new();
    for planned in answer.planned.iter().filter(|p| p.assignment.is_none()) {
        let why = match &planned.explanation {
            Some(explanation) => explain(&of_this_file(explanation, &answer.planned)),
            None => planned.refusal.clone(),
        };
        match told.iter_mut().find(|(text, _)| *text == why) {
            Some((_, names)) => names.push(&planned.name),
            None => told.push((why, vec![&planned.name])),
        }
    }
    for (why, names) in told {
        let who = match names.as_slice() {
            [first, .., last] if names.len() > 3 => format!("{first} … {last} ({} workloads)", names.len()),
            _ => names.join(", "),
        };
        out.line(format_args!("\n{who}: {why}"))?;
    }
    Ok(())
}

/// An explanation in which what would have to give way is called a workload where it is one of this plan: nobody finds a
/// placement of that name.
fn of_this_file(explanation: &v1::Explanation, planned: &[v1::PlannedPlacement]) -> v1::Explanation {
    let mut explanation = explanation.clone();
    // One that does not fit takes nothing: then the name is a placement's.
    let fits = |name: &str| planned.iter().any(|p| p.name == name && p.assignment.is_some());
    for fix in explanation.nearest.iter_mut().flat_map(|nearest| &mut nearest.fixes) {
        if let Some(rest) = fix.strip_prefix("placement ")
            && rest.split_once(' ').is_some_and(|(name, _)| fits(name))
        {
            *fix = format!("workload {rest}");
        }
    }
    explanation
}

/// Plans against a described fleet, with the same brain the controller has.
fn locally(fleet: &fleet::Fleet, requests: &[PlacementRequest], now: Timestamp) -> v1::PlanResponse {
    let world = fleet.world(now);
    let planned = berth_core::schedule::plan(&world, requests, now);
    let planned = planned.into_iter().map(|planned| {
        let name = planned.name.to_string();
        match planned.outcome {
            Ok(assignment) => {
                v1::PlannedPlacement { name, assignment: Some((&assignment).into()), ..Default::default() }
            }
            Err(berth_model::reason::Refusal::NotPlaceable(explanation)) => {
                v1::PlannedPlacement { name, explanation: Some((&*explanation).into()), ..Default::default() }
            }
            Err(refusal) => v1::PlannedPlacement { name, refusal: refusal.to_string(), ..Default::default() },
        }
    });
    v1::PlanResponse { planned: planned.collect(), revision: 0 }
}
