//! Files and folders that nobody but administrators and the agent's own account can change.
//!
//! Owns the rule and how a folder is made so. What the agent hands to PowerShell runs with all its rights: whoever can change
//! that text owns the host. Must never make a folder safe that holds what others may have put there.

mod descriptor;
#[cfg(windows)]
mod windows;

use std::io;
use std::path::{Path, PathBuf};

/// Why something is not guarded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unguarded {
    /// The disk or its rights stand in the way.
    #[error("cannot {doing} {}: {why}", path.display())]
    Io { doing: &'static str, path: PathBuf, why: io::Error },
    /// It is a link, or no folder or file at all.
    #[error("{} is not a plain {what}; move it away, and the agent makes one", path.display())]
    Odd { path: PathBuf, what: &'static str },
    /// Others can change it.
    #[error("{} can be changed by {who}; only administrators, SYSTEM and the agent's account may", path.display())]
    Others { path: PathBuf, who: String },
    /// Others can read it, or change it.
    #[error(
        "{file} can be read or changed by {who}; only administrators, SYSTEM and the agent's account may: icacls \"{file}\" \
         /inheritance:r /grant:r \"*S-1-5-18:F\" \"*S-1-5-32-544:F\", and as many for a service account",
        file = path.display()
    )]
    Readers { path: PathBuf, who: String },
    /// Others could change a folder that holds something.
    #[error(
        "{folder} can be changed by {who}; only administrators, SYSTEM and the agent's account may. Look at what is in it; \
         then, as an administrator: icacls \"{folder}\" /setowner *S-1-5-32-544 /t; icacls \"{folder}\" /reset /t; \
         icacls \"{folder}\" /inheritance:r /grant:r \"*S-1-5-18:(OI)(CI)F\" \"*S-1-5-32-544:(OI)(CI)F\", and as many for a \
         service account",
        folder = path.display()
    )]
    Filled { path: PathBuf, who: String },
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Unguarded {
    let path = path.to_owned();
    move |why| Unguarded::Io { doing, path, why }
}

/// Makes the folder if need be. It is then a folder, no link to one, and guarded; one that is empty is made so.
pub(crate) fn folder(path: &Path) -> Result<(), Unguarded> {
    std::fs::create_dir_all(path).map_err(io("create the folder", path))?;
    if !std::fs::symlink_metadata(path).map_err(io("look at", path))?.is_dir() {
        return Err(Unguarded::Odd { path: path.to_owned(), what: "folder" });
    }
    let (path, who) = match check(path) {
        Err(Unguarded::Others { path, who }) => (path, who),
        other => return other,
    };
    let mut entries = std::fs::read_dir(&path).map_err(io("list", &path))?;
    if entries.next().is_some() {
        return Err(Unguarded::Filled { path, who });
    }
    make(&path)?;
    check(&path)
}

/// A file with this text, which is guarded, and was read back. One that is there already is kept only if it is all that.
pub(crate) fn file(path: &Path, text: &str) -> Result<(), Unguarded> {
    use io::Write as _;
    let is_file = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
    let right = |path: &Path| is_file(path) && std::fs::read(path).is_ok_and(|found| found == text.as_bytes());
    if right(path) && check(path).is_ok() {
        return Ok(());
    }
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io("remove", path)(error)),
    }
    // A new one: whoever holds the old one open writes into nothing.
    let mut new = std::fs::File::create_new(path).map_err(io("create", path))?;
    new.write_all(text.as_bytes()).map_err(io("write", path))?;
    drop(new);
    check(path)?;
    if right(path) {
        Ok(())
    } else {
        Err(Unguarded::Odd { path: path.to_owned(), what: "file that keeps what is written" })
    }
}

/// Whether nobody else can change it.
#[cfg(windows)]
pub(crate) fn check(path: &Path) -> Result<(), Unguarded> {
    let others = others(path, descriptor::CHANGES)?;
    others.map_or(Ok(()), |who| Err(Unguarded::Others { path: path.to_owned(), who }))
}

/// Whether nobody else can read it or change it.
#[cfg(windows)]
pub(crate) fn secret(path: &Path) -> Result<(), Unguarded> {
    let others = others(path, descriptor::CHANGES | descriptor::READS)?;
    others.map_or(Ok(()), |who| Err(Unguarded::Readers { path: path.to_owned(), who }))
}

/// Everybody else who has one of these rights, if anybody.
#[cfg(windows)]
fn others(path: &Path, rights: u32) -> Result<Option<String>, Unguarded> {
    let text = windows::descriptor(path).map_err(io("read who may change", path))?;
    let own = windows::own_account().map_err(io("find out whose account can change", path))?;
    match descriptor::others(&text, &own, rights) {
        Ok(others) => Ok((!others.is_empty()).then(|| others.join(", "))),
        Err(why) => Err(io("read who may change", path)(io::Error::other(why))),
    }
}

/// Whether nobody else can change a file, or put another one in its place.
#[cfg(windows)]
pub(crate) fn in_place(path: &Path) -> Result<(), Unguarded> {
    check(path)?;
    path.parent().map_or(Ok(()), check)
}

#[cfg(windows)]
fn make(path: &Path) -> Result<(), Unguarded> {
    windows::guard(path).map_err(io("restrict who may change", path))
}

/// Elsewhere there is no host whose scripts would have to be guarded.
#[cfg(not(windows))]
#[expect(clippy::unnecessary_wraps, reason = "the same shape as where there is something to do")]
pub(crate) fn check(_path: &Path) -> Result<(), Unguarded> {
    Ok(())
}

#[cfg(not(windows))]
#[expect(clippy::unnecessary_wraps, reason = "the same shape as where there is something to do")]
fn make(_path: &Path) -> Result<(), Unguarded> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_was_written_whatever_lay_there() {
        let dir = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (dir.path().join("host.ps1"), dir.path().join("elsewhere"));
        file(&path, "text").unwrap();
        std::fs::write(&path, "tampered").unwrap();
        file(&path, "text").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
        #[cfg(unix)]
        {
            std::fs::write(&elsewhere, "text").unwrap();
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
            file(&path, "text").unwrap();
            assert!(std::fs::symlink_metadata(&path).unwrap().is_file(), "a link was taken for the file");
            std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
            let error = folder(&dir.path().join("link")).unwrap_err().to_string();
            assert!(error.contains("not a plain folder"), "{error}");
        }
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(file(&dir.path().join("folder"), "text").is_err());
        assert!(folder(&path).is_err(), "a file was taken for a folder");
        folder(&dir.path().join("a").join("b")).unwrap();
    }
}
