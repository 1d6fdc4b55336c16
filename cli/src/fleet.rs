//! Described fleets: hosts out of a YAML description or a CSV of the openb trace, checked before anything is started.
//!
//! Owns the file formats (`cli/fleets/README.md` shows them) and their error messages. A [`Fleet`] is in Berth's own words;
//! `world` makes a world of it for planning, `sim` makes simulated hosts of it.

mod range;
mod rows;
pub(crate) mod shape;
#[cfg(feature = "dev")]
pub mod sim;
mod size;
pub mod world;
mod yaml;

pub use range::{expand, repeat};
pub(crate) use size::Size;

use berth_agent_core::cards;
use berth_model::gpu::{HostDriver, Survey};
use berth_model::id::VmName;
use berth_model::inventory::{MAX_GPUS_PER_NODE, MAX_VMS_PER_NODE};
use berth_model::node::HostFacts;
use berth_model::pci::DeviceAddress;
use berth_model::vm::VmState;
use berth_model::{ModelName, NodeName, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most nodes of a described fleet: what one controller is designed for.
pub const MAX_NODES: usize = 10_000;
/// Longest fleet file read: 10,000 nodes described one by one stay well below.
const MAX_BYTES: u64 = 64 << 20;
/// Most problems told at once; the rest are consequences or more of the same.
const MAX_PROBLEMS: usize = 20;

/// Hosts as described.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// In order of name.
    pub nodes: Vec<Node>,
}

/// One host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// What it is.
    pub facts: HostFacts,
    /// Its GPUs, in order of address.
    pub gpus: Vec<Gpu>,
    /// VMs that are there from the start.
    pub vms: Vec<Vm>,
    /// How it behaves over time.
    pub timing: Timing,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Where it sits.
    pub address: DeviceAddress,
    /// What it is.
    pub survey: Survey,
    /// The host's driver for it.
    pub driver: HostDriver,
}

/// One VM that is there from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its identity.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// What it does.
    pub state: VmState,
    /// Whether it is a clustered role.
    pub clustered: bool,
    /// GPUs it has already.
    pub devices: Vec<DeviceAddress>,
}

/// How a simulated host behaves over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timing {
    /// How long each step takes; none means nearly nothing.
    pub step: Option<Duration>,
}

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1, where it is known.
    pub line: Option<u64>,
    /// Path to it, `nodes[3].gpus[1].address`; empty when the file as a whole is meant.
    pub path: String,
    /// What is wrong, and what would be right.
    pub text: String,
}

/// A fleet file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Which file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Problem { line, path, text }) in self.problems.iter().take(MAX_PROBLEMS).enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}", self.file.display())?;
            if let Some(line) = line {
                write!(f, ":{line}")?;
            }
            if !path.is_empty() {
                write!(f, ": {path}")?;
            }
            write!(f, ": {text}")?;
        }
        match self.problems.len().saturating_sub(MAX_PROBLEMS) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

/// Reads and checks a fleet file: CSV when its name ends in `.csv`, YAML otherwise.
///
/// # Errors
/// Everything that is wrong with it, by line and path.
pub fn read(file: &Path) -> Result<Fleet, Error> {
    let text =
        read_text(file, MAX_BYTES).map_err(|problem| Error { file: file.to_owned(), problems: vec![problem] })?;
    parse(file, &text)
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_text(file: &Path, limit: u64) -> Result<String, Problem> {
    use std::io::Read as _;
    let whole = |text: String| Problem { line: None, path: String::new(), text };
    let open = std::fs::File::open(file).map_err(|e| whole(format!("cannot be read: {e}")))?;
    let mut text = String::new();
    open.take(limit + 1).read_to_string(&mut text).map_err(|e| whole(format!("cannot be read: {e}")))?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > limit {
        return Err(whole(format!("is longer than {} MiB", limit >> 20)));
    }
    Ok(text)
}

/// What a YAML error says, without the place, which is told in front of it.
pub(crate) fn plain(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    text.rsplit_once(" at line ").map(|(what, _)| what.to_owned()).unwrap_or(text)
}

/// Checks the text of a fleet file.
///
/// # Errors
/// Everything that is wrong with it, by line and path.
pub fn parse(file: &Path, text: &str) -> Result<Fleet, Error> {
    let csv = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    let mut found = if csv { rows::parse(text) } else { yaml::parse(text) };
    found.check();
    let Found { mut nodes, problems } = found;
    if problems.is_empty() {
        nodes.sort_by(|a, b| a.node.name.cmp(&b.node.name));
        Ok(Fleet { nodes: nodes.into_iter().map(|at| at.node).collect() })
    } else {
        Err(Error { file: file.to_owned(), problems })
    }
}

/// The fleet of `berth dev` without a file: `nodes` Hyper-V hosts, each with four A16 GPUs, two A30 and one L40S.
///
/// # Errors
/// When `nodes` is more than [`MAX_NODES`].
pub fn standard(nodes: u32) -> Result<Fleet, Error> {
    let width = nodes.to_string().len().max(2);
    let text = format!(
        "defaults: {{ cluster: hci-a, cpu: 64, memory: 512GiB, timing: {{ step: 300ms }} }}
nodes:
  - name: hv-{{{:0width$}..{nodes:0width$}}}
    gpus: [{{ model: A16, count: 4 }}, {{ model: A30, count: 2 }}, {{ model: L40S }}]
",
        1
    );
    parse(Path::new("(standard fleet).yaml"), &text)
}

/// A node and where it was described.
struct At {
    node: Node,
    line: Option<u64>,
    path: String,
}

/// What a file says so far.
#[derive(Default)]
struct Found {
    nodes: Vec<At>,
    problems: Vec<Problem>,
}

impl Found {
    fn problem(&mut self, line: Option<u64>, path: impl Into<String>, text: impl fmt::Display) {
        self.problems.push(Problem { line, path: path.into(), text: text.to_string() });
    }

    /// What must hold between the parts, however they were written.
    fn check(&mut self) {
        let nodes = std::mem::take(&mut self.nodes);
        if nodes.is_empty() && self.problems.is_empty() {
            self.problem(None, "", "describes no nodes");
        }
        if nodes.len() > MAX_NODES {
            self.problem(None, "nodes", format_args!("{} nodes, at most {MAX_NODES} are allowed", nodes.len()));
        }
        let mut names: BTreeMap<NodeName, Option<u64>> = BTreeMap::new();
        let mut vm_ids: BTreeMap<VmId, NodeName> = BTreeMap::new();
        for At { node, line, path } in &nodes {
            if let Some(first) = names.insert(node.name.clone(), *line) {
                let at = first.map(|l| format!(" (line {l})")).unwrap_or_default();
                self.problem(*line, path.as_str(), format_args!("node {} is described twice{at}", node.name));
            }
            if node.gpus.len() > MAX_GPUS_PER_NODE {
                let text =
                    format!("{} GPUs on {}, at most {MAX_GPUS_PER_NODE} are allowed", node.gpus.len(), node.name);
                self.problem(*line, format!("{path}.gpus"), text);
            }
            if node.vms.len() > MAX_VMS_PER_NODE {
                let text = format!("{} VMs on {}, at most {MAX_VMS_PER_NODE} are allowed", node.vms.len(), node.name);
                self.problem(*line, format!("{path}.vms"), text);
            }
            let mut functions = BTreeSet::new();
            for gpu in &node.gpus {
                for function in std::iter::once(&gpu.address).chain(&gpu.survey.companions) {
                    if !functions.insert(function) {
                        let text = format!("address {function} is used twice on {}", node.name);
                        self.problem(*line, format!("{path}.gpus"), text);
                    }
                }
            }
            let mut held = BTreeSet::new();
            for vm in &node.vms {
                if let Some(other) = vm_ids.insert(vm.id.clone(), node.name.clone()) {
                    let text = format!("VM id {} is used twice, on {other} and {}", vm.id, node.name);
                    self.problem(*line, format!("{path}.vms"), text);
                }
                for device in &vm.devices {
                    if !node.gpus.iter().any(|gpu| gpu.address == *device) {
                        let text = format!("VM {} has device {device}, which {} does not have", vm.name, node.name);
                        self.problem(*line, format!("{path}.vms"), text);
                    } else if !held.insert(device) {
                        let text = format!("device {device} of {} is in two VMs", node.name);
                        self.problem(*line, format!("{path}.vms"), text);
                    }
                }
            }
        }
        self.nodes = nodes;
    }
}

/// Boards in the slots of a host, in order; gives every GPU its address and NUMA node as a server's layout would.
struct Slots {
    next: u16,
    total: u16,
    numa_nodes: u16,
}

impl Slots {
    /// A host that will get `boards` boards and has `numa_nodes` NUMA nodes.
    fn new(boards: u16, numa_nodes: u16) -> Self {
        Self { next: 0, total: boards.max(1), numa_nodes: numa_nodes.max(1) }
    }

    /// The addresses of the GPUs of the next board, and its NUMA node. Boards with several GPUs carry a switch.
    fn board(&mut self, gpus: u16) -> (Vec<String>, u16) {
        let slot = self.next;
        self.next = self.next.saturating_add(1);
        // Fifteen root buses of sixteen ports are more slots than any chassis has.
        let (root, port) = (0x10 * (slot % 15 + 1), slot / 15 % 0x20 + 1);
        let slot_path = format!("PCIROOT({root:X})#PCI({port:02X}00)#PCI(0000)");
        let numa = u32::from(slot.min(self.total - 1)) * u32::from(self.numa_nodes) / u32::from(self.total);
        let numa = u16::try_from(numa).unwrap_or_default();
        if gpus == 1 {
            (vec![slot_path], numa)
        } else {
            let behind = |gpu: u16| format!("{slot_path}#PCI({:02X}00)#PCI(0000)", 4 * gpu);
            ((0..gpus).map(behind).collect(), numa)
        }
    }
}

/// The card of a model, or why there is none.
fn card(model: &ModelName) -> Result<cards::Card, String> {
    cards::by_model(model).copied().ok_or_else(|| {
        let known: Vec<_> = cards::CARDS.iter().map(|card| card.model).collect();
        format!("model {model} is not known, so say its pci_id; known are {}", known.join(", "))
    })
}

#[cfg(test)]
mod tests;
