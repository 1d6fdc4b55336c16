//! Sizes in files: a number of bytes, or text with a unit such as `512GiB`.

use bytesize::ByteSize;
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
                match text.parse::<ByteSize>() {
                    Ok(size) => Ok(Size(size.as_u64())),
                    Err(_) => Err(E::custom(format!("{text:?} is no size; write it like 512GiB"))),
                }
            }
        }
        // Asking for text gives plain numbers as they were written, too.
        from.deserialize_str(Text)
    }
}
