//! The other end of the control socket: how the commands and embedding programs reach the local daemon.

use crate::error::{Error, Kind, Result};
use crate::os::poll;
use crate::os::threads::Stop;
use crate::wire::control::{Op, ask, parse_answer};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A connection to a daemon. What is leased over it ends with it.
pub struct Connection {
    control: PathBuf,
    reader: BufReader<UnixStream>,
    asked: u64,
}

/// Who answers on a control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Daemon {
    pub hostname: String,
    pub pid: u64,
    pub redis_host: String,
    pub redis_port: u16,
}

impl Connection {
    /// Connects to the daemon behind this socket.
    pub fn open(control: &Path) -> Result<Connection> {
        let stream = UnixStream::connect(control).map_err(|why| no_daemon(control, &why))?;
        Ok(Connection { control: control.to_owned(), reader: BufReader::new(stream), asked: 0 })
    }

    /// Asks for one operation and waits for its answer, `patience` at most.
    pub fn call(&mut self, op: &Op, patience: Duration) -> Result<Value> {
        self.asked += 1;
        let question = format!("{}\n", ask(self.asked, op));
        let answered = self.begin(&question, patience).and_then(|()| self.line());
        self.said(answered)
    }

    fn said(&self, line: std::io::Result<String>) -> Result<Value> {
        let line = line.map_err(|why| no_daemon(&self.control, &why))?;
        if line.is_empty() {
            let control = self.control.display();
            return Err(Error::no_daemon(format!("The daoserver on {control} hung up.")));
        }
        parse_answer(&line).map_err(|why| Error::new(Kind::Os, why))?.1
    }

    /// The same, and given up once `stop` is set: then this connection is good for nothing but being closed.
    pub fn call_until(&mut self, op: &Op, patience: Duration, stop: &Stop) -> Result<Value> {
        self.asked += 1;
        let question = format!("{}\n", ask(self.asked, op));
        let answered = self.begin(&question, patience).and_then(|()| {
            let deadline = Instant::now() + patience;
            while !poll::readable(self.reader.get_ref(), Duration::from_millis(50))? {
                if stop.is_set() || Instant::now() > deadline {
                    return Err(std::io::ErrorKind::TimedOut.into());
                }
            }
            self.line()
        });
        self.said(answered)
    }

    /// Has the daemon ended it? Then its leases have ended, too.
    pub fn is_closed(&self) -> bool {
        poll::deserted(self.reader.get_ref())
    }

    fn begin(&mut self, question: &str, patience: Duration) -> std::io::Result<()> {
        let stream = self.reader.get_mut();
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.write_all(question.as_bytes())
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        Ok(line)
    }
}

fn no_daemon(control: &Path, why: &std::io::Error) -> Error {
    let path = control.display();
    Error::no_daemon(format!("No daoserver answers on {path} ({why}); start one, or name its --control."))
}

/// Asks the daemon behind this socket for one operation, over a connection of its own.
pub fn call(control: &Path, op: &Op, patience: Duration) -> Result<Value> {
    Connection::open(control)?.call(op, patience)
}

/// Who answers on this socket.
pub fn ping(control: &Path) -> Result<Daemon> {
    let value = call(control, &Op::Ping, Duration::from_secs(2))?;
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or("?").to_owned();
    let number = |field: &str| value.get(field).and_then(Value::as_u64).unwrap_or(0);
    Ok(Daemon {
        hostname: text("hostname"),
        pid: number("pid"),
        redis_host: text("redis_host"),
        redis_port: number("redis_port") as u16,
    })
}
