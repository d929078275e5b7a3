//! What an operation can fail with: one kind for each Python exception, one exit code for each kind.

use std::fmt;

/// The numbered ways to end, as `--help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum ExitCode {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Unknown = 3,
    Timeout = 4,
    NotImplemented = 5,
    Permission = 6,
    RedisUnreachable = 7,
    NoDaemon = 8,
}

/// What went wrong: one kind for each exception of the Python module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An unknown machine or segment: `KeyError`.
    Key,
    /// Nothing came in time: `TimeoutError`.
    Timeout,
    /// A transport that we do not have: `NotImplementedError`.
    NotImplemented,
    /// Somebody may not do this: `PermissionError`.
    Permission,
    /// Redis, or the local daemon, cannot be reached: `ConnectionError`.
    Connection,
    /// An argument or a value makes no sense: `ValueError`.
    Value,
    /// The operating system refused: `OSError`.
    Os,
}

const KINDS: [(Kind, &str, ExitCode); 7] = [
    (Kind::Key, "KeyError", ExitCode::Unknown),
    (Kind::Timeout, "TimeoutError", ExitCode::Timeout),
    (Kind::NotImplemented, "NotImplementedError", ExitCode::NotImplemented),
    (Kind::Permission, "PermissionError", ExitCode::Permission),
    (Kind::Connection, "ConnectionError", ExitCode::RedisUnreachable),
    (Kind::Value, "ValueError", ExitCode::Failed),
    (Kind::Os, "OSError", ExitCode::Failed),
];

impl Kind {
    fn row(self) -> &'static (Kind, &'static str, ExitCode) {
        // Every kind has its row: the test below counts them.
        KINDS.iter().find(|row| row.0 == self).unwrap_or(&KINDS[6])
    }

    /// The exception's name.
    pub fn python_name(self) -> &'static str {
        self.row().1
    }

    /// The kind behind an exception's name; an unknown one is `Os`.
    pub fn from_python_name(name: &str) -> Kind {
        KINDS.iter().find(|row| row.1 == name).map_or(Kind::Os, |row| row.0)
    }
}

/// A failed operation: its kind and one sentence that names what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Which exception this is.
    pub kind: Kind,
    /// One sentence, without a line break.
    pub message: String,
    /// Finer than the kind: a wrong command line and a bad value are both a `ValueError`.
    exit_code: ExitCode,
}

impl Error {
    /// An error of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), exit_code: kind.row().2 }
    }

    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Error {
        Error { exit_code: ExitCode::Usage, ..Error::new(Kind::Value, message) }
    }

    /// No daemon answers on the control socket.
    pub fn no_daemon(message: impl Into<String>) -> Error {
        Error { exit_code: ExitCode::NoDaemon, ..Error::new(Kind::Connection, message) }
    }

    /// The exit code of a process that ends with it.
    pub fn exit_code(&self) -> ExitCode {
        self.exit_code
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// The result of an operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_one_exception_and_comes_back_from_its_name() {
        for row in &KINDS {
            assert_eq!(Error::new(row.0, "").exit_code(), row.2);
            assert_eq!(Kind::from_python_name(row.0.python_name()), row.0);
        }
        assert_eq!(Kind::from_python_name("SurpriseError"), Kind::Os);
        assert_eq!((Error::usage("").kind, Error::usage("").exit_code()), (Kind::Value, ExitCode::Usage));
        assert_eq!(Error::no_daemon("").kind, Kind::Connection);
    }
}
