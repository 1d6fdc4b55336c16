//! What agents say: that they are there, what they see, how work goes.

use super::draft::Draft;
use super::{Brain, Learned};
use crate::condition;
use crate::desired;
use crate::lifecycle::Event;
use crate::world::{Gpu, Link, Node, View};
use berth_model::gpu::{GpuHealth, GpuState, ObservedGpu, QuarantineReason, Verdict};
use berth_model::history::{ClusterRole, Forced, MAX_NOTES, Note, Noted};
use berth_model::install::Install;
use berth_model::inventory::{Hello, InventoryReport, Listing, MAX_GPUS_PER_NODE};
use berth_model::node::HostFacts;
use berth_model::pci::DeviceAddress;
use berth_model::placement::{CurrentStep, Phase, Placement, Progress, StepReport};
use berth_model::request::Resources;
use berth_model::vm::{ObservedVm, VmDevice, VmState};
use berth_model::{NodeName, PlacementName, Timestamp, VmId};
use std::collections::{BTreeMap, BTreeSet};

/// How far above the stored one an agent's generation is believed. A wish makes at most a few generations, so that a million
/// is years of one node's work, more than any backup is old. A higher one is damage, and following it would soon reach the
/// end of numbers.
pub const MAX_GENERATION_LEAP: u64 = 1_000_000;

impl Brain {
    pub(super) fn connected(&mut self, draft: &mut Draft, hello: Hello) {
        if let Some(why) = self.world.stranger(&hello) {
            return self.stranger(draft, hello, why);
        }
        let Hello {
            node: name,
            agent_version,
            protocol: _,
            boot,
            facts,
            ledger_term: _,
            ledger_generation,
            ledger_fleet: _,
            ledger_placements: _,
        } = hello;
        let now = draft.now;
        let known = self.world.node(&name);
        // An agent that accepted a later generation than is stored outlived a loss of the store. It obeys only what
        // follows on; and what is not named in its desired state it leaves alone.
        let generation = known.map_or(0, |node| node.generation);
        let behind = is_behind(generation, ledger_generation);
        let same = known.is_some_and(|node| {
            // One that was a stranger may be known and not stored.
            node.version > 0 && node.facts == facts && node.agent_version == agent_version
        });
        self.make_known(&name, &facts, &agent_version, now);
        self.world.update_node(&name, |node| {
            if node.boot.as_ref().is_some_and(|before| *before != boot) {
                // Nothing of what was seen before the restart counts as known: cards may have been moved, devices be
                // back in the host. The next whole look tells.
                forget_sights(node);
            }
            node.facts = facts;
            node.agent_version = agent_version;
            node.boot = Some(boot);
            node.link = Link::Connected { since: now };
            node.view = View::NotReported;
            if behind {
                node.generation = ledger_generation + 1;
            }
        });
        if behind {
            // It also answers for wishes that are forgotten here: what it says of them must not count for those of now.
            self.renew_wishes(draft, &name);
        }
        if !same || behind {
            draft.store_nodes.insert(name.clone());
        }
        draft.desired.insert(name.clone());
        self.look_changed(draft, &name);
    }

    /// Whether what an agent said of itself when it came is part of the world.
    pub fn has_taken_in(&self, hello: &Hello) -> bool {
        self.world.node(&hello.node).is_some_and(|node| {
            node.facts == hello.facts
                && node.agent_version == hello.agent_version
                && !is_behind(node.generation, hello.ledger_generation)
        })
    }

    /// An agent that holds what is not this store's. It is shown, so that somebody looks; nothing is stored of it, nothing
    /// of what it reports counts, and it is told nothing.
    fn stranger(&mut self, draft: &mut Draft, hello: Hello, why: String) {
        let Hello { node: name, agent_version, boot, facts, .. } = hello;
        let since = draft.now;
        self.make_known(&name, &facts, &agent_version, since);
        self.world.update_node(&name, |node| {
            node.boot = Some(boot);
            node.link = Link::Connected { since };
            node.view = View::Stranger { why };
        });
        self.look_changed(draft, &name);
    }

    /// Puts a node into the world that is not there yet.
    fn make_known(&mut self, name: &NodeName, facts: &HostFacts, agent_version: &str, now: Timestamp) {
        if self.world.node(name).is_some() {
            return;
        }
        self.world.insert_node(Node {
            name: name.clone(),
            facts: facts.clone(),
            agent_version: agent_version.to_owned(),
            first_seen: now,
            cordons: Vec::new(),
            version: 0,
            generation: 0,
            link: Link::Disconnected { since: now },
            view: View::NotReported,
            boot: None,
            gpus: BTreeMap::new(),
            vms: BTreeMap::new(),
            stale_since: BTreeMap::new(),
            reserved: Resources::default(),
        });
    }

    /// Says of every wish of a node that it is as new as the node's generation: no older report answers it any more.
    fn renew_wishes(&mut self, draft: &mut Draft, name: &NodeName) {
        let Some(generation) = self.world.node(name).map(|node| node.generation) else { return };
        let wished: Vec<_> = self.world.placements_on(name).filter(|p| desired::entry(p).is_some()).cloned().collect();
        for placement in wished {
            self.put(draft, Placement { generation, ..Placement::clone(&placement) });
        }
    }

    pub(super) fn disconnected(&mut self, draft: &mut Draft, name: &NodeName) {
        let since = draft.now;
        self.world.update_node(name, |node| {
            if matches!(node.link, Link::Connected { .. }) {
                node.link = Link::Disconnected { since };
            }
        });
        self.look_changed(draft, name);
    }

    /// Everyone who shows this node or a placement on it must show it anew.
    fn look_changed(&self, draft: &mut Draft, name: &NodeName) {
        draft.nodes.insert(name.clone());
        draft.touched.extend(self.world.placements_on(name).map(|p| p.name().clone()));
    }

    pub(super) fn report(&mut self, draft: &mut Draft, name: &NodeName, report: InventoryReport) {
        let Some(before) = self.world.node(name).filter(|node| !node.is_stranger()).cloned() else { return };
        if let Listing::Failed { why } = report.listing {
            self.world.update_node(name, |node| node.view = View::Failed { why });
            self.look_changed(draft, name);
            return;
        }
        let mut hardware = false;
        self.world.update_node(name, |node| hardware = take_in(node, report, draft.now));
        if hardware {
            draft.store_nodes.insert(name.clone());
        }
        draft.nodes.insert(name.clone());
        let Some(after) = self.world.node(name) else { return };
        let available = |node: &Node| node.gpus.values().filter(|gpu| node.is_available(gpu)).count();
        if available(after) > available(&before) {
            self.room = true;
        }
        self.take_up_held(draft, name);
        self.note_drift(draft, name);
    }

    /// Goes on with held placements whose VM is there now. What one decision cannot take follows with the next tick.
    pub(super) fn take_up_held(&mut self, draft: &mut Draft, name: &NodeName) {
        for placement in self.held_with_vm(name) {
            if !draft.has_room() {
                self.waiting_vms.insert(name.clone());
                return;
            }
            if let Some(vm) = self.vm_of(&placement) {
                self.take_up(draft, &placement, vm);
            }
        }
        self.waiting_vms.remove(name);
    }

    fn held_with_vm(&self, name: &NodeName) -> Vec<PlacementName> {
        self.world
            .placements_on(name)
            .filter(|p| matches!(p.phase, Phase::Held { .. }))
            .map(|p| p.name().clone())
            .filter(|placement| self.vm_of(placement).is_some())
            .collect()
    }

    fn note_drift(&mut self, draft: &mut Draft, name: &NodeName) {
        let found: Vec<_> =
            self.world.placements_on(name).map(|p| (p.name().clone(), condition::drift(&self.world, p))).collect();
        for (placement, drift) in found {
            let known = self.world.live(&placement).and_then(|live| live.drift.clone());
            if known.as_ref().map(|(_, what)| what) != drift.as_ref() {
                let now = draft.now;
                self.world.update_live(&placement, |live| live.drift = drift.map(|what| (now, what)));
                draft.touched.insert(placement);
            }
        }
    }

    pub(super) fn progress(&mut self, draft: &mut Draft, node: &NodeName, progress: Progress) {
        let Progress { generation, uid, report, forced, install, removed_role } = progress;
        let Some(placement) = self.placement_by_uid(&uid) else { return };
        let its_node = placement.assignment.as_ref().map(|a| &a.node) == Some(node);
        if self.world.node(node).is_some_and(|node| node.is_stranger()) {
            return;
        }
        if its_node {
            // What was done was done, whichever wish it was for.
            let name = placement.name().clone();
            self.learn(draft, node, &name, forced, install, removed_role);
        }
        let Some(placement) = self.placement_by_uid(&uid) else { return };
        // A report about an older wish must not be taken for an answer to this one: "satisfied" then meant attached.
        let made = self.world.node(node).map_or(0, |node| node.generation);
        // And one about a wish that is not made yet, or that a lost store knew, answers nothing.
        if !its_node || generation < placement.generation || generation > made {
            return;
        }
        let name = placement.name().clone();
        let (step, event) = match report {
            StepReport::Working { step, attempt, last_error } => {
                (Some(CurrentStep { step, attempt, last_error }), Event::StepBegan(step))
            }
            StepReport::Satisfied => (None, Event::Satisfied),
            StepReport::Failed { step, error } => {
                let attempt = self.world.live(&name).and_then(|live| live.step.as_ref()).map_or(1, |step| step.attempt);
                (Some(CurrentStep { step, attempt, last_error: Some(error.clone()) }), Event::GaveUp { step, error })
            }
        };
        self.world.update_live(&name, |live| live.step = step);
        draft.touched.insert(name.clone());
        self.happen(draft, &name, &event, |_| {});
    }
}

impl Brain {
    /// Keeps what is new of what was done by force, run in the guest or removed from the cluster. An agent tells all of it
    /// again and again.
    fn learn(
        &mut self,
        draft: &mut Draft,
        node: &NodeName,
        name: &PlacementName,
        forced: Vec<Forced>,
        install: Option<Install>,
        removed_role: Option<ClusterRole>,
    ) {
        let Some(placement) = self.world.placement(name) else { return };
        let mut known: BTreeSet<Forced> = placement.forced().cloned().collect();
        let forced = forced.into_iter().filter(|forced| known.insert(forced.clone())).map(Note::Forced);
        let install = install.filter(|install| placement.installed() != Some(install)).map(Note::Installed);
        let role = removed_role.filter(|role| placement.removed_role() != Some(role)).map(Note::RoleRemoved);
        let room = MAX_NOTES.saturating_sub(placement.history.len());
        let new: Vec<Note> = forced.chain(install).chain(role).take(room).collect();
        if new.is_empty() {
            return;
        }
        let mut placement = Placement::clone(placement);
        for what in new {
            placement.history.push(Noted { at: draft.now, what: what.clone() });
            draft.learned.push(Learned {
                node: node.clone(),
                placement: name.clone(),
                uid: placement.uid.clone(),
                caller: placement.caller.clone(),
                what,
            });
        }
        self.put(draft, placement);
    }
}

/// The node's host was restarted: where things are is not known until it was looked at as a whole.
fn forget_sights(node: &mut Node) {
    for gpu in node.gpus.values_mut() {
        gpu.observed.state = GpuState::Unknown;
        gpu.since = None;
    }
    for vm in node.vms.values_mut() {
        vm.state = VmState::Unknown;
    }
    node.stale_since.clear();
}

/// Whether an agent has accepted a later generation than the store knows, and one that can be.
fn is_behind(generation: u64, ledger_generation: u64) -> bool {
    generation < ledger_generation && ledger_generation - generation <= MAX_GENERATION_LEAP
}

/// Takes a complete listing into a node. True when hardware changed, so that the node's record must be written.
fn take_in(node: &mut Node, report: InventoryReport, now: Timestamp) -> bool {
    let InventoryReport { sequence: _, full, listing: _, gpus, vms, vms_gone } = report;
    node.view = View::Complete;
    let listed: BTreeSet<_> = gpus.iter().map(|gpu| gpu.address.clone()).collect();
    if full {
        node.vms.clear();
        for (address, gpu) in &mut node.gpus {
            // Once known and not spoken of: nobody can say where it is.
            if !listed.contains(address) {
                gpu.observed.state = GpuState::Unknown;
                gpu.since = None;
            }
        }
    }
    let mut hardware = false;
    for seen in gpus {
        hardware |= take_in_gpu(node, seen, now);
    }
    for vm in vms {
        node.vms.insert(vm.id.clone(), vm);
    }
    for id in vms_gone {
        node.vms.remove(&id);
    }
    note_stale(node, now);
    hardware | forget_addresses(node, &listed)
}

/// Since when VMs have records of devices that are gone.
fn note_stale(node: &mut Node, now: Timestamp) {
    let stale = |vm: &&ObservedVm| vm.devices.contains(&VmDevice::Stale);
    let with: BTreeSet<VmId> = node.vms.values().filter(stale).map(|vm| vm.id.clone()).collect();
    node.stale_since.retain(|vm, _| with.contains(vm));
    for vm in with {
        node.stale_since.entry(vm).or_insert(now);
    }
}

/// Addresses kept of one node, those where nothing is any more included: four moves of everything a node may hold. A
/// node's record grows with them, and one too large for the store would end the leader.
const MAX_ADDRESSES: usize = 4 * MAX_GPUS_PER_NODE;

/// Forgets addresses that were not listed and that nobody owns, as far as the bound wants it: first those where nothing
/// shows, and of these the ones seen longest ago. True when there were any.
fn forget_addresses(node: &mut Node, listed: &BTreeSet<DeviceAddress>) -> bool {
    let excess = node.gpus.len().saturating_sub(MAX_ADDRESSES);
    let kept = |address: &DeviceAddress, gpu: &Gpu| gpu.claim.is_some() || listed.contains(address);
    let mut unused: Vec<_> = (node.gpus.iter())
        .filter(|(address, gpu)| !kept(address, gpu))
        .map(|(address, gpu)| {
            let shows = !matches!(gpu.observed.state, GpuState::Unknown | GpuState::Missing);
            (shows, gpu.observed_at, address.clone())
        })
        .collect();
    unused.sort();
    unused.truncate(excess);
    for (_, _, address) in &unused {
        node.gpus.remove(address);
    }
    !unused.is_empty()
}

fn take_in_gpu(node: &mut Node, mut seen: ObservedGpu, now: Timestamp) -> bool {
    let Some(known) = node.gpus.get_mut(&seen.address) else {
        node.gpus.insert(
            seen.address.clone(),
            Gpu { observed: seen, observed_at: Some(now), since: Some(now), claim: None },
        );
        return true;
    };
    let stored = &known.observed.survey;
    if !stored.fingerprint.matches(&seen.survey.fingerprint) {
        // Another card than the one that is known: what is known stays, and nobody gets the stranger.
        let reason = QuarantineReason::WrongCard {
            expected: stored.fingerprint.clone(),
            found: seen.survey.fingerprint.clone(),
        };
        seen.health = GpuHealth::Quarantined(reason);
        seen.survey = stored.clone();
    } else if seen.survey.verdict == Verdict::NotMeasured && stored.verdict != Verdict::NotMeasured {
        // Measured when the host still had it; a dismounted card cannot be measured again.
        seen.survey = stored.clone();
    } else if seen.survey.fingerprint.serial.is_none() && stored.fingerprint.serial.is_some() {
        seen.survey.fingerprint = stored.fingerprint.clone();
    }
    let changed = *stored != seen.survey;
    let same = known.observed.state == seen.state && known.observed.health == seen.health;
    if !same || known.since.is_none() {
        known.since = Some(now);
    }
    known.observed = seen;
    known.observed_at = Some(now);
    changed
}
