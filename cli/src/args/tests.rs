//! What command lines are taken, and what is said of those that are not.

use super::*;
use clap::CommandFactory;

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn what_the_documents_promise_is_accepted() {
    let dev = [
        "berth dev --nodes 5 --listen 127.0.0.1:0 --data-dir /tmp/x --step-delay 0s --provision none",
        "berth dev --fleet f.yaml",
    ];
    let others = [
        "berth get nodes",
        "berth get gpus --node n --model A2 --state available -o wide",
        "berth get gpu hv-01/0000:41:00.0 -o json",
        "berth get vms --state running -o yaml",
        "berth get placements p --endpoint http://10.0.0.1:7600",
        "berth describe node n",
        "berth describe gpu n/0000:41:00.0",
        "berth describe placement p",
        "berth place p --vm v",
        "berth place p --vm v --gpus 4 --model A16,A30 --model L40S --exclude-model H100 --min-vram 24GiB --node n \
         --exclude-node m --cluster c --spread-group g --require-numa --cpu 0.5 --memory 64GiB --hold 10m --queue 2h \
         --allow-standalone --verify driver-bound --install-driver nvidia --return-to pool --request-id r --wait --timeout 5m -o json",
        "berth commit p --vm-id 8fce3318-aa0f-4de3-8664-278533573cd2 --version 3",
        "berth release p --wait --uid u --version 2",
        "berth adopt --node n --dry-run -o json",
        "berth adopt --node n --vm a --vm b --name-prefix old- --owner team --tag a=b,c=d --return-to pool",
        "berth get drift --node n --state assignedbyhand",
        "berth plan -f w.yaml --fleet f.yaml -o json",
        "berth capacity -o json",
        "berth watch",
        "berth watch gpus -o json",
        "berth status",
        "berth completions zsh",
    ];
    let dev = dev.into_iter().filter(|_| cfg!(feature = "dev"));
    for line in others.into_iter().chain(dev) {
        if let Err(e) = Cli::try_parse_from(line.split_whitespace()) {
            panic!("{line}: {e}");
        }
    }
}

#[test]
fn bad_usage_is_refused_with_exit_code_2() {
    for line in [
        "berth",
        "berth fly",
        "berth get",
        "berth get cards",
        "berth get nodes -o xml",
        "berth adopt",
        "berth adopt --node n --name a --name-prefix b",
        "berth place p",
        "berth place p --vm v --gpus many",
        "berth place p --vm v --gpus -1",
        "berth place p --vm v --hold soon",
        "berth place p --vm v --min-vram big",
        "berth place p --vm v --cpu 1.2345",
        "berth place p --vm v --cpu .5",
        "berth place p --vm v --verify deeply",
        "berth dev --nodes 0",
        "berth dev --nodes 3 --fleet f.yaml",
        "berth plan",
        "berth completions tcsh",
    ] {
        let error = Cli::try_parse_from(line.split_whitespace()).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}: {error}");
    }
}

/// What is said of a command line that is not taken, without the tip after it.
fn refused(line: &str) -> String {
    let error = Cli::try_parse_from(line.split_whitespace()).expect_err(line);
    assert_eq!(error.exit_code(), 2, "{line}: {error}");
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[test]
fn what_is_below_nothing_or_has_no_unit_is_answered_by_the_one_who_reads_it() {
    for (line, why) in [
        ("place p --vm v --min-vram 24", "24 has no unit; write it like 24GiB"),
        ("place p --vm v --memory 64", "64 has no unit; write it like 24GiB"),
        ("place p --vm v --min-vram lots", "\"lots\" is no size; write it like 24GiB"),
        ("place p --vm v --memory -64GiB", "\"-64GiB\" is no size; write it like 24GiB"),
        ("place p --vm v --gpus -1", "-1 is not from 1 to 16"),
        ("place p --vm v --gpus 17", "17 is not from 1 to 16"),
        ("place p --vm v --gpus two", "\"two\" is no whole number from 1 to 16"),
        ("place p --vm v --cpu -4", "write it as a number of cores, like 16 or 0.5, with at most three decimals"),
        ("place p --vm v --hold -5m", "\"-5m\" is no length of time; write it like 90s, 10m or 2h"),
        ("release p --version -1", "\"-1\" is no whole number of 0 or more"),
        ("commit p --version -1", "\"-1\" is no whole number of 0 or more"),
        ("audit --after -1", "\"-1\" is no whole number of 0 or more"),
    ] {
        let said = refused(&format!("berth {line}"));
        assert!(said.starts_with("error: invalid value ") && said.ends_with(why), "{line}: {said}");
    }
}

/// The help of a verb as a terminal of 80 columns shows it.
fn help(verb: &str) -> String {
    let mut all = Cli::command().term_width(80);
    all.build();
    all.find_subcommand_mut(verb).unwrap_or_else(|| panic!("no {verb}")).render_help().to_string()
}

#[test]
fn a_verbs_own_options_come_before_those_of_the_connection() {
    for verb in ["get", "describe", "place", "release", "adopt", "plan", "backup", "audit", "watch", "status"] {
        let help = help(verb);
        let at = |text: &str| help.find(text).unwrap_or_else(|| panic!("{verb} has no {text:?}: {help}"));
        let connection = at("\nConnection:");
        assert!(at("\nOptions:") < at("\nOutput:") && at("\nOutput:") < connection, "{help}");
        for flag in ["--endpoint", "--ca ", "--cert", "--key", "--server-name", "--deadline"] {
            assert!(at(&format!("      {flag}")) > connection, "{verb} {flag}: {help}");
        }
        assert!(!help.contains("--vm ") || at("      --vm ") < connection, "{help}");
    }
}

/// Lines of prose that end early although the next one goes on are broken twice: by hand, and by the terminal.
#[test]
fn what_stands_below_the_options_is_wrapped_once() {
    for verb in ["get", "place", "adopt", "backup", "audit"] {
        let help = help(verb);
        let (_, below) = help.split_once("\nExample").unwrap_or_else(|| panic!("{verb}: {help}"));
        let lines: Vec<_> = below.lines().collect();
        for pair in lines.windows(2) {
            let prose = !pair[0].is_empty() && !pair[0].starts_with(' ') && !pair[0].ends_with(['.', ':']);
            let first = pair[1].split(' ').next().unwrap_or_default();
            assert!(!prose || pair[0].len() + 1 + first.len() > 78, "{verb}: {:?} is short of 80 columns", pair[0]);
        }
    }
}

#[test]
fn cores_are_counted_in_thousandths() {
    for (text, milli) in [("16", 16_000), ("0.5", 500), ("1.25", 1_250), ("0.001", 1), ("0", 0)] {
        assert_eq!(cores(text), Ok(milli), "{text}");
    }
    for text in ["", ".", "1.", "-1", "1e3", "99999999999999999999", "18446744073709551615"] {
        assert!(cores(text).is_err(), "{text:?} was accepted");
    }
}
