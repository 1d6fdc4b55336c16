//! The shell's clock: this machine's time, for whoever needs to say when. The brain is told the time.

use berth_model::Timestamp;
use std::time::SystemTime;

/// Now, by this machine's clock.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}
