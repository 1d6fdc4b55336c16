//! What an agent must not forget: the highest term, the desired state it accepted, and facts no host can show again.
//!
//! Owns their durable form and the order "durable first, then acted on". The rule which desired state is accepted is
//! `berth_agent_core::ledger`'s; how a file stays whole is [`file`]'s. Must never forget silently: what cannot be read
//! is an error.

mod file;
mod record;

pub use file::Error;

use berth_agent_core::ledger::{Accepted, Ledger, Refused};
use berth_agent_core::memory::Memory;
use berth_model::desired::DesiredNode;
use file::DataDir;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Everything that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    ledger: Ledger,
    memory: Memory,
}

/// Why a desired state was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The rule forbids it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It could not be made durable, so it counts as never heard.
    #[error(transparent)]
    Write(#[from] Error),
}

/// The agent's ledger. Clones are the same ledger. Disk work runs on the blocking pool, one write at a time; a call that
/// is dropped halfway is carried out all the same.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// What is durable. Locked for moments only.
    state: Mutex<State>,
    /// Locked while writing: by threads of the blocking pool only. `None` once closed.
    dir: Mutex<Option<DataDir>>,
}

/// A thread that panicked while holding one of the locks left a whole value behind: each is replaced in one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handle {
    /// Locks the data directory and reads what is there; a directory without a ledger is a first start.
    ///
    /// # Errors
    /// [`enum@Error`]: the directory is in use, cannot be read or written, or holds what this agent did not write.
    pub async fn open(data_dir: &Path) -> Result<Self, Error> {
        let path = data_dir.to_owned();
        blocking(move || {
            let (dir, body) = DataDir::open(&path)?;
            let state = match body {
                None => State::default(),
                Some(body) => record::read(&body).map_err(|what| Error::Damaged { path: dir.file(), what })?,
            };
            Ok(Self(Arc::new(Shared { state: Mutex::new(state), dir: Mutex::new(Some(dir)) })))
        })
        .await?
    }

    /// Highest term seen, and the desired state last accepted.
    pub fn ledger(&self) -> Ledger {
        lock(&self.0.state).ledger.clone()
    }

    /// What is remembered of the host.
    pub fn memory(&self) -> Memory {
        lock(&self.0.state).memory.clone()
    }

    /// Judges an offer and, if it is accepted, makes it durable. Only then may it be acted on.
    ///
    /// # Errors
    /// [`AcceptError`]; the ledger is as before.
    pub async fn accept(&self, offer: DesiredNode) -> Result<Accepted, AcceptError> {
        self.change(move |state| Ok(state.ledger.accept(offer)?)).await
    }

    /// Replaces what is remembered of the host, durably.
    ///
    /// # Errors
    /// [`enum@Error`]; what is remembered is as before.
    pub async fn remember(&self, memory: Memory) -> Result<(), Error> {
        self.change(move |state| {
            state.memory = memory;
            Ok(())
        })
        .await
    }

    /// Lets go of the data directory, after the write under way if there is one. Nothing is written from then on, so that
    /// another agent may have the directory at once.
    pub async fn close(&self) {
        let shared = Arc::clone(&self.0);
        // Should the pool be gone, its threads are, and with them whatever was under way.
        if blocking(move || drop(lock(&shared.dir).take())).await.is_err() {
            tracing::warn!("the ledger was closed while the process ends");
        }
    }

    /// Applies a change to a copy, writes the copy, and only then takes it for true.
    async fn change<T, E>(&self, change: impl FnOnce(&mut State) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let shared = Arc::clone(&self.0);
        let changed = blocking(move || {
            let dir = lock(&shared.dir);
            let dir = dir.as_ref().ok_or(Error::Lost)?;
            let before = lock(&shared.state).clone();
            let mut after = before.clone();
            let value = change(&mut after)?;
            if after != before {
                dir.write(&record::write(&after))?;
                *lock(&shared.state) = after;
            }
            Ok(value)
        });
        changed.await?
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_agent_core::observed::{Checkpoints, StopAction, VmMemory, VmSettings};
    use berth_model::VmId;

    fn offer(term: u64, generation: u64) -> DesiredNode {
        record::tests::desired(term, generation)
    }

    #[tokio::test]
    async fn what_was_accepted_survives_a_restart() {
        let temp = tempfile::tempdir().unwrap();
        let ledger = Handle::open(temp.path()).await.unwrap();
        assert_eq!(ledger.ledger(), Ledger::default());
        assert_eq!(ledger.accept(offer(3, 7)).await.unwrap(), Accepted::New);
        drop(ledger);
        let ledger = Handle::open(temp.path()).await.unwrap();
        assert_eq!(ledger.ledger(), Ledger { term: 3, desired: Some(offer(3, 7)) });
    }

    #[tokio::test]
    async fn a_refused_generation_changes_neither_memory_nor_disk() {
        let temp = tempfile::tempdir().unwrap();
        let ledger = Handle::open(temp.path()).await.unwrap();
        ledger.accept(offer(3, 7)).await.unwrap();
        let before = std::fs::read(temp.path().join("ledger")).unwrap();
        let error = ledger.accept(offer(4, 6)).await.unwrap_err();
        assert!(matches!(error, AcceptError::Refused(Refused::OldGeneration { offered: 6, accepted: 7 })), "{error}");
        assert_eq!(ledger.ledger().term, 3);
        assert_eq!(std::fs::read(temp.path().join("ledger")).unwrap(), before);
    }

    #[tokio::test]
    async fn what_is_known_already_costs_no_write() {
        let temp = tempfile::tempdir().unwrap();
        let ledger = Handle::open(temp.path()).await.unwrap();
        ledger.accept(offer(3, 7)).await.unwrap();
        std::fs::remove_file(temp.path().join("ledger")).unwrap();
        assert_eq!(ledger.accept(offer(3, 7)).await.unwrap(), Accepted::Again);
        ledger.remember(ledger.memory()).await.unwrap();
        assert!(!temp.path().join("ledger").exists(), "something was written");
        assert_eq!(ledger.accept(offer(4, 7)).await.unwrap(), Accepted::NewTerm);
        assert!(temp.path().join("ledger").exists(), "the new term is not durable");
    }

    #[tokio::test]
    async fn a_closed_ledger_is_free_for_another_agent_and_writes_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let ledger = Handle::open(temp.path()).await.unwrap();
        ledger.accept(offer(1, 1)).await.unwrap();
        ledger.close().await;
        let next = Handle::open(temp.path()).await.unwrap();
        let error = ledger.accept(offer(1, 2)).await.unwrap_err();
        assert!(matches!(error, AcceptError::Write(Error::Lost)), "{error}");
        assert_eq!(next.accept(offer(1, 3)).await.unwrap(), Accepted::New);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_not_accepted() {
        let temp = tempfile::tempdir().unwrap();
        let data_dir = temp.path().join("data");
        let ledger = Handle::open(&data_dir).await.unwrap();
        std::fs::remove_dir_all(&data_dir).unwrap();
        let error = ledger.accept(offer(3, 7)).await.unwrap_err();
        assert!(matches!(error, AcceptError::Write(_)), "{error}");
        assert_eq!(ledger.ledger(), Ledger::default());
    }

    #[tokio::test]
    async fn settings_of_a_vm_are_remembered_beside_the_desired_state() {
        let temp = tempfile::tempdir().unwrap();
        let ledger = Handle::open(temp.path()).await.unwrap();
        ledger.accept(offer(1, 1)).await.unwrap();
        let settings = VmSettings {
            stop_action: StopAction::Save,
            guest_cache_types: false,
            mmio_low_bytes: 1,
            mmio_high_bytes: 2,
            memory: VmMemory::DYNAMIC,
            checkpoints: Checkpoints::PRODUCTION,
        };
        let mut memory = Memory::default();
        memory.original.insert(VmId::new("8fce3318-aa0f-4de3-8664-278533573cd2").unwrap(), settings);
        ledger.remember(memory.clone()).await.unwrap();
        drop(ledger);
        let ledger = Handle::open(temp.path()).await.unwrap();
        assert_eq!((ledger.memory(), ledger.ledger().generation()), (memory, 1));
    }

    #[tokio::test]
    async fn a_ledger_that_makes_no_sense_is_refused_not_reset() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, _) = DataDir::open(temp.path()).unwrap();
        dir.write(b"\xff\xff\xff").unwrap();
        drop(dir);
        let error = Handle::open(temp.path()).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(temp.path().join("ledger").exists());
    }
}
