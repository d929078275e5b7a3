//! The other end of the control socket: how the commands reach the local daemon.

use crate::error::{Error, Kind, Result};
use crate::wire::control::{Op, ask, parse_answer};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Asks the daemon behind this socket for one operation and waits for its answer, `patience` at most.
pub fn call(control: &Path, op: &Op, patience: Duration) -> Result<Value> {
    let no_daemon = |why: std::io::Error| {
        let path = control.display();
        Error::new(
            Kind::NoDaemon,
            format!("No daoserver answers on {path} ({why}); start one, or name its --control."),
        )
    };
    let mut stream = UnixStream::connect(control).map_err(no_daemon)?;
    stream.set_read_timeout(Some(patience)).map_err(no_daemon)?;
    stream.set_write_timeout(Some(patience)).map_err(no_daemon)?;
    stream.write_all(format!("{}\n", ask(1, op)).as_bytes()).map_err(no_daemon)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).map_err(no_daemon)?;
    if line.is_empty() {
        return Err(Error::new(Kind::NoDaemon, format!("The daoserver on {} hung up.", control.display())));
    }
    parse_answer(&line).map_err(|why| Error::new(Kind::Os, why))?.1
}

/// Who answers on this socket: host name and process number.
pub fn ping(control: &Path) -> Result<(String, u64)> {
    let value = call(control, &Op::Ping, Duration::from_secs(2))?;
    let hostname = value.get("hostname").and_then(Value::as_str).unwrap_or("?").to_owned();
    Ok((hostname, value.get("pid").and_then(Value::as_u64).unwrap_or(0)))
}
