//! One trace from the caller to the host driver, for what works and for what fails; metrics that say what the API says;
//! log lines that belong to their trace.

use super::scene::{BAD_VM, GOOD_VM, Metrics, PATIENCE, Scene};
use anyhow::ensure;
use berth_tests::etcd::Etcd;
use berth_tests::http;
use berth_tests::otlp::{Collector, Line, Received};
use berth_tests::process::wait_until;
use expect_test::expect;
use std::collections::BTreeSet;

const GOOD_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const BAD_TRACE: &str = "1bf7651916cd43dd8448eb211c80319c";
/// The span of the caller.
const CALLER: &str = "b7ad6b7169203331";

/// Which span is within which, each with the step it is about; what fails is marked.
fn tree(received: &Received, trace: &str) -> String {
    let spans: Vec<_> = received.spans.iter().filter(|span| span.trace == trace).collect();
    let name = |id: &str| {
        if id == CALLER {
            return "caller".to_owned();
        }
        let Some(span) = spans.iter().find(|span| span.id == id) else { return format!("unknown {id}") };
        let step = span.attributes.get("step").map(|step| format!(" {step}")).unwrap_or_default();
        let failed = span.error.as_ref().map(|error| format!(" FAILED: {error}")).unwrap_or_default();
        format!("{}: {}{step}{failed}", span.service.trim_start_matches("berth-"), span.name)
    };
    let lines: BTreeSet<_> = spans.iter().map(|span| format!("{} < {}", name(&span.id), name(&span.parent))).collect();
    lines.into_iter().map(|line| format!("{line}\n")).collect()
}

fn ask(scene: &Scene, name: &str, vm: &str, trace: &str) -> anyhow::Result<()> {
    let header = format!("traceparent: 00-{trace}-{CALLER}-01");
    let answer = http::post_with(&scene.endpoint, "/berth.v1.Placements/Create", &header, &Scene::request(name, vm))?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    Ok(())
}

#[test]
fn one_trace_runs_from_the_caller_to_the_host_driver_and_says_what_failed() -> anyhow::Result<()> {
    let Some(etcd) = Etcd::one("one_trace_runs_from_the_caller_to_the_host_driver")? else { return Ok(()) };
    let collector = Collector::start()?;
    let scene = Scene::start(&collector.endpoint(), &["--etcd".to_owned(), etcd.endpoints().join(",")])?;
    ask(&scene, "good", GOOD_VM, GOOD_TRACE)?;
    ask(&scene, "bad", BAD_VM, BAD_TRACE)?;
    scene.wait_phase("good", "PHASE_ACTIVE")?;
    scene.wait_phase("bad", "PHASE_FAILED")?;
    let all = wait_until(PATIENCE, || {
        let received = collector.received();
        let good = tree(&received, GOOD_TRACE);
        let bad = tree(&received, BAD_TRACE);
        let began = |tree: &str| tree.contains("Placements/Create < caller") && tree.contains("session.accept");
        let restored = ["driver.act Enable <", "driver.act RestoreVm <"].iter().all(|step| bad.contains(step));
        // A step ends, and is sent, just after what was done for it.
        let whole = !good.contains("unknown") && !bad.contains("unknown");
        Ok(began(&good) && began(&bad) && good.contains("driver.act StartVm <") && restored && whole)
    })?;
    let received = collector.received();
    let (good, bad) = (tree(&received, GOOD_TRACE), tree(&received, BAD_TRACE));
    ensure!(all, "not all spans came:\n{good}\n{bad}\n{}", scene.controller.log());
    expect![[r"
        agent: driver.act Attach < agent: step Attach
        agent: driver.act ConfigureVm < agent: step ConfigureVm
        agent: driver.act Disable < agent: step Disable
        agent: driver.act Dismount < agent: step Dismount
        agent: driver.act StartVm < agent: step StartVm
        agent: session.accept < controller: Placements/Create
        agent: step Attach < controller: Placements/Create
        agent: step ConfigureVm < controller: Placements/Create
        agent: step Disable < controller: Placements/Create
        agent: step Dismount < controller: Placements/Create
        agent: step StartVm < controller: Placements/Create
        controller: Placements/Create < caller
        controller: commit < controller: Placements/Create
        controller: schedule < controller: Placements/Create
        controller: session.send < controller: Placements/Create
    "]]
    .assert_eq(&good);
    expect![[r"
        agent: driver.act Attach < agent: step Attach
        agent: driver.act ConfigureVm < agent: step ConfigureVm
        agent: driver.act Detach < agent: step Detach
        agent: driver.act Disable < agent: step Disable
        agent: driver.act Dismount < agent: step Dismount
        agent: driver.act Enable < agent: step Enable
        agent: driver.act Mount < agent: step Mount
        agent: driver.act RestoreVm < agent: step RestoreVm
        agent: driver.act StartVm FAILED: the VM failed to start: 0xC035001E < agent: step StartVm FAILED: the VM failed to start: 0xC035001E
        agent: session.accept < controller: Placements/Create
        agent: step Attach < controller: Placements/Create
        agent: step ConfigureVm < controller: Placements/Create
        agent: step Detach < controller: Placements/Create
        agent: step Disable < controller: Placements/Create
        agent: step Dismount < controller: Placements/Create
        agent: step Enable < controller: Placements/Create
        agent: step Mount < controller: Placements/Create
        agent: step RestoreVm < controller: Placements/Create
        agent: step StartVm FAILED: the VM failed to start: 0xC035001E < controller: Placements/Create
        controller: Placements/Create < caller
        controller: commit < controller: Placements/Create
        controller: schedule < controller: Placements/Create
        controller: session.send < controller: Placements/Create
    "]]
    .assert_eq(&bad);

    drop(received);
    lines_belong_to_their_trace(&collector)?;
    lines_say_whom_they_are_about(&collector, &scene)?;
    let received = collector.received();
    for (service, metric) in [
        ("berth-controller", "berth.gpus"),
        ("berth-controller", "berth.api.duration"),
        ("berth-controller", "berth.store.duration"),
        ("berth-agent", "berth.step.duration"),
        ("berth-agent", "hw.status"),
    ] {
        let names = received.metrics.get(service).cloned().unwrap_or_default();
        ensure!(names.iter().any(|name| name == metric), "{service} exports no {metric}: {names:?}");
    }
    drop(received);
    as_the_api_says(&scene)
}

/// Lines belong to the trace of what they tell of, in both processes.
fn lines_belong_to_their_trace(collector: &Collector) -> anyhow::Result<()> {
    for (trace, service, body, severity) in [
        (GOOD_TRACE, "berth-controller", "a change was asked for", "INFO"),
        (GOOD_TRACE, "berth-controller", "placement changed phase", "INFO"),
        (GOOD_TRACE, "berth-agent", "step ended", "INFO"),
        (GOOD_TRACE, "berth-agent", "placement is as wanted", "INFO"),
        (BAD_TRACE, "berth-agent", "step ended", "WARN"),
        (BAD_TRACE, "berth-agent", "gave up on placement", "WARN"),
    ] {
        let there = wait_until(PATIENCE, || {
            Ok(collector.received().lines.iter().any(|line| {
                (line.trace.as_str(), line.service.as_str(), line.body.as_str(), line.severity.as_str())
                    == (trace, service, body, severity)
                    && !line.span.is_empty()
            }))
        })?;
        let lines = &collector.received().lines;
        ensure!(there, "no line {body:?} of {service} in trace {trace}: {lines:#?}");
    }
    Ok(())
}

/// A line says by itself whom it is about, also for whoever has no span of it.
fn lines_say_whom_they_are_about(collector: &Collector, scene: &Scene) -> anyhow::Result<()> {
    let uid = scene.call("Placements/Get", r#"{"name": "good"}"#)?["uid"].as_str().unwrap_or_default().to_owned();
    let received = collector.received();
    ensure!(received.doubled.is_empty(), "attributes come twice: {:#?}", received.doubled);
    for (service, body, expected) in [
        ("berth-controller", "a change was asked for", vec![("method", "Placements/Create"), ("outcome", "Ok")]),
        ("berth-controller", "placement changed phase", vec![("phase", "Active"), ("node", "hv-good")]),
        ("berth-agent", "step ended", vec![("step", "StartVm"), ("attempt", "1"), ("node", "hv-good")]),
        ("berth-agent", "placement is as wanted", vec![("node", "hv-good")]),
    ] {
        let about = [("placement", "good"), ("uid", uid.as_str()), ("trace_id", GOOD_TRACE)];
        let says = |line: &Line| {
            expected.iter().chain(&about).all(|(key, value)| line.attributes.get(*key).is_some_and(|is| is == value))
        };
        let lines: Vec<_> = received.lines.iter().filter(|line| line.service == service && line.body == body).collect();
        ensure!(lines.iter().any(|line| says(line)), "no line {body:?} says {expected:?} and {about:?}: {lines:#?}");
    }
    Ok(())
}

/// Metrics and the API count the same things the same way.
fn as_the_api_says(scene: &Scene) -> anyhow::Result<()> {
    // What is read is at most a second old.
    std::thread::sleep(std::time::Duration::from_millis(1_200));
    let metrics = scene.metrics()?;
    let summary = scene.call("Inventory/Summarize", "{}")?;
    let models = summary["models"].as_array().cloned().unwrap_or_default();
    ensure!(models.len() == 1, "{summary:#}");
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or(0.0);
    let model = &models[0];
    let about = [("model", "A16")];
    let check = |what: &str, measured: f64, said: f64| {
        ensure!((measured - said).abs() < 1e-9, "{what}: {measured} is measured, the API says {said}\n{}", metrics.0);
        Ok(())
    };
    check("GPUs", metrics.get("berth_gpus", &about)?, number(&model["gpus"]))?;
    check("available", metrics.get("berth_gpus_available", &about)?, number(&model["available"]))?;
    for state in model["states"].as_array().into_iter().flatten() {
        let name = state["name"].as_str().unwrap_or_default();
        check(name, metrics.get("berth_gpus", &[("model", "A16"), ("state", name)])?, number(&state["count"]))?;
    }
    for slots in model["slots"].as_array().into_iter().flatten() {
        let size = slots["gpus"].to_string();
        let measured = metrics.get("berth_slots", &[("model", "A16"), ("size", &size)])?;
        check(&size, measured, number(&slots["vms"]))?;
    }
    let drift = scene.call("Inventory/ListDrift", "{}")?;
    let differences = drift["differences"].as_array().map_or(0, Vec::len);
    check("differences", metrics.get("berth_differences", &[])?, f64::from(u32::try_from(differences)?))?;
    let status = scene.call("Operations/Status", "{}")?;
    check("claims", metrics.get("berth_gpus_held", &about)?, number(&status["claims"]))?;
    check(
        "nodes",
        metrics.get("berth_nodes", &[("state", "Ready"), ("cluster", "c1")])?,
        number(&status["nodesReady"]),
    )?;
    check("agents", metrics.get("berth_agents_connected", &[])?, number(&status["nodesConnected"]))?;
    check("active", metrics.get("berth_placements", &[("phase", "Active")])?, 1.0)?;
    check("failed", metrics.get("berth_placements", &[("phase", "Failed")])?, 1.0)?;
    check("ended", metrics.get("berth_placements_ended_total", &[("reason", "Step")])?, 1.0)?;
    check("leads", metrics.get("berth_leader", &[])?, 1.0)?;
    check("broken", metrics.get("berth_invariants_violated", &[])?, 0.0)?;
    let failed = [("step", "StartVm"), ("class", "Failed")];
    ensure!(metrics.get("berth_steps_failed_total", &failed)? >= 1.0, "no failed step\n{}", metrics.0);
    let create = [("method", "Placements/Create"), ("code", "Ok")];
    check("calls", metrics.get("berth_api_duration_seconds_count", &create)?, 2.0)?;
    ensure!(metrics.get("berth_store_duration_seconds_count", &[("operation", "commit"), ("outcome", "ok")])? >= 2.0);
    ensure!(metrics.get("process_cpu_time_seconds_total", &[])? > 0.0);
    let agent = Metrics::read(&scene.agent_metrics[1])?;
    let measured = agent.get("berth_step_duration_seconds_count", &failed)?;
    check("failed attempts", measured, metrics.get("berth_steps_failed_total", &failed)?)?;
    check("session", agent.get("berth_session", &[])?, 1.0)?;
    check("hardware", agent.get("hw_status_ratio", &[("hw_state", "ok")])?, 2.0)
}
