//! What opening a segment can fail with.

use std::fmt;
use std::io;

/// What to do about an [`OpenError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Somebody is about to finish it: look again soon, and say nothing.
    Wait,
    /// It may be there or be readable later: look again at leisure.
    Retry,
    /// It stays so until the file changes: say it once.
    ReportOnce,
}

/// Why a file cannot be opened as a segment. No path inside: the caller has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// There is no such file.
    NotThere,
    /// A symbolic link, directory, FIFO, device or socket.
    NotAFile {
        /// What it is.
        what: &'static str,
    },
    /// Its creator has not finished it: it is empty, or the last fields are not written yet.
    BeingCreated,
    /// Fewer bytes than its header asks for.
    TooShort {
        /// Bytes of the file.
        bytes: u64,
        /// Bytes that are needed at least.
        needed: u64,
    },
    /// A field that no library writes.
    BadField {
        /// The field.
        field: &'static str,
        /// What stands there.
        value: String,
        /// Why that cannot be.
        why: String,
    },
    /// More than the limits allow.
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How much there is.
        value: u64,
        /// How much is served.
        max: u64,
    },
    /// Its pixels are in the memory of a GPU.
    OnGpu,
    /// It was there and changed or went away while it was opened.
    Gone,
    /// The operating system refused.
    Io {
        /// The operation.
        what: &'static str,
        /// The error number.
        errno: i32,
    },
    /// As many segments as this process can keep track of are mapped.
    TooManyMapped {
        /// How many that is.
        max: usize,
    },
}

impl OpenError {
    pub(crate) fn bad(field: &'static str, value: impl ToString, why: impl ToString) -> OpenError {
        OpenError::BadField { field, value: value.to_string(), why: why.to_string() }
    }

    pub(crate) fn io(what: &'static str, error: &io::Error) -> OpenError {
        match error.raw_os_error() {
            Some(libc::ENOENT) => OpenError::NotThere,
            Some(libc::ELOOP) => OpenError::NotAFile { what: "a symbolic link" },
            // What open(2) says of a socket, and of a device without a driver.
            Some(libc::ENXIO) | Some(libc::ENODEV) => OpenError::NotAFile { what: "a socket or device" },
            Some(libc::EISDIR) => OpenError::NotAFile { what: "a directory" },
            errno => OpenError::Io { what, errno: errno.unwrap_or(0) },
        }
    }

    /// Could nothing at all be opened just then? It says nothing of the file.
    pub fn is_want_of_descriptors(&self) -> bool {
        matches!(self, OpenError::Io { errno: libc::EMFILE | libc::ENFILE, .. })
    }

    /// Whether to wait, to retry or to report it once.
    pub fn advice(&self) -> Advice {
        match self {
            OpenError::BeingCreated | OpenError::Gone => Advice::Wait,
            OpenError::NotThere | OpenError::TooManyMapped { .. } => Advice::Retry,
            // No permission stays; no memory or no descriptors may not.
            OpenError::Io { errno, .. } if !matches!(*errno, libc::EACCES | libc::EPERM) => Advice::Retry,
            _ => Advice::ReportOnce,
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::NotThere => f.write_str("no such segment"),
            OpenError::NotAFile { what } => write!(f, "it is {what}, not a regular file"),
            OpenError::BeingCreated => f.write_str("it is still being created"),
            OpenError::TooShort { bytes, needed } => {
                write!(f, "it has {bytes} bytes, but its header needs at least {needed}")
            }
            OpenError::BadField { field, value, why } => {
                write!(f, "it is no segment: {field} is {value}: {why}")
            }
            OpenError::TooLarge { what, value, max } => {
                write!(f, "it has {value} {what}, but at most {max} are served")
            }
            OpenError::OnGpu => {
                f.write_str("its pixels are in the memory of a GPU, where they cannot be read")
            }
            OpenError::Gone => f.write_str("it went away or changed while it was opened"),
            OpenError::Io { what, errno } => {
                write!(f, "cannot {what} it: {}", io::Error::from_raw_os_error(*errno))
            }
            OpenError::TooManyMapped { max } => write!(f, "{max} segments are mapped already"),
        }
    }
}

impl std::error::Error for OpenError {}
