//! A collector that is dead, slow, wrong or killed changes nothing but a counter.

use super::scene::{GOOD_VM, PATIENCE, Scene};
use anyhow::ensure;
use berth_tests::otlp::Collector;
use berth_tests::process::{free_port, wait_until};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

/// Far more than a call takes on a busy machine, and less than any wait of an exporter.
const SOON: Duration = Duration::from_millis(2_500);

/// Places and releases again and again; no call may take long.
fn work(scene: &Scene, run: &str) -> anyhow::Result<()> {
    for round in 0..5 {
        let name = format!("{run}-{round}");
        let begun = Instant::now();
        scene.call("Placements/Create", &Scene::request(&name, GOOD_VM))?;
        let took = begun.elapsed();
        ensure!(took < SOON, "a call took {took:?}");
        scene.wait_phase(&name, "PHASE_ACTIVE")?;
        scene.call("Placements/Release", &format!(r#"{{"name": "{name}"}}"#))?;
        scene.wait_phase(&name, "PHASE_RELEASED")?;
    }
    Ok(())
}

fn dropped(scene: &Scene, signal: &str) -> anyhow::Result<f64> {
    scene.metrics()?.get("berth_telemetry_dropped_total", &[("signal", signal)])
}

fn wait_dropped(scene: &Scene, signal: &str, above: f64) -> anyhow::Result<()> {
    let counted = wait_until(PATIENCE, || Ok(dropped(scene, signal)? > above))?;
    ensure!(counted, "no lost {signal} are counted\n{}", scene.metrics()?.0);
    Ok(())
}

/// Ends the controller in order, which must not wait for the collector for long.
fn stop(mut scene: Scene) -> anyhow::Result<()> {
    let begun = Instant::now();
    scene.controller.terminate()?;
    let ended = scene.controller.ended_within(Duration::from_secs(15))?;
    ensure!(ended.is_some_and(|status| status.success()), "it did not end: {ended:?} {}", scene.controller.log());
    ensure!(begun.elapsed() < Duration::from_secs(12), "it took {:?} to end", begun.elapsed());
    ensure!(!scene.controller.log().contains("panicked"), "{}", scene.controller.log());
    drop(scene.agents);
    drop(scene.dir);
    Ok(())
}

#[test]
fn one_that_never_answers() -> anyhow::Result<()> {
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let scene = Scene::start(&format!("http://{}", silent.local_addr()?), &[])?;
    work(&scene, "silent")?;
    for signal in ["traces", "logs", "metrics"] {
        wait_dropped(&scene, signal, 0.0)?;
    }
    stop(scene)
}

#[test]
fn one_that_is_not_there_and_one_that_speaks_another_language() -> anyhow::Result<()> {
    let scene = Scene::start(&format!("http://127.0.0.1:{}", free_port()?), &[])?;
    work(&scene, "absent")?;
    wait_dropped(&scene, "traces", 0.0)?;
    wait_dropped(&scene, "logs", 0.0)?;
    // Berth itself speaks gRPC, and knows no such method.
    let wrong = Scene::start(&scene.endpoint, &[])?;
    work(&wrong, "wrong")?;
    wait_dropped(&wrong, "traces", 0.0)?;
    stop(wrong)?;
    stop(scene)
}

#[test]
fn one_that_is_killed_and_comes_back() -> anyhow::Result<()> {
    let collector = Collector::start()?;
    let address: SocketAddr = collector.address;
    let scene = Scene::start(&collector.endpoint(), &[])?;
    work(&scene, "before")?;
    let came = |collector: &Collector, run: &str| {
        let name = format!("{run}-4");
        wait_until(PATIENCE, || {
            let received = collector.received();
            Ok(received.spans.iter().any(|span| span.attributes.get("placement") == Some(&name)))
        })
    };
    ensure!(came(&collector, "before")?, "no spans came");
    ensure!(dropped(&scene, "traces")? == 0.0, "spans were lost while the collector was there");
    drop(collector);
    work(&scene, "meanwhile")?;
    wait_dropped(&scene, "traces", 0.0)?;
    let collector = Collector::start_at(address)?;
    work(&scene, "after")?;
    ensure!(came(&collector, "after")?, "no spans came to the one that came back");
    stop(scene)
}
