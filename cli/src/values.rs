//! Numbers, sizes and lengths of time as people write them: read in one way on the command line and in files.

use bytesize::ByteSize;
use std::fmt::Display;
use std::time::Duration;

/// A size with its unit. A bare number is refused: whoever writes 24 means 24GiB more often than 24 bytes, and a size that is
/// too small is no error that anybody would see.
///
/// # Errors
/// What is wrong with it, as a sentence.
pub(crate) fn size(text: &str) -> Result<ByteSize, String> {
    let bare = |number: f64| number.is_finite() && !text.contains(char::is_alphabetic);
    match (text.parse::<f64>(), text.parse::<ByteSize>()) {
        (Ok(number), _) if bare(number) && number.abs() > 0.0 => {
            Err(format!("{text} has no unit; write it like 24GiB"))
        }
        // Nothing is nothing in every unit.
        (Ok(number), _) if bare(number) => Ok(ByteSize::b(0)),
        (_, Ok(size)) => Ok(size),
        (_, Err(_)) => Err(format!("{text:?} is no size; write it like 24GiB")),
    }
}

/// A whole number from `from` to `to`.
///
/// # Errors
/// What is wrong with it, as a sentence.
pub(crate) fn whole(text: &str, from: u32, to: u32) -> Result<u32, String> {
    match text.parse::<i128>() {
        Ok(number) => u32::try_from(number)
            .ok()
            .filter(|number| (from..=to).contains(number))
            .ok_or_else(|| format!("{number} is not from {from} to {to}")),
        Err(_) => Err(no_whole(text, from, to)),
    }
}

/// What is said of a text that is no number.
pub(crate) fn no_whole(text: impl Display, from: u32, to: u32) -> String {
    format!("\"{text}\" is no whole number from {from} to {to}")
}

/// A whole number that counts up: a version, a block.
///
/// # Errors
/// What is wrong with it, as a sentence.
pub(crate) fn counted(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no whole number of 0 or more"))
}

/// A length of time.
///
/// # Errors
/// What is wrong with it, as a sentence.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    use humantime::DurationError::{Empty, NumberExpected};
    humantime::parse_duration(text).map_err(|e| {
        // Its own words count characters where none of the text is a length of time.
        let nothing_of_it = matches!(e, Empty | NumberExpected(0));
        let what = if nothing_of_it { format!("{text:?} is no length of time") } else { e.to_string() };
        format!("{what}; write it like 90s, 10m or 2h")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_unit_unless_it_is_nothing() {
        for (text, bytes) in
            [("24GiB", 24 << 30), ("1.5 KiB", 1536), ("64B", 64), ("1k", 1000), ("0", 0), ("0GiB", 0), ("0.0", 0)]
        {
            assert_eq!(size(text).map(|size| size.as_u64()), Ok(bytes), "{text}");
        }
        for text in ["24", "-1", "24.5", "1e3", "99999999999999999999999"] {
            assert!(size(text).is_err(), "{text:?} was accepted");
        }
        assert_eq!(size("24").unwrap_err(), "24 has no unit; write it like 24GiB");
        for text in ["lots", "", "GiB", "-24GiB", "inf", "24GiBs"] {
            assert_eq!(size(text).unwrap_err(), format!("{text:?} is no size; write it like 24GiB"));
        }
    }

    #[test]
    fn numbers_and_times_are_told_how_to_be_written() {
        assert_eq!(whole("16", 1, 16), Ok(16));
        for text in ["-1", "0", "17", "99999999999"] {
            assert_eq!(whole(text, 1, 16).unwrap_err(), format!("{text} is not from 1 to 16"));
        }
        for text in ["two", "1.5", "", "--wait"] {
            assert_eq!(whole(text, 1, 16).unwrap_err(), format!("{text:?} is no whole number from 1 to 16"));
        }
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("-5m").unwrap_err(), "\"-5m\" is no length of time; write it like 90s, 10m or 2h");
        assert_eq!(counted("0"), Ok(0));
        assert_eq!(counted("-1").unwrap_err(), "\"-1\" is no whole number of 0 or more");
    }
}
