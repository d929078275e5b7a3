//! `dao-control`: the Unix socket, mode 0600, on which commands and embedding programs talk to the daemon. Each
//! connection has a thread, so that one that waits for a stream holds up no other.

use crate::control::client;
use crate::control::loops::Shared;
use crate::control::operations;
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::metrics;
use crate::os::process;
use crate::os::threads::{Stop, spawn};
use crate::wire::control::{Asked, answer, parse_line};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Binds the control socket. One that a dead daemon has left is replaced; one on which a daemon answers is not.
pub fn bind(path: &Path) -> Result<UnixListener> {
    let failed = |what: &str, error: std::io::Error| {
        Error::new(Kind::Os, format!("Control socket {}: {what}: {error}.", path.display()))
    };
    // Who listens holds it, even if it is stopped and does not answer.
    if UnixStream::connect(path).is_ok() {
        let holder = match client::ping(path) {
            Ok((hostname, pid)) => format!("the running daemon of '{hostname}' (process {pid})"),
            Err(_) => "a process that does not answer".to_owned(),
        };
        let sentence = format!("Control socket {} is held by {holder}; stop it first.", path.display());
        return Err(Error::new(Kind::Os, sentence));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(failed("the old one cannot be removed", error));
        }
        _ => {}
    }
    let listener = process::with_umask(0o177, || UnixListener::bind(path));
    let listener = listener.map_err(|error| failed("it cannot be made", error))?;
    listener.set_nonblocking(true).map_err(|error| failed("it cannot be used", error))?;
    Ok(listener)
}

/// The body of `dao-control`.
pub fn serve(listener: &UnixListener, shared: &Arc<Shared>, stop: &Stop) {
    let connections = Arc::new(AtomicUsize::new(0));
    let mut number = 0u64;
    while !stop.is_set() {
        match listener.accept() {
            Ok((stream, _)) if connections.load(Ordering::Relaxed) >= limits::CONTROL_CONNECTIONS_MAX => {
                crate::warn!(
                    "more than {} control connections: one is closed",
                    limits::CONTROL_CONNECTIONS_MAX
                );
                drop(stream);
            }
            Ok((stream, _)) => {
                number += 1;
                connections.fetch_add(1, Ordering::Relaxed);
                let (shared, count) = (Arc::clone(shared), Arc::clone(&connections));
                let name = format!("dao-control-{number}");
                let started = spawn(
                    &name,
                    stop.clone(),
                    move |stop| {
                        if let Err(error) = converse(&stream, &shared, stop) {
                            crate::debug!("the connection ended: {error}");
                        }
                        count.fetch_sub(1, Ordering::Relaxed);
                    },
                    |_| (),
                );
                if let Err(error) = started {
                    connections.fetch_sub(1, Ordering::Relaxed);
                    crate::warn!("no thread for a control connection: {error}");
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // Ten milliseconds are nothing to a command, and a hundred wake-ups a second nothing to the host.
                stop.wait(Duration::from_millis(10));
            }
            Err(error) => {
                crate::warn!("the control socket does not accept: {error}");
                stop.wait(Duration::from_millis(500));
            }
        }
    }
}

/// Reads lines and answers them until the other side or the daemon ends.
fn converse(stream: &UnixStream, shared: &Shared, stop: &Stop) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut registry = shared.registry();
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while !stop.is_set() {
        let room = (limits::CONTROL_LINE_BYTES_MAX + 1).saturating_sub(line.len()) as u64;
        match reader.by_ref().take(room).read_until(b'\n', &mut line) {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                continue; // what came of the line so far stays in it
            }
            Err(error) => return Err(error),
            Ok(0) if line.is_empty() => return Ok(()),
            Ok(_) => {}
        }
        if line.len() > limits::CONTROL_LINE_BYTES_MAX {
            metrics::CONTROL_LINES_REFUSED.add(1);
            let most = limits::CONTROL_LINE_BYTES_MAX;
            let error =
                Error::new(Kind::Value, format!("A line is longer than {most} bytes; the connection ends."));
            return say(stream, &answer(&serde_json::Value::Null, &Err(error)));
        }
        let ended = line.last() != Some(&b'\n');
        let text = String::from_utf8_lossy(&line);
        if !text.trim().is_empty() {
            let Asked { id, op } = parse_line(text.trim());
            if op.is_err() {
                metrics::CONTROL_LINES_REFUSED.add(1);
            }
            let result = op.and_then(|op| operations::run(shared, &mut registry, op));
            say(stream, &answer(&id, &result))?;
        }
        line.clear();
        if ended {
            return Ok(());
        }
    }
    Ok(())
}

fn say(mut stream: &UnixStream, line: &str) -> std::io::Result<()> {
    stream.write_all(format!("{line}\n").as_bytes())
}
