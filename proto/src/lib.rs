//! The wire and its one conversion to and from the vocabulary.
//!
//! Owns the generated messages and services, [`convert`], [`status`], and the form of a [`backup`]. Nothing of the wire may be known below, and no
//! decision may be taken here.

pub mod audit;
pub mod backup;
pub mod convert;
pub mod status;

/// Messages and services that callers and agents speak.
pub mod v1 {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    tonic::include_proto!("berth.v1");
}

/// Messages that the store keeps.
pub mod store {
    /// Version 1 of them.
    pub mod v1 {
        #![allow(
            missing_docs,
            unreachable_pub,
            clippy::all,
            clippy::pedantic,
            clippy::allow_attributes_without_reason,
            reason = "generated code"
        )]
        tonic::include_proto!("berth.store.v1");
    }
}

/// All of `berth/v1` as an encoded `FileDescriptorSet`, for reflection and JSON.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/berth.descriptors"));

/// Version of the agent protocol. An agent with an older one is refused with a sentence that says so.
pub const AGENT_PROTOCOL: u32 = 1;
