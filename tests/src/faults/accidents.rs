//! What callers, people and accidents do, and what is remembered of it to judge the rest by.

use super::scene::VM_NAMES;
use super::{Broken, Event, Run};
use crate::scene;
use berth_core::decide::Input;
use berth_model::pci::DeviceAddress;
use berth_model::placement::Phase;
use berth_model::request::{Draft, PlacementRequest, ReturnTo, VerifyLevel};
use berth_model::{PlacementName, VmId};
use berth_node_agent::driver::sim::LookFault;
use rand::RngExt;
use rand::seq::IndexedRandom;
use std::time::Duration;

impl Run {
    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        from.choose(&mut self.rng).cloned()
    }

    pub(super) fn caller(&mut self) -> Result<(), Broken> {
        if !self.trouble {
            return Ok(());
        }
        let releasable: Vec<PlacementName> = (self.brain.world().placements())
            .filter(|p| p.phase.is_live() && !matches!(p.phase, Phase::Releasing { .. } | Phase::Failed { .. }))
            .map(|p| p.name().clone())
            .collect();
        if self.rng.random_ratio(2, 5) {
            if let Some(name) = self.pick(&releasable) {
                self.say(|| format!("caller  releases {name}"));
                self.decide(Input::Release { name, uid: None, version: None })?;
            }
        } else {
            self.create()?;
        }
        let at = self.now.after(Duration::from_secs(1) + self.up_to(30_000));
        self.agenda.add(at, Event::Caller);
        Ok(())
    }

    fn create(&mut self) -> Result<(), Broken> {
        self.made += 1;
        let number = self.made;
        let models = [vec!["A2".to_owned()], vec!["A30".to_owned()], Vec::new()];
        let draft = Draft {
            request_id: format!("r{number}"),
            name: format!("p{number}"),
            vm: scene::vm_name(self.rng.random_range(0..VM_NAMES)).to_string(),
            gpus: self.rng.random_range(1..=2),
            models: self.pick(&models).unwrap_or_default(),
            queue: self.rng.random_ratio(1, 2).then_some(Duration::from_secs(90)),
            allow_standalone: self.rng.random(),
            verify: self.pick(&[VerifyLevel::None, VerifyLevel::Visible, VerifyLevel::DriverBound]).unwrap_or_default(),
            return_to: self.pick(&[ReturnTo::Host, ReturnTo::Pool]).unwrap_or_default(),
            ..Draft::default()
        };
        self.say(|| format!("caller  asks for {} GPUs for {} as {}", draft.gpus, draft.vm, draft.name));
        let request = PlacementRequest::new(draft).map_err(|e| Broken(format!("the request is illegal: {e:?}")))?;
        let (request, uid) = (Box::new(request), scene::uid(number));
        self.decide(Input::Create { request, uid, caller: "test".to_owned(), trace: None }).map(|_| ())
    }

    pub(super) fn accident(&mut self) -> Result<(), Broken> {
        if !self.trouble {
            return Ok(());
        }
        self.summary.accidents += 1;
        self.unchecked.host = true;
        let at = self.now.after(Duration::from_secs(1) + self.up_to(50_000));
        self.agenda.add(at, Event::Accident);
        let vms: Vec<VmId> = self.host.vm_ids().cloned().collect();
        let vm = self.pick(&vms);
        let gpus: Vec<DeviceAddress> = self.nodes.values().flat_map(|n| &n.gpus).map(|(at, _)| at.clone()).collect();
        let gpu = self.pick(&gpus);
        match (self.rng.random_range(0..17), vm, gpu) {
            (0 | 1, _, _) => {
                self.kill("by somebody")?;
            }
            (2, _, _) => {
                self.say(|| "host    REBOOTS".to_owned());
                self.host.reboot();
                return self.kill("by the reboot");
            }
            (3, _, _) => return self.elect(),
            (4, _, _) => {
                self.hang_up()?;
                let (at, life) = (self.now.after(self.up_to(10_000)), self.life);
                self.agenda.add(at, Event::Connects { life });
            }
            (5, Some(vm), _) => {
                let line = self.behind.delete_vm(&mut self.host, &vm);
                self.say(|| format!("people  {line}"));
            }
            (6 | 7, _, _) => self.create_vm()?,
            (8, Some(vm), _) => {
                let started = self.host.start_vm(&vm);
                self.say(|| format!("people  start VM {vm}: {started:?}"));
            }
            (9, Some(vm), _) => {
                let stopped = self.host.stop_vm(&vm);
                self.say(|| format!("people  stop VM {vm}: {stopped:?}"));
            }
            (10, Some(vm), _) => {
                let clustered = self.rng.random_ratio(1, 3);
                let set = self.host.set_clustered(&vm, clustered);
                self.say(|| format!("people  make VM {vm} clustered ({clustered}): {set:?}"));
            }
            (11, Some(vm), Some(gpu)) => {
                let line = self.behind.give(&mut self.host, &vm, &gpu, self.now);
                self.say(|| format!("people  {line}"));
            }
            (12, _, _) => {
                let given = self.behind.given();
                if let Some((vm, gpu)) = self.pick(&given) {
                    self.take_back_by_hand(&vm, &gpu);
                }
            }
            (13, _, Some(gpu)) => self.pull(&gpu),
            (14, _, Some(gpu)) => self.swap(&gpu),
            (15, _, _) => {
                let absent = self.behind.absent();
                if let Some(gpu) = self.pick(&absent) {
                    self.put_back(&gpu);
                }
            }
            (16, _, _) => {
                let looks = [LookFault::NoGpus, LookFault::NoVms, LookFault::Fails("no".to_owned()), LookFault::Hangs];
                if let Some(fault) = self.pick(&looks) {
                    self.say(|| format!("host    the next look goes wrong: {fault:?}"));
                    self.host.faults().script_look(fault);
                }
            }
            // There is no VM, or no GPU was ever reported.
            (_, None | Some(_), None | Some(_)) => {}
        }
        Ok(())
    }

    fn create_vm(&mut self) -> Result<(), Broken> {
        let names: Vec<_> = self.host.look().vms.into_values().map(|vm| vm.vm.name).collect();
        let free: Vec<u32> = (0..VM_NAMES).filter(|n| !names.contains(&scene::vm_name(*n))).collect();
        if let Some(number) = self.pick(&free) {
            let vm = scene::vm(&mut self.rng, scene::vm_name(number));
            self.say(|| format!("people  create VM {} {}, {:?}, clustered {}", vm.name, vm.id, vm.state, vm.clustered));
            self.host.create_vm(vm).map_err(|e| Broken(e.to_string()))?;
        }
        Ok(())
    }

    fn take_back_by_hand(&mut self, vm: &VmId, gpu: &DeviceAddress) {
        let line = self.behind.take_back(&mut self.host, vm, gpu);
        self.say(|| format!("people  {line}"));
    }

    fn pull(&mut self, gpu: &DeviceAddress) {
        if let Some(line) = self.behind.pull(&mut self.host, gpu, self.now) {
            self.say(|| format!("people  {line}"));
        }
    }

    fn swap(&mut self, gpu: &DeviceAddress) {
        let line = self.behind.swap(&mut self.host, gpu, self.now);
        self.say(|| format!("people  {line}"));
    }

    fn put_back(&mut self, gpu: &DeviceAddress) {
        if let Some(line) = self.behind.put_back(&mut self.host, gpu, self.now) {
            self.say(|| format!("people  {line}"));
        }
    }

    /// No faults from now on. People take back what they gave away by hand; in one of two runs cards stay where they
    /// are, lost or swapped, so that reasons must be stated instead.
    pub(super) fn calm_down(&mut self) {
        self.say(|| "faults and accidents stop".to_owned());
        self.trouble = false;
        self.host.faults().clear();
        for (vm, gpu) in self.behind.given() {
            self.take_back_by_hand(&vm, &gpu);
        }
        if self.rng.random() {
            for gpu in self.behind.absent() {
                self.put_back(&gpu);
            }
        }
        if self.work.is_none() {
            self.agenda.add(self.now, Event::AgentStarts);
        } else if !self.session.open {
            let life = self.life;
            self.agenda.add(self.now, Event::Connects { life });
        }
    }

    pub(super) fn release_all(&mut self) -> Result<(), Broken> {
        let active: Vec<_> =
            (self.brain.world().placements()).filter(|p| p.phase == Phase::Active).map(|p| p.name().clone()).collect();
        for name in active {
            self.say(|| format!("caller  releases {name}"));
            self.decide(Input::Release { name, uid: None, version: None })?;
        }
        Ok(())
    }

    /// Whether a slot's own card is not in it.
    pub(super) fn is_absent(&self, gpu: &DeviceAddress) -> bool {
        self.behind.is_absent(gpu)
    }
}
