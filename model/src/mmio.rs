//! How much guest address space assigned devices need: the one arithmetic that choosing GPUs, configuring VMs and telling
//! people share.
//!
//! Source: the Linux guest's `pci-hyperv` driver reserves one window per device, of size S = the sum of its 64-bit
//! memory BARs, aligned to the largest power of two not above S. The vendor's documented rule (sum plus a buffer) is too
//! small for it: the device is then silently absent in the guest. The bound here holds wherever the gap starts and in
//! whatever order the guest finds the devices; Windows guests need no more than that.

use crate::gpu::MmioSize;
use std::fmt;

/// Room above 4 GiB that every VM has for other devices (Hyper-V's default high gap), in bytes.
pub const HIGH_BASE_BYTES: u64 = 512 << 20;
/// Room below 4 GiB that every VM has for other devices (Hyper-V's default low gap), in bytes.
pub const LOW_BASE_BYTES: u64 = 128 << 20;
/// What the vendor's guide to assigning a GPU sets above 4 GiB for one GPU, whatever it is: 33,280 MiB. A VM with a GPU gets
/// no less, also where a survey found smaller windows (a card whose windows grow with its firmware's settings).
/// Source: "Deploy graphics devices by using Discrete Device Assignment", Windows Server documentation.
pub const HIGH_LEAST_BYTES: u64 = 33_280 << 20;
/// The same below 4 GiB: 3 GiB.
pub const LOW_LEAST_BYTES: u64 = 3 << 30;
/// The most below 4 GiB that was seen to work: 3,584 MiB. The setting itself is a number of 32 bits.
pub const LOW_CAP_BYTES: u64 = 3_584 << 20;

/// Which of a VM's two gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gap {
    /// Below 4 GiB.
    Low,
    /// Above it.
    High,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Low => "low",
            Self::High => "high",
        })
    }
}

/// Devices need more address space than a VM can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Excess {
    /// In which gap.
    pub gap: Gap,
    /// What they need there, in bytes.
    pub needed_bytes: u64,
    /// What a VM can have there, in bytes.
    pub cap_bytes: u64,
}

impl fmt::Display for Excess {
    /// `262144 MiB of high MMIO, 131072 MiB can be had`: a need is rounded up and a cap down.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (needed, cap) = (self.needed_bytes.div_ceil(1 << 20), self.cap_bytes >> 20);
        write!(f, "{needed} MiB of {} MMIO, {cap} MiB can be had", self.gap)
    }
}

/// Address space above 4 GiB that a VM with these devices needs, in bytes: base + A (to align the start) + every window
/// rounded up to A but the last, where A is the largest power of two not above the largest window; at least
/// [`HIGH_LEAST_BYTES`] as soon as there is a device. Saturates.
pub fn required_high(devices: &[MmioSize]) -> u64 {
    if devices.is_empty() {
        return HIGH_BASE_BYTES;
    }
    let windows = || devices.iter().map(|d| d.high_bytes).filter(|size| *size > 0);
    let Some(align) = windows().max().map(|largest| 1_u64 << largest.ilog2()) else { return HIGH_LEAST_BYTES };
    let rounded = |size: u64| size.div_ceil(align).saturating_mul(align);
    let all = windows().map(rounded).fold(0, u64::saturating_add);
    // The last window needs no padding behind it. Which one is last is not known: the one that saves least.
    let saved = windows().map(|size| rounded(size) - size).min().unwrap_or(0);
    HIGH_BASE_BYTES.saturating_add(align).saturating_add(all - saved).max(HIGH_LEAST_BYTES)
}

/// Address space below 4 GiB that a VM with these devices needs, in bytes: base + every device's 32-bit memory BARs; at
/// least [`LOW_LEAST_BYTES`] as soon as there is a device. Saturates.
pub fn required_low(devices: &[MmioSize]) -> u64 {
    let least = if devices.is_empty() { 0 } else { LOW_LEAST_BYTES };
    devices.iter().map(|d| d.low_bytes).fold(LOW_BASE_BYTES, u64::saturating_add).max(least)
}

/// Whether one VM can have address space for all these devices, on a host where a VM can have `high_cap_bytes` above
/// 4 GiB. `None`: nobody measured it, and nothing is concluded from that.
///
/// # Errors
/// What does not fit.
pub fn check(devices: &[MmioSize], high_cap_bytes: Option<u64>) -> Result<(), Excess> {
    let high = (Gap::High, required_high(devices), high_cap_bytes);
    let low = (Gap::Low, required_low(devices), Some(LOW_CAP_BYTES));
    for (gap, needed_bytes, cap) in [high, low] {
        if let Some(cap_bytes) = cap.filter(|cap| needed_bytes > *cap) {
            return Err(Excess { gap, needed_bytes, cap_bytes });
        }
    }
    Ok(())
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
        assert_eq!(required_low(&[]), LOW_BASE_BYTES);
    }

    #[test]
    fn any_gpu_gets_what_the_vendor_documents_at_least() {
        let device = MmioSize { low_bytes: 16 * MIB, high_bytes: 256 * MIB };
        assert_eq!((required_low(&[device; 8]), required_high(&[device; 2])), (3072 * MIB, 33_280 * MIB));
        assert_eq!(high(&[0, 0]), HIGH_LEAST_BYTES);
        let wide = MmioSize { low_bytes: 400 * MIB, high_bytes: 0 };
        assert_eq!(required_low(&[wide; 8]), (128 + 8 * 400) * MIB);
    }

    #[test]
    fn what_does_not_fit_is_told_with_the_numbers() {
        let h100 = MmioSize { low_bytes: 0, high_bytes: 128 * GIB + 48 * MIB };
        let told = |count, cap| check(&vec![h100; count], cap).map_err(|excess| excess.to_string());
        assert_eq!(told(4, None), Ok(()), "a cap that nobody measured forbids nothing");
        assert_eq!(told(1, Some(262_704 * MIB)), Ok(()), "exactly enough is enough");
        assert_eq!(told(1, Some(262_703 * MIB)).unwrap_err(), "262704 MiB of high MMIO, 262703 MiB can be had");
        assert_eq!(told(4, Some(512 * GIB)).unwrap_err(), "1049136 MiB of high MMIO, 524288 MiB can be had");
        let wide = MmioSize { low_bytes: 512 * MIB, high_bytes: 0 };
        let excess = check(&[wide; 7], None).unwrap_err();
        assert_eq!(excess.to_string(), "3712 MiB of low MMIO, 3584 MiB can be had");
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

        #[test]
        fn larger_windows_never_need_less(
            sizes in proptest::collection::vec(0_u64..(1 << 38), 1..16),
            which in 0_usize..16,
            more in 0_u64..(1 << 38),
        ) {
            let mut larger = sizes.clone();
            larger[which % sizes.len()] += more;
            prop_assert!(high(&sizes) <= high(&larger), "{} of {sizes:?}, {} of {larger:?}", high(&sizes), high(&larger));
        }

        #[test]
        fn never_less_than_the_vendors_rule(sizes in proptest::collection::vec(0_u64..(1 << 38), 0..16)) {
            // The sum of all windows, and 512 MiB.
            prop_assert!(high(&sizes) >= sizes.iter().sum::<u64>() + HIGH_BASE_BYTES);
        }

        #[test]
        fn whatever_is_above_a_cap_is_refused(
            sizes in proptest::collection::vec((0_u64..(1 << 32), 0_u64..(1 << 38)), 0..16),
            cap in 0_u64..(1 << 40),
        ) {
            let devices: Vec<_> =
                sizes.iter().map(|(low_bytes, high_bytes)| MmioSize { low_bytes: *low_bytes, high_bytes: *high_bytes }).collect();
            let fits = required_high(&devices) <= cap && required_low(&devices) <= LOW_CAP_BYTES;
            prop_assert_eq!(check(&devices, Some(cap)).is_ok(), fits);
        }
    }
}
