//! What people do to a simulated host behind Berth's back, and what is remembered of it to judge the rest by.
//!
//! Owns who is to blame: a device in two VMs, a step on the wrong card are Berth's fault only if nobody else did it.

use crate::scene;
use berth_agent_core::observed::HostView;
use berth_agent_core::step::Step;
use berth_model::gpu::{GpuState, HostDriver};
use berth_model::pci::DeviceAddress;
use berth_model::{Timestamp, VmId};
use berth_node_agent::driver::sim::{Card, Host};
use std::collections::BTreeMap;

/// What was done by hand to one host.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    /// Devices that people gave to VMs, and when.
    by_hand: BTreeMap<(VmId, DeviceAddress), Timestamp>,
    /// When cards were last taken out of a slot or put in.
    moved: BTreeMap<DeviceAddress, Timestamp>,
    /// Cards that lie on the bench.
    bench: BTreeMap<DeviceAddress, Card>,
    strangers: u32,
}

impl Behind {
    /// Deletes a VM. Gives the line for the log.
    pub(crate) fn delete_vm(&mut self, host: &mut Host, vm: &VmId) -> String {
        let deleted = host.delete_vm(vm);
        self.by_hand.retain(|(holder, _), _| holder != vm);
        format!("delete VM {vm}: {deleted:?}")
    }

    /// Gives a device to a VM.
    pub(crate) fn give(&mut self, host: &mut Host, vm: &VmId, gpu: &DeviceAddress, now: Timestamp) -> String {
        let given = host.assign_by_hand(vm, gpu);
        let line = format!("GIVE {gpu} to VM {vm}: {given:?}");
        if given.is_ok() {
            self.by_hand.insert((vm.clone(), gpu.clone()), now);
        }
        line
    }

    /// What was given by hand and not taken back.
    pub(crate) fn given(&self) -> Vec<(VmId, DeviceAddress)> {
        self.by_hand.keys().cloned().collect()
    }

    /// Takes a device back from a VM.
    pub(crate) fn take_back(&mut self, host: &mut Host, vm: &VmId, gpu: &DeviceAddress) -> String {
        let taken = host.unassign_by_hand(vm, gpu);
        self.by_hand.remove(&(vm.clone(), gpu.clone()));
        format!("take {gpu} back from VM {vm}: {taken:?}")
    }

    /// Takes the card out of a slot; `None` when there is none that belongs there.
    pub(crate) fn pull(&mut self, host: &mut Host, gpu: &DeviceAddress, now: Timestamp) -> Option<String> {
        if self.bench.contains_key(gpu) {
            return None;
        }
        let card = host.pull_card(gpu)?;
        self.bench.insert(gpu.clone(), card);
        self.moved.insert(gpu.clone(), now);
        Some(format!("PULL the card at {gpu}"))
    }

    /// Puts a card into a slot that was never there before.
    pub(crate) fn swap(&mut self, host: &mut Host, gpu: &DeviceAddress, now: Timestamp) -> String {
        self.strangers += 1;
        let stranger = scene::stranger(gpu, self.strangers);
        let line = format!("SWAP the card at {gpu} for {}", stranger.fingerprint());
        if let Some(card) = host.swap_card(gpu, stranger) {
            // A stranger that was in the slot before is thrown away; the right card is kept.
            self.bench.entry(gpu.clone()).or_insert(card);
        }
        self.moved.insert(gpu.clone(), now);
        line
    }

    /// Slots whose own card lies on the bench.
    pub(crate) fn absent(&self) -> Vec<DeviceAddress> {
        self.bench.keys().cloned().collect()
    }

    /// Puts a slot's own card back.
    pub(crate) fn put_back(&mut self, host: &mut Host, gpu: &DeviceAddress, now: Timestamp) -> Option<String> {
        let card = self.bench.remove(gpu)?;
        let line = format!("put {} back into {gpu}", card.fingerprint());
        host.swap_card(gpu, card);
        self.moved.insert(gpu.clone(), now);
        Some(line)
    }

    /// Whether people had to do with this device in this VM: gave it away, or ever took its card out.
    pub(crate) fn meddled_with(&self, vm: &VmId, gpu: &DeviceAddress) -> bool {
        self.by_hand.contains_key(&(vm.clone(), gpu.clone())) || self.moved.contains_key(gpu)
    }

    /// Whether a slot's own card is not in it.
    pub(crate) fn is_absent(&self, gpu: &DeviceAddress) -> bool {
        self.bench.contains_key(gpu)
    }

    /// No device is in two VMs, unless people put it there.
    pub(crate) fn check_host(&self, host: &Host) -> Result<(), String> {
        let view = host.look();
        for address in view.gpus.keys().chain(view.companions.keys()) {
            let holders: Vec<_> = view.holders(address).map(|vm| vm.vm.id.clone()).collect();
            let ours = |vm: &&VmId| !self.by_hand.contains_key(&((*vm).clone(), address.clone()));
            if holders.iter().filter(ours).count() > 1 {
                return Err(format!("device {address} is in several VMs: {holders:?}"));
            }
        }
        Ok(())
    }

    /// When a step takes effect: it must be right for the host as it is, unless people changed that after the picture
    /// was taken that the step was decided from.
    pub(crate) fn check_act(&self, host: &Host, step: &Step, pictured: Timestamp) -> Result<(), String> {
        let is_surprise = |at: Option<&Timestamp>| at.is_some_and(|at| *at >= pictured);
        let Some(address) = step.device() else { return Ok(()) };
        let mut holders = host.holders(address);
        let other = match step {
            Step::Attach { vm, .. } => holders.find(|holder| *holder != vm),
            Step::Mount { .. } | Step::Enable { .. } | Step::Disable { .. } | Step::Dismount { .. } => holders.next(),
            // Taking it out of the placement's own VM hurts nobody.
            Step::Detach { .. }
            | Step::DetachStale { .. }
            | Step::MakeStandalone { .. }
            | Step::StopVm { .. }
            | Step::ConfigureVm { .. }
            | Step::StartVm { .. }
            | Step::Verify { .. }
            | Step::InstallDriver { .. }
            | Step::RestoreVm { .. } => None,
        };
        let slot = self.moved.iter().find(|(gpu, _)| gpu.card() == address.card());
        if let Some(vm) = other {
            let given = self.by_hand.get(&(vm.clone(), address.clone()));
            if !is_surprise(given) && !is_surprise(slot.map(|(_, at)| at)) {
                return Err(format!("{step}, although VM {vm} has the device"));
            }
        }
        if let Some((gpu, moved)) = slot {
            let record_only = matches!(step, Step::Detach { .. });
            if self.is_absent(gpu) && !record_only && !is_surprise(Some(moved)) {
                return Err(format!("{step}, although the card there is not the one that was chosen"));
            }
        }
        Ok(())
    }
}

/// Whether a function of a GPU's card is where no release to the host leaves it: in the pool, or disabled.
pub(crate) fn is_unclean(host: &Host, gpu: &DeviceAddress) -> bool {
    let view = host.look();
    let states = view.gpus.iter().map(|(at, gpu)| (at, &gpu.state)).chain(&view.companions);
    let unclean =
        |state: &GpuState| matches!(state, GpuState::Pooled | GpuState::Host { driver: HostDriver::Disabled });
    states.into_iter().any(|(at, state)| at.card() == gpu.card() && unclean(state))
}

/// What is on its way between host and pool must not be taken for gone, however long the host needs.
pub(crate) fn check_look(host: &Host, seen: &HostView) -> Result<(), String> {
    let mut gone = host.lingering().filter(|address| seen.state(address) == GpuState::Missing);
    gone.next().map_or(Ok(()), |address| Err(format!("device {address} is on its way, and the agent says it is gone")))
}
