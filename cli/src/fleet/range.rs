//! Names with a range in them: `hv-{01..20}` means twenty names.

/// Most names one range may give: a fleet's size.
const MAX: u32 = 10_000;

/// All names of a pattern; a name without a range gives itself.
///
/// # Errors
/// What is wrong with the range.
pub fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = pattern.split_once('{') else { return Ok(vec![pattern.to_owned()]) };
    let bad = || format!("the range in {pattern:?} is not of the form {{01..20}}");
    let (range, after) = rest.split_once('}').ok_or_else(bad)?;
    let (first, last) = range.split_once("..").ok_or_else(bad)?;
    if after.contains(['{', '}']) {
        return Err(format!("{pattern:?} has more than one range"));
    }
    let number = |text: &str| {
        let legal = (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        legal.then(|| text.parse::<u32>().ok()).flatten().ok_or_else(bad)
    };
    let (from, to) = (number(first)?, number(last)?);
    if from > to {
        return Err(format!("the range in {pattern:?} runs backwards"));
    }
    if to - from >= MAX {
        return Err(format!("the range in {pattern:?} gives more than {MAX} names"));
    }
    let width = first.len();
    Ok((from..=to).map(|n| format!("{before}{n:0width$}{after}")).collect())
}

/// All names of an entry: by its pattern, or `count` of them numbered from 1.
///
/// # Errors
/// What is wrong with pattern or count.
pub fn repeat(pattern: &str, count: Option<u32>) -> Result<Vec<String>, String> {
    let names = expand(pattern)?;
    match count {
        None => Ok(names),
        Some(0) => Err("count is 0; leave the entry out instead".to_owned()),
        Some(count) if count > MAX => Err(format!("count {count} is more than {MAX}")),
        Some(count) if pattern.contains('{') => {
            if usize::try_from(count).is_ok_and(|count| count == names.len()) {
                Ok(names)
            } else {
                Err(format!("count {count} contradicts {pattern:?}, which gives {}", names.len()))
            }
        }
        Some(1) => Ok(names),
        Some(count) => {
            let width = count.to_string().len().max(2);
            Ok((1..=count).map(|n| format!("{pattern}-{n:0width$}")).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_keep_their_width() {
        assert_eq!(expand("hv-{08..11}.lab").unwrap(), ["hv-08.lab", "hv-09.lab", "hv-10.lab", "hv-11.lab"]);
        assert_eq!(expand("hv-{9..10}").unwrap(), ["hv-9", "hv-10"]);
        assert_eq!(expand("hv").unwrap(), ["hv"]);
    }

    #[test]
    fn counts_number_from_one() {
        assert_eq!(repeat("vm", Some(2)).unwrap(), ["vm-01", "vm-02"]);
        assert_eq!(repeat("vm", Some(1)).unwrap(), ["vm"]);
        assert_eq!(repeat("vm-{1..2}", Some(2)).unwrap(), ["vm-1", "vm-2"]);
    }

    #[test]
    fn hostile_ranges_are_refused() {
        for text in [
            "a{",
            "a{1}",
            "a{1..}",
            "a{..2}",
            "a{x..y}",
            "a{2..1}",
            "a{1..2}{1..2}",
            "a{0..4000000000}",
            "a{1..99999}",
            "a{-1..2}",
        ] {
            assert!(expand(text).is_err(), "{text:?} was accepted");
        }
        assert!(repeat("a{1..2}", Some(3)).is_err());
        assert!(repeat("a", Some(0)).is_err());
        assert!(repeat("a", Some(u32::MAX)).is_err());
    }
}
