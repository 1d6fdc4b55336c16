//! Asking guests what they see, where the hypervisor has no way of its own into them.
//!
//! Owns how a Linux guest is asked over the network and how its answer is read. Must never run anything in a guest but
//! what stands in this program or in the node's settings, never send to it what somebody else said, and never believe it about anything but itself.

mod file;
pub mod install;
pub mod linux;
pub mod ssh;

pub use file::{BadFile, Secrecy};
