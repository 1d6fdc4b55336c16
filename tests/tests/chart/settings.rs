//! Whether the programs take what the chart gives them: no setting may be rendered that they do not know.

use anyhow::Context as _;
use berth_tests::chart::{EXAMPLES, Helm, dir, example, helm, object, objects};
use berth_tests::process::{Ran, binary, other, run};
use berth_tls_testing::{Ca, HERE};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Folders under /etc/berth that hold certificates.
const TLS: [&str; 3] = ["tls", "etcd-tls", "telemetry"];
/// The node that the agent is told it runs on.
const NODE: &str = "node-1";

/// Lays out /etc/berth below `etc` as the pod has it, and runs a program's check on the configuration there.
fn check(etc: &Path, program: &'static str, config: &Value, file: &str, pod: &Value) -> anyhow::Result<Ran> {
    fs::create_dir_all(etc.join("config"))?;
    fs::write(etc.join("config").join(file), config["data"][file].as_str().context("no configuration")?)?;
    for folder in TLS {
        let folder = etc.join(folder);
        fs::create_dir_all(&folder)?;
        let ca = Ca::new(&folder, "ca");
        ca.issue("tls", "berth", &[HERE, &[NODE]].concat(), |_| {});
        fs::rename(folder.join("ca.pem"), folder.join("ca.crt"))?;
    }
    fs::create_dir_all(etc.join("etcd-login"))?;
    fs::write(etc.join("etcd-login").join("password"), "secret")?;
    let mut command = other(binary(program)?);
    command.arg("--config").arg(etc.join("config").join(file)).arg("--check-config");
    for variable in pod["containers"][0]["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().context("a variable without name")?;
        let value = match variable["value"].as_str() {
            // As the kubelet does it.
            Some(value) => value.replace("$(POD_NAME)", "berth-0").replace("$(POD_INDEX)", "0"),
            None => NODE.to_owned(),
        };
        command.env(name, value);
    }
    run(command)
}

fn controller(helm: &Helm, values: &[&Path]) -> anyhow::Result<Ran> {
    let objects = objects(&helm.render(values, &[])?)?;
    let config = object(&objects, "ConfigMap", "berth-controller")?;
    let pod = &object(&objects, "StatefulSet", "berth")?["spec"]["template"]["spec"];
    check(tempfile::tempdir()?.path(), "berth-controller", config, "controller.toml", pod)
}

#[test]
fn the_controller_takes_what_every_example_gives_it() {
    let Some(helm) = helm("the_controller_takes_what_every_example_gives_it") else { return };
    for name in EXAMPLES {
        controller(&helm, &[&example(name)]).unwrap().expect(0).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
}

/// A value that the schema allows, for each setting in it.
fn every(schema: &Value) -> Value {
    if let Some(properties) = schema["properties"].as_object() {
        return Value::Object(
            properties.iter().map(|(name, schema)| (name.clone(), every(schema))).collect::<Map<_, _>>(),
        );
    }
    match (schema["enum"].get(0), schema["type"].as_str()) {
        (Some(first), _) => first.clone(),
        (None, Some("integer")) => json!(7),
        (None, Some("string")) if schema["pattern"].is_string() => json!("20s"),
        (None, _) => json!("info"),
    }
}

/// A file below `to` with every setting that the chart allows a program.
fn all_settings(to: &Path, part: &str) -> anyhow::Result<PathBuf> {
    let schema: Value = serde_json::from_str(&fs::read_to_string(dir().join("values.schema.json"))?)?;
    let settings = every(&schema["properties"][part]["properties"]["settings"]);
    anyhow::ensure!(settings["log"]["filter"] == "info", "{settings}");
    let file = to.join("all.yaml");
    fs::write(&file, json!({ part: { "settings": settings } }).to_string())?;
    Ok(file)
}

#[test]
fn the_controller_knows_every_setting_that_the_chart_allows() {
    let Some(helm) = helm("the_controller_knows_every_setting_that_the_chart_allows") else { return };
    let to = tempfile::tempdir().unwrap();
    let all = all_settings(to.path(), "controller").unwrap();
    controller(&helm, &[&example("ha"), &all]).unwrap().expect(0).unwrap();
}

#[test]
fn the_agent_takes_all_but_a_driver_that_it_may_not_have_yet() {
    let Some(helm) = helm("the_agent_takes_all_but_a_driver_that_it_may_not_have_yet") else { return };
    let etc = tempfile::tempdir().unwrap();
    let all = all_settings(etc.path(), "agent").unwrap();
    let objects = objects(&helm.render(&[&example("vfio"), &all], &[]).unwrap()).unwrap();
    let config = object(&objects, "ConfigMap", "berth-agent").unwrap();
    let pod = &object(&objects, "DaemonSet", "berth-agent").unwrap()["spec"]["template"]["spec"];
    let ran = check(etc.path(), "berth-agent", config, "agent.toml", pod).unwrap();
    let no_driver = ran.stderr.lines().count() == 1 && ran.stderr.contains("driver: \"vfio\" is not one of");
    assert!(ran.code == Some(0) || no_driver, "{}", ran.stderr);
    // While there is no driver, whoever reads the chart is told so.
    for file in ["values.yaml", "README.md", "templates/NOTES.txt"] {
        let text = fs::read_to_string(dir().join(file)).unwrap();
        assert_eq!(text.to_lowercase().contains("no driver for vfio yet"), no_driver, "{file}");
    }
    // And nothing else in it is wrong: with a driver that there is, it is taken.
    let mut config = config.clone();
    let text = config["data"]["agent.toml"].as_str().unwrap().replace("driver = \"vfio\"", "driver = \"sim\"");
    fs::write(etc.path().join("config").join("host.toml"), "").unwrap();
    config["data"]["agent.toml"] = format!("{text}\n[sim]\nhost = \"host.toml\"\n").into();
    check(etc.path(), "berth-agent", &config, "agent.toml", pod).unwrap().expect(0).unwrap();
}
