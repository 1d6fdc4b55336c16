//! Two wishes for one card, or for one VM. No controller that keeps its rules makes them (what agents are sent is checked
//! for that), so that no run could show what an agent makes of them; but a store that was lost and restored may. Agents
//! are therefore asked on a copy of their work, in the states that the faults have brought about.

use super::{Broken, Sim, skewed};
use crate::scene::{legal, uid, vm_name};
use berth_agent_core::observed::{HostView, VmView};
use berth_agent_core::work::Pace;
use berth_model::VmId;
use berth_model::desired::{DesiredGpu, DesiredNode, DesiredPlacement};
use berth_model::gpu::GpuState;
use berth_model::vm::{ObservedVm, VmState};

/// Looks that the copy gets: one that may be under way already, and one that a new wish can be decided from.
const LOOKS: u32 = 2;

/// The VM of whoever wants the same card: there, off, and nobody's.
fn other_vm() -> VmId {
    legal(VmId::new("00000000-0000-4000-9000-ffffffffffff"))
}

/// Somebody else for the same card, and, where the host has another GPU that is free, for the same VM.
fn rivals(wish: &DesiredPlacement, view: &HostView, wishes: &[DesiredPlacement]) -> Vec<DesiredPlacement> {
    // Before all others in order of uid, and wishing for the same: nothing but the step under way is in its way.
    let rival = DesiredPlacement { uid: uid(0), ..wish.clone() };
    let wanted = |gpu: &DesiredGpu, card| gpu.address.card() == card;
    let free = view.gpus.values().find(|seen| {
        let card = seen.address.card();
        matches!(seen.state, GpuState::Host { .. } | GpuState::Pooled)
            && !wishes.iter().flat_map(|wish| &wish.gpus).any(|gpu| wanted(gpu, card.clone()))
    });
    let same_vm = free.map(|seen| {
        let (address, fingerprint, mmio) = (seen.address.clone(), seen.survey.fingerprint.clone(), seen.survey.mmio);
        DesiredPlacement { gpus: vec![DesiredGpu { address, fingerprint, mmio }], ..rival.clone() }
    });
    let same_card = DesiredPlacement { vm: other_vm(), ..rival };
    std::iter::once(same_card).chain(same_vm).collect()
}

impl Sim {
    /// While a placement has a step under way, no other one gets one on its card or its VM: whether the first is still
    /// wished for or not.
    pub(super) fn check_rivals(&self, node: usize, at_work: &DesiredPlacement) -> Result<(), Broken> {
        let Some(agent) = self.agents.get(node) else { return Ok(()) };
        let (Some(work), Some(obeyed)) = (&agent.work, &agent.obeyed) else { return Ok(()) };
        let mut view = agent.host.look();
        let Some(settings) = view.vms.get(&at_work.vm).map(|vm| vm.settings.clone()) else { return Ok(()) };
        let (id, name) = (other_vm(), vm_name(u32::MAX));
        let vm = ObservedVm { id: id.clone(), name, state: VmState::Off, clustered: false, devices: Vec::new() };
        view.vms.insert(id, VmView { vm, settings, saved_checkpoints: 0, role: None, guest: None });
        for rival in rivals(at_work, &view, &obeyed.placements) {
            for withdrawn in [false, true] {
                let stays = |wish: &&DesiredPlacement| !withdrawn || wish.uid != at_work.uid;
                let placements = obeyed.placements.iter().filter(stays).chain([&rival]).cloned().collect();
                let mut work = work.clone();
                let generation = obeyed.generation + 1;
                work.desire(DesiredNode { term: obeyed.term, generation, fleet: obeyed.fleet.clone(), placements });
                let mut now = skewed(self.now, agent.skew);
                for _ in 0..LOOKS {
                    work.looked(Ok(view.clone()), now);
                    if let Some(start) = work.next(now).start.iter().find(|start| start.uid == rival.uid) {
                        let (whose, step) = (self.store.truth.name_of(&at_work.uid), &start.step);
                        return Err(Broken(format!(
                            "{} would begin {step} for another placement while {whose} has a step under way on its card \
                             or its VM",
                            agent.name
                        )));
                    }
                    now = now.after(Pace::default().wait);
                }
            }
        }
        Ok(())
    }
}
