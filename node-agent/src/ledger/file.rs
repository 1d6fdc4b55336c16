//! One small file that is either the old one or the new one, whole, whatever happens, and belongs to one process.
//!
//! Owns the agent's data directory: its lock, the file `ledger` and its header (name, format version, checksum of what
//! follows). Must never know what the bytes mean, and never replace a file it could not read.

use sha2::{Digest as _, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Version of the file's form that this build reads and writes.
const VERSION: u32 = 1;
const NAME: &str = "ledger";
/// Where the next file is written before it takes the name of the old one.
const NEW_NAME: &str = "ledger.new";
const LOCK_NAME: &str = "lock";
/// How long a lock is waited for: a child that was forked when its owner let go has it until it becomes another program.
const LET_GO: Duration = Duration::from_millis(250);
const TITLE: &str = "berth-agent-ledger";
/// Largest ledger that is read: far above 64 placements and 1,024 VMs' settings, far below what hurts.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk or its rights stand in the way.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another agent works in the directory.
    #[error("data directory {path} is in use by another agent; give each agent a directory of its own (data_dir)")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The ledger was closed, or the thread that wrote was lost: the agent is ending.
    #[error("the agent is ending; whether a write under way took effect shows at the next start")]
    Lost,
    /// The file was written by a newer agent.
    #[error(
        "the ledger {path} has format version {found}, this agent knows {VERSION}; start the newer agent that wrote it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The file is not what was written.
    #[error(
        "the ledger {path} is damaged: {what}. Put back a copy of it. Only if there is none, and no old controller is \
         running any more, move it away: the agent then takes the controller's word as its first, and cannot put back \
         the settings that VMs had before Berth changed them"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// A data directory, locked for this value's lifetime.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    /// The system lets go of the lock when this is closed, however the process ends.
    _lock: File,
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { doing, path: path.to_owned(), source }
}

impl DataDir {
    /// Makes the directory if need be, locks it, and reads what was last written. `None`: nothing ever was.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Vec<u8>>), Error> {
        fs::create_dir_all(path).map_err(at("create the directory", path))?;
        let lock_path = path.join(LOCK_NAME);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(at("open the lock file", &lock_path))?;
        let until = Instant::now() + LET_GO;
        while let Err(error) = lock.try_lock() {
            match error {
                TryLockError::WouldBlock if Instant::now() < until => std::thread::sleep(LET_GO / 50),
                TryLockError::WouldBlock => return Err(Error::InUse { path: path.to_owned() }),
                TryLockError::Error(error) => return Err(at("lock", &lock_path)(error)),
            }
        }
        let dir = Self { path: path.to_owned(), _lock: lock };
        let body = dir.read()?;
        Ok((dir, body))
    }

    /// The file that holds the ledger.
    pub(super) fn file(&self) -> PathBuf {
        self.path.join(NAME)
    }

    fn read(&self) -> Result<Option<Vec<u8>>, Error> {
        // What a crash left half-written never counted.
        let new = self.path.join(NEW_NAME);
        match fs::remove_file(&new) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at("remove the unfinished file", &new)(error)),
        }
        let path = self.file();
        let size = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at("read", &path)(error)),
        };
        if size > MAX_BYTES {
            let what = format!("it has {size} bytes, at most {MAX_BYTES} are possible");
            return Err(Error::Damaged { path, what });
        }
        let bytes = fs::read(&path).map_err(at("read", &path))?;
        open_envelope(&bytes, &path).map(Some)
    }

    /// Replaces the file. When this returns `Ok` the new content survives a power cut; when it returns an error either
    /// content may be there after a restart, whole.
    pub(super) fn write(&self, body: &[u8]) -> Result<(), Error> {
        let new = self.path.join(NEW_NAME);
        let mut file = File::create(&new).map_err(at("create", &new))?;
        file.write_all(&envelope(body)).map_err(at("write", &new))?;
        file.sync_all().map_err(at("flush to disk", &new))?;
        drop(file);
        let path = self.file();
        fs::rename(&new, &path).map_err(at("replace", &path))?;
        self.sync_directory()
    }

    /// Makes the rename durable. Windows writes directory changes through its journal and cannot open directories so.
    #[cfg(unix)]
    fn sync_directory(&self) -> Result<(), Error> {
        File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(at("flush the directory", &self.path))
    }

    #[cfg(not(unix))]
    #[expect(
        clippy::unnecessary_wraps,
        clippy::unused_self,
        reason = "the same shape as where there is something to do"
    )]
    fn sync_directory(&self) -> Result<(), Error> {
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// `berth-agent-ledger VERSION SHA256\n` and the body.
fn envelope(body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{TITLE} {VERSION} {}\n", hex(&Sha256::digest(body))).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn open_envelope(bytes: &[u8], path: &Path) -> Result<Vec<u8>, Error> {
    let damaged = |what: &str| Error::Damaged { path: path.to_owned(), what: what.to_owned() };
    let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| damaged("its first line is missing"))?;
    let (header, body) = (&bytes[..end], &bytes[end + 1..]);
    let header = std::str::from_utf8(header).map_err(|_| damaged("its first line is not text"))?;
    let mut words = header.split(' ');
    if words.next() != Some(TITLE) {
        return Err(damaged("it does not begin like a ledger"));
    }
    let version: u32 = words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| damaged("its first line does not name a format version"))?;
    if version > VERSION {
        return Err(Error::Newer { path: path.to_owned(), found: version });
    }
    if version < VERSION {
        return Err(damaged("its format version never existed"));
    }
    if words.next() != Some(hex(&Sha256::digest(body)).as_str()) || words.next().is_some() {
        return Err(damaged("its content does not fit its checksum"));
    }
    Ok(body.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn body(path: &Path) -> Option<Vec<u8>> {
        DataDir::open(path).unwrap().1
    }

    #[test]
    fn what_was_written_last_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("made/when/missing");
        let (dir, nothing) = DataDir::open(&path).unwrap();
        assert_eq!(nothing, None);
        dir.write(b"one").unwrap();
        dir.write(b"two\nlines").unwrap();
        drop(dir);
        assert_eq!(body(&path).unwrap(), b"two\nlines");
    }

    #[test]
    fn a_crash_between_write_and_rename_leaves_the_old_content() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, _) = DataDir::open(temp.path()).unwrap();
        dir.write(b"old").unwrap();
        drop(dir);
        let whole = envelope(b"new");
        for cut in 0..=whole.len() {
            fs::write(temp.path().join(NEW_NAME), &whole[..cut]).unwrap();
            assert_eq!(body(temp.path()).unwrap(), b"old", "after {cut} bytes");
            assert!(!temp.path().join(NEW_NAME).exists(), "the unfinished file stays");
        }
    }

    #[test]
    fn a_lock_that_is_about_to_be_let_go_is_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        let (first, _) = DataDir::open(temp.path()).unwrap();
        // As a child that is forked and not yet another program.
        let copy = first._lock.try_clone().unwrap();
        drop(first);
        let holder = std::thread::spawn(move || {
            std::thread::sleep(LET_GO / 10);
            drop(copy);
        });
        assert!(DataDir::open(temp.path()).is_ok());
        holder.join().unwrap();
    }

    #[test]
    fn two_agents_cannot_share_a_directory() {
        let temp = tempfile::tempdir().unwrap();
        let (first, _) = DataDir::open(temp.path()).unwrap();
        let error = DataDir::open(temp.path()).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        drop(first);
        assert!(DataDir::open(temp.path()).is_ok(), "the lock outlives its owner");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let temp = tempfile::tempdir().unwrap();
        let good = envelope(b"content");
        let file = temp.path().join(NAME);
        let refused = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            let refused = DataDir::open(temp.path()).is_err();
            assert_eq!(fs::read(&file).unwrap(), bytes, "a damaged ledger was changed");
            refused
        };
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(refused(&bad), "bit 0 of byte {at} flipped");
            assert!(refused(&good[..at]), "cut at {at}");
        }
        assert!(!refused(&good));
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        fn refuse(content: &[u8], why: Expect) {
            why.assert_eq(&open_envelope(content, Path::new("/d/ledger")).unwrap_err().to_string());
        }
        refuse(
            b"berth-agent-ledger 2 00\n",
            expect![
                "the ledger /d/ledger has format version 2, this agent knows 1; start the newer agent that wrote it"
            ],
        );
        refuse(
            b"",
            expect![
                "the ledger /d/ledger is damaged: its first line is missing. Put back a copy of it. Only if there is none, and no old controller is running any more, move it away: the agent then takes the controller's word as its first, and cannot put back the settings that VMs had before Berth changed them"
            ],
        );
        refuse(
            b"{}\n",
            expect![
                "the ledger /d/ledger is damaged: it does not begin like a ledger. Put back a copy of it. Only if there is none, and no old controller is running any more, move it away: the agent then takes the controller's word as its first, and cannot put back the settings that VMs had before Berth changed them"
            ],
        );
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataDir::open(&file.join("dir")).unwrap_err();
        assert!(error.to_string().starts_with("cannot create the directory"), "{error}");
    }
}
