//! The form of a backup: how its parts follow one another, how they stand in a file, and what seals them.
//!
//! Owns the order header, records, trailer and the hash over them, for the one who writes and for those who read. Must
//! never know what a record means, and never take a backup for whole that does not end with a trailer that fits.

use crate::v1::{BackupHeader, BackupPart, BackupRecord, BackupRecords, BackupTrailer, backup_part::Part};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::io::{self, Read};

/// The version of the form that is written, and the only one that is read so far.
pub const FORMAT: u32 = 1;
/// Largest part: what a gRPC client takes in one message unless told otherwise. A writer keeps well below it.
pub const MAX_PART_BYTES: usize = 4 << 20;

/// Why something is no whole backup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// It ends before its trailer.
    #[error("it is cut off: it ends before its trailer, after {records} records")]
    CutOff {
        /// Records until there.
        records: u64,
    },
    /// Something that is no part of a backup.
    #[error("it is no backup, or a damaged one: {0}")]
    NotAPart(String),
    /// A newer Berth made it.
    #[error("its format is {found}, this version reads up to {FORMAT}: use the Berth that made it, version {version}")]
    Newer {
        /// Its format.
        found: u32,
        /// The Berth that made it.
        version: String,
    },
    /// Its hash does not fit.
    #[error("it is damaged: its content does not fit its checksum")]
    Checksum,
    /// Its trailer does not fit.
    #[error("it is damaged: its trailer counts {counted} records at revision {revision}, there are {found}")]
    Trailer {
        /// What the trailer says.
        counted: u64,
        /// Which revision the trailer says.
        revision: u64,
        /// How many there are.
        found: u64,
    },
}

/// Follows the parts of one backup and judges their order, count and hash.
#[derive(Clone, Debug, Default)]
pub struct Seal {
    hash: Sha256,
    header: Option<BackupHeader>,
    records: u64,
    last_key: String,
    sealed: bool,
}

impl Seal {
    /// Takes the next part.
    ///
    /// # Errors
    /// [`enum@Error`] when it cannot be the next part of a backup.
    pub fn take(&mut self, part: &BackupPart) -> Result<(), Error> {
        let wrong = |what: &str| Err(Error::NotAPart(what.to_owned()));
        if self.sealed {
            return wrong("something follows its trailer");
        }
        match (&part.part, &self.header) {
            (Some(Part::Header(header)), None) => {
                if header.format != FORMAT {
                    let version = header.berth_version.clone();
                    return Err(Error::Newer { found: header.format, version });
                }
                self.header = Some(header.clone());
            }
            (Some(Part::Records(BackupRecords { records })), Some(_)) => {
                for BackupRecord { key, value: _ } in records {
                    if *key <= self.last_key {
                        return wrong("its records are not in order of key");
                    }
                    self.last_key.clone_from(key);
                    self.records += 1;
                }
            }
            (Some(Part::Trailer(trailer)), Some(header)) => {
                let BackupTrailer { revision, records, sha256 } = trailer;
                if self.hash.clone().finalize().as_slice() != sha256.as_slice() {
                    return Err(Error::Checksum);
                }
                if *records != self.records || *revision != header.revision {
                    return Err(Error::Trailer { counted: *records, revision: *revision, found: self.records });
                }
                self.sealed = true;
                return Ok(());
            }
            (Some(Part::Header(_)), Some(_)) => return wrong("it has two headers"),
            (Some(Part::Records(_) | Part::Trailer(_)), None) => return wrong("it does not begin with a header"),
            (None, _) => return wrong("a part says nothing"),
        }
        self.hash.update(part.encode_length_delimited_to_vec());
        Ok(())
    }

    /// The trailer that fits what was taken so far.
    pub fn trailer(&self) -> BackupPart {
        let revision = self.header.as_ref().map_or(0, |header| header.revision);
        let sha256 = self.hash.clone().finalize().to_vec();
        BackupPart { part: Some(Part::Trailer(BackupTrailer { revision, records: self.records, sha256 })) }
    }

    /// Records so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The header, once it was taken.
    pub fn header(&self) -> Option<&BackupHeader> {
        self.header.as_ref()
    }

    /// The header, if all of the backup was taken.
    ///
    /// # Errors
    /// [`Error::CutOff`] when the trailer did not come.
    pub fn end(self) -> Result<BackupHeader, Error> {
        match self.header {
            Some(header) if self.sealed => Ok(header),
            _ => Err(Error::CutOff { records: self.records }),
        }
    }
}

/// A whole backup in memory. The records of the largest fleet are tens of MiB.
#[derive(Clone, Debug, PartialEq)]
pub struct Backup {
    /// What it says of itself.
    pub header: BackupHeader,
    /// All records, in order of key.
    pub records: Vec<BackupRecord>,
}

/// Reads a backup to its end.
///
/// # Errors
/// [`enum@Error`]: it is not whole, and nothing of it should be used.
pub fn read(mut from: impl Read) -> Result<Backup, Error> {
    let mut seal = Seal::default();
    let mut records = Vec::new();
    loop {
        let part = match next(&mut from, seal.records()) {
            Ok(Some(part)) => part,
            Ok(None) if seal.header().is_none() => return Err(Error::NotAPart("it is empty".to_owned())),
            Ok(None) => break,
            // Most files begin with what could be the length of something.
            Err(Error::CutOff { .. }) if seal.header().is_none() => {
                return Err(Error::NotAPart("it does not begin with a header".to_owned()));
            }
            Err(error) => return Err(error),
        };
        seal.take(&part)?;
        if let Some(Part::Records(more)) = part.part {
            records.extend(more.records);
        }
    }
    Ok(Backup { header: seal.end()?, records })
}

/// The next part of a file; `None` at its end.
fn next(from: &mut impl Read, records: u64) -> Result<Option<BackupPart>, Error> {
    let Some(length) = length(from, records)? else { return Ok(None) };
    if length > MAX_PART_BYTES {
        return Err(Error::NotAPart(format!("a part of {length} bytes, at most {MAX_PART_BYTES} are possible")));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof { Error::CutOff { records } } else { Error::Io(error) }
    })?;
    let part = BackupPart::decode(bytes.as_slice()).map_err(|error| Error::NotAPart(error.to_string()))?;
    // What this version does not know would be lost on the way, and the hash would not fit for that reason.
    if part.encoded_len() != length {
        return Err(Error::NotAPart("a part has fields that this version does not know".to_owned()));
    }
    Ok(Some(part))
}

/// The length before a part, as protobuf writes it; `None` at the end of the file.
fn length(from: &mut impl Read, records: u64) -> Result<Option<usize>, Error> {
    let mut value = 0_u64;
    for at in 0..10 {
        let mut byte = [0];
        match from.read_exact(&mut byte) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && at == 0 => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Error::CutOff { records }),
            Err(error) => return Err(Error::Io(error)),
        }
        value |= u64::from(byte[0] & 0x7f).checked_shl(7 * at).unwrap_or(0);
        if byte[0] & 0x80 == 0 {
            return usize::try_from(value).map(Some).map_err(|_| Error::NotAPart("a part without end".to_owned()));
        }
    }
    Err(Error::NotAPart("a length that is none".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn header(format: u32) -> BackupPart {
        let header = BackupHeader { format, berth_version: "9.9".into(), revision: 7, ..BackupHeader::default() };
        BackupPart { part: Some(Part::Header(header)) }
    }

    fn records(keys: &[&str]) -> BackupPart {
        let record = |key: &&str| BackupRecord { key: (*key).to_owned(), value: key.as_bytes().to_vec() };
        BackupPart { part: Some(Part::Records(BackupRecords { records: keys.iter().map(record).collect() })) }
    }

    fn file(parts: &[BackupPart]) -> Vec<u8> {
        parts.iter().flat_map(prost::Message::encode_length_delimited_to_vec).collect()
    }

    fn whole() -> Vec<u8> {
        let parts = [header(FORMAT), records(&["a", "b"]), records(&["c"])];
        let mut seal = Seal::default();
        for part in &parts {
            seal.take(part).unwrap();
        }
        [file(&parts), file(&[seal.trailer()])].concat()
    }

    #[test]
    fn a_whole_backup_is_read_as_written() {
        let backup = read(whole().as_slice()).unwrap();
        assert_eq!(backup.header.revision, 7);
        assert_eq!(backup.records.iter().map(|record| record.key.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_noticed() {
        let good = whole();
        for at in 0..good.len() {
            assert!(read(&good[..at]).is_err(), "cut at {at}");
            for change in [1, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= change;
                assert!(read(bad.as_slice()).is_err(), "byte {at} changed by {change:#x}");
            }
        }
        for more in [&b"\0"[..], &good] {
            assert!(read([good.as_slice(), more].concat().as_slice()).is_err(), "something was added");
        }
    }

    #[test]
    fn a_refusal_says_what_is_wrong() {
        fn refuse(parts: &[BackupPart], why: Expect) {
            why.assert_eq(&read(file(parts).as_slice()).unwrap_err().to_string());
        }
        refuse(&[], expect!["it is no backup, or a damaged one: it is empty"]);
        refuse(
            &[header(FORMAT), records(&["a"])],
            expect!["it is cut off: it ends before its trailer, after 1 records"],
        );
        refuse(
            &[header(2)],
            expect!["its format is 2, this version reads up to 1: use the Berth that made it, version 9.9"],
        );
        refuse(&[records(&["a"])], expect!["it is no backup, or a damaged one: it does not begin with a header"]);
        refuse(&[header(FORMAT), header(FORMAT)], expect!["it is no backup, or a damaged one: it has two headers"]);
        refuse(
            &[header(FORMAT), records(&["b", "a"])],
            expect!["it is no backup, or a damaged one: its records are not in order of key"],
        );
        refuse(
            &[header(FORMAT), records(&["a"]), records(&["a"])],
            expect!["it is no backup, or a damaged one: its records are not in order of key"],
        );
        let trailer = |records| BackupPart {
            part: Some(Part::Trailer(BackupTrailer {
                revision: 7,
                records,
                sha256: Sha256::digest(file(&[header(FORMAT)])).to_vec(),
            })),
        };
        assert!(read(file(&[header(FORMAT), trailer(0)]).as_slice()).is_ok());
        refuse(
            &[header(FORMAT), trailer(1)],
            expect!["it is damaged: its trailer counts 1 records at revision 7, there are 0"],
        );
        refuse(
            &[header(FORMAT), records(&["a"]), trailer(1)],
            expect!["it is damaged: its content does not fit its checksum"],
        );
    }
}
