//! The bundled etcd: real members with the very arguments that the chart gives them, and the steps of the chart's README for
//! one whose volume was lost.

use anyhow::{Context as _, bail};
use berth_tests::chart::{example, helm, object, objects};
use berth_tests::process::{Process, free_port, other, skip, wait_until};
use berth_tests::{config, http};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Debug machines do other work, too.
const PATIENCE: Duration = Duration::from_secs(60);
const MEMBERS: usize = 3;
/// Ports in the pods.
const PORTS: [u16; 3] = [2379, 2380, 2381];

/// Pods of the StatefulSet, on this machine.
struct Pods {
    program: PathBuf,
    args: Vec<String>,
    /// For each member, what stands here for the ports of its pod.
    ports: Vec<[u16; 3]>,
    dir: tempfile::TempDir,
    /// What the ConfigMap says.
    state: String,
}

impl Pods {
    fn render(test: &str) -> Option<Self> {
        let helm = helm(test)?;
        let Some(program) = config::etcd() else {
            skip(test, "there is no etcd; cargo xtask test chart gets one, or put it in the PATH");
            return None;
        };
        let set = ["etcd.bundled.tls.mode=insecure"];
        let objects = objects(&helm.render(&[&example("ha")], &set).unwrap()).unwrap();
        let etcd = object(&objects, "StatefulSet", "berth-etcd").unwrap();
        let args = etcd["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap();
        let args = args.iter().map(|arg| arg.as_str().unwrap().to_owned()).collect();
        let state = object(&objects, "ConfigMap", "berth-etcd").unwrap()["data"]["initial-cluster-state"].clone();
        let ports = (0..MEMBERS).map(|_| PORTS.map(|_| free_port().unwrap())).collect();
        let dir = tempfile::tempdir().unwrap();
        Some(Self { program, args, ports, dir, state: state.as_str().unwrap().to_owned() })
    }

    fn volume(&self, member: usize) -> PathBuf {
        self.dir.path().join(member.to_string())
    }

    /// An argument with names and ports of the cluster's replaced by those of this machine.
    fn here(&self, member: usize, arg: &str) -> String {
        let mut arg = arg.replace("$(POD_NAME)", &format!("berth-etcd-{member}"));
        arg = arg.replace("$(INITIAL_CLUSTER_STATE)", &self.state);
        arg = arg.replace("/var/lib/etcd/", &format!("{}/", self.volume(member).display()));
        for (other, ports) in self.ports.iter().enumerate() {
            for (port, here) in PORTS.iter().zip(ports) {
                let name = format!("berth-etcd-{other}.berth-etcd.berth.svc.cluster.local:{port}");
                arg = arg.replace(&name, &format!("127.0.0.1:{here}"));
                if other == member {
                    arg = arg.replace(&format!("0.0.0.0:{port}"), &format!("127.0.0.1:{here}"));
                }
            }
        }
        arg
    }

    fn start(&self, member: usize) -> anyhow::Result<Process> {
        fs::create_dir_all(self.volume(member))?;
        let mut etcd = other(&self.program);
        etcd.args(self.args.iter().map(|arg| self.here(member, arg))).env_clear();
        Process::start(etcd)
    }

    /// As `etcdctl` asks it.
    fn ask(&self, member: usize, method: &str, body: &Value) -> anyhow::Result<Value> {
        let endpoint = format!("http://127.0.0.1:{}", self.ports[member][0]);
        let answer = http::post_as(&endpoint, &format!("/v3/{method}"), "application/json", &body.to_string())?;
        if answer.status != 200 {
            bail!("{method}: {} {}", answer.status, answer.body);
        }
        answer.json()
    }
}

fn ready(process: &mut Process) -> anyhow::Result<()> {
    process.wait_for_line(PATIENCE, |line| line.contains("ready to serve client requests").then_some(()))
}

#[test]
fn a_member_whose_volume_was_lost_is_replaced_by_the_steps_of_the_readme() {
    let test = "a_member_whose_volume_was_lost_is_replaced_by_the_steps_of_the_readme";
    let Some(mut pods) = Pods::render(test) else { return };
    let mut running: Vec<_> = (0..MEMBERS).map(|member| pods.start(member).unwrap()).collect();
    running.iter_mut().for_each(|member| ready(member).unwrap());
    // "placement" and "claimed", in base 64.
    pods.ask(0, "kv/put", &json!({"key": "cGxhY2VtZW50", "value": "Y2xhaW1lZA=="})).unwrap();

    running.pop().unwrap().kill().unwrap();
    fs::remove_dir_all(pods.volume(2)).unwrap();
    let mut lost = pods.start(2).unwrap();
    let status = lost.ended_within(PATIENCE).unwrap().context("it went on without its data").unwrap();
    assert!(!status.success() && lost.log().contains("already been bootstrapped"), "{}", lost.log());

    let members = pods.ask(0, "cluster/member/list", &json!({})).unwrap();
    let named = |member: &&Value| member["name"] == "berth-etcd-2";
    let id = members["members"].as_array().unwrap().iter().find(named).unwrap()["ID"].clone();
    // While the two elect a leader anew, an answer may be lost.
    let removed = || {
        let _asked_again_if_lost = pods.ask(0, "cluster/member/remove", &json!({"ID": id}));
        let members = pods.ask(0, "cluster/member/list", &json!({}))?;
        Ok(!members["members"].as_array().context("no list")?.iter().any(|member| named(&member)))
    };
    assert!(wait_until(PATIENCE, removed).unwrap(), "the lost member is not removed");
    let peer = format!("http://127.0.0.1:{}", pods.ports[2][1]);
    // etcd changes no members before it has been in health for some seconds.
    let add = || Ok(pods.ask(0, "cluster/member/add", &json!({"peerURLs": [peer]})).is_ok());
    assert!(wait_until(PATIENCE, add).unwrap(), "the new member is not added");
    pods.state = "existing".to_owned();
    fs::remove_dir_all(pods.volume(2)).unwrap();
    let mut replaced = pods.start(2).unwrap();
    ready(&mut replaced).unwrap();
    let kept = pods.ask(2, "kv/range", &json!({"key": "cGxhY2VtZW50", "serializable": true})).unwrap();
    assert_eq!(kept["kvs"][0]["value"], "Y2xhaW1lZA==", "{kept}");
    assert!(readme_has(&["member remove", "member add", "initialClusterState=existing"]));
}

fn readme_has(steps: &[&str]) -> bool {
    let readme = fs::read_to_string(berth_tests::chart::dir().join(Path::new("README.md"))).unwrap();
    steps.iter().all(|step| readme.contains(step))
}
