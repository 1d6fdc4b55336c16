//! The address space a VM must be given for its devices, merged with what it has.

use crate::observed::VmSettings;
use berth_model::gpu::MmioSize;
use berth_model::mmio::{required_high, required_low};

/// Low and high address space in bytes that a VM must have for `devices`: what they need, and never less than `present`
/// (devices that the VM already has may rest on it).
pub fn merged(present: &VmSettings, devices: &[MmioSize]) -> (u64, u64) {
    (present.mmio_low_bytes.max(required_low(devices)), present.mmio_high_bytes.max(required_high(devices)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::{Checkpoints, StopAction, VmMemory};

    const MIB: u64 = 1 << 20;
    const DEVICE: MmioSize = MmioSize { low_bytes: 16 * MIB, high_bytes: (32 << 30) + 32 * MIB };

    fn settings(low: u64, high: u64) -> VmSettings {
        VmSettings {
            stop_action: StopAction::Save,
            guest_cache_types: false,
            mmio_low_bytes: low * MIB,
            mmio_high_bytes: high * MIB,
            memory: VmMemory::DYNAMIC,
            checkpoints: Checkpoints::PRODUCTION,
        }
    }

    #[test]
    fn the_defaults_are_raised_to_what_the_device_needs() {
        assert_eq!(merged(&settings(128, 512), &[DEVICE]), (3_072 * MIB, 66_080 * MIB));
    }

    #[test]
    fn what_the_vm_has_is_never_lowered() {
        assert_eq!(merged(&settings(3_100, 131_616), &[DEVICE]), (3_100 * MIB, 131_616 * MIB));
    }
}
