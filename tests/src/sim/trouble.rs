//! What goes wrong: with processes, with the network, with the store, with clocks, and by people's hands.

use super::agent::Agent;
use super::controller::LEASE;
use super::{Broken, Event, Sim, scene};
use crate::scene::{vm, vm_name};
use berth_model::pci::DeviceAddress;
use berth_model::{NodeName, VmId};
use berth_node_agent::driver::sim::LookFault;
use rand::{Rng, RngExt};
use std::collections::BTreeSet;
use std::time::Duration;

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Agents,
    Net,
    Controllers,
    Store,
    Hosts,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Agents, Self::Net, Self::Controllers, Self::Store, Self::Hosts];
}

/// What goes wrong in one run: all of it in every second one, else each kind or not. What a leader does in its second
/// minute shows only where leaders last.
pub(super) fn kinds(rng: &mut impl Rng) -> BTreeSet<Kind> {
    let all = rng.random();
    Kind::ALL.into_iter().filter(|_| all || rng.random()).collect()
}

/// Which of the agents is a node's.
pub(super) fn host_of(agents: &[Agent], node: &NodeName) -> usize {
    agents.iter().position(|agent| agent.name == *node).unwrap_or_default()
}

impl Sim {
    pub(super) fn accident(&mut self) -> Result<(), Broken> {
        if !self.trouble {
            return Ok(());
        }
        let at = self.now.after(Duration::from_millis(500) + self.up_to(6_000));
        self.agenda.add(at, Event::Accident);
        let node = self.rng.random_range(0..self.agents.len());
        let replica = self.rng.random_range(0..self.replicas.len());
        let roll = self.rng.random_range(0..12);
        let kind = match roll {
            0 => Kind::Agents,
            1 | 2 => Kind::Net,
            3..6 => Kind::Controllers,
            6 => Kind::Store,
            _ => Kind::Hosts,
        };
        if !self.troubled(kind) {
            return Ok(());
        }
        match kind {
            Kind::Agents => self.kill_agent(node, "agent: crash"),
            Kind::Net if roll == 1 => {
                self.break_some();
                Ok(())
            }
            Kind::Net => {
                self.partition(node);
                Ok(())
            }
            Kind::Controllers => self.controller_accident(replica),
            Kind::Store => {
                if self.rng_half() {
                    let full_for = self.up_to(20_000);
                    self.counts.add("store: full");
                    self.say("store", || format!("is FULL for {:.1} s", full_for.as_secs_f64()));
                    self.store.full_until = self.now.after(full_for);
                } else {
                    let away_for = self.up_to(8_000);
                    self.counts.add("store: down");
                    self.say("store", || format!("is DOWN for {:.1} s", away_for.as_secs_f64()));
                    self.store.down_until = self.now.after(away_for);
                }
                Ok(())
            }
            Kind::Hosts => self.host_accident(node),
        }
    }

    fn break_some(&mut self) {
        let conns: Vec<u64> = self.conns.keys().rev().take(self.agents.len()).copied().collect();
        if let Some(conn) = self.pick(&conns) {
            self.counts.add("net: connection breaks");
            self.say("net", || format!("connection {conn} breaks"));
            self.break_conn(conn);
        }
    }

    /// A node cannot reach one controller, or none.
    fn partition(&mut self, node: usize) {
        // Some last longer than any phase of a placement may.
        let most = if self.rng.random_ratio(1, 4) { 200_000 } else { 40_000 };
        let until = self.now.after(Duration::from_secs(3) + self.up_to(most));
        let all = self.rng_half();
        let one = self.rng.random_range(0..self.replicas.len());
        let replicas: Vec<usize> = (0..self.replicas.len()).filter(|replica| all || *replica == one).collect();
        self.counts.add("net: partition");
        self.say("net", || format!("node {node} cannot reach controllers {replicas:?}"));
        for replica in replicas {
            self.cut.insert((node, replica), until);
            let between: Vec<u64> = self
                .conns
                .iter()
                .filter(|(_, conn)| (conn.node, conn.replica) == (node, replica))
                .map(|(number, _)| *number)
                .collect();
            for conn in between {
                self.break_conn(conn);
            }
        }
    }

    fn controller_accident(&mut self, number: usize) -> Result<(), Broken> {
        match self.rng.random_range(0..6) {
            0 | 1 => {
                if self.replicas.get(number).is_some_and(|replica| replica.is_up()) {
                    self.counts.add("controller: crash");
                }
                self.replica_ends(number, "it crashed")
            }
            2 => {
                self.pause(number);
                Ok(())
            }
            3 => {
                let skew = scene::skew(&mut self.rng);
                self.counts.add("controller: clock steps");
                self.say(format_args!("control-{number}"), || format!("clock steps to {skew} ms"));
                if let Some(replica) = self.replicas.get_mut(number) {
                    replica.skew = skew;
                }
                Ok(())
            }
            4 => {
                let until = self.now.after(Duration::from_secs(1) + self.up_to(20_000));
                self.counts.add("controller: cut off from the store");
                self.say(format_args!("control-{number}"), || "cannot reach the store".to_owned());
                if let Some(replica) = self.replicas.get_mut(number) {
                    replica.store_cut = until;
                }
                Ok(())
            }
            _ => {
                if let Some(lease) = self.store.lease.take_if(|lease| lease.until > self.now) {
                    self.counts.add("controller: lease lost");
                    self.say("store", || format!("the lease of control-{} is gone", lease.replica));
                    self.tell_lease_lost(&lease);
                }
                Ok(())
            }
        }
    }

    fn host_accident(&mut self, node: usize) -> Result<(), Broken> {
        let now = self.now;
        let Some(agent) = self.agents.get_mut(node) else { return Ok(()) };
        agent.unchecked = true;
        let name = agent.name.clone();
        let vms: Vec<VmId> = agent.host.vm_ids().cloned().collect();
        // Only what Berth knows already: before that, whatever is in the slot is the right card.
        let known = self.store.truth.nodes.get(&name).map(|node| node.gpus.as_slice()).unwrap_or_default();
        let gpus: Vec<DeviceAddress> = known.iter().map(|(address, _)| address.clone()).collect();
        let (absent, given) = (agent.behind.absent(), agent.behind.given());
        let (one_vm, one_gpu) = (self.pick(&vms), self.pick(&gpus));
        let (absent, given) = (self.pick(&absent), self.pick(&given));
        let roll = self.rng.random_range(0..14);
        let (clustered, name_number) = (self.rng.random_ratio(1, 3), self.rng.random_range(0..scene::VMS));
        let spec = vm(&mut self.rng, vm_name(name_number));
        let Some(agent) = self.agents.get_mut(node) else { return Ok(()) };
        let (host, behind) = (&mut agent.host, &mut agent.behind);
        let (what, line) = match (roll, one_vm, one_gpu) {
            (0, _, _) => {
                host.reboot();
                self.counts.add("host: reboot");
                self.say(&name, || "host REBOOTS".to_owned());
                return self.kill_agent(node, "agent: crash");
            }
            (1, Some(vm), _) => ("host: VM deleted by hand", behind.delete_vm(host, &vm)),
            (2 | 3, _, _) if host.look().vms.values().all(|vm| vm.vm.name != spec.name) => {
                let line = format!("create VM {} {}", spec.name, spec.id);
                host.create_vm(spec).map_err(|e| Broken(e.to_string()))?;
                ("host: VM created by hand", line)
            }
            (4, Some(vm), _) => {
                ("host: VM started or stopped by hand", format!("start {vm}: {:?}", host.start_vm(&vm)))
            }
            (5, Some(vm), _) => ("host: VM started or stopped by hand", format!("stop {vm}: {:?}", host.stop_vm(&vm))),
            (6, Some(vm), _) => {
                let set = host.set_clustered(&vm, clustered);
                ("host: VM clustered by hand", format!("make VM {vm} clustered {clustered}: {set:?}"))
            }
            (7, Some(vm), Some(gpu)) => ("host: device given to a VM by hand", behind.give(host, &vm, &gpu, now)),
            (8, _, _) => match given {
                Some((vm, gpu)) => ("host: device taken back by hand", behind.take_back(host, &vm, &gpu)),
                None => return Ok(()),
            },
            (9, _, Some(gpu)) => match behind.pull(host, &gpu, now) {
                Some(line) => ("host: card pulled", line),
                None => return Ok(()),
            },
            (10, _, Some(gpu)) => ("host: card swapped", behind.swap(host, &gpu, now)),
            (11 | 12, _, _) => match absent.and_then(|gpu| behind.put_back(host, &gpu, now)) {
                Some(line) => ("host: card put back", line),
                None => return Ok(()),
            },
            (13, _, _) => {
                let looks = [LookFault::NoGpus, LookFault::NoVms, LookFault::Fails("no".to_owned()), LookFault::Hangs];
                let Some(fault) = self.pick(&looks) else { return Ok(()) };
                let line = format!("the next look goes wrong: {fault:?}");
                if let Some(agent) = self.agents.get_mut(node) {
                    agent.host.faults().script_look(fault);
                }
                ("host: one look goes wrong", line)
            }
            // There is no VM, or no GPU.
            (_, None | Some(_), None | Some(_)) => return Ok(()),
        };
        self.counts.add(what);
        self.say(&name, || format!("PEOPLE: {line}"));
        Ok(())
    }

    /// No faults from now on: everything is reachable and runs, and people take back what they gave away by hand. In one
    /// of two runs cards stay where they are, lost or swapped, so that reasons must be stated instead.
    pub(super) fn calm_down(&mut self) -> Result<(), Broken> {
        self.say("", || "faults and accidents stop".to_owned());
        self.trouble = false;
        self.cut.clear();
        self.store.down_until = self.now;
        if let Some(lease) = &mut self.store.lease {
            lease.until = lease.until.min(self.now.after(LEASE));
        }
        let put_back = self.rng_half();
        let now = self.now;
        for node in 0..self.agents.len() {
            let Some(agent) = self.agents.get_mut(node) else { continue };
            let (host, behind) = (&mut agent.host, &mut agent.behind);
            host.faults().clear();
            let mut lines: Vec<String> =
                behind.given().iter().map(|(vm, gpu)| behind.take_back(host, vm, gpu)).collect();
            if put_back {
                lines.extend(behind.absent().iter().filter_map(|gpu| behind.put_back(host, gpu, now)));
            }
            let name = agent.name.clone();
            for line in lines {
                self.say(&name, || format!("PEOPLE: {line}"));
            }
        }
        for number in 0..self.replicas.len() {
            if let Some(replica) = self.replicas.get_mut(number) {
                replica.store_cut = now;
                let life = replica.life;
                self.resumes(number, life)?;
            }
        }
        Ok(())
    }
}
