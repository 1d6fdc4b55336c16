//! Fleets as YAML: defaults, nodes, their GPUs and VMs. Unknown keys are refused.

use super::size::Size;
use super::{At, Found, Gpu, MAX_NODES, Node, Slots, Timing, Vm, card, plain, repeat, shape};
use crate::values::duration;
use berth_agent_core::cards;
use berth_model::ModelName;
use berth_model::gpu::{Finding, Fingerprint, HostDriver, MmioSize, SerialNumber, Survey, Verdict};
use berth_model::inventory::{MAX_GPUS_PER_NODE, MAX_VMS_PER_NODE};
use berth_model::node::{HostFacts, Platform};
use berth_model::pci::DeviceAddress;
use berth_model::vm::VmState;
use berth_model::{NodeName, VmId};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;
use std::fmt;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    defaults: HostEntry,
    #[serde(default, deserialize_with = "nodes")]
    nodes: Option<Vec<Spanned<NodeEntry>>>,
}

/// The file as a whole: what is no fleet at all is mostly the other kind of file.
struct Whole {
    defaults: HostEntry,
    nodes: Vec<Spanned<NodeEntry>>,
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fleet;
        impl<'de> Visitor<'de> for Fleet {
            type Value = Whole;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a fleet: \"nodes:\" and what they are")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Whole, A::Error> {
                match File::deserialize(MapAccessDeserializer::new(map))? {
                    File { defaults, nodes: Some(nodes) } => Ok(Whole { defaults, nodes }),
                    File { defaults: _, nodes: None } => Err(A::Error::custom("has no \"nodes:\"")),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Whole, A::Error> {
                Err(A::Error::custom("has no \"nodes:\"; is it a workload file?"))
            }
        }
        from.deserialize_any(Fleet)
    }
}

fn nodes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<Spanned<NodeEntry>>>, D::Error> {
    shape::list(from, |_| "nodes is a list: begin each with \"- name:\"".to_owned()).map(Some)
}

/// What defaults and nodes can both say.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HostEntry {
    cluster: Option<String>,
    system: Option<String>,
    cpu: Option<f64>,
    memory: Option<Size>,
    mmio_high_cap: Option<Size>,
    numa_nodes: Option<u16>,
    timing: Option<TimingEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeEntry {
    name: String,
    #[serde(default, deserialize_with = "count")]
    count: Option<u32>,
    cluster: Option<String>,
    system: Option<String>,
    cpu: Option<f64>,
    memory: Option<Size>,
    mmio_high_cap: Option<Size>,
    numa_nodes: Option<u16>,
    timing: Option<TimingEntry>,
    #[serde(default, deserialize_with = "gpu_entries")]
    gpus: Vec<Spanned<GpuEntry>>,
    #[serde(default, deserialize_with = "vm_entries")]
    vms: Vec<Spanned<VmEntry>>,
}

fn count<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    shape::number(from, "count", u32::try_from(MAX_NODES).unwrap_or(u32::MAX)).map(Some)
}

fn gpu_count<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    let most = u32::try_from(MAX_GPUS_PER_NODE).unwrap_or(u32::MAX);
    let count = shape::number(from, "count", most)?;
    u16::try_from(count).map(Some).map_err(|_| D::Error::custom(format_args!("count: {count} is not from 1 to {most}")))
}

fn gpu_entries<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Spanned<GpuEntry>>, D::Error> {
    shape::list(from, |_| "gpus is a list: write [{ model: A16, count: 4 }]".to_owned())
}

fn vm_entries<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Spanned<VmEntry>>, D::Error> {
    shape::list(from, |_| "vms is a list: write [{ name: file-server }]".to_owned())
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct TimingEntry {
    step: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GpuEntry {
    model: String,
    /// How many GPUs, not boards: an A16 board has four.
    #[serde(default, deserialize_with = "gpu_count")]
    count: Option<u16>,
    address: Option<String>,
    serial: Option<String>,
    numa: Option<u16>,
    pci_id: Option<String>,
    vram: Option<Size>,
    mmio_low: Option<Size>,
    mmio_high: Option<Size>,
    #[serde(default)]
    companions: Vec<String>,
    #[serde(default)]
    findings: Vec<String>,
    driver: Option<DriverEntry>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DriverEntry {
    Bound,
    None,
    Disabled,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmEntry {
    name: String,
    #[serde(default, deserialize_with = "count")]
    count: Option<u32>,
    id: Option<String>,
    #[serde(default)]
    state: StateEntry,
    #[serde(default)]
    clustered: bool,
    #[serde(default)]
    gpus: Vec<String>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StateEntry {
    Running,
    #[default]
    Off,
}

pub(super) fn parse(text: &str) -> Found {
    let mut found = Found::default();
    let options = serde_saphyr::options! { with_snippet: false };
    let Whole { defaults, nodes } = match serde_saphyr::from_str_with_options(text, options) {
        Ok(file) => file,
        Err(e) => {
            let line = e.location().map(|at| at.line());
            found.problem(line, "", plain(&e));
            return found;
        }
    };
    for (at, entry) in nodes.into_iter().enumerate() {
        let line = line(&entry);
        let path = format!("nodes[{at}]");
        node(&mut found, &defaults, line, &path, entry.value);
        // Enough to say that it is too many.
        if found.nodes.len() > MAX_NODES {
            break;
        }
    }
    found
}

fn line<T>(spanned: &Spanned<T>) -> Option<u64> {
    Some(spanned.referenced.line()).filter(|line| *line > 0)
}

/// Notes what is wrong with a value.
fn good<T, E: std::fmt::Display>(found: &mut Found, line: Option<u64>, path: String, value: Result<T, E>) -> Option<T> {
    value.map_err(|e| found.problem(line, path, e)).ok()
}

fn node(found: &mut Found, defaults: &HostEntry, line: Option<u64>, path: &str, entry: NodeEntry) {
    let NodeEntry { name, count, cluster, system, cpu, memory, mmio_high_cap, numa_nodes, timing, gpus, vms } = entry;
    let before = found.problems.len();
    let names = good(found, line, format!("{path}.name"), repeat(&name, count)).unwrap_or_default();
    let cluster = cluster.as_ref().or(defaults.cluster.as_ref());
    let cluster = cluster.and_then(|text| good(found, line, format!("{path}.cluster"), text.parse()));
    let cpu_milli = good(found, line, format!("{path}.cpu"), cores(cpu.or(defaults.cpu).unwrap_or(64.0)));
    let memory = memory.or(defaults.memory).unwrap_or(Size(512 << 30));
    let numa_nodes = numa_nodes.or(defaults.numa_nodes).unwrap_or(2);
    let step = timing.as_ref().or(defaults.timing.as_ref()).map(|t| duration(&t.step));
    let step = step.and_then(|step| good(found, line, format!("{path}.timing.step"), step));
    let gpus = self::gpus(found, path, numa_nodes, gpus);
    let vms = self::vms(found, path, vms);
    if found.problems.len() > before {
        return;
    }
    let facts = HostFacts {
        platform: Platform::Simulated,
        system: system
            .or_else(|| defaults.system.clone())
            .unwrap_or_else(|| "Windows Server 2025 Datacenter".to_owned()),
        cluster,
        cpu_milli: cpu_milli.unwrap_or_default(),
        memory_bytes: memory.0,
        mmio_high_cap_bytes: mmio_high_cap.or(defaults.mmio_high_cap).map(|size| size.0),
        notes: Vec::new(),
    };
    let several = names.len() > 1;
    for name in names {
        let Some(name) = good(found, line, format!("{path}.name"), name.parse::<NodeName>()) else { continue };
        let gpus = gpus.iter().map(|gpu| own(gpu, &name)).collect();
        let vms = vms.iter().map(|vm| vm.on(&name, several)).collect::<Result<_, _>>();
        let Some(vms) = good(found, line, format!("{path}.vms"), vms) else { continue };
        let node = Node { name, facts: facts.clone(), gpus, vms, timing: Timing { step } };
        found.nodes.push(At { node, line, path: path.to_owned() });
    }
}

fn cores(cpu: f64) -> Result<u64, String> {
    // The text of the number is exact to the thousandth; arithmetic on it would not be.
    let text = format!("{cpu:.3}");
    let milli = text.replace('.', "").parse::<u64>();
    milli.map_err(|_| format!("{cpu} is no number of cores"))
}

/// A GPU before its node is known.
struct Draft {
    gpu: Gpu,
    /// Its place among the generated ones; serial numbers are made of it.
    number: Option<usize>,
}

/// A generated GPU gets a serial number of its own on each node, as real cards have.
fn own(draft: &Draft, node: &NodeName) -> Gpu {
    let mut gpu = draft.gpu.clone();
    if let (Some(number), None) = (draft.number, &gpu.survey.fingerprint.serial) {
        gpu.survey.fingerprint.serial = SerialNumber::new(format!("SN-{node}-{number:02}")).ok();
    }
    gpu
}

fn gpus(found: &mut Found, path: &str, numa_nodes: u16, entries: Vec<Spanned<GpuEntry>>) -> Vec<Draft> {
    let per_board = |entry: &GpuEntry| {
        let known = entry.model.parse().ok().and_then(|m| cards::by_model(&m));
        known.map_or(1, |card| u16::from(card.gpus_per_board)).max(1)
    };
    let boards = entries.iter().map(|e| e.value.count.unwrap_or(1).div_ceil(per_board(&e.value)));
    let mut slots = Slots::new(boards.fold(0, u16::saturating_add), numa_nodes);
    let mut drafts = Vec::new();
    for (at, entry) in entries.into_iter().enumerate() {
        let (line, path) = (line(&entry), format!("{path}.gpus[{at}]"));
        let entry = entry.value;
        let count = entry.count.unwrap_or(1);
        // Enough to say that it is too many.
        if drafts.len() > MAX_GPUS_PER_NODE {
            break;
        }
        let single = [
            ("address", entry.address.is_some()),
            ("serial", entry.serial.is_some()),
            ("companions", !entry.companions.is_empty()),
        ];
        if let Some((key, _)) = single.into_iter().find(|(_, set)| *set && count != 1) {
            found.problem(line, format!("{path}.{key}"), format_args!("names one GPU, but count is {count}"));
            continue;
        }
        if count == 0 || usize::from(count) > MAX_GPUS_PER_NODE {
            found.problem(line, format!("{path}.count"), format_args!("{count} is not from 1 to {MAX_GPUS_PER_NODE}"));
            continue;
        }
        let per_board = per_board(&entry);
        let Some((survey, driver)) = survey(found, line, &path, &entry) else { continue };
        let mut left = count;
        while left > 0 {
            let on_board = left.min(per_board);
            // A board always has all its ports, even where only some of its GPUs are described.
            let (paths, numa) = slots.board(per_board);
            left -= on_board;
            let paths = paths.into_iter().take(usize::from(on_board));
            let paths: Vec<_> = match &entry.address {
                Some(address) => vec![address.clone()],
                None => paths.collect(),
            };
            for text in paths {
                let Some(address) = good(found, line, format!("{path}.address"), text.parse()) else { continue };
                let mut survey = survey.clone();
                survey.numa_node = entry.numa.or(Some(numa));
                let number = Some(drafts.len() + 1);
                drafts.push(Draft { gpu: Gpu { address, survey, driver: driver.clone() }, number });
            }
        }
    }
    drafts.sort_by(|a, b| a.gpu.address.cmp(&b.gpu.address));
    drafts
}

fn survey(found: &mut Found, line: Option<u64>, path: &str, entry: &GpuEntry) -> Option<(Survey, HostDriver)> {
    let before = found.problems.len();
    let model: Option<ModelName> = good(found, line, format!("{path}.model"), entry.model.parse());
    let card = match (&entry.pci_id, &model) {
        // A model of the user's own, as large as an ordinary card unless said otherwise.
        (Some(_), Some(model)) => Some(cards::by_model(model).copied().unwrap_or(cards::GENERIC)),
        (None, Some(model)) => good(found, line, format!("{path}.model"), card(model)),
        (_, None) => None,
    };
    let id = match &entry.pci_id {
        Some(text) => good(found, line, format!("{path}.pci_id"), text.parse()),
        None => card.map(|card| card.id),
    };
    let serial = match &entry.serial {
        Some(text) => good(found, line, format!("{path}.serial"), SerialNumber::new(text)).map(Some),
        None => Some(None),
    };
    let mut companions: Vec<DeviceAddress> = Vec::new();
    for (at, text) in entry.companions.iter().enumerate() {
        companions.extend(good(found, line, format!("{path}.companions[{at}]"), text.parse()));
    }
    if let Some(own) = entry.address.as_ref().and_then(|a| a.parse::<DeviceAddress>().ok()) {
        for other in companions.iter().filter(|other| other.card() != own.card()) {
            found.problem(line, format!("{path}.companions"), format_args!("{other} is on another card than {own}"));
        }
    } else if !companions.is_empty() {
        found.problem(line, format!("{path}.companions"), "they need the address of the GPU they belong to");
    }
    let mut findings = Vec::new();
    for (at, text) in entry.findings.iter().enumerate() {
        match Finding::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(text)) {
            Some(finding) => findings.push(finding),
            None => {
                let known: Vec<_> = Finding::ALL.iter().map(|f| f.name()).collect();
                let text = format!("{text:?} is no finding; there are {}", known.join(", "));
                found.problem(line, format!("{path}.findings[{at}]"), text);
            }
        }
    }
    if found.problems.len() > before {
        return None;
    }
    let (model, card, id, serial) = (model?, card?, id?, serial?);
    let mmio = MmioSize {
        low_bytes: entry.mmio_low.map_or(card.low_bytes, |size| size.0),
        high_bytes: entry.mmio_high.map_or(card.high_bytes, |size| size.0),
    };
    let survey = Survey {
        model,
        fingerprint: Fingerprint { id, serial },
        vram_bytes: Some(entry.vram.map_or(card.vram_bytes, |size| size.0)),
        mmio,
        numa_node: None,
        companions,
        verdict: if findings.is_empty() { Verdict::Assignable } else { Verdict::Blocked(findings) },
    };
    // A host that hands its GPUs to VMs has no driver for them, as the makers advise.
    let driver = match entry.driver.unwrap_or(DriverEntry::None) {
        DriverEntry::Bound => HostDriver::Bound,
        DriverEntry::None => HostDriver::None,
        DriverEntry::Disabled => HostDriver::Disabled,
    };
    Some((survey, driver))
}

/// A VM before its node is known.
struct VmDraft {
    name: String,
    id: Option<VmId>,
    state: VmState,
    clustered: bool,
    devices: Vec<DeviceAddress>,
}

impl VmDraft {
    fn on(&self, node: &NodeName, several: bool) -> Result<Vm, String> {
        if let (true, Some(id)) = (several, &self.id) {
            return Err(format!("VM id {id} cannot be on several nodes; leave it out, and each VM gets its own"));
        }
        let id = match &self.id {
            Some(id) => id.clone(),
            None => VmId::new(generated_id(node, &self.name).to_string()).map_err(|e| e.to_string())?,
        };
        Ok(Vm {
            id,
            name: self.name.parse().map_err(|e| format!("{e}"))?,
            state: self.state,
            clustered: self.clustered,
            devices: self.devices.clone(),
        })
    }
}

/// An id made of node and name: the same file gives the same VMs at every start.
fn generated_id(node: &NodeName, vm: &str) -> uuid::Uuid {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_DNS, format!("{vm}@{node}").as_bytes())
}

fn vms(found: &mut Found, path: &str, entries: Vec<Spanned<VmEntry>>) -> Vec<VmDraft> {
    let mut drafts = Vec::new();
    for (at, entry) in entries.into_iter().enumerate() {
        let (line, path) = (line(&entry), format!("{path}.vms[{at}]"));
        // Enough to say that it is too many.
        if drafts.len() > MAX_VMS_PER_NODE {
            break;
        }
        let VmEntry { name, count, id, state, clustered, gpus } = entry.value;
        let names = good(found, line, format!("{path}.name"), repeat(&name, count)).unwrap_or_default();
        let id = match id {
            Some(text) => good(found, line, format!("{path}.id"), VmId::new(text)),
            None => None,
        };
        if names.len() > 1 && id.is_some() {
            found.problem(line, format!("{path}.id"), "one id cannot belong to several VMs");
        }
        let mut devices = Vec::new();
        for (at, text) in gpus.iter().enumerate() {
            devices.extend(good(found, line, format!("{path}.gpus[{at}]"), text.parse()));
        }
        let state = match state {
            StateEntry::Running => VmState::Running,
            StateEntry::Off => VmState::Off,
        };
        for name in names.into_iter().take(MAX_VMS_PER_NODE + 1) {
            drafts.push(VmDraft { name, id: id.clone(), state, clustered, devices: devices.clone() });
        }
    }
    drafts
}
