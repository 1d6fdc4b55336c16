//! Prints how well the scheduler packs the openb trace: ten seeds, both pod lists.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people at a terminal")]

#[path = "../tests/support/fleet.rs"]
mod fleet;
#[path = "../tests/support/openb.rs"]
mod openb;

use openb::{Outcome, Trace, least, mean};

fn main() {
    let Some(folder) = openb::folder() else {
        println!("skipped: the openb trace is not beside this repository (shared/data/openb)");
        return;
    };
    println!("| pod list | allocated, mean (least) % | large demand placed, mean (least) % |");
    println!("|---|---|---|");
    for pods in ["openb_pod_list_default.csv", "openb_pod_list_gpuspec33.csv"] {
        let trace = Trace::load(&folder, pods);
        let outcomes: Vec<Outcome> = (42..=51).map(|seed| trace.run(seed)).collect();
        println!(
            "| {pods} | {:.2} ({:.2}) | {:.2} ({:.2}) |",
            mean(&outcomes, Outcome::allocated),
            least(&outcomes, Outcome::allocated),
            mean(&outcomes, Outcome::large_share),
            least(&outcomes, Outcome::large_share),
        );
    }
}
