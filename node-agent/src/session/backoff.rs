//! How long to wait before the next attempt.

use std::time::Duration;

/// The waits between attempts to reach a controller. Each value has its reason at [`Retry::default`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// After the first failure; it doubles with each further one.
    pub first: Duration,
    /// At most.
    pub longest: Duration,
    /// After a refusal that only a person, or the end of an older connection of this node, can lift.
    pub refused: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            // A controller that restarts is often back at once.
            first: Duration::from_millis(100),
            // An agent must be back within about five seconds of a controller's return; ten thousand agents at this
            // pace make some thousand attempts a second in all, which a host refuses or accepts without effort.
            longest: Duration::from_secs(4),
            // The controller needs some seconds to notice that an older connection is dead; a misconfigured agent
            // costs it next to nothing.
            refused: Duration::from_secs(10),
        }
    }
}

/// Doubles with every attempt that failed, up to a bound; each wait is drawn from the upper half of its span, so that
/// agents that lost the same controller do not come back in step.
#[derive(Debug)]
pub(super) struct Backoff {
    retry: Retry,
    failures: u32,
}

impl Backoff {
    /// A new one: nothing has failed yet.
    pub(super) fn new(retry: Retry) -> Self {
        Self { retry, failures: 0 }
    }

    /// The next wait after an attempt that failed.
    pub(super) fn failed(&mut self) -> Duration {
        let span = self.retry.first.saturating_mul(1 << self.failures).min(self.retry.longest);
        // Beyond this every span is the longest; counting on would only overflow.
        self.failures = (self.failures + 1).min(16);
        upper_half(span)
    }

    /// The next wait after a refusal.
    pub(super) fn refused(&self) -> Duration {
        upper_half(self.retry.refused)
    }

    /// A session was agreed: start over.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

fn upper_half(span: Duration) -> Duration {
    span.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_stay_bounded_and_start_over() {
        let Retry { first, longest, refused } = Retry::default();
        let mut backoff = Backoff::new(Retry::default());
        let mut bound = first;
        for attempt in 0..100 {
            let wait = backoff.failed();
            assert!(wait >= bound / 2 && wait <= bound, "attempt {attempt}: {wait:?} of {bound:?}");
            bound = (bound * 2).min(longest);
        }
        assert!(backoff.failed() >= longest / 2);
        backoff.reset();
        assert!(backoff.failed() <= first);
        let wait = backoff.refused();
        assert!(wait >= refused / 2 && wait <= refused, "{wait:?}");
    }

    #[test]
    fn agents_do_not_wait_in_step() {
        let waits: std::collections::BTreeSet<_> = (0..50).map(|_| Backoff::new(Retry::default()).failed()).collect();
        assert!(waits.len() > 25, "{waits:?}");
    }
}
