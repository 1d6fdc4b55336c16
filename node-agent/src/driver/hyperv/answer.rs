//! What the host script answers, read strictly: the script is part of this program, so whatever does not have exactly the
//! form of `README.md` is no answer of it.
//!
//! Must never panic on anything that stands in a line, and never fill in what is not there.

mod guest;
mod look;
mod survey;

pub(super) use guest::{GuestAddresses, GuestInstall, GuestLook};
pub(super) use look::{Function, InstanceId, Listed, Look, Pooled, Vm};
pub(super) use survey::{Device, HostWords, Policy, Survey};

use berth_model::errors;
use berth_model::placement::StepErrorClass;
use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

/// Longest line that is read. A host with a thousand VMs answers with one or two megabytes.
pub(super) const MAX_LINE_BYTES: u64 = 16 << 20;
/// Most functions, pool entries or devices of one look. A host has some hundreds.
const MAX_DEVICES: usize = 4096;

/// The line is no answer to what was asked. Nothing is known then, and whoever wrote it is not to be trusted further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer makes no sense: {0}")]
pub(super) struct Malformed(String);

/// Why an operation did not succeed, as the script tells it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    category: String,
    fqid: String,
    #[serde(deserialize_with = "nullable")]
    hresult: Option<i32>,
    codes: Vec<String>,
    /// In the host's language, for people.
    message: String,
    #[serde(deserialize_with = "nullable")]
    cmdlet: Option<String>,
    #[serde(default)]
    seen: Option<Seen>,
    #[serde(default)]
    unseen: Option<String>,
    #[serde(default)]
    events: Vec<String>,
    #[serde(default)]
    former: Option<IgnoredAnyValue>,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum Kind {
    /// The request is wrong: a fault of this program.
    Invalid,
    /// The host does not have what the request names.
    NotThere,
    /// It would do harm as things are.
    Refused,
    /// A cmdlet failed.
    Failed,
    /// The effect did not show in time.
    Unconfirmed,
}

impl Failure {
    /// The state of the VM that the step was about, as it was seen afterwards.
    pub(super) fn vm_state(&self) -> Option<&str> {
        self.seen.as_ref().and_then(|seen| seen.vm_state.as_deref())
    }
}

impl Failure {
    /// How the catalogue of errors classes it. Only numbers and ids count: texts are in the host's language.
    pub(super) fn class(&self) -> Option<StepErrorClass> {
        let codes = self.codes.iter().flat_map(|code| errors::numbers(code));
        errors::class(&self.fqid, codes.chain(self.hresult.map(i32::cast_unsigned)))
    }
}

/// Longest part of a text that goes into a report: errors of the host are sentences.
const MAX_TEXT: usize = 600;

/// A text of the host, safe to show: one line, no longer than a sentence or two.
pub(super) fn text(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect()
}

impl Display for Failure {
    /// For people: what the host said, what failed, and the numbers to search for.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(cmdlet) = &self.cmdlet {
            write!(f, "{}: ", text(cmdlet))?;
        }
        f.write_str(text(&self.message).trim())?;
        // The text mostly ends with these already.
        for code in self.codes.iter().filter(|code| !self.message.contains(*code)).take(4) {
            write!(f, " ({})", text(code))?;
        }
        if let (Some(hresult), Kind::Failed) = (self.hresult, self.kind) {
            write!(f, " [{hresult:#010x} {}]", text(&self.fqid))?;
        }
        for event in self.events.iter().take(2).filter(|event| !self.message.contains(*event)) {
            write!(f, "; the host's log: {}", text(event))?;
        }
        match &self.unseen {
            Some(why) => write!(f, "; what it left behind cannot be seen: {}", text(why)),
            None => Ok(()),
        }
    }
}

/// What a step's answer says of the VM it was about. Of the device nothing is read here: the next look does.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BTreeMap<String, Value>")]
struct Seen {
    vm_state: Option<String>,
}

impl TryFrom<BTreeMap<String, Value>> for Seen {
    type Error = String;
    fn try_from(seen: BTreeMap<String, Value>) -> Result<Self, String> {
        if let Some(odd) = seen.keys().find(|name| !matches!(name.as_str(), "vm" | "device")) {
            return Err(format!("{odd:?} is nothing that is seen"));
        }
        let state = seen.get("vm").and_then(|vm| vm.get("state")).and_then(Value::as_str);
        Ok(Self { vm_state: state.map(str::to_owned) })
    }
}

/// Anything. Unlike serde's own it can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct IgnoredAnyValue;

impl<'de> Deserialize<'de> for IgnoredAnyValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(from).map(|_| Self)
    }
}

/// A step that was carried out, or was done already.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stepped {
    /// Whether there was anything to do.
    pub(super) changed: bool,
    seen: Seen,
    #[serde(default)]
    former: Option<IgnoredAnyValue>,
}

/// What a script that just started says of itself and of its host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hello {
    pub(super) protocol: u64,
    pub(super) powershell: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) edition: Option<String>,
    pub(super) computer: String,
    pub(super) culture: String,
    /// Versions of the modules that were found.
    pub(super) modules: BTreeMap<String, Option<String>>,
    /// What the script cannot work without and this host lacks.
    pub(super) missing: Vec<String>,
    /// What it lacks and the script can do without.
    pub(super) absent: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "T: Deserialize<'de>"))]
struct Envelope<T> {
    id: u64,
    ok: bool,
    #[serde(default = "none", deserialize_with = "there")]
    result: Option<T>,
    #[serde(default, deserialize_with = "there")]
    error: Option<Failure>,
}

fn none<T>() -> Option<T> {
    None
}

/// A member that may be left out, but is something where it is there: null is no result and no error.
fn there<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// Reads the answer to the request with this id.
///
/// # Errors
/// [`Malformed`] when the line is none.
pub(super) fn read<T: DeserializeOwned>(line: &[u8], id: u64) -> Result<Result<T, Failure>, Malformed> {
    // A stranger's line may have much to say about itself.
    let malformed = |why: String| Malformed(text(&why));
    let envelope: Envelope<T> = serde_json::from_slice(line).map_err(|error| malformed(error.to_string()))?;
    if envelope.id != id {
        return Err(malformed(format!("it is for request {}, not {id}", envelope.id)));
    }
    match (envelope.ok, envelope.result, envelope.error) {
        (true, Some(result), None) => Ok(Ok(result)),
        (false, None, Some(failure)) => Ok(Err(failure)),
        (ok, result, error) => Err(malformed(format!(
            "ok is {ok} with {} result and {} error",
            if result.is_some() { "a" } else { "no" },
            if error.is_some() { "an" } else { "no" },
        ))),
    }
}

/// Null or a value, but there: serde by itself takes a member that is left out for null.
fn nullable<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(from)
}

/// A number that a device's driver or firmware says of itself, or none: one that cannot be is none, so that a device that talks
/// nonsense hides nothing but that. Not for what the script itself reckons.
fn number<'de, T: TryFrom<u64>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    let number: Option<serde_json::Number> = Option::deserialize(from)?;
    Ok(number.and_then(|number| T::try_from(number.as_u64()?).ok()))
}

/// A text of the host that must be something of ours.
fn parsed<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

/// The same where there may be none.
fn parsed_option<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    Option::<String>::deserialize(from)?.map(|text| text.parse().map_err(D::Error::custom)).transpose()
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
