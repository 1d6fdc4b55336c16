//! Who is let in: users with passwords, and TLS with certificates on both sides.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use super::{Server, options, put};
use berth_store::Store;
use berth_store_etcd::{Etcd, Options};
use berth_tests::etcd;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::fs;
use std::path::{Path, PathBuf};

#[tokio::test]
async fn users_log_in_with_the_password_of_their_file() {
    let Some(server) = Server::one("users_log_in_with_the_password_of_their_file").unwrap() else { return };
    server.call("v3/auth/user/add", r#"{"name": "root", "password": "correct horse"}"#).unwrap();
    server.call("v3/auth/role/add", r#"{"name": "root"}"#).unwrap();
    server.call("v3/auth/user/grant", r#"{"user": "root", "role": "root"}"#).unwrap();
    server.call("v3/auth/enable", "{}").unwrap();

    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, password: &str| {
        let path = dir.path().join(name);
        fs::write(&path, password).unwrap();
        Some(path)
    };
    let user = |password_file| Options { user: Some("root".to_owned()), password_file, ..options(&server) };
    let text = Etcd::connect(options(&server)).await.unwrap_err().to_string();
    assert!(text.contains("user name is empty"), "{text}");
    let text = Etcd::connect(user(file("wrong", "battery staple\n"))).await.unwrap_err().to_string();
    assert!(text.contains("invalid user ID or password"), "{text}");
    assert!(!text.contains("battery"), "a password is shown: {text}");

    let store = Etcd::connect(user(file("right", "correct horse\n"))).await.unwrap();
    store.commit(put("a", "1")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().value, "1");
    let leadership = store.campaign("one").await.unwrap();
    assert_eq!(leadership.term, 1);
}

/// An authority with a certificate for this machine, written to files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = dir.join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("ca.pem"), issuer.pem()).unwrap();
        let this = Self { issuer, dir };
        this.issue("machine");
        this
    }

    fn issue(&self, name: &str) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.file(&format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

#[tokio::test]
async fn tls_needs_the_right_authority_and_our_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "theirs"));
    let file = |name: &str| ours.file(name).display().to_string();
    let args = vec![
        "--cert-file".to_owned(),
        file("machine.pem"),
        "--key-file".to_owned(),
        file("machine.key"),
        "--trusted-ca-file".to_owned(),
        file("ca.pem"),
        "--client-cert-auth".to_owned(),
    ];
    let test = "tls_needs_the_right_authority_and_our_certificate";
    let Some(server) = Server::start(test, 1, &etcd::Options { args, tls: true }).unwrap() else { return };

    let with = |ca: Option<&Authority>, identity: Option<&Authority>| Options {
        ca: ca.map(|authority| authority.file("ca.pem")),
        cert: identity.map(|authority| authority.file("machine.pem")),
        key: identity.map(|authority| authority.file("machine.key")),
        deadline: std::time::Duration::from_secs(3),
        ..options(&server)
    };
    let store = Etcd::connect(with(Some(&ours), Some(&ours))).await.unwrap();
    store.commit(put("a", "1")).await.unwrap();
    for refused in [
        with(Some(&ours), None),
        with(Some(&theirs), Some(&ours)),
        with(Some(&ours), Some(&theirs)),
        with(None, Some(&ours)),
    ] {
        assert!(Etcd::connect(refused.clone()).await.is_err(), "{refused:?} is let in");
    }
}
