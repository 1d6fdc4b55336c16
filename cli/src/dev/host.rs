//! A simulated host that outlives the process: after everything that changes it, what it is like is written down.
//!
//! A real host survives its agent and the controller; so must this one, or a restart of `berth dev` would look like the
//! whole fleet being reinstalled. Written by rename, so that a kill leaves the old or the new, and before the step is
//! answered, so that nothing acknowledged is forgotten. Not synced to disk: it stands for a machine that stays up while
//! this process is killed, not for one that loses power.

use anyhow::Context as _;
use async_trait::async_trait;
use berth_agent_core::observed::HostView;
use berth_agent_core::step::Step;
use berth_model::VmId;
use berth_model::node::HostFacts;
use berth_node_agent::driver::sim::{Delays, Host, HostSpec, Saved, SimDriver, VmSpec};
use berth_node_agent::driver::{DriverError, HostDriver};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A simulated host and the file it is written to.
#[derive(Debug)]
pub struct DevHost {
    host: Arc<Mutex<Host>>,
    driver: SimDriver,
    file: PathBuf,
    /// What was written last. Held while writing, so that an older state never replaces a newer one.
    written: Arc<Mutex<Option<Saved>>>,
}

impl DevHost {
    /// The host that `dir` remembers, or one as described.
    ///
    /// # Errors
    /// When the directory cannot be used, or what it remembers cannot be read.
    pub fn open(spec: HostSpec, delays: Delays, dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let file = dir.join("host.json");
        let written: Option<Saved> = match std::fs::read(&file) {
            Ok(text) => {
                let read = serde_json::from_slice(&text);
                Some(
                    read.with_context(|| format!("{} is damaged; remove it to begin with a new host", file.display()))?,
                )
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
        };
        let host = match &written {
            Some(saved) => Host::restore(spec, saved).with_context(|| format!("{}", file.display()))?,
            None => Host::new(spec),
        };
        let host = Arc::new(Mutex::new(host));
        let driver = SimDriver::new(Arc::clone(&host), delays);
        Ok(Self { host, driver, file, written: Arc::new(Mutex::new(written)) })
    }

    /// Does something to the host by hand, and writes down what it is like then.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn by_hand<T>(&self, work: impl FnOnce(&mut Host) -> T) -> std::io::Result<T> {
        let done = work(&mut self.host.lock().unwrap_or_else(PoisonError::into_inner));
        self.write().await?;
        Ok(done)
    }

    /// Whether it has a VM.
    pub fn has_vm(&self, id: &VmId) -> bool {
        self.host.lock().unwrap_or_else(PoisonError::into_inner).vm(id).is_some()
    }

    /// Creates a VM unless it is there.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn ensure_vm(&self, spec: VmSpec) -> std::io::Result<()> {
        // There already is as good as created now.
        self.by_hand(|host| drop(host.create_vm(spec))).await
    }

    /// Deletes a VM if it is there.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn ensure_no_vm(&self, id: &VmId) -> std::io::Result<()> {
        // Gone already is as good as deleted now.
        self.by_hand(|host| drop(host.delete_vm(id))).await
    }

    /// Writes what it is like, unless that is written already.
    async fn write(&self) -> std::io::Result<()> {
        let (host, written, file) = (Arc::clone(&self.host), Arc::clone(&self.written), self.file.clone());
        let work = move || {
            let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
            let now = host.lock().unwrap_or_else(PoisonError::into_inner).save();
            if written.as_ref() == Some(&now) {
                return Ok(());
            }
            let new = file.with_extension("json.new");
            std::fs::write(&new, serde_json::to_vec(&now)?)?;
            std::fs::rename(&new, &file)?;
            *written = Some(now);
            Ok(())
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(panic) => Err(std::io::Error::other(panic)),
        }
    }
}

#[async_trait]
impl HostDriver for DevHost {
    async fn facts(&self) -> Result<HostFacts, DriverError> {
        self.driver.facts().await
    }

    async fn observe(&self) -> Result<HostView, DriverError> {
        self.driver.observe().await
    }

    async fn act(&self, step: &Step) -> Result<(), DriverError> {
        let outcome = self.driver.act(step).await;
        // Also after an error: what failed may have taken effect.
        self.write().await.map_err(|e| {
            DriverError::Failed(format!("the simulated host cannot write {}: {e}", self.file.display()))
        })?;
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet;

    #[tokio::test]
    async fn what_was_done_to_a_host_survives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let spec = || fleet::standard(1).unwrap().hosts().remove(0);
        let id = VmId::new("8fce3318-aa0f-4de3-8664-278533573cd2").unwrap();
        let address = spec().gpus[0].address.clone();
        let before = {
            let host = DevHost::open(spec(), Delays::default(), dir.path()).unwrap();
            host.ensure_vm(VmSpec::new(id.clone(), "made".parse().unwrap())).await.unwrap();
            host.act(&Step::Disable { address: address.clone() }).await.unwrap();
            host.act(&Step::Dismount { address }).await.unwrap();
            host.observe().await.unwrap()
        };
        let host = DevHost::open(spec(), Delays::default(), dir.path()).unwrap();
        assert_eq!(host.observe().await.unwrap(), before);
        host.ensure_no_vm(&id).await.unwrap();
        assert!(!DevHost::open(spec(), Delays::default(), dir.path()).unwrap().has_vm(&id));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("host.json"), "{\"boots\": 1").unwrap();
        let spec = fleet::standard(1).unwrap().hosts().remove(0);
        let error = format!("{:#}", DevHost::open(spec, Delays::default(), dir.path()).unwrap_err());
        assert!(error.contains("host.json is damaged; remove it"), "{error}");
    }
}
