//! Sizes in files: text with a unit such as `512GiB`.

use crate::values;
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use std::fmt;

/// A size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 512GiB")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                values::size(text).map(|size| Size(size.as_u64())).map_err(E::custom)
            }
        }
        // Asking for text gives plain numbers as they were written, too: they are refused in the same words.
        from.deserialize_str(Text)
    }
}
