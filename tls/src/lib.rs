//! TLS for all three parties: certificates and keys from files, the two ends of a connection, and what a certificate
//! says.
//!
//! The only crate that names rustls. It exists because controller, agent and command line read the same kinds of file
//! and must say the same sentences about them; security is nothing to write three times. Always mutual where both sides
//! have a certificate, always TLS 1.2 or newer, always with a CA that somebody named: the system's list of public
//! authorities is never trusted.
//!
//! Files are read again when they change ([`server::Acceptor::follow`]) or at each new connection ([`client`]). Must
//! never decide what a caller may do: it tells who calls.

pub mod certificate;
pub mod client;
mod explain;
pub mod files;
pub mod server;

pub use certificate::Certificate;
pub use files::Pair;

use rustls::crypto::CryptoProvider;
use std::sync::Arc;

/// The cryptography: ring, as in the rest of the workspace. Named here, so that no global default decides.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The first byte of a TLS connection: a handshake record (RFC 8446, 5.1). No HTTP request begins with it.
pub const FIRST_BYTE: u8 = 0x16;
