//! So many a second, and the count of what was left out for it. Must never wait, and take no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lets a number through in each second. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Pace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    per_second: u64,
    start: Instant,
    /// The second that is counted (upper half), and how many were let through in it.
    through: AtomicU64,
    left_out: AtomicU64,
}

impl Pace {
    pub(crate) fn new(per_second: u32) -> Self {
        let (per_second, start) = (u64::from(per_second), Instant::now());
        Self(Arc::new(Inner { per_second, start, through: AtomicU64::new(0), left_out: AtomicU64::new(0) }))
    }

    /// Whether one more may pass now; counts it as passed, or as left out.
    pub(crate) fn admits(&self) -> bool {
        self.admits_in(self.0.start.elapsed().as_secs())
    }

    fn admits_in(&self, second: u64) -> bool {
        let second = second & u64::from(u32::MAX);
        let count = |through: u64| {
            let (of, count) = (through >> 32, through & u64::from(u32::MAX));
            let count = if of == second { count } else { 0 };
            (count < self.0.per_second).then_some(second << 32 | (count + 1))
        };
        let passes = self.0.through.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_ok();
        if !passes {
            self.0.left_out.fetch_add(1, Ordering::Relaxed);
        }
        passes
    }

    /// How many were left out so far.
    pub(crate) fn left_out(&self) -> u64 {
        self.0.left_out.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_room_for_so_many_and_the_rest_is_counted() {
        let pace = Pace::new(3);
        for (second, left_out) in [(7, 7), (8, 14), (0, 21)] {
            assert_eq!((0..10).filter(|_| pace.admits_in(second)).count(), 3, "{second}");
            assert_eq!(pace.left_out(), left_out);
        }
        let none = Pace::new(0);
        assert!(!none.clone().admits());
        assert_eq!(none.left_out(), 1, "clones share the count");
    }
}
