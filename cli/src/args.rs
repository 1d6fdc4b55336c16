//! The command line: verbs, flags, defaults and examples. Scripts rely on it; nothing here acts.

use crate::values::{counted, duration, size, whole};
use berth_model::request::MAX_GPUS_PER_REQUEST;
use bytesize::ByteSize;
use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Where a controller is looked for when nothing says otherwise.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7600";

/// The whole command line.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "berth",
    version,
    about = "Whole GPUs for virtual machines, across every hypervisor host you have",
    after_help = "Examples:
  berth dev                                     a fleet to try it on, in one process
  berth get gpus --state available              what is free
  berth place render-01 --vm render-01 --gpus 2 --model A16 --wait
  berth describe placement render-01            where it is and what happens next
  berth release render-01 --wait

Exit codes: 0 done, 1 failed, 2 bad usage, 3 not placeable now, 4 not found, 5 unavailable."
)]
pub struct Cli {
    /// Flags that every verb takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every verb takes. They stand after a verb's own in its help, under headings of their own.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub struct Global {
    /// No colour, even on a terminal.
    #[arg(long, global = true, env = "NO_COLOR", value_parser = FalseyValueParser::new(), help_heading = "Output", display_order = 1000)]
    pub no_color: bool,
    /// Where the controllers listen: one, or several with commas between them. When one cannot answer, the next is asked.
    #[arg(long, global = true, env = "BERTH_ENDPOINT", default_value = DEFAULT_ENDPOINT, value_name = "URL")]
    pub endpoint: String,
    /// Files for an endpoint that is https://.
    #[command(flatten)]
    pub tls: Tls,
    /// How long one call may take, retries included.
    #[arg(long, global = true, default_value = "30s", value_parser = duration, allow_hyphen_values = true, value_name = "DURATION")]
    pub deadline: Duration,
}

/// Who the controller must be, and who we are.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Connection")]
pub struct Tls {
    /// The CA of the controller's certificate (PEM); needed for https://.
    #[arg(long, global = true, env = "BERTH_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// A certificate to show (PEM); its subject is recorded with what you ask for.
    #[arg(long, global = true, env = "BERTH_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// The private key of the certificate (PEM).
    #[arg(long, global = true, env = "BERTH_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// The name in the controller's certificate, where it is not the endpoint's.
    #[arg(long, global = true, env = "BERTH_SERVER_NAME", value_name = "NAME")]
    pub server_name: Option<String>,
}

/// A verb.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Start a controller and simulated hosts in one process, to try Berth on
    #[cfg(feature = "dev")]
    Dev(Dev),
    /// List nodes, GPUs, VMs or placements, or show one of them
    Get(Get),
    /// Show everything about one node, GPU or placement, and what happens next
    Describe(Describe),
    /// Ask for GPUs for a VM
    Place(Box<Place>),
    /// Say that the VM of a held placement exists now
    Commit(Commit),
    /// Take a placement's GPUs back
    Release(Release),
    /// Take over what VMs of a node have already, given by hand, as placements. The host is not touched
    Adopt(Adopt),
    /// Try a file of workloads: what fits where, what does not and why. Nothing is claimed
    Plan(Plan),
    /// How many VMs of 1, 2, 4, 8 and 16 GPUs fit now, for each model
    Capacity(Output),
    /// Show changes as they happen
    Watch(Watch),
    /// How the controller is
    Status(Output),
    /// Write all that the controller keeps into a file
    Backup(Backup),
    /// Who asked for what, what was decided, what was refused
    Audit(Audit),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  berth completions bash > /etc/bash_completion.d/berth")]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// The same with more columns.
    Wide,
    /// The API's canonical protobuf JSON.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Chooses the form of the answer.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct Output {
    /// Form of the answer.
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORM")]
    pub format: Format,
}

/// `berth dev`.
#[cfg(feature = "dev")]
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  berth dev                                     three Hyper-V nodes in simulation
  berth dev --nodes 200 --data-dir ./berth-dev  the same at size; what it knows survives a restart
  berth dev --fleet fleet.yaml --step-delay 2s  hosts of your own description, at the pace of real ones")]
pub struct Dev {
    /// How many simulated nodes.
    #[arg(long, default_value_t = 3, conflicts_with = "fleet", value_parser = nodes, allow_negative_numbers = true)]
    pub nodes: u32,
    /// A description of the fleet: YAML, or CSV with the columns sn,cpu_milli,memory_mib,gpu,model.
    #[arg(long, value_name = "FILE")]
    pub fleet: Option<PathBuf>,
    /// Where the controller listens; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7600", value_name = "ADDRESS")]
    pub listen: std::net::SocketAddr,
    /// Where store, ledgers and simulated hosts are kept. Default: a temporary directory, removed at the end.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Keep the truth in this etcd cluster, its members separated by commas, instead of a file.
    #[arg(long, value_name = "ENDPOINT", value_delimiter = ',')]
    pub etcd: Vec<String>,
    /// How long each step on a simulated host takes; without it, what the fleet file says, else nearly nothing.
    #[arg(long, value_parser = duration, allow_hyphen_values = true, value_name = "DURATION")]
    pub step_delay: Option<Duration>,
    /// Whether to play the provisioning system: create the VM of each hold on its node.
    #[arg(long, value_enum, default_value_t)]
    pub provision: Provision,
}

/// Who creates VMs in `berth dev`.
#[cfg(feature = "dev")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum Provision {
    /// Create the VM when its GPUs are held, delete it after release.
    #[default]
    Auto,
    /// Nobody: holds expire unless their VM is in the fleet.
    None,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Hypervisor hosts.
    #[value(alias = "node")]
    Nodes,
    /// Assignable devices.
    #[value(alias = "gpu")]
    Gpus,
    /// Virtual machines.
    #[value(alias = "vm")]
    Vms,
    /// Requests and their lives.
    #[value(alias = "placement")]
    Placements,
    /// How hosts differ from what Berth wants or knows, without its doing. Told, never fixed unasked.
    Drift,
}

/// `berth get`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  berth get nodes
  berth get gpus --model A16 --state available -o wide
  berth get gpus --node hv-01 -o json
  berth get placements --state active
  berth get placements render-01 -o yaml
  berth get drift --node hv-01

States:
  nodes        ready, notready
  gpus         available, host, pooled, attached, stale, missing, unknown
  vms          running, off, saved, paused, changing, unknown
  placements   queued, held, preparing, attaching, starting, verifying,
               active, releasing, released, failed
  drift        wrongcard, vmgone, inothervm, notattached, vmclustered,
               stalerecord, assignedbyhand, leftdismounted, disabled,
               cardmissing")]
pub struct Get {
    /// What to list.
    pub kind: Kind,
    /// Only this one. GPUs are named NODE/ADDRESS, VMs by name or id.
    pub name: Option<String>,
    /// Only on this node.
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// Only GPUs of this model, nodes that have one, placements that hold one.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Only in this state.
    #[arg(long, value_name = "STATE")]
    pub state: Option<String>,
    /// Also placements that were released.
    #[arg(long)]
    pub all: bool,
    /// Form of the answer.
    #[command(flatten)]
    pub output: Output,
}

/// What can be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Described {
    /// A hypervisor host.
    #[value(alias = "nodes")]
    Node,
    /// An assignable device.
    #[value(alias = "gpus")]
    Gpu,
    /// A request and its life.
    #[value(alias = "placements")]
    Placement,
}

/// `berth describe`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  berth describe placement render-01
  berth describe node hv-01
  berth describe gpu 'hv-01/PCIROOT(20)#PCI(0300)#PCI(0000)'")]
pub struct Describe {
    /// What kind of thing.
    pub kind: Described,
    /// Its name. GPUs are named NODE/ADDRESS.
    pub name: String,
}

/// `berth place`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  berth place render-01 --vm render-01 --gpus 2 --model A16 --wait
  berth place train-7 --vm train-7 --gpus 8 --model H100 --queue 2h --cpu 96 --memory 1TiB
  berth place infer-3 --vm 8fce3318-aa0f-4de3-8664-278533573cd2 --min-vram 24GiB --allow-standalone

A VM that does not exist yet is named by name: its GPUs are held until it appears on the node that was chosen. \
A VM that exists is placed where it is.")]
pub struct Place {
    /// What to call the placement.
    pub name: String,
    /// The VM that gets the GPUs: its name, or its id when it exists already.
    #[arg(long, value_name = "VM")]
    pub vm: String,
    /// How many GPUs, 1 to 16, all of one model.
    #[arg(long, default_value_t = 1, value_parser = gpus, allow_negative_numbers = true, value_name = "N")]
    pub gpus: u32,
    /// Any of these models; repeat it or separate with commas. Without it: any at all.
    #[arg(long = "model", value_delimiter = ',', value_name = "MODEL")]
    pub models: Vec<String>,
    /// None of these models.
    #[arg(long = "exclude-model", value_delimiter = ',', value_name = "MODEL")]
    pub exclude_models: Vec<String>,
    /// At least this much memory on each GPU, for example 24GiB.
    #[arg(long, value_parser = size, allow_hyphen_values = true, value_name = "SIZE")]
    pub min_vram: Option<ByteSize>,
    /// Only this node.
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// None of these nodes.
    #[arg(long = "exclude-node", value_delimiter = ',', value_name = "NODE")]
    pub exclude_nodes: Vec<String>,
    /// Only nodes of this cluster.
    #[arg(long, value_name = "CLUSTER")]
    pub cluster: Option<String>,
    /// Placements that name the same group are spread over clusters, then nodes.
    #[arg(long, value_name = "GROUP")]
    pub spread_group: Option<String>,
    /// All GPUs must hang on one NUMA node.
    #[arg(long)]
    pub require_numa: bool,
    /// Cores the VM needs, for example 16 or 0.5.
    #[arg(long, value_parser = cores, allow_negative_numbers = true, value_name = "CORES")]
    pub cpu: Option<u64>,
    /// Memory the VM needs, for example 64GiB.
    #[arg(long, value_parser = size, allow_hyphen_values = true, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// How long to hold the GPUs for a VM that does not exist yet. Without it: the controller's default, ten minutes.
    #[arg(long, value_parser = duration, allow_hyphen_values = true, value_name = "DURATION")]
    pub hold: Option<Duration>,
    /// How long to wait for room when nothing fits now. Without it: refuse at once.
    #[arg(long, value_parser = duration, allow_hyphen_values = true, value_name = "DURATION")]
    pub queue: Option<Duration>,
    /// A clustered VM may be taken out of its cluster role, if nothing else is in that. A release does not put it back.
    #[arg(long)]
    pub allow_standalone: bool,
    /// How far to verify in the guest before the placement counts as active.
    #[arg(long, value_enum, default_value_t, value_name = "LEVEL")]
    pub verify: Verify,
    /// With --verify driver-bound: the driver-install command, by its name in the node's settings, to run once in the guest
    /// when it shows the GPUs and no driver runs them.
    #[arg(long, value_name = "COMMAND")]
    pub install_driver: Option<String>,
    /// Where the GPUs go when the placement ends.
    #[arg(long, value_enum, default_value_t, value_name = "WHERE")]
    pub return_to: ReturnTo,
    /// Your own id of this request: the same id again gets the same placement. Without it: a new one.
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    /// Wait until it is active or has failed; progress goes to stderr.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait with --wait.
    #[arg(long, default_value = "30m", value_parser = duration, allow_hyphen_values = true, value_name = "DURATION")]
    pub timeout: Duration,
    /// Form of the answer.
    #[command(flatten)]
    pub output: Output,
}

/// How far to verify in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum Verify {
    /// The host's word is enough.
    #[default]
    None,
    /// The guest lists the devices.
    Visible,
    /// The guest's driver runs them.
    DriverBound,
}

/// Where GPUs go when a placement ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum ReturnTo {
    /// Back to the host.
    #[default]
    Host,
    /// Into the pool of dismounted GPUs.
    Pool,
}

/// `berth commit`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  berth commit render-01 --vm-id 8fce3318-aa0f-4de3-8664-278533573cd2

Not needed where the agent sees the VM by itself.")]
pub struct Commit {
    /// Which placement.
    pub name: String,
    /// The VM's id; may be left out once the agent has reported the VM.
    #[arg(long, value_name = "GUID")]
    pub vm_id: Option<String>,
    /// Refuse unless the placement is at this version.
    #[arg(long, value_parser = counted, allow_negative_numbers = true, value_name = "N")]
    pub version: Option<u64>,
    /// Form of the answer.
    #[command(flatten)]
    pub output: Output,
}

/// `berth release`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  berth release render-01 --wait

Releasing again is no error.")]
pub struct Release {
    /// Which placement.
    pub name: String,
    /// Refuse when the name belongs to another placement by now.
    #[arg(long, value_name = "GUID")]
    pub uid: Option<String>,
    /// Refuse unless the placement is at this version.
    #[arg(long, value_parser = counted, allow_negative_numbers = true, value_name = "N")]
    pub version: Option<u64>,
    /// Wait until the GPUs are free again; progress goes to stderr.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait with --wait.
    #[arg(long, default_value = "45m", value_parser = duration, allow_hyphen_values = true, value_name = "DURATION")]
    pub timeout: Duration,
    /// Form of the answer.
    #[command(flatten)]
    pub output: Output,
}

/// `berth adopt`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  berth adopt --node hv-01 --dry-run            what would be taken over
  berth adopt --node hv-01 --owner team-render
  berth adopt --node hv-01 --vm render-07 --name render-07 --tag env=prod

What was found is shown first. Each VM becomes one placement in one commit; nothing is changed on the host. Doing it \
again is no error: what has a placement is skipped. A release gives the GPUs back as for any other placement, but leaves \
the VM's settings as they are: what they were before its GPUs is not known.")]
pub struct Adopt {
    /// The node whose VMs are looked at.
    #[arg(long, value_name = "NODE")]
    pub node: String,
    /// Only this VM, by name or id; repeat it for several. Without it: every VM of the node that has a device.
    #[arg(long = "vm", value_name = "VM")]
    pub vms: Vec<String>,
    /// Only show what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// What to call the placement; with one VM. Without it placements are called like their VMs.
    #[arg(long, value_name = "NAME", conflicts_with = "name_prefix")]
    pub name: Option<String>,
    /// Put this before the name of each VM.
    #[arg(long, value_name = "TEXT")]
    pub name_prefix: Option<String>,
    /// Whose they are.
    #[arg(long, value_name = "OWNER")]
    pub owner: Option<String>,
    /// A word for whoever sorts placements, mostly KEY=VALUE; repeat it or separate with commas.
    #[arg(long = "tag", value_delimiter = ',', value_name = "TAG")]
    pub tags: Vec<String>,
    /// Where the GPUs go when a placement ends.
    #[arg(long, value_enum, default_value_t, value_name = "WHERE")]
    pub return_to: ReturnTo,
    /// Form of the answer.
    #[command(flatten)]
    pub output: Output,
}

/// `berth plan`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  berth plan -f workloads.yaml                      against the fleet as it is now
  berth plan -f workloads.yaml --fleet fleet.yaml   against a fleet described in a file, without a controller

A workload file is a list; the keys are those of a request in the API:
  - name: render
    gpus: 2
    models: [A16]
    count: 20          # twenty of them: render-01 to render-20
  - name: train
    gpus: 8
    min_vram_bytes: 80GiB
    resources: { cpu_milli: 96000, memory_bytes: 1TiB }

Exits with 0 when everything fits and with 3 when something does not.")]
pub struct Plan {
    /// The workloads, as YAML or JSON.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: PathBuf,
    /// Plan against this described fleet (YAML or CSV as for `berth dev`), everything in it free.
    #[arg(long, value_name = "FILE")]
    pub fleet: Option<PathBuf>,
    /// Form of the answer.
    #[command(flatten)]
    pub output: Output,
}

/// `berth backup`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  berth backup berth-2026-11-22.backup

The file is consistent at one revision and checked as it is written. `berth-controller restore FILE` puts it back; see \
docs/backup.md.")]
pub struct Backup {
    /// The file to write.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Replace the file if it is there.
    #[arg(long)]
    pub force: bool,
}

/// `berth audit`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  berth audit --placement render-07
  berth audit --verify                          checks it, prints its head
  berth audit --verify --head 812:9f2c…         and that this head is in it
  berth audit --after 812 -o json               what came since, to put away

Every record of a change is as durable as the change itself. The chain shows whether records were changed, removed or \
inserted; whoever can write to the store can make all of it anew, unless a head was written down elsewhere.")]
pub struct Audit {
    /// Check the chain, and say where it ends. Records are not printed then, unless a form is asked for.
    #[arg(long)]
    pub verify: bool,
    /// Only of this placement.
    #[arg(long, value_name = "NAME")]
    pub placement: Option<String>,
    /// Only what is in blocks after this one.
    #[arg(long, value_parser = counted, allow_negative_numbers = true, value_name = "BLOCK", default_value_t = 0)]
    pub after: u64,
    /// A head that was printed before, NUMBER:HASH; it must be part of the chain.
    #[arg(long, value_name = "HEAD", value_parser = head, requires = "verify")]
    pub head: Option<(u64, String)>,
    /// Form of the answer.
    #[arg(short = 'o', long = "output", value_enum, value_name = "FORM", help_heading = "Output")]
    pub format: Option<Format>,
}

/// Reads NUMBER:HASH.
fn head(text: &str) -> Result<(u64, String), String> {
    let form = || "a head has the form NUMBER:HASH, as berth audit --verify prints it".to_owned();
    let (number, hash) = text.split_once(':').ok_or_else(form)?;
    let number = number.parse().map_err(|_| form())?;
    let whole = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if whole { Ok((number, hash.to_owned())) } else { Err(form()) }
}

/// What can be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum Watched {
    /// Placements.
    #[default]
    Placements,
    /// GPUs.
    Gpus,
}

/// `berth watch`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  berth watch                       placements: those that are live, then every change
  berth watch gpus -o json          one JSON object a line

Ends with Ctrl-C.")]
pub struct Watch {
    /// What to watch.
    #[arg(default_value = "placements")]
    pub kind: Watched,
    /// Form of the answer; JSON comes one object a line.
    #[command(flatten)]
    pub output: Output,
}

fn gpus(text: &str) -> Result<u32, String> {
    whole(text, 1, MAX_GPUS_PER_REQUEST)
}

#[cfg(feature = "dev")]
fn nodes(text: &str) -> Result<u32, String> {
    whole(text, 1, 10_000)
}

/// Cores with up to three decimals, as thousandths.
fn cores(text: &str) -> Result<u64, String> {
    let bad = || "write it as a number of cores, like 16 or 0.5, with at most three decimals".to_owned();
    let (whole, rest) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(rest) || rest.len() > 3 {
        return Err(bad());
    }
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let milli: u64 = format!("{rest:0<3}").parse().map_err(|_| bad())?;
    whole.checked_mul(1000).and_then(|cores| cores.checked_add(milli)).ok_or_else(bad)
}

#[cfg(test)]
mod tests;
