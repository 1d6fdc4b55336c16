//! The random-fault run at its everyday length; thousands of seeds by `cargo run -p berth-tests --bin faults`.

use berth_tests::faults::{self, Summary};

/// Seeds run every day: together every kind of fault at every kind of step, in seconds.
const SEEDS: u64 = 240;

#[test]
fn whatever_goes_wrong_no_gpu_is_lost_or_doubled_and_everything_comes_to_an_end() {
    let mut all = Summary::default();
    for seed in 0..SEEDS {
        match faults::run(seed, false) {
            Ok((summary, _)) => all.add(&summary),
            Err(failure) => panic!("{failure}\nits log: cargo run -p berth-tests --bin faults -- --seed {seed}"),
        }
    }
    // A run in which nothing happens proves nothing.
    assert!(all.steps > 10_000 && all.kills > 1_000 && all.elections > 200, "{all:?}");
    assert!(all.active > 500 && all.failed > 500 && all.accidents > 5_000, "{all:?}");
}

#[test]
fn one_seed_gives_one_run() {
    assert_eq!(faults::run(7, true).ok(), faults::run(7, true).ok());
}
