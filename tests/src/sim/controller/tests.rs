//! How leaderships end in the stand-in for the leader's loop: as they do in the shipped one.

use super::*;

/// Two or more controllers of which one leads, and nothing goes wrong; and that one.
fn led() -> (Sim, usize) {
    let mut sims = (0..100).map(|seed| Sim::new(seed, true));
    let mut sim = sims.find(|sim| sim.replicas.len() > 1).unwrap();
    sim.trouble = false;
    let leader = |sim: &Sim| sim.replicas.iter().position(|replica| replica.world().is_some());
    let nobody = |sim: &Sim| leader(sim).is_none().then(|| "nobody leads".to_owned());
    let end = sim.now.after(Duration::from_secs(60));
    assert_eq!(sim.until(end, |sim| Some(nobody(sim))).unwrap(), None);
    let first = leader(&sim).unwrap();
    (sim, first)
}

/// The lead of a controller that keeps it, and does nothing with it.
fn held_elsewhere(sim: &Sim, than: usize) -> Lease {
    let replica = (than + 1) % sim.replicas.len();
    Lease { replica, life: 99, term: 99, until: sim.now.after(Duration::from_secs(3600)) }
}

/// Lets some time pass, and says whether the process that was there has ended.
fn ends(sim: &mut Sim, number: usize) -> bool {
    let life = sim.replicas[number].life;
    sim.until(sim.now.after(Duration::from_secs(20)), |_| None).unwrap();
    sim.replicas[number].life != life
}

#[test]
fn a_leader_that_does_not_win_again_makes_way() {
    let (mut sim, first) = led();
    sim.store.lease = Some(held_elsewhere(&sim, first));
    sim.fails(first).unwrap();
    assert!(ends(&mut sim, first), "its agents would wait for it for ever");
}

#[test]
fn a_leadership_lost_while_its_world_is_loaded_is_noticed() {
    let (mut sim, first) = led();
    sim.store.lease = None;
    sim.fails(first).unwrap();
    sim.campaigns(first).unwrap();
    assert!(matches!(sim.replicas[first].process.as_ref().unwrap().role, Role::Loading { .. }));
    let lease = sim.store.lease.take().unwrap();
    sim.tell_lease_lost(&lease);
    // Nobody takes the lead, so that nothing else ends it.
    sim.store.lease = Some(held_elsewhere(&sim, first));
    assert!(ends(&mut sim, first));
    let why = format!("control-{first}   ENDS: its lease is lost");
    assert!(sim.log.lines.iter().any(|line| line.ends_with(&why)), "{:#?}", sim.log.lines);
}
