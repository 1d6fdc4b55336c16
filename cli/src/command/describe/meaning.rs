//! What a host's errors mean, beside its own words: the table of errors as lines to print.

use berth_model::errors::{ELSEWHERE, Meaning, by_problem, meanings};
use berth_proto::v1;

/// What the errors of a placement mean: the one that ended it, then the last of the step it is at. Those that no table knows
/// are named with where to look.
pub(super) fn of_placement(placement: &v1::Placement) -> impl Iterator<Item = String> {
    let failure = placement.failure.iter().map(|failure| failure.text.as_str());
    let step =
        placement.current_step.iter().filter_map(|step| step.last_error.as_ref()).map(|error| error.text.as_str());
    let mut told: Vec<String> = Vec::new();
    for line in failure.chain(step).flat_map(of_text) {
        if !told.contains(&line) {
            told.push(line);
        }
    }
    told.into_iter()
}

/// What stands in one error's text.
fn of_text(text: &str) -> Vec<String> {
    let line = |meaning: Meaning| match meaning {
        Meaning::Known(entry) => {
            format!(
                "{} ({}). Cause: {} To do: {}",
                entry.says.trim_end_matches('.'),
                entry.trust.words(),
                entry.cause,
                entry.remedy
            )
        }
        Meaning::Number(number) => format!("0x{number:08X}: {ELSEWHERE}"),
    };
    meanings(text).into_iter().map(line).collect()
}

/// Windows' problem code of a device in words.
pub(super) fn problem(code: Option<u32>) -> String {
    match code {
        None => "not known: the host does not have it, or does not say".to_owned(),
        Some(0) => "none".to_owned(),
        Some(code) => match by_problem(code) {
            Some(entry) => format!("{code}, {}. {} {}", entry.says, entry.cause, entry.remedy),
            None => format!("{code}: {ELSEWHERE}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_explained_once_and_an_unknown_one_says_where_to_look() {
        let error = |text: &str| Some(v1::StepError { text: text.into(), ..Default::default() });
        let placement = v1::Placement {
            failure: Some(v1::FailureReason {
                text: "step StartVm failed: … (0xC035001E)".into(),
                ..Default::default()
            }),
            current_step: Some(v1::CurrentStep {
                last_error: error("… (0xC035001E) (0x8007FFFE)"),
                ..Default::default()
            }),
            ..Default::default()
        };
        let lines: Vec<_> = of_placement(&placement).collect();
        assert_eq!(lines.len(), 2, "{lines:#?}");
        assert!(lines[0].contains("client edition") && lines[0].contains("To do: Use a server edition"), "{lines:#?}");
        assert!(lines[1].starts_with("0x8007FFFE: not in Berth's table; look on the host: Get-WinEvent"), "{lines:#?}");
        assert_eq!(of_placement(&v1::Placement::default()).count(), 0);
    }

    #[test]
    fn problem_codes_are_said_in_words() {
        assert!(problem(Some(22)).starts_with("22, disabled. Somebody, or Berth"));
        assert!(problem(Some(99)).starts_with("99: not in Berth's table"));
        assert_eq!(problem(Some(0)), "none");
    }
}
