//! Opening a data directory: one process at a time, never anything but a whole store.
//!
//! A new store is made beside its final name and renamed when it is complete, so whatever lies under that name was once
//! complete: an empty or cut file there is damage, never a fresh start. Must never repair by throwing data away.

use super::tables::{FORMAT, KEYS, LOG, META, META_COMPACTED, META_FORMAT, META_REVISION, View, failed};
use crate::store::Error;
use redb::{Database, DatabaseError, ReadableDatabase as _, StorageError};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FILE: &str = "berth.redb";
const NEW_FILE: &str = "berth.redb.new";
const LOCK: &str = "lock";
/// How long a directory in use is waited for: a child that was forked when its owner let go has its locks until it becomes
/// another program.
const LET_GO: Duration = Duration::from_millis(250);

/// Memory for pages of the file. A fleet's records are tens of MiB; beyond it the system's page cache serves.
const CACHE_BYTES: usize = 64 << 20;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("data directory {} is in use by another process: stop that one, or choose another directory", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// It is there, but as something else.
    #[error("{} is not a directory: choose a directory for the data", path.display())]
    NotADirectory {
        /// What was given.
        path: PathBuf,
    },
    /// The system refuses or fails.
    #[error("cannot use {}: {doing}", path.display())]
    Io {
        /// The directory or a file in it.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The file is damaged. Nothing was changed in it.
    #[error("{} is damaged ({what}): put it aside and restore a backup", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A newer Berth wrote it.
    #[error(
        "{} was written by a newer Berth (format {found}, this one knows up to {known}): use that version",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest format this version knows.
        known: u64,
    },
}

/// An open data directory. The lock goes after the database, and with the process however that ends.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) database: Database,
    pub(super) _lock: File,
}

impl Files {
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let until = Instant::now() + LET_GO;
        loop {
            match Self::open_at_once(dir) {
                Err(OpenError::InUse { .. }) if Instant::now() < until => std::thread::sleep(LET_GO / 50),
                opened => return opened,
            }
        }
    }

    fn open_at_once(dir: &Path) -> Result<Self, OpenError> {
        if dir.exists() && !dir.is_dir() {
            return Err(OpenError::NotADirectory { path: dir.to_owned() });
        }
        std::fs::create_dir_all(dir).map_err(|source| io_error(dir, "creating the directory", source))?;
        let lock = lock(dir)?;
        let path = dir.join(FILE);
        let there = path.try_exists().map_err(|source| io_error(&path, "looking for it", source))?;
        if !there {
            create(dir, &path)?;
        }
        // redb answers damage with errors when it verifies everything, but says of itself that it may panic on what no
        // version of it wrote. That, too, must end in a sentence that says what to do.
        let opened = catch_unwind(AssertUnwindSafe(|| open_whole(dir, &path)));
        let database = opened.unwrap_or_else(|_| Err(corrupt(&path, "reading it failed in an unexpected way")))?;
        Ok(Self { database, _lock: lock })
    }
}

fn io_error(path: &Path, doing: &'static str, source: io::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), doing, source }
}

fn corrupt(path: &Path, what: impl Into<String>) -> OpenError {
    OpenError::Corrupt { path: path.to_owned(), what: what.into() }
}

pub(super) fn unreadable(path: &Path, error: Error) -> OpenError {
    match error {
        Error::Corrupt(what) => corrupt(path, what),
        error @ (Error::Unavailable(_) | Error::Compacted { .. }) => {
            io_error(path, "reading it", io::Error::other(error))
        }
    }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = open.map_err(|source| io_error(&path, "opening the lock file", source))?;
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => OpenError::InUse { dir: dir.to_owned() },
        TryLockError::Error(source) => io_error(&path, "locking it", source),
    })?;
    Ok(file)
}

/// Makes an empty store, complete before it has its name.
fn create(dir: &Path, path: &Path) -> Result<(), OpenError> {
    let new = dir.join(NEW_FILE);
    // What an earlier attempt that was cut off left; the lock is ours, so nobody is at it.
    match std::fs::remove_file(&new) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(io_error(&new, "removing what an earlier start left", source)),
    }
    let made = Database::builder().set_cache_size(CACHE_BYTES).create(&new).map_err(redb::Error::from);
    made.and_then(|database| fill(&database)).map_err(|error| io_error(&new, "creating the store", io_cause(error)))?;
    std::fs::rename(&new, path).map_err(|source| io_error(path, "naming the new store", source))?;
    sync_dir(dir)?;
    // The directory itself may be new, too.
    match dir.canonicalize().ok().as_deref().and_then(Path::parent) {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Writes what an empty store consists of.
pub(super) fn fill(database: &Database) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    write.open_table(KEYS)?;
    write.open_table(LOG)?;
    {
        let mut meta = write.open_table(META)?;
        meta.insert(META_FORMAT, FORMAT)?;
        meta.insert(META_REVISION, 0)?;
        meta.insert(META_COMPACTED, 0)?;
    }
    write.commit()?;
    Ok(())
}

/// Makes names in a directory durable.
#[cfg(unix)]
fn sync_dir(dir: &Path) -> Result<(), OpenError> {
    let sync = || File::open(dir)?.sync_all();
    match sync() {
        // A parent that we may pass through but not read: its owner made the directory long before.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(|source| io_error(dir, "syncing the directory", source)),
    }
}

/// Elsewhere the system orders renames by itself and does not let directories be opened.
#[cfg(not(unix))]
fn sync_dir(_dir: &Path) -> Result<(), OpenError> {
    Ok(())
}

fn io_cause(error: redb::Error) -> io::Error {
    if let redb::Error::Io(source) = error { source } else { io::Error::other(error) }
}

/// Opens the file, verifying every page: records that are wrong without anybody noticing would hand out a GPU twice.
/// The whole file is read, which for its tens of MiB takes a fraction of a second.
fn open_whole(dir: &Path, path: &Path) -> Result<Database, OpenError> {
    let opened = Database::builder().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).open(path);
    let database = opened.map_err(|error| refused(dir, path, error))?;
    let format = format_of(&database).map_err(|error| unreadable(path, error))?;
    if format > FORMAT {
        return Err(OpenError::Newer { path: path.to_owned(), found: format, known: FORMAT });
    }
    if format < 1 {
        return Err(corrupt(path, format!("format {format} never existed")));
    }
    View::open(&database).and_then(|view| view.check()).map_err(|error| unreadable(path, error))?;
    Ok(database)
}

fn format_of(database: &Database) -> Result<u64, Error> {
    let read = database.begin_read().map_err(failed)?;
    let meta = read.open_table(META).map_err(failed)?;
    let format = meta.get(META_FORMAT).map_err(failed)?;
    format.map(|format| format.value()).ok_or_else(|| Error::Corrupt("it does not say its format".to_owned()))
}

fn refused(dir: &Path, path: &Path, error: DatabaseError) -> OpenError {
    if matches!(error, DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch) {
        return OpenError::InUse { dir: dir.to_owned() };
    }
    let DatabaseError::Storage(StorageError::Io(cause)) = error else {
        return corrupt(path, error.to_string());
    };
    // redb says "not a database" and "ends too early" in these kinds.
    if matches!(cause.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) {
        corrupt(path, cause.to_string())
    } else {
        io_error(path, "opening it", cause)
    }
}
