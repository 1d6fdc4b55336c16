//! Network policies: what must get through does, whatever is closed.

use berth_tests::chart::{example, helm, object, objects};
use serde_json::{Value, json};

/// The components that may come in at this port; none for everybody.
fn may_come_in(policy: &Value, port: &str) -> Option<Vec<String>> {
    let rules = policy["spec"]["ingress"].as_array().unwrap();
    let mut peers = Vec::new();
    for rule in rules.iter().filter(|rule| rule["ports"].as_array().unwrap().iter().any(|one| one["port"] == port)) {
        for peer in rule["from"].as_array()? {
            let labels = &peer["podSelector"]["matchLabels"];
            let named = labels["app.kubernetes.io/component"].as_str().or(labels["app"].as_str());
            peers.push(named.map_or_else(|| peer.to_string(), str::to_owned));
        }
    }
    Some(peers)
}

fn ports_out(policy: &Value) -> Vec<Value> {
    let rules = policy["spec"]["egress"].as_array().unwrap().iter();
    rules.flat_map(|rule| rule["ports"].as_array().unwrap()).map(|port| port["port"].clone()).collect()
}

#[test]
fn whoever_must_reach_a_controller_does_where_clients_are_named() {
    let Some(helm) = helm("whoever_must_reach_a_controller_does_where_clients_are_named") else { return };
    let set = [
        "networkPolicy.clients[0].podSelector.matchLabels.app=terraform",
        "networkPolicy.metricsClients[0].podSelector.matchLabels.app=prometheus",
    ];
    let objects = objects(&helm.render(&[&example("vfio")], &set).unwrap()).unwrap();
    let policy = |name| object(&objects, "NetworkPolicy", name).unwrap();
    let of_controllers = may_come_in(policy("berth"), "berth").unwrap();
    assert_eq!(of_controllers, ["controller", "agent", "terraform", "prometheus"]);
    assert_eq!(may_come_in(policy("berth-etcd"), "client").unwrap(), ["controller", "etcd"]);
    assert_eq!(may_come_in(policy("berth-etcd"), "peer").unwrap(), ["etcd"]);
    assert_eq!(may_come_in(policy("berth-etcd"), "metrics").unwrap(), ["prometheus"]);
    assert_eq!(policy("berth-agent")["spec"]["ingress"], json!([]), "nobody dials an agent");
    assert_eq!(ports_out(policy("berth-agent")), [53, 53, 7600, 4317].map(Value::from));
}

#[test]
fn everybody_reaches_controllers_unless_clients_are_named() {
    let Some(helm) = helm("everybody_reaches_controllers_unless_clients_are_named") else { return };
    let objects = objects(&helm.render(&[&example("ha")], &[]).unwrap()).unwrap();
    assert_eq!(may_come_in(object(&objects, "NetworkPolicy", "berth").unwrap(), "berth"), None);
}

#[test]
fn controllers_reach_one_another_by_the_port_they_advertise_and_by_their_own() {
    let Some(helm) = helm("controllers_reach_one_another_by_the_port_they_advertise_and_by_their_own") else { return };
    let set = ["controller.advertise=https://berth-{ordinal}.example.com:443"];
    let objects = objects(&helm.render(&[&example("ha")], &set).unwrap()).unwrap();
    let out = ports_out(object(&objects, "NetworkPolicy", "berth").unwrap());
    for port in [53, 443, 7600, 2379, 4317] {
        assert!(out.contains(&port.into()), "{port} is not among {out:?}");
    }
}
