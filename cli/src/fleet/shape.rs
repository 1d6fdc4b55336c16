//! The shape of what stands in a file: lists and whole numbers, refused in words that name the key and say what to write.

use crate::values::no_whole;
use serde::de::{DeserializeOwned, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt::{self, Display};
use std::marker::PhantomData;

/// Reads the list at `key`; `wanted` is told of anything else, with the text that stands there where it is one.
pub(crate) fn list<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    from: D,
    wanted: impl Fn(Option<&str>) -> String,
) -> Result<Vec<T>, D::Error> {
    from.deserialize_any(List { wanted, items: PhantomData })
}

/// Reads a list of names, such as `example`.
pub(crate) fn names<'de, D: Deserializer<'de>>(from: D, key: &str, example: &str) -> Result<Vec<String>, D::Error> {
    list(from, |text| format!("{key} is a list: write [{}]", text.unwrap_or(example)))
}

struct List<F, T> {
    wanted: F,
    items: PhantomData<T>,
}

impl<F: Fn(Option<&str>) -> String, T> List<F, T> {
    fn refuse<E: Error>(&self, text: impl Display) -> Result<Vec<T>, E> {
        Err(E::custom((self.wanted)(Some(&text.to_string()))))
    }
}

impl<'de, F: Fn(Option<&str>) -> String, T: DeserializeOwned> Visitor<'de> for List<F, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&(self.wanted)(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(all)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<T>, A::Error> {
        // Read to its end, so that the error names the place where it begins.
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Err(A::Error::custom((self.wanted)(None)))
    }

    // A key with nothing behind it is an empty list.
    fn visit_unit<E: Error>(self) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
        self.refuse(text)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Vec<T>, E> {
        self.refuse(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Vec<T>, E> {
        self.refuse(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Vec<T>, E> {
        self.refuse(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Vec<T>, E> {
        self.refuse(value)
    }
}

/// Reads the whole number at `key`, which goes from 1 to `most`. One that is too large is left to the check that knows
/// where it stands.
pub(crate) fn number<'de, D: Deserializer<'de>>(from: D, key: &'static str, most: u32) -> Result<u32, D::Error> {
    // Asking for text gives plain numbers as they were written, too.
    from.deserialize_str(Number { key, most })
}

struct Number {
    key: &'static str,
    most: u32,
}

impl Visitor<'_> for Number {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, a whole number from 1 to {}", self.key, self.most)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u32, E> {
        text.parse().map_err(|_| E::custom(format_args!("{}: {}", self.key, no_whole(text, 1, self.most))))
    }
}
