//! A driver-install command that an agent ran in a placement's guest: how it ended and the last of what it said.

use crate::id::CommandName;
use std::fmt;

/// Most of a command's output that is kept, in bytes, made safe to show: enough for the end of an installer's log, and small
/// beside the placement that it is kept with.
pub const MAX_OUTPUT_BYTES: usize = 4096;

/// One run of a driver-install command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// Which of the node's commands.
    pub command: CommandName,
    /// How it ended.
    pub end: InstallEnd,
    /// The last of what it said.
    pub output: InstallOutput,
}

/// How a driver-install command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallEnd {
    /// By itself, with this exit code.
    Exited(i32),
    /// It ran longer than it may, in seconds. What it did until then, and whether it goes on in the guest, is not known.
    Late(u32),
    /// It was begun; how it ended is not known: the agent or the connection ended first.
    Unknown,
}

impl InstallEnd {
    /// Whether it is known that it did not do what it should.
    pub fn is_failure(self) -> bool {
        match self {
            Self::Exited(code) => code != 0,
            Self::Late(_) => true,
            Self::Unknown => false,
        }
    }
}

impl fmt::Display for InstallEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "ended with exit code {code}"),
            Self::Late(seconds) => write!(f, "did not end within {seconds} s"),
            Self::Unknown => f.write_str("was begun, but how it ended is not known"),
        }
    }
}

/// The last of a command's output, safe to show: at most [`MAX_OUTPUT_BYTES`], and no control character but line ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstallOutput(String);

/// A text is no output as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOutput {
    /// Too long.
    #[error("is longer than {MAX_OUTPUT_BYTES} bytes")]
    Long,
    /// Has a character that must be escaped.
    #[error("has a character that is not escaped")]
    Raw,
}

/// Whether a terminal shows a character as itself and does nothing else with it.
fn is_plain(c: char) -> bool {
    c == '\n' || matches!(c, '\\' | '\'' | '"') || (c.escape_debug().len() == 1 && !c.is_control())
}

impl InstallOutput {
    /// Makes a stranger's words safe: line ends are kept, what else is not printable is escaped, and of the whole the end.
    pub fn of(said: &[u8]) -> Self {
        let from = said.len().saturating_sub(MAX_OUTPUT_BYTES);
        let text = String::from_utf8_lossy(said.get(from..).unwrap_or_default()).replace("\r\n", "\n");
        let mut safe = String::new();
        for c in text.trim().chars() {
            if is_plain(c) { safe.push(c) } else { safe.extend(c.escape_debug()) }
        }
        let mut cut = safe.len().saturating_sub(MAX_OUTPUT_BYTES);
        while !safe.is_char_boundary(cut) {
            cut += 1;
        }
        Self(safe.split_off(cut))
    }

    /// Takes what was made safe elsewhere.
    ///
    /// # Errors
    /// When it is not.
    pub fn read(text: String) -> Result<Self, BadOutput> {
        if text.len() > MAX_OUTPUT_BYTES {
            return Err(BadOutput::Long);
        }
        if text.chars().all(is_plain) { Ok(Self(text)) } else { Err(BadOutput::Raw) }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its last line that says something.
    pub fn last_line(&self) -> Option<&str> {
        self.0.lines().map(str::trim).rfind(|line| !line.is_empty())
    }
}

impl fmt::Display for Install {
    /// What it was and how it ended, without its output.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, end, output: _ } = self;
        write!(f, "the driver-install command {command} {end}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_safe_to_show_whatever_it_was() {
        let safe = |said: &[u8]| InstallOutput::of(said).as_str().to_owned();
        assert_eq!(safe(b"\r\none\r\ntwo \"x\" \\n\n\n"), "one\ntwo \"x\" \\n");
        assert_eq!(safe(b"\x1b]0;title\x07\x1b[2J\ra\tb\0"), "\\u{1b}]0;title\\u{7}\\u{1b}[2J\\ra\\tb\\0");
        assert_eq!(safe("gr\u{fc}n \u{202e}txt\u{200b}\u{9b}".as_bytes()), "gr\u{fc}n \\u{202e}txt\\u{200b}\\u{9b}");
        assert_eq!(safe(b"\xff\xfe"), "\u{fffd}\u{fffd}");
        let mut long = "\u{1b}".repeat(9000);
        long.push_str("\u{20ac}the end");
        let kept = safe(long.as_bytes());
        assert!(kept.ends_with("\u{20ac}the end") && kept.len() <= MAX_OUTPUT_BYTES && kept.len() > 4000);
        for said in [&long, "x\u{301}\u{e000}\u{7f}"] {
            let once = InstallOutput::of(said.as_bytes());
            assert_eq!(InstallOutput::read(once.as_str().to_owned()), Ok(once));
        }
    }

    #[test]
    fn what_is_not_safe_is_not_taken_for_it() {
        assert_eq!(InstallOutput::read("a\u{1b}[2J".to_owned()), Err(BadOutput::Raw));
        assert_eq!(InstallOutput::read("a\rb".to_owned()), Err(BadOutput::Raw));
        assert_eq!(InstallOutput::read("x".repeat(MAX_OUTPUT_BYTES + 1)), Err(BadOutput::Long));
        assert!(InstallOutput::read(String::new()).is_ok());
    }

    #[test]
    fn a_run_is_told_with_the_end_of_its_output() {
        let run = |end, said: &str| Install {
            command: "nvidia".parse().unwrap(),
            end,
            output: InstallOutput::of(said.as_bytes()),
        };
        let failed = run(InstallEnd::Exited(3), "unpacking\nno kernel headers\n");
        assert_eq!(failed.to_string(), "the driver-install command nvidia ended with exit code 3");
        assert_eq!(failed.output.last_line(), Some("no kernel headers"));
        assert!(failed.end.is_failure() && InstallEnd::Late(9).is_failure());
        assert!(!InstallEnd::Exited(0).is_failure() && !InstallEnd::Unknown.is_failure());
        assert_eq!(
            run(InstallEnd::Late(9), "").to_string(),
            "the driver-install command nvidia did not end within 9 s"
        );
    }
}
