//! Counts tests from the lines that the test harness prints.

use std::fmt;

/// What is printed before the reason by a test that cannot run here. It then ends well, and the harness counts it as
/// passed; here it is not.
pub(crate) const SKIPPED: &str = "skipped: ";

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Ended well.
    pub(crate) passed: u64,
    /// Failed, or could not even be built or started.
    pub(crate) failed: u64,
    /// Could not run here, each with a reason in the output.
    pub(crate) skipped: u64,
}

impl Tally {
    /// One that passed or failed.
    pub(crate) fn one(passed: bool) -> Self {
        Self { passed: u64::from(passed), failed: u64::from(!passed), skipped: 0 }
    }

    /// One that could not run.
    pub(crate) fn skip() -> Self {
        Self { skipped: 1, ..Self::default() }
    }
}

/// Counts while output comes by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counter {
    passed: u64,
    failed: u64,
    ignored: u64,
    said_skipped: u64,
}

impl Counter {
    /// Takes in one line of output.
    pub(crate) fn line(&mut self, line: &str) {
        if line.starts_with(SKIPPED) {
            self.said_skipped += 1;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            // "ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s"
            for part in result.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else {
                    continue;
                };
                match what {
                    "passed" => self.passed += count,
                    "failed" => self.failed += count,
                    "ignored" => self.ignored += count,
                    _ => {}
                }
            }
        }
    }

    /// What it comes to. The tests that said they were skipped are among the passed ones of the harness.
    pub(crate) fn tally(self) -> Tally {
        Tally {
            passed: self.passed.saturating_sub(self.said_skipped),
            failed: self.failed,
            skipped: self.ignored + self.said_skipped,
        }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> String {
        let mut counter = Counter::default();
        for line in lines {
            counter.line(line);
        }
        counter.tally().to_string()
    }

    #[test]
    fn results_are_summed() {
        assert_eq!(
            tally(&[
                "running 6 tests",
                "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
                "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 9 filtered out; finished in 1.25s",
            ]),
            "7 passed, 3 failed, 1 skipped"
        );
    }

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        assert_eq!(
            tally(&["skipped: python: pip cannot be reached", "test result: ok. 2 passed; 0 failed; 0 ignored;"]),
            "1 passed, 0 failed, 1 skipped"
        );
    }

    #[test]
    fn other_lines_count_for_nothing() {
        assert_eq!(
            tally(&["test a ... ok", "5 passed", "  test result: ok. 1 passed"]),
            "0 passed, 0 failed, 0 skipped"
        );
    }
}
