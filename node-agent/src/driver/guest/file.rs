//! Files that open a way into guests: whether nobody else can read or change them.

use std::path::{Path, PathBuf};

/// What others may not do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// Neither read nor change it: keys and credentials.
    Secret,
    /// Not change it: what is trusted.
    Trusted,
}

/// A file cannot be used. Says nothing of what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct BadFile {
    path: PathBuf,
    why: String,
}

impl Secrecy {
    /// Looks at a file, not into it.
    ///
    /// On Windows at its access list: nobody but administrators, SYSTEM and the agent's account may have those rights.
    ///
    /// # Errors
    /// Why it cannot be used, and what to do.
    pub fn check(self, path: &Path) -> Result<(), BadFile> {
        let bad = |why: String| BadFile { path: path.to_owned(), why };
        let found = std::fs::metadata(path).map_err(|error| bad(error.to_string()))?;
        if !found.is_file() {
            return Err(bad("is no file".to_owned()));
        }
        self.permissions(path, &found).map_err(bad)
    }

    #[cfg(unix)]
    fn permissions(self, _path: &Path, found: &std::fs::Metadata) -> Result<(), String> {
        use std::os::unix::fs::PermissionsExt as _;
        let (forbidden, may, should) = match self {
            Self::Secret => (0o077, "read or change", "600"),
            Self::Trusted => (0o022, "change", "644"),
        };
        let mode = found.permissions().mode() & 0o777;
        if mode & forbidden == 0 {
            Ok(())
        } else {
            Err(format!("others than its owner can {may} it (mode {mode:o}); make that {should} with chmod"))
        }
    }

    #[cfg(windows)]
    fn permissions(self, path: &Path, _found: &std::fs::Metadata) -> Result<(), String> {
        let guarded = match self {
            Self::Secret => crate::guarded::secret(path),
            Self::Trusted => crate::guarded::check(path),
        };
        guarded.map_err(|error| error.to_string())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn what_others_can_read_is_no_secret_and_what_they_can_change_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "secret words").unwrap();
        for (mode, secret, trusted) in [
            (0o600, true, true),
            (0o400, true, true),
            (0o640, false, true),
            (0o604, false, true),
            (0o620, false, false),
        ] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Secrecy::Secret.check(&path).is_ok(), secret, "{mode:o}");
            assert_eq!(Secrecy::Trusted.check(&path).is_ok(), trusted, "{mode:o}");
        }
        let said = Secrecy::Secret.check(&path).unwrap_err().to_string();
        assert!(said.contains("mode 620") && said.contains("600 with chmod") && !said.contains("words"), "{said}");
        assert!(Secrecy::Trusted.check(dir.path()).unwrap_err().to_string().contains("is no file"));
        assert!(Secrecy::Trusted.check(&dir.path().join("none")).is_err());
    }
}
