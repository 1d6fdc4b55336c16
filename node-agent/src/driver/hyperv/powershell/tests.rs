//! The process that is PowerShell's, with a shell script in its place: what is said late, wrongly, to nobody or not at all.
#![cfg(unix)]

use super::*;
use std::time::Instant;
use tempfile::TempDir;

const SEEN: &str = r#"other() { answer '{"changed":true,"seen":{}}'; }"#;

/// A PowerShell that behaves so.
fn pretend(behaviour: &str) -> (PowerShell, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/driver/hyperv/powershell/pretend.sh");
    let powershell = PowerShell::new(program, dir.path().to_owned());
    behave(&dir, behaviour);
    (powershell, dir)
}

fn behave(dir: &TempDir, behaviour: &str) {
    // Read by a shell at its next request: never half of it.
    let fresh = dir.path().join("fresh");
    std::fs::write(&fresh, behaviour).unwrap();
    std::fs::rename(fresh, dir.path().join("behaviour")).unwrap();
}

fn starts(dir: &TempDir) -> usize {
    std::fs::read_to_string(dir.path().join("starts")).unwrap_or_default().lines().count()
}

async fn ask(powershell: &PowerShell, limit: Duration) -> Result<answer::Stepped, String> {
    let args = json!({});
    match powershell.call::<answer::Stepped>("disable", &args, limit).await {
        Ok(answer) => answer.map_err(|failure| failure.to_string()),
        Err(lost) => Err(lost.to_string()),
    }
}

/// Long enough for a shell on a busy machine.
const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn one_process_answers_one_after_another() {
    let (powershell, dir) = pretend(SEEN);
    assert_eq!(powershell.hello(), None);
    let answers = futures::future::join_all((0..8).map(|_| ask(&powershell, LONG))).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(starts(&dir), 1);
    assert_eq!(powershell.hello().unwrap().computer, "N");
    assert_eq!(std::fs::read_to_string(dir.path().join("host.ps1")).unwrap(), script::TEXT);
}

#[tokio::test]
async fn whatever_is_no_answer_ends_the_process_and_the_next_question_starts_another() {
    for (behaviour, why) in [
        ("other() { echo nonsense; }", "makes no sense"),
        ("other() { n=99; answer '{\"changed\":true,\"seen\":{}}'; }", "it is for request 99"),
        ("other() { echo 'it broke' >&2; exit 3; }", "ended without an answer"),
        ("other() { printf '{\"id\":2'; exit; }", "ended without an answer"),
    ] {
        let (powershell, dir) = pretend(behaviour);
        let error = ask(&powershell, LONG).await.unwrap_err();
        assert!(error.contains(why), "{behaviour}: {error}");
        behave(&dir, SEEN);
        ask(&powershell, LONG).await.unwrap();
        assert_eq!(starts(&dir), 2, "{behaviour}");
    }
}

#[tokio::test]
async fn a_late_process_is_ended_and_so_is_one_that_nobody_waits_for_any_more() {
    let (powershell, dir) = pretend("other() { exec sleep 600; }");
    ask(&powershell, Duration::from_millis(300)).await.unwrap_err();
    // Cut off from outside, as by the agent's own deadline.
    let begun = Instant::now();
    let cut = timeout(Duration::from_millis(300), ask(&powershell, LONG)).await;
    assert!(cut.is_err() && begun.elapsed() < LONG, "{cut:?}");
    behave(&dir, SEEN);
    ask(&powershell, LONG).await.unwrap();
    assert!((2..=3).contains(&starts(&dir)), "{}", starts(&dir));
}

#[tokio::test]
async fn what_it_complains_about_never_holds_it_up_and_its_end_is_told() {
    let flood = "i=0; while [ $i -lt 3000 ]; do echo 'a line of a hundred letters, more or less, again and again and again' >&2; i=$((i+1)); done";
    let (powershell, _dir) = pretend(&format!("other() {{ {flood}; answer '{{\"changed\":false,\"seen\":{{}}}}'; }}"));
    assert!(!ask(&powershell, LONG).await.unwrap().changed);
    let (powershell, _dir) = pretend("echo 'it is broken' >&2; exit 3");
    assert!(ask(&powershell, LONG).await.unwrap_err().starts_with("PowerShell ended without an answer"));
}

#[tokio::test]
async fn a_host_that_lacks_something_or_a_script_of_another_day_is_told() {
    let (lacking, _dir) = pretend(
        "hello='{\"protocol\":1,\"powershell\":\"5.1\",\"edition\":null,\"computer\":\"N\",\"culture\":\"\",\"modules\":{\"Hyper-V\":null},\"missing\":[\"Get-VM\"],\"absent\":[]}'",
    );
    assert_eq!(
        ask(&lacking, LONG).await.unwrap_err(),
        "this host lacks Get-VM: install the Hyper-V role with its PowerShell module"
    );
    let (other, _dir) = pretend(
        "hello='{\"protocol\":2,\"powershell\":\"5.1\",\"edition\":null,\"computer\":\"N\",\"culture\":\"\",\"modules\":{},\"missing\":[],\"absent\":[]}'",
    );
    assert_eq!(ask(&other, LONG).await.unwrap_err(), "the host script speaks protocol 2, this agent 1");
    let dir = tempfile::tempdir().unwrap();
    let nowhere = PowerShell::new("/nowhere/powershell.exe".into(), dir.path().to_owned());
    assert!(ask(&nowhere, LONG).await.unwrap_err().starts_with("cannot start PowerShell /nowhere/powershell.exe"));
}
