//! Driver-install commands run in a Linux guest by the agent's own ssh.

use super::{guest, vm};
use anyhow::ensure;
use berth_model::install::{InstallEnd, MAX_OUTPUT_BYTES};
use berth_node_agent::driver::guest::install::Ran;
use berth_node_agent::driver::guest::ssh::Login;
use berth_tests::sshd::says;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs a command, as the settings would name it.
fn run(login: &Login, addresses: &[&str], words: &[&str], limit: Duration) -> Result<Ran, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let words: Vec<_> = words.iter().map(ToString::to_string).collect();
    runtime.block_on(login.install(&vm(), &addresses, &words, limit)).map_err(|error| error.to_string())
}

fn ran(login: &Login, words: &[&str]) -> Ran {
    run(login, &["127.0.0.1"], words, LIMIT).unwrap()
}

#[test]
fn a_command_runs_with_its_words_as_they_are_and_its_end_is_told() -> anyhow::Result<()> {
    let Some((guest, login)) = guest("a driver-install command in a Linux guest") else { return Ok(()) };
    let trace = guest.dir().join("trace");
    guest.runs(
        "install-driver",
        "printf '<%s>' \"$@\" >>\"${0%/bin/install-driver}/trace\"\necho unpacking\necho 'a warning' >&2\nread line || echo 'no input'\n",
    )?;
    let odd = ["-n", "it's", "a b", "$(touch /tmp/x); `id`", "\"quoted\" \\ | & > < * ?", "gr\u{fc}n", "!!"];
    let words: Vec<_> = ["install-driver"].into_iter().chain(odd).collect();
    let done = ran(&login, &words);
    assert_eq!(done.end, InstallEnd::Exited(0), "{done:?}");
    assert_eq!(done.output.as_str(), "unpacking\na warning\nno input");
    let given: String = odd.iter().map(|word| format!("<{word}>")).collect();
    assert_eq!(std::fs::read_to_string(&trace)?, given, "once, and with these words");

    guest.runs("install-driver", "echo 'no kernel headers' >&2\nexit 3\n")?;
    let failed = ran(&login, &["install-driver"]);
    assert_eq!((failed.end, failed.output.as_str()), (InstallEnd::Exited(3), "no kernel headers"));
    // OpenSSH's own code for its troubles is a command's code like any other, and so are those of no command at all.
    guest.runs("install-driver", "exit 255\n")?;
    assert_eq!(ran(&login, &["install-driver"]).end, InstallEnd::Exited(255));
    let absent = ran(&login, &["no-such-program"]);
    assert_eq!(absent.end, InstallEnd::Exited(127));
    says(absent.output.as_str(), &["not found"])
}

#[test]
fn a_command_that_does_not_end_is_left_at_its_deadline_and_a_daemon_holds_nobody_up() -> anyhow::Result<()> {
    let Some((guest, login)) = guest("driver-install commands that hang") else { return Ok(()) };
    guest.runs("install-driver", "echo working\nexec sleep 600\n")?;
    let begun = Instant::now();
    let late = run(&login, &["127.0.0.1"], &["install-driver"], Duration::from_secs(4)).unwrap();
    ensure!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    assert_eq!((late.end, late.output.as_str()), (InstallEnd::Late(4), "working"));
    // What it starts and leaves behind keeps its output open.
    guest.runs("install-driver", "sleep 30 &\necho started\n")?;
    let begun = Instant::now();
    let done = ran(&login, &["install-driver"]);
    ensure!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    assert_eq!((done.end, done.output.as_str()), (InstallEnd::Exited(0), "started"));
    // The guest goes away in the middle: nobody knows how it ended.
    guest.runs(
        "install-driver",
        "echo half\nsleep 1\nread pid name state parent rest <\"/proc/$PPID/stat\"\nkill -KILL \"$parent\"\nsleep 30\n",
    )?;
    let cut = ran(&login, &["install-driver"]);
    assert_eq!((cut.end, cut.output.as_str()), (InstallEnd::Unknown, "half"));
    Ok(())
}

#[test]
fn of_what_a_command_says_the_end_is_kept_and_made_safe() -> anyhow::Result<()> {
    let Some((guest, login)) = guest("what driver-install commands say") else { return Ok(()) };
    guest.runs("install-driver", "head -c 33554432 /dev/zero | tr '\\0' x\necho\necho 'the end'\nexit 1\n")?;
    let long = ran(&login, &["install-driver"]);
    assert_eq!((long.end, long.output.last_line()), (InstallEnd::Exited(1), Some("the end")));
    ensure!(long.output.as_str().len() <= MAX_OUTPUT_BYTES, "{}", long.output.as_str().len());
    // Binary, escape sequences, marks of another protocol, and its own.
    guest.runs(
        "install-driver",
        "printf '\\033]0;x\\007\\377\\r\\n\\nberth-guest begins\\n\\nberth-install begins\\n\\nberth-install ended no\\nok\\n'\nexit 9\n",
    )?;
    let hostile = ran(&login, &["install-driver"]);
    assert_eq!(hostile.end, InstallEnd::Exited(9));
    let text = hostile.output.as_str();
    ensure!(text.starts_with("\\u{1b}]0;x\\u{7}\u{fffd}\n") && text.ends_with("ok"), "{text:?}");
    ensure!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    // Saying that it ended is no more than that.
    guest.runs("install-driver", "printf '\\nberth-install ended 0\\n'\nsleep 1\nexit 9\n")?;
    ensure!(
        ran(&login, &["install-driver"]).end == InstallEnd::Exited(0),
        "a line of its own is believed about itself"
    );
    Ok(())
}

#[test]
fn a_command_that_was_surely_not_begun_is_told_apart() -> anyhow::Result<()> {
    let Some((guest, login)) = guest("driver-install commands without a way in") else { return Ok(()) };
    let trace = guest.dir().join("trace");
    guest.runs("install-driver", "echo ran >>\"${0%/bin/install-driver}/trace\"\n")?;
    let why = |login: &Login, addresses: &[&str]| {
        run(login, addresses, &["install-driver"], LIMIT).expect_err("it was begun")
    };
    says(&why(&Login { identity: guest.stranger(), ..login.clone() }, &["127.0.0.1"]), &["does not let"])?;
    let closed = Login { port: berth_tests::process::free_port()?, ..login.clone() };
    says(&why(&closed, &["127.0.0.1"]), &["cannot be reached"])?;
    says(&why(&login, &["fe80::1"]), &["tells no address"])?;
    guest.known_as(&[])?;
    says(&why(&login, &["127.0.0.1"]), &["does not prove to be this VM's guest"])?;
    ensure!(!trace.exists(), "it ran");
    // Where the first address is nobody's, the next is tried; where it ran once, no other.
    guest.known_as(&[super::VM])?;
    let done = run(&login, &["127.0.0.2", "127.0.0.1", "127.0.0.1"], &["install-driver"], LIMIT).unwrap();
    assert_eq!(done.end, InstallEnd::Exited(0));
    assert_eq!(std::fs::read_to_string(&trace)?, "ran\n");
    Ok(())
}
