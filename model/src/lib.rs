//! The words of Berth: ids, GPUs, virtual machines, requests, placements and the reasons for every refusal.
//!
//! Owns the vocabulary and the checks that make a value of it legal at all. Must never do I/O, be async, read a clock,
//! or know how a value looks on the wire or in the store.

pub mod adopt;
pub mod desired;
pub mod drift;
pub mod errors;
pub mod gpu;
pub mod history;
pub mod id;
pub mod install;
pub mod inventory;
pub mod mmio;
pub mod node;
pub mod pci;
pub mod placement;
pub mod reason;
pub mod request;
mod step;
pub mod time;
pub mod trace;
pub mod vm;

pub use id::{CommandName, GpuId, ModelName, NodeName, PlacementName, PlacementUid, RequestId, VmId, VmName};
pub use time::Timestamp;
