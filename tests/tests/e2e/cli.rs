//! The way of the demo, by the command line alone, and the exit codes that scripts rely on.

use super::{claims, dev, wait_phase};
use berth_tests::process::{self, berth, other};

#[test]
fn a_vm_gets_its_gpus_and_gives_them_back() -> anyhow::Result<()> {
    let dev = dev(3, &[])?;
    let placed =
        dev.run(&["place", "render", "--vm", "render-vm", "--gpus", "2", "--wait", "-o", "json"])?.expect(0)?;
    let placed = placed.json()?;
    assert_eq!(placed["phase"], "PHASE_ACTIVE", "{placed:#}");
    let node = placed["assignment"]["node"].as_str().unwrap().to_owned();
    assert_eq!(placed["assignment"]["gpus"].as_array().unwrap().len(), 2);
    assert_eq!(placed["assignment"]["pin"]["reason"], "PIN_REASON_DEVICE_ASSIGNMENT");

    let table = dev.run(&["get", "placements"])?.expect(0)?.stdout;
    let row =
        table.lines().find(|line| line.contains("render")).unwrap_or_else(|| panic!("not in the table:\n{table}"));
    assert!(row.contains("Active") && row.contains(&node), "{row}");

    let described = dev.run(&["describe", "placement", "render"])?.expect(0)?.stdout;
    for said in ["render-vm", &node, "Active"] {
        assert!(described.contains(said), "{said:?} is not in:\n{described}");
    }

    let gpus = dev.run(&["get", "gpus", "--state", "attached", "-o", "json"])?.expect(0)?.json()?;
    let gpus = gpus["gpus"].as_array().unwrap();
    assert_eq!(gpus.len(), 2, "{gpus:#?}");
    assert!(gpus.iter().all(|gpu| gpu["placement"] == "render" && gpu["node"] == node.as_str()), "{gpus:#?}");
    let vms = dev.run(&["get", "vms", "render-vm", "-o", "json"])?.expect(0)?.stdout;
    assert!(vms.contains("PIN_REASON_DEVICE_ASSIGNMENT"), "{vms}");

    let capacity = dev.run(&["capacity", "-o", "json"])?.expect(0)?.json()?;
    assert!(capacity["models"].as_array().is_some_and(|models| !models.is_empty()), "{capacity:#}");

    dev.run(&["release", "render", "--wait"])?.expect(0)?;
    let released = wait_phase(&dev, "render", "PHASE_RELEASED")?;
    assert_eq!(released["assignment"]["node"], node.as_str(), "what it had is still told");
    assert_eq!(claims(&dev)?, []);
    let status = dev.run(&["status", "-o", "json"])?.expect(0)?.json()?;
    assert!(status["violations"].as_array().is_none_or(Vec::is_empty), "{status:#}");
    Ok(())
}

#[test]
fn exit_codes_are_kept() -> anyhow::Result<()> {
    let dev = dev(3, &[])?;
    let hold = ["place", "taken", "--vm", "a", "--request-id", "one"];
    dev.run(&hold)?.expect(0)?;
    // The same again is no error; another under its name is.
    dev.run(&hold)?.expect(0)?;
    let taken = dev.run(&["place", "taken", "--vm", "b"])?.expect(1)?;
    assert!(taken.stderr.contains("taken exists already"), "{}", taken.stderr);

    dev.run(&["place", "p"])?.expect(2)?;
    let negative = dev.run(&["place", "p", "--vm", "v", "--gpus", "-1"])?.expect(2)?;
    assert!(negative.stderr.contains("-1"), "{}", negative.stderr);
    let too_many = dev.run(&["place", "p", "--vm", "v", "--gpus", "17"])?.expect(2)?;
    assert!(too_many.stderr.contains("not from 1 to 16"), "{}", too_many.stderr);

    let no_room = dev.run(&["place", "p", "--vm", "v", "--gpus", "16"])?.expect(3)?;
    assert!(no_room.stderr.contains("nearest is"), "{}", no_room.stderr);

    let unknown = dev.run(&["get", "placements", "taken2"])?.expect(4)?;
    assert!(unknown.stderr.contains("did you mean taken?"), "{}", unknown.stderr);
    dev.run(&["describe", "node", "nowhere"])?.expect(4)?;
    dev.run(&["release", "nothing"])?.expect(4)?;

    // A port that nobody listens at.
    let mut nobody = other(berth()?);
    nobody.args(["status", "--endpoint", &format!("http://127.0.0.1:{}", process::free_port()?)]);
    let nobody = process::run(nobody)?.expect(5)?;
    assert!(nobody.stderr.contains("no controller answers"), "{}", nobody.stderr);
    Ok(())
}

#[test]
fn a_plan_says_what_does_not_fit_and_why() -> anyhow::Result<()> {
    let dev = dev(3, &[])?;
    let workloads = "- name: small\n  gpus: 1\n- name: huge\n  gpus: 16\n";
    let (_dir, path) = super::file("workloads.yaml", workloads)?;
    let plan = dev.run(&["plan", "-f", &path, "-o", "json"])?.expect(3)?.json()?;
    let planned = plan["planned"].as_array().unwrap();
    assert!(planned[0]["assignment"]["node"].is_string(), "{plan:#}");
    assert_eq!(planned[1]["name"], "huge");
    assert!(planned[1]["explanation"]["nearest"]["text"].is_string(), "{plan:#}");
    assert_eq!(claims(&dev)?, [], "a plan claims nothing");
    Ok(())
}
