//! The event log of Windows: what the agent says there, in the log `Application`, under the service's name.
//!
//! Owns the source's registration and the one handle that entries are written through. Must never fail anything: what the
//! event log does not take is lost there, and stands in the log on stderr if that goes anywhere.

use super::registration::NAME;
use berth_telemetry::journal::Journal;
use tracing::Level;
use windows_registry::LOCAL_MACHINE;
use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::System::EventLog::{
    DeregisterEventSource, EVENTLOG_ERROR_TYPE, EVENTLOG_INFORMATION_TYPE, EVENTLOG_WARNING_TYPE, RegisterEventSourceW,
    ReportEventW,
};

/// Where sources are registered.
fn key() -> String {
    format!(r"SYSTEM\CurrentControlSet\Services\EventLog\Application\{NAME}")
}

/// Message texts for ids 1 to 1000 that consist of nothing but the text they are given: `eventcreate` has such, on every
/// Windows. (Go's `eventlog.InstallAsEventCreate` rests on the same.)
const MESSAGES: &str = r"%SystemRoot%\System32\EventCreate.exe";

/// Makes the source known, so that the event viewer shows its entries as they are.
pub(super) fn register() -> windows_registry::Result<()> {
    let key = LOCAL_MACHINE.create(key())?;
    key.set_expand_string("EventMessageFile", MESSAGES)?;
    key.set_u32("TypesSupported", u32::from(EVENTLOG_ERROR_TYPE | EVENTLOG_WARNING_TYPE | EVENTLOG_INFORMATION_TYPE))
}

/// Forgets the source. Entries stay where they are.
pub(super) fn unregister() -> windows_registry::Result<()> {
    LOCAL_MACHINE.remove_tree(key())
}

/// The event log, open for writing.
#[derive(Debug)]
pub(super) struct EventLog(HANDLE);

// SAFETY: the handle is only ever given to ReportEventW, which any thread may call at any time.
#[expect(unsafe_code, reason = "a handle of the system's")]
unsafe impl Send for EventLog {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a handle of the system's")]
unsafe impl Sync for EventLog {}

impl EventLog {
    /// Opens it. Without a registered source it works as well; the viewer then says that it lacks the texts.
    pub(super) fn open() -> Self {
        let name = wide(NAME);
        // SAFETY: the name is a text that ends with NUL and outlives the call; no server means this machine.
        #[expect(unsafe_code, reason = "a call of the system's")]
        let handle = unsafe { RegisterEventSourceW(std::ptr::null(), name.as_ptr()) };
        Self(handle)
    }
}

impl Journal for EventLog {
    fn write(&self, level: Level, text: &str) {
        // The id is the only thing one can set an alarm on without reading texts.
        let (kind, id) = match level {
            Level::ERROR => (EVENTLOG_ERROR_TYPE, 3),
            Level::WARN => (EVENTLOG_WARNING_TYPE, 2),
            Level::INFO | Level::DEBUG | Level::TRACE => (EVENTLOG_INFORMATION_TYPE, 1),
        };
        let text = wide(text);
        let texts = [text.as_ptr()];
        if self.0.is_null() {
            return;
        }
        // SAFETY: one text is announced and given; it ends with NUL and outlives the call, as the list of it does. There is
        // no user and no data. Whether it was taken cannot be told anywhere.
        #[expect(unsafe_code, reason = "a call of the system's")]
        let _taken =
            unsafe { ReportEventW(self.0, kind, 0, id, std::ptr::null_mut(), 1, 0, texts.as_ptr(), std::ptr::null()) };
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the handle is this value's own, and nobody uses it any more.
            #[expect(unsafe_code, reason = "a call of the system's")]
            let _closed = unsafe { DeregisterEventSource(self.0) };
        }
    }
}

/// UTF-16 with a NUL behind it.
fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}
