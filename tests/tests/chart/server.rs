//! What a real API server of Kubernetes says to the chart: `helm install --dry-run=server`, each object as it would be stored,
//! and each pod under the *restricted* pod security standard.
//!
//! Runs where somebody has built one (`cargo xtask kube-apiserver`): it takes longer to compile than Berth.

use anyhow::{Context as _, ensure};
use berth_tests::chart::{EXAMPLES, Helm, dir, example, helm, objects};
use berth_tests::config;
use berth_tests::etcd::Etcd;
use berth_tests::process::{Process, Ran, free_port, other, run, skip, wait_until};
use berth_tls_testing::{Ca, HERE};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// It makes all its tables at its first start.
const PATIENCE: Duration = Duration::from_secs(180);
/// Kinds of others, whose definitions would come with cert-manager and the Prometheus operator: group, version, kind, plural.
const OF_OTHERS: [(&str, &str, &str, &str); 3] = [
    ("cert-manager.io", "v1", "Certificate", "certificates"),
    ("monitoring.coreos.com", "v1", "ServiceMonitor", "servicemonitors"),
    ("monitoring.coreos.com", "v1", "PrometheusRule", "prometheusrules"),
];

fn call(kubectl: &Path, config: &Path, args: &[&str]) -> anyhow::Result<Ran> {
    let mut kubectl = other(kubectl);
    kubectl.arg("--kubeconfig").arg(config).args(args);
    run(kubectl)
}

/// An API server with nothing else of Kubernetes; it ends with its owner.
struct Server {
    kubectl: PathBuf,
    config: PathBuf,
    dir: tempfile::TempDir,
    _process: Process,
    _etcd: Etcd,
}

impl Server {
    fn start(test: &str) -> anyhow::Result<Option<Self>> {
        let Some(program) = config::kube_apiserver() else {
            skip(test, "there is no kube-apiserver; cargo xtask kube-apiserver compiles one");
            return Ok(None);
        };
        let Some(kubectl) = config::in_path("kubectl") else {
            skip(test, "there is no kubectl in the PATH");
            return Ok(None);
        };
        let Some(etcd) = Etcd::one(test)? else { return Ok(None) };
        let dir = tempfile::tempdir()?;
        let port = free_port()?;
        let pair = Ca::new(dir.path(), "ca").issue("server", "kube-apiserver", HERE, |_| {});
        fs::write(dir.path().join("tokens.csv"), "secret,admin,admin,system:masters\n")?;
        let mut command = other(program);
        command.args(["--bind-address=127.0.0.1", "--authorization-mode=RBAC", "--endpoint-reconciler-type=none"]);
        command.args(["--service-cluster-ip-range=10.0.0.0/24", "--service-account-issuer=https://berth.test"]);
        // Nobody makes service accounts here.
        command.arg("--disable-admission-plugins=ServiceAccount");
        command.arg(format!("--secure-port={port}")).arg(format!("--etcd-servers={}", etcd.endpoints().join(",")));
        let file = |name: &str, path: &Path| format!("--{name}={}", path.display());
        command.arg(file("tls-cert-file", &pair.cert)).arg(file("tls-private-key-file", &pair.key));
        command.arg(file("service-account-signing-key-file", &pair.key));
        command.arg(file("service-account-key-file", &pair.cert)).arg(file("cert-dir", dir.path()));
        command.arg(file("token-auth-file", &dir.path().join("tokens.csv")));
        let mut process = Process::start(command)?;
        let config = dir.path().join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": format!("https://127.0.0.1:{port}"), "certificate-authority": dir.path().join("ca.pem")}}],
            "users": [{"name": "admin", "user": {"token": "secret"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "admin"}}],
        });
        fs::write(&config, text.to_string())?;
        let answers = |process: &mut Process| {
            let ended = process.ended_within(Duration::ZERO)?;
            ensure!(ended.is_none(), "the API server ended:\n{}", process.log());
            Ok(call(&kubectl, &config, &["get", "--raw", "/readyz"])?.code == Some(0))
        };
        let ready = wait_until(PATIENCE, || answers(&mut process))?;
        ensure!(ready, "the API server does not get ready:\n{}", process.log());
        let server = Self { kubectl, config, dir, _process: process, _etcd: etcd };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "berth", "labels": {
            "pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted",
        }}});
        server.apply("namespace", &namespace.to_string(), false)?.expect(0)?;
        for (group, version, kind, plural) in OF_OTHERS {
            let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
            let definition = json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {"name": format!("{plural}.{group}")},
                "spec": {
                    "group": group, "scope": "Namespaced",
                    "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                    "versions": [{"name": version, "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
                },
            });
            server.apply(plural, &definition.to_string(), false)?.expect(0)?;
            let name = format!("crd/{plural}.{group}");
            server.kubectl(&["wait", "--for=condition=established", "--timeout=60s", &name])?.expect(0)?;
        }
        Ok(Some(server))
    }

    fn kubectl(&self, args: &[&str]) -> anyhow::Result<Ran> {
        call(&self.kubectl, &self.config, args)
    }

    /// Gives it these manifests; `dry` keeps nothing, after all that is checked when something is kept.
    fn apply(&self, name: &str, manifests: &str, dry: bool) -> anyhow::Result<Ran> {
        let file = self.dir.path().join(format!("{name}.yaml"));
        fs::write(&file, manifests)?;
        let file = file.display().to_string();
        let how = if dry { "--dry-run=server" } else { "--dry-run=none" };
        self.kubectl(&["apply", "--namespace", "berth", "--validate=strict", how, "-f", &file])
    }

    fn install(&self, helm: &Helm, example: &Path) -> anyhow::Result<Ran> {
        let mut command = helm.command();
        command.args(["install", "berth"]).arg(dir()).args(["--namespace", "berth", "--dry-run=server"]);
        command.arg("--kubeconfig").arg(&self.config).arg("--values").arg(example);
        run(command)
    }
}

#[test]
fn an_api_server_takes_every_example() {
    let test = "an_api_server_takes_every_example";
    let Some(helm) = helm(test) else { return };
    let Some(server) = Server::start(test).unwrap() else { return };
    for name in EXAMPLES {
        server.install(&helm, &example(name)).unwrap().expect(0).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let manifests = helm.render(&[&example(name)], &[]).unwrap();
        let ran =
            server.apply(name, &manifests, true).unwrap().expect(0).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        // It warns of pods that the namespace would not admit: of the agents', which work on the host, and of no other.
        let warned: Vec<_> = ran.stderr.lines().filter(|line| line.contains("PodSecurity")).collect();
        assert_eq!(warned.len(), usize::from(name == "vfio"), "{name}: {}", ran.stderr);
        let others = ran.stderr.lines().filter(|line| line.contains("Warning") && !line.contains("PodSecurity"));
        assert_eq!(others.collect::<Vec<_>>(), Vec::<&str>::new(), "{name}");
        for (owner, pod) in pods(&objects(&manifests).unwrap()) {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod});
            let ran = server.apply("pod", &pod.to_string(), true).unwrap();
            let agent = owner == "DaemonSet";
            assert_eq!(ran.code == Some(0), !agent, "{name}: {owner}: {}", ran.stderr);
            assert!(!agent || ran.stderr.contains("violates PodSecurity"), "{name}: {}", ran.stderr);
        }
    }
    // It would have said so if something were wrong.
    let bad = helm.render(&[&example("small")], &[]).unwrap().replace("minReadySeconds:", "minReadySecond:");
    let said = server.apply("bad", &bad, true).unwrap();
    assert!(said.code != Some(0) && said.stderr.contains("unknown field \"spec.minReadySecond\""), "{}", said.stderr);
}

/// The pods that manifests make, each with the kind of what makes it. Volumes that a StatefulSet claims are none of a pod's own.
fn pods(objects: &[Value]) -> Vec<(String, Value)> {
    let with_pods = objects.iter().filter(|object| object["spec"]["template"]["spec"].is_object());
    let pod = |object: &Value| {
        let mut pod = object["spec"]["template"]["spec"].clone();
        for claim in object["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten() {
            let volume = json!({"name": claim["metadata"]["name"], "persistentVolumeClaim": {"claimName": "claim"}});
            if !pod["volumes"].is_array() {
                pod["volumes"] = json!([]);
            }
            pod["volumes"].as_array_mut().context("no volumes")?.push(volume);
        }
        Ok((object["kind"].as_str().unwrap_or_default().to_owned(), pod))
    };
    with_pods.map(pod).collect::<anyhow::Result<_>>().unwrap()
}
