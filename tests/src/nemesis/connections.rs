//! Whose a connection on this machine is: the kernel knows.
//!
//! Linux only; elsewhere nobody is found, and all clients of a proxy are of one kind.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

/// Processes to be told from all others. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Known {
    ids: Arc<Mutex<Vec<u32>>>,
}

impl Known {
    /// One more.
    pub fn add(&self, id: u32) {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    /// Whether a connection from this port of this machine belongs to one of them.
    #[must_use]
    pub fn own(&self, port: u16) -> bool {
        let Some(inode) = inode_of(port) else { return false };
        let socket = format!("socket:[{inode}]");
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ids.into_iter().any(|id| has_open(id, &socket))
    }
}

/// The number of the socket that is bound to a port of 127.0.0.1 and connected.
fn inode_of(port: u16) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let local = format!("0100007F:{port:04X}");
    // sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut ours = rows.filter(|row| row.get(1) == Some(&local.as_str()));
    ours.find_map(|row| row.get(9).map(ToString::to_string))
}

fn has_open(id: u32, socket: &str) -> bool {
    // A process that has ended has nothing open.
    let Ok(files) = fs::read_dir(format!("/proc/{id}/fd")) else { return false };
    files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == socket))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_is_found_at_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = stream.local_addr().unwrap().port();
        let known = Known::default();
        assert!(!known.own(port), "nobody is known yet");
        known.add(std::process::id());
        assert!(known.own(port));
        drop(stream);
        assert!(!known.own(port));
    }
}
