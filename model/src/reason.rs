//! Every reason why not: why a GPU is not available, why a node was passed over, why a call was refused.

mod class;
mod refusal;
mod rejection;
mod unavailable;

pub use class::ErrorClass;
pub use refusal::Refusal;
pub use rejection::{Explanation, NearestMiss, Rejection};
pub use unavailable::{Term, Unavailable};
