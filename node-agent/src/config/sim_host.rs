//! The file that describes a simulated host (TOML):
//!
//! ```toml
//! system = "Azure Stack HCI 23H2 (simulated)"   # optional, as is everything up to the first table
//! cluster = "cluster-a"
//! cpu_cores = 64
//! memory_gib = 512
//! step_ms = 200                                 # how long each step takes; none by default
//! mmio_high_cap_mib = 262656                    # most high MMIO of a VM; without it nothing is assumed
//!
//! [[gpu]]
//! model = "A2"
//! address = "PCIROOT(20)#PCI(0300)#PCI(0000)"
//! serial = "1324421071234"                      # optional
//!
//! [[vm]]
//! id = "8fce3318-aa0f-4de3-8664-278533573cd2"
//! name = "render-07"
//! clustered = false                             # optional
//! running = false                               # optional
//! devices = []                                  # addresses of GPUs it has already, given by hand
//!
//! [[fault]]                                     # to see what becomes of one: every such step fails
//! step = "StartVm"
//! error = "the VM failed to start: 0xC035001E"
//! ```

use crate::driver::sim::{Delays, GpuSpec, HostSpec, VmSpec};
use berth_agent_core::plan::wanted_settings;
use berth_model::gpu::SerialNumber;
use berth_model::id::ClusterName;
use berth_model::inventory::{MAX_GPUS_PER_NODE, MAX_VMS_PER_NODE};
use berth_model::node::{HostFacts, Platform};
use berth_model::pci::DeviceAddress;
use berth_model::placement::StepKind;
use berth_model::vm::VmState;
use berth_model::{ModelName, NodeName, VmId, VmName};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Why a host description cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read the description of the simulated host {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("description of the simulated host {path}: {why}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong, one problem a line.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostFile {
    #[serde(default = "default_system")]
    system: String,
    cluster: Option<String>,
    #[serde(default = "default_cores")]
    cpu_cores: u32,
    #[serde(default = "default_memory")]
    memory_gib: u32,
    #[serde(default)]
    step_ms: u32,
    mmio_high_cap_mib: Option<u64>,
    #[serde(default)]
    gpu: Vec<GpuEntry>,
    #[serde(default)]
    vm: Vec<VmEntry>,
    #[serde(default)]
    fault: Vec<FaultEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultEntry {
    step: String,
    error: String,
}

/// What a description comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// The host.
    pub spec: HostSpec,
    /// How long things take on it.
    pub delays: Delays,
    /// Steps that always fail, and with what.
    pub faults: Vec<(StepKind, String)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GpuEntry {
    model: String,
    address: String,
    serial: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmEntry {
    id: String,
    name: String,
    #[serde(default)]
    clustered: bool,
    #[serde(default)]
    running: bool,
    #[serde(default)]
    devices: Vec<String>,
}

fn default_system() -> String {
    "simulated host".to_owned()
}

fn default_cores() -> u32 {
    64
}

fn default_memory() -> u32 {
    512
}

/// Reads the description of the host that `node` speaks for.
///
/// # Errors
/// [`enum@Error`], naming every bad entry.
pub fn read(path: &Path, node: &NodeName) -> Result<Described, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    parse(&text, node).map_err(|why| Error::Bad { path: path.to_owned(), why })
}

fn parse(text: &str, node: &NodeName) -> Result<Described, String> {
    let HostFile { system, cluster, cpu_cores, memory_gib, step_ms, mmio_high_cap_mib, gpu, vm, fault } =
        toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    let mut problems = Vec::new();
    if gpu.len() > MAX_GPUS_PER_NODE {
        problems.push(format!("gpu: {} entries, at most {MAX_GPUS_PER_NODE} are allowed", gpu.len()));
    }
    if vm.len() > MAX_VMS_PER_NODE {
        problems.push(format!("vm: {} entries, at most {MAX_VMS_PER_NODE} are allowed", vm.len()));
    }
    let cluster = cluster.and_then(|text| parsed::<ClusterName>(&mut problems, "cluster", &text));
    let mut addresses = BTreeSet::new();
    let mut gpus = Vec::new();
    for (at, entry) in gpu.into_iter().enumerate() {
        let model = parsed::<ModelName>(&mut problems, &format!("gpu[{at}].model"), &entry.model);
        let address = parsed::<DeviceAddress>(&mut problems, &format!("gpu[{at}].address"), &entry.address);
        let serial = entry
            .serial
            .map(|text| SerialNumber::new(text).map_err(|error| problems.push(format!("gpu[{at}].serial: {error}"))));
        if let Some(address) = &address
            && !addresses.insert(address.clone())
        {
            problems.push(format!("gpu[{at}].address: {address} is listed twice"));
        }
        if let (Some(model), Some(address)) = (model, address) {
            let gpu = GpuSpec::of(&model, address);
            gpus.push(match serial {
                Some(Ok(serial)) => gpu.with_serial(serial),
                Some(Err(())) | None => gpu,
            });
        }
    }
    let mut ids = BTreeSet::new();
    let mut vms = Vec::new();
    for (at, VmEntry { id, name, clustered, running, devices }) in vm.into_iter().enumerate() {
        let id = parsed::<VmId>(&mut problems, &format!("vm[{at}].id"), &id);
        let name = parsed::<VmName>(&mut problems, &format!("vm[{at}].name"), &name);
        if let Some(id) = &id
            && !ids.insert(id.clone())
        {
            problems.push(format!("vm[{at}].id: {id} is listed twice"));
        }
        let mut given = Vec::new();
        for (which, text) in devices.iter().enumerate() {
            let field = format!("vm[{at}].devices[{which}]");
            if let Some(address) = parsed::<DeviceAddress>(&mut problems, &field, text) {
                if !addresses.contains(&address) {
                    problems.push(format!("{field}: no gpu has the address {address}"));
                }
                given.push(address);
            }
        }
        if let (Some(id), Some(name)) = (id, name) {
            let state = if running { VmState::Running } else { VmState::Off };
            let mut vm = VmSpec { clustered, state, ..VmSpec::new(id, name) };
            if !given.is_empty() {
                // As whoever gave it to them by hand had to set it.
                let of = |address: &DeviceAddress| gpus.iter().find(|gpu| gpu.address == *address);
                let sizes: Vec<_> = given.iter().filter_map(of).map(|gpu| gpu.survey.mmio).collect();
                vm.settings = wanted_settings(&vm.settings, &sizes);
            }
            vm.devices = given;
            vms.push(vm);
        }
    }
    let mut faults = Vec::new();
    for (at, FaultEntry { step, error }) in fault.into_iter().enumerate() {
        match StepKind::ALL.into_iter().find(|kind| kind.name() == step) {
            Some(kind) => faults.push((kind, error)),
            None => {
                let known = StepKind::ALL.map(StepKind::name).join(", ");
                problems.push(format!("fault[{at}].step: {step:?} is not one of: {known}"));
            }
        }
    }
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    let facts = HostFacts {
        platform: Platform::Simulated,
        system,
        cluster,
        cpu_milli: u64::from(cpu_cores) * 1000,
        memory_bytes: u64::from(memory_gib) << 30,
        mmio_high_cap_bytes: mmio_high_cap_mib.map(|mib| mib.saturating_mul(1 << 20)),
        notes: Vec::new(),
    };
    let delays = Delays { step: Duration::from_millis(step_ms.into()), ..Delays::default() };
    Ok(Described { spec: HostSpec { node: node.clone(), facts, gpus, vms }, delays, faults })
}

fn parsed<T: FromStr>(problems: &mut Vec<String>, field: &str, text: &str) -> Option<T>
where
    T::Err: Display,
{
    text.parse().map_err(|error| problems.push(format!("{field}: {error}"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn node() -> NodeName {
        NodeName::new("n1").unwrap()
    }

    #[test]
    fn the_example_in_this_files_head_is_right() {
        let example: String = include_str!("sim_host.rs")
            .lines()
            .skip_while(|line| *line != "//! ```toml")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| format!("{}\n", line.trim_start_matches("//!")))
            .collect();
        let Described { spec, delays, faults } = parse(&example, &node()).unwrap();
        assert_eq!(faults, [(StepKind::StartVm, "the VM failed to start: 0xC035001E".to_owned())]);
        assert_eq!(delays.step, Duration::from_millis(200));
        assert_eq!((spec.gpus.len(), spec.vms.len(), spec.facts.cpu_milli), (1, 1, 64_000));
        assert_eq!(spec.gpus[0].survey.fingerprint.serial, Some(SerialNumber::new("1324421071234").unwrap()));
    }

    #[test]
    fn bad_entries_are_named() {
        fn refuse(text: &str, why: Expect) {
            why.assert_eq(&parse(text, &node()).unwrap_err());
        }
        refuse(
            "gpus = 4\n",
            expect![[r#"
            TOML parse error at line 1, column 1
              |
            1 | gpus = 4
              | ^^^^
            unknown field `gpus`, expected one of `system`, `cluster`, `cpu_cores`, `memory_gib`, `step_ms`, `mmio_high_cap_mib`, `gpu`, `vm`, `fault`"#]],
        );
        refuse(
            r#"
                cluster = "-"
                [[gpu]]
                model = ""
                address = "PCI(0)"
                serial = ""
                [[gpu]]
                model = "A2"
                address = "0000:41:00.0"
                [[gpu]]
                model = "A2"
                address = "0000:41:00.0"
                [[vm]]
                id = "1"
                name = ""
                [[fault]]
                step = "Explode"
                error = "boom"
            "#,
            expect![[r#"
                cluster: cluster name "-" has the character '-' at position 0; allowed are letters, digits, '-', '.', '_', starting with a letter or digit
                gpu[0].model: model name is empty
                gpu[0].address: PCI address "PCI(0)" is neither a location path like PCIROOT(20)#PCI(0300)#PCI(0000) nor a bus address like 0000:41:00.0
                gpu[0].serial: serial number "" is not of the form 1 to 64 printable ASCII characters
                gpu[2].address: 0000:41:00.0 is listed twice
                vm[0].id: VM id "1" is not of the form 8-4-4-4-12 hexadecimal digits
                vm[0].name: VM name is empty
                fault[0].step: "Explode" is not one of: Check, MakeStandalone, StopVm, ConfigureVm, Disable, Dismount, Attach, StartVm, Verify, InstallDriver, Detach, Mount, Enable, RestoreVm"#]],
        );
    }
}
