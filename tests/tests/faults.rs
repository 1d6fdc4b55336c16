//! The random-fault run at its everyday length; thousands of seeds by `cargo run -p berth-tests --bin faults`.

use berth_tests::faults::{self, Summary};

/// Seeds run every day: together every kind of fault at every kind of step, in seconds.
const SEEDS: u64 = 200;

#[test]
fn whatever_goes_wrong_no_gpu_is_lost_or_doubled_and_everything_comes_to_an_end() {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = |thread: usize| {
        let mut all = Summary::default();
        for seed in (0..SEEDS).skip(thread).step_by(threads) {
            match faults::run(seed, false) {
                Ok((summary, _)) => all.add(&summary),
                Err(failure) => panic!("{failure}\nits log: cargo run -p berth-tests --bin faults -- --seed {seed}"),
            }
        }
        all
    };
    let mut all = Summary::default();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads).map(|thread| scope.spawn(move || share(thread))).collect();
        for run in runs {
            match run.join() {
                Ok(summary) => all.add(&summary),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    // A run in which nothing happens proves nothing.
    assert!(all.steps > 10_000 && all.kills > 1_000 && all.elections > 200, "{all:?}");
    assert!(all.active > 500 && all.failed > 500 && all.accidents > 5_000, "{all:?}");
}

#[test]
fn one_seed_gives_one_run() {
    assert_eq!(faults::run(7, true).ok(), faults::run(7, true).ok());
}
