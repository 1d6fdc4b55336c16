//! The kinds of errors.

/// The kind of an error decides its gRPC code, whether a retry helps, its metric label and its log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorClass {
    /// The request itself is wrong; the same one will never do.
    InvalidArgument,
    /// What it names does not exist.
    NotFound,
    /// What it would make exists already, differently.
    AlreadyExists,
    /// Not in the present state.
    FailedPrecondition,
    /// No room now; later perhaps.
    NotPlaceable,
    /// Somebody else was faster, or a page token is too old: read again, then decide again.
    Aborted,
    /// A bound was hit; try again more slowly.
    Overloaded,
    /// Nobody can answer now; a retry helps.
    Unavailable,
    /// It is not known whether it happened: read back before trying again.
    Unknown,
    /// A fault of Berth.
    Internal,
}

impl ErrorClass {
    /// Stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "InvalidArgument",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::NotPlaceable => "NotPlaceable",
            Self::Aborted => "Aborted",
            Self::Overloaded => "Overloaded",
            Self::Unavailable => "Unavailable",
            Self::Unknown => "Unknown",
            Self::Internal => "Internal",
        }
    }

    /// Whether the very same call can succeed later without anyone changing it.
    pub fn retry_helps(self) -> bool {
        match self {
            Self::NotPlaceable | Self::Overloaded | Self::Unavailable | Self::Unknown => true,
            Self::InvalidArgument
            | Self::NotFound
            | Self::AlreadyExists
            | Self::FailedPrecondition
            | Self::Aborted
            | Self::Internal => false,
        }
    }
}
