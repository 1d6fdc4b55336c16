//! From looks to knowledge, and from knowledge to reports.
//!
//! The [`Tracker`] joins successive looks: what was once known and does not show is unknown first and missing only after
//! several complete looks, and a card that may be on its way between host and pool only after minutes; another card at a
//! known address is quarantined, and so is one that turns up where the release that gave it up would not have left it.
//! The [`Reporter`] tells the controller what it was not told yet. Neither ever concludes anything from a look that failed,
//! and neither reads a clock: the time of a look comes with it.

mod absence;
mod left;

use crate::cards;
use crate::memory::Memory;
use crate::observed::{HostView, VmView};
use absence::{Absence, Moves};
use berth_model::desired::DesiredPlacement;
use berth_model::gpu::{GpuHealth, GpuState, ObservedGpu, QuarantineReason, Survey, Verdict};
use berth_model::inventory::{InventoryReport, Listing, MAX_GPUS_PER_NODE, MAX_VMS_PER_NODE};
use berth_model::pci::DeviceAddress;
use berth_model::vm::{ObservedVm, VmState};
use berth_model::{ModelName, Timestamp, VmId};
use std::collections::{BTreeMap, BTreeSet};

pub use absence::{MISSES_UNTIL_GONE, WHILE_MOVING};

/// Looks in a row that may show no GPU at all, or no VM at all, where some were known, before that is believed. An empty
/// listing mostly means that the listing failed (a host's management starts later than the host); but the only card of
/// a host can really be taken out and its only VM be deleted, and then it must end.
pub const EMPTY_LOOKS: u32 = 5;

/// Joins looks.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    /// GPUs as last seen since the agent started, with the complete looks that lacked them since.
    gpus: BTreeMap<DeviceAddress, Seen<ObservedGpu>>,
    companions: BTreeMap<DeviceAddress, Seen<GpuState>>,
    /// With the complete looks in a row that lacked them.
    vms: BTreeMap<VmId, (VmView, u32)>,
    /// What is asked for without having been seen since the agent started, and the complete looks that lacked it.
    unseen_vms: BTreeMap<VmId, u32>,
    unseen_gpus: BTreeMap<DeviceAddress, Absence>,
    moves: Moves,
    empty_looks: u32,
}

#[derive(Clone, Debug)]
struct Seen<T> {
    last: T,
    absence: Absence,
}

impl<T> Seen<T> {
    fn now(last: T) -> Self {
        Self { last, absence: Absence::default() }
    }
}

impl Tracker {
    /// Takes in a complete look and gives it back with what is known besides: absent GPUs as unknown or missing, absent
    /// VMs as unknown until they are surely gone, wrong cards quarantined, known surveys where nothing can be measured.
    /// `wanted` are placements whose VMs and GPUs count as known although nothing was seen of them yet.
    ///
    /// # Errors
    /// Why the look counts as failed. Then nothing has changed but the count of such looks.
    pub fn look<'a>(
        &mut self,
        mut view: HostView,
        wanted: impl Iterator<Item = &'a DesiredPlacement> + Clone,
        memory: &mut Memory,
        now: Timestamp,
    ) -> Result<HostView, String> {
        self.judge(&view, memory)?;
        if self.moves.look(&view, wanted.clone()) {
            // What did not show in the last boot has until some minutes into this one.
            self.gpus.values_mut().for_each(|seen| seen.absence = Absence::default());
            self.companions.values_mut().for_each(|seen| seen.absence = Absence::default());
            self.unseen_gpus.clear();
        }
        self.track_gpus(&mut view, wanted.clone(), memory, now);
        self.track_companions(&mut view, memory, now);
        let remembered: Vec<_> = memory.original.keys().cloned().collect();
        self.track_vms(&mut view, wanted.map(|p| &p.vm).chain(&remembered));
        // A device in the pool that a VM listed a moment ago is not free because that VM does not show.
        let listed: BTreeMap<DeviceAddress, VmId> = (view.vms.values())
            .filter(|vm| view.unseen.contains(&vm.vm.id))
            .flat_map(|vm| vm.vm.devices.iter().map(move |device| (device, &vm.vm.id)))
            .filter_map(|(device, vm)| Some((device.address()?.clone(), vm.clone())))
            .collect();
        let gpus = view.gpus.iter_mut().map(|(address, gpu)| (address, &mut gpu.state));
        for (address, state) in gpus.chain(view.companions.iter_mut()) {
            if let (GpuState::Pooled, Some(vm)) = (&*state, listed.get(address)) {
                *state = GpuState::Attached { vm: vm.clone() };
            }
        }
        left::quarantine(&mut view, memory);
        Ok(view)
    }

    /// A step on a device begins, or is under way: until some minutes after it the card may be on its way between host
    /// and pool, and then neither shows it.
    pub fn moving(&mut self, address: &DeviceAddress, now: Timestamp) {
        let card = address.card();
        let gpus = self.gpus.iter_mut().map(|(at, seen)| (at, &mut seen.absence));
        let companions = self.companions.iter_mut().map(|(at, seen)| (at, &mut seen.absence));
        for (_, absence) in gpus.chain(companions).chain(&mut self.unseen_gpus).filter(|(at, _)| at.card() == card) {
            absence.begin_anew(now);
        }
        self.moves.moved(card);
    }

    fn judge(&mut self, view: &HostView, memory: &Memory) -> Result<(), String> {
        if view.gpus.len() > MAX_GPUS_PER_NODE {
            return Err(format!("the host lists {} GPUs, at most {MAX_GPUS_PER_NODE} can be kept", view.gpus.len()));
        }
        if view.vms.len() > MAX_VMS_PER_NODE {
            return Err(format!("the host lists {} VMs, at most {MAX_VMS_PER_NODE} can be kept", view.vms.len()));
        }
        let gpus_expected = self.gpus.values().any(|gpu| gpu.absence.misses() < MISSES_UNTIL_GONE)
            || (self.gpus.is_empty() && !memory.known.is_empty());
        let vms_expected = !self.vms.is_empty();
        let missing = match (view.gpus.is_empty() && gpus_expected, view.vms.is_empty() && vms_expected) {
            (true, _) => "GPU",
            (false, true) => "VM",
            (false, false) => {
                self.empty_looks = 0;
                return Ok(());
            }
        };
        if self.empty_looks >= EMPTY_LOOKS {
            return Ok(());
        }
        self.empty_looks += 1;
        Err(format!("the listing shows no {missing} at all, although there were some"))
    }

    fn track_gpus<'a>(
        &mut self,
        view: &mut HostView,
        wanted: impl Iterator<Item = &'a DesiredPlacement>,
        memory: &mut Memory,
        now: Timestamp,
    ) {
        for (address, gpu) in &mut view.gpus {
            recognise(gpu, memory);
            self.unseen_gpus.remove(address);
            self.gpus.insert(address.clone(), Seen::now(gpu.clone()));
        }
        for (address, survey) in &memory.known {
            self.gpus.entry(address.clone()).or_insert_with(|| Seen::now(unknown(address, survey.clone())));
        }
        for (address, seen) in &mut self.gpus {
            if view.gpus.contains_key(address) {
                continue;
            }
            let gone = seen.absence.miss(now, self.moves.patience(address));
            if let (GpuHealth::Quarantined(QuarantineReason::WrongCard { .. }), Some(known)) =
                (&seen.last.health, memory.known.get(address))
            {
                // The wrong card is out; what is missing is the right one.
                seen.last = unknown(address, known.clone());
            }
            seen.last.state = absent(view.vms.values(), address, gone);
            seen.last.problem = None;
            view.gpus.insert(address.clone(), seen.last.clone());
        }
        let named: BTreeMap<_, _> = wanted.flat_map(|p| &p.gpus).map(|gpu| (&gpu.address, gpu)).collect();
        self.unseen_gpus.retain(|address, _| named.contains_key(address));
        for (address, gpu) in named.into_iter().filter(|(address, _)| !self.gpus.contains_key(*address)) {
            let absence = self.unseen_gpus.entry(address.clone()).or_default();
            let gone = absence.miss(now, self.moves.patience(address));
            let survey = Survey {
                model: cards::by_id(&gpu.fingerprint.id)
                    .map_or(cards::GENERIC.model, |card| card.model)
                    .parse::<ModelName>()
                    .unwrap_or_else(|_| unreachable!("names in the card table are legal; a test parses them all")),
                fingerprint: gpu.fingerprint.clone(),
                vram_bytes: None,
                mmio: gpu.mmio,
                numa_node: None,
                companions: Vec::new(),
                verdict: Verdict::NotMeasured,
            };
            let mut placeholder = unknown(address, survey);
            placeholder.state = absent(view.vms.values(), address, gone);
            view.gpus.insert(address.clone(), placeholder);
        }
    }

    fn track_companions(&mut self, view: &mut HostView, memory: &mut Memory, now: Timestamp) {
        for (address, state) in &view.companions {
            self.companions.insert(address.clone(), Seen::now(state.clone()));
        }
        // Companions that a present card should have.
        let expected: BTreeSet<_> = (view.gpus.values())
            .filter(|gpu| !matches!(gpu.state, GpuState::Missing | GpuState::Stale { .. } | GpuState::Unknown))
            .flat_map(|gpu| gpu.survey.companions.iter().cloned())
            .collect();
        self.companions.retain(|address, _| expected.contains(address));
        for address in expected.into_iter().filter(|address| !view.companions.contains_key(address)).collect::<Vec<_>>()
        {
            let seen = self.companions.entry(address.clone()).or_insert(Seen::now(GpuState::Unknown));
            let gone = seen.absence.miss(now, self.moves.patience(&address));
            view.companions.insert(address.clone(), absent(view.vms.values(), &address, gone));
        }
        // A function that firmware took off a card which is measured without it is none of the card's any more.
        for gpu in view.gpus.values_mut().filter(|gpu| matches!(gpu.state, GpuState::Host { .. })) {
            let gone = |address: &DeviceAddress| view.companions.get(address) == Some(&GpuState::Missing);
            if gpu.survey.verdict == Verdict::NotMeasured || !gpu.survey.companions.iter().any(gone) {
                continue;
            }
            gpu.survey.companions.retain(|address| !gone(address));
            if let Some(known) =
                memory.known.get_mut(&gpu.address).filter(|k| k.fingerprint.matches(&gpu.survey.fingerprint))
            {
                known.companions.clone_from(&gpu.survey.companions);
            }
            if let Some(seen) = self.gpus.get_mut(&gpu.address) {
                seen.last.survey.companions.clone_from(&gpu.survey.companions);
            }
        }
    }

    fn track_vms<'a>(&mut self, view: &mut HostView, wanted: impl Iterator<Item = &'a VmId>) {
        for (id, vm) in &view.vms {
            self.unseen_vms.remove(id);
            self.vms.insert(id.clone(), (vm.clone(), 0));
        }
        let shown: BTreeSet<_> = view.vms.keys().cloned().collect();
        let mut gone = Vec::new();
        for (id, (last, misses)) in self.vms.iter_mut().filter(|(id, _)| !shown.contains(*id)) {
            *misses = misses.saturating_add(1);
            if *misses >= MISSES_UNTIL_GONE {
                gone.push(id.clone());
            } else {
                let mut vm = last.clone();
                vm.vm.state = VmState::Unknown;
                vm.guest = None;
                view.vms.insert(id.clone(), vm);
                view.unseen.insert(id.clone());
            }
        }
        for id in gone {
            self.vms.remove(&id);
            // Known to be gone: whoever asks need not wait again.
            self.unseen_vms.insert(id, MISSES_UNTIL_GONE);
        }
        let wanted: BTreeSet<_> = wanted.cloned().collect();
        self.unseen_vms.retain(|id, _| wanted.contains(id));
        for id in wanted.into_iter().filter(|id| !view.vms.contains_key(id)) {
            let misses = self.unseen_vms.entry(id).or_default();
            *misses = misses.saturating_add(1);
        }
    }

    /// Whether a VM that the last look lacked is surely gone.
    pub fn vm_is_gone(&self, vm: &VmId) -> bool {
        self.unseen_vms.get(vm).is_some_and(|misses| *misses >= MISSES_UNTIL_GONE)
    }

    /// Forgets which cards are known, so that those now in their slots are taken for right: the node is admitted anew.
    pub fn readmit(&mut self, memory: &mut Memory) {
        memory.known.clear();
        memory.left.clear();
        self.gpus.clear();
    }
}

fn unknown(address: &DeviceAddress, survey: Survey) -> ObservedGpu {
    ObservedGpu { address: address.clone(), survey, state: GpuState::Unknown, health: GpuHealth::Ok, problem: None }
}

/// State of a device that a look lacks.
fn absent<'a>(mut vms: impl Iterator<Item = &'a VmView>, address: &DeviceAddress, gone: bool) -> GpuState {
    if !gone {
        return GpuState::Unknown;
    }
    let lists = |vm: &&VmView| vm.vm.devices.iter().any(|device| device.address() == Some(address));
    match vms.find(lists) {
        Some(vm) => GpuState::Stale { vm: vm.vm.id.clone() },
        None => GpuState::Missing,
    }
}

/// Compares a GPU that answered with the card known at its address, and remembers it if none is.
fn recognise(gpu: &mut ObservedGpu, memory: &mut Memory) {
    let measured = gpu.survey.verdict != Verdict::NotMeasured;
    let room = memory.known.len() < MAX_GPUS_PER_NODE;
    match memory.known.get_mut(&gpu.address) {
        Some(known) if !known.fingerprint.matches(&gpu.survey.fingerprint) => {
            let (expected, found) = (known.fingerprint.clone(), gpu.survey.fingerprint.clone());
            gpu.health = GpuHealth::Quarantined(QuarantineReason::WrongCard { expected, found });
        }
        Some(known) => {
            let serial = known.fingerprint.serial.clone();
            if measured || known.verdict == Verdict::NotMeasured {
                // A function on its way between host and pool shows nowhere. An agent that starts just then must not forget
                // it, or nobody gives it back; when it is surely gone, `track_companions` takes it out.
                let before = std::mem::replace(known, gpu.survey.clone());
                known.companions.extend(before.companions);
                known.companions.sort();
                known.companions.dedup();
                known.fingerprint.serial = known.fingerprint.serial.take().or(serial);
            }
            gpu.survey = known.clone();
        }
        None if room => {
            memory.known.insert(gpu.address.clone(), gpu.survey.clone());
        }
        // More addresses than a node may have GPUs: cards were moved about. It is used, but not watched for a swap.
        None => {}
    }
}

/// What is to be told about a host at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    failed: Option<String>,
    gpus: BTreeMap<DeviceAddress, ObservedGpu>,
    vms: BTreeMap<VmId, ObservedVm>,
}

/// Tells a session what it was not told yet.
#[derive(Clone, Debug, Default)]
pub struct Reporter {
    sequence: u64,
    /// Nothing was told to this session yet: the next complete look is told in full.
    told: Option<Told>,
    now: Option<Told>,
    failed: Option<String>,
}

impl Reporter {
    /// Takes in a complete look.
    pub fn complete(&mut self, view: &HostView) {
        let gpus = view.gpus.iter().map(|(address, gpu)| (address.clone(), gpu.clone())).collect();
        let vms = view.vms.iter().map(|(id, vm)| (id.clone(), vm.vm.clone())).collect();
        self.now = Some(Told { failed: None, gpus, vms });
        self.failed = None;
    }

    /// Takes in a look that failed.
    pub fn failed(&mut self, why: String) {
        self.failed = Some(why);
    }

    /// A new session begins: it has been told nothing.
    pub fn new_session(&mut self) {
        self.sequence = 0;
        self.told = None;
    }

    /// What is to be told now, if anything.
    pub fn report(&mut self) -> Option<InventoryReport> {
        let report = match (&self.failed, &self.now, &mut self.told) {
            (Some(why), _, Some(told)) if told.failed.as_ref() == Some(why) => return None,
            (Some(why), _, told) => {
                told.get_or_insert_default().failed = Some(why.clone());
                delta(Listing::Failed { why: why.clone() })
            }
            (None, None, _) => return None,
            (None, Some(now), Some(told)) if now == told => return None,
            // Only a failure was told so far, or nothing: begin with everything.
            (None, Some(now), told) => {
                let before =
                    told.replace(now.clone()).filter(|before| !before.gpus.is_empty() || !before.vms.is_empty());
                match before {
                    None => InventoryReport {
                        full: true,
                        gpus: now.gpus.values().cloned().collect(),
                        vms: now.vms.values().cloned().collect(),
                        ..delta(Listing::Complete)
                    },
                    Some(before) => InventoryReport {
                        gpus: changed(&before.gpus, &now.gpus),
                        vms: changed(&before.vms, &now.vms),
                        vms_gone: before.vms.keys().filter(|id| !now.vms.contains_key(*id)).cloned().collect(),
                        ..delta(Listing::Complete)
                    },
                }
            }
        };
        self.sequence += 1;
        Some(InventoryReport { sequence: self.sequence, ..report })
    }
}

fn delta(listing: Listing) -> InventoryReport {
    InventoryReport { sequence: 0, full: false, listing, gpus: Vec::new(), vms: Vec::new(), vms_gone: Vec::new() }
}

fn changed<K: Ord, V: Clone + PartialEq>(before: &BTreeMap<K, V>, now: &BTreeMap<K, V>) -> Vec<V> {
    now.iter().filter(|(key, value)| before.get(key) != Some(value)).map(|(_, value)| value.clone()).collect()
}

#[cfg(test)]
mod tests;
