//! A stand-in for a Hyper-V host's PowerShell, for measuring the agent: it speaks the lines of the host script, takes no
//! time, and writes down when it was asked and when it had answered.
//!
//! One card, one VM, every step works. What a host really does, and how long it takes, is not its business.

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Its card's place.
const GPU: &str = "PCIROOT(0)#PCI(0301)#PCI(0000)";
const TAIL: &str = "VEN_10DE&DEV_25B6&SUBSYS_157E10DE&REV_A1\\4&23AD3A43&0&0019";
/// Its VM's id.
pub(super) const VM: &str = "8fce3318-aa0f-4de3-8664-278533573cd2";
const SPOKEN: u64 = berth_node_agent::driver::hyperv::script::PROTOCOL;

/// What it is told.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Where it writes down what it was asked.
    log: PathBuf,
    /// What PowerShell would be started with.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    ignored: Vec<String>,
}

/// One request, by when it came and when it was answered, since the stand-in began.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) op: String,
    pub(super) came: Duration,
    pub(super) answered: Duration,
}

/// Reads what was written down so far.
///
/// # Errors
/// When there is nothing, or something else.
pub(super) fn asked(log: &Path) -> anyhow::Result<Vec<Asked>> {
    let text = std::fs::read_to_string(log).context("the stand-in was never asked")?;
    // The last line may be half written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| read(line).with_context(|| format!("cannot make sense of {line:?}"))).collect()
}

fn read(line: &str) -> Option<Asked> {
    let mut words = line.split(' ');
    let (op, came, answered) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Asked { op: op.to_owned(), came: Duration::from_nanos(came), answered: Duration::from_nanos(answered) })
}

/// Answers until the input ends.
///
/// # Errors
/// When it is asked something that it does not know.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(&options.log)?;
    let mut host = Host { disabled: false, dismounted: false, listed: false, running: false, settings: fresh() };
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let came = begun.elapsed();
        let request: Value = serde_json::from_str(&line).context("no JSON")?;
        let op = request["op"].as_str().context("no operation")?;
        let result = host.answer(op, &request["args"])?;
        writeln!(out, "{}", json!({ "id": request["id"], "ok": true, "result": result }))?;
        out.flush()?;
        writeln!(log, "{op} {} {}", came.as_nanos(), begun.elapsed().as_nanos())?;
    }
    Ok(())
}

fn fresh() -> Value {
    json!({
        "stop_action": "Save", "guest_cache_types": false, "mmio_low_bytes": 128 << 20, "mmio_high_bytes": 512 << 20,
        "dynamic_memory": false, "memory_minimum_bytes": 1_u64 << 30, "memory_maximum_bytes": 64_u64 << 30,
        "checkpoint_type": "Production", "automatic_checkpoints": true,
    })
}

/// The host's state.
struct Host {
    disabled: bool,
    dismounted: bool,
    listed: bool,
    running: bool,
    settings: Value,
}

impl Host {
    fn answer(&mut self, op: &str, args: &Value) -> anyhow::Result<Value> {
        match op {
            "hello" => {
                return Ok(json!({
                    "protocol": SPOKEN, "powershell": "0", "edition": "stand-in", "computer": "NODE1", "culture": "",
                    "modules": { "Hyper-V": "2.0.0.0" }, "missing": [], "absent": [],
                }));
            }
            "observe" => return Ok(self.look()),
            "survey" => return Ok(Self::survey()),
            "configure-vm" => {
                for (name, value) in args["settings"].as_object().into_iter().flatten() {
                    self.settings[name] = value.clone();
                }
            }
            "disable" => self.disabled = true,
            "enable" => self.disabled = false,
            "dismount" => self.dismounted = true,
            "mount" => self.dismounted = false,
            "attach" => self.listed = true,
            "detach" => self.listed = false,
            "start-vm" => self.running = true,
            "stop-vm" => self.running = false,
            other => bail!("nobody knows how to {other} here"),
        }
        Ok(json!({ "changed": true, "seen": {} }))
    }

    fn look(&self) -> Value {
        let function = json!({
            "location_path": GPU, "instance_id": format!("PCI\\{TAIL}"), "base_class": 3, "sub_class": 2,
            "problem": if self.disabled { 22 } else { 28 }, "status": "Error", "name": "3D Video Controller",
            "class": null, "service": null, "manufacturer": null,
        });
        let pooled = json!({ "location_path": GPU, "instance_id": format!("PCIP\\{TAIL}"), "base_class": 3, "native_pool": null });
        let record = json!({ "location_path": GPU, "instance_id": format!("PCIP\\{TAIL}"), "pool": "Primordial" });
        let (functions, pool) = if self.dismounted { (vec![], vec![pooled]) } else { (vec![function], vec![]) };
        json!({
            "boot_time": "2026-11-24T06:12:03Z", "functions": functions, "unreadable": [], "pool": pool, "vms": [{
                "id": VM, "name": "measured", "state": if self.running { "Running" } else { "Off" }, "generation": 2,
                "clustered": false, "role": null, "replication_mode": "None", "start_action": "Nothing",
                "settings": self.settings, "memory_startup_bytes": 4_u64 << 30, "processors": 8, "checkpoints": 0,
                "saved_checkpoints": 0,
                "heartbeat": null, "uptime_seconds": 0, "version": "10.0",
                "devices": if self.listed { vec![record] } else { vec![] },
            }],
        })
    }

    fn survey() -> Value {
        json!({
            "host": {
                "computer": "NODE1", "system": "a stand-in for Windows Server", "version": "0", "boot_time": "2026-11-24T06:12:03Z", "logical_processors": 64, "memory_bytes": 512_u64 << 30,
                "iov_support": true, "iov_support_reasons": [], "cluster": null,
                "policy": { "require_secure": null, "require_supported": null }, "reasons": [],
            },
            "devices": [{
                "location_path": GPU, "instance_id": format!("PCI\\{TAIL}"), "base_class": 3, "sub_class": 2, "problem": 28,
                "name": "3D Video Controller", "measured": true,
                "windows": [{ "start": 0xE100_0000_u64, "length": 16 << 20 }, { "start": 1_u64 << 37, "length": 16_u64 << 30 }],
                "interrupts": [4_294_967_290_u64], "device_type": 2, "bar_types": 0x0100_0100, "interrupt_support": 6,
                "interrupt_messages": 6, "acs": 3, "reserved_memory": false, "on_post_path": false, "numa_node": 1, "serial": null,
                "reasons": [],
            }],
            "unknown": [],
        })
    }
}
