//! Which desired state an agent obeys: none lower than what it has accepted, and never the same number with other content.
//!
//! The pure rule. Keeping the ledger on disk is the shell's work.

use berth_model::desired::{DesiredNode, DesiredPlacement};
use berth_model::id::FleetId;

/// What was accepted so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Highest term seen.
    pub term: u64,
    /// The desired state last accepted.
    pub desired: Option<DesiredNode>,
}

/// What an accepted desired state means for the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// A newer one: keep it durably, then work on it.
    New,
    /// The content is known; a later leadership confirmed it, or it is now said which fleet it is of. Keep that durably.
    NewTerm,
    /// Exactly what was accepted already; nothing to write.
    Again,
}

/// Why a desired state is not obeyed. Nothing changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is of another fleet than what is held, which would be forgotten.
    #[error(
        "it is of fleet {offered}, and this node holds {placements} placements of fleet {held}; release them there first"
    )]
    OtherFleet {
        /// Its fleet.
        offered: FleetId,
        /// The fleet of what is held.
        held: FleetId,
        /// How many placements are held.
        placements: usize,
    },
    /// It comes from a leadership that is over.
    #[error("term {offered} is over: term {seen} was seen already")]
    OldTerm {
        /// Its term.
        offered: u64,
        /// The highest seen.
        seen: u64,
    },
    /// It is older than what was accepted.
    #[error("generation {offered} is older than generation {accepted}, which was accepted already")]
    OldGeneration {
        /// Its generation.
        offered: u64,
        /// The one accepted.
        accepted: u64,
    },
    /// Two different contents claim the same generation.
    #[error("generation {generation} was accepted with other content; the controller and this node's ledger disagree")]
    OtherContent {
        /// That generation.
        generation: u64,
    },
}

impl Ledger {
    /// The generation last accepted; 0 for none.
    pub fn generation(&self) -> u64 {
        self.desired.as_ref().map_or(0, |desired| desired.generation)
    }

    /// The fleet of what is held, as far as it was ever said.
    pub fn fleet(&self) -> Option<&FleetId> {
        self.desired.as_ref()?.fleet.as_ref()
    }

    /// How many placements are held.
    pub fn placements(&self) -> u32 {
        let held = self.desired.as_ref().map_or(0, |desired| desired.placements.len());
        u32::try_from(held).unwrap_or(u32::MAX)
    }

    /// Judges an offer.
    ///
    /// # Errors
    /// [`Refused`] when it must not be obeyed.
    pub fn judge(&self, offer: &DesiredNode) -> Result<Accepted, Refused> {
        let named = self.fleet().zip(offer.fleet.as_ref()).filter(|(held, offered)| held != offered);
        if let (Some((held, offered)), placements @ 1..) =
            (named, self.desired.iter().flat_map(|d| &d.placements).count())
        {
            return Err(Refused::OtherFleet { offered: offered.clone(), held: held.clone(), placements });
        }
        if offer.term < self.term {
            return Err(Refused::OldTerm { offered: offer.term, seen: self.term });
        }
        let Some(held) = &self.desired else { return Ok(Accepted::New) };
        if offer.generation < held.generation {
            return Err(Refused::OldGeneration { offered: offer.generation, accepted: held.generation });
        }
        if offer.generation > held.generation {
            return Ok(Accepted::New);
        }
        if !same_content(&offer.placements, &held.placements) {
            return Err(Refused::OtherContent { generation: offer.generation });
        }
        let tells_fleet = offer.fleet.is_some() && offer.fleet != held.fleet;
        Ok(if offer.term > self.term || tells_fleet { Accepted::NewTerm } else { Accepted::Again })
    }

    /// Judges an offer and takes it in.
    ///
    /// # Errors
    /// [`Refused`] when it must not be obeyed; the ledger is as before.
    pub fn accept(&mut self, mut offer: DesiredNode) -> Result<Accepted, Refused> {
        let accepted = self.judge(&offer)?;
        // A controller that does not say it, as older ones, is believed to be of the same.
        offer.fleet = offer.fleet.or_else(|| self.fleet().cloned());
        self.term = offer.term;
        self.desired = Some(offer);
        Ok(accepted)
    }
}

/// Whether two desired states want the same. The trace they belong to is not content: another leader may not know it.
fn same_content(a: &[DesiredPlacement], b: &[DesiredPlacement]) -> bool {
    let bare = |p: &DesiredPlacement| DesiredPlacement { trace: None, ..p.clone() };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| bare(a) == bare(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::desired;
    use berth_model::desired::Intent;

    fn offer(term: u64, generation: u64, intents: &[Intent]) -> DesiredNode {
        DesiredNode { term, generation, fleet: None, placements: intents.iter().map(|i| desired(*i)).collect() }
    }

    /// Every relation of an offer to a ledger at term 5, generation 7.
    #[test]
    fn offers_are_judged_by_term_then_generation_then_content() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.accept(offer(5, 7, &[Intent::Attached])), Ok(Accepted::New));
        let same = [Intent::Attached];
        let other = [Intent::Detached];
        let rows = [
            (4, 6, &same[..], Err(Refused::OldTerm { offered: 4, seen: 5 })),
            (4, 7, &same, Err(Refused::OldTerm { offered: 4, seen: 5 })),
            (4, 8, &other, Err(Refused::OldTerm { offered: 4, seen: 5 })),
            (5, 6, &same, Err(Refused::OldGeneration { offered: 6, accepted: 7 })),
            (6, 6, &other, Err(Refused::OldGeneration { offered: 6, accepted: 7 })),
            (5, 7, &same, Ok(Accepted::Again)),
            (5, 7, &other, Err(Refused::OtherContent { generation: 7 })),
            (5, 7, &[], Err(Refused::OtherContent { generation: 7 })),
            (6, 7, &same, Ok(Accepted::NewTerm)),
            (6, 7, &other, Err(Refused::OtherContent { generation: 7 })),
            (5, 8, &other, Ok(Accepted::New)),
            (6, 8, &[], Ok(Accepted::New)),
        ];
        for (term, generation, intents, want) in rows {
            assert_eq!(ledger.judge(&offer(term, generation, intents)), want, "term {term} generation {generation}");
        }
    }

    #[test]
    fn a_refused_offer_changes_nothing() {
        let mut ledger = Ledger::default();
        ledger.accept(offer(5, 7, &[Intent::Attached])).unwrap();
        let before = ledger.clone();
        ledger.accept(offer(9, 3, &[])).unwrap_err();
        assert_eq!(ledger, before);
    }

    #[test]
    fn another_fleet_is_obeyed_only_by_whoever_holds_nothing() {
        let of = |fleet: u8, offer: DesiredNode| DesiredNode {
            fleet: Some(format!("f1ee7000-0000-4000-8000-{fleet:012}").parse().unwrap()),
            ..offer
        };
        let mut ledger = Ledger::default();
        // Accepted before fleets were named; then it is said, and kept.
        ledger.accept(offer(5, 7, &[Intent::Kept])).unwrap();
        assert_eq!(ledger.accept(of(1, offer(5, 7, &[Intent::Kept]))), Ok(Accepted::NewTerm));
        assert_eq!(ledger.accept(of(1, offer(5, 7, &[Intent::Kept]))), Ok(Accepted::Again));
        // A controller that does not name one changes nothing about it.
        assert_eq!(ledger.accept(offer(6, 8, &[Intent::Kept])), Ok(Accepted::New));
        assert_eq!(ledger.fleet(), of(1, offer(0, 0, &[])).fleet.as_ref());
        for other in
            [of(2, offer(9, 9, &[])), of(2, offer(6, 8, &[Intent::Kept])), of(2, offer(9, 9, &[Intent::Detached]))]
        {
            let before = ledger.clone();
            let refused = ledger.accept(other).unwrap_err();
            assert!(matches!(refused, Refused::OtherFleet { placements: 1, .. }), "{refused}");
            assert_eq!(ledger, before);
        }
        // Released where it was made: free for anybody.
        ledger.accept(of(1, offer(6, 9, &[]))).unwrap();
        assert_eq!(ledger.accept(of(2, offer(7, 10, &[Intent::Attached]))), Ok(Accepted::New));
    }

    #[test]
    fn the_trace_is_not_content() {
        let mut ledger = Ledger::default();
        ledger.accept(offer(5, 7, &[Intent::Attached])).unwrap();
        let mut again = offer(5, 7, &[Intent::Attached]);
        again.placements[0].trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().ok();
        assert!(again.placements[0].trace.is_some());
        assert_eq!(ledger.accept(again), Ok(Accepted::Again));
    }
}
