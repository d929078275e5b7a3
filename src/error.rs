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

/// What went wrong, in the words of the Python module's exceptions.
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
    /// Redis cannot be reached: `ConnectionError`.
    Connection,
    /// An argument or a value makes no sense: `ValueError`.
    Value,
    /// The operating system refused: `OSError`.
    Os,
    /// The command line is wrong. Never crosses the control socket.
    Usage,
    /// No daemon answers on the control socket. Never crosses it.
    NoDaemon,
}

const KINDS: [(Kind, &str, ExitCode); 9] = [
    (Kind::Key, "KeyError", ExitCode::Unknown),
    (Kind::Timeout, "TimeoutError", ExitCode::Timeout),
    (Kind::NotImplemented, "NotImplementedError", ExitCode::NotImplemented),
    (Kind::Permission, "PermissionError", ExitCode::Permission),
    (Kind::Connection, "ConnectionError", ExitCode::RedisUnreachable),
    (Kind::Value, "ValueError", ExitCode::Failed),
    (Kind::Os, "OSError", ExitCode::Failed),
    (Kind::Usage, "ValueError", ExitCode::Usage),
    (Kind::NoDaemon, "ConnectionError", ExitCode::NoDaemon),
];

impl Kind {
    fn row(self) -> &'static (Kind, &'static str, ExitCode) {
        // Every kind has its row: the test below counts them.
        KINDS.iter().find(|row| row.0 == self).unwrap_or(&KINDS[6])
    }

    /// The Python exception's name, as the control protocol carries it.
    pub fn python_name(self) -> &'static str {
        self.row().1
    }

    /// The kind behind an exception's name; an unknown one is `Os`.
    pub fn from_python_name(name: &str) -> Kind {
        KINDS.iter().find(|row| row.1 == name).map_or(Kind::Os, |row| row.0)
    }

    /// The process' exit code.
    pub fn exit_code(self) -> ExitCode {
        self.row().2
    }
}

/// A failed operation: its kind and one sentence that names what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Which exception this is.
    pub kind: Kind,
    /// One sentence, without a line break.
    pub message: String,
}

impl Error {
    /// An error of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
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
    fn every_kind_has_a_row_and_comes_back_from_its_python_name() {
        for row in &KINDS {
            assert_eq!(row.0.exit_code(), row.2);
        }
        for kind in [Kind::Key, Kind::Timeout, Kind::NotImplemented, Kind::Permission, Kind::Value, Kind::Os]
        {
            assert_eq!(Kind::from_python_name(kind.python_name()), kind);
        }
        assert_eq!(Kind::from_python_name("SurpriseError"), Kind::Os);
    }
}
