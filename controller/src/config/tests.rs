//! What settings are taken and what is said of those that are not.

use super::*;
use expect_test::{Expect, expect};
use std::path::Path;

fn resolve(flags: &[&str], environment: &[(&str, &str)], file: Option<&str>) -> Result<Settings, Error> {
    let mut flags = Flags::parse_from(std::iter::once(&"berth-controller").chain(flags));
    let dir = tempfile::tempdir().unwrap();
    if let Some(text) = file {
        let path = dir.path().join("controller.toml");
        std::fs::write(&path, text).unwrap();
        flags.config = Some(path);
    }
    Settings::resolve(flags, environment.iter().map(|(k, v)| ((*k).into(), (*v).into())))
}

fn refuse(flags: &[&str], environment: &[(&str, &str)], file: Option<&str>, why: Expect) {
    why.assert_eq(&resolve(flags, environment, file).unwrap_err().to_string());
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let file = "store = 'memory'\n[limits]\nhold = '5m'\nqueued = 7\n[agents]\nheartbeat = '1s'\nobserve = '2s'\n";
    let environment =
        [("BERTH_CONTROLLER_AGENTS_HEARTBEAT", "3s"), ("BERTH_CONTROLLER_AGENTS_OBSERVE", "4s"), ("PATH", "x")];
    let settings =
        resolve(&["--set", "agents.observe=5s", "--listen", "127.0.0.1:0"], &environment, Some(file)).unwrap();
    let Config { listen, store, limits, heartbeat, observe, commit_deadline, .. } = settings.controller;
    assert_eq!(listen.port(), 0);
    assert_eq!(store, StoreKind::Memory);
    assert_eq!((limits.hold, limits.queued), (Duration::from_secs(300), 7));
    assert_eq!((heartbeat, observe), (Duration::from_secs(3), Duration::from_secs(5)));
    assert_eq!(commit_deadline, Config::default().commit_deadline);
}

#[test]
fn nothing_at_all_gives_the_defaults() {
    let settings = resolve(&[], &[], None).unwrap();
    assert_eq!((settings.controller, settings.threads), (Config::default(), DEFAULT_THREADS));
}

#[test]
fn every_bad_setting_is_named_wherever_it_comes_from() {
    refuse(
        &["--set", "heartbeat=1s", "--set", "nonsense", "--store", "etc"],
        &[("BERTH_CONTROLLER_LISTEN", "here"), ("BERTH_CONTROLLER_LIMIT_HOLD", "1m")],
        Some(
            "insecure = 'perhaps'\nthreads = 0\nlimits.hold = '1 parsec'\nlimits.queued = 0\nlimits.history = [1]\nlimits.release = '0s'\n",
        ),
        expect![[r#"
            limits.history: must be a text, a number, true or false
            --set nonsense: is not of the form NAME=VALUE
            insecure: "perhaps" is neither true nor false
            limits.hold: "1 parsec" is not a time such as 500ms, 30s, 10m or 48h
            limits.queued: "0" is not a number from 1 on
            limits.release: "0s" is not from 10ms to 31 days
            threads: "0" is not a number from 1 to 256
            BERTH_CONTROLLER_LIMIT_HOLD: no such setting; known are listen, advertise, insecure, tls.cert, tls.key, tls.client_ca, data_dir, store, etcd.endpoints, etcd.ca, etcd.cert, etcd.key, etcd.user, etcd.password_file, etcd.prefix, etcd.lease_ttl, commit_deadline, check_interval, threads, agents.heartbeat, agents.observe, limits.hold, limits.prepare, limits.attach, limits.start, limits.verify, limits.release, limits.queued, limits.history, limits.history_age, limits.placements, log.format, log.filter, telemetry.endpoint, telemetry.ca, telemetry.sample, telemetry.traces_per_second, telemetry.lines_per_second, telemetry.interval, telemetry.prometheus
            BERTH_CONTROLLER_LISTEN: "here" is not of the form IP:PORT, such as 127.0.0.1:7600
            --set heartbeat: no such setting; known are listen, advertise, insecure, tls.cert, tls.key, tls.client_ca, data_dir, store, etcd.endpoints, etcd.ca, etcd.cert, etcd.key, etcd.user, etcd.password_file, etcd.prefix, etcd.lease_ttl, commit_deadline, check_interval, threads, agents.heartbeat, agents.observe, limits.hold, limits.prepare, limits.attach, limits.start, limits.verify, limits.release, limits.queued, limits.history, limits.history_age, limits.placements, log.format, log.filter, telemetry.endpoint, telemetry.ca, telemetry.sample, telemetry.traces_per_second, telemetry.lines_per_second, telemetry.interval, telemetry.prometheus
            --store: "etc" is not one of: embedded, memory, etcd"#]],
    );
}

#[test]
fn listening_beyond_this_machine_must_be_allowed() {
    refuse(
        &["--listen", "0.0.0.0:7600"],
        &[],
        None,
        expect![[r#"
        listen: 0.0.0.0:7600 can be reached from other machines, and connections are neither encrypted nor authenticated; set cert, key and client_ca under [tls], listen on 127.0.0.1, or set insecure = true if the network in between is trusted"#]],
    );
    assert!(resolve(&["--listen", "0.0.0.0:7600", "--insecure"], &[], None).is_ok());
    assert!(resolve(&["--listen", "[::1]:7600"], &[], None).is_ok());
}

#[test]
fn tls_takes_all_its_files_or_none() {
    let file = "listen = '0.0.0.0:7600'\n[tls]\ncert = 'c.pem'\nkey = '/etc/k.pem'\nclient_ca = 'ca.pem'\n";
    let tls = resolve(&["--tls-cert", "flag.pem"], &[], Some(file)).unwrap().controller.tls;
    assert_eq!((tls.cert.as_deref(), tls.key.as_deref()), (Some(Path::new("flag.pem")), Some(Path::new("/etc/k.pem"))));
    let beside = tls.client_ca.unwrap();
    assert!(beside.is_absolute() && beside.ends_with("ca.pem"), "{beside:?}");

    let missing = |text: &str| resolve(&[], &[], Some(text)).unwrap_err().to_string();
    assert!(missing("tls.key = 'k'\ntls.client_ca = 'c'\n").starts_with("tls.cert: is missing"));
    assert!(missing("tls.cert = 'c'\ntls.client_ca = 'c'\n").starts_with("tls.key: is missing"));
    assert!(missing("tls.cert = 'c'\ntls.key = 'k'\n").starts_with("tls.client_ca: is missing"));
    assert!(missing("tls.cert = ''\n").starts_with("tls.cert: is empty"));
    assert!(missing("tls.ca = 'c'\n").starts_with("tls.ca: no such setting"));
    let both = resolve(&["--insecure"], &[], Some(file)).unwrap_err().to_string();
    assert!(both.starts_with("insecure: has no meaning beside [tls]"), "{both}");
}

#[test]
fn a_task_takes_the_same_settings_before_and_after_its_name() {
    let task = |flags: &[&str]| {
        let settings = resolve(flags, &[], Some("store = 'memory'\n")).unwrap();
        assert_eq!(settings.controller.data_dir, Path::new("d"), "{flags:?}");
        settings.task
    };
    assert_eq!(task(&["--data-dir", "d"]), Task::Control);
    let restore = Restore { file: "f".into(), yes: false, into_nonempty: true };
    assert_eq!(
        task(&["--data-dir", "d", "restore", "f", "--into-nonempty"]),
        Task::Once(Once::Restore(restore.clone()))
    );
    assert_eq!(task(&["restore", "f", "--data-dir", "d", "--into-nonempty"]), Task::Once(Once::Restore(restore)));
    let rebuild = Rebuild { wait: Duration::from_secs(30), nodes: None, yes: true };
    assert_eq!(task(&["rebuild", "--yes", "--set", "data_dir=d"]), Task::Once(Once::Rebuild(rebuild)));
}

#[test]
fn what_a_file_names_lies_beside_it() {
    let settings = resolve(&[], &[], Some("data_dir = 'data'")).unwrap();
    assert!(settings.controller.data_dir.is_absolute() && settings.controller.data_dir.ends_with("data"));
    let settings = resolve(&["--data-dir", "data"], &[], Some("data_dir = 'other'")).unwrap();
    assert_eq!(settings.controller.data_dir, Path::new("data"));
}

#[test]
fn etcd_is_a_store_with_settings_of_its_own() {
    let file = "store = 'etcd'\n[etcd]\nendpoints = ['https://a:2379', 'b:2379']\nca = 'ca.pem'\nlease_ttl = '5s'\n";
    let Config { store, etcd, .. } = resolve(&[], &[], Some(file)).unwrap().controller;
    assert_eq!((store, etcd.lease_ttl), (StoreKind::Etcd, Duration::from_secs(5)));
    assert_eq!(etcd.endpoints, ["https://a:2379", "b:2379"]);
    assert!(etcd.ca.unwrap().is_absolute(), "what a file names lies beside it");
    let Config { store, etcd, .. } = resolve(&["--etcd", "a:1,b:1"], &[], None).unwrap().controller;
    assert_eq!((store, etcd.endpoints.len()), (StoreKind::Etcd, 2));
    for (flags, file, expected) in [
        (vec!["--store", "etcd"], "", "etcd.endpoints: name at least one, such as http://127.0.0.1:2379"),
        (
            vec![],
            "etcd.endpoints = ['a:1']",
            "etcd: has settings, but store is embedded: set store = \"etcd\" or remove them",
        ),
        (vec!["--etcd", "a:1"], "etcd.user = 'u'", "etcd.user: needs password_file"),
        (
            vec!["--etcd", "a:1", "--set", "etcd.lease_ttl=1s"],
            "",
            "etcd.lease_ttl: must be whole seconds from 2s to 300s",
        ),
        (
            vec!["--etcd", "a:1,,b:1"],
            "",
            "--etcd: is empty\netcd.endpoints: name at least one, such as http://127.0.0.1:2379",
        ),
    ] {
        assert_eq!(resolve(&flags, &[], Some(file)).unwrap_err().to_string(), expected);
    }
    let text = resolve(&["--etcd", "a:1"], &[], Some("etcd.endpoint = 'a:1'")).unwrap_err().to_string();
    assert!(text.starts_with("etcd.endpoint: no such setting"), "{text}");
}

#[test]
fn a_file_that_is_no_toml_is_refused_with_its_line() {
    let text = resolve(&[], &[], Some("listen = \n")).unwrap_err().to_string();
    assert!(text.contains("line 1"), "{text}");
    assert!(resolve(&["--config", "/nowhere/at/all.toml"], &[], None).unwrap_err().to_string().contains("/nowhere"));
}
