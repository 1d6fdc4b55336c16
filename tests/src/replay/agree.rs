//! The check at the end: do store, controller and agents agree, as far as a client can see?
//!
//! Store: what was acknowledged is there, claimed once. Controller: claims and placements say the same. Agents: the GPUs
//! of an active placement are in its VM, and that VM is pinned. Every disagreement is named.

use super::caller::{Caller, Problem};
use super::journal::{self, Entry};
use berth_proto::v1::{GetPlacementRequest, Gpu, GpuState, Phase, PinReason, Placement, Vm};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;
use tonic::Code;

/// Pause between two looks while things come to rest.
const LOOK: Duration = Duration::from_millis(250);
/// How many acknowledged placements are read back at once.
const READ_BACK: usize = 32;

/// Waits until nothing is under way, then compares; looks again while there are disagreements and time is left, because
/// what agents see reaches the API a moment later than what was decided.
pub(super) async fn check(caller: &Caller, acknowledged: &[Entry], settle: Duration) -> anyhow::Result<Vec<String>> {
    let begun = tokio::time::Instant::now();
    loop {
        let mut wrong = look(caller).await?;
        if wrong.is_empty() {
            wrong = read_back(caller, acknowledged).await?;
        }
        if wrong.is_empty() || begun.elapsed() > settle {
            return Ok(wrong);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Checks that everything in a journal is still so, and that everybody agrees.
///
/// # Errors
/// When the journal cannot be read, or nobody answers.
pub async fn check_journal(caller: &Caller, path: &Path, settle: Duration) -> anyhow::Result<Vec<String>> {
    check(caller, &journal::read(path)?, settle).await
}

/// One look at what the API shows: everything in it that does not fit together, or is under way.
///
/// # Errors
/// When nobody answers.
pub(crate) async fn look(caller: &Caller) -> Result<Vec<String>, Problem> {
    let placements = caller.live_placements().await?;
    let gpus = caller.gpus().await?;
    let vms = caller.vms().await?;
    let status = caller.status().await?;
    let mut wrong = compare(&placements, &gpus, &vms);
    wrong.extend(status.violations.iter().map(|violation| format!("the controller's own check found: {violation}")));
    Ok(wrong)
}

fn name_of(placement: &Placement) -> &str {
    placement.request.as_ref().map_or("", |request| request.name.as_str())
}

/// Whether its GPUs are claimed.
fn holds_claims(placement: &Placement) -> bool {
    match placement.phase() {
        Phase::Held
        | Phase::Preparing
        | Phase::Attaching
        | Phase::Starting
        | Phase::Verifying
        | Phase::Active
        | Phase::Releasing => true,
        Phase::Failed => !placement.undone,
        Phase::Unspecified | Phase::Queued | Phase::Released => false,
    }
}

/// Everything that does not fit together in one look at the API.
fn compare(placements: &[Placement], gpus: &[Gpu], vms: &[Vm]) -> Vec<String> {
    let mut wrong = Vec::new();
    let known: HashMap<&str, &Gpu> = gpus.iter().map(|gpu| (gpu.id.as_str(), gpu)).collect();
    let mut owners: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut names = BTreeSet::new();

    for placement in placements {
        let name = name_of(placement);
        if !names.insert(name) {
            wrong.push(format!("two live placements are named {name}"));
        }
        match placement.phase() {
            Phase::Active | Phase::Held | Phase::Queued | Phase::Failed => {}
            Phase::Preparing
            | Phase::Attaching
            | Phase::Starting
            | Phase::Verifying
            | Phase::Releasing
            | Phase::Released
            | Phase::Unspecified => {
                let step = placement.current_step.as_ref().map(|step| format!("{:?}", step.step())).unwrap_or_default();
                wrong.push(format!("placement {name} does not come to rest: {:?} {step}", placement.phase()));
            }
        }
        for condition in &placement.conditions {
            wrong.push(format!("placement {name} is {}: {}", condition.r#type, condition.text));
        }
        if !holds_claims(placement) {
            continue;
        }
        let Some(assignment) = &placement.assignment else {
            wrong.push(format!("placement {name} is {:?} and has no GPUs", placement.phase()));
            continue;
        };
        if assignment.pin.as_ref().map(|pin| pin.reason()) != Some(PinReason::DeviceAssignment) {
            wrong.push(format!("placement {name} is not pinned"));
        }
        let asked = placement.request.as_ref().map_or(0, |request| request.gpus);
        if u32::try_from(assignment.gpus.len()) != Ok(asked) {
            wrong.push(format!("placement {name} asked for {asked} GPUs and has {}", assignment.gpus.len()));
        }
        for gpu in &assignment.gpus {
            let id = format!("{}/{}", assignment.node, gpu.address);
            match known.get(id.as_str()) {
                None => wrong.push(format!("placement {name} has GPU {id}, which is not listed")),
                Some(seen) if placement.phase() == Phase::Active => wrong.extend(attached(name, placement, seen)),
                Some(_) => {}
            }
            owners.entry(id).or_default().push(name);
        }
        if placement.phase() == Phase::Active {
            wrong.extend(pinned(name, placement, &assignment.node, vms));
        }
    }

    for (id, owners) in &owners {
        if owners.len() > 1 {
            wrong.push(format!("GPU {id} is owned by {}", owners.join(" and by ")));
        }
    }
    for gpu in gpus {
        let owner = owners.get(&gpu.id).map_or("", |owners| owners[0]);
        if gpu.placement != owner {
            let said = |name: &str| if name.is_empty() { "nobody".to_owned() } else { name.to_owned() };
            wrong.push(format!(
                "GPU {} is claimed by {}, but in the placement of {}",
                gpu.id,
                said(&gpu.placement),
                said(owner)
            ));
        }
        if gpu.available && !owner.is_empty() {
            wrong.push(format!("GPU {} is called available although {owner} has it", gpu.id));
        }
    }
    wrong
}

/// Whether a GPU of an active placement was seen in its VM.
fn attached(name: &str, placement: &Placement, gpu: &Gpu) -> Option<String> {
    let observed = gpu.observed.clone().unwrap_or_default();
    let right =
        observed.state() == GpuState::Attached && observed.vm_id == placement.vm_id && !placement.vm_id.is_empty();
    (!right).then(|| {
        format!(
            "placement {name} is active in VM {}, but its GPU {} was seen {:?} {}",
            placement.vm_id,
            gpu.id,
            observed.state(),
            observed.vm_id
        )
    })
}

/// Whether the VM of an active placement is on its node, pinned there, and no role that moves.
fn pinned(name: &str, placement: &Placement, node: &str, vms: &[Vm]) -> Vec<String> {
    let same = |vm: &&Vm| vm.observed.as_ref().is_some_and(|seen| seen.id == placement.vm_id);
    let found: Vec<&Vm> = vms.iter().filter(same).collect();
    let [vm] = found.as_slice() else {
        return vec![format!("the VM of active placement {name} was seen {} times", found.len())];
    };
    let mut wrong = Vec::new();
    if vm.node != node {
        wrong.push(format!("the VM of placement {name} is on {}, its GPUs are on {node}", vm.node));
    }
    if vm.placement != name {
        wrong.push(format!("the VM of placement {name} is said to belong to {:?}", vm.placement));
    }
    if vm.pin.is_none() {
        wrong.push(format!("the VM of placement {name} is not pinned"));
    }
    if vm.observed.as_ref().is_some_and(|seen| seen.clustered) {
        wrong.push(format!("the VM of placement {name} is a clustered role and could move"));
    }
    wrong
}

/// What a journal says of one placement.
#[derive(Clone, Debug)]
struct Acknowledged {
    name: String,
    node: String,
    gpus: Vec<String>,
    /// Release was called.
    let_go: bool,
    /// Release was answered.
    released: bool,
}

/// Reads every acknowledged placement back.
async fn read_back(caller: &Caller, entries: &[Entry]) -> Result<Vec<String>, Problem> {
    let mut by_uid: BTreeMap<&str, Acknowledged> = BTreeMap::new();
    let mut wrong = Vec::new();
    for entry in entries {
        match entry {
            Entry::Created { name, uid, node, gpus, .. } => {
                let new = Acknowledged {
                    name: name.clone(),
                    node: node.clone(),
                    gpus: gpus.clone(),
                    let_go: false,
                    released: false,
                };
                by_uid.insert(uid, new);
            }
            Entry::Releasing { uid, .. } => {
                by_uid.entry(uid).and_modify(|known| known.let_go = true);
            }
            Entry::Released { uid, .. } => {
                by_uid.entry(uid).and_modify(|known| known.released = true);
            }
        }
    }
    let answers = futures::stream::iter(by_uid.into_iter().map(|(uid, was)| async move {
        let ask = GetPlacementRequest { name: was.name.clone() };
        let answer = caller
            .call(ask, |ask| {
                let mut api = caller.placements();
                async move { api.get(ask).await }
            })
            .await;
        (uid.to_owned(), was, answer)
    }));
    let mut answers = std::pin::pin!(futures::StreamExt::buffer_unordered(answers, READ_BACK));
    while let Some((uid, was, answer)) = futures::StreamExt::next(&mut answers).await {
        match answer {
            Ok(is) => wrong.extend(kept(&uid, &was, &is)),
            // History is kept for a while only.
            Err(Problem::Refused { code: Code::NotFound, .. }) if was.released => {}
            Err(Problem::Refused { code: Code::NotFound, .. }) => {
                wrong.push(format!("placement {} was acknowledged and is not known any more", was.name));
            }
            Err(other) => return Err(other),
        }
    }
    wrong.sort();
    Ok(wrong)
}

/// Whether a placement is still what was acknowledged.
fn kept(uid: &str, was: &Acknowledged, is: &Placement) -> Vec<String> {
    let name = &was.name;
    let mut wrong = Vec::new();
    if is.uid != uid {
        return vec![format!("placement {name} was acknowledged as {uid} and is {} now", is.uid)];
    }
    let assignment = is.assignment.clone().unwrap_or_default();
    let gpus: Vec<String> = assignment.gpus.into_iter().map(|gpu| gpu.address).collect();
    // What was only queued got its GPUs later.
    if !was.gpus.is_empty() && (was.node != assignment.node || was.gpus != gpus) {
        wrong.push(format!(
            "placement {name} was acknowledged on {} with {:?} and is on {} with {gpus:?} now",
            was.node, was.gpus, assignment.node
        ));
    }
    match is.phase() {
        Phase::Released if !was.let_go => wrong.push(format!("placement {name} was released by nobody")),
        Phase::Failed if is.failure.is_none() => wrong.push(format!("placement {name} failed without a reason")),
        Phase::Releasing | Phase::Released | Phase::Failed => {}
        phase if was.released => {
            wrong.push(format!("the release of placement {name} was acknowledged and it is {phase:?} now"));
        }
        Phase::Unspecified
        | Phase::Queued
        | Phase::Held
        | Phase::Preparing
        | Phase::Attaching
        | Phase::Starting
        | Phase::Verifying
        | Phase::Active => {}
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::v1::{AssignedGpu, Assignment, ObservedGpu, ObservedVm, Pin, PlacementRequest};

    fn pin() -> Option<Pin> {
        Some(Pin { reason: PinReason::DeviceAssignment.into(), since: None })
    }

    fn placement(name: &str, address: &str) -> Placement {
        Placement {
            uid: format!("uid-{name}"),
            request: Some(PlacementRequest { name: name.into(), gpus: 1, ..PlacementRequest::default() }),
            phase: Phase::Active.into(),
            vm_id: format!("vm-{name}"),
            assignment: Some(Assignment {
                node: "n".into(),
                gpus: vec![AssignedGpu { address: address.into(), ..AssignedGpu::default() }],
                pin: pin(),
            }),
            ..Placement::default()
        }
    }

    fn gpu(address: &str, owner: &str) -> Gpu {
        let state = if owner.is_empty() { GpuState::Host } else { GpuState::Attached };
        let vm_id = if owner.is_empty() { String::new() } else { format!("vm-{owner}") };
        Gpu {
            id: format!("n/{address}"),
            node: "n".into(),
            observed: Some(ObservedGpu {
                address: address.into(),
                state: state.into(),
                vm_id,
                ..ObservedGpu::default()
            }),
            placement: owner.into(),
            available: owner.is_empty(),
            ..Gpu::default()
        }
    }

    fn vm(owner: &str) -> Vm {
        Vm {
            node: "n".into(),
            observed: Some(ObservedVm { id: format!("vm-{owner}"), ..ObservedVm::default() }),
            placement: owner.into(),
            pin: pin(),
            fresh: true,
        }
    }

    fn disagreement(change: impl FnOnce(&mut Vec<Placement>, &mut Vec<Gpu>, &mut Vec<Vm>)) -> String {
        let mut placements = vec![placement("a", "1"), placement("b", "2")];
        let mut gpus = vec![gpu("1", "a"), gpu("2", "b"), gpu("3", "")];
        let mut vms = vec![vm("a"), vm("b")];
        assert_eq!(compare(&placements, &gpus, &vms), [""; 0]);
        change(&mut placements, &mut gpus, &mut vms);
        compare(&placements, &gpus, &vms).join("\n")
    }

    #[test]
    fn every_disagreement_is_found() {
        let doubled = disagreement(|placements, _, _| {
            let again = placements[0].assignment.clone();
            placements[1].assignment = again;
        });
        assert!(doubled.contains("GPU n/1 is owned by a and by b"), "{doubled}");
        assert!(doubled.contains("GPU n/2 is claimed by b, but in the placement of nobody"), "{doubled}");

        let orphan = disagreement(|placements, _, _| placements.truncate(1));
        assert!(orphan.contains("GPU n/2 is claimed by b, but in the placement of nobody"), "{orphan}");

        let unclaimed = disagreement(|_, gpus, _| gpus[0].placement.clear());
        assert!(unclaimed.contains("GPU n/1 is claimed by nobody, but in the placement of a"), "{unclaimed}");

        let elsewhere = disagreement(|_, gpus, _| gpus[0].observed.as_mut().unwrap().vm_id = "vm-b".into());
        assert!(elsewhere.contains("its GPU n/1 was seen Attached vm-b"), "{elsewhere}");

        let moved = disagreement(|_, _, vms| vms[0].node = "m".into());
        assert!(moved.contains("is on m, its GPUs are on n"), "{moved}");

        let loose = disagreement(|_, _, vms| vms[0].pin = None);
        assert!(loose.contains("the VM of placement a is not pinned"), "{loose}");

        let hidden = disagreement(|_, gpus, _| {
            gpus.remove(0);
        });
        assert!(hidden.contains("placement a has GPU n/1, which is not listed"), "{hidden}");

        let twice = disagreement(|_, _, vms| vms.push(vm("a")));
        assert!(twice.contains("the VM of active placement a was seen 2 times"), "{twice}");
    }

    fn lost(was: (&[&str], bool, bool), change: impl FnOnce(&mut Placement)) -> String {
        let (gpus, let_go, released) = was;
        let gpus = gpus.iter().map(|&gpu| gpu.to_owned()).collect();
        let was = Acknowledged { name: "a".into(), node: "n".into(), gpus, let_go, released };
        let mut is = placement("a", "1");
        change(&mut is);
        kept("uid-a", &was, &is).join("\n")
    }

    #[test]
    fn nothing_acknowledged_may_be_lost() {
        assert_eq!(lost((&["1"], false, false), |_| ()), "");
        assert_eq!(lost((&["1"], true, true), |is| is.set_phase(Phase::Released)), "");
        assert!(lost((&["2"], false, false), |_| ()).contains("was acknowledged on n with [\"2\"]"));
        assert!(lost((&["1"], false, false), |is| is.uid = "other".into()).contains("is other now"));
        assert!(lost((&["1"], true, true), |_| ()).contains("acknowledged and it is Active now"));
        assert!(lost((&["1"], false, false), |is| is.set_phase(Phase::Released)).contains("released by nobody"));
    }
}
