//! Bad input gets a clear error and loses nothing.

use super::{claims, dev, file, placement, wait_phase};
use berth_proto::v1::node_agent_client::NodeAgentClient;
use berth_proto::v1::{AgentMessage, Hello, HostFacts, Platform, agent_message};
use berth_tests::http::post;
use berth_tests::process::{self, Dev, berth, other};
use tonic::Code;
use tonic::transport::Endpoint;

const CREATE: &str = "/berth.v1.Placements/Create";
const RELEASE: &str = "/berth.v1.Placements/Release";

/// Sends a body that must be refused with this code and all these words.
fn refused(dev: &Dev, path: &str, body: &str, code: &str, words: &[&str]) -> anyhow::Result<()> {
    let answer = post(&dev.endpoint, path, body)?;
    assert!(answer.status >= 400, "{body} was not refused: {}", answer.body);
    let error = answer.json()?;
    let message = error["message"].as_str().unwrap_or_default();
    assert_eq!(error["code"], code, "{body}: {message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in the answer to {body}: {message}");
    }
    Ok(())
}

/// A request with these fields, beside a request id and whatever else it needs.
fn request(fields: &str) -> String {
    format!("{{\"request\": {{{fields}}}}}")
}

#[test]
fn bad_requests_name_every_bad_field() -> anyhow::Result<()> {
    let dev = dev(2, &[])?;
    let long = "n".repeat(129);
    let rows: &[(&str, &str, &[&str])] = &[
        (r#""requestId": "r", "name": "n", "vm": "v""#, "invalid_argument", &["gpus", "0 is not from 1 to 16"]),
        (r#""requestId": "r", "name": "n", "vm": "v", "gpus": 17"#, "invalid_argument", &["17 is not from 1 to 16"]),
        (r#""requestId": "r", "name": "n", "vm": "v", "gpus": -1"#, "invalid_argument", &["gpus"]),
        (r#""requestId": "r", "name": "", "vm": "v", "gpus": 1"#, "invalid_argument", &["placement name is empty"]),
        (
            r#""requestId": "r", "name": "a b", "vm": "v", "gpus": 1"#,
            "invalid_argument",
            &["name", "' '", "position 1"],
        ),
        (
            r#""requestId": "", "name": "", "vm": "", "gpus": 0"#,
            "invalid_argument",
            &["request_id", "name", "vm", "gpus"],
        ),
        (r#""requestId": "r", "name": "n", "vm": "v", "gpus": 1, "node": "-""#, "invalid_argument", &["node"]),
        (
            r#""requestId": "r", "name": "n", "vm": "v", "gpus": 1, "models": ["A2"], "excludeModels": ["A2"]"#,
            "invalid_argument",
            &["exclude_models", "A2, which models asks for"],
        ),
        (
            r#""requestId": "r", "name": "n", "vm": "v", "gpus": 1, "hold": "0s""#,
            "invalid_argument",
            &["hold", "at most 7 days"],
        ),
        (r#""requestId": "r", "name": "n", "vm": "v", "gpus": 1, "models": ["A0"]"#, "not_found", &["A0", "known are"]),
        (
            r#""requestId": "r", "name": "n", "vm": "v", "gpus": 1, "node": "nowhere""#,
            "not_found",
            &["nowhere is not known"],
        ),
        (
            r#""requestId": "r", "name": "n", "vm": "8fce3318-aa0f-4de3-8664-278533573cd2", "gpus": 1"#,
            "not_found",
            &["on no connected node"],
        ),
    ];
    for (fields, code, words) in rows {
        refused(&dev, CREATE, &request(fields), code, words)?;
    }
    let overlong = format!(r#""requestId": "r", "name": "{long}", "vm": "v", "gpus": 1"#);
    refused(&dev, CREATE, &request(&overlong), "invalid_argument", &["129 bytes long, at most 128"])?;
    refused(&dev, CREATE, "{}", "invalid_argument", &["request"])?;
    assert_eq!(claims(&dev)?, [], "nothing of it was taken for a request");
    Ok(())
}

#[test]
fn what_exists_already_is_not_made_twice() -> anyhow::Result<()> {
    let dev = dev(2, &[])?;
    let first = r#""requestId": "one", "name": "first", "vm": "vm1", "gpus": 1"#;
    let made = post(&dev.endpoint, CREATE, &request(first))?.json()?;
    let again = post(&dev.endpoint, CREATE, &request(first))?.json()?;
    assert_eq!(made["uid"], again["uid"], "the same id and content is the same answer");

    let other = r#""requestId": "one", "name": "first", "vm": "vm1", "gpus": 2"#;
    refused(&dev, CREATE, &request(other), "already_exists", &["one", "first", "another gpus"])?;
    let name = r#""requestId": "two", "name": "first", "vm": "vm2", "gpus": 1"#;
    refused(&dev, CREATE, &request(name), "already_exists", &["first exists already"])?;
    let vm = r#""requestId": "three", "name": "third", "vm": "vm1", "gpus": 1"#;
    refused(&dev, CREATE, &request(vm), "already_exists", &["vm1", "has placement first already"])?;
    // Hyper-V does not tell names apart by case.
    let vm = r#""requestId": "three", "name": "third", "vm": "VM1", "gpus": 1"#;
    refused(&dev, CREATE, &request(vm), "already_exists", &["has placement first already"])?;
    assert_eq!(claims(&dev)?.len(), 1);
    Ok(())
}

#[test]
fn a_release_means_the_placement_that_the_caller_saw() -> anyhow::Result<()> {
    let dev = dev(1, &[])?;
    refused(&dev, RELEASE, r#"{"name": "first"}"#, "not_found", &["first does not exist"])?;
    let fields = r#""requestId": "one", "name": "first", "vm": "vm1", "gpus": 1"#;
    post(&dev.endpoint, CREATE, &request(fields))?;
    let active = wait_phase(&dev, "first", "PHASE_ACTIVE")?;

    let version: u64 = active["version"].as_str().unwrap().parse()?;
    let stale = format!(r#"{{"name": "first", "version": "{}"}}"#, version - 1);
    refused(&dev, RELEASE, &stale, "aborted", &["first", "version", "read it again"])?;
    let another = r#"{"name": "first", "uid": "8fce3318-aa0f-4de3-8664-278533573cd2"}"#;
    refused(&dev, RELEASE, another, "failed_precondition", &["first", "another one now"])?;
    assert_eq!(placement(&dev, "first")?["phase"], "PHASE_ACTIVE", "a refused release changes nothing");

    let right = format!(r#"{{"name": "first", "version": "{version}"}}"#);
    assert_eq!(post(&dev.endpoint, RELEASE, &right)?.status, 200);
    let released = wait_phase(&dev, "first", "PHASE_RELEASED")?;
    let again = post(&dev.endpoint, RELEASE, r#"{"name": "first"}"#)?;
    assert_eq!(again.status, 200, "releasing again is no error: {}", again.body);
    assert_eq!(again.json()?["version"], released["version"], "and changes nothing");
    Ok(())
}

/// Opens an agent's session and gives the error that ends it.
async fn session(endpoint: &str, node: &str, protocol: u32) -> anyhow::Result<tonic::Status> {
    let mut client = NodeAgentClient::new(Endpoint::from_shared(endpoint.to_owned())?.connect().await?);
    let facts = HostFacts {
        platform: Platform::Simulated.into(),
        system: "a test".into(),
        cpu_milli: 1000,
        memory_bytes: 1 << 30,
        ..HostFacts::default()
    };
    let hello = Hello {
        node: node.into(),
        agent_version: "0.0.0".into(),
        protocol,
        boot_id: "1".into(),
        facts: Some(facts),
        ledger_term: 0,
        ledger_generation: 0,
        ..Hello::default()
    };
    let hello = AgentMessage { message: Some(agent_message::Message::Hello(hello)) };
    // Stays open, so that it is the controller who ends the session.
    let outgoing = futures::StreamExt::chain(tokio_stream::once(hello), tokio_stream::pending());
    let mut answers = match client.session(outgoing).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return Ok(status),
    };
    let ends = async {
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => anyhow::bail!("the session ended without an error"),
                Err(status) => return Ok(status),
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), ends).await?
}

#[tokio::test]
async fn an_agent_that_must_not_speak_is_told_why() -> anyhow::Result<()> {
    let dev = tokio::task::spawn_blocking(|| dev(1, &[])).await??;
    let nodes = post(&dev.endpoint, "/berth.v1.Inventory/ListNodes", "{}")?.json()?;
    let node = nodes["nodes"][0]["name"].as_str().unwrap();

    let twin = session(&dev.endpoint, node, berth_proto::AGENT_PROTOCOL).await?;
    assert_eq!(twin.code(), Code::AlreadyExists, "{twin}");
    assert!(twin.message().contains(node) && twin.message().contains("connected already"), "{twin}");

    let old = session(&dev.endpoint, "old-node", 0).await?;
    assert_eq!(old.code(), Code::FailedPrecondition, "{old}");
    assert!(old.message().contains("protocol"), "{old}");

    let nameless = session(&dev.endpoint, "", berth_proto::AGENT_PROTOCOL).await?;
    assert_eq!(nameless.code(), Code::InvalidArgument, "{nameless}");
    assert!(nameless.message().contains("node name is empty"), "{nameless}");

    let after = post(&dev.endpoint, "/berth.v1.Inventory/ListNodes", "{}")?.json()?;
    assert_eq!(after["nodes"].as_array().unwrap().len(), 1, "nobody was let in: {after:#}");
    assert_eq!(after["nodes"][0]["ready"], true, "and the true agent is still there: {after:#}");
    Ok(())
}

#[test]
fn a_bad_fleet_file_is_refused_with_its_line() -> anyhow::Result<()> {
    let rows: &[(&str, &str, &[&str])] = &[
        (
            "nodes:\n- name: a\n  gpus:\n  - {model: A16, adress: 'PCIROOT(20)#PCI(0300)#PCI(0000)'}\n",
            "yaml",
            &["adress"],
        ),
        (
            "nodes:\n- name: a\n  gpus:\n  - {model: A2, address: 'PCIROOT(20)#PCI(0300)#PCI(0000)'}\n  \
             - {model: A2, address: 'PCIROOT(20)#PCI(0300)#PCI(0000)'}\n",
            "yaml",
            &["PCIROOT(20)#PCI(0300)#PCI(0000)"],
        ),
        ("nodes:\n- name: a\n  gpus:\n  - {model: A2, address: 'PCI(0300)'}\n", "yaml", &["PCI(0300)"]),
        ("nodes:\n- name: a\n- name: a\n", "yaml", &["a"]),
        ("nodes: []\n", "yaml", &["node"]),
        ("sn,cpu_milli,memory_mib,gpu,model\nn1,64000,262144,two,P100\n", "csv", &["two"]),
        ("sn,cpu_milli,gpu,model\nn1,64000,2,P100\n", "csv", &["memory_mib"]),
    ];
    for (text, ending, words) in rows {
        let (_dir, path) = file(&format!("fleet.{ending}"), text)?;
        let mut berth = other(berth()?);
        berth.args(["dev", "--listen", "127.0.0.1:0", "--fleet", &path]);
        let said = process::run(berth)?.expect(2)?.stderr;
        for word in words.iter().copied().chain([path.as_str()]) {
            assert!(said.contains(word), "{word:?} is not in the answer to\n{text}\n{said}");
        }
    }
    Ok(())
}
