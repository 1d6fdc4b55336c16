//! How much guest address space assigned devices need: the arithmetic that choosing GPUs and configuring VMs share.
//!
//! Source: the Linux guest's `pci-hyperv` driver reserves one window per device, of size S = the sum of its 64-bit
//! memory BARs, aligned to the largest power of two not above S. The vendor's documented rule (sum plus a buffer) is too
//! small for it: the device is then silently absent in the guest. The bound here holds wherever the gap starts and in
//! whatever order the guest finds the devices; Windows guests need no more than that.

use crate::gpu::MmioSize;

/// Room above 4 GiB that every VM has for other devices (Hyper-V's default high gap), in bytes.
pub const HIGH_BASE_BYTES: u64 = 512 << 20;
/// Room below 4 GiB that every VM has for other devices (Hyper-V's default low gap), in bytes.
pub const LOW_BASE_BYTES: u64 = 128 << 20;

/// Address space above 4 GiB that a VM with these devices needs, in bytes: base + A (to align the start) + every window
/// rounded up to A but the last, where A is the largest power of two not above the largest window. Saturates.
pub fn required_high(devices: &[MmioSize]) -> u64 {
    let windows = || devices.iter().map(|d| d.high_bytes).filter(|size| *size > 0);
    let Some(align) = windows().max().map(|largest| 1_u64 << largest.ilog2()) else { return HIGH_BASE_BYTES };
    let rounded = |size: u64| size.div_ceil(align).saturating_mul(align);
    let all = windows().map(rounded).fold(0, u64::saturating_add);
    // The last window needs no padding behind it. Which one is last is not known: the one that saves least.
    let saved = windows().map(|size| rounded(size) - size).min().unwrap_or(0);
    HIGH_BASE_BYTES.saturating_add(align).saturating_add(all - saved)
}

/// Address space below 4 GiB that a VM with these devices needs, in bytes: base + every device's 32-bit memory BARs.
/// Saturates.
pub fn required_low(devices: &[MmioSize]) -> u64 {
    devices.iter().map(|d| d.low_bytes).fold(LOW_BASE_BYTES, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn high(sizes: &[u64]) -> u64 {
        let devices: Vec<_> = sizes.iter().map(|s| MmioSize { low_bytes: 0, high_bytes: *s }).collect();
        required_high(&devices)
    }

    #[test]
    fn one_device_matches_the_measured_cases() {
        assert_eq!(high(&[32 * GIB + 32 * MIB]) / MIB, 66_080);
        assert_eq!(high(&[64 * GIB + 32 * MIB]) / MIB, 131_616);
        assert_eq!(high(&[128 * GIB + 32 * MIB]) / MIB, 262_688);
    }

    #[test]
    fn nothing_needs_the_defaults() {
        assert_eq!(high(&[]), HIGH_BASE_BYTES);
        assert_eq!(high(&[0, 0]), HIGH_BASE_BYTES);
        assert_eq!(required_low(&[]), LOW_BASE_BYTES);
    }

    #[test]
    fn low_is_base_and_sum() {
        let device = MmioSize { low_bytes: 16 * MIB, high_bytes: 0 };
        assert_eq!(required_low(&[device; 8]), (128 + 8 * 16) * MIB);
    }

    #[test]
    fn absurd_sizes_saturate() {
        assert_eq!(high(&[u64::MAX, u64::MAX]), u64::MAX);
        let device = MmioSize { low_bytes: u64::MAX, high_bytes: 0 };
        assert_eq!(required_low(&[device, device]), u64::MAX);
    }

    /// Where the guest driver's allocations end: each window at the next multiple of its own alignment.
    fn end_of_windows(start: u64, sizes: &[u64]) -> u64 {
        sizes.iter().filter(|s| **s > 0).fold(start, |at, size| at.next_multiple_of(1 << size.ilog2()) + size)
    }

    proptest! {
        #[test]
        fn the_guest_driver_fits_wherever_the_gap_starts_and_in_any_order(
            sizes in proptest::collection::vec(0_u64..(1 << 38), 1..16),
            start in 0_u64..(1 << 40),
            turn in 0_usize..16,
        ) {
            let mut order = sizes.clone();
            order.rotate_left(turn % sizes.len());
            let end = end_of_windows(start, &order);
            prop_assert!(end - start + HIGH_BASE_BYTES <= high(&sizes), "needs {} of {}", end - start, high(&sizes));
        }

        #[test]
        fn more_devices_never_need_less(sizes in proptest::collection::vec(0_u64..(1 << 38), 1..16)) {
            prop_assert!(high(&sizes[1..]) <= high(&sizes));
        }
    }
}
