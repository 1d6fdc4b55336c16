//! The one conversion between the wire and the vocabulary.
//!
//! Wire → model (`TryFrom`) refuses and names every bad field of a message at once, with its path, in the order of its
//! fields. Model → wire (`From<&_>`) cannot fail. Nothing here decides anything, and nothing is filled in silently: a
//! field that must be there and is not is an error, except where the `.proto` file says what its absence means.
//!
//! Owns [`At`], the reader that every conversion (and the API, for its small request messages) is written with.

mod agent;
mod common;
mod history;
mod inventory;
mod placement;
mod request;

pub use common::{duration, read_duration, read_timestamp, timestamp};
pub use request::Adopt;

use berth_model::reason::Refusal;
use berth_model::request::FieldError;
use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

/// Longest text for people (error texts, reasons, versions) in bytes. What a host says ends up in stored records, which
/// are bounded; a PowerShell error with its position and call stack fits.
pub const MAX_TEXT_BYTES: usize = 4096;
/// Most requests of one Plan call: as many as the largest page.
pub const MAX_PLANNED: usize = 10_000;

/// Everything that is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub Vec<FieldError>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if at > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid.0)
    }
}

/// Reads a value with `f`, which gets a reader at the root of the message.
///
/// # Errors
/// Everything that `f` refused, even if it gave a value.
pub fn read<T>(f: impl FnOnce(At<'_>) -> Option<T>) -> Result<T, Invalid> {
    let errors = RefCell::new(Vec::new());
    let value = f(At { path: Path::Root, errors: &errors });
    let errors = errors.into_inner();
    match value {
        Some(value) if errors.is_empty() => Ok(value),
        // A reader that gives nothing has said why; should one ever not, the message is refused all the same.
        None if errors.is_empty() => Err(Invalid(vec![FieldError::new("", "the message makes no sense")])),
        Some(_) | None => Err(Invalid(errors)),
    }
}

/// Where in a message a reader is. Turned into text only when there is something to complain about.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'static str),
    Item(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, at) => write!(f, "{parent}[{at}]"),
        }
    }
}

/// A reader at one place of a message. Every method notes what is wrong and then gives `None`, so that a conversion
/// reads all its fields first and gives up (`?`) only afterwards.
#[derive(Clone, Copy)]
pub struct At<'a> {
    path: Path<'a>,
    errors: &'a RefCell<Vec<FieldError>>,
}

impl<'a> At<'a> {
    /// The reader of a field of the message here.
    pub fn field<'b>(&'b self, name: &'static str) -> At<'b>
    where
        'a: 'b,
    {
        At { path: Path::Field(&self.path, name), errors: self.errors }
    }

    fn item<'b>(&'b self, at: usize) -> At<'b>
    where
        'a: 'b,
    {
        At { path: Path::Item(&self.path, at), errors: self.errors }
    }

    /// Notes that what is here is wrong, and how.
    pub fn refuse<T>(&self, problem: impl fmt::Display) -> Option<T> {
        self.errors.borrow_mut().push(FieldError::new(self.path.to_string(), problem));
        None
    }

    /// Refuses unless `holds`.
    pub fn demand(&self, holds: bool, problem: impl fmt::Display) -> Option<()> {
        if holds { Some(()) } else { self.refuse(problem) }
    }

    /// A name, id or address.
    pub fn parse<T: FromStr>(&self, text: &str) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        match text.parse() {
            Ok(value) => Some(value),
            Err(problem) => self.refuse(problem),
        }
    }

    /// A name, id or address whose empty text means that there is none.
    pub fn optional<T: FromStr>(&self, text: &str) -> Option<Option<T>>
    where
        T::Err: fmt::Display,
    {
        if text.is_empty() { Some(None) } else { self.parse(text).map(Some) }
    }

    /// What must be there.
    pub(crate) fn required<T>(&self, value: Option<T>) -> Option<T> {
        if value.is_none() {
            return self.refuse("is missing");
        }
        value
    }

    /// A message that must be there.
    pub(crate) fn message<W, T: FromWire<W>>(&self, wire: Option<W>) -> Option<T> {
        T::read(self.required(wire)?, *self)
    }

    /// A message that may be absent.
    pub(crate) fn maybe<W, T: FromWire<W>>(&self, wire: Option<W>) -> Option<Option<T>> {
        match wire {
            Some(wire) => T::read(wire, *self).map(Some),
            None => Some(None),
        }
    }

    /// An enum value that must be said.
    pub(crate) fn value<T: FromWire<i32>>(&self, wire: i32) -> Option<T> {
        T::read(wire, *self)
    }

    /// An enum value that must be absent here; `why` says what it goes with.
    pub(crate) fn absent(&self, is_absent: bool, why: &'static str) -> Option<()> {
        self.demand(is_absent, why)
    }

    /// A text for people, at most [`MAX_TEXT_BYTES`] long.
    pub fn text(&self, text: String) -> Option<String> {
        if text.len() > MAX_TEXT_BYTES {
            return self.refuse(format_args!("is {} bytes long, at most {MAX_TEXT_BYTES} are allowed", text.len()));
        }
        Some(text)
    }

    /// Up to `limit` items. A list that is too long is not looked into.
    pub(crate) fn list<W, T>(
        &self,
        wire: Vec<W>,
        limit: usize,
        read: impl Fn(W, At<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        if wire.len() > limit {
            return self.refuse(format_args!("has {} items, at most {limit} are allowed", wire.len()));
        }
        let count = wire.len();
        let mut items = Vec::with_capacity(count);
        for (at, item) in wire.into_iter().enumerate() {
            items.extend(read(item, self.item(at)));
        }
        (items.len() == count).then_some(items)
    }

    /// Up to `limit` messages.
    pub(crate) fn messages<W, T: FromWire<W>>(&self, wire: Vec<W>, limit: usize) -> Option<Vec<T>> {
        self.list(wire, limit, T::read)
    }

    /// Refuses items that have the same `key` as an earlier one.
    pub(crate) fn distinct<T, K: Ord + fmt::Display>(
        &self,
        name: &'static str,
        items: &[T],
        key: impl Fn(&T) -> K,
    ) -> Option<()> {
        let mut seen = std::collections::BTreeSet::new();
        let mut fine = Some(());
        for (at, item) in items.iter().enumerate() {
            let key = key(item);
            let again = format!("{key} is listed twice");
            if !seen.insert(key) {
                fine = self.item(at).field(name).refuse(again);
            }
        }
        fine
    }

    /// Notes errors that another check found in the message here.
    pub(crate) fn refuse_all<T>(&self, errors: Vec<FieldError>) -> Option<T> {
        for FieldError { field, problem } in errors {
            let path = match self.path {
                Path::Root => field,
                Path::Field(..) | Path::Item(..) => format!("{}.{field}", self.path),
            };
            self.errors.borrow_mut().push(FieldError { field: path, problem });
        }
        None
    }
}

/// A model type that can be read from a message (or, for enums, from its number).
pub(crate) trait FromWire<W>: Sized {
    /// Reads it, noting at `at` what is wrong.
    fn read(wire: W, at: At<'_>) -> Option<Self>;
}

/// A text for people on its way out: what is longer than a reader takes is cut.
pub(crate) fn text(text: &str) -> String {
    cut(text, MAX_TEXT_BYTES)
}

/// Cuts a text to `limit` bytes (more than 4), at a character's end, and shows that it was cut.
pub(crate) fn cut(text: &str, limit: usize) -> String {
    const CUT: &str = " …";
    if text.len() <= limit {
        return text.to_owned();
    }
    let most = limit.saturating_sub(CUT.len());
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= most).last().unwrap_or(0);
    format!("{}{CUT}", &text[..end])
}

/// `TryFrom` for messages that have a [`FromWire`].
macro_rules! readable {
    ($($wire:ty => $model:ty),+ $(,)?) => {$(
        impl TryFrom<$wire> for $model {
            type Error = $crate::convert::Invalid;
            fn try_from(wire: $wire) -> Result<Self, Self::Error> {
                $crate::convert::read(|at| <$model as $crate::convert::FromWire<$wire>>::read(wire, at))
            }
        }
    )+};
}
pub(crate) use readable;

/// Both directions of an enum without data. The wire's value 0 and numbers it does not know are refused.
macro_rules! enumeration {
    ($wire:ident, $model:ty, $($variant:ident),+) => {
        impl From<$model> for $crate::v1::$wire {
            fn from(value: $model) -> Self {
                match value {
                    $(<$model>::$variant => Self::$variant,)+
                }
            }
        }

        impl $crate::convert::FromWire<i32> for $model {
            fn read(wire: i32, at: $crate::convert::At<'_>) -> Option<Self> {
                match $crate::v1::$wire::try_from(wire) {
                    $(Ok($crate::v1::$wire::$variant) => Some(Self::$variant),)+
                    Ok($crate::v1::$wire::Unspecified) => at.refuse("is missing"),
                    Err(_) => at.refuse(format_args!(concat!("{} is no ", stringify!($wire)), wire)),
                }
            }
        }

        impl TryFrom<$crate::v1::$wire> for $model {
            type Error = $crate::convert::Invalid;
            fn try_from(wire: $crate::v1::$wire) -> Result<Self, Self::Error> {
                $crate::convert::read(|at| <$model as $crate::convert::FromWire<i32>>::read(wire.into(), at))
            }
        }
    };
}
pub(crate) use enumeration;

/// An enum whose value 0 stands for the model's default.
pub(crate) fn or_default<T: FromWire<i32> + Default>(wire: i32, at: At<'_>) -> Option<T> {
    if wire == 0 { Some(T::default()) } else { T::read(wire, at) }
}

#[cfg(test)]
mod tests;
