//! `cargo xtask pictures`: panels of the shipped dashboards as pictures, from what a real Prometheus scraped of a running Berth.
//!
//! Owns `docs/pictures`. Must never draw a number that no Prometheus gave, nor ask it anything but a panel's own queries.

pub mod draw;
mod fleet;
mod panel;

use crate::process::root;
use crate::{config, etcd};
use anyhow::{Context as _, ensure};
use draw::{Mark, Picture};
use fleet::Fleet;
use panel::Panel;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The panels that are drawn: file of the dashboard, title of the panel.
pub const PANELS: [(&str, &str); 5] = [
    ("berth-fleet.json", "GPUs by state"),
    ("berth-fleet.json", "Why GPUs are not available"),
    ("berth-fleet.json", "Nodes by state"),
    ("berth-placements.json", "Placements by phase"),
    ("berth-controllers.json", "Time of commits"),
];
/// Between two scrapes: what is shown lasts minutes, not weeks.
const SCRAPE: Duration = Duration::from_secs(2);
/// What Grafana would take for `$__rate_interval` at least is four scrapes; commits are few here.
const RATE: &str = "20s";
/// From the start to the first request: longer than rates look back.
const SETTLES: Duration = Duration::from_secs(25);
/// From the first request to the last point of a picture.
const LASTS: Duration = Duration::from_secs(300);
/// Since the first request.
const AGENTS_STOP: Duration = Duration::from_secs(110);
const AGENTS_RETURN: Duration = Duration::from_secs(175);
const LEADER_KILLED: Duration = Duration::from_secs(235);

/// Where the picture of a panel is.
#[must_use]
pub fn file(title: &str) -> PathBuf {
    let name: String =
        title.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    root().join("docs").join("pictures").join(format!("{name}.svg"))
}

/// Runs a Berth for some minutes under a Prometheus, and draws what that saw. `say` is told what happens.
///
/// # Errors
/// When something does not start, or a panel has no data.
pub fn run(mut say: impl FnMut(&str)) -> anyhow::Result<()> {
    let program = config::prometheus().context("there is no Prometheus; put one in the PATH")?;
    let panels = PANELS.iter().map(|(file, title)| Panel::read(file, title)).collect::<anyhow::Result<Vec<_>>>()?;
    let dir = tempfile::Builder::new().prefix("berth-pictures-").tempdir().context("no temporary directory")?;
    let etcd = etcd::Etcd::one("pictures")?.context("pictures need etcd")?;
    say("Starting three controllers and a simulated fleet.");
    let mut fleet = Fleet::start(dir.path(), &etcd)?;
    let prometheus = crate::prometheus::Prometheus::start(&program, dir.path(), &fleet.controllers(), SCRAPE, None)
        .context("no Prometheus")?;
    let url = prometheus.url.clone();
    let scraped = crate::process::wait_until(Duration::from_secs(60), || {
        Ok(crate::prometheus::query(&url, "sum(berth_nodes)").is_ok_and(|series| !series.is_empty()))
    })?;
    ensure!(scraped, "Prometheus does not get anything from the controllers");

    // A rate looks back, and what it would see is the start of everything.
    std::thread::sleep(SETTLES);
    let begun = SystemTime::now();
    let load = fleet.load();
    let wait = |until: Duration| std::thread::sleep(until.saturating_sub(begun.elapsed().unwrap_or_default()));
    let mut marks = Vec::new();
    let mut mark = |what: &str| {
        say(what);
        marks.push(Mark { at: begun.elapsed().unwrap_or_default().as_secs_f64(), text: what.to_owned() });
    };
    wait(AGENTS_STOP);
    let stopped = fleet.stop_agents()?;
    mark(&format!("{stopped} agents killed"));
    wait(AGENTS_RETURN);
    fleet.start_agents()?;
    mark("they are back");
    wait(LEADER_KILLED);
    let leader = fleet.kill_leader()?;
    mark("leader killed");
    std::thread::sleep(Duration::from_secs(5));
    fleet.start_controller(leader)?;
    wait(LASTS);
    say(&load.stop()?);

    let from = begun.duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs_f64();
    std::fs::create_dir_all(root().join("docs").join("pictures")).context("cannot make docs/pictures")?;
    for panel in panels {
        let series = panel.ask(&url, from, LASTS, SCRAPE, RATE)?;
        let file = file(&panel.title);
        let picture =
            Picture { title: &panel.title, unit: panel.unit, stacked: panel.stacked, series: &series, marks: &marks };
        write(&file, &picture)?;
        say(&file.display().to_string());
    }
    Ok(())
}

fn write(file: &Path, picture: &Picture<'_>) -> anyhow::Result<()> {
    let text = picture.svg().with_context(|| format!("cannot draw {}", picture.title))?;
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
