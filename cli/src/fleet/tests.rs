//! Fleet files, good and hostile.

use super::*;
use expect_test::{Expect, expect};

fn good(file: &str, text: &str) -> Fleet {
    parse(Path::new(file), text).unwrap_or_else(|e| panic!("{e}"))
}

fn refuse(file: &str, text: &str, why: Expect) {
    why.assert_eq(&parse(Path::new(file), text).unwrap_err().to_string());
}

fn show(fleet: &Fleet) -> String {
    let mut lines = Vec::new();
    for node in &fleet.nodes {
        lines.push(format!("{} {} mCPU {} MiB", node.name, node.facts.cpu_milli, node.facts.memory_bytes >> 20));
        for gpu in &node.gpus {
            let Survey { model, fingerprint, mmio, numa_node, .. } = &gpu.survey;
            let numa = numa_node.map_or("?".to_owned(), |n| n.to_string());
            lines.push(format!(
                "  {} {model} {fingerprint} high {} MiB numa {numa}",
                gpu.address,
                mmio.high_bytes >> 20
            ));
        }
        lines.extend(node.vms.iter().map(|vm| format!("  vm {} {} {:?}", vm.name, vm.id, vm.state)));
    }
    lines.join("\n")
}

#[test]
fn generated_cards_sit_as_in_a_real_host() {
    let fleet = good(
        "f.yaml",
        "nodes:\n  - name: hv-{01..02}\n    cpu: 0.5\n    memory: 1GiB\n    gpus: [{model: A16, count: 4}, {model: L40S}]\n    vms: [{name: a}]\n",
    );
    expect![[r#"
        hv-01 500 mCPU 1024 MiB
          PCIROOT(10)#PCI(0100)#PCI(0000)#PCI(0000)#PCI(0000) A16 10de:25b6:10de:14a9 serial SN-hv-01-01 high 16416 MiB numa 0
          PCIROOT(10)#PCI(0100)#PCI(0000)#PCI(0400)#PCI(0000) A16 10de:25b6:10de:14a9 serial SN-hv-01-02 high 16416 MiB numa 0
          PCIROOT(10)#PCI(0100)#PCI(0000)#PCI(0800)#PCI(0000) A16 10de:25b6:10de:14a9 serial SN-hv-01-03 high 16416 MiB numa 0
          PCIROOT(10)#PCI(0100)#PCI(0000)#PCI(0C00)#PCI(0000) A16 10de:25b6:10de:14a9 serial SN-hv-01-04 high 16416 MiB numa 0
          PCIROOT(20)#PCI(0100)#PCI(0000) L40S 10de:26b9 serial SN-hv-01-05 high 65568 MiB numa 1
          vm a d3f8afe7-452d-560d-b217-9355cb05b566 Off
        hv-02 500 mCPU 1024 MiB
          PCIROOT(10)#PCI(0100)#PCI(0000)#PCI(0000)#PCI(0000) A16 10de:25b6:10de:14a9 serial SN-hv-02-01 high 16416 MiB numa 0
          PCIROOT(10)#PCI(0100)#PCI(0000)#PCI(0400)#PCI(0000) A16 10de:25b6:10de:14a9 serial SN-hv-02-02 high 16416 MiB numa 0
          PCIROOT(10)#PCI(0100)#PCI(0000)#PCI(0800)#PCI(0000) A16 10de:25b6:10de:14a9 serial SN-hv-02-03 high 16416 MiB numa 0
          PCIROOT(10)#PCI(0100)#PCI(0000)#PCI(0C00)#PCI(0000) A16 10de:25b6:10de:14a9 serial SN-hv-02-04 high 16416 MiB numa 0
          PCIROOT(20)#PCI(0100)#PCI(0000) L40S 10de:26b9 serial SN-hv-02-05 high 65568 MiB numa 1
          vm a f80dbec7-968f-55ad-92dc-2c9552f8853b Off"#]].assert_eq(&show(&fleet));
}

#[test]
fn the_example_fleet_is_legal() {
    let text = include_str!("../../fleets/hyperv.yaml");
    let fleet = good("hyperv.yaml", text);
    let count =
        |model: &str| fleet.nodes.iter().flat_map(|n| &n.gpus).filter(|g| g.survey.model.as_str() == model).count();
    assert_eq!(
        (fleet.nodes.len(), count("A16"), count("A2"), count("A30"), count("L40S"), count("H100")),
        (15, 48, 2, 8, 16, 16)
    );
    let world = fleet.world(berth_model::Timestamp::from_millis(1));
    let branch = world.node(&"branch-02".parse().unwrap()).unwrap();
    assert!(branch.gpus.values().all(|gpu| !branch.is_available(gpu)), "its slot has no access control");
}

#[test]
fn the_standard_fleet_has_as_many_nodes_as_asked_for() {
    for nodes in [1, 3, 250] {
        assert_eq!(standard(nodes).unwrap().nodes.len(), usize::try_from(nodes).unwrap());
    }
    assert_eq!(standard(3).unwrap().nodes[0].name.as_str(), "hv-01");
}

#[test]
fn what_is_wrong_in_yaml_is_named_by_line_and_path() {
    refuse("f.yaml", "nodes: []\n", expect!["f.yaml: describes no nodes"]);
    refuse(
        "f.yaml",
        "nodes:\n  - name: a\n    colour: red\n",
        expect![
            "f.yaml:3: unknown field `colour`, expected one of name, count, cluster, system, cpu, memory, mmio_high_cap, numa_nodes, timing, gpus, vms"
        ],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - name: a\n  - name: b\n  - name: a\n",
        expect!["f.yaml:4: nodes[2]: node a is described twice (line 2)"],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - name: a b\n",
        expect![[
            r#"f.yaml:2: nodes[0].name: node name "a b" has the character ' ' at position 1; allowed are letters, digits, '-', '.', '_', starting with a letter or digit"#
        ]],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - name: a\n    gpus:\n      - {model: A2, address: 'PCIROOT(20)#PCI(0300)'}\n      - {model: A2, address: 'PCIROOT(20)#PCI(0300)'}\n",
        expect!["f.yaml:2: nodes[0].gpus: address PCIROOT(20)#PCI(0300) is used twice on a"],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - name: a\n    gpus:\n      - {model: A2, address: 'PCIROOT(20)'}\n",
        expect![[
            r#"f.yaml:4: nodes[0].gpus[0].address: PCI address "PCIROOT(20)" is neither a location path like PCIROOT(20)#PCI(0300)#PCI(0000) nor a bus address like 0000:41:00.0"#
        ]],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - name: a\n    gpus:\n      - {model: A3}\n      - {model: A2, count: 0}\n",
        expect![[r#"
        f.yaml:4: nodes[0].gpus[0].model: model A3 is not known, so say its pci_id; known are A10, A100, A100M80, A100SXM80, A16, A2, A30, A40, G2, G3, H100, H100SXM, L4, L40, L40S, P100, RTX6000Ada, T4, V100M16, V100M32
        f.yaml:5: nodes[0].gpus[1].count: 0 is not from 1 to 64"#]],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - name: a\n    gpus:\n      - {model: A2, count: 2, serial: X}\n      - {model: A2, findings: [Bad]}\n      - {model: A2, address: '0000:41:00.0', companions: ['0000:42:00.1']}\n",
        expect![[r#"
            f.yaml:4: nodes[0].gpus[0].serial: names one GPU, but count is 2
            f.yaml:5: nodes[0].gpus[1].findings[0]: "Bad" is no finding; there are ReservedMemory, NoAcs, LineInterruptsOnly, FirmwareKeepsPcie, NoIommu, HostEdition, BootDisplay, NotAssignableKind
            f.yaml:6: nodes[0].gpus[2].companions: 0000:42:00.1 is on another card than 0000:41:00.0"#]],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - name: a\n    gpus: [{model: A2, address: '0000:41:00.0'}]\n    vms:\n      - {name: v, gpus: ['0000:41:00.0', '0000:42:00.0']}\n      - {name: w, gpus: ['0000:41:00.0']}\n",
        expect![[r#"
            f.yaml:2: nodes[0].vms: VM v has device 0000:42:00.0, which a does not have
            f.yaml:2: nodes[0].vms: device 0000:41:00.0 of a is in two VMs"#]],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - {name: a, count: 99999}\n",
        expect!["f.yaml:2: nodes[0].name: count 99999 is more than 10000"],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - {name: 'a-{1..9000}'}\n  - {name: 'b-{1..9000}'}\n",
        expect!["f.yaml: nodes: 18000 nodes, at most 10000 are allowed"],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - {name: a, gpus: [{model: A2, count: 65}]}\n",
        expect!["f.yaml:2: nodes[0].gpus[0].count: 65 is not from 1 to 64"],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - {name: a, cpu: -1, timing: {step: soon}}\n",
        expect![[r#"
            f.yaml:2: nodes[0].cpu: -1 is no number of cores
            f.yaml:2: nodes[0].timing.step: "soon" is no length of time; write it like 90s, 10m or 2h"#]],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - {name: a, memory: lots}\n",
        expect![[r#"f.yaml:2: "lots" is no size; write it like 24GiB"#]],
    );
    refuse("f.yaml", "nodes: {\n", expect!["f.yaml:1: unclosed bracket '{'"]);
    refuse("f.yaml", "nodes: { name: a }\n", expect![[r#"f.yaml:1: nodes is a list: begin each with "- name:""#]]);
    refuse("f.yaml", "- { name: render, gpus: 2 }\n", expect![[r#"f.yaml: has no "nodes:"; is it a workload file?"#]]);
    refuse("f.yaml", "defaults: { cpu: 4 }\n", expect![[r#"f.yaml: has no "nodes:""#]]);
    refuse(
        "f.yaml",
        "nodes:\n  - {name: a}\nvms: []\n",
        expect!["f.yaml:3: unknown field `vms`, expected one of defaults, nodes"],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - {name: a, gpus: A16}\n",
        expect!["f.yaml:2: gpus is a list: write [{ model: A16, count: 4 }]"],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - {name: a, gpus: [{model: A16, count: two}]}\n",
        expect![[r#"f.yaml:2: count: "two" is no whole number from 1 to 64"#]],
    );
    refuse(
        "f.yaml",
        "nodes:\n  - {name: a}\n  - {name: b, memory: 64}\n",
        expect!["f.yaml:3: 64 has no unit; write it like 24GiB"],
    );
}

#[test]
fn rows_of_the_openb_trace_become_hosts() {
    let fleet =
        good("f.csv", "sn,cpu_milli,memory_mib,gpu,model\nn-1,64000,262144,2,P100\nn-0,96000,1,0,\nn-2,1000,1,1,Odd\n");
    expect![[r#"
        n-0 96000 mCPU 1 MiB
        n-1 64000 mCPU 262144 MiB
          PCIROOT(10)#PCI(0100)#PCI(0000) P100 10de:15f8 high 32800 MiB numa 0
          PCIROOT(20)#PCI(0100)#PCI(0000) P100 10de:15f8 high 32800 MiB numa 1
        n-2 1000 mCPU 1 MiB
          PCIROOT(10)#PCI(0100)#PCI(0000) Odd fff0:0001 high 16416 MiB numa 0"#]]
    .assert_eq(&show(&fleet));
}

#[test]
fn bad_rows_are_named_by_line() {
    refuse(
        "f.csv",
        "sn,cpu_milli,memory_mib,gpu,model\nok,1,1,1,T4\n\na b,1,1,1,T4\nn,x,1,1,T4\nn,1,1,-1,T4\nn,1,1,65,T4\nn,1,1,1,\nn,1,1\nok,1,1,1,T4\nn,1,99999999999999999,0,\n",
        expect![[r#"
            f.csv:4: column sn: node name "a b" has the character ' ' at position 1; allowed are letters, digits, '-', '.', '_', starting with a letter or digit
            f.csv:5: column cpu_milli: "x" is no whole number in its range
            f.csv:6: column gpu: "-1" is no whole number in its range
            f.csv:7: column gpu: 65 GPUs, at most 64 are allowed
            f.csv:8: column model: model name is empty
            f.csv:9: 3 columns instead of 5
            f.csv:11: column memory_mib: 99999999999999999 MiB are beyond counting
            f.csv:10: node ok is described twice (line 2)"#]],
    );
    refuse(
        "f.csv",
        "name,cpu\nn,1\n",
        expect!["f.csv:1: the columns must be sn,cpu_milli,memory_mib,gpu,model, not name,cpu"],
    );
    refuse("f.csv", "sn,cpu_milli,memory_mib,gpu,model\n", expect!["f.csv: describes no nodes"]);
    refuse("f.csv", "", expect!["f.csv:1: the columns must be sn,cpu_milli,memory_mib,gpu,model, not "]);
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let missing = read(Path::new("/nonexistent/fleet.yaml")).unwrap_err().to_string();
    assert!(missing.starts_with("/nonexistent/fleet.yaml: cannot be read: "), "{missing}");
}
