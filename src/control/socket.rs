//! `dao-control`: the Unix socket, mode 0600, on which commands and embedding programs talk to the daemon. Each
//! connection has a thread, so that one that waits for a stream holds up no other.

use crate::control::client;
use crate::control::conversation::{Answers, OneLess, converse};
use crate::control::loops::Shared;
use crate::control::operations::{self, Caller};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::log::Repeats;
use crate::os::threads::{Stop, spawn};
use crate::os::{poll, process};
use crate::wire::control::Op;
use serde_json::Value;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Is this control socket free to be bound? Who listens holds it, even if it is stopped and does not answer.
pub fn check_free(path: &Path) -> Result<()> {
    if UnixStream::connect(path).is_ok() {
        let holder = match client::ping(path) {
            Ok(there) => format!("the running daemon of '{}' (process {})", there.hostname, there.pid),
            Err(_) => "a process that does not answer".to_owned(),
        };
        let sentence = format!("Control socket {} is held by {holder}; stop it first.", path.display());
        return Err(Error::new(Kind::Os, sentence));
    }
    Ok(())
}

/// Binds the control socket. One that a dead daemon has left is replaced.
pub fn bind(path: &Path) -> Result<UnixListener> {
    check_free(path)?;
    let failed = |what: &str, error: std::io::Error| {
        Error::new(Kind::Os, format!("Control socket {}: {what}: {error}.", path.display()))
    };
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            let sentence =
                format!("Control socket {}: something else is there; name another.", path.display());
            return Err(Error::new(Kind::Os, sentence));
        }
        Ok(_) => fs::remove_file(path).map_err(|error| failed("the old one cannot be removed", error))?,
        Err(_) => {} // if it is more than missing, binding says so
    }
    let listener = process::with_umask(0o177, || UnixListener::bind(path));
    let listener = listener.map_err(|error| failed("it cannot be made (--control names another)", error))?;
    listener.set_nonblocking(true).map_err(|error| failed("it cannot be used", error))?;
    Ok(listener)
}

/// The socket again, if nothing is at its path any more: its directory was removed and made anew. What somebody else
/// has put there is his.
fn bind_again(path: &Path) -> Option<UnixListener> {
    let gone = fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    if !gone || !path.parent().is_some_and(Path::is_dir) {
        return None;
    }
    match bind(path) {
        Ok(listener) => {
            crate::warn!("Control socket {} was removed; it is there again.", path.display());
            Some(listener)
        }
        Err(error) => {
            crate::debug!("{error}");
            None
        }
    }
}

/// A connection has two descriptors, and streams come first.
fn room_for_another(connections: usize) -> bool {
    connections < limits::CONTROL_CONNECTIONS_SURE
        || process::descriptors_open() + limits::DESCRIPTORS_FOR_LINKS < process::descriptor_limit()
}

/// The body of `dao-control`.
pub fn serve(mut listener: UnixListener, shared: &Arc<Shared>, stop: &Stop) {
    let connections = Arc::new(AtomicUsize::new(0));
    let mut number = 0u64;
    let path = shared.settings.control_path();
    let (mut looked, refusals) = (Instant::now(), Repeats::new(Duration::from_secs(60)));
    while !stop.is_set() {
        match listener.accept() {
            Ok((stream, _)) if connections.load(Ordering::Relaxed) >= limits::CONTROL_CONNECTIONS_MAX => {
                crate::warn!(
                    "more than {} control connections: one is closed",
                    limits::CONTROL_CONNECTIONS_MAX
                );
                drop(stream);
            }
            Ok((stream, _)) if !room_for_another(connections.load(Ordering::Relaxed)) => {
                if refusals.due("descriptors").is_some() {
                    crate::warn!(
                        "{} of {} descriptors are in use: a control connection is closed; raise the limit (ulimit -n)",
                        process::descriptors_open(),
                        process::descriptor_limit()
                    );
                }
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
                        let _one_less = OneLess(&count);
                        if let Err(error) = talk(stream, &shared, stop) {
                            crate::debug!("the connection ended: {error}");
                        }
                    },
                    |_| (),
                );
                if let Err(error) = started {
                    connections.fetch_sub(1, Ordering::Relaxed);
                    crate::warn!("no thread for a control connection: {error}");
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if looked.elapsed() >= LOOK_EVERY && !shared.stop_asked.is_set() {
                    looked = Instant::now();
                    if let Some(again) = bind_again(&path) {
                        listener = again;
                    }
                }
                // In the kernel: a look every ten milliseconds took the core from a frame in a hundred.
                if poll::readable(&listener, NOTICES_STOP).is_err() {
                    stop.wait(NOTICES_STOP);
                }
            }
            Err(error) => {
                if let Some(left_out) = refusals.due("") {
                    crate::warn!(
                        "the control socket does not accept: {error} ({left_out} more times since the last line)"
                    );
                }
                stop.wait(Duration::from_millis(500));
            }
        }
    }
    // Whoever has hung up has his leases ended before the daemon remembers those of the others.
    let deadline = Instant::now() + CONNECTIONS_END;
    while connections.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A stop is noticed within this time.
const NOTICES_STOP: Duration = Duration::from_millis(100);
/// Whether the socket is still at its path is looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Connections notice a stop within a tenth of a second, unless they wait for Redis.
const CONNECTIONS_END: Duration = Duration::from_millis(500);

fn talk(stream: UnixStream, shared: &Arc<Shared>, stop: &Stop) -> std::io::Result<()> {
    stream.set_nonblocking(true)?;
    let caller = Arc::new(Caller::new(false));
    let ended = stop.clone();
    let over = move || ended.is_set();
    let result = converse(&stream, stream.try_clone()?, &stream, Arc::clone(shared), &caller, over);
    // A daemon that stops remembers the leases of who is still there: he may ask its successor.
    if !stop.is_set() || poll::deserted(&stream) {
        caller.leave(shared);
    }
    result
}

impl Answers for Shared {
    fn run(&self, caller: &Caller, op: Op) -> Result<Value> {
        operations::run(self, caller, op)
    }
}
