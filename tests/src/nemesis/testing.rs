//! Histories made by hand, for the tests of those who judge them.

use super::history::{self, History};
use berth_proto::v1;
use berth_store::memory::Memory;
use berth_store::{Revision, Store as _, Transaction, Write, key, record};
use std::time::Duration;

/// The node of every placement here.
pub(super) const NODE: &str = "host-00";
/// A GPU of it.
pub(super) const GPU: &str = "PCIROOT(20)#PCI(0100)#PCI(0000)";
/// The VM of a placement that has one.
pub(super) const VM: &str = "00000000-0000-4000-a000-000000000000";

/// A uid that ends with this digit.
pub(super) fn uid(digit: u8) -> String {
    format!("8fce3318-aa0f-4de3-8664-27853357300{digit}")
}

/// A placement of one GPU in some phase.
pub(super) fn placement(name: &str, digit: u8, phase: v1::Phase) -> v1::Placement {
    let at = berth_proto::convert::timestamp(berth_model::Timestamp::from_millis(0));
    let timed = !matches!(phase, v1::Phase::Active | v1::Phase::Released | v1::Phase::Failed);
    v1::Placement {
        uid: uid(digit),
        request: Some(v1::PlacementRequest {
            request_id: format!("request/{name}/{digit}"),
            name: name.to_owned(),
            vm: name.to_owned(),
            gpus: 1,
            hold: Some(berth_proto::convert::duration(Duration::from_secs(20))),
            locality: v1::Locality::Preferred.into(),
            verify: v1::VerifyLevel::None.into(),
            return_to: v1::ReturnTo::Host.into(),
            install_driver: String::new(),
            ..v1::PlacementRequest::default()
        }),
        created: Some(at),
        phase: phase.into(),
        phase_since: Some(at),
        deadline: timed.then_some(at),
        assignment: Some(v1::Assignment {
            node: NODE.to_owned(),
            gpus: vec![v1::AssignedGpu {
                address: GPU.to_owned(),
                model: "A16".to_owned(),
                fingerprint: Some(v1::Fingerprint { pci_id: "10de:25b6:10de:14a9".to_owned(), serial: String::new() }),
                mmio: Some(v1::MmioSize { low_bytes: 1, high_bytes: 1 }),
            }],
            pin: Some(v1::Pin { reason: v1::PinReason::DeviceAssignment.into(), since: Some(at) }),
        }),
        vm_id: if phase == v1::Phase::Held { String::new() } else { VM.to_owned() },
        ..v1::Placement::default()
    }
}

/// A store that is written to by hand.
pub(super) struct Book {
    store: Memory,
}

impl Book {
    /// A store that somebody leads in term 1.
    pub(super) async fn led() -> Self {
        let book = Self { store: Memory::new() };
        book.lead(1).await;
        book
    }

    /// Writes whatever it is.
    pub(super) async fn write(&self, writes: Vec<Write>) -> Revision {
        self.store.commit(Transaction { writes, ..Transaction::default() }).await.unwrap()
    }

    /// Somebody takes the lead.
    pub(super) async fn lead(&self, term: u64) -> Revision {
        let leader = record::leader(&record::Leader { term, candidate: format!("http://c{term} instance") });
        let put = |key: &str, value| Write::Put { key: key.to_owned(), value };
        self.write(vec![put(key::LEADER, leader), put(key::TERM, record::term(term))]).await
    }

    /// Whoever leads does so no more.
    pub(super) async fn leave(&self) -> Revision {
        self.write(vec![Write::Delete { key: key::leader() }]).await
    }

    /// Writes a placement with whatever it is to own, and takes away what it is not.
    pub(super) async fn put(&self, wire: &v1::Placement) -> Revision {
        let (own, disown) = owned(wire);
        let mut writes = vec![put_placement(wire)];
        for key in disown {
            writes.push(Write::Delete { key });
        }
        for key in own {
            writes.push(claim(&key, wire));
        }
        self.write(writes).await
    }

    /// What the history comes to.
    pub(super) async fn history(&self) -> History {
        History::walk(history::read(&self.store).await.unwrap())
    }
}

/// The record of a placement alone.
pub(super) fn put_placement(wire: &v1::Placement) -> Write {
    let placement = berth_model::placement::Placement::try_from(v1::Placement { version: 1, ..wire.clone() }).unwrap();
    Write::Put { key: key::placement(placement.name()), value: record::placement(&placement) }
}

/// The claim of a placement on a key.
pub(super) fn claim(key: &str, wire: &v1::Placement) -> Write {
    let name = wire.request.as_ref().unwrap().name.parse().unwrap();
    Write::Put { key: key.to_owned(), value: record::claim(&name, &wire.uid.parse().unwrap()) }
}

/// The key of the claim on the GPU.
pub(super) fn gpu_key() -> String {
    key::gpu_claim(&format!("{NODE}/{GPU}").parse().unwrap())
}

fn owned(wire: &v1::Placement) -> (Vec<String>, Vec<String>) {
    let request = wire.request.as_ref().unwrap();
    let lives = wire.phase() != v1::Phase::Released;
    let mut own = vec![key::request(&request.request_id.parse().unwrap())];
    let vm = key::vm_claim(&request.vm.parse().unwrap());
    let id = (!wire.vm_id.is_empty()).then(|| key::vm_claim(&wire.vm_id.parse().unwrap()));
    let living = [gpu_key(), vm].into_iter().chain(id);
    if lives {
        own.extend(living);
        return (own, Vec::new());
    }
    (own, living.collect())
}
