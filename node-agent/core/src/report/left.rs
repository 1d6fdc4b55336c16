//! Cards that a release had to give up, and that turn up later where nobody wants them.

use crate::memory::Memory;
use crate::observed::HostView;
use berth_model::gpu::{GpuHealth, GpuState, HostDriver, QuarantineReason};

/// Quarantines cards of which a function turned up as no release leaves it, and forgets those that the host or a VM has.
pub(super) fn quarantine(view: &mut HostView, memory: &mut Memory) {
    let mut found = Vec::new();
    memory.left.retain(|address| {
        let card = address.card();
        // Of another card's slot nothing can be said but that the right one is still away.
        let stranger = view.gpus.values().any(|gpu| {
            gpu.card() == card && matches!(gpu.health, GpuHealth::Quarantined(QuarantineReason::WrongCard { .. }))
        });
        let seen = match view.state(address) {
            _ if stranger => return true,
            GpuState::Pooled => "in the pool; mount it on the host (Mount-VMHostAssignableDevice) to use it again",
            GpuState::Host { driver: HostDriver::Disabled } => "disabled on the host; enable it there to use it again",
            GpuState::Host { driver: HostDriver::Bound | HostDriver::None } | GpuState::Attached { .. } => {
                return false;
            }
            GpuState::Stale { .. } | GpuState::Missing | GpuState::Unknown => return true,
        };
        found.push((address.clone(), format!("{address} was gone then, and now is {seen}")));
        true
    });
    for (address, seen) in found {
        let card = address.card();
        for gpu in view.gpus.values_mut().filter(|gpu| gpu.card() == card && gpu.health == GpuHealth::Ok) {
            gpu.health = GpuHealth::Quarantined(QuarantineReason::NotCleanAfterRelease { seen: seen.clone() });
        }
    }
}
