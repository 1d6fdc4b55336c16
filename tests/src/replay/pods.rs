//! The openb pod list: which pods are replayed, and when what happens.

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use std::path::Path;

/// One pod that asks for whole GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) cpu_milli: u64,
    pub(super) memory_mib: u64,
    pub(super) gpus: u32,
    /// Alternatives; none means any.
    pub(super) models: Vec<String>,
    /// Seconds since the trace began.
    pub(super) created: u64,
    pub(super) deleted: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Row {
    name: String,
    cpu_milli: u64,
    memory_mib: u64,
    num_gpu: u32,
    gpu_milli: u32,
    gpu_spec: String,
    creation_time: u64,
    deletion_time: Option<u64>,
}

/// Reads the pods that ask for whole GPUs, in order of creation.
pub(super) fn read(path: &Path, limit: Option<usize>) -> anyhow::Result<Vec<Pod>> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut pods = parse(file).with_context(|| format!("{} is no openb pod list", path.display()))?;
    pods.truncate(limit.unwrap_or(usize::MAX));
    ensure!(!pods.is_empty(), "{} has no pod that asks for whole GPUs", path.display());
    Ok(pods)
}

fn parse(from: impl std::io::Read) -> anyhow::Result<Vec<Pod>> {
    let mut pods = Vec::new();
    for (at, row) in csv::Reader::from_reader(from).deserialize().enumerate() {
        // The first row is below the header.
        let row: Row = row.with_context(|| format!("line {}", at + 2))?;
        if row.num_gpu == 0 || row.gpu_milli != 1000 {
            continue;
        }
        let mut models: Vec<String> = Vec::new();
        for model in row.gpu_spec.split('|').filter(|model| !model.is_empty()) {
            // The trace lists some twice, which a request may not.
            if !models.iter().any(|known| known == model) {
                models.push(model.to_owned());
            }
        }
        pods.push(Pod {
            name: row.name,
            cpu_milli: row.cpu_milli,
            memory_mib: row.memory_mib,
            gpus: row.num_gpu,
            models,
            created: row.creation_time,
            deleted: row.deletion_time,
        });
    }
    pods.sort_by_key(|pod| pod.created);
    Ok(pods)
}

/// What happens to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// It goes. Before arrivals of the same second: its room can be theirs.
    Depart,
    /// It comes.
    Arrive,
}

/// One event of the replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Event {
    /// Seconds since the trace began.
    pub(super) at: u64,
    pub(super) what: What,
    /// Which pod, by its place in the list.
    pub(super) pod: usize,
}

/// Which departures are replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departures {
    None,
    /// Those up to the last arrival: what is left is there to be checked.
    UntilLastArrival,
    All,
}

/// All events in order.
pub(super) fn events(pods: &[Pod], departures: Departures) -> Vec<Event> {
    let last_arrival = pods.iter().map(|pod| pod.created).max().unwrap_or_default();
    let mut events = Vec::new();
    for (pod, of) in pods.iter().enumerate() {
        events.push(Event { at: of.created, what: What::Arrive, pod });
        // A pod cannot go in the second it comes; the trace has some that do.
        let deleted = of.deleted.map(|at| at.max(of.created + 1));
        let replayed = deleted.filter(|at| match departures {
            Departures::None => false,
            Departures::UntilLastArrival => *at <= last_arrival,
            Departures::All => true,
        });
        events.extend(replayed.map(|at| Event { at, what: What::Depart, pod }));
    }
    events.sort_unstable();
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time
b,12000,16384,2,1000,T4|T4|P100,LS,Running,7,9,0
shared,1000,1024,1,460,,LS,Running,0,9,0
none,1000,1024,0,1000,,LS,Running,0,9,0
a,4000,8192,1,1000,,LS,Running,5,7,
";

    #[test]
    fn whole_gpu_pods_are_read_in_order_of_creation() {
        let pods = parse(LIST.as_bytes()).unwrap();
        let names: Vec<_> = pods.iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(pods[1].models, ["T4", "P100"], "an alternative that is listed twice counts once");
        assert_eq!((pods[1].gpus, pods[1].memory_mib), (2, 16384));
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = parse(LIST.replace("8192", "much").as_bytes()).unwrap_err();
        assert!(format!("{error:#}").contains("line 5"), "{error:#}");
    }

    #[test]
    fn room_is_given_back_before_it_is_asked_for() {
        let pods = parse(LIST.as_bytes()).unwrap();
        let order = |departures| -> Vec<(u64, What, usize)> {
            events(&pods, departures).into_iter().map(|event| (event.at, event.what, event.pod)).collect()
        };
        let until_last = vec![(5, What::Arrive, 0), (7, What::Depart, 0), (7, What::Arrive, 1)];
        assert_eq!(order(Departures::UntilLastArrival), until_last);
        assert_eq!(order(Departures::All), [until_last, vec![(9, What::Depart, 1)]].concat());
        assert_eq!(order(Departures::None), [(5, What::Arrive, 0), (7, What::Arrive, 1)]);
    }
}
