//! The PowerShell that runs on a host: one script in one long-lived process, one JSON line in, one out.
//!
//! Owns the script's text and how it is started. What the lines look like stands in `README.md` beside this file. Must
//! never be given anything to run: requests carry the name of an operation and its arguments.

/// The version of the lines that this script speaks; its `hello` says the same.
pub const PROTOCOL: u64 = 1;

/// The whole script, in the order in which its parts need each other. ASCII only: Windows PowerShell 5.1 takes a file
/// without a byte order mark for ANSI.
pub const TEXT: &str = concat!(
    include_str!("host/prelude.ps1"),
    include_str!("host/guard.ps1"),
    include_str!("host/read.ps1"),
    include_str!("host/look.ps1"),
    include_str!("host/survey.ps1"),
    include_str!("host/steps.ps1"),
    include_str!("host/settings.ps1"),
    include_str!("host/guest.ps1"),
    include_str!("host/main.ps1"),
);

/// Where Windows keeps its PowerShell, under `%SystemRoot%`. Always by this path: by name alone, a program of that name
/// beside the agent would be started instead.
pub const PROGRAM: &str = r"System32\WindowsPowerShell\v1.0\powershell.exe";

/// What PowerShell is started with, before the path of a file that holds [`TEXT`].
///
/// `-InputFormat None` keeps PowerShell itself from reading the standard input, which belongs to the script: its console
/// host otherwise reads lines there, too, as input of the pipeline. (Read in the source of PowerShell 7; that 5.1 does
/// the same is likely, not proven; in both the option is harmless.)
pub const ARGUMENTS: [&str; 8] =
    ["-NoLogo", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-InputFormat", "None", "-File"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ascii_and_its_parts_do_not_run_into_each_other() {
        let odd: Vec<_> = TEXT.lines().enumerate().filter(|(_, line)| !line.is_ascii()).collect();
        assert!(odd.is_empty(), "{odd:?}");
        assert!(TEXT.ends_with("\n}\n"));
        assert!(!TEXT.contains('\r') && !TEXT.contains("}#"));
    }
}
