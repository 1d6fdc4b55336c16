//! What settings are taken, which one wins, and what is said of those that are not.

use super::*;
use berth_tls::Pair;
use expect_test::{Expect, expect};

const FILE: &str = r#"
    node = "from-file"
    controllers = ["http://c1:7600", "http://c2:7600"]
    insecure = true
    data_dir = "data"
    driver = "sim"
    [sim]
    host = "host.toml"
"#;

struct Given<'a> {
    file: Option<&'a str>,
    environment: &'a [(&'a str, &'a str)],
    flags: &'a [&'a str],
}

fn resolve(given: &Given<'_>) -> (Result<Settings, Error>, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    let mut args = vec!["berth-agent".to_owned()];
    if let Some(text) = given.file {
        std::fs::write(&path, text).unwrap();
        args.extend(["--config".to_owned(), path.display().to_string()]);
    }
    args.extend(given.flags.iter().map(ToString::to_string));
    let flags = Flags::try_parse_from(args).unwrap();
    let environment = given.environment.iter().map(|(name, value)| (name.into(), value.into()));
    (Settings::resolve(flags, environment), dir.path().to_owned())
}

fn refuse(given: &Given<'_>, why: Expect) {
    let (result, dir) = resolve(given);
    why.assert_eq(&result.unwrap_err().to_string().replace(&dir.display().to_string(), "DIR"));
}

fn refuse_file(file: &str, why: Expect) {
    refuse(&Given { file: Some(file), environment: &[], flags: &[] }, why);
}

#[test]
fn the_flag_wins_over_the_environment_and_that_over_the_file() {
    let name = |environment: &[(&str, &str)], flags: &[&str]| {
        let (settings, _) = resolve(&Given { file: Some(FILE), environment, flags });
        settings.unwrap().agent.node.to_string()
    };
    assert_eq!(name(&[], &[]), "from-file");
    assert_eq!(name(&[("BERTH_AGENT_NODE", "from-env")], &[]), "from-env");
    assert_eq!(name(&[("BERTH_AGENT_NODE", "from-env")], &["--node", "from-flag"]), "from-flag");
}

#[test]
fn all_settings_can_come_from_the_environment_alone() {
    let environment = [
        ("PATH", "/bin"),
        ("BERTH_AGENT_NODE", "n1"),
        ("BERTH_AGENT_CONTROLLERS", "https://c1:7600, http://[::1]:7600"),
        ("BERTH_AGENT_TLS_CA", "/ca.pem"),
        ("BERTH_AGENT_TLS_CERT", "/n1.pem"),
        ("BERTH_AGENT_TLS_KEY", "/n1.key"),
        ("BERTH_AGENT_TLS_SERVER_NAME", "berth.example"),
        ("BERTH_AGENT_DATA_DIR", "/d"),
        ("BERTH_AGENT_DRIVER", "sim"),
        ("BERTH_AGENT_SIM_HOST", "/h.toml"),
        ("BERTH_AGENT_LOG_FORMAT", "json"),
        ("BERTH_AGENT_LOG_FILTER", "debug"),
    ];
    let (settings, _) = resolve(&Given { file: None, environment: &environment, flags: &["--check-config"] });
    let expected = Settings {
        agent: Config {
            tls: Some(tls::Files {
                ca: "/ca.pem".into(),
                own: Some(Pair { cert: "/n1.pem".into(), key: "/n1.key".into() }),
                server_name: Some("berth.example".into()),
            }),
            ..Config::new(
                NodeName::new("n1").unwrap(),
                vec!["https://c1:7600".parse().unwrap(), "http://[::1]:7600".parse().unwrap()],
                "/d".into(),
            )
        },
        driver: Driver::Sim { host: "/h.toml".into() },
        export: telemetry::Export::default(),
        prometheus: None,
        log: telemetry::Options { format: telemetry::Format::Json, filter: "debug".into() },
    };
    assert_eq!(settings.unwrap(), expected);
}

#[test]
fn plain_text_beyond_this_machine_must_be_allowed() {
    let rest = "node = \"n\"\ndriver = \"sim\"\nsim.host = \"h\"\n";
    refuse_file(
        &format!("{rest}controllers = [\"http://127.0.0.1:7600\", \"http://10.0.0.1:7600\"]\n"),
        expect![
            "controllers: http://10.0.0.1:7600/ is plain text beyond this machine: neither encrypted nor authenticated; use https:// with [tls], or set insecure = true if the network in between is trusted"
        ],
    );
}

#[test]
fn tls_takes_all_its_files_or_none() {
    let rest = "node = \"n\"\ndriver = \"sim\"\nsim.host = \"h\"\ncontrollers = [\"https://c1\"]\n";
    refuse_file(rest, expect!["tls: is missing: ca, cert and key, because https://c1/ is https://"]);
    refuse_file(
        &format!("{rest}[tls]\nca = \"ca.pem\"\nserver_name = \"a b\"\n"),
        expect![[r#"
            tls.cert: is missing: the file of this node's certificate (PEM)
            tls.key: is missing: the file of the certificate's private key (PEM)
            tls.server_name: "a b" is neither a DNS name nor an IP address"#]],
    );
    let file = format!("{rest}[tls]\nca = \"ca.pem\"\ncert = \"c.pem\"\nkey = \"/k.pem\"\n");
    let (settings, dir) = resolve(&Given { file: Some(&file), environment: &[], flags: &[] });
    let own = Some(Pair { cert: dir.join("c.pem"), key: "/k.pem".into() });
    assert_eq!(settings.unwrap().agent.tls, Some(tls::Files { ca: dir.join("ca.pem"), own, server_name: None }));
}

#[test]
fn paths_in_a_file_are_beside_that_file() {
    let (settings, dir) = resolve(&Given { file: Some(FILE), environment: &[], flags: &[] });
    let settings = settings.unwrap();
    assert_eq!(settings.agent.data_dir, dir.join("data"));
    assert_eq!(settings.driver, Driver::Sim { host: dir.join("host.toml") });
}

#[test]
fn every_missing_setting_is_named_at_once() {
    refuse(
        &Given { file: None, environment: &[], flags: &[] },
        expect![[r#"
            node: is missing: the name of this node
            controllers: is missing: the endpoints of the controllers, such as ["http://127.0.0.1:7600"]
            driver: is missing: one of: hyperv, sim"#]],
    );
}

#[test]
fn every_bad_setting_is_named_at_once() {
    refuse_file(
        r#"
            node = "a b"
            controllers = ["http://c1:7600", "c2:7600", "ftp://c3", "http://c1:7600", "http://c4/path", ""]
            insecure = true
            data_dir = "d"
            driver = "vfio"
            [log]
            format = "xml"
            filter = "x=loud"
        "#,
        expect![[r#"
            node: node name "a b" has the character ' ' at position 1; allowed are letters, digits, '-', '.', '_', starting with a letter or digit
            controllers[1]: "c2:7600" is not an endpoint of the form https://HOST:PORT or http://HOST:PORT
            controllers[2]: "ftp://c3" is not an endpoint of the form https://HOST:PORT or http://HOST:PORT
            controllers[3]: "http://c1:7600" is listed twice
            controllers[4]: "http://c4/path" is not an endpoint of the form https://HOST:PORT or http://HOST:PORT
            controllers[5]: "" is not an endpoint of the form https://HOST:PORT or http://HOST:PORT
            driver: "vfio" is not one of: hyperv, sim
            log.format: log format "xml" is not one of: human, json
            log.filter: log filter "x=loud" is not a list of directives like info,berth_node_agent=debug: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5"#]],
    );
}

#[test]
fn a_key_nobody_knows_is_refused_wherever_it_stands() {
    refuse_file(
        "nodes = \"n1\"\n",
        expect![[r#"
            configuration file DIR/agent.toml: TOML parse error at line 1, column 1
              |
            1 | nodes = "n1"
              | ^^^^^
            unknown field `nodes`, expected one of `node`, `controllers`, `insecure`, `data_dir`, `driver`, `tls`, `sim`, `hyperv`, `log`, `telemetry`"#]],
    );
    refuse_file(
        "[log]\nlevel = \"info\"\n",
        expect![[r#"
        configuration file DIR/agent.toml: TOML parse error at line 2, column 1
          |
        2 | level = "info"
          | ^^^^^
        unknown field `level`, expected `format` or `filter`"#]],
    );
    refuse(
        &Given { file: Some(FILE), environment: &[("BERTH_AGENT_CONTROLLER", "http://c1:7600")], flags: &[] },
        expect![
            "BERTH_AGENT_CONTROLLER: no such setting; known are BERTH_AGENT_CONFIG, _NODE, _CONTROLLERS, _INSECURE, _TLS_CA, _TLS_CERT, _TLS_KEY, _TLS_SERVER_NAME, _DATA_DIR, _DRIVER, _SIM_HOST, _HYPERV_POWERSHELL, _HYPERV_FORCE, _HYPERV_ACCEPT, _HYPERV_LOOK_SECONDS, _HYPERV_STEP_SECONDS, _HYPERV_SHUTDOWN_SECONDS, _HYPERV_MMIO_HIGH_CAP_MIB, _HYPERV_GUEST_CREDENTIAL, _HYPERV_GUEST_USER, _HYPERV_GUEST_IDENTITY, _HYPERV_GUEST_KNOWN_HOSTS, _HYPERV_GUEST_PORT, _HYPERV_GUEST_SSH, _HYPERV_GUEST_CONNECT_SECONDS, _LOG_FORMAT, _LOG_FILTER, _TELEMETRY_ENDPOINT, _TELEMETRY_CA, _TELEMETRY_SAMPLE, _TELEMETRY_TRACES_PER_SECOND, _TELEMETRY_LINES_PER_SECOND, _TELEMETRY_INTERVAL_SECONDS, _TELEMETRY_PROMETHEUS"
        ],
    );
    assert!(Flags::try_parse_from(["berth-agent", "--endpoint", "http://c1"]).is_err());
}

#[test]
fn hostile_files_are_refused() {
    refuse_file(
        "node = 7\n",
        expect![[r#"
        configuration file DIR/agent.toml: TOML parse error at line 1, column 8
          |
        1 | node = 7
          |        ^
        invalid type: integer `7`, expected a string"#]],
    );
    refuse_file(
        "node = \"a\"\nnode = \"b\"\n",
        expect![[r#"
        configuration file DIR/agent.toml: TOML parse error at line 2, column 1
          |
        2 | node = "b"
          | ^^^^
        duplicate key"#]],
    );
    refuse_file(
        "controllers = \"http://c1:7600\"\n",
        expect![[r#"
        configuration file DIR/agent.toml: TOML parse error at line 1, column 15
          |
        1 | controllers = "http://c1:7600"
          |               ^^^^^^^^^^^^^^^^
        invalid type: string "http://c1:7600", expected a sequence"#]],
    );
    assert!(toml::from_str::<Layer>("\u{0}").is_err(), "a NUL byte was accepted");
    refuse_file(
        "driver = \"sim\"\nnode = \"n\"\ncontrollers = [\"http://[::1]\"]\n",
        expect!["sim.host: is missing: the file that describes the simulated host"],
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let flags = Flags::try_parse_from(["berth-agent", "--config", "/nowhere/agent.toml"]).unwrap();
    let error = Settings::resolve(flags, std::iter::empty()).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the configuration file /nowhere/agent.toml");
}

#[test]
fn the_command_line_is_well_formed() {
    <Flags as clap::CommandFactory>::command().debug_assert();
}
