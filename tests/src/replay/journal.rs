//! What was acknowledged, written down before anything else is done with it: the measure of what a crash may not lose.

use anyhow::Context as _;
use berth_proto::v1::Placement;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// One line of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(super) enum Entry {
    /// The controller answered Create with this placement.
    Created {
        name: String,
        request_id: String,
        uid: String,
        /// Empty when it was only queued.
        node: String,
        /// Addresses on that node.
        gpus: Vec<String>,
    },
    /// Release is about to be called: from here on it may end without another word.
    Releasing { name: String, uid: String },
    /// The controller answered Release.
    Released { name: String, uid: String },
}

impl Entry {
    /// What Create answered.
    pub(super) fn created(placement: &Placement) -> Self {
        let request = placement.request.clone().unwrap_or_default();
        let assignment = placement.assignment.clone().unwrap_or_default();
        Self::Created {
            name: request.name,
            request_id: request.request_id,
            uid: placement.uid.clone(),
            node: assignment.node,
            gpus: assignment.gpus.into_iter().map(|gpu| gpu.address).collect(),
        }
    }
}

/// All that was acknowledged in one run, and the file it goes to.
#[derive(Debug, Default)]
pub(super) struct Journal {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    file: Option<File>,
    entries: Vec<Entry>,
}

impl Journal {
    /// Appends to `path`, or only remembers.
    pub(super) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let file = path
            .map(|path| {
                let open = File::options().append(true).create(true).open(path);
                open.with_context(|| format!("cannot write {}", path.display()))
            })
            .transpose()?;
        Ok(Self { inner: Mutex::new(Inner { file, entries: Vec::new() }) })
    }

    /// Writes one entry down, as one write of one line: killed at any moment, the file has it or not.
    pub(super) fn note(&self, entry: Entry) -> anyhow::Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut inner.file {
            let mut line = serde_json::to_vec(&entry).context("cannot encode an entry")?;
            line.push(b'\n');
            file.write_all(&line).and_then(|()| file.flush()).context("cannot write the journal")?;
        }
        inner.entries.push(entry);
        Ok(())
    }

    /// Everything noted so far.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).entries.clone()
    }
}

/// Reads a journal. A last line without its end was not written before the crash and counts for nothing.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<Entry>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut reader = BufReader::new(file);
    let mut entries = Vec::new();
    let mut line = String::new();
    while reader.read_line(&mut line).with_context(|| format!("cannot read {}", path.display()))? > 0 {
        if line.ends_with('\n') {
            let at = entries.len() + 1;
            entries.push(
                serde_json::from_str(&line).with_context(|| format!("{}: line {at} is no entry", path.display()))?,
            );
        }
        line.clear();
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_read_back_without_a_torn_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::open(Some(&path)).unwrap();
        let entry = Entry::Releasing { name: "a".into(), uid: "u".into() };
        journal.note(entry.clone()).unwrap();
        File::options().append(true).open(&path).unwrap().write_all(b"{\"what\":\"rel").unwrap();
        assert_eq!(read(&path).unwrap(), [entry]);
    }
}
