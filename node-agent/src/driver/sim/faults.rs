//! What goes wrong on a simulated host: on cue, or by chance from a seed.

use berth_model::placement::StepKind;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, VecDeque};

/// What goes wrong with a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepFault {
    /// The host refuses it; nothing changes.
    Fails(String),
    /// It never answers.
    Hangs {
        /// Whether it takes effect all the same.
        effect: bool,
    },
    /// It reports success and changes nothing.
    NoEffect,
    /// It fails in the middle: settings half set, or the effect there and an error all the same.
    HalfDone,
    /// It never answers, and the host goes on with it for this many looks. A device that it dismounts or mounts shows
    /// neither in the host nor in the pool meanwhile; any other step is done at once.
    Lingers {
        /// How many.
        looks: u32,
    },
}

/// What goes wrong with a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookFault {
    /// It fails.
    Fails(String),
    /// It never answers.
    Hangs,
    /// It succeeds and shows no GPU.
    NoGpus,
    /// It succeeds and shows no VM, so that nothing seems to be in one.
    NoVms,
    /// It succeeds and lacks one of the GPUs: the one with this number, counted round.
    LacksOne(usize),
}

/// How often things go wrong by chance, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Of steps.
    pub step: u32,
    /// Of looks.
    pub look: u32,
}

/// The faults of one host. None at first.
#[derive(Debug, Default)]
pub struct Faults {
    scripted: BTreeMap<StepKind, VecDeque<StepFault>>,
    looks: VecDeque<LookFault>,
    always: BTreeMap<StepKind, StepFault>,
    chance: Option<(StdRng, Rates)>,
}

impl Faults {
    /// The next step of this kind that has no fault scripted yet gets one.
    pub fn script(&mut self, step: StepKind, fault: StepFault) {
        self.scripted.entry(step).or_default().push_back(fault);
    }

    /// Every step of this kind gets one, until [`Faults::clear`].
    pub fn always(&mut self, step: StepKind, fault: StepFault) {
        self.always.insert(step, fault);
    }

    /// The next look that has no fault scripted yet gets one.
    pub fn script_look(&mut self, fault: LookFault) {
        self.looks.push_back(fault);
    }

    /// Things go wrong by chance from now on.
    pub fn by_chance(&mut self, seed: u64, rates: Rates) {
        self.chance = Some((StdRng::seed_from_u64(seed), rates));
    }

    /// Nothing goes wrong any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn next_step(&mut self, step: StepKind) -> Option<StepFault> {
        if let Some(fault) = self.scripted.get_mut(&step).and_then(VecDeque::pop_front) {
            return Some(fault);
        }
        if let Some(fault) = self.always.get(&step) {
            return Some(fault.clone());
        }
        let (rng, rates) = self.chance.as_mut()?;
        if !rng.random_ratio(rates.step.min(1000), 1000) {
            return None;
        }
        Some(match rng.random_range(0..6) {
            0 => StepFault::Fails(format!("{step}: the operation failed (simulated)")),
            1 => StepFault::Hangs { effect: true },
            2 => StepFault::Hangs { effect: false },
            3 => StepFault::NoEffect,
            4 => StepFault::Lingers { looks: rng.random_range(1..=30) },
            _ => StepFault::HalfDone,
        })
    }

    pub(super) fn next_look(&mut self) -> Option<LookFault> {
        if let Some(fault) = self.looks.pop_front() {
            return Some(fault);
        }
        let (rng, rates) = self.chance.as_mut()?;
        if !rng.random_ratio(rates.look.min(1000), 1000) {
            return None;
        }
        Some(match rng.random_range(0..5) {
            0 => LookFault::Fails("the listing failed (simulated)".to_owned()),
            1 => LookFault::Hangs,
            2 => LookFault::NoGpus,
            3 => LookFault::NoVms,
            _ => LookFault::LacksOne(rng.random_range(0..64)),
        })
    }
}
