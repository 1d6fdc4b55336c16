//! One placement: what was asked, where it is in its life, what it holds, and what happens next.

use super::meaning;
use crate::client::Client;
use crate::command::wait;
use crate::error::Error;
use crate::output::{Good, Out, Style, age, ago, cores, judged, moment, short, size, table};
use berth_model::gpu::MmioSize;
use berth_model::mmio::{required_high, required_low};
use berth_proto::v1;
use comfy_table::{Cell, Table};

pub(super) async fn run(client: &Client, name: &str, out: &mut Out<'_>) -> Result<(), Error> {
    let placement = wait::get(client, name).await?;
    out.table(life(&placement, out.style), "")?;
    let meant: Vec<_> = meaning::of_placement(&placement).collect();
    if !meant.is_empty() {
        out.line("\nWhat the errors mean")?;
    }
    for line in meant {
        out.line(line)?;
    }
    out.line("\nRequest")?;
    out.table(request(&placement), "")?;
    out.line("\nGPUs")?;
    out.table(gpus(&placement), "none yet")?;
    if let Some(needs) = needs(&placement) {
        out.line(needs)?;
    }
    out.line("\nConditions")?;
    out.table(conditions(&placement, out.style), "none")?;
    if !placement.history.is_empty() {
        out.line("\nHistory")?;
        out.table(history(&placement, out.style), "")?;
    }
    let node = wait::node_of(client, &placement).await;
    out.line(format_args!("\nNext\n{}", next(&placement, node.as_ref(), out.style)))
}

fn life(placement: &v1::Placement, style: Style) -> Table {
    let request = placement.request.clone().unwrap_or_default();
    let since = ago(placement.phase_since.as_ref(), style);
    let left = match left(placement, style) {
        Some(left) => format!(" (since {since}, {left})"),
        None => format!(" (since {since})"),
    };
    let phase_name = format!("{}{left}", table::phase_name(placement));
    let vm = match placement.vm_id.as_str() {
        "" => format!("{} (not seen yet)", request.vm),
        id if id.eq_ignore_ascii_case(&request.vm) => request.vm.clone(),
        id => format!("{} ({id})", request.vm),
    };
    let mut rows = vec![
        ("Placement", Cell::new(&request.name)),
        ("Phase", judged(phase_name, table::phase_good(placement))),
        ("VM", Cell::new(vm)),
    ];
    if let Some(assignment) = &placement.assignment {
        rows.push(("Node", Cell::new(&assignment.node)));
        if let Some(pin) = &assignment.pin {
            let reason = short(pin.reason().as_str_name(), "PIN_REASON_");
            rows.push((
                "Pin",
                Cell::new(format!("to {}: {reason}, for {}", assignment.node, ago(pin.since.as_ref(), style))),
            ));
        }
    }
    if let Some(step) = &placement.current_step {
        rows.push((
            "Step",
            Cell::new(format!("{}, attempt {}", short(step.step().as_str_name(), "STEP_"), step.attempt)),
        ));
        if let Some(error) = &step.last_error {
            rows.push(("Last error", judged(said(error), Good::Wait)));
        }
    }
    if let Some(failure) = &placement.failure {
        rows.push(("Failure", judged(&failure.text, Good::No)));
        if placement.phase() == v1::Phase::Failed {
            let undone = if placement.undone { "yes, its GPUs are free" } else { "not yet, its GPUs stay claimed" };
            rows.push(("Undone", Cell::new(undone)));
        }
    }
    rows.push((
        "Created",
        Cell::new(format!(
            "{} ago by {}",
            ago(placement.created.as_ref(), style),
            or(&placement.caller, "nobody known")
        )),
    ));
    if let Some(v1::Adoption { owner, tags }) = adoption(placement) {
        rows.push(("Adopted", Cell::new("yes: its GPUs were in the VM already")));
        if !owner.is_empty() {
            rows.push(("Owner", Cell::new(owner)));
        }
        if !tags.is_empty() {
            rows.push(("Tags", Cell::new(tags.join(", "))));
        }
    }
    rows.push(("Version", Cell::new(placement.version)));
    rows.push(("Uid", Cell::new(&placement.uid)));
    if !placement.traceparent.is_empty() {
        rows.push(("Trace", Cell::new(placement.traceparent.split('-').nth(1).unwrap_or(&placement.traceparent))));
    }
    table::pairs(rows.into_iter().map(|(label, cell)| (label.to_owned(), cell)))
}

fn or<'a>(text: &'a str, none: &'a str) -> &'a str {
    if text.is_empty() { none } else { text }
}

fn said(error: &v1::StepError) -> String {
    format!("{} ({})", error.text, short(error.class().as_str_name(), "STEP_ERROR_CLASS_"))
}

/// How long the phase may go on.
fn left(placement: &v1::Placement, style: Style) -> Option<String> {
    let deadline = moment(placement.deadline.as_ref())?;
    Some(if deadline > style.now() {
        format!("{} left", age(deadline.since(style.now())))
    } else {
        format!("over by {}", age(style.now().since(deadline)))
    })
}

fn request(placement: &v1::Placement) -> Table {
    let v1::PlacementRequest {
        request_id,
        name: _,
        vm: _,
        gpus,
        models,
        exclude_models,
        min_vram_bytes,
        node,
        exclude_nodes,
        cluster,
        spread_group,
        locality: _,
        resources,
        hold,
        queue,
        allow_standalone,
        verify: _,
        return_to: _,
        install_driver,
    } = placement.request.clone().unwrap_or_default();
    let asked = placement.request.clone().unwrap_or_default();
    let length = |of: Option<prost_types::Duration>| {
        of.and_then(|d| std::time::Duration::try_from(d).ok()).map(|d| humantime::format_duration(d).to_string())
    };
    let resources = resources.unwrap_or_default();
    let wanted = [
        ("GPUs", Some(gpus.to_string())),
        ("Models", Some(or(&models.join(" or "), "any").to_owned())),
        ("Not models", Some(exclude_models.join(", "))),
        ("Memory of each", Some(size(min_vram_bytes)).filter(|s| !s.is_empty()).map(|s| format!("at least {s}"))),
        ("Node", Some(node)),
        ("Not nodes", Some(exclude_nodes.join(", "))),
        ("Cluster", Some(cluster)),
        ("Spread group", Some(spread_group)),
        ("One NUMA node", (asked.locality() == v1::Locality::Required).then(|| "required".to_owned())),
        ("Cores", (resources.cpu_milli > 0).then(|| cores(resources.cpu_milli))),
        ("Memory", Some(size(resources.memory_bytes))),
        ("Hold", length(hold)),
        ("Queue", length(queue)),
        ("Cluster role", allow_standalone.then(|| "the VM may be taken out of it".to_owned())),
        (
            "Verify",
            (asked.verify() as i32 > v1::VerifyLevel::None as i32)
                .then(|| short(asked.verify().as_str_name(), "VERIFY_LEVEL_")),
        ),
        ("Install driver", Some(install_driver)),
        (
            "GPUs return to",
            Some(if asked.return_to() == v1::ReturnTo::Pool { "the pool" } else { "the host" }.to_owned()),
        ),
        ("Request id", Some(request_id)),
    ];
    let said = wanted
        .into_iter()
        .filter_map(|(label, text)| text.filter(|t| !t.is_empty()).map(|t| (label.to_owned(), Cell::new(t))));
    table::pairs(said)
}

fn gpus(placement: &v1::Placement) -> Table {
    let mut grid = table::with(&["ADDRESS", "MODEL", "PCI-ID", "SERIAL", "MMIO"]);
    for gpu in placement.assignment.iter().flat_map(|a| &a.gpus) {
        let fingerprint = gpu.fingerprint.clone().unwrap_or_default();
        let mmio = gpu.mmio.unwrap_or_default();
        grid.add_row([
            gpu.address.clone(),
            gpu.model.clone(),
            fingerprint.pci_id,
            fingerprint.serial,
            size(mmio.low_bytes.saturating_add(mmio.high_bytes)),
        ]);
    }
    grid
}

/// What its VM needs of address space for all its GPUs.
fn needs(placement: &v1::Placement) -> Option<String> {
    let sizes: Vec<_> = (placement.assignment.iter().flat_map(|a| &a.gpus))
        .map(|gpu| gpu.mmio.unwrap_or_default())
        .map(|v1::MmioSize { low_bytes, high_bytes }| MmioSize { low_bytes, high_bytes })
        .collect();
    let (low, high) = (required_low(&sizes) >> 20, required_high(&sizes).div_ceil(1 << 20));
    (!sizes.is_empty()).then(|| format!("The VM needs {low} MiB of low and {high} MiB of high MMIO for them."))
}

fn conditions(placement: &v1::Placement, style: Style) -> Table {
    let mut grid = table::with(&["CONDITION", "AGE", "WHAT"]);
    for condition in &placement.conditions {
        grid.add_row([
            judged(&condition.r#type, Good::No),
            Cell::new(ago(condition.since.as_ref(), style)),
            Cell::new(&condition.text),
        ]);
    }
    grid
}

/// What is to be known later: how it was adopted, what was done by force, what was run in its guest.
fn history(placement: &v1::Placement, style: Style) -> Table {
    let mut grid = table::with(&["AGE", "WHAT"]);
    for note in &placement.history {
        let what = match &note.what {
            Some(v1::note::What::Installed(run)) if !run.output.is_empty() => {
                format!("{}; it said:\n{}", note.text, run.output)
            }
            Some(
                v1::note::What::Installed(_)
                | v1::note::What::Forced(_)
                | v1::note::What::Adopted(_)
                | v1::note::What::RoleRemoved(_),
            )
            | None => note.text.clone(),
        };
        grid.add_row([Cell::new(ago(note.at.as_ref(), style)), Cell::new(what)]);
    }
    grid
}

/// How it was adopted, if it was.
fn adoption(placement: &v1::Placement) -> Option<&v1::Adoption> {
    placement.history.iter().find_map(|note| match &note.what {
        Some(v1::note::What::Adopted(adoption)) => Some(adoption),
        Some(v1::note::What::Forced(_) | v1::note::What::Installed(_) | v1::note::What::RoleRemoved(_)) | None => None,
    })
}

/// What happens next, or what somebody must do; `known` is the placement's node, where it was asked for.
pub(in crate::command) fn next(placement: &v1::Placement, known: Option<&v1::Node>, style: Style) -> String {
    let request = placement.request.clone().unwrap_or_default();
    let (name, vm) = (request.name, request.vm);
    let node = placement.assignment.as_ref().map(|a| a.node.clone()).unwrap_or_default();
    let left = moment(placement.deadline.as_ref()).map(|at| age(at.since(style.now()))).unwrap_or_default();
    if let Some((known, agent)) = known.and_then(|known| Some((known, wait::absent_agent(known)?)))
        && let Some(text) = without_agent(placement, known, &agent, &left)
    {
        return text;
    }
    if placement.conditions.iter().any(|c| c.r#type == "NodeLost") {
        return format!(
            "Nothing, until {node} is back: a placement keeps its GPUs while its node cannot be heard. Look at the agent on {node}."
        );
    }
    match placement.phase() {
        v1::Phase::Queued => format!(
            "It is placed when room appears, within {left}; `berth capacity` says what is free. `berth release {name}` gives up."
        ),
        v1::Phase::Held => format!(
            "Create VM {vm} on {node}, not as a cluster role, within {left}: its agent sees it and goes on. `berth release {name}` gives up."
        ),
        v1::Phase::Preparing | v1::Phase::Attaching | v1::Phase::Starting | v1::Phase::Verifying => format!(
            "The agent on {node} goes on by itself; if this phase is not over within {left}, everything is undone. `berth place … --wait` or `berth watch` shows the steps."
        ),
        v1::Phase::Active if placement.conditions.is_empty() && adoption(placement).is_some() => format!(
            "Nothing: the VM has its GPUs and stays on {node}. `berth release {name}` takes them back and leaves the VM's settings as they are: what they were before is not known."
        ),
        v1::Phase::Active if placement.conditions.is_empty() => {
            format!("Nothing: the VM has its GPUs and stays on {node}. `berth release {name}` takes them back.")
        }
        v1::Phase::Active => format!(
            "Somebody changed the VM or the host. Berth touches nothing: put it back, or `berth release {name}`."
        ),
        v1::Phase::Releasing => format!("The agent on {node} takes the GPUs back; they are free when this is over."),
        v1::Phase::Released => "Nothing: it is over, and its GPUs are free.".to_owned(),
        v1::Phase::Failed if placement.undone => {
            "Nothing: it is over, and its GPUs are free. Place it again when the cause is gone.".to_owned()
        }
        v1::Phase::Failed => {
            format!("The agent on {node} goes on trying to give the GPUs back; until then they stay claimed.")
        }
        v1::Phase::Unspecified => "This controller knows a phase that this `berth` does not: update it.".to_owned(),
    }
}

/// What happens next while the node's agent is not there; None where nothing waits for it.
fn without_agent(placement: &v1::Placement, known: &v1::Node, agent: &str, left: &str) -> Option<String> {
    let node = &known.name;
    let undone = format!("If this phase is not over within {left}, everything is undone");
    Some(match placement.phase() {
        v1::Phase::Held => {
            let request = placement.request.clone().unwrap_or_default();
            format!(
                "Start {agent}, and create VM {} on {node}, not as a cluster role, within {left}: its agent sees it and goes on. `berth release {}` gives up.",
                request.vm, request.name
            )
        }
        v1::Phase::Preparing | v1::Phase::Attaching | v1::Phase::Starting | v1::Phase::Verifying => {
            format!("It waits for {agent}; start it. {undone}.")
        }
        v1::Phase::Active => {
            // A controller that began after that has not seen it at all.
            let seen = moment(known.last_seen.as_ref()).map(|at| format!(", last seen at {at}"));
            let since = || moment(known.since.as_ref()).map(|at| format!(" since {at}"));
            let seen = seen.or_else(since).unwrap_or_default();
            format!(
                "It keeps its GPUs, but how its VM is now is not known: {node}'s agent is not connected{seen}. Start the agent on {node}."
            )
        }
        v1::Phase::Releasing => {
            format!("It waits for {agent}; start it. The GPUs are free when it has given them back.")
        }
        v1::Phase::Failed if !placement.undone => {
            format!("It waits for {agent}; start it. The GPUs stay claimed until it has given them back.")
        }
        v1::Phase::Queued | v1::Phase::Released | v1::Phase::Failed | v1::Phase::Unspecified => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::Timestamp;
    use expect_test::expect;

    const STYLE: Style = Style { colour: false, clock: || Timestamp::from_millis(3_600_000) };

    fn node(not_ready: &str) -> v1::Node {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        v1::Node {
            name: "hv-01".into(),
            connected: not_ready.is_empty(),
            not_ready: not_ready.into(),
            since: at(3_000),
            last_seen: at(2_990),
            ..Default::default()
        }
    }

    fn placement(phase: v1::Phase) -> v1::Placement {
        v1::Placement {
            request: Some(v1::PlacementRequest { name: "one".into(), vm: "vm-1".into(), ..Default::default() }),
            assignment: Some(v1::Assignment { node: "hv-01".into(), ..Default::default() }),
            phase: phase.into(),
            deadline: Some(prost_types::Timestamp { seconds: 3_660, nanos: 0 }),
            ..Default::default()
        }
    }

    #[test]
    fn an_agent_that_is_not_there_is_what_is_waited_for() {
        let lost = node("NodeDisconnected");
        let phases = [
            v1::Phase::Held,
            v1::Phase::Attaching,
            v1::Phase::Active,
            v1::Phase::Releasing,
            v1::Phase::Failed,
            v1::Phase::Released,
        ];
        let told: Vec<_> = phases.map(|phase| next(&placement(phase), Some(&lost), STYLE)).into();
        expect![[r#"
            Start hv-01's agent, which is not connected since 1970-01-01T00:50:00Z, and create VM vm-1 on hv-01, not as a cluster role, within 60s: its agent sees it and goes on. `berth release one` gives up.
            It waits for hv-01's agent, which is not connected since 1970-01-01T00:50:00Z; start it. If this phase is not over within 60s, everything is undone.
            It keeps its GPUs, but how its VM is now is not known: hv-01's agent is not connected, last seen at 1970-01-01T00:49:50Z. Start the agent on hv-01.
            It waits for hv-01's agent, which is not connected since 1970-01-01T00:50:00Z; start it. The GPUs are free when it has given them back.
            It waits for hv-01's agent, which is not connected since 1970-01-01T00:50:00Z; start it. The GPUs stay claimed until it has given them back.
            Nothing: it is over, and its GPUs are free."#]].assert_eq(&told.join("\n"));
    }

    #[test]
    fn only_what_is_known_of_an_agent_is_told() {
        let releasing = placement(v1::Phase::Releasing);
        let usual = "The agent on hv-01 takes the GPUs back; they are free when this is over.";
        for known in [None, Some(node("")), Some(node("NodeNotFresh"))] {
            assert_eq!(next(&releasing, known.as_ref(), STYLE), usual, "{known:?}");
        }
    }
}
