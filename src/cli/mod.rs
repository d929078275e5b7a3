//! The command line: the flag table, parsing, help, one file a command.

use std::process::ExitCode;

/// What the binary does.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
