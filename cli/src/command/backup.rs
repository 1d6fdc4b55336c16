//! `berth backup`: all that the controller keeps, into one file.
//!
//! The file has its name only when it is whole and on disk. Must never replace another file unasked.

use crate::args::Backup;
use crate::client::{Client, broken};
use crate::error::Error;
use crate::output::{Out, count};
use crate::progress::Progress;
use berth_proto::backup::{self, Seal};
use berth_proto::v1;
use bytesize::ByteSize;
use prost::Message as _;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::{Code, Status};

/// Attempts in all. A store that moves on faster than it can be read three times needs a quieter moment.
const ATTEMPTS: u32 = 3;
const AGAIN: Duration = Duration::from_millis(500);

/// What was written.
struct Written {
    header: v1::BackupHeader,
    records: u64,
    bytes: u64,
}

/// Runs the verb.
///
/// # Errors
/// When the file is there already, cannot be written, or no whole backup comes.
pub async fn run(client: &Client, args: Backup, out: &mut Out<'_>) -> Result<(), Error> {
    let Backup { file, force } = args;
    refuse_existing(&file, force)?;
    let mut progress = Progress::stderr();
    let mut attempt = 1;
    let written = loop {
        match once(client, &file, force, &mut progress).await {
            Ok(written) => break written,
            Err(Failed::Again(why)) if attempt < ATTEMPTS => {
                progress.say(format!("beginning again: {why}"));
                attempt += 1;
                tokio::time::sleep(AGAIN).await;
            }
            Err(Failed::Again(error) | Failed::ForGood(error)) => return Err(error),
        }
    };
    drop(progress);
    let Written { header, records, bytes } = written;
    out.line(format_args!(
        "{}: {} at revision {} (term {}), {}",
        file.display(),
        count(records, "record"),
        header.revision,
        header.term,
        ByteSize::b(bytes)
    ))
}

/// The directory a file is in.
fn directory(file: &Path) -> &Path {
    file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Names the file that was asked for: nobody has heard of the one it is until it is whole.
fn cannot_write(file: &Path, why: &std::io::Error) -> Error {
    let (dir, name) = (directory(file).display(), file.file_name().unwrap_or(file.as_os_str()).display());
    let kind = why.kind();
    Error::CannotWrite(if kind == ErrorKind::NotFound {
        format!("{name}: directory {dir} does not exist")
    } else if kind == ErrorKind::NotADirectory {
        format!("{name}: {dir} is no directory")
    } else if kind == ErrorKind::PermissionDenied {
        format!("{name}: no permission to write into directory {dir}")
    } else {
        format!("{}: {why}", file.display())
    })
}

fn refuse_existing(file: &Path, force: bool) -> Result<(), Error> {
    let there = file.symlink_metadata().is_ok();
    if there && !force {
        let text = format!("{} is there already; choose another name, or replace it with --force", file.display());
        return Err(Error::Usage(text));
    }
    Ok(())
}

/// How an attempt failed.
enum Failed {
    /// Another may succeed.
    Again(Error),
    ForGood(Error),
}

impl Failed {
    fn of(status: &Status, client: &Client) -> Self {
        let error = broken(status, client.endpoint());
        let again = status.code() == Code::OutOfRange || matches!(error, Error::Unreachable { .. });
        if again { Self::Again(error) } else { Self::ForGood(error) }
    }

    fn not_whole(file: &Path, error: &backup::Error) -> Self {
        Self::Again(Error::Ended(format!("{} was not written: what came is no whole backup: {error}", file.display())))
    }
}

/// A file that goes away unless it is kept.
struct Partial {
    path: PathBuf,
    kept: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            // Nobody can do anything about a leftover; its name says what it is.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// One attempt. Writing blocks the only task that there is; a backup has nothing else to wait for.
async fn once(client: &Client, file: &Path, force: bool, progress: &mut Progress) -> Result<Written, Failed> {
    let unwritten = |why| Failed::ForGood(cannot_write(file, &why));
    let Some(name) = file.file_name() else {
        return Err(Failed::ForGood(Error::Usage(format!("{} is no name of a file", file.display()))));
    };
    // Beside it, because only within one file system renaming is one step.
    let mut partial = name.to_owned();
    partial.push(format!(".{}.partial", uuid::Uuid::new_v4().simple()));
    let mut partial = Partial { path: file.with_file_name(partial), kept: false };
    // Before anything is asked: a file that cannot be written is known at once.
    let created = File::create_new(&partial.path);
    let mut to = BufWriter::new(created.map_err(|why| Failed::ForGood(cannot_write(file, &why)))?);
    let slow = || {
        let why = format!("nothing came for {}", humantime::format_duration(client.deadline()));
        Failed::Again(Error::Unreachable { endpoint: client.endpoint().to_owned(), why })
    };
    let opened =
        tokio::time::timeout(client.deadline(), async { client.operations().backup(v1::BackupRequest {}).await });
    let mut stream = match opened.await {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => return Err(Failed::of(&status, client)),
        Err(_) => return Err(slow()),
    };
    let (mut seal, mut bytes) = (Seal::default(), 0_u64);
    loop {
        let part = match tokio::time::timeout(client.deadline(), stream.message()).await {
            Ok(Ok(Some(part))) => part,
            Ok(Ok(None)) => break,
            Ok(Err(status)) => return Err(Failed::of(&status, client)),
            Err(_) => return Err(slow()),
        };
        seal.take(&part).map_err(|error| Failed::not_whole(file, &error))?;
        let part = part.encode_length_delimited_to_vec();
        bytes = bytes.saturating_add(part.len().try_into().unwrap_or(u64::MAX));
        to.write_all(&part).map_err(unwritten)?;
        progress.count(format!("{}, {}", count(seal.records(), "record"), ByteSize::b(bytes)));
    }
    let records = seal.records();
    let header = seal.end().map_err(|error| Failed::not_whole(file, &error))?;
    let to = to.into_inner().map_err(std::io::IntoInnerError::into_error).map_err(unwritten)?;
    to.sync_all().map_err(unwritten)?;
    drop(to);
    // Somebody may have made it meanwhile.
    refuse_existing(file, force).map_err(Failed::ForGood)?;
    std::fs::rename(&partial.path, file).map_err(unwritten)?;
    partial.kept = true;
    sync_directory(file).map_err(unwritten)?;
    Ok(Written { header, records, bytes })
}

/// Makes the new name durable.
#[cfg(unix)]
fn sync_directory(file: &Path) -> std::io::Result<()> {
    File::open(directory(file))?.sync_all()
}

/// Elsewhere the system orders renames by itself and does not let directories be opened.
#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "the same shape as where there is something to do")]
fn sync_directory(_file: &Path) -> std::io::Result<()> {
    Ok(())
}
