//! Tables without borders: columns that scripts can cut and people can read.

use super::{Good, Style, ago, cores, judged, short, size};
use berth_proto::v1;
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

/// An empty table with these headings. Columns headed by a number or by what is counted are aligned to the right.
pub fn with(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().map(Cell::new).collect::<Vec<_>>());
    for (at, heading) in headings.iter().enumerate() {
        if let Some(column) = table.column_mut(at) {
            column.set_padding((0, 3));
            if is_count(heading) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table
}

fn is_count(heading: &str) -> bool {
    matches!(heading, "GPUS" | "FREE" | "VMS" | "CPU" | "MEMORY" | "VRAM" | "NUMA") || heading.ends_with("-GPU")
}

/// A table without headings: labels and what they say.
pub fn pairs(rows: impl IntoIterator<Item = (String, Cell)>) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (label, cell) in rows {
        table.add_row([Cell::new(format!("{label}:")), cell]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// The text of a table, without blanks at the ends of lines.
pub fn render(table: &mut Table, colour: bool) -> String {
    if colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.trim_fmt()
}

/// `berth get nodes`.
pub fn nodes(nodes: &[v1::Node], wide: bool, style: Style) -> Table {
    let mut headings = vec!["NODE", "CLUSTER", "STATUS", "GPUS", "FREE", "VMS", "CPU", "MEMORY", "SEEN"];
    if wide {
        headings.extend(["SYSTEM", "AGENT", "WHY"]);
    }
    let mut table = with(&headings);
    for node in nodes {
        let facts = node.facts.clone().unwrap_or_default();
        let mut row = vec![
            Cell::new(&node.name),
            Cell::new(&facts.cluster),
            node_status(node),
            Cell::new(node.gpus),
            Cell::new(node.gpus_available),
            Cell::new(node.vms),
            Cell::new(cores(facts.cpu_milli)),
            Cell::new(size(facts.memory_bytes)),
            Cell::new(ago(node.last_seen.as_ref(), style)),
        ];
        if wide {
            let cordons: Vec<_> = node.cordons.iter().map(|c| format!("cordon {}: {}", c.label, c.reason)).collect();
            let why = [node.not_ready_reason.clone(), cordons.join("; ")];
            let why: Vec<_> = why.into_iter().filter(|text| !text.is_empty()).collect();
            row.extend([Cell::new(&facts.system), Cell::new(&node.agent_version), Cell::new(why.join("; "))]);
        }
        table.add_row(row);
    }
    table
}

/// Whether a node takes placements, in a word.
pub fn node_status(node: &v1::Node) -> Cell {
    match (node.connected, node.ready, node.cordons.is_empty()) {
        (true, true, true) => judged("Ready", Good::Yes),
        (true, true, false) => judged("Cordoned", Good::Wait),
        (true, false, _) if node.not_ready == "Stranger" => judged("Stranger", Good::No),
        (true, false, _) => judged("NotReady", Good::Wait),
        (false, _, _) => judged("Lost", Good::No),
    }
}

/// `berth get gpus`.
pub fn gpus(gpus: &[v1::Gpu], wide: bool, style: Style) -> Table {
    let mut headings = vec!["GPU", "MODEL", "STATE", "AVAILABLE", "PLACEMENT"];
    if wide {
        headings.extend(["VRAM", "PCI-ID", "SERIAL", "NUMA", "HEALTH", "VM", "SEEN", "WHY"]);
    }
    let mut table = with(&headings);
    for gpu in gpus {
        let observed = gpu.observed.clone().unwrap_or_default();
        let survey = observed.survey.clone().unwrap_or_default();
        let available = match gpu.unavailable.first() {
            _ if gpu.available => judged("yes", Good::Yes),
            // A GPU at work is not free, and nothing is wrong with it.
            Some(why) if why.reason == "Claimed" => Cell::new("claimed"),
            Some(why) => judged(format!("no: {}", why.reason), Good::No),
            None => Cell::new("no"),
        };
        let mut row = vec![
            Cell::new(&gpu.id),
            Cell::new(&survey.model),
            Cell::new(gpu_state(&observed)),
            available,
            Cell::new(&gpu.placement),
        ];
        if wide {
            let fingerprint = survey.fingerprint.clone().unwrap_or_default();
            let why: Vec<_> = gpu.unavailable.iter().map(|why| why.text.clone()).collect();
            row.extend([
                Cell::new(size(survey.vram_bytes)),
                Cell::new(fingerprint.pci_id),
                Cell::new(fingerprint.serial),
                Cell::new(survey.numa_node.map(|n| n.to_string()).unwrap_or_default()),
                Cell::new(short(observed.health().as_str_name(), "GPU_HEALTH_")),
                Cell::new(&observed.vm_id),
                Cell::new(ago(gpu.observed_at.as_ref(), style)),
                Cell::new(why.join("; ")),
            ]);
        }
        table.add_row(row);
    }
    table
}

/// How hosts differ: what is about, what was seen, what to do.
pub fn drift(found: &[v1::Difference], style: Style) -> Table {
    let mut table = with(&["NODE", "KIND", "WHAT", "PLACEMENT", "SINCE", "SEEN", "TO DO"]);
    for difference in found {
        let v1::Difference { node, kind, device, vm_id, placement, since, seen, remedy } = difference;
        let what = if device.is_empty() { vm_id } else { device };
        table.add_row([
            Cell::new(node),
            judged(kind.clone(), Good::Wait),
            Cell::new(what),
            Cell::new(placement),
            Cell::new(ago(since.as_ref(), style)),
            Cell::new(seen),
            Cell::new(remedy),
        ]);
    }
    table
}

/// A GPU's state with the driver the host has on it.
pub fn gpu_state(observed: &v1::ObservedGpu) -> String {
    let state = short(observed.state().as_str_name(), "GPU_STATE_");
    match observed.driver() {
        v1::HostDriver::Unspecified | v1::HostDriver::Bound => state,
        v1::HostDriver::None => format!("{state} (no driver)"),
        v1::HostDriver::Disabled => format!("{state} (disabled)"),
    }
}

/// `berth get vms`.
pub fn vms(vms: &[v1::Vm], wide: bool) -> Table {
    let mut headings = vec!["VM", "NODE", "STATE", "GPUS", "PINNED", "PLACEMENT"];
    if wide {
        headings.extend(["ID", "CLUSTERED", "FRESH"]);
    }
    let mut table = with(&headings);
    for vm in vms {
        let observed = vm.observed.clone().unwrap_or_default();
        let state = short(observed.state().as_str_name(), "VM_STATE_");
        let mut row = vec![
            Cell::new(&observed.name),
            Cell::new(&vm.node),
            Cell::new(if vm.fresh { state } else { format!("{state} (not fresh)") }),
            Cell::new(observed.devices.len()),
            Cell::new(yes(vm.pin.is_some())),
            Cell::new(&vm.placement),
        ];
        if wide {
            row.extend([Cell::new(&observed.id), Cell::new(yes(observed.clustered)), Cell::new(yes(vm.fresh))]);
        }
        table.add_row(row);
    }
    table
}

/// `yes` or `no`.
pub fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

/// `berth get placements`.
pub fn placements(placements: &[v1::Placement], wide: bool, style: Style) -> Table {
    let mut headings = vec!["PLACEMENT", "VM", "PHASE", "NODE", "GPUS", "MODEL", "AGE", "NOTE"];
    if wide {
        headings.extend(["ADDRESSES", "CALLER", "UID"]);
    }
    let mut table = with(&headings);
    for placement in placements {
        let request = placement.request.clone().unwrap_or_default();
        let assignment = placement.assignment.clone().unwrap_or_default();
        let mut row = vec![
            Cell::new(&request.name),
            Cell::new(&request.vm),
            phase(placement),
            Cell::new(&assignment.node),
            Cell::new(request.gpus),
            Cell::new(model(placement)),
            Cell::new(ago(placement.created.as_ref(), style)),
            Cell::new(note(placement)),
        ];
        if wide {
            let addresses: Vec<_> = assignment.gpus.iter().map(|gpu| gpu.address.clone()).collect();
            row.extend([Cell::new(addresses.join(",")), Cell::new(&placement.caller), Cell::new(&placement.uid)]);
        }
        table.add_row(row);
    }
    table
}

/// A placement's phase, coloured by how good it is.
pub fn phase(placement: &v1::Placement) -> Cell {
    judged(phase_name(placement), phase_good(placement))
}

/// How good a placement's phase is.
pub fn phase_good(placement: &v1::Placement) -> Good {
    match placement.phase() {
        v1::Phase::Active if placement.conditions.is_empty() => Good::Yes,
        v1::Phase::Active | v1::Phase::Failed => Good::No,
        v1::Phase::Released | v1::Phase::Unspecified => Good::Plain,
        v1::Phase::Queued
        | v1::Phase::Held
        | v1::Phase::Preparing
        | v1::Phase::Attaching
        | v1::Phase::Starting
        | v1::Phase::Verifying
        | v1::Phase::Releasing => Good::Wait,
    }
}

/// A placement's phase in a word.
pub fn phase_name(placement: &v1::Placement) -> String {
    short(placement.phase().as_str_name(), "PHASE_")
}

/// The model a placement has, or those it asked for.
pub fn model(placement: &v1::Placement) -> String {
    match placement.assignment.as_ref().and_then(|a| a.gpus.first()) {
        Some(gpu) => gpu.model.clone(),
        None => placement
            .request
            .as_ref()
            .map(|r| r.models.join("|"))
            .filter(|m| !m.is_empty())
            .unwrap_or_else(|| "any".into()),
    }
}

/// The one thing beside the phase that matters most: a condition, a failure, the step it is at.
pub fn note(placement: &v1::Placement) -> String {
    // Where nothing is left to do, the last step is told until its end is: a moment that nobody cares for.
    let settled = matches!(placement.phase(), v1::Phase::Active | v1::Phase::Released);
    let step = placement.current_step.as_ref().filter(|_| !settled).map(|current| {
        let name = short(current.step().as_str_name(), "STEP_");
        if current.attempt > 1 { format!("{name}, attempt {}", current.attempt) } else { name }
    });
    let failure = placement.failure.as_ref().map(|failure| {
        let undone = if placement.phase() == v1::Phase::Failed && !placement.undone { " (not undone)" } else { "" };
        format!("{}{undone}", failure.text)
    });
    let conditions: Vec<_> = placement.conditions.iter().map(|c| c.r#type.clone()).collect();
    let conditions = (!conditions.is_empty()).then(|| conditions.join(","));
    [conditions, failure, step].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// `berth capacity`.
pub fn capacity(models: &[v1::ModelSummary], wide: bool) -> Table {
    let mut sizes: Vec<u32> = models.iter().flat_map(|m| m.slots.iter().map(|s| s.gpus)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let sized: Vec<_> = sizes.iter().map(|gpus| format!("{gpus}-GPU")).collect();
    let mut headings = vec!["MODEL", "GPUS", "FREE"];
    headings.extend(sized.iter().map(String::as_str));
    if wide {
        headings.extend(["STATES", "NOT FREE BECAUSE"]);
    }
    let mut table = with(&headings);
    for model in models {
        let mut row = vec![Cell::new(&model.model), Cell::new(model.gpus), Cell::new(model.available)];
        for gpus in &sizes {
            let vms = model.slots.iter().find(|s| s.gpus == *gpus).map_or(0, |s| s.vms);
            row.push(Cell::new(vms));
        }
        if wide {
            row.extend([Cell::new(counts(&model.states)), Cell::new(counts(&model.reasons))]);
        }
        table.add_row(row);
    }
    table
}

fn counts(counts: &[v1::Count]) -> String {
    counts.iter().map(|c| format!("{} {}", c.count, c.name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::Timestamp;
    use expect_test::expect;

    const STYLE: Style = Style { colour: false, clock: || Timestamp::from_millis(3_600_000) };

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    fn node() -> v1::Node {
        v1::Node {
            name: "hv-01".into(),
            facts: Some(v1::HostFacts {
                cluster: "a".into(),
                cpu_milli: 64_000,
                memory_bytes: 512 << 30,
                ..Default::default()
            }),
            connected: true,
            ready: true,
            last_seen: at(3_590),
            gpus: 8,
            gpus_available: 7,
            ..Default::default()
        }
    }

    #[test]
    fn nodes_say_whether_they_take_placements_and_why_not() {
        let lost = v1::Node {
            name: "hv-02".into(),
            connected: false,
            ready: false,
            not_ready_reason: "its agent is gone".into(),
            ..node()
        };
        let cordon = v1::Cordon { label: "ann".into(), reason: "new firmware".into(), since: at(0) };
        let cordoned = v1::Node { name: "hv-03".into(), cordons: vec![cordon], ..node() };
        let stranger = v1::Node {
            name: "hv-04".into(),
            ready: false,
            not_ready: "Stranger".into(),
            not_ready_reason: "its agent holds what is not ours".into(),
            ..node()
        };
        expect![[r#"
            NODE    CLUSTER   STATUS     GPUS   FREE   VMS   CPU      MEMORY   SEEN   SYSTEM   AGENT   WHY
            hv-01   a         Ready         8      7     0    64   512.0 GiB   10s
            hv-02   a         Lost          8      7     0    64   512.0 GiB   10s                     its agent is gone
            hv-03   a         Cordoned      8      7     0    64   512.0 GiB   10s                     cordon ann: new firmware
            hv-04   a         Stranger      8      7     0    64   512.0 GiB   10s                     its agent holds what is not ours"#]].assert_eq(&render(&mut nodes(&[node(), lost, cordoned, stranger], true, STYLE), false));
    }

    #[test]
    fn gpus_that_are_claimed_are_not_shown_as_faulty() {
        let gpu = |id: &str, reason: &str| v1::Gpu {
            id: id.into(),
            observed: Some(v1::ObservedGpu {
                survey: Some(v1::Survey { model: "A16".into(), ..Default::default() }),
                state: v1::GpuState::Host.into(),
                driver: v1::HostDriver::None.into(),
                ..Default::default()
            }),
            available: reason.is_empty(),
            unavailable: Some(reason)
                .filter(|r| !r.is_empty())
                .map(|r| v1::Unavailable { reason: r.into(), ..Default::default() })
                .into_iter()
                .collect(),
            ..Default::default()
        };
        let list = [gpu("n/1", ""), gpu("n/2", "Claimed"), gpu("n/3", "Quarantined")];
        expect![[r#"
            GPU   MODEL   STATE              AVAILABLE         PLACEMENT
            n/1   A16     Host (no driver)   yes
            n/2   A16     Host (no driver)   claimed
            n/3   A16     Host (no driver)   no: Quarantined"#]]
        .assert_eq(&render(&mut gpus(&list, false, STYLE), false));
    }

    #[test]
    fn placements_note_what_matters_most() {
        let placement = |name: &str, phase: v1::Phase| v1::Placement {
            request: Some(v1::PlacementRequest { name: name.into(), vm: name.into(), gpus: 2, ..Default::default() }),
            phase: phase.into(),
            created: at(0),
            ..Default::default()
        };
        let step = v1::CurrentStep { step: v1::Step::StartVm.into(), attempt: 3, last_error: None };
        let starting = v1::Placement { current_step: Some(step), ..placement("a", v1::Phase::Starting) };
        let drifted = v1::Condition { r#type: "Drifted".into(), ..Default::default() };
        let drifted = v1::Placement { conditions: vec![drifted], ..placement("b", v1::Phase::Active) };
        let reason = v1::FailureReason { text: "the hold expired".into(), ..Default::default() };
        let failed = v1::Placement { failure: Some(reason), ..placement("c", v1::Phase::Failed) };
        expect![[r#"
            PLACEMENT   VM   PHASE      NODE   GPUS   MODEL   AGE   NOTE
            a           a    Starting             2   any     60m   StartVm, attempt 3
            b           b    Active               2   any     60m   Drifted
            c           c    Failed               2   any     60m   the hold expired (not undone)"#]]
        .assert_eq(&render(&mut placements(&[starting, drifted, failed], false, STYLE), false));
    }

    #[test]
    fn colour_comes_only_when_asked_for() {
        let plain = render(&mut nodes(&[node()], false, STYLE), false);
        assert!(!plain.contains('\u{1b}'), "{plain:?}");
        let coloured = render(&mut nodes(&[node()], false, STYLE), true);
        assert!(coloured.contains('\u{1b}'), "{coloured:?}");
    }

    #[test]
    fn capacity_has_a_column_for_each_size() {
        let slots = |gpus, vms| v1::Slots { gpus, vms };
        let model = v1::ModelSummary {
            model: "H100".into(),
            gpus: 8,
            available: 7,
            reasons: vec![v1::Count { name: "Claimed".into(), count: 1 }],
            slots: vec![slots(1, 7), slots(2, 3), slots(4, 1)],
            ..Default::default()
        };
        expect![[r#"
            MODEL   GPUS   FREE   1-GPU   2-GPU   4-GPU   STATES   NOT FREE BECAUSE
            H100       8      7       7       3       1            1 Claimed"#]]
        .assert_eq(&render(&mut capacity(&[model], true), false));
    }
}
