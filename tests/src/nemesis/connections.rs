//! Whose a connection on this machine is: the kernel knows.
//!
//! Linux only; elsewhere nobody is found, and all clients of a proxy are of one kind.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

/// The kernel's table may lack a row while it is read and others change it; one that is missed so often is not there.
const LOOKS: usize = 3;

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
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (0..LOOKS).any(|_| {
            let sockets = sockets_at(port);
            sockets.iter().any(|socket| ids.iter().any(|id| has_open(*id, socket)))
        })
    }
}

/// The sockets at a port of 127.0.0.1, as a process's list of open files names them.
fn sockets_at(port: u16) -> Vec<String> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let local = format!("0100007F:{port:04X}");
    // sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = rows.filter(|row| row.get(1) == Some(&local.as_str()));
    // One that nobody has open any more, and that only waits for its end, has the number 0.
    let inodes = ours.filter_map(|row| row.get(9).copied().filter(|inode| *inode != "0").map(str::to_owned));
    inodes.map(|inode| format!("socket:[{inode}]")).collect()
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
    }
}
