//! Security descriptors and accounts as Windows gives them.
//!
//! Owns the calls to the system. Must never judge: `descriptor` does.
#![expect(unsafe_code, reason = "calls of the system's that no safe crate of note offers")]

use std::io;
use std::os::windows::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::null_mut;
use windows_sys::Win32::Foundation::{CloseHandle, HANDLE, LocalFree};
use windows_sys::Win32::Security::Authorization::{
    ConvertSecurityDescriptorToStringSecurityDescriptorW, ConvertSidToStringSidW,
    ConvertStringSecurityDescriptorToSecurityDescriptorW, ConvertStringSidToSidW, GetNamedSecurityInfoW,
    SDDL_REVISION_1, SE_FILE_OBJECT, SetNamedSecurityInfoW,
};
use windows_sys::Win32::Security::{
    ACL, CheckTokenMembership, DACL_SECURITY_INFORMATION, GROUP_SECURITY_INFORMATION, GetSecurityDescriptorDacl,
    GetTokenInformation, OWNER_SECURITY_INFORMATION, PROTECTED_DACL_SECURITY_INFORMATION, TOKEN_QUERY, TOKEN_USER,
    TokenUser,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};

/// Administrators.
const ADMINISTRATORS: &str = "S-1-5-32-544";

/// Memory that the system gave, to be given back once.
struct Local<T>(*mut T);

impl<T> Drop for Local<T> {
    fn drop(&mut self) {
        // SAFETY: it came from a call that says it is freed so, nobody else has it, and null is allowed.
        unsafe { LocalFree(self.0.cast()) };
    }
}

/// The text that the system made.
fn text(made: &Local<u16>) -> String {
    let mut length = 0;
    // SAFETY: the system made a text that ends with NUL, and it lives as long as `made`.
    let units = unsafe {
        while *made.0.add(length) != 0 {
            length += 1;
        }
        std::slice::from_raw_parts(made.0, length)
    };
    String::from_utf16_lossy(units)
}

fn wide(text: impl AsRef<std::ffi::OsStr>) -> Vec<u16> {
    text.as_ref().encode_wide().chain([0]).collect()
}

/// For calls that return an error code.
fn done(code: u32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.cast_signed())) }
}

/// For calls that return false and leave the error behind.
fn yes(returned: i32) -> io::Result<()> {
    if returned == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Owner, group and access list of a file or folder, as text.
pub(super) fn descriptor(path: &Path) -> io::Result<String> {
    let what = OWNER_SECURITY_INFORMATION | GROUP_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION;
    let path = wide(path);
    let mut found = Local(null_mut());
    // SAFETY: the path ends with NUL; parts that are not asked for may be null; the descriptor is freed by `found`.
    done(unsafe {
        GetNamedSecurityInfoW(
            path.as_ptr(),
            SE_FILE_OBJECT,
            what,
            null_mut(),
            null_mut(),
            null_mut(),
            null_mut(),
            &raw mut found.0,
        )
    })?;
    let mut made = Local(null_mut());
    // SAFETY: the descriptor is the one just given; the text is freed by `made`; its length may be left out.
    yes(unsafe {
        ConvertSecurityDescriptorToStringSecurityDescriptorW(
            found.0,
            SDDL_REVISION_1,
            what,
            &raw mut made.0,
            null_mut(),
        )
    })?;
    Ok(text(&made))
}

/// Lets only SYSTEM and Administrators change a folder and what will lie in it, and this account where it is neither.
pub(super) fn guard(path: &Path) -> io::Result<()> {
    let mut list = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)".to_owned();
    if !is_administrator()? {
        list.push_str(&format!("(A;OICI;FA;;;{})", own_account()?));
    }
    let list = wide(list);
    let mut made = Local(null_mut());
    // SAFETY: the text ends with NUL; the descriptor is freed by `made`; its size may be left out.
    yes(unsafe {
        ConvertStringSecurityDescriptorToSecurityDescriptorW(
            list.as_ptr(),
            SDDL_REVISION_1,
            &raw mut made.0,
            null_mut(),
        )
    })?;
    let (mut present, mut acl, mut defaulted) = (0, null_mut::<ACL>(), 0);
    // SAFETY: the descriptor is the one just made; the list points into it.
    yes(unsafe { GetSecurityDescriptorDacl(made.0, &raw mut present, &raw mut acl, &raw mut defaulted) })?;
    if present == 0 || acl.is_null() {
        return Err(io::Error::other("the access list that was made is empty"));
    }
    let path = wide(path);
    let what = DACL_SECURITY_INFORMATION | PROTECTED_DACL_SECURITY_INFORMATION;
    // SAFETY: the path ends with NUL; the list lives in `made`; what is not set may be null.
    done(unsafe { SetNamedSecurityInfoW(path.as_ptr(), SE_FILE_OBJECT, what, null_mut(), null_mut(), acl, null_mut()) })
}

/// Whether this process may do what administrators may.
fn is_administrator() -> io::Result<bool> {
    let name = wide(ADMINISTRATORS);
    let mut group = Local(null_mut());
    // SAFETY: the text ends with NUL; the id is freed by `group`.
    yes(unsafe { ConvertStringSidToSidW(name.as_ptr(), &raw mut group.0) })?;
    let mut member = 0;
    // SAFETY: no token means this thread's; the id is the one just made.
    yes(unsafe { CheckTokenMembership(null_mut(), group.0, &raw mut member) })?;
    Ok(member != 0)
}

/// The id of this process's account, `S-1-…`.
pub(super) fn own_account() -> io::Result<String> {
    struct Token(HANDLE);
    impl Drop for Token {
        fn drop(&mut self) {
            // SAFETY: it was opened here and nobody else has it.
            unsafe { CloseHandle(self.0) };
        }
    }
    let mut token = Token(null_mut());
    // SAFETY: the process is this one, whose handle need not be closed.
    yes(unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &raw mut token.0) })?;
    // A TOKEN_USER and the id behind it, which has at most 68 bytes; u64 for the alignment of its pointer.
    let mut found = [0_u64; 32];
    let (size, mut needed) = (u32::try_from(size_of_val(&found)).unwrap_or(0), 0);
    // SAFETY: the buffer is as large as is said.
    yes(unsafe { GetTokenInformation(token.0, TokenUser, found.as_mut_ptr().cast(), size, &raw mut needed) })?;
    // SAFETY: the call succeeded, so that a TOKEN_USER lies at the start of the buffer, which is aligned for it.
    let user = unsafe { &*found.as_ptr().cast::<TOKEN_USER>() };
    let mut made = Local(null_mut());
    // SAFETY: the id lies in the buffer; the text is freed by `made`.
    yes(unsafe { ConvertSidToStringSidW(user.User.Sid, &raw mut made.0) })?;
    Ok(text(&made))
}
