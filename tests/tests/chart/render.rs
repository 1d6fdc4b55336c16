//! What the chart makes of its examples, as reviewed: `tests/chart/golden`.

use berth_tests::chart::{EXAMPLES, KUBERNETES, dashboards, dir, example, helm, object, objects};
use berth_tests::process::{other, root, run, skip};
use expect_test::expect_file;
use serde_json::Value;
use std::fs;

/// Kinds that Kubernetes learns from others; nothing here has their schemas.
const OF_OTHERS: [&str; 3] = ["Certificate", "PrometheusRule", "ServiceMonitor"];

#[test]
fn examples_render_as_reviewed() {
    let Some(helm) = helm("examples_render_as_reviewed") else { return };
    for name in EXAMPLES {
        // Dashboards have a test of their own; here nobody could read them.
        let text = helm.render(&[&example(name)], &["monitoring.dashboards.enabled=false"]).unwrap();
        expect_file![root().join("tests/chart/golden").join(format!("{name}.yaml"))].assert_eq(&text);
    }
}

#[test]
fn helm_finds_nothing_to_complain_about() {
    let Some(helm) = helm("helm_finds_nothing_to_complain_about") else { return };
    for name in EXAMPLES {
        helm.call(&["lint", "--strict"], &[&example(name)], &[]).unwrap().expect(0).unwrap();
    }
}

#[test]
fn manifests_keep_to_kubernetes_schemas() {
    let test = "manifests_keep_to_kubernetes_schemas";
    let Some(helm) = helm(test) else { return };
    let Some(program) = berth_tests::config::kubernetes_validate() else {
        return skip(test, "there is no kubernetes-validate; cargo xtask test chart gets one where there is Python");
    };
    let dir = tempfile::tempdir().unwrap();
    for name in EXAMPLES {
        let text = helm.render(&[&example(name)], &[]).unwrap();
        let file = dir.path().join(format!("{name}.yaml"));
        fs::write(&file, &text).unwrap();
        let mut validate = other(&program);
        validate.args(["--kubernetes-version", KUBERNETES, "--strict"]).arg(&file);
        let said = run(validate).unwrap().expect(0).unwrap();
        let unchecked: Vec<_> = said.stdout.lines().chain(said.stderr.lines()).filter(|l| l.contains("WARN")).collect();
        let of_others = |line: &&&str| !OF_OTHERS.iter().any(|kind| line.contains(&format!("kind {kind} ")));
        assert_eq!(unchecked.iter().find(of_others), None, "{name}: a kind that Kubernetes does not know");
    }
}

#[test]
fn a_field_that_kubernetes_does_not_know_would_be_found() {
    let test = "a_field_that_kubernetes_does_not_know_would_be_found";
    let (Some(helm), Some(program)) = (helm(test), berth_tests::config::kubernetes_validate()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let text = helm.render(&[&example("small")], &[]).unwrap();
    let file = dir.path().join("bad.yaml");
    fs::write(&file, text.replace("minReadySeconds:", "minReadySecond:")).unwrap();
    let mut validate = other(&program);
    validate.args(["--kubernetes-version", KUBERNETES, "--strict"]).arg(&file);
    assert_ne!(run(validate).unwrap().code, Some(0));
}

/// All pods that manifests make, each with the name of what makes it.
fn pods(objects: &[Value]) -> Vec<(String, &Value)> {
    let named = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
    let with_pods = objects.iter().filter(|object| object["spec"]["template"]["spec"].is_object());
    with_pods.map(|object| (named(object), &object["spec"]["template"]["spec"])).collect()
}

#[test]
fn pods_have_no_rights_that_they_do_not_need() {
    let Some(helm) = helm("pods_have_no_rights_that_they_do_not_need") else { return };
    for name in EXAMPLES {
        let objects = objects(&helm.render(&[&example(name)], &[]).unwrap()).unwrap();
        assert!(!objects.iter().any(|object| object["kind"].as_str().unwrap().contains("Role")), "{name}: rights");
        for (owner, pod) in pods(&objects) {
            assert_eq!(pod["automountServiceAccountToken"], false, "{name}: {owner}");
            assert!(pod["hostNetwork"].is_null() && pod["hostPID"].is_null(), "{name}: {owner}");
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}: {owner}");
            let agent = owner.starts_with("\"DaemonSet");
            assert_eq!(pod["securityContext"]["runAsNonRoot"] == true, !agent, "{name}: {owner}");
            for container in pod["containers"].as_array().unwrap() {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false, "{name}: {owner}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{name}: {owner}");
                assert_eq!(context["capabilities"]["drop"][0], "ALL", "{name}: {owner}");
                assert_ne!(context["privileged"], true, "{name}: {owner}");
                let added = if agent { serde_json::json!(["DAC_OVERRIDE"]) } else { Value::Null };
                assert_eq!(context["capabilities"]["add"], added, "{name}: {owner}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{name}: {owner}");
            }
            let paths = pod["volumes"].as_array().unwrap_or(&Vec::new()).iter().any(|v| v["hostPath"].is_object());
            assert!(!paths || agent, "{name}: {owner} sees the node's files");
        }
    }
}

#[test]
fn agents_run_only_where_they_are_asked_for() {
    let Some(helm) = helm("agents_run_only_where_they_are_asked_for") else { return };
    for name in EXAMPLES {
        let text = helm.render(&[&example(name)], &[]).unwrap();
        assert_eq!(text.contains("kind: DaemonSet"), name == "vfio", "{name}");
    }
}

#[test]
fn every_member_of_etcd_is_told_of_all_of_them() {
    let Some(helm) = helm("every_member_of_etcd_is_told_of_all_of_them") else { return };
    for members in [1, 3, 5] {
        let set = format!("etcd.bundled.members={members}");
        let objects = objects(&helm.render(&[&example("ha")], &[&set]).unwrap()).unwrap();
        let etcd = object(&objects, "StatefulSet", "berth-etcd").unwrap();
        assert_eq!(etcd["spec"]["replicas"], members);
        let args = etcd["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap();
        let cluster = args.iter().filter_map(|arg| arg.as_str()?.strip_prefix("--initial-cluster=")).next().unwrap();
        let expected: Vec<_> = (0..members)
            .map(|n| format!("berth-etcd-{n}=https://berth-etcd-{n}.berth-etcd.berth.svc.cluster.local:2380"))
            .collect();
        assert_eq!(cluster, expected.join(","));
        // The certificate that cert-manager makes holds the name of each.
        let certificate = object(&objects, "Certificate", "berth-etcd-tls").unwrap();
        let names = certificate["spec"]["dnsNames"].as_array().unwrap();
        for n in 0..members {
            assert!(names.contains(&format!("berth-etcd-{n}.berth-etcd.berth.svc.cluster.local").into()), "{names:?}");
        }
    }
}

#[test]
fn dashboards_come_as_they_are() {
    let Some(helm) = helm("dashboards_come_as_they_are") else { return };
    let objects = objects(&helm.render(&[&example("ha")], &[]).unwrap()).unwrap();
    for (file, dashboard) in dashboards().unwrap() {
        let name = format!("berth-dashboard-{}", file.trim_end_matches(".json"));
        let map = object(&objects, "ConfigMap", &name).unwrap();
        assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1", "{name}");
        let held: Value = serde_json::from_str(map["data"][&file].as_str().unwrap()).unwrap();
        assert_eq!(held, dashboard, "{name}");
    }
}

/// The names of all values, less what is below resources and settings. Fails where the schema has others.
fn values(prefix: &str, value: &Value, schema: &Value, found: &mut Vec<String>) {
    match (value.as_object(), schema["properties"].as_object()) {
        (Some(given), Some(known)) if !prefix.ends_with("settings") => {
            let names =
                |keys: Vec<&String>| keys.into_iter().filter(|key| *key != "global").cloned().collect::<Vec<_>>();
            let (mut here, mut allowed) = (names(given.keys().collect()), names(known.keys().collect()));
            here.sort();
            allowed.sort();
            assert_eq!(here, allowed, "what values.yaml has below {prefix:?}, and what the schema allows there");
            for (name, value) in given {
                let name_here = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                if name_here.ends_with(".resources") {
                    found.push(name_here);
                } else {
                    values(&name_here, value, &schema["properties"][name], found);
                }
            }
        }
        _ => found.push(prefix.to_owned()),
    }
}

#[test]
fn values_schema_and_readme_agree() {
    let read = |file: &str| fs::read_to_string(dir().join(file)).unwrap();
    let given: Value = serde_saphyr::from_str(&read("values.yaml")).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let mut names = Vec::new();
    values("", &given, &schema, &mut names);
    assert!(names.len() > 60, "{names:?}");
    let readme = read("README.md");
    let missing: Vec<_> = names.iter().filter(|name| !readme.contains(&format!("\n| `{name}` |"))).collect();
    assert!(missing.is_empty(), "the table in the chart's README lacks {missing:?}");
}
