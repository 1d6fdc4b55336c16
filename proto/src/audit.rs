//! The chain of the audit: how a block is sealed, and how a chain is found to be whole.
//!
//! Each block holds the hash (SHA-256) of the one before it, so that whoever changes, removes or inserts a record must
//! change every later block, and the head that somebody may have written down elsewhere. Must never trust what it checks.

use crate::v1::{AuditBatch, AuditBlock, AuditMark, AuditPart, AuditRecord, audit_part::Part};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

/// Bytes of a hash.
pub const HASH_BYTES: usize = 32;

/// A place in a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The block's number; 0 before the first.
    pub number: u64,
    /// Its hash; zeros before the first.
    pub hash: [u8; HASH_BYTES],
}

impl From<Mark> for AuditMark {
    fn from(mark: Mark) -> Self {
        Self { number: mark.number, hash: mark.hash.to_vec() }
    }
}

impl TryFrom<&AuditMark> for Mark {
    type Error = Broken;
    fn try_from(wire: &AuditMark) -> Result<Self, Broken> {
        let hash = wire.hash.as_slice().try_into();
        Ok(Self { number: wire.number, hash: hash.map_err(|_| Broken::Unreadable { number: wire.number })? })
    }
}

/// A block, sealed onto the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// As it is stored.
    pub encoded: Vec<u8>,
    /// The end of the chain now.
    pub mark: Mark,
}

/// Seals a block onto a chain; its number and the hash before it are set here.
pub fn seal(after: Mark, block: AuditBlock) -> Sealed {
    let number = after.number.saturating_add(1);
    let block = AuditBlock { number, previous: after.hash.to_vec(), ..block };
    let encoded = block.encode_to_vec();
    Sealed { mark: Mark { number, hash: hash(&encoded) }, encoded }
}

/// The hash of a block as it is stored.
pub fn hash(encoded: &[u8]) -> [u8; HASH_BYTES] {
    Sha256::digest(encoded).into()
}

/// What is wrong with a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Something is no block, or no mark.
    #[error("block {number} cannot be read: it was changed, or a newer Berth wrote it")]
    Unreadable {
        /// The block that should be there.
        number: u64,
    },
    /// A block is missing, or comes twice.
    #[error("block {expected} is missing: block {found} is in its place")]
    Missing {
        /// What should come.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// A block does not follow from the one before it.
    #[error("block {number} does not follow from block {}: one of the two was changed", number - 1)]
    Changed {
        /// The later one.
        number: u64,
    },
    /// The last block is not the one that the head names.
    #[error("the chain ends with block {found}, and its head names block {named}: blocks were removed, or changed")]
    Head {
        /// The last block that came.
        found: u64,
        /// What the head names.
        named: u64,
    },
    /// The parts come in an order that no controller sends.
    #[error("the audit does not come whole: {0}")]
    Order(&'static str),
}

/// Checks a chain as it comes.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    at: Option<Mark>,
    ended: bool,
}

/// What a part holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    /// Where the chain begins.
    Base(Mark),
    /// A block that follows, and its place.
    Block(Mark, Box<AuditBlock>),
    /// The end, as named.
    Head(Mark),
    /// Records that are not sealed yet.
    Unsealed(Vec<AuditRecord>),
}

impl Chain {
    /// Takes the next part in.
    ///
    /// # Errors
    /// [`Broken`], from the first block on that does not follow.
    pub fn take(&mut self, part: &AuditPart) -> Result<Taken, Broken> {
        match (&part.part, self.at) {
            (Some(Part::Base(base)), None) => {
                let base = Mark::try_from(base)?;
                self.at = Some(base);
                Ok(Taken::Base(base))
            }
            (Some(Part::Block(encoded)), Some(last)) if !self.ended => {
                let expected = last.number.saturating_add(1);
                let block = AuditBlock::decode(encoded.as_slice());
                let block = block.map_err(|_| Broken::Unreadable { number: expected })?;
                if block.number != expected {
                    return Err(Broken::Missing { expected, found: block.number });
                }
                if block.previous != last.hash {
                    return Err(Broken::Changed { number: expected });
                }
                let mark = Mark { number: expected, hash: hash(encoded) };
                self.at = Some(mark);
                Ok(Taken::Block(mark, Box::new(block)))
            }
            (Some(Part::Head(head)), Some(last)) if !self.ended => {
                let head = Mark::try_from(head)?;
                if head != last {
                    return Err(Broken::Head { found: last.number, named: head.number });
                }
                self.ended = true;
                Ok(Taken::Head(head))
            }
            (Some(Part::Unsealed(AuditBatch { records })), Some(_)) if self.ended => {
                Ok(Taken::Unsealed(records.clone()))
            }
            (Some(Part::Base(_)), Some(_)) => Err(Broken::Order("it begins twice")),
            (Some(_), None) => Err(Broken::Order("it does not say where it begins")),
            (Some(Part::Block(_) | Part::Head(_)), Some(_)) => Err(Broken::Order("something comes after its end")),
            (Some(Part::Unsealed(_)), Some(_)) => Err(Broken::Order("it does not say where it ends")),
            (None, _) => Err(Broken::Order("a part is of a kind that this version does not know")),
        }
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    /// When the end did not come.
    pub fn finish(&self) -> Result<Mark, Broken> {
        match (self.ended, self.at) {
            (true, Some(mark)) => Ok(mark),
            (_, _) => Err(Broken::Order("it ends in the middle")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(placement: &str) -> AuditRecord {
        AuditRecord { placement: placement.to_owned(), caller: "cert:CN=x".to_owned(), ..AuditRecord::default() }
    }

    /// A chain of three blocks.
    fn chain() -> Vec<AuditPart> {
        let mut mark = Mark::default();
        let mut parts = vec![AuditPart { part: Some(Part::Base(mark.into())) }];
        for name in ["a", "b", "c"] {
            let block = AuditBlock { records: vec![record(name)], term: 7, ..AuditBlock::default() };
            let sealed = seal(mark, block);
            mark = sealed.mark;
            parts.push(AuditPart { part: Some(Part::Block(sealed.encoded)) });
        }
        parts.push(AuditPart { part: Some(Part::Head(mark.into())) });
        parts
    }

    fn check(parts: &[AuditPart]) -> Result<Mark, Broken> {
        let mut chain = Chain::default();
        for part in parts {
            chain.take(part)?;
        }
        chain.finish()
    }

    #[test]
    fn a_whole_chain_is_found_whole() {
        assert_eq!(check(&chain()).unwrap().number, 3);
        let unsealed = AuditPart { part: Some(Part::Unsealed(AuditBatch { records: vec![record("d")] })) };
        assert_eq!(check(&[chain(), vec![unsealed]].concat()).unwrap().number, 3);
    }

    #[test]
    fn every_single_changed_bit_is_found() {
        let whole = chain();
        for at in 1..=3 {
            let Some(Part::Block(encoded)) = &whole[at].part else { panic!() };
            for bit in 0..encoded.len() * 8 {
                let mut changed = encoded.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                let mut parts = whole.clone();
                parts[at].part = Some(Part::Block(changed));
                assert!(check(&parts).is_err(), "block {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn blocks_that_are_removed_swapped_or_made_up_are_found() {
        let whole = chain();
        let without = |at: usize| [&whole[..at], &whole[at + 1..]].concat();
        assert_eq!(check(&without(1)), Err(Broken::Missing { expected: 1, found: 2 }));
        assert_eq!(check(&without(2)), Err(Broken::Missing { expected: 2, found: 3 }));
        assert_eq!(check(&without(3)), Err(Broken::Head { found: 2, named: 3 }));
        assert_eq!(check(&without(4)), Err(Broken::Order("it ends in the middle")));
        let mut swapped = whole.clone();
        swapped.swap(1, 2);
        assert!(check(&swapped).is_err());
        // A block that somebody makes anew: whatever follows does not follow from it.
        let mut made_up = whole.clone();
        let first = seal(Mark::default(), AuditBlock { records: vec![record("z")], ..AuditBlock::default() });
        made_up[1].part = Some(Part::Block(first.encoded));
        assert_eq!(check(&made_up), Err(Broken::Changed { number: 2 }));
    }
}
