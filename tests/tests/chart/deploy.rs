//! Berth without Kubernetes: the systemd units, and the commands of docs/deploy.md and of the runbooks.

use berth_tests::process::{binary, other, root, run, skip};
use std::collections::BTreeSet;
use std::fs;

const UNITS: [(&str, f64); 2] = [("berth-controller", 2.0), ("berth-agent", 3.0)];

fn unit(name: &str) -> String {
    fs::read_to_string(root().join("packaging").join("systemd").join(format!("{name}.service"))).unwrap()
}

#[test]
fn systemd_understands_the_units_and_finds_them_closed_enough() {
    let test = "systemd_understands_the_units_and_finds_them_closed_enough";
    let analyze = |args: &[&str]| {
        let mut analyze = other("systemd-analyze");
        analyze.args(args);
        run(analyze)
    };
    if !analyze(&["--version"]).is_ok_and(|ran| ran.code == Some(0)) {
        return skip(test, "there is no systemd-analyze");
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, most) in UNITS {
        // The program is not installed here, and verify asks for it.
        let file = dir.path().join(format!("{name}.service"));
        fs::write(&file, unit(name).replace(&format!("/usr/local/bin/{name} "), "/bin/true ")).unwrap();
        let path = file.to_str().unwrap();
        let said = analyze(&["verify", "--man=no", path]).unwrap().expect(0).unwrap();
        assert!(!said.stderr.contains(&format!("{name}.service")), "{}", said.stderr);
        let said = analyze(&["security", "--offline=true", "--no-pager", path]).unwrap();
        if said.stderr.contains("unrecognized option") {
            return skip(test, "this systemd-analyze cannot judge a unit that is not loaded");
        }
        let exposure = said.stdout.lines().find_map(|line| line.split_once("exposure level for")?.1.split_once(": "));
        let exposure: f64 = exposure.and_then(|(_, rest)| rest.split(' ').next()?.parse().ok()).unwrap();
        assert!(exposure <= most, "{name}: {exposure}\n{}", said.stdout);
    }
}

#[test]
fn units_start_programs_with_files_that_the_page_speaks_of() {
    let page = fs::read_to_string(root().join("docs").join("deploy.md")).unwrap();
    for (name, _) in UNITS {
        let text = unit(name);
        let start = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let config = start.rsplit(' ').next().unwrap();
        assert!(page.contains(config), "docs/deploy.md does not say what is in {config}");
        assert!(page.contains(&format!("packaging/systemd/{name}.service")), "docs/deploy.md does not install {name}");
        assert!(text.contains("Restart=always"), "{name}: one that ends must be started again");
    }
}

#[test]
fn commands_that_pages_tell_to_run_exist() {
    let berth = binary("berth").unwrap();
    let runbooks = fs::read_dir(root().join("docs").join("runbooks")).unwrap().map(|entry| entry.unwrap().path());
    let mut said = BTreeSet::new();
    for page in runbooks.chain([root().join("docs").join("deploy.md")]) {
        let text = fs::read_to_string(&page).unwrap();
        for code in text.split('`').skip(1).step_by(2).flat_map(str::lines) {
            let mut words = code.split_whitespace();
            let (Some("berth"), Some(verb)) = (words.next(), words.next()) else { continue };
            said.insert((
                verb.to_owned(),
                words.next().filter(|_| verb == "get" || verb == "describe").map(str::to_owned),
            ));
        }
    }
    assert!(said.len() > 5, "{said:?}");
    for (verb, what) in said {
        let mut help = other(&berth);
        help.arg(&verb).args(&what).arg("--help");
        run(help).unwrap().expect(0).unwrap();
        if let Some(what) = what {
            let known = match verb.as_str() {
                "describe" => ["node", "gpu", "placement", ""],
                _ => ["nodes", "gpus", "vms", "placements"],
            };
            assert!(known.contains(&what.as_str()), "berth {verb} {what}");
        }
    }
}
