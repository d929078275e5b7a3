//! Standard output, for programs and people that may stop reading at any time.

use crate::error::{Error, Kind, Result};
use std::io::{self, BufWriter, Write};

/// Prints a text, with a line break at its end if it has none.
pub fn print(text: &str) -> Result<()> {
    write(|out| {
        out.write_all(text.as_bytes())?;
        if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") }
    })
}

/// Hands a buffered standard output to `body`.
pub fn write(body: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut out = BufWriter::with_capacity(64 * 1024, io::stdout().lock());
    let done = body(&mut out).and_then(|()| out.flush());
    match done {
        Ok(()) => Ok(()),
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => {
            // Whoever reads has had enough, as `head` has: not our failure. Nothing of ours is left to be
            // undone, because commands print last.
            std::process::exit(0)
        }
        Err(why) => Err(Error::new(Kind::Os, format!("Cannot write to standard output: {why}"))),
    }
}

/// Prints the one line of a failure on standard error. Line breaks in it are escaped: names may come from
/// anywhere.
pub fn complain(why: &Error) {
    let sentence: String = why
        .message
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect();
    // A standard error that is gone leaves the exit code to tell.
    let _ = io::stderr().write_all(format!("daoserver: {sentence}\n").as_bytes());
}
