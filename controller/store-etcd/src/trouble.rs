//! What a failed call means: whether anything happened, and whether another member may do better.
//!
//! Owns the reading of etcd's codes and texts. Whatever is not known here for sure counts as "perhaps done".

use berth_store::{CommitError, Error};
use etcd_client::Error as Etcd;
use std::error::Error as _;
use tonic::{Code, ConnectError, Status};

/// What a person does about the NOSPACE alarm.
pub(crate) const NO_SPACE: &str = "etcd is out of space (alarm NOSPACE): it refuses writes, reads go on. Compact and defragment it or raise its \
     --quota-backend-bytes, then run: etcdctl alarm disarm";

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Surely nothing happened; another member may do it.
    NotDone(String),
    /// Surely nothing happened, and no member will do it.
    Refused(String),
    /// The request is larger than etcd takes. Nothing happened.
    TooLarge(String),
    /// etcd's database is full. Nothing happened.
    NoSpace,
    /// The revision asked for is compacted.
    Compacted,
    /// The revision asked for is not reached yet.
    Future,
    /// The lease is gone. Nothing happened.
    LeaseGone,
    /// It may have happened.
    Unsure(String),
}

impl Trouble {
    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever is not known for sure may have happened")]
    pub(crate) fn of(error: &Etcd) -> Self {
        match error {
            Etcd::GRpcStatus(status) => Self::of_status(status),
            Etcd::InvalidArgs(why) => Self::Refused(why.clone()),
            Etcd::LeaseKeepAliveError(why) if why == "lease not found" => Self::LeaseGone,
            other => Self::Unsure(other.to_string()),
        }
    }

    /// Whether somebody changed etcd's users or roles since the token was given, so that it counts no more (tokens of kind
    /// `jwt`; others are not bound to that).
    pub(crate) fn is_old_token(error: &Etcd) -> bool {
        matches!(error, Etcd::GRpcStatus(status)
            if status.code() == Code::InvalidArgument && status.message().contains("revision of auth store is old"))
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever is not known for sure may have happened")]
    fn of_status(status: &Status) -> Self {
        let text = status.message();
        if let Some(error) = never_connected(status) {
            return Self::NotDone(error);
        }
        match status.code() {
            Code::ResourceExhausted if text.contains("space exceeded") => Self::NoSpace,
            Code::ResourceExhausted if text.contains("too many requests") => Self::NotDone(text.to_owned()),
            Code::ResourceExhausted if text.contains("larger than max") => Self::TooLarge(text.to_owned()),
            Code::InvalidArgument if text.contains("too large") => Self::TooLarge(text.to_owned()),
            Code::OutOfRange if text.contains("compacted") => Self::Compacted,
            Code::OutOfRange if text.contains("future revision") => Self::Future,
            Code::NotFound if text.contains("lease not found") => Self::LeaseGone,
            // A member that sees no leader of its own refuses before it does anything.
            Code::Unavailable if text == "etcdserver: no leader" => Self::NotDone(text.to_owned()),
            Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::FailedPrecondition => {
                Self::Refused(text.to_owned())
            }
            // Of a broken connection the innermost error says what happened; the status only says that it broke.
            _ => Self::Unsure(match status.source() {
                Some(error) => innermost(error),
                None if text.is_empty() => status.to_string(),
                None => text.to_owned(),
            }),
        }
    }

    /// The same of something before the first byte was sent.
    pub(crate) fn unsent(self) -> Self {
        if let Self::Unsure(text) = self { Self::NotDone(text) } else { self }
    }

    /// Says which member it was, where that helps.
    pub(crate) fn at(self, url: &str) -> Self {
        if let Self::NotDone(text) = self { Self::NotDone(format!("{url}: {text}")) } else { self }
    }

    /// Whether another member, or the same a moment later, may answer a question that this one did not.
    pub(crate) fn ask_again(&self) -> bool {
        match self {
            Self::NotDone(_) | Self::Unsure(_) => true,
            Self::Refused(_) | Self::TooLarge(_) | Self::NoSpace | Self::Compacted | Self::Future | Self::LeaseGone => {
                false
            }
        }
    }

    /// What to tell a person.
    pub(crate) fn text(self) -> String {
        match self {
            Self::NotDone(text) | Self::Unsure(text) => text,
            Self::Refused(text) => format!("etcd refuses: {text}"),
            Self::TooLarge(text) => format!("too large for etcd: {text}"),
            Self::NoSpace => NO_SPACE.to_owned(),
            Self::Compacted => "the revision is compacted".to_owned(),
            Self::Future => "the revision is not reached yet".to_owned(),
            Self::LeaseGone => "the lease is gone".to_owned(),
        }
    }
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        Self::Unavailable(trouble.text())
    }
}

impl From<Trouble> for CommitError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Unsure(text) => Self::Unknown(text),
            trouble @ Trouble::TooLarge(_) => Self::Illegal(trouble.text()),
            trouble @ Trouble::NoSpace => Self::Full(trouble.text()),
            trouble @ (Trouble::NotDone(_)
            | Trouble::Refused(_)
            | Trouble::Compacted
            | Trouble::Future
            | Trouble::LeaseGone) => Self::Unavailable(trouble.text()),
        }
    }
}

/// Why there was no connection at all, so that nothing was sent.
fn never_connected(status: &Status) -> Option<String> {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return Some(format!("cannot connect: {}", innermost(error)));
        }
        source = error.source();
    }
    None
}

/// The innermost error says what happened: "Connection refused", not "tcp connect error".
fn innermost(mut error: &(dyn std::error::Error + 'static)) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: Code, text: &str, expected: &Trouble) {
        assert_eq!(&Trouble::of(&Etcd::GRpcStatus(Status::new(code, text))), expected, "{code:?} {text}");
    }

    #[test]
    fn the_texts_of_etcd_are_understood() {
        check(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", &Trouble::NoSpace);
        check(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", &Trouble::Compacted);
        check(Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", &Trouble::Future);
        check(Code::NotFound, "etcdserver: requested lease not found", &Trouble::LeaseGone);
        let no_leader = "etcdserver: no leader";
        check(Code::Unavailable, no_leader, &Trouble::NotDone(no_leader.to_owned()));
        let message = "trying to send message larger than max (2097179 vs. 2097152)";
        check(Code::ResourceExhausted, message, &Trouble::TooLarge(message.to_owned()));
        let large = "etcdserver: request is too large";
        check(Code::InvalidArgument, large, &Trouble::TooLarge(large.to_owned()));
        let denied = "etcdserver: permission denied";
        check(Code::PermissionDenied, denied, &Trouble::Refused(denied.to_owned()));
    }

    #[test]
    fn what_may_have_happened_is_never_called_undone() {
        for (code, text) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Unavailable, "error reading a body from connection"),
            (Code::DeadlineExceeded, "context deadline exceeded"),
            (Code::Unknown, "transport error"),
            (Code::ResourceExhausted, "rate limit of a gateway"),
            (Code::Internal, "h2 protocol error"),
            (Code::Cancelled, "operation was canceled"),
        ] {
            check(code, text, &Trouble::Unsure(text.to_owned()));
            let error = CommitError::from(Trouble::of(&Etcd::GRpcStatus(Status::new(code, text))));
            assert!(matches!(error, CommitError::Unknown(_)), "{error:?}");
        }
    }

    #[test]
    fn a_full_etcd_says_what_to_do() {
        let error = CommitError::from(Trouble::NoSpace);
        assert!(matches!(error, CommitError::Full(_)), "{error:?}");
        assert!(error.to_string().contains("etcdctl alarm disarm"), "{error}");
    }
}
