//! Who is let in: users with passwords, and TLS with certificates on both sides.

use super::{Server, options, put};
use berth_store::Store;
use berth_store_etcd::{Etcd, Options};
use berth_tests::etcd;
use berth_tls::Pair;
use berth_tls_testing::{Ca, HERE};
use std::fs;

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

#[tokio::test]
async fn a_token_that_a_change_of_roles_made_old_is_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, password) = (dir.path().join("secret"), dir.path().join("password"));
    fs::write(&secret, "only for this test").unwrap();
    fs::write(&password, "correct horse").unwrap();
    let token = format!("jwt,priv-key={},sign-method=HS256,ttl=10m", secret.display());
    let args = vec!["--auth-token".to_owned(), token];
    let test = "a_token_that_a_change_of_roles_made_old_is_renewed";
    let Some(server) = Server::start(test, 1, &etcd::Options { args, tls: false }).unwrap() else { return };
    server.call("v3/auth/user/add", r#"{"name": "root", "password": "correct horse"}"#).unwrap();
    server.call("v3/auth/role/add", r#"{"name": "root"}"#).unwrap();
    server.call("v3/auth/user/grant", r#"{"user": "root", "role": "root"}"#).unwrap();
    server.call("v3/auth/enable", "{}").unwrap();

    let user = Options { user: Some("root".to_owned()), password_file: Some(password), ..options(&server) };
    let store = Etcd::connect(user).await.unwrap();
    store.commit(put("a", "1")).await.unwrap();
    let login = r#"{"name": "root", "password": "correct horse"}"#;
    let answer = server.call("v3/auth/authenticate", login).unwrap();
    let token = answer["token"].as_str().unwrap();
    // For another program. The first question after it, and the first write after the next one, come with an old token.
    server.call_by(token, "v3/auth/role/add", r#"{"name": "another"}"#).unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().value, "1");
    let answer = server.call("v3/auth/authenticate", login).unwrap();
    server.call_by(answer["token"].as_str().unwrap(), "v3/auth/role/add", r#"{"name": "third"}"#).unwrap();
    store.commit(put("a", "2")).await.unwrap();
}

#[tokio::test]
async fn tls_needs_the_right_authority_and_our_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let authority = |name: &str| {
        let ca = Ca::new(dir.path(), name);
        let machine = ca.issue(&format!("{name}-machine"), "machine", HERE, |_| ());
        (ca, machine)
    };
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let (ca, Pair { cert, key }) = &ours;
    let files = [("--cert-file", cert), ("--key-file", key), ("--trusted-ca-file", &ca.file)];
    let args = files.into_iter().flat_map(|(flag, file)| [flag.to_owned(), file.display().to_string()]);
    let args = args.chain(["--client-cert-auth".to_owned()]).collect();
    let test = "tls_needs_the_right_authority_and_our_certificate";
    let Some(server) = Server::start(test, 1, &etcd::Options { args, tls: true }).unwrap() else { return };

    let with = |authority: Option<&(Ca, Pair)>, identity: Option<&(Ca, Pair)>| Options {
        ca: authority.map(|(ca, _)| ca.file.clone()),
        cert: identity.map(|(_, machine)| machine.cert.clone()),
        key: identity.map(|(_, machine)| machine.key.clone()),
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
