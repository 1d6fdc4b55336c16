//! Driver-install commands: what a node's settings allow to be run in guests, and running one in a Linux guest.
//!
//! The words of a command come from the node's settings alone; whoever asks for one says its name. Must never make part of a
//! command of anything that the API or a guest said.

use super::ssh::{Login, Unanswered, usable};
use berth_model::VmId;
use berth_model::install::{InstallEnd, InstallOutput, MAX_OUTPUT_BYTES};
use std::net::IpAddr;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::process::ChildStdout;

/// A driver-install command of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// In Linux guests: the program and its arguments, by the user that guests are logged in to as.
    pub linux: Option<Vec<String>>,
    /// In Windows guests: the program by its whole path, and its arguments, by the account of the credential for guests.
    pub windows: Option<Vec<String>>,
    /// How long it may take, connecting included.
    pub limit: Duration,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// How.
    pub end: InstallEnd,
    /// The last of what it said.
    pub output: InstallOutput,
}

/// Longest word of a command. The system that starts it allows far more.
const MAX_WORD_BYTES: usize = 1024;
/// Most words of a command: what needs more is a program of its own.
const MAX_WORDS: usize = 32;

/// What is wrong with a command for Linux guests, if anything.
pub fn bad_linux(words: &[String]) -> Option<String> {
    bad_words(words).or_else(|| {
        let program = words.first()?;
        // A dash would be an option of whatever starts it; an assignment would be none of a program's names.
        (program.starts_with('-') || program.contains('=')).then(|| format!("{program:?} is no name of a program"))
    })
}

/// What is wrong with a command for Windows guests, if anything. Windows PowerShell 5.1 hands words to a program as they are, in
/// quotation marks where there is a blank, except that it does not escape any: a quotation mark in a word, or a backslash before
/// the one that it adds, would come out as something else (about_Parsing, "passing arguments that contain quote characters").
pub fn bad_windows(words: &[String]) -> Option<String> {
    bad_words(words).or_else(|| {
        let program = words.first()?;
        let mut start = program.chars();
        let drive = start.next().is_some_and(|c| c.is_ascii_alphabetic()) && start.next() == Some(':');
        let whole = drive && start.next() == Some('\\') && program.to_ascii_lowercase().ends_with(".exe");
        if !whole || program.contains(['/', '"', '<', '>', '|', '?', '*', '[', ']', '`']) {
            return Some(format!("{program:?} is no program by its whole path (C:\\…\\x.exe)"));
        }
        let bad = |word: &&String| word.contains('"') || (word.contains(char::is_whitespace) && word.ends_with('\\'));
        let bad = words.iter().find(bad)?;
        Some(format!(
            "{bad:?} would not be handed on as it is: it has a quotation mark, or a blank and a backslash at its end"
        ))
    })
}

fn bad_words(words: &[String]) -> Option<String> {
    if words.is_empty() || words.len() > MAX_WORDS {
        return Some(format!("{} words are not from 1 to {MAX_WORDS}: a program and its arguments", words.len()));
    }
    if let Some(at) = words.iter().position(String::is_empty) {
        return Some(format!("word {} is empty", at + 1));
    }
    let bad = words.iter().find(|word| word.len() > MAX_WORD_BYTES || word.chars().any(char::is_control))?;
    Some(format!("{:?} is too long or has a control character", bad.chars().take(80).collect::<String>()))
}

/// A word for a POSIX shell, which takes all of it for itself: in single quotes, those in it between others
/// (POSIX.1-2017, Shell Command Language, 2.2.2).
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

const BEGINS: &[u8] = b"\nberth-install begins\n";
const ENDED: &[u8] = b"\nberth-install ended ";

/// What is handed to the login shell: `sh` with a fixed script, and the command's words as its arguments. The exit code is
/// told by a line of its own, for OpenSSH's says 255 for troubles of its own as well, and because what the command left
/// running in the guest may hold on to its output.
fn line(words: &[String]) -> String {
    const SCRIPT: &str = "PATH=$PATH:/usr/sbin:/sbin; export PATH; echo; echo berth-install begins; \
                          \"$@\" </dev/null 2>&1; code=$?; echo; echo berth-install ended $code";
    let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    format!("exec /bin/sh -c {} berth-install {}", quoted(SCRIPT), words.join(" "))
}

impl Login {
    /// Runs a command in the guest of a VM, at the first of its addresses where the guest lets itself be logged in to. Once it
    /// may have begun, it is not begun at another.
    ///
    /// # Errors
    /// When it was surely not begun.
    pub async fn install(
        &self,
        vm: &VmId,
        addresses: &[String],
        words: &[String],
        limit: Duration,
    ) -> Result<Ran, Unanswered> {
        self.check()?;
        let mut last = Unanswered::NoAddress;
        for address in addresses.iter().filter_map(|text| usable(text)).take(super::ssh::MAX_ADDRESSES) {
            match self.install_at(vm, address, words, limit).await {
                Ok(ran) => return Ok(ran),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn install_at(
        &self,
        vm: &VmId,
        address: IpAddr,
        words: &[String],
        limit: Duration,
    ) -> Result<Ran, Unanswered> {
        let mut heard = Heard::default();
        let hear = async |mut stdout: ChildStdout| {
            let mut part = [0; 4096];
            // An output that cannot be read has ended.
            while let Ok(read @ 1..) = stdout.read(&mut part).await {
                heard.take(part.get(..read).unwrap_or_default());
                if heard.code.is_some() {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let ended = self.talk((vm, address), &line(words), limit, hear).await;
        let seconds = u32::try_from(limit.as_secs()).unwrap_or(u32::MAX);
        let end = match (heard.code, ended) {
            (Some(code), _) => InstallEnd::Exited(code),
            (None, Err(error)) if !heard.begun => return Err(error),
            (None, Ok(None)) if heard.begun => InstallEnd::Late(seconds),
            (None, Ok(Some((Some(255), said)))) if !heard.begun => {
                let error = self.refused(vm, address, &said);
                if error.is_before_login(&said) {
                    return Err(error);
                }
                InstallEnd::Unknown
            }
            (None, Ok(_) | Err(_)) => InstallEnd::Unknown,
        };
        Ok(Ran { end, output: InstallOutput::of(&heard.kept) })
    }
}

/// What a command has said so far, as far as it is kept.
#[derive(Debug)]
struct Heard {
    /// Whether it began: what stood before that is the login shell's.
    begun: bool,
    /// Its exit code, once that was said.
    code: Option<i32>,
    kept: Vec<u8>,
}

impl Default for Heard {
    fn default() -> Self {
        // The first line has an end before it, too.
        Self { begun: false, code: None, kept: b"\n".to_vec() }
    }
}

impl Heard {
    fn take(&mut self, part: &[u8]) {
        self.kept.extend_from_slice(part);
        if !self.begun
            && let Some(at) = self.kept.windows(BEGINS.len()).position(|bytes| bytes == BEGINS)
        {
            self.begun = true;
            // The end of that line may be the one before the last.
            self.kept.drain(..at + BEGINS.len() - 1);
        }
        if self.begun {
            self.read_end();
        }
        // The last line must be in what is kept, whole.
        let surplus = self.kept.len().saturating_sub(MAX_OUTPUT_BYTES + 64);
        self.kept.drain(..surplus);
    }

    /// Reads the last line, if it is whole. A command that says such a line itself ends its own listening; whether there is
    /// a driver is asked of the guest all the same.
    fn read_end(&mut self) {
        let Some(text) = self.kept.strip_suffix(b"\n") else { return };
        let Some(start) = text.windows(ENDED.len()).rposition(|bytes| bytes == ENDED) else { return };
        let code = text.get(start + ENDED.len()..).and_then(|code| std::str::from_utf8(code).ok());
        self.code = code.and_then(|code| code.parse::<u8>().ok()).map(i32::from);
        if self.code.is_some() {
            self.kept.truncate(start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_command_that_could_be_something_else_is_none() {
        for good in [&["sudo", "-n", "/usr/local/sbin/install-driver"][..], &["/opt/a b/x", "it's", "$(reboot)", "a\\"]]
        {
            assert_eq!(bad_linux(&words(good)), None, "{good:?}");
        }
        let long = "x".repeat(1025);
        for bad in [&[][..], &[""], &["a", ""], &["-x"], &["A=b", "c"], &["a", "b\nc"], &["a\0"], &[&long]] {
            assert!(bad_linux(&words(bad)).is_some(), "{bad:?}");
        }
        assert!(bad_linux(&vec!["x".to_owned(); 33]).is_some());
    }

    #[test]
    fn a_windows_command_is_a_program_and_words_that_come_out_as_they_went_in() {
        for good in [
            &[r"C:\Windows\System32\pnputil.exe", "/add-driver", r"C:\d\*.inf", "/install"][..],
            &[r"d:\NVIDIA 550\Setup.EXE", "-s", "it's $(x); `y`", "%PATH%", r"C:\no blank\x", r"C:\end\"],
        ] {
            assert_eq!(bad_windows(&words(good)), None, "{good:?}");
        }
        let programs = [
            "setup.exe",
            r"\x\setup.exe",
            r"\\server\share\setup.exe",
            r"C:setup.exe",
            r"C:\x\setup.msi",
            r"C:\x\a.ps1",
            r"C:\x\*.exe",
            r"C:/x/setup.exe",
            "Restart-Computer",
            "-x.exe",
            r"C:\x[1]\a.exe",
        ];
        for program in programs {
            assert!(bad_windows(&words(&[program])).is_some(), "{program}");
        }
        for word in ["", "a\"b", "a b\\", "a\tb", "a\nb"] {
            assert!(bad_windows(&words(&[r"C:\x.exe", word])).is_some(), "{word:?}");
        }
        assert!(bad_windows(&[]).is_some());
    }

    #[test]
    fn the_command_line_is_fixed_but_for_the_quoted_words() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
        let line = line(&words(&["sudo", "-n", "x y"]));
        assert!(
            line.starts_with("exec /bin/sh -c 'PATH=") && line.ends_with("' berth-install 'sudo' '-n' 'x y'"),
            "{line}"
        );
    }

    #[cfg(unix)]
    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A real shell hands each word on as it was.
        #[test]
        fn a_shell_takes_each_word_for_itself(given in prop::collection::vec("[ -~\u{e4}\u{20ac}]{1,12}", 1..4)) {
            let mut all = words(&["printf", "%s|"]);
            all.extend(given.iter().cloned());
            #[expect(clippy::disallowed_methods, reason = "a test of what a shell makes of it")]
            let ran = std::process::Command::new("/bin/sh").arg("-c").arg(line(&all)).output().unwrap();
            let mut heard = Heard::default();
            for part in ran.stdout.chunks(3) {
                heard.take(part);
            }
            let said: String = given.iter().map(|word| format!("{word}|")).collect();
            prop_assert_eq!(heard.code, Some(0));
            let kept = String::from_utf8_lossy(&heard.kept).into_owned();
            prop_assert_eq!(kept.trim_start_matches('\n'), said);
        }
    }

    #[test]
    fn what_is_heard_is_read_in_whatever_pieces_it_comes() {
        let hear = |said: &[u8], piece: usize| {
            let mut heard = Heard::default();
            for part in said.chunks(piece) {
                heard.take(part);
            }
            (heard.begun, heard.code, InstallOutput::of(&heard.kept).as_str().to_owned())
        };
        for piece in [1, 2, 7, 4096] {
            let said = b"Welcome!\nberth-install ended 0\n\nberth-install begins\none\ntwo\n\nberth-install ended 3\n";
            assert_eq!(hear(said, piece), (true, Some(3), "one\ntwo".to_owned()), "{piece}");
            assert_eq!(
                hear(b"\nberth-install begins\n\nberth-install ended 0\n", piece),
                (true, Some(0), String::new())
            );
            // Cut off; an exit code that is none; nothing of it.
            assert_eq!(hear(b"\nberth-install begins\nx\nberth-install ended 1", piece).1, None);
            assert_eq!(hear(b"\nberth-install begins\n\nberth-install ended 256\n", piece).1, None);
            assert_eq!(hear(b"berth-install begin\n", piece), (false, None, "berth-install begin".to_owned()));
            let mut long = b"berth-install begins\n".to_vec();
            long.extend(b"0123456789\n".repeat(9000));
            long.extend(b"the end\n\nberth-install ended 0\n");
            let (_, code, kept) = hear(&long, piece);
            assert!(code == Some(0) && kept.ends_with("the end") && kept.len() <= MAX_OUTPUT_BYTES, "{piece}");
        }
    }
}
