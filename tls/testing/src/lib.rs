//! Certificates for tests, made on the spot: a CA that writes what it issues into a directory.
//!
//! A crate of its own and no feature of `berth-tls`: with one, everything above it would be compiled twice, for tests and
//! for what ships. Must never be a dependency of anything that ships.

#![expect(clippy::unwrap_used, reason = "a test that cannot make its certificates fails")]

use berth_tls::Pair;
use rcgen::{BasicConstraints, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
pub use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use std::path::{Path, PathBuf};

/// What a server on this machine is dialled by.
pub const HERE: &[&str] = &["localhost", "127.0.0.1"];

/// A CA that writes into a directory.
#[derive(Debug)]
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
    /// Its certificate.
    pub file: PathBuf,
}

impl Ca {
    /// Makes one whose certificate is `NAME.pem` in this directory.
    ///
    /// # Panics
    /// When the file cannot be written.
    #[must_use]
    pub fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let file = dir.join(format!("{name}.pem"));
        std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), dir: dir.to_owned(), file }
    }

    /// Writes `FILE.crt` and `FILE.key` for a subject with these alternative names; `change` has the last word on what
    /// stands in the certificate. What is there under these names is replaced, as a renewal does it.
    ///
    /// # Panics
    /// When the files cannot be written.
    pub fn issue(
        &self,
        file: &str,
        subject: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, subject);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let made = params.signed_by(&key, &self.issuer).unwrap();
        let pair = Pair { cert: self.dir.join(format!("{file}.crt")), key: self.dir.join(format!("{file}.key")) };
        std::fs::write(&pair.cert, made.pem()).unwrap();
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }
}

/// Makes a certificate one that has expired.
pub fn expired(params: &mut CertificateParams) {
    params.not_after = date_time_ymd(2020, 1, 1);
}

/// Makes a certificate one that is not valid yet.
pub fn early(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2999, 1, 1);
}
