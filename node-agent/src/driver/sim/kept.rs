//! A simulated host that outlives its agent: what it is like stands in a file, and whoever works on it holds a lock.
//!
//! A real host survives its agent, and people work on it while the agent does; so must this one. Every look and every
//! step begins with what the file says and ends with the file as the host is then, so that an agent and whoever makes VMs
//! by hand may be different processes. Written by rename, so that a kill leaves the old or the new, and before the step
//! is answered, so that nothing acknowledged is forgotten. Not synced to disk: it stands for a machine that stays up
//! while processes are killed, not for one that loses power.

use super::{Delays, Host, HostSpec, NotRestored, Outcome, Saved, VmSpec, pause};
use crate::driver::{DriverError, HostDriver};
use async_trait::async_trait;
use berth_agent_core::observed::HostView;
use berth_agent_core::step::Step;
use berth_model::VmId;
use berth_model::node::HostFacts;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

const NAME: &str = "host.json";
/// Where the next state is written before it takes the name of the old one.
const NEW_NAME: &str = "host.json.new";
const LOCK_NAME: &str = "host.lock";

/// Why a host cannot be used.
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
    /// The file is not what was written.
    #[error("{path} is damaged; remove it to begin with a new host")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The file holds no state of this host.
    #[error("{path} cannot be used")]
    NotRestored {
        /// The file.
        path: PathBuf,
        /// Why.
        source: NotRestored,
    },
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { doing, path: path.to_owned(), source }
}

/// A simulated host and the directory it is kept in. Clones are the same host, and so is one opened elsewhere.
#[derive(Clone, Debug)]
pub struct KeptHost {
    place: Arc<Place>,
    delays: Delays,
}

#[derive(Debug)]
struct Place {
    spec: HostSpec,
    file: PathBuf,
    new: PathBuf,
    lock: PathBuf,
    copy: Mutex<Copy>,
}

/// The host as this process knows it, good for as long as the file says the same.
#[derive(Debug)]
struct Copy {
    host: Host,
    /// What was read or written last.
    text: Vec<u8>,
}

impl KeptHost {
    /// The host that `dir` remembers, or one as described.
    ///
    /// # Errors
    /// [`enum@Error`], when the directory cannot be used, or what it remembers cannot be read.
    pub fn open(spec: HostSpec, delays: Delays, dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(at("create", dir))?;
        let copy = Mutex::new(Copy { host: Host::new(spec.clone()), text: Vec::new() });
        let [file, new, lock] = [NAME, NEW_NAME, LOCK_NAME].map(|name| dir.join(name));
        let kept = Self { place: Arc::new(Place { spec, file, new, lock, copy }), delays };
        kept.place.work(|_| ())?;
        Ok(kept)
    }

    /// Does something to the host by hand.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn by_hand<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Host) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let place = Arc::clone(&self.place);
        match tokio::task::spawn_blocking(move || place.work(work)).await {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// The same for a thread that may wait.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn by_hand_now<T>(&self, work: impl FnOnce(&mut Host) -> T) -> Result<T, Error> {
        self.place.work(work)
    }

    /// Whether it has a VM.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub async fn has_vm(&self, id: &VmId) -> Result<bool, Error> {
        let id = id.clone();
        self.by_hand(move |host| host.vm(&id).is_some()).await
    }

    /// Creates a VM unless it is there.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn ensure_vm(&self, spec: VmSpec) -> Result<(), Error> {
        // There already is as good as created now.
        self.by_hand(|host| drop(host.create_vm(spec))).await
    }

    /// Deletes a VM if it is there.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn ensure_no_vm(&self, id: &VmId) -> Result<(), Error> {
        let id = id.clone();
        // Gone already is as good as deleted now.
        self.by_hand(move |host| drop(host.delete_vm(&id))).await
    }

    /// The same as a driver says it.
    async fn driven<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Host) -> Outcome<T> + Send + 'static,
    ) -> Result<T, DriverError> {
        let done = self.by_hand(work).await;
        let outcome = done.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            DriverError::Failed(format!("the simulated host {error}{cause}"))
        })?;
        self.delays.end(outcome).await
    }
}

impl Place {
    /// Works on the host while nobody else does: what others did meanwhile is taken in before, and whatever has changed
    /// is written down after.
    fn work<T>(&self, work: impl FnOnce(&mut Host) -> T) -> Result<T, Error> {
        // A panic elsewhere leaves the host as the file says, or this copy as it was: the next one to come writes it.
        let mut copy = self.copy.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = File::options().create(true).truncate(false).write(true).open(&self.lock);
        let lock = lock.map_err(at("open", &self.lock))?;
        // The system lets go of it when the file is closed, however the process ends.
        lock.lock().map_err(at("lock", &self.lock))?;
        self.catch_up(&mut copy)?;
        let done = work(&mut copy.host);
        self.write(&mut copy)?;
        Ok(done)
    }

    fn catch_up(&self, copy: &mut Copy) -> Result<(), Error> {
        let text = match fs::read(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(at("read", &self.file)(error)),
        };
        if text == copy.text {
            return Ok(());
        }
        let path = || self.file.clone();
        let saved: Saved = serde_json::from_slice(&text).map_err(|source| Error::Damaged { path: path(), source })?;
        let restored = Host::restore(self.spec.clone(), &saved);
        let mut host = restored.map_err(|source| Error::NotRestored { path: path(), source })?;
        // What goes wrong on it is this process's doing and no part of the host.
        std::mem::swap(host.faults(), copy.host.faults());
        *copy = Copy { host, text };
        Ok(())
    }

    fn write(&self, copy: &mut Copy) -> Result<(), Error> {
        let text = serde_json::to_vec(&copy.host.save()).map_err(io::Error::other);
        let text = text.map_err(at("write", &self.new))?;
        if text == copy.text {
            return Ok(());
        }
        fs::write(&self.new, &text).map_err(at("write", &self.new))?;
        fs::rename(&self.new, &self.file).map_err(at("replace", &self.file))?;
        copy.text = text;
        Ok(())
    }
}

#[async_trait]
impl HostDriver for KeptHost {
    async fn facts(&self) -> Result<HostFacts, DriverError> {
        Ok(self.place.spec.facts.clone())
    }

    async fn observe(&self) -> Result<HostView, DriverError> {
        pause(self.delays.look).await;
        self.driven(Host::observe).await
    }

    async fn act(&self, step: &Step) -> Result<(), DriverError> {
        pause(self.delays.of(step.kind())).await;
        let step = step.clone();
        self.driven(move |host| host.act(&step)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::sim::{GpuSpec, StepFault};
    use berth_model::node::Platform;
    use berth_model::placement::StepKind;

    const ADDRESS: &str = "PCIROOT(10)#PCI(0100)#PCI(0000)";

    fn spec() -> HostSpec {
        HostSpec {
            node: "hv-01".parse().unwrap(),
            facts: HostFacts {
                platform: Platform::Simulated,
                system: "test".into(),
                cluster: None,
                cpu_milli: 1,
                memory_bytes: 1,
                mmio_high_cap_bytes: None,
                notes: Vec::new(),
            },
            gpus: vec![GpuSpec::of(&"A30".parse().unwrap(), ADDRESS.parse().unwrap())],
            vms: Vec::new(),
        }
    }

    fn open(dir: &Path) -> Result<KeptHost, Error> {
        KeptHost::open(spec(), Delays::default(), dir)
    }

    fn id() -> VmId {
        VmId::new("8fce3318-aa0f-4de3-8664-278533573cd2").unwrap()
    }

    #[tokio::test]
    async fn what_was_done_to_a_host_survives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let address = spec().gpus[0].address.clone();
        let before = {
            let host = open(dir.path()).unwrap();
            host.ensure_vm(VmSpec::new(id(), "made".parse().unwrap())).await.unwrap();
            host.act(&Step::Disable { address: address.clone() }).await.unwrap();
            host.act(&Step::Dismount { address }).await.unwrap();
            host.observe().await.unwrap()
        };
        let host = open(dir.path()).unwrap();
        assert_eq!(host.observe().await.unwrap(), before);
        host.ensure_no_vm(&id()).await.unwrap();
        assert!(!open(dir.path()).unwrap().has_vm(&id()).await.unwrap());
    }

    #[tokio::test]
    async fn two_who_work_on_one_host_see_each_others_work() {
        let dir = tempfile::tempdir().unwrap();
        let address = spec().gpus[0].address.clone();
        let (agent, person) = (open(dir.path()).unwrap(), open(dir.path()).unwrap());
        agent.act(&Step::Disable { address: address.clone() }).await.unwrap();
        person.ensure_vm(VmSpec::new(id(), "made".parse().unwrap())).await.unwrap();
        assert!(agent.observe().await.unwrap().vms.contains_key(&id()));
        agent.act(&Step::Dismount { address: address.clone() }).await.unwrap();
        agent.act(&Step::Attach { vm: id(), address: address.clone() }).await.unwrap();
        let seen = person.by_hand_now(|host| host.holders(&address).cloned().collect::<Vec<_>>()).unwrap();
        assert_eq!(seen, [id()], "neither wrote over what the other did");
    }

    #[tokio::test]
    async fn faults_stay_with_whoever_set_them() {
        let dir = tempfile::tempdir().unwrap();
        let (agent, person) = (open(dir.path()).unwrap(), open(dir.path()).unwrap());
        let fault = StepFault::Fails("scripted".into());
        agent.by_hand_now(|host| host.faults().script(StepKind::Disable, fault)).unwrap();
        person.ensure_vm(VmSpec::new(id(), "made".parse().unwrap())).await.unwrap();
        let step = Step::Disable { address: spec().gpus[0].address.clone() };
        person.act(&step).await.unwrap();
        assert_eq!(agent.act(&step).await, Err(DriverError::Failed("scripted".into())));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), "{\"boots\": 1").unwrap();
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("host.json is damaged; remove it"), "{error}");
    }
}
