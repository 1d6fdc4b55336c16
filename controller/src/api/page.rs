//! Pages of lists: every page of one list shows the world of its first page.
//!
//! A token names the snapshot, the last item sent and the filters. It is opaque to callers and good for about a minute;
//! after that, or after a change of leader, the call says ABORTED: list again.

use super::MAX_ANSWER_BYTES;
use crate::replica::{Replica, Snapshot};
use berth_model::reason::{ErrorClass, Refusal};
use berth_model::request::FieldError;
use berth_proto::status;
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;
use tonic::Status;

/// Most items on a page, and as many as there are when the caller does not say: some milliseconds of work, in which the
/// thread that makes it does nothing else.
const MOST: u32 = 1000;
/// Most that a caller may ask for. It gets what [`MOST`] leaves of it.
const MAX_SIZE: u32 = 10_000;
/// Longest key of an item in bytes: a node name, a slash and a location path.
const MAX_KEY_BYTES: usize = 1024;
const TOKEN_VERSION: u8 = 1;
/// Version, epoch, sequence, hash of the filters.
const HEAD_BYTES: usize = 1 + 8 + 8 + 8;

/// One page in the making.
pub(crate) struct Page<'a> {
    replica: &'a Replica,
    /// The world it shows.
    pub(crate) snapshot: Arc<Snapshot>,
    /// Key of the last item of the page before.
    after: Option<String>,
    size: usize,
    filters: u64,
}

fn invalid(field: &str, problem: impl Display) -> Status {
    status::refusal_to_status(&Refusal::Invalid(vec![FieldError::new(field, problem)]))
}

impl<'a> Page<'a> {
    /// Opens the page that a call asks for. `filters` is everything else that decides what the list holds, the method
    /// included.
    pub(crate) fn open(replica: &'a Replica, size: u32, token: &str, filters: impl Hash) -> Result<Self, Status> {
        if size > MAX_SIZE {
            return Err(invalid("page_size", format_args!("{size} is more than {MAX_SIZE}")));
        }
        let size = if size == 0 { MOST } else { size.min(MOST) };
        let mut hasher = DefaultHasher::new();
        filters.hash(&mut hasher);
        let filters = hasher.finish();
        let (snapshot, after) = if token.is_empty() {
            (replica.now(), None)
        } else {
            let token = Token::decode(token)
                .ok_or_else(|| invalid("page_token", "is no token of ours; send it back exactly as it came"))?;
            if token.filters != filters {
                return Err(invalid("page_token", "belongs to a list with other filters; repeat those, or list anew"));
            }
            let Some(snapshot) = replica.at(token.epoch, token.sequence) else {
                return Err(status::failure(
                    ErrorClass::Aborted,
                    "PAGE_TOKEN_EXPIRED",
                    "the list was begun too long ago to be continued; list again from the start",
                ));
            };
            (snapshot, Some(token.key))
        };
        Ok(Self { replica, snapshot, after, size: size as usize, filters })
    }

    /// The key of the last item of the page before.
    pub(crate) fn after<K: FromStr>(&self) -> Result<Option<K>, Status> {
        let read = |key: &String| key.parse().map_err(|_| invalid("page_token", "is no token of ours"));
        self.after.as_ref().map(read).transpose()
    }

    /// Takes as many items as fit, and gives the token for the rest, empty when there is none.
    pub(crate) fn fill<T, W: prost::Message>(
        &self,
        items: impl Iterator<Item = T>,
        convert: impl Fn(&T) -> W,
        key: impl Fn(&T) -> String,
    ) -> (Vec<W>, String) {
        let mut page = Vec::new();
        let mut bytes = 0;
        let mut last = None;
        for item in items {
            if page.len() == self.size || bytes > MAX_ANSWER_BYTES {
                self.replica.keep(&self.snapshot);
                let token = Token {
                    epoch: self.snapshot.epoch,
                    sequence: self.snapshot.sequence,
                    filters: self.filters,
                    key: last.as_ref().map(key).unwrap_or_default(),
                };
                return (page, token.encode());
            }
            let wire = convert(&item);
            bytes += wire.encoded_len();
            page.push(wire);
            last = Some(item);
        }
        (page, String::new())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Token {
    epoch: u64,
    sequence: u64,
    filters: u64,
    key: String,
}

impl Token {
    fn encode(&self) -> String {
        let mut bytes = vec![TOKEN_VERSION];
        for number in [self.epoch, self.sequence, self.filters] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(self.key.bytes());
        let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0');
        bytes.into_iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }

    fn decode(text: &str) -> Option<Self> {
        if text.len() > 2 * (HEAD_BYTES + MAX_KEY_BYTES) || !text.len().is_multiple_of(2) {
            return None;
        }
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let bytes: Vec<u8> = text
            .as_bytes()
            .chunks_exact(2)
            .map(|pair| Some(digit(&pair[0])? << 4 | digit(&pair[1])?))
            .collect::<Option<_>>()?;
        let (&version, rest) = bytes.split_first()?;
        let (epoch, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (filters, key) = rest.split_first_chunk()?;
        (version == TOKEN_VERSION).then_some(Self {
            epoch: u64::from_be_bytes(*epoch),
            sequence: u64::from_be_bytes(*sequence),
            filters: u64::from_be_bytes(*filters),
            key: String::from_utf8(key.to_vec()).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::Publisher;
    use berth_core::world::World;
    use berth_model::Timestamp;
    use berth_proto::status::Problem;
    use berth_proto::v1;
    use expect_test::{Expect, expect};

    fn replica() -> (Replica, Publisher) {
        Replica::new(World::default(), 10, 1, Timestamp::from_millis(0))
    }

    fn take(page: &Page<'_>, all: u32) -> (Vec<u32>, String) {
        let after = page.after::<u32>().unwrap();
        let items = (0..all).filter(|n| after.is_none_or(|after| *n > after));
        let (wire, token) = page.fill(items, |n| v1::Slots { gpus: *n, vms: 0 }, ToString::to_string);
        (wire.into_iter().map(|slots| slots.gpus).collect(), token)
    }

    fn refuse(result: Result<Page<'_>, Status>, why: Expect) {
        let Err(status) = result else { panic!("the page was opened") };
        let problem = Problem::from_status(&status);
        why.assert_eq(&format!("{}: {}", problem.class.name(), problem.message));
    }

    #[test]
    fn pages_join_without_gap_or_repetition() {
        let (replica, mut publisher) = replica();
        let (mut got, mut token, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let page = Page::open(&replica, 3, &token, "f").unwrap();
            assert_eq!(page.snapshot.sequence, 0, "every page shows the world of the first");
            let (items, next) = take(&page, 7);
            got.extend(items);
            pages += 1;
            publisher.publish(World::default(), 11, Default::default(), Default::default());
            token = next;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!((got, pages), ((0..7).collect(), 3));
    }

    #[test]
    fn a_full_last_page_is_the_last() {
        let (replica, _publisher) = replica();
        let page = Page::open(&replica, 3, "", "f").unwrap();
        assert_eq!(take(&page, 3).1, "");
    }

    #[test]
    fn a_page_stays_below_what_clients_accept() {
        let (replica, _publisher) = replica();
        let page = Page::open(&replica, 0, "", "f").unwrap();
        let large = |_: &u32| v1::Count { name: "x".repeat(1 << 20), count: 1 };
        let (items, token) = page.fill(0..100, large, ToString::to_string);
        assert!(items.len() < 5 && !token.is_empty(), "{} items", items.len());
    }

    #[test]
    fn tokens_that_do_not_belong_here_are_refused() {
        let (replica, mut publisher) = replica();
        let token = take(&Page::open(&replica, 1, "", ("ListGpus", "A2")).unwrap(), 2).1;
        refuse(Page::open(&replica, 10_001, "", "f"), expect!["InvalidArgument: page_size: 10001 is more than 10000"]);
        for bad in ["x", "0", "00", &token[..20], &format!("02{}", &token[2..]), &"0".repeat(10_000), "äö"] {
            refuse(
                Page::open(&replica, 1, bad, ("ListGpus", "A2")),
                expect!["InvalidArgument: page_token: is no token of ours; send it back exactly as it came"],
            );
        }
        refuse(
            Page::open(&replica, 1, &token, ("ListGpus", "A16")),
            expect!["InvalidArgument: page_token: belongs to a list with other filters; repeat those, or list anew"],
        );
        publisher.restart(World::default(), 10, 2, Timestamp::from_millis(0));
        refuse(
            Page::open(&replica, 1, &token, ("ListGpus", "A2")),
            expect!["Aborted: the list was begun too long ago to be continued; list again from the start"],
        );
    }

    #[test]
    fn tokens_round_trip() {
        let token = Token { epoch: u64::MAX, sequence: 0, filters: 7, key: "n1/PCIROOT(20)#PCI(0300)".to_owned() };
        assert_eq!(Token::decode(&token.encode()), Some(token));
    }
}
