//! `install.ps1`, which puts the Windows agent on a host: what its text may say, and what it does where the commands that are
//! about Windows are played.

use super::text::{Checker, read};
use anyhow::Context as _;
use berth_tests::process::{Ran, binary, other, root, run_within, skip};
use berth_tests::pwsh;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

fn script() -> PathBuf {
    root().join("node-agent").join("windows").join("install.ps1")
}

#[test]
fn it_calls_only_what_is_documented_and_runs_nothing_but_the_agent() {
    let text = std::fs::read_to_string(script()).unwrap();
    assert!(text.is_ascii(), "5.1 takes a file without a byte order mark for ANSI");
    let table = read(&["windows", "install.json"]);
    let checker = Checker::check(&text, &table);
    let lines: Vec<&str> = text.lines().collect();
    // The one thing that is run is named by the script itself, and its arguments are passed as they are.
    let is_agent = |found: &String| {
        let line = found.strip_suffix(": runs what a value says: &").and_then(|line| line.parse::<usize>().ok());
        line.is_some_and(|line| {
            let call = lines[line - 1].trim();
            ["& $exe --config $config --check-config", "& $exe service "].iter().any(|start| call.starts_with(start))
                && !call.contains(['"', '(', ';', '|'])
        })
    };
    let found: Vec<_> = checker.found.iter().filter(|found| !is_agent(found)).collect();
    assert!(found.is_empty(), "{found:#?}");
    for cmdlet in &table.cmdlets {
        assert!(checker.used.contains_key(&cmdlet.name), "{} is in the table and nobody calls it", cmdlet.name);
    }
}

#[test]
fn windows_powershell_5_1_can_read_install_ps1() {
    let test = "5.1 syntax of install.ps1";
    let Some(program) = pwsh::program(test) else { return };
    let mut check = other(program);
    check.arg("-CheckSyntax51").arg(script());
    let ran = run_within(Duration::from_secs(120), check).unwrap();
    match ran.code {
        Some(0) => {}
        Some(1) => panic!("{}{}", ran.stdout, ran.stderr),
        _ => skip(test, "this PowerShell has no -CheckSyntax51"),
    }
}

/// Commands about Windows, played: each writes what it was given into a file.
const PLAYED: &str = r#"
class Rights {
    [string] $Sddl
    [string] $Owner = 'S-1-5-18'
    [object[]] $Rules = @()
    [void] SetSecurityDescriptorSddlForm([string] $Sddl) { $this.Sddl = $Sddl }
    [object] GetOwner([type] $As) { return @{ Value = $this.Owner } }
    [object[]] GetAccessRules([bool] $Explicit, [bool] $Inherited, [type] $As) { return $this.Rules }
}
function Rule([string] $Who, [string] $Type, [int] $Rights) {
    [pscustomobject] @{ IdentityReference = @{ Value = $Who }; AccessControlType = $Type; FileSystemRights = $Rights }
}
function Say([string] $Line) { [System.IO.File]::AppendAllText("$env:BERTH_PLAY/calls", "$Line`n") }
function Get-Service {
    [CmdletBinding()] param()
    $all = @(@{ Name = 'Spooler' })
    if ([System.IO.File]::Exists("$env:BERTH_PLAY/installed")) { $all += @{ Name = 'berth-agent' } }
    $all | ForEach-Object { [pscustomobject] $_ }
}
function Start-Service { [CmdletBinding()] param([string] $Name) Say "start $Name" }
function Stop-Service { [CmdletBinding()] param([string] $Name) Say "stop $Name" }
function Get-Acl {
    [CmdletBinding()] param([string] $LiteralPath)
    $rights = [Rights]::new()
    $rights.Rules = @((Rule 'S-1-5-18' 'Allow' 0x1F01FF), (Rule 'S-1-5-32-545' 'Deny' 0x1F01FF),
        (Rule 'S-1-5-32-545' 'Allow' 0x1200A9))
    # As ProgramData comes, users can make files and folders in it; who made a folder owns it.
    $open = "$env:BERTH_PLAY/open-" + [System.IO.Path]::GetFileName($LiteralPath)
    if ([System.IO.File]::Exists($open)) { $rights.Rules += Rule 'S-1-5-32-545' 'Allow' 0x6 }
    $owner = "$env:BERTH_PLAY/owner-" + [System.IO.Path]::GetFileName($LiteralPath)
    if ([System.IO.File]::Exists($owner)) { $rights.Owner = 'S-1-5-21-1-2-3-1001' }
    $rights
}
function Set-Acl {
    [CmdletBinding()] param([string] $LiteralPath, $AclObject)
    $name = [System.IO.Path]::GetFileName($LiteralPath)
    Say "rights $name $($AclObject.Sddl)"
    foreach ($sign in 'open', 'owner') { [System.IO.File]::Delete("$env:BERTH_PLAY/$sign-$name") }
    # Somebody who was quicker.
    if ([System.IO.File]::Exists("$env:BERTH_PLAY/quick")) {
        [System.IO.File]::WriteAllText([System.IO.Path]::Combine($LiteralPath, 'agent.toml'), 'x')
    }
}
Export-ModuleMember -Function Get-Service, Start-Service, Stop-Service, Get-Acl, Set-Acl
"#;

/// Stands for berth-agent.exe: plays the service, and lets the real agent of this system check the configuration.
const AGENT: &str = r#"#!/bin/sh
echo "agent $*" >>"$BERTH_PLAY/calls"
case "$1 $2" in
"service install") touch "$BERTH_PLAY/installed" ;;
"service uninstall") rm "$BERTH_PLAY/installed" ;;
*) exec "$BERTH_PLAY_AGENT" "$@" --hyperv-powershell "$0" ;;
esac
"#;

struct Play {
    dir: TempDir,
    pwsh: PathBuf,
    agent: PathBuf,
}

impl Play {
    fn new(test: &str) -> anyhow::Result<Option<Self>> {
        let Some(pwsh) = pwsh::program(test) else { return Ok(None) };
        if cfg!(not(unix)) {
            skip(test, "it plays Windows on another system");
            return Ok(None);
        }
        let dir = tempfile::tempdir()?;
        let module = dir.path().join("modules").join("Played");
        std::fs::create_dir_all(&module)?;
        std::fs::write(module.join("Played.psm1"), PLAYED)?;
        let manifest = "@{ RootModule = 'Played.psm1'; ModuleVersion = '1.0'; FunctionsToExport = 'Get-Service', \
                        'Start-Service', 'Stop-Service', 'Get-Acl', 'Set-Acl' }\n";
        std::fs::write(module.join("Played.psd1"), manifest)?;
        for name in ["Program Files", "ProgramData", "package"] {
            std::fs::create_dir(dir.path().join(name))?;
        }
        std::fs::copy(script(), dir.path().join("package").join("install.ps1"))?;
        let play = Self { dir, pwsh, agent: binary("berth-agent")? };
        play.ship("1")?;
        Ok(Some(play))
    }

    fn at(&self, path: &[&str]) -> PathBuf {
        path.iter().fold(self.dir.path().to_owned(), |dir, part| dir.join(part))
    }

    /// Puts another program beside the script.
    fn ship(&self, version: &str) -> anyhow::Result<()> {
        let exe = self.at(&["package", "berth-agent.exe"]);
        std::fs::write(&exe, format!("{AGENT}# {version}\n"))?;
        #[cfg(unix)]
        std::fs::set_permissions(&exe, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(())
    }

    fn run(&self, args: &[&str]) -> anyhow::Result<Ran> {
        let mut command = other(&self.pwsh);
        command.args(["-NoProfile", "-NonInteractive", "-File"]).arg(self.at(&["package", "install.ps1"])).args(args);
        command.env("PSModulePath", self.at(&["modules"])).env("BERTH_PLAY", self.dir.path());
        command.env("BERTH_PLAY_AGENT", &self.agent).env("COMPUTERNAME", "HV-07");
        command.env("ProgramFiles", self.at(&["Program Files"])).env("ProgramData", self.at(&["ProgramData"]));
        run_within(Duration::from_secs(120), command)
    }

    /// What was called since the last time, paths without the folder they are in.
    fn calls(&self) -> anyhow::Result<String> {
        let file = self.at(&["calls"]);
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(&file, "").context("cannot forget the calls")?;
        Ok(text.replace(&format!("{}/", self.dir.path().display()), ""))
    }

    fn config(&self) -> anyhow::Result<String> {
        std::fs::read_to_string(self.at(&["ProgramData", "Berth", "agent.toml"]))
            .context("no configuration was written")
    }
}

fn shipped(exe: &Path) -> String {
    let text = std::fs::read_to_string(exe).unwrap_or_default();
    text.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn it_installs_brings_up_to_date_and_removes() -> anyhow::Result<()> {
    let Some(play) = Play::new("install.ps1 at work")? else { return Ok(()) };
    let exe = play.at(&["Program Files", "Berth", "berth-agent.exe"]);
    // As from a command line, where a list is one text.
    play.run(&["-Controller", "http://berth-1:7600, http://berth-2:7600", "-Insecure"])?.expect(0)?;
    let rights = "O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)";
    assert_eq!(
        play.calls()?,
        format!(
            "rights Berth {rights}\nrights agent {rights}\nagent --config ProgramData/Berth/agent.toml --check-config\n\
             agent service install --config ProgramData/Berth/agent.toml --account LocalSystem\nstart berth-agent\n"
        )
    );
    let config = play.config()?;
    let expected = [
        "node = 'HV-07'",
        "controllers = ['http://berth-1:7600', 'http://berth-2:7600']",
        "driver = 'hyperv'",
        "insecure = true",
    ];
    for line in expected {
        assert!(config.lines().any(|found| found == line), "{line} is not in\n{config}");
    }
    assert!(config.starts_with('#') && config.ends_with('\n'), "{config}");

    // What was configured stays; the program is the new one. Where there is something already, rights are not changed.
    std::fs::write(play.at(&["ProgramData", "Berth", "agent", "ledger"]), "")?;
    play.ship("2")?;
    play.run(&[])?.expect(0)?;
    assert_eq!(
        play.calls()?,
        "stop berth-agent\nagent --config ProgramData/Berth/agent.toml --check-config\nstart berth-agent\n"
    );
    assert_eq!((play.config()?, shipped(&exe).as_str()), (config.clone(), "# 2"));

    let removed = play.run(&["-Uninstall"])?.expect(0)?;
    assert_eq!(play.calls()?, "agent service uninstall\n");
    assert!(!exe.exists() && removed.stdout.contains("Configuration and data stay"), "{removed:?}");
    assert_eq!(play.config()?, config);
    // Again: there is nothing to do.
    play.run(&["-Uninstall"])?.expect(0)?;
    assert_eq!(play.calls()?, "");
    Ok(())
}

#[test]
fn it_stops_at_what_is_wrong_and_says_what() -> anyhow::Result<()> {
    let Some(play) = Play::new("install.ps1, what is wrong")? else { return Ok(()) };
    let refuse = |args: &[&str], why: &str| -> anyhow::Result<()> {
        let ran = play.run(args)?;
        let said = format!("{}{}", ran.stdout, ran.stderr);
        anyhow::ensure!(ran.code != Some(0) && said.contains(why), "{why:?} is not said: {ran:?}");
        let calls = play.calls()?;
        anyhow::ensure!(!calls.contains("service") && !calls.contains("start"), "it went on: {calls}");
        Ok(())
    };
    refuse(&[], "name the controllers")?;
    refuse(&["-Controller", "https://c:1", "-TlsCa", "ca.pem"], "-TlsCert")?;
    refuse(&["-Controller", "http://c:1'"], "cannot stand in the configuration")?;
    refuse(&["-Controller", "http://c:1", "-Program", "nowhere.exe"], "There is no program")?;
    // The agent itself says what it cannot run with.
    refuse(&["-Controller", "http://elsewhere:7600"], "plain text beyond this machine")?;
    Ok(())
}

/// Whatever lies in a folder that others could write to may be theirs: a configuration there names what runs as SYSTEM.
#[test]
fn it_obeys_nothing_that_others_may_have_put_there() -> anyhow::Result<()> {
    let planted = |test: &str, signs: &[&str], files: bool| -> anyhow::Result<Option<(Play, Ran)>> {
        let Some(play) = Play::new(test)? else { return Ok(None) };
        let settings = play.at(&["ProgramData", "Berth"]);
        if files {
            std::fs::create_dir(&settings)?;
            std::fs::write(settings.join("agent.toml"), "node = 'HV-07'\ncontrollers = ['http://localhost:7600']\n")?;
        }
        for sign in signs {
            std::fs::write(play.at(&[sign]), "")?;
        }
        let ran = play.run(&["-Controller", "http://localhost:7600"])?;
        Ok(Some((play, ran)))
    };
    for (signs, files, why) in [
        (&["open-Berth"][..], true, "can be changed by S-1-5-32-545"),
        (&["owner-Berth"], true, "can be changed by S-1-5-21-1-2-3-1001"),
        (&["quick"], false, "Somebody put something into"),
    ] {
        let Some((play, ran)) = planted("install.ps1, planted files", signs, files)? else { return Ok(()) };
        let said = format!("{}{}", ran.stdout, ran.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
        anyhow::ensure!(ran.code != Some(0) && said.contains(why), "{signs:?}: {why:?} is not said: {ran:?}");
        let calls = play.calls()?;
        anyhow::ensure!(!calls.contains("agent --config") && !calls.contains("start"), "{signs:?}: {calls}");
    }
    // Others' folder with nothing in it is made ours.
    let Some(play) = Play::new("install.ps1, an empty folder of others")? else { return Ok(()) };
    std::fs::create_dir(play.at(&["ProgramData", "Berth"]))?;
    for sign in ["open-Berth", "owner-Berth"] {
        std::fs::write(play.at(&[sign]), "")?;
    }
    play.run(&["-Controller", "http://localhost:7600"])?.expect(0)?;
    #[cfg(unix)]
    {
        let Some(play) = Play::new("install.ps1, a link")? else { return Ok(()) };
        std::fs::create_dir(play.at(&["elsewhere"]))?;
        std::fs::write(play.at(&["elsewhere", "agent.toml"]), "")?;
        std::os::unix::fs::symlink(play.at(&["elsewhere"]), play.at(&["ProgramData", "Berth"]))?;
        let ran = play.run(&["-Controller", "http://localhost:7600"])?;
        anyhow::ensure!(ran.code != Some(0) && ran.stderr.contains("is a link"), "{ran:?}");
    }
    Ok(())
}
