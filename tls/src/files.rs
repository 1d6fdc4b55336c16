//! Certificates and keys in files: PEM, read whole, judged with sentences that name the file.

use crate::certificate::Certificate;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, sign::CertifiedKey};
use std::path::{Path, PathBuf};

/// Largest file read. A chain or a bundle of CAs takes some kilobytes; all public CAs together 250 KiB.
const MAX_BYTES: u64 = 1 << 20;

/// Where a party's own certificate and key lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, then those that lead from it to the CA: PEM.
    pub cert: PathBuf,
    /// Its private key: PEM, not encrypted.
    pub key: PathBuf,
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is far too large.
    #[error("{} has more than {MAX_BYTES} bytes; that is no certificate or key", .0.display())]
    TooLarge(PathBuf),
    /// A file does not hold what it should.
    #[error("{path} {why}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Certificate and key do not belong together.
    #[error("the key in {} is not that of the certificate in {}", .0.key.display(), .0.cert.display())]
    NotAPair(Pair),
}

/// What a party shows of itself.
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    /// The first certificate of the chain.
    pub(crate) certificate: Certificate,
}

impl Pair {
    /// Reads both files and checks that they belong together.
    ///
    /// # Errors
    /// [`enum@Error`], naming the file.
    pub async fn check(&self) -> Result<Certificate, Error> {
        let (cert, key) = (read(&self.cert).await?, read(&self.key).await?);
        Ok(self.identity(&cert, &key)?.certificate)
    }

    pub(crate) fn identity(&self, cert: &[u8], key: &[u8]) -> Result<Identity, Error> {
        let chain = certificates(&self.cert, cert)?;
        let bad = |why: String| Error::Content { path: self.cert.clone(), why };
        let first = chain.first().ok_or_else(|| bad(NO_CERTIFICATE.to_owned()))?;
        let certificate = Certificate::read(first).map_err(|error| bad(error.to_string()))?;
        let key = private_key(&self.key, key)?;
        let together = CertifiedKey::from_der(chain.clone(), key.clone_key(), &crate::provider());
        together.map_err(|error| {
            if matches!(error, rustls::Error::InconsistentKeys(_)) {
                return Error::NotAPair(self.clone());
            }
            Error::Content { path: self.key.clone(), why: format!("cannot be used: {error}") }
        })?;
        Ok(Identity { chain, key, certificate })
    }
}

const NO_CERTIFICATE: &str = "holds no certificate in PEM (-----BEGIN CERTIFICATE-----)";

/// Reads a file whole.
pub(crate) async fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let length = tokio::fs::metadata(path).await.map_err(failed)?.len();
    if length > MAX_BYTES {
        return Err(Error::TooLarge(path.to_owned()));
    }
    tokio::fs::read(path).await.map_err(failed)
}

/// The CAs of a file.
pub(crate) fn roots(path: &Path, content: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for (at, ca) in certificates(path, content)?.into_iter().enumerate() {
        roots.add(ca).map_err(|error| Error::Content {
            path: path.to_owned(),
            why: format!("has as certificate {} what is no CA: {error}", at + 1),
        })?;
    }
    Ok(roots)
}

fn certificates(path: &Path, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bad = |why: String| Error::Content { path: path.to_owned(), why };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(content).collect();
    let found = found.map_err(|error| bad(broken(&error)))?;
    if found.is_empty() { Err(bad(NO_CERTIFICATE.to_owned())) } else { Ok(found) }
}

fn private_key(path: &Path, content: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(content).map_err(|error| {
        let encrypted = content.windows(ENCRYPTED.len()).any(|part| part == ENCRYPTED);
        let why = match (matches!(error, PemError::NoItemsFound), encrypted) {
            (true, true) => ENCRYPTED_KEY.to_owned(),
            (true, false) => "holds no private key in PEM (-----BEGIN PRIVATE KEY-----)".to_owned(),
            (false, _) => broken(&error),
        };
        Error::Content { path: path.to_owned(), why }
    })
}

const ENCRYPTED_KEY: &str =
    "holds an encrypted key; store it decrypted, readable by nobody else (openssl pkey -in OLD -out NEW)";
const ENCRYPTED: &[u8] = b"ENCRYPTED";

fn broken(error: &PemError) -> String {
    format!("is no PEM: {error}")
}
