//! Taking over what is on a host already, by the real programs: the host is not touched, and whoever is killed when, nothing
//! is doubled.

use super::READY;
use anyhow::{Context as _, ensure};
use berth_tests::process::{Process, Ran, binary, free_port, other, run, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// VMs with a GPU each, given by hand; two more cannot be adopted.
const VMS: usize = 24;

struct Site {
    dir: tempfile::TempDir,
    listen: String,
    controller: Option<Process>,
    agent: Process,
}

fn address(slot: usize) -> String {
    format!("PCIROOT({:X})#PCI(0300)#PCI(0000)", slot + 1)
}

/// The host as its file describes it.
fn description() -> anyhow::Result<String> {
    let mut host = String::from("mmio_high_cap_mib = 40000\n");
    for slot in 0..VMS + 4 {
        writeln!(host, "[[gpu]]\nmodel = \"A2\"\naddress = {:?}", address(slot))?;
    }
    for slot in 0..VMS + 2 {
        writeln!(host, "[[vm]]\nid = \"8fce3318-aa0f-4de3-8664-2785335{slot:05}\"\nname = \"vm {slot:02}\"")?;
        let devices = if slot == VMS + 1 { String::new() } else { format!("{:?}", address(slot)) };
        writeln!(host, "running = {}\ndevices = [{devices}]\nclustered = {}", !devices.is_empty(), slot == VMS)?;
    }
    Ok(host)
}

impl Site {
    fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("host.toml"), description()?)?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let mut agent = other(binary("berth-agent")?);
        agent.args(["--node", "n1", "--controller", &format!("http://{listen}"), "--driver", "sim"]);
        agent.arg("--sim-host").arg(dir.path().join("host.toml")).arg("--data-dir").arg(dir.path().join("agent"));
        let agent = Process::start(agent)?;
        let mut site = Self { dir, listen, controller: None, agent };
        site.start_controller()?;
        Ok(site)
    }

    fn start_controller(&mut self) -> anyhow::Result<()> {
        let mut controller = other(binary("berth-controller")?);
        controller.args(["--listen", &self.listen, "--data-dir"]).arg(self.dir.path().join("controller"));
        for setting in ["agents.heartbeat=500ms", "agents.observe=1s", "check_interval=1s"] {
            controller.args(["--set", setting]);
        }
        self.controller = Some(Process::start(controller)?);
        let mut last = None;
        let ready = wait_until(READY, || {
            let ran = self.berth(&["get", "nodes", "n1", "-o", "json"])?;
            let ready = ran.code == Some(0) && ran.json().is_ok_and(|node| node["ready"] == true);
            last = Some(ran);
            Ok(ready)
        })?;
        ensure!(ready, "the node is not ready: {last:?}\n{}", self.log());
        Ok(())
    }

    fn log(&self) -> String {
        let controller = self.controller.as_ref().map(Process::log).unwrap_or_default();
        format!("---- agent\n{}\n---- controller\n{controller}", self.agent.log())
    }

    fn berth(&self, args: &[&str]) -> anyhow::Result<Ran> {
        let mut berth = other(binary("berth")?);
        berth.args(args).env("BERTH_ENDPOINT", format!("http://{}", self.listen));
        run(berth)
    }

    fn ok(&self, args: &[&str]) -> anyhow::Result<Ran> {
        self.berth(args)?.expect(0).with_context(|| self.log())
    }

    /// What the simulated host is, as its file has it.
    fn host(&self) -> anyhow::Result<Value> {
        let text = std::fs::read_to_string(self.dir.path().join("agent").join("host.json"))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Each claimed GPU and its placement.
    fn claims(&self) -> anyhow::Result<Vec<(String, String)>> {
        let gpus = self.ok(&["get", "gpus", "-o", "json"])?.json()?;
        let pair = |gpu: &Value| Some((gpu["id"].as_str()?.to_owned(), gpu["placement"].as_str()?.to_owned()));
        Ok(gpus["gpus"].as_array().into_iter().flatten().filter_map(pair).filter(|(_, p)| !p.is_empty()).collect())
    }

    fn violations(&self) -> anyhow::Result<Value> {
        Ok(self.ok(&["status", "-o", "json"])?.json()?["violations"].clone())
    }
}

#[test]
fn a_controller_killed_while_it_adopts_goes_on_and_nothing_is_doubled_and_the_host_is_not_touched() -> anyhow::Result<()>
{
    let mut site = Site::start()?;
    let before = site.host()?;
    let table = site.ok(&["adopt", "--node", "n1", "--dry-run"])?.stdout;
    ensure!(table.contains("24 VMs can be adopted, 1 skipped") && table.contains("skipped (Clustered)"), "{table}");
    ensure!(site.claims()?.is_empty(), "a dry run claimed something");

    // One alone, under a name of its own; then all, several at once, with the controller killed in the midst of it.
    site.ok(&["adopt", "--node", "n1", "--vm", "vm 03", "--name", "third", "--owner", "anna"])?;
    let mut killed_between = 0;
    for round in 1..=6 {
        let several: Vec<_> = (0..2)
            .map(|_| {
                let mut adopt = other(binary("berth")?);
                adopt.args(["adopt", "--node", "n1", "--deadline", "2s", "-o", "json"]);
                adopt.env("BERTH_ENDPOINT", format!("http://{}", site.listen));
                Process::start(adopt)
            })
            .collect::<anyhow::Result<_>>()?;
        let target = (VMS * round / 7).max(2);
        wait_until(std::time::Duration::from_millis(300), || Ok(site.claims()?.len() >= target))?;
        site.controller.take().context("no controller")?.kill()?;
        for mut process in several {
            ensure!(process.ended_within(READY)?.is_some(), "berth adopt does not end:\n{}", site.log());
        }
        site.start_controller()?;
        let claimed = site.claims()?.len();
        killed_between += usize::from(claimed > 1 && claimed < VMS);
    }
    println!("{killed_between} of 6 kills left some adopted and some not");
    site.ok(&["adopt", "--node", "n1"])?;
    let again = site.ok(&["adopt", "--node", "n1", "-o", "json"])?.json()?;
    let skipped =
        |reason: &str| again["vms"].as_array().into_iter().flatten().filter(|vm| vm["reason"] == reason).count();
    ensure!((skipped("AlreadyPlaced"), skipped("Clustered")) == (VMS, 1), "{again:#}");

    let claims = site.claims()?;
    let owners: BTreeSet<_> = claims.iter().map(|(_, placement)| placement.clone()).collect();
    ensure!((claims.len(), owners.len()) == (VMS, VMS), "{claims:?}");
    ensure!(owners.contains("third") && owners.contains("vm-00"), "{owners:?}");
    let placements = site.ok(&["get", "placements", "--all", "-o", "json"])?.json()?;
    let placements = placements["placements"].as_array().cloned().unwrap_or_default();
    ensure!(placements.len() == VMS && placements.iter().all(|p| p["phase"] == "PHASE_ACTIVE"), "{placements:#?}");
    ensure!(site.host()? == before, "the host was changed:\n{}", site.log());
    ensure!(site.violations()?.is_null(), "{}", site.violations()?);

    // It ends as any other, whatever it was before: its VM off, its GPU back in the host, its settings left alone.
    let told = site.ok(&["describe", "placement", "third"])?.stdout;
    ensure!(told.contains("anna") && told.contains("settings before its GPUs are not known"), "{told}");
    site.ok(&["release", "third", "--wait"])?;
    let free = site.ok(&["get", "gpus", &format!("n1/{}", address(3)), "-o", "json"])?.json()?;
    ensure!(free["available"] == true && free["observed"]["state"] == "GPU_STATE_HOST", "{free:#}");
    let drift = site.ok(&["get", "drift", "--node", "n1"])?.stdout;
    ensure!(
        drift.contains("AssignedByHand") && drift.lines().count() == 2,
        "only the clustered VM's is left:\n{drift}"
    );
    Ok(())
}

#[test]
fn what_a_vm_can_have_no_address_space_for_is_refused_with_the_numbers() -> anyhow::Result<()> {
    let site = Site::start()?;
    let refused = site.berth(&["place", "two", "--vm", "new", "--gpus", "2"])?.expect(3)?;
    let needs = "needs 66080 MiB of high MMIO for 2 × A2, the node allows a VM 40000 MiB";
    ensure!(refused.stderr.contains(needs), "{refused:?}");
    let (_kept, file) = super::file("workloads.yaml", "- name: pair\n  gpus: 2\n")?;
    let planned = site.berth(&["plan", "-f", &file])?.expect(3)?;
    ensure!(planned.stdout.contains(needs), "{planned:?}");
    let capacity = site.ok(&["capacity"])?.stdout;
    ensure!(capacity.contains("On 1 node a VM can have at most 1 × A2, by address space: 2 would need"), "{capacity}");
    let node = site.ok(&["describe", "node", "n1"])?.stdout;
    ensure!(node.contains("A VM can have at most 1 of 28 A2: 2 need"), "{node}");
    let gpu = site.ok(&["describe", "gpu", &format!("n1/{}", address(VMS + 2))])?.stdout;
    ensure!(gpu.contains("needs 3072 MiB of low and 33312 MiB of high MMIO alone; n1 allows 40000 MiB high"), "{gpu}");
    Ok(())
}
