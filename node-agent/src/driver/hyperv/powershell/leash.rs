//! A process that ends when this one does.
//!
//! Owns a job object of Windows with one process in it: the system ends what is in the job when its last handle is closed,
//! and closes the handles of a process that ends, however it ends (documented in Win32 under "Job Objects":
//! `JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE`). What a cmdlet has already asked Hyper-V for goes on all the same.
#![expect(unsafe_code, reason = "calls of the system's that no safe crate of note offers")]

use std::io;
use std::ptr::{null, null_mut};
use tokio::process::Child;
use windows_sys::Win32::Foundation::{CloseHandle, HANDLE};
use windows_sys::Win32::System::JobObjects::{
    AssignProcessToJobObject, CreateJobObjectW, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE,
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectExtendedLimitInformation, SetInformationJobObject,
};

/// The job. Whoever drops it ends what is in it.
#[derive(Debug)]
pub(super) struct Leash(HANDLE);

// SAFETY: a handle of a job is a number that any thread of the process may use.
unsafe impl Send for Leash {}
// SAFETY: nothing is done with it but closing it, once, by its owner.
unsafe impl Sync for Leash {}

impl Drop for Leash {
    fn drop(&mut self) {
        // SAFETY: it was made here and nobody else has it.
        unsafe { CloseHandle(self.0) };
    }
}

/// For calls that return false and leave the error behind.
fn yes(returned: i32) -> io::Result<()> {
    if returned == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Leash {
    /// Puts a process into a job of its own. Programs that it starts from now on are in it as well.
    pub(super) fn on(child: &Child) -> io::Result<Self> {
        let process = child.raw_handle().ok_or_else(|| io::Error::other("it has ended already"))?;
        // SAFETY: no name and no rights of its own are allowed: the handle is not inherited.
        let job = unsafe { CreateJobObjectW(null(), null()) };
        if job == null_mut() {
            return Err(io::Error::last_os_error());
        }
        let leash = Self(job);
        let mut limits = JOBOBJECT_EXTENDED_LIMIT_INFORMATION::default();
        limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
        let size = u32::try_from(size_of_val(&limits)).unwrap_or(0);
        // SAFETY: the job is the one just made; the limits are what this class takes, as large as is said.
        yes(unsafe {
            SetInformationJobObject(leash.0, JobObjectExtendedLimitInformation, (&raw const limits).cast(), size)
        })?;
        // SAFETY: both handles are open: the process's belongs to `child`, which is borrowed.
        yes(unsafe { AssignProcessToJobObject(leash.0, process.cast()) })?;
        Ok(leash)
    }
}
