//! Settings of driver-install commands: only from a file, for each is a table of its own.

use crate::driver::guest::install::{Command, bad_linux, bad_windows};
use berth_model::CommandName;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// One command as a file says it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    linux: Option<Vec<String>>,
    windows: Option<Vec<String>>,
    seconds: Option<u32>,
}

/// An installer takes some minutes; with the guest's start and a last look, that fits into the quarter of an hour that the
/// controller gives a verification unless told otherwise.
const SECONDS: u32 = 600;
/// What takes longer is no driver.
const MOST_SECONDS: u32 = 3600;
/// Most commands of one node: some per vendor and system.
const MOST: usize = 64;

/// The commands, by name.
pub(super) fn commands(
    entries: &BTreeMap<String, Entry>,
    mut bad: impl FnMut(&str, String),
) -> BTreeMap<CommandName, Command> {
    if entries.len() > MOST {
        bad("hyperv.guest.install", format!("{} commands, at most {MOST} are allowed", entries.len()));
    }
    let mut commands = BTreeMap::new();
    for (name, Entry { linux, windows, seconds }) in entries {
        let setting = format!("hyperv.guest.install.{name}");
        if linux.is_none() && windows.is_none() {
            bad(&setting, "names nothing to run: linux, windows or both must be there".to_owned());
        }
        if let Some(why) = linux.as_deref().and_then(bad_linux) {
            bad(&format!("{setting}.linux"), why);
        }
        if let Some(why) = windows.as_deref().and_then(bad_windows) {
            bad(&format!("{setting}.windows"), why);
        }
        let seconds = seconds.unwrap_or(SECONDS);
        if !(1..=MOST_SECONDS).contains(&seconds) {
            bad(&format!("{setting}.seconds"), format!("{seconds} is not from 1 to {MOST_SECONDS}"));
        }
        match name.parse() {
            Ok(name) => {
                let limit = Duration::from_secs(seconds.into());
                commands.insert(name, Command { linux: linux.clone(), windows: windows.clone(), limit });
            }
            Err(error) => bad(&setting, format!("{error}")),
        }
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn read(text: &str) -> (BTreeMap<CommandName, Command>, String) {
        let entries: BTreeMap<String, Entry> = toml::from_str(text).unwrap();
        let mut problems = String::new();
        let commands = commands(&entries, |setting, why| problems.push_str(&format!("{setting}: {why}\n")));
        (commands, problems)
    }

    #[test]
    fn commands_are_read_with_their_limits() {
        let (commands, problems) = read(
            "[nvidia]\nlinux = [\"sudo\", \"-n\", \"/x\"]\nseconds = 900\n[amd]\nwindows = ['C:\\x y\\setup.exe', '/s']\n",
        );
        assert_eq!(problems, "");
        let amd = &commands[&"amd".parse::<CommandName>().unwrap()];
        assert_eq!((amd.linux.is_none(), amd.windows.as_ref().map(Vec::len)), (true, Some(2)));
        let names: Vec<_> = commands.iter().map(|(name, command)| (name.as_str(), command.limit.as_secs())).collect();
        assert_eq!(names, [("amd", 600), ("nvidia", 900)]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        expect![[r#"
            hyperv.guest.install.a b: command name "a b" has the character ' ' at position 1; allowed are letters, digits, '-', '.', '_', starting with a letter or digit
            hyperv.guest.install.c.seconds: 0 is not from 1 to 3600
            hyperv.guest.install.d.linux: 0 words are not from 1 to 32: a program and its arguments
            hyperv.guest.install.e: names nothing to run: linux, windows or both must be there
            hyperv.guest.install.f.windows: "setup.exe" is no program by its whole path (C:\…\x.exe)
        "#]]
        .assert_eq(&read("[\"a b\"]\nlinux = [\"x\"]\n[c]\nlinux = [\"x\"]\nseconds = 0\n[d]\nlinux = []\n\
                    [e]\nseconds = 9\n[f]\nwindows = [\"setup.exe\"]\n").1);
        for bad in ["[a]\nscript = \"x\"\n", "[a]\nlinux = [\"x\"]\nuser = \"root\"\n"] {
            assert!(toml::from_str::<BTreeMap<String, Entry>>(bad).is_err(), "{bad}");
        }
        assert!(toml::from_str::<BTreeMap<String, Entry>>("[a]\nlinux = \"sh -c x\"\n").is_err());
    }
}
