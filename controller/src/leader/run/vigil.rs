//! Whether to wait awake for a commit.
//!
//! A thread that sleeps until the store answers is woken some tens of microseconds after the answer is there, on a virtual
//! machine whose processors sleep for real. That is a few hundredths of a lone placement, and it is the only part of it
//! that can be bought with processor time. It is bought for one caller at a time who waits for a quick store: where many
//! wait, the thread has enough to do, and the store on the same machine needs the processor. See
//! `docs/decisions/2026-11-26-awake-for-a-lone-caller.md`.

use std::time::Duration;
use tokio::time::Instant;

/// Longest to stay awake: a commit to a local disk. A store that takes longer is waited for asleep, and so is the next
/// commit after it.
const LONGEST: Duration = Duration::from_millis(1);

/// The waiting of a lone caller, and what the one before it came to.
#[derive(Debug)]
pub(super) struct Vigil {
    /// There is a processor to spare.
    allowed: bool,
    /// Since when a lone caller has waited.
    since: Option<Instant>,
    /// The last commit that a lone caller waited for was there in time.
    quick: bool,
}

impl Vigil {
    /// Allowed where this process may use more than one processor.
    pub(super) fn on_this_machine() -> Self {
        Self::new(std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1))
    }

    fn new(allowed: bool) -> Self {
        Self { allowed, since: None, quick: false }
    }

    /// Whether to stay awake now. To be asked each time before the loop waits.
    pub(super) fn stays_awake(&mut self, lone_caller: bool, now: Instant) -> bool {
        match (lone_caller, self.since) {
            (false, since) => {
                if let Some(since) = since {
                    self.quick = now.duration_since(since) < LONGEST;
                }
                self.since = None;
                false
            }
            (true, None) => {
                self.since = Some(now);
                self.allowed && self.quick
            }
            (true, Some(since)) => self.allowed && self.quick && now.duration_since(since) < LONGEST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(600);
    const SLOW: Duration = Duration::from_millis(4);

    /// Lets a lone caller wait so long; whether the vigil is kept at its begin, and just before its end.
    fn wait(vigil: &mut Vigil, now: &mut Instant, time: Duration) -> (bool, bool) {
        let begin = vigil.stays_awake(true, *now);
        *now += time;
        let end = vigil.stays_awake(true, *now);
        assert!(!vigil.stays_awake(false, *now), "nobody waits");
        // As long as nobody waits, time says nothing about the store.
        *now += Duration::from_secs(1);
        assert!(!vigil.stays_awake(false, *now));
        (begin, end)
    }

    #[test]
    fn it_is_kept_for_a_store_that_was_quick_the_last_time_and_never_for_long() {
        let (mut vigil, mut now) = (Vigil::new(true), Instant::now());
        assert_eq!(wait(&mut vigil, &mut now, QUICK), (false, false), "nothing is known yet");
        assert_eq!(wait(&mut vigil, &mut now, QUICK), (true, true));
        assert_eq!(wait(&mut vigil, &mut now, SLOW), (true, false), "given up in time");
        assert_eq!(wait(&mut vigil, &mut now, SLOW), (false, false), "learned");
        assert_eq!(wait(&mut vigil, &mut now, QUICK), (false, false), "and seen asleep that it is quick again");
        assert_eq!(wait(&mut vigil, &mut now, QUICK), (true, true));
    }

    #[test]
    fn it_is_not_kept_on_the_only_processor() {
        let (mut vigil, mut now) = (Vigil::new(false), Instant::now());
        for _ in 0..3 {
            assert_eq!(wait(&mut vigil, &mut now, QUICK), (false, false));
        }
    }
}
