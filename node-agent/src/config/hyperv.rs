//! Settings of the driver hyperv:
//!
//! ```toml
//! driver = "hyperv"
//!
//! [hyperv]                                        # all of it optional
//! force = false                                   # dismount devices without a mitigation driver all the same
//! accept = []                                     # findings that do not keep a device back: NoAcs, NoIommu, BootDisplay
//! look_seconds = 100                              # how long a look may take
//! step_seconds = 200                              # and one step
//! shutdown_seconds = 320                          # and a guest's shutdown, before its VM is turned off
//! mmio_high_cap_mib = 131072                      # most high MMIO that Set-VM takes here; without it nothing is assumed
//!
//! [hyperv.guest]                                  # to ask guests what they see; all of it optional
//! credential = "guest.xml"                        # Windows guests: by Export-Clixml, for the agent's own account
//! user = "berth"                                  # Linux guests: by ssh, with this user,
//! identity = "guest_ed25519"                      # this private key, which nobody else can read,
//! known_hosts = "guest_known_hosts"               # and the guests' host keys, each under its VM's id
//! port = 22
//! connect_seconds = 5                             # how long one address may take to accept the connection
//!
//! [hyperv.guest.install.nvidia]                   # what a placement may have run in its guest, by this name
//! linux = ["sudo", "-n", "/usr/local/sbin/install-driver"]
//! seconds = 600
//! ```

mod guest;
mod install;

use crate::driver::hyperv::Options;
use berth_model::gpu::Finding;
use berth_model::mmio::HIGH_BASE_BYTES;
use clap::Args;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One source's word on them.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layer {
    /// With the driver hyperv: Windows PowerShell 5.1, if it is not where Windows has it.
    #[arg(long = "hyperv-powershell", value_name = "FILE")]
    powershell: Option<PathBuf>,
    /// With the driver hyperv: whether to dismount with -Force.
    #[arg(long = "hyperv-force", value_name = "BOOL")]
    force: Option<bool>,
    /// With the driver hyperv: findings of surveys that do not keep a device from being offered.
    #[arg(long = "hyperv-accept", value_name = "FINDING", value_delimiter = ',')]
    accept: Option<Vec<String>>,
    /// With the driver hyperv: how long a look may take.
    #[arg(long = "hyperv-look-seconds", value_name = "SECONDS")]
    look_seconds: Option<u32>,
    /// With the driver hyperv: how long a step may take.
    #[arg(long = "hyperv-step-seconds", value_name = "SECONDS")]
    step_seconds: Option<u32>,
    /// With the driver hyperv: how long a guest may take to shut down before its VM is turned off.
    #[arg(long = "hyperv-shutdown-seconds", value_name = "SECONDS")]
    shutdown_seconds: Option<u32>,
    /// With the driver hyperv: the most address space above 4 GiB that a VM can have on this host, in MiB, as measured.
    #[arg(long = "hyperv-mmio-high-cap-mib", value_name = "MIB")]
    mmio_high_cap_mib: Option<u64>,
    #[command(flatten)]
    #[serde(default)]
    guest: guest::Layer,
}

/// Names of the variables, for whoever misspells one.
pub(super) fn variables() -> String {
    let own = "_HYPERV_POWERSHELL, _HYPERV_FORCE, _HYPERV_ACCEPT, _HYPERV_LOOK_SECONDS, \
               _HYPERV_STEP_SECONDS, _HYPERV_SHUTDOWN_SECONDS, \
               _HYPERV_MMIO_HIGH_CAP_MIB";
    format!("{own}, {}", guest::VARIABLES)
}

/// Takes in a variable's value.
fn read<T: std::str::FromStr>(into: &mut Option<T>, value: &str, what: &str) -> Result<(), String> {
    *into = Some(value.parse().map_err(|_| format!("{value:?} is not {what}"))?);
    Ok(())
}

impl Layer {
    /// What a file names lies beside that file.
    pub(super) fn lies_in(&mut self, dir: &Path) {
        if let Some(path) = &mut self.powershell {
            *path = dir.join(&path);
        }
        self.guest.lies_in(dir);
    }

    /// Takes in a variable by the rest of its name; `None` when there is no such.
    pub(super) fn variable(&mut self, name: &str, value: &str) -> Option<Result<(), String>> {
        if let Some(rest) = name.strip_prefix("GUEST_") {
            return self.guest.variable(rest, value);
        }
        let seconds = "a whole number of seconds";
        Some(match name {
            "POWERSHELL" => read(&mut self.powershell, value, "a path"),
            "FORCE" => read(&mut self.force, value, "true or false"),
            "ACCEPT" => {
                self.accept = Some(value.split(',').map(|name| name.trim().to_owned()).collect());
                Ok(())
            }
            "LOOK_SECONDS" => read(&mut self.look_seconds, value, seconds),
            "STEP_SECONDS" => read(&mut self.step_seconds, value, seconds),
            "SHUTDOWN_SECONDS" => read(&mut self.shutdown_seconds, value, seconds),
            "MMIO_HIGH_CAP_MIB" => read(&mut self.mmio_high_cap_mib, value, "a whole number of MiB"),
            _ => return None,
        })
    }
}

/// Shortest limit: below it, nothing but a look at an idle host would ever end in time.
const LEAST: u32 = 2;
/// Longest limits: the reconcile loop has its own for what a driver's own should have ended long before.
const MOST: [(&str, u32); 3] = [("look_seconds", 100), ("step_seconds", 290), ("shutdown_seconds", 390)];

/// The largest cap that is believed: 52 bits of address space, more than any processor has.
const MOST_CAP_MIB: u64 = 1 << 32;

/// Puts the layers together, strongest first. `system` is where Windows is, if this is one.
pub(super) fn options(
    layers: &[&Layer],
    system: Option<&Path>,
    problem: &mut impl FnMut(&str, String),
) -> Option<Options> {
    let powershell = layers.iter().find_map(|l| l.powershell.clone());
    let powershell = powershell.or_else(|| system.map(|root| root.join(crate::driver::hyperv::script::PROGRAM)));
    let Some(powershell) = powershell else {
        problem(
            "hyperv.powershell",
            "is missing: this is no Windows, which has Windows PowerShell 5.1 where it belongs; use the driver hyperv on a \
             Windows Server with the Hyper-V role, or name a PowerShell to try it with"
                .to_owned(),
        );
        return None;
    };
    let mut options = Options::new(powershell);
    let mut right = true;
    let mut bad = |setting: &str, why: String| {
        right = false;
        problem(setting, why);
    };
    options.force = layers.iter().find_map(|l| l.force).unwrap_or(options.force);
    let may: Vec<_> = Finding::ALL.into_iter().filter(|finding| finding.overridable()).collect();
    for name in layers.iter().find_map(|l| l.accept.as_ref()).into_iter().flatten() {
        match may.iter().find(|finding| finding.name() == name) {
            Some(finding) => options.accept.push(*finding),
            None => {
                let names: Vec<_> = may.iter().map(|finding| finding.name()).collect();
                bad(
                    "hyperv.accept",
                    format!("{name:?} is nothing that can be accepted; there are {}", names.join(", ")),
                );
            }
        }
    }
    // What force overrides is no reason against a device either.
    if options.force && !options.accept.contains(&Finding::NoAcs) {
        options.accept.push(Finding::NoAcs);
    }
    // Relative ones would be somewhere else each time it is started.
    if !options.powershell.is_absolute() {
        bad("hyperv.powershell", format!("{} is not a whole path", options.powershell.display()));
    }
    let guests: Vec<_> = layers.iter().map(|layer| &layer.guest).collect();
    (options.guest_credential, options.guest_login) = guest::ways(&guests, system, &mut bad);
    if let Some(layer) = guests.iter().find(|layer| !layer.install.is_empty()) {
        options.guest_installs = install::commands(&layer.install, &mut bad);
    }
    let given = [
        layers.iter().find_map(|l| l.look_seconds),
        layers.iter().find_map(|l| l.step_seconds),
        layers.iter().find_map(|l| l.shutdown_seconds),
    ];
    let limits = [&mut options.look, &mut options.step, &mut options.shutdown];
    for ((given, limit), (name, most)) in given.into_iter().zip(limits).zip(MOST) {
        match given {
            Some(seconds) if (LEAST..=most).contains(&seconds) => *limit = Duration::from_secs(seconds.into()),
            Some(seconds) => bad(&format!("hyperv.{name}"), format!("{seconds} is not from {LEAST} to {most}")),
            None => {}
        }
    }
    let cap = layers.iter().find_map(|l| l.mmio_high_cap_mib);
    match cap.map(|mib| (mib, mib.checked_mul(1 << 20))) {
        // Hyper-V gives every VM as much without being asked.
        Some((mib, Some(bytes))) if bytes >= HIGH_BASE_BYTES && mib <= MOST_CAP_MIB => {
            options.mmio_high_cap_bytes = Some(bytes);
        }
        Some((mib, _)) => {
            bad("hyperv.mmio_high_cap_mib", format!("{mib} is not from {} to {MOST_CAP_MIB}", HIGH_BASE_BYTES >> 20));
        }
        None => {}
    }
    right.then_some(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn read(text: &str, system: Option<&str>) -> Result<Options, String> {
        let layer: Layer = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut problems = String::new();
        let options = options(&[&Layer::default(), &layer], system.map(Path::new), &mut |setting, why| {
            problems.push_str(&format!("{setting}: {why}\n"));
        });
        options.ok_or(problems)
    }

    fn refuse(text: &str, system: Option<&str>, why: &Expect) {
        why.assert_eq(&read(text, system).unwrap_err());
    }

    #[test]
    fn the_example_in_this_files_head_is_what_is_usual() {
        let example: String = include_str!("hyperv.rs")
            .lines()
            .skip_while(|line| *line != "//! [hyperv]                                        # all of it optional")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .filter(|line| !line.contains("mmio_high_cap_mib"))
            .take_while(|line| !line.contains("[hyperv.guest]"))
            .map(|line| format!("{}\n", line.trim_start_matches("//!")))
            .collect();
        let usual = Options::new(Path::new("/w").join(crate::driver::hyperv::script::PROGRAM));
        assert_eq!(read(&example, Some("/w")).unwrap(), usual);
        assert_eq!(read("", Some("/w")).unwrap(), usual);
    }

    /// The longest look that these settings allow ends by its own limits, not by the reconcile loop's.
    #[test]
    fn the_longest_look_is_not_cut_off() {
        use crate::driver::hyperv::{END, START};
        let most = |name: &str| {
            MOST.iter().find(|(of, _)| *of == name).map(|(_, seconds)| Duration::from_secs((*seconds).into())).unwrap()
        };
        let longest = most("step_seconds") + END + START + 2 * most("look_seconds") + END;
        assert!(longest <= crate::reconcile::Limits::default().look, "{longest:?}");
    }

    #[test]
    fn what_cannot_be_is_named_with_what_to_do() {
        refuse(
            "",
            None,
            &expect![[r#"
            hyperv.powershell: is missing: this is no Windows, which has Windows PowerShell 5.1 where it belongs; use the driver hyperv on a Windows Server with the Hyper-V role, or name a PowerShell to try it with
        "#]],
        );
        refuse(
            "powershell = \"pwsh\"\nlook_seconds = 1\nstep_seconds = 291\nmmio_high_cap_mib = 64\n[guest]\ncredential = \"g.xml\"\nuser = \"-l\"\n",
            None,
            &expect![[r#"
                hyperv.powershell: pwsh is not a whole path
                hyperv.guest.credential: g.xml is not a whole path
                hyperv.guest.user: "-l" is no name of a user
                hyperv.guest.identity: is missing: Linux guests are asked with user, identity and known_hosts, all three
                hyperv.guest.known_hosts: is missing: Linux guests are asked with user, identity and known_hosts, all three
                hyperv.look_seconds: 1 is not from 2 to 100
                hyperv.step_seconds: 291 is not from 2 to 290
                hyperv.mmio_high_cap_mib: 64 is not from 512 to 4294967296
            "#]],
        );
        refuse(
            "accept = [\"NoAcs\", \"HostEdition\"]\n",
            Some("/w"),
            &expect![[r#"
            hyperv.accept: "HostEdition" is nothing that can be accepted; there are NoAcs, NoIommu, BootDisplay
        "#]],
        );
        assert_eq!(
            read("accept = [\"NoIommu\"]\nforce = true", Some("/w")).unwrap().accept,
            [Finding::NoIommu, Finding::NoAcs]
        );
        assert!(read("command = \"Get-VM\"\n", Some("/w")).unwrap_err().contains("unknown field"));
        assert!(read("step_seconds = -1\n", Some("/w")).is_err());
    }

    #[test]
    fn the_ways_into_guests_are_read_as_in_this_files_head() {
        let example: String = include_str!("hyperv.rs")
            .lines()
            .skip_while(|line| !line.starts_with("//! [hyperv.guest]"))
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| format!("{}\n", line.trim_start_matches("//!").replace("[hyperv.", "[")))
            .collect();
        let mut layer: Layer = toml::from_str(&format!("[guest]\n{example}")).unwrap();
        layer.lies_in(Path::new("/etc/berth"));
        let options =
            options(&[&layer], Some(Path::new("/w")), &mut |setting, why| panic!("{setting}: {why}")).unwrap();
        assert_eq!(options.guest_credential.as_deref(), Some(Path::new("/etc/berth/guest.xml")));
        let install = &options.guest_installs["nvidia"];
        assert_eq!((install.linux.as_ref().map_or(0, Vec::len), install.limit), (3, Duration::from_secs(600)));
        let login = options.guest_login.unwrap();
        assert_eq!(login.program, Path::new("/w").join(crate::driver::guest::ssh::PROGRAM));
        assert_eq!((login.user.as_str(), login.port, login.connect), ("berth", 22, Duration::from_secs(5)));
        assert_eq!(login.identity, Path::new("/etc/berth/guest_ed25519"));
        assert_eq!(login.known_hosts, Path::new("/etc/berth/guest_known_hosts"));
        refuse(
            "[guest]\nuser = \"berth\"\nidentity = \"/a%h\"\nknown_hosts = \"/k\"\nport = 0\nconnect_seconds = 61\n",
            Some("/w"),
            &expect![[r#"
                hyperv.guest.identity: /a%h has a character that OpenSSH takes for something else
                hyperv.guest.port: 0 is no port
                hyperv.guest.connect_seconds: 61 is not from 1 to 60
            "#]],
        );
        assert!(read("[guest]\npassword = \"x\"\n", Some("/w")).unwrap_err().contains("unknown field"));
    }

    #[test]
    fn variables_are_read_by_their_names() {
        let mut layer = Layer::default();
        assert_eq!(layer.variable("FORCE", "true"), Some(Ok(())));
        assert_eq!(layer.variable("LOOK_SECONDS", "30"), Some(Ok(())));
        assert!(layer.variable("STEP_SECONDS", "soon").unwrap().unwrap_err().contains("whole number"));
        assert_eq!(layer.variable("MMIO_HIGH_CAP_MIB", "131072"), Some(Ok(())));
        let capped = options(&[&layer], Some(Path::new("/w")), &mut |setting, why| panic!("{setting}: {why}"));
        assert_eq!(capped.unwrap().mmio_high_cap_bytes, Some(128 << 30));
        assert_eq!(layer.variable("GUEST_USER", "berth"), Some(Ok(())));
        assert!(layer.variable("GUEST_PORT", "ssh").unwrap().is_err());
        assert_eq!((layer.variable("SCRIPT", "x"), layer.variable("GUEST_PASSWORD", "x")), (None, None));
        assert_eq!((layer.force, layer.look_seconds), (Some(true), Some(30)));
    }
}
