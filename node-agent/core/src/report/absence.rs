//! When something that does not show counts as gone.
//!
//! Owns the count of looks and the time since the first that lacked it. Must never conclude from looks alone that a card
//! is gone which may be on its way between host and pool.

use crate::observed::HostView;
use berth_model::Timestamp;
use berth_model::desired::DesiredPlacement;
use berth_model::gpu::{GpuState, HostDriver};
use berth_model::node::BootId;
use berth_model::pci::{CardKey, DeviceAddress};
use std::collections::BTreeSet;
use std::time::Duration;

/// Complete looks in a row that must lack something before it counts as gone. A listing taken while the host rearranges
/// its devices can lack some; three in a row, seconds apart, have not been seen to.
pub const MISSES_UNTIL_GONE: u32 = 3;

/// How long a card that may be on its way between host and pool is unknown before it can be gone, counted from the first
/// look that lacks it and from the last step on it. A dismount that hangs takes minutes, and the host's management goes
/// on with it when whoever asked was killed. No source says for how long at most; this is twice what a driver allows the
/// step, and still less than what the controller gives a placement to prepare.
pub const WHILE_MOVING: Duration = Duration::from_secs(600);

/// How long something has not shown.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Absence {
    misses: u32,
    since: Option<Timestamp>,
}

impl Absence {
    /// A complete look lacks it. Says whether it is gone: several looks lacked it, and that for as long as `patience`.
    pub(super) fn miss(&mut self, now: Timestamp, patience: Duration) -> bool {
        self.misses = self.misses.saturating_add(1);
        let since = *self.since.get_or_insert(now);
        self.misses >= MISSES_UNTIL_GONE && now.since(since) >= patience
    }

    /// The time counts from now.
    pub(super) fn begin_anew(&mut self, now: Timestamp) {
        self.since = Some(now);
    }

    pub(super) fn misses(self) -> u32 {
        self.misses
    }
}

/// Which cards may be on their way.
#[derive(Clone, Debug, Default)]
pub(super) struct Moves {
    /// What follows is of this boot.
    boot: Option<BootId>,
    seen: BTreeSet<CardKey>,
    /// Cards that were seen outside the host, named by a placement or the object of a step. A step that an earlier life of
    /// the agent began had a placement too, so nothing of this needs to be kept durably.
    moved: BTreeSet<CardKey>,
}

impl Moves {
    /// Takes in a complete look; `true` if it is the first of another boot.
    pub(super) fn look<'a>(&mut self, view: &HostView, wanted: impl Iterator<Item = &'a DesiredPlacement>) -> bool {
        let rebooted = self.boot.as_ref().is_some_and(|boot| *boot != view.boot);
        if self.boot.as_ref() != Some(&view.boot) {
            *self = Self { boot: Some(view.boot.clone()), ..Self::default() };
        }
        let gpus = view.gpus.iter().map(|(address, gpu)| (address, &gpu.state));
        for (address, state) in gpus.chain(&view.companions) {
            self.seen.insert(address.card());
            if !matches!(state, GpuState::Host { driver: HostDriver::Bound | HostDriver::None }) {
                self.moved.insert(address.card());
            }
        }
        self.moved.extend(wanted.flat_map(|placement| &placement.gpus).map(|gpu| gpu.address.card()));
        rebooted
    }

    pub(super) fn moved(&mut self, card: CardKey) {
        self.moved.insert(card);
    }

    /// How long a device must not have shown before it can be gone. Whoever was not seen yet in this boot by this agent
    /// may have been on its way when the agent started.
    pub(super) fn patience(&self, address: &DeviceAddress) -> Duration {
        let card = address.card();
        if self.seen.contains(&card) && !self.moved.contains(&card) { Duration::ZERO } else { WHILE_MOVING }
    }
}
