//! Where in etcd this Berth's keys are: the port's keys and etcd's, and ranges of them.
//!
//! Must never let a key of somebody else through.

use berth_store::{Event, KeyValue, Revision};

/// etcd's way to say "from the first key" and "to the last".
const OPEN: &[u8] = b"\0";

/// All keys with one beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    prefix: String,
}

/// From a key on (inclusive) up to another (exclusive), in etcd's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: Vec<u8>,
    pub(crate) end: Vec<u8>,
}

impl Space {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// A key of the port as etcd has it.
    pub(crate) fn key(&self, key: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// All keys with a prefix, behind `after` when given.
    pub(crate) fn span(&self, prefix: &str, after: Option<&str>) -> Span {
        let first = self.key(prefix);
        let mut end = first.clone();
        // The last byte of a text is never the highest.
        match end.last_mut() {
            Some(last) => *last += 1,
            None => end = OPEN.to_vec(),
        }
        let behind = after.map(|after| [self.key(after), OPEN.to_vec()].concat());
        let mut start = behind.map_or_else(|| first.clone(), |behind| behind.max(first.clone()));
        if start.is_empty() {
            start = OPEN.to_vec();
        }
        Span { start, end }
    }

    /// The port's form of a key; `None` for one that is none of ours.
    fn name(&self, key: &[u8]) -> Option<String> {
        Some(std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.to_owned())
    }

    /// The port's form of what etcd has under a key, or the key that makes no sense.
    pub(crate) fn item(&self, item: etcd_client::KeyValue) -> Result<KeyValue, String> {
        let key = self.name(item.key()).ok_or_else(|| item.key().escape_ascii().to_string())?;
        let (created, modified) = (revision(item.create_revision()), revision(item.mod_revision()));
        let version = item.version().unsigned_abs();
        let (_, value) = item.into_key_value();
        Ok(KeyValue { key, value: value.into(), created, modified, version })
    }

    /// The port's form of an event, or the key that makes no sense.
    pub(crate) fn event(&self, event: &etcd_client::Event) -> Result<Event, String> {
        let item = event.kv().ok_or_else(|| "(no key at all)".to_owned())?;
        match event.event_type() {
            etcd_client::EventType::Put => Ok(Event::Put(self.item(item.clone())?)),
            etcd_client::EventType::Delete => {
                let key = self.name(item.key()).ok_or_else(|| item.key().escape_ascii().to_string())?;
                Ok(Event::Delete { key, revision: revision(item.mod_revision()) })
            }
        }
    }
}

/// etcd's counters are signed and never negative.
pub(crate) fn revision(number: i64) -> Revision {
    Revision(number.unsigned_abs())
}

/// The other way round. A revision beyond etcd's own range is one that it has not reached.
pub(crate) fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(space: &str, prefix: &str, after: Option<&str>) -> (String, String) {
        let Span { start, end } = Space::new(space).span(prefix, after);
        (start.escape_ascii().to_string(), end.escape_ascii().to_string())
    }

    #[test]
    fn spans_cover_a_prefix_and_nothing_else() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(span("", "p/", None), pair("p/", "p0"));
        assert_eq!(span("", "", None), pair("\\x00", "\\x00"));
        assert_eq!(span("a/", "", None), pair("a/", "a0"));
        assert_eq!(span("a/", "p/", Some("p/x")), pair("a/p/x\\x00", "a/p0"));
        assert_eq!(span("a/", "p/", Some("a")), pair("a/p/", "a/p0"), "after something before the prefix");
        assert_eq!(span("", "", Some("p")), pair("p\\x00", "\\x00"));
    }

    #[test]
    fn keys_of_others_are_not_ours() {
        let space = Space::new("a/");
        assert_eq!(space.name(b"a/berth"), Some("berth".to_owned()));
        assert_eq!(space.name(b"b/berth"), None);
        assert_eq!(space.name(b"a/\xff"), None);
    }
}
