//! What people and accidents do to a host behind Berth's back.

use super::{Card, Function, Host, NotDone, Record};
use crate::driver::sim::spec::VmSpec;
use berth_model::VmId;
use berth_model::pci::DeviceAddress;
use berth_model::vm::VmState;

fn not_done(text: impl Into<String>) -> NotDone {
    NotDone(text.into())
}

impl Host {
    /// Creates a VM.
    ///
    /// # Errors
    /// When one with its id is there.
    pub fn create_vm(&mut self, spec: VmSpec) -> Result<(), NotDone> {
        if self.vms.contains_key(&spec.id) {
            return Err(not_done(format!("VM {} is there already", spec.id)));
        }
        self.insert_vm(spec);
        Ok(())
    }

    /// Deletes a VM, running or not. Its devices stay dismounted; nobody gives them back.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete_vm(&mut self, id: &VmId) -> Result<(), NotDone> {
        self.vms.remove(id).map(|_| ()).ok_or_else(|| not_done(format!("VM {id} is not there")))
    }

    /// Starts a VM.
    ///
    /// # Errors
    /// When it is not there or cannot start.
    pub fn start_vm(&mut self, id: &VmId) -> Result<(), NotDone> {
        self.start(id).map_err(|e| not_done(e.to_string()))
    }

    /// Stops a VM.
    ///
    /// # Errors
    /// When it is not there.
    pub fn stop_vm(&mut self, id: &VmId) -> Result<(), NotDone> {
        self.vms.get_mut(id).ok_or_else(|| not_done(format!("VM {id} is not there")))?.turn_off();
        Ok(())
    }

    /// Makes a VM a clustered role, or takes it out of the cluster.
    ///
    /// # Errors
    /// When it is not there.
    pub fn set_clustered(&mut self, id: &VmId, clustered: bool) -> Result<(), NotDone> {
        self.vms.get_mut(id).ok_or_else(|| not_done(format!("VM {id} is not there")))?.clustered = clustered;
        Ok(())
    }

    /// Restarts the host. VMs stop; those that are to start with it do, if they can. Devices stay dismounted.
    pub fn reboot(&mut self) {
        self.boots += 1;
        self.arrive_all();
        for vm in self.vms.values_mut().filter(|vm| vm.state != VmState::Saved) {
            vm.turn_off();
        }
        let autostart: Vec<_> = self.vms.iter().filter(|(_, vm)| vm.autostart).map(|(id, _)| id.clone()).collect();
        for id in autostart {
            // One that cannot start stays off.
            let _ = self.start(&id);
        }
    }

    /// Takes the card out of a GPU's slot. VMs that run with it crash and keep a record without an address.
    pub fn pull_card(&mut self, gpu: &DeviceAddress) -> Option<Card> {
        self.arrive_all();
        let card = self.slots.get_mut(gpu)?.take()?;
        for vm in self.vms.values_mut() {
            if vm.state != VmState::Saved
                && vm.devices.iter().any(|record| card.functions.contains_key(&record.address))
            {
                vm.turn_off();
            }
        }
        Some(card)
    }

    /// Puts a card into an empty slot. The host remembers a card it knew: it comes back as it was taken out.
    ///
    /// # Errors
    /// The card itself, when there is no such slot or it is not empty.
    pub fn insert_card(&mut self, gpu: &DeviceAddress, card: Card) -> Result<(), Box<Card>> {
        match self.slots.get_mut(gpu) {
            Some(slot @ None) => {
                *slot = Some(card);
                Ok(())
            }
            Some(Some(_)) | None => Err(Box::new(card)),
        }
    }

    /// Puts another card into a GPU's slot, and gives the one that was there.
    pub fn swap_card(&mut self, gpu: &DeviceAddress, card: Card) -> Option<Card> {
        let old = self.pull_card(gpu);
        // The slot is empty now, if there is one at all.
        let _ = self.insert_card(gpu, card);
        old
    }

    /// Gives a device to a VM without Berth, taking it from the host as needed. Another VM may have it as well: the
    /// host does not mind.
    ///
    /// # Errors
    /// When VM or device is not there, or the VM is not off.
    pub fn assign_by_hand(&mut self, id: &VmId, address: &DeviceAddress) -> Result<(), NotDone> {
        let off = self.vms.get(id).is_some_and(|vm| vm.state == VmState::Off);
        if !off {
            return Err(not_done(format!("VM {id} is not there, or not off")));
        }
        if self.is_lingering(address) {
            return Err(not_done(format!("device {address} shows neither in the host nor in the pool")));
        }
        let card = self.card_mut(address).ok_or_else(|| not_done(format!("no device at {address}")))?;
        if let Some(function) = card.functions.get_mut(address) {
            *function = Function { dismounted: true, disabled: true };
        }
        let record = Record { address: address.clone(), card: card.fingerprint().clone() };
        if let Some(vm) = self.vms.get_mut(id).filter(|vm| !vm.devices.contains(&record)) {
            vm.devices.push(record);
        }
        Ok(())
    }

    /// Takes a device out of a VM without Berth, stopping the VM; the device stays dismounted.
    ///
    /// # Errors
    /// When the VM is not there.
    pub fn unassign_by_hand(&mut self, id: &VmId, address: &DeviceAddress) -> Result<(), NotDone> {
        let vm = self.vms.get_mut(id).ok_or_else(|| not_done(format!("VM {id} is not there")))?;
        vm.turn_off();
        vm.devices.retain(|record| record.address != *address);
        Ok(())
    }
}
