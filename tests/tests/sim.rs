//! The simulation of a whole Berth at its everyday length; thousands of seeds by `cargo xtask sim --seeds N`.

use berth_tests::sim::{self, TROUBLES};

/// Seeds run every day: together every kind of trouble many times over, in seconds.
const SEEDS: u64 = 320;

#[test]
fn whatever_goes_wrong_nothing_is_lost_or_doubled_and_everything_comes_to_rest() {
    let (all, failures) = sim::run_many(0, SEEDS);
    if let Some(failure) = failures.first() {
        panic!("{failure}\nits log: cargo xtask sim --seed {}", failure.seed);
    }
    // A run in which nothing happens proves nothing.
    assert_eq!(all.never(TROUBLES), Vec::<&str>::new(), "never happened, although everything is to go wrong:\n{all}");
    assert!(all.of("leaderships") > 1_000 && all.of("steps") > 5_000 && all.of("transactions") > 10_000, "{all}");
}

#[test]
fn one_seed_gives_one_run() {
    assert_eq!(sim::run(7, true), sim::run(7, true));
}
