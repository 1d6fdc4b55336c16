//! Answers changed at random, some byte by byte and some by what they mean: nothing panics, nothing is told at length, and
//! what is believed has exactly the members of the protocol.
//!
//! As many cases as the suite has time for; `PROPTEST_CASES=1000000 cargo test -p berth-node-agent fuzz` runs longer, in
//! a release build some thousands a second. A failure prints the smallest case that shows it.

use super::tests::golden;
use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// A case of a changed look takes about half a millisecond in a debug build.
const CASES: u32 = 2_000;
/// Longest text that goes from an answer into a log or a report.
const MAX_TOLD: usize = 16 << 10;

fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    // Proptest's own usual number means that nobody asked for another one.
    let asked = if usual.cases == 256 { CASES } else { usual.cases };
    ProptestConfig { cases: asked, failure_persistence: None, ..usual }
}

/// Real answers with the operation that each is to, hostile ones among them.
static SEEDS: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(seeds);

fn seeds() -> Vec<(String, Vec<u8>)> {
    let real = [
        ("hello.json", "hello"),
        ("observe.json", "observe"),
        ("observe-busy.json", "observe"),
        ("survey.json", "survey"),
        ("disable.json", "disable"),
        ("configure-vm.json", "configure-vm"),
        ("refused.json", "disable"),
        ("start-vm-failed.json", "start-vm"),
    ];
    let compact = |name: &str| serde_json::from_slice::<Value>(&golden(name)).unwrap().to_string().into_bytes();
    let mut seeds: Vec<_> = real.iter().map(|(name, op)| ((*op).to_owned(), compact(name))).collect();
    let guest = json!({ "id": 7, "ok": true, "result": { "devices": [
        { "instance_id": r"PCI\VEN_10DE&DEV_25B6&REV_A1\x", "name": "A2", "status": "OK", "problem": 0 },
    ] } });
    seeds.push(("ask-windows-guest".to_owned(), guest.to_string().into_bytes()));
    let addresses = json!({ "id": 7, "ok": true, "result": { "addresses": ["192.0.2.7"] } });
    seeds.push(("guest-addresses".to_owned(), addresses.to_string().into_bytes()));
    let hostile: Vec<Value> = serde_json::from_slice(&golden("hostile.json")).unwrap();
    let text = |case: &Value, name: &str| case[name].as_str().unwrap().to_owned();
    seeds.extend(hostile.iter().map(|case| (text(case, "op"), text(case, "line").into_bytes())));
    seeds
}

/// What the decoder makes of a line, told at length.
fn told(op: &str, line: &[u8]) -> Result<Result<String, String>, String> {
    fn of<T: DeserializeOwned + std::fmt::Debug>(line: &[u8]) -> Result<Result<String, String>, String> {
        match read::<T>(line, 7) {
            Ok(Ok(answer)) => Ok(Ok(format!("{answer:?}"))),
            Ok(Err(failure)) => Ok(Err(failure.to_string())),
            Err(malformed) => Err(malformed.to_string()),
        }
    }
    match op {
        "observe" => of::<Look>(line),
        "survey" => of::<Survey>(line),
        "hello" => of::<Hello>(line),
        "ask-windows-guest" => of::<GuestLook>(line),
        "guest-addresses" => of::<GuestAddresses>(line),
        _ => of::<Stepped>(line),
    }
}

/// The members of every object in an answer, by the way to it; elements of a list share one way.
fn shape(value: &Value, way: &str, found: &mut BTreeMap<String, BTreeSet<String>>, clash: &mut Vec<String>) {
    // What these hold is nobody's business: it is skipped whatever it is.
    let opaque = ["role", "status", "class", "manufacturer", "modules", "former", "seen", "name"];
    match value {
        Value::Object(members) => {
            let names: BTreeSet<String> = members.keys().cloned().collect();
            let known = found.entry(way.to_owned()).or_insert_with(|| names.clone());
            if *known != names {
                clash.push(format!("{way}: {names:?}"));
            }
            for (name, member) in members.iter().filter(|(name, _)| !opaque.contains(&name.as_str())) {
                shape(member, &format!("{way}.{name}"), found, clash);
            }
        }
        Value::Array(elements) => elements.iter().for_each(|element| shape(element, &format!("{way}[]"), found, clash)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Fails if a believed answer has other objects than the script's own.
fn demand_protocol(op: &str, line: &[u8]) -> Result<(), TestCaseError> {
    // What nobody reads is skipped whatever it is: nested beyond all limits, or a number that is none.
    let Ok(answer) = serde_json::from_slice::<Value>(line) else { return Ok(()) };
    prop_assert_eq!(&answer["id"], &json!(7));
    let members: BTreeSet<&str> = answer.as_object().into_iter().flat_map(|o| o.keys().map(String::as_str)).collect();
    prop_assert!(members == ["id", "ok", "result"].into() || members == ["error", "id", "ok"].into(), "{:?}", members);
    if !matches!(op, "observe" | "survey" | "ask-windows-guest" | "guest-addresses") || answer["ok"] != json!(true) {
        return Ok(());
    }
    let (mut found, mut clash) = (BTreeMap::new(), Vec::new());
    for (_, seed) in SEEDS.iter().take(10).filter(|(of, _)| of == op) {
        shape(&serde_json::from_slice(seed).unwrap(), "", &mut found, &mut clash);
    }
    assert!(clash.is_empty(), "the script's own answers differ: {clash:?}");
    let known: BTreeSet<String> = found.keys().cloned().collect();
    shape(&answer, "", &mut found, &mut clash);
    prop_assert!(clash.is_empty(), "believed with other members: {:?}", clash);
    let odd: Vec<_> = found.keys().filter(|way| !known.contains(*way)).collect();
    prop_assert!(odd.is_empty(), "believed with objects nobody knows: {:?}", odd);
    Ok(())
}

fn check(op: &str, line: &[u8]) -> Result<(), TestCaseError> {
    match told(op, line) {
        Err(text) => prop_assert!(text.len() <= MAX_TOLD, "{} bytes about a line that is no answer", text.len()),
        Ok(outcome) => {
            match &outcome {
                // Nothing grows while it is read: every value was in the line.
                Ok(text) => prop_assert!(text.len() <= 64 * line.len() + 4096, "{} of {}", text.len(), line.len()),
                Err(text) => prop_assert!(text.len() <= MAX_TOLD, "{} bytes about a failure", text.len()),
            }
            demand_protocol(op, line)?;
        }
    }
    Ok(())
}

/// One change of bytes.
fn bend(line: &mut Vec<u8>, (kind, at, with): (u8, usize, u32), other: &[u8]) {
    let at = at % (line.len() + 1);
    let end = (at + 1 + with as usize % 64).min(line.len());
    let byte = with.to_le_bytes()[0];
    match kind % 7 {
        0 if at < line.len() => line[at] ^= byte.max(1),
        1 => line.insert(at, byte),
        2 => drop(line.drain(at..end)),
        3 => {
            let again = line[at..end].to_vec();
            line.splice(at..at, again);
        }
        4 => line.truncate(at),
        5 => {
            let from = with as usize % (other.len() + 1);
            let to = (from + 128).min(other.len());
            line.splice(at..end, other[from..to].iter().copied());
        }
        _ => {
            let word =
                [&b"null"[..], b"-1", b"1e999", b"18446744073709551616", b"\"\\ud800\"", b"[[[[", b"{\"a\":", b"\n"];
            line.splice(at..end, word[with as usize % word.len()].iter().copied());
        }
    }
}

/// One change of what an answer means: somewhere in it, something else.
fn twist(value: &mut Value, steps: &[u8], with: u8) {
    let Some((step, rest)) = steps.split_first() else {
        *value = match with % 12 {
            0 => Value::Null,
            1 => json!(true),
            2 => json!(-1),
            3 => json!(u64::MAX),
            4 => json!(1.5),
            5 => json!(""),
            6 => json!("x".repeat(100_000)),
            7 => json!([]),
            8 => json!({}),
            9 => json!([value.clone(), value.clone()]),
            10 => json!({ "x": value.clone() }),
            _ => (0..200).fold(Value::Null, |inside, _| json!([inside])),
        };
        return;
    };
    let step = usize::from(*step);
    match value {
        Value::Object(members) if !members.is_empty() => {
            let name = members.keys().nth(step % members.len()).cloned().unwrap_or_default();
            match (rest.is_empty(), with % 4) {
                (true, 0) => drop(members.remove(&name)),
                (true, 1) => drop(members.insert(format!("{name}{}", "x".repeat(usize::from(with) * 400)), json!(1))),
                (true | false, _) => {
                    if let Some(member) = members.get_mut(&name) {
                        twist(member, rest, with);
                    }
                }
            }
        }
        Value::Array(elements) if !elements.is_empty() => {
            let at = step % elements.len();
            if rest.is_empty() && with.is_multiple_of(4) {
                // The same device, or VM, again and again.
                let again = elements[at].clone();
                elements.extend(std::iter::repeat_n(again, usize::from(with)));
            } else {
                twist(&mut elements[at], rest, with);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            twist(value, &[], with);
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn bent_answers_do_no_harm(
        seed in any::<prop::sample::Index>(),
        other in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<u8>(), any::<usize>(), any::<u32>()), 1..6),
    ) {
        let seeds = &*SEEDS;
        let (op, line) = &seeds[seed.index(seeds.len())];
        let (_, other) = &seeds[other.index(seeds.len())];
        let mut line = line.clone();
        changes.into_iter().for_each(|change| bend(&mut line, change, other));
        check(op, &line)?;
    }

    #[test]
    fn twisted_answers_are_believed_only_as_the_protocol_has_them(
        seed in 0_usize..10,
        twists in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..7), any::<u8>()), 1..4),
    ) {
        let seeds = &*SEEDS;
        let (op, line) = &seeds[seed];
        let mut answer: Value = serde_json::from_slice(line).unwrap();
        twists.iter().for_each(|(steps, with)| twist(&mut answer, steps, *with));
        check(op, answer.to_string().as_bytes())?;
    }

    #[test]
    fn any_bytes_are_no_answer(op in "observe|survey|hello|disable", line in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(told(&op, &line).is_err());
    }
}

/// The worst lines that fit into the longest answer: read or refused within a moment, and told in a few words.
#[test]
fn the_longest_answers_are_told_in_few_words() {
    let long = usize::try_from(MAX_LINE_BYTES).unwrap();
    let letters = "x".repeat(long - 100);
    let few = &letters[..long / 12];
    for line in [
        format!("{{\"id\":7,\"ok\":true,\"{letters}\":1}}"),
        format!("{{\"id\":7,\"ok\":false,\"error\":{{\"kind\":\"{letters}\"}}}}"),
        "[".repeat(long),
        format!("{{\"id\":7,\"ok\":true,\"result\":{}", "{\"a\":".repeat(long / 5)),
        json!({ "id": 7, "ok": false, "error": {
            "kind": "Failed", "category": few, "fqid": few, "hresult": 1, "codes": vec![few; 3],
            "message": few, "cmdlet": few, "unseen": few, "events": vec![few; 3],
        } })
        .to_string(),
    ] {
        for op in ["observe", "disable"] {
            let words = match told(op, line.as_bytes()) {
                Ok(outcome) => outcome.unwrap_or_else(|text| text),
                Err(text) => text,
            };
            assert!(words.len() <= MAX_TOLD, "{} bytes", words.len());
        }
    }
}
