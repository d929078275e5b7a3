//! Which Redis servers are on the local subnets: every /24 of the interfaces that are up, many addresses at a
//! time.
//!
//! What listens on an address may be anything, so little is believed: every wait has a deadline, every answer
//! a length. The few commands are spoken here over plain TCP and not through the `redis` crate, which knows
//! no deadlines.

use crate::error::{Error, Kind, Result};
use crate::limits::{
    DISCOVERY_BYTES_MAX, DISCOVERY_KEYS_TIMEOUT, DISCOVERY_MACHINES_MAX, DISCOVERY_SUBNETS_MAX,
    DISCOVERY_TIMEOUT_MAX, DISCOVERY_WORKERS_MAX,
};
use crate::naming::host_name;
use crate::naming::key::{MACHINES, MachineKey, parse_machine};
use crate::os::interfaces;
use crate::os::threads::lock;
use crate::settings::{Secret, Settings};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest line of an answer, bytes: errors and numbers. Keys have their own length.
const LINE_BYTES_MAX: usize = 512;
/// Longest key that can be one of a machine.
const KEY_BYTES_MAX: usize = 1_024;
/// Stack of a scanning thread.
const STACK_BYTES: usize = 256 * 1024;

/// A Redis that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its address.
    pub host: Ipv4Addr,
    /// Its port.
    pub port: u16,
    /// Does it hold the registry of a DAO cluster?
    pub dao: bool,
    /// The machines in that registry, sorted.
    pub machines: Vec<String>,
}

impl Found {
    /// One entry of the array that `discover --json` prints and `discover` answers.
    pub fn to_json(&self) -> Value {
        json!({"host": self.host.to_string(), "port": self.port, "dao": self.dao, "machines": self.machines})
    }
}

/// Who asks, for servers that want to know.
#[derive(Clone, Debug)]
pub struct Login {
    /// The user; `None`: Redis' default one.
    pub username: Option<String>,
    /// The password.
    pub password: Secret,
}

impl Login {
    /// That of these settings. Where Redis is reached over TLS there is none: a scan speaks without.
    pub fn of(settings: &Settings) -> Option<Login> {
        let password = settings.redis_password.clone().filter(|_| settings.redis_tls.is_none())?;
        Some(Login { username: settings.redis_username.clone(), password })
    }
}

/// The Redis servers on `port` of every address of every local /24, sorted by address.
///
/// `timeout` is for connecting and the answer to `PING` together. At most `max_workers` addresses are tried
/// at a time (1 to 256). Blocks the calling thread; threads of its own end before it returns.
pub fn discover_redis(port: u16, timeout: Duration, max_workers: usize) -> Result<Vec<Found>> {
    discover_redis_as(port, timeout, max_workers, None, &|| false)
}

/// [`discover_redis`] with a password, which is sent to those servers alone that ask for one. It ends early once nobody
/// wants it any more.
pub fn discover_redis_as(
    port: u16,
    timeout: Duration,
    max_workers: usize,
    login: Option<&Login>,
    unwanted: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<Found>> {
    if timeout.is_zero() || timeout > DISCOVERY_TIMEOUT_MAX || port == 0 {
        return Err(Error::new(
            Kind::Value,
            format!("Cannot scan port {port} with a time-out of {timeout:?}"),
        ));
    }
    let own = interfaces::ipv4_addresses()
        .map_err(|why| Error::new(Kind::Os, format!("Cannot list the network interfaces: {why}")))?;
    let targets = targets(&own);
    let workers = max_workers.clamp(1, DISCOVERY_WORKERS_MAX).min(targets.len());
    let next = AtomicUsize::new(0);
    let no_descriptor = AtomicBool::new(false);
    let found = Mutex::new(Vec::new());
    let work = || {
        while let Some(&host) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
            if unwanted() {
                return;
            }
            match probe(SocketAddr::from((host, port)), timeout, login) {
                Ok(machines) => {
                    let one = Found { host, port, dao: !machines.is_empty(), machines };
                    lock(&found).push(one);
                }
                Err(why) if matches!(why.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    no_descriptor.store(true, Ordering::Relaxed);
                }
                Err(_) => (),
            }
        }
    };
    std::thread::scope(|scope| {
        let name = || std::thread::Builder::new().name("dao-discover".into()).stack_size(STACK_BYTES);
        let started = (0..workers).filter(|_| name().spawn_scoped(scope, work).is_ok()).count();
        if started == 0 {
            work();
        }
    });
    if no_descriptor.into_inner() {
        let why = format!("Cannot scan with {workers} workers: no descriptors left for so many connections");
        return Err(Error::new(Kind::Os, why));
    }
    let mut found = found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    found.sort_by_key(|one| one.host);
    Ok(found)
}

/// The 254 hosts of each distinct /24 that an address of ours lies in, however wide the interface's own mask
/// is.
fn targets(own: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    let subnets: BTreeSet<[u8; 3]> = own.iter().map(|ip| ip.octets()).map(|[a, b, c, _]| [a, b, c]).collect();
    if subnets.len() > DISCOVERY_SUBNETS_MAX {
        crate::warn!("{} local subnets: only the first {DISCOVERY_SUBNETS_MAX} are scanned", subnets.len());
    }
    let hosts = |[a, b, c]: [u8; 3]| (1..=254).map(move |d| Ipv4Addr::new(a, b, c, d));
    subnets.into_iter().take(DISCOVERY_SUBNETS_MAX).flat_map(hosts).collect()
}

/// Is there a Redis, and which machines does it know? Any error: there is none.
fn probe(address: SocketAddr, timeout: Duration, login: Option<&Login>) -> io::Result<Vec<String>> {
    let deadline = Instant::now() + timeout;
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    let mut peer = Peer { stream, deadline, buffer: Vec::new(), used: 0, bytes_left: DISCOVERY_BYTES_MAX };
    peer.send(&[b"PING"])?;
    let answer = peer.line()?;
    let locked = answer.starts_with(b"-NOAUTH");
    if !locked && answer != b"+PONG" {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // It is a Redis: from here on it has time of its own, and a failure only means that we do not know its
    // machines.
    peer.deadline = Instant::now() + DISCOVERY_KEYS_TIMEOUT;
    if locked {
        let Some(login) = login else { return Ok(Vec::new()) };
        if !peer.log_in(login).unwrap_or(false) {
            return Ok(Vec::new());
        }
    }
    let mut machines = BTreeSet::new();
    if let Err(why) = peer.scan(&mut machines) {
        crate::debug!("{address}: its keys could not be read to the end: {why}");
    }
    Ok(machines.into_iter().collect())
}

/// One connection, and how much of it we still want.
struct Peer {
    stream: TcpStream,
    deadline: Instant,
    buffer: Vec<u8>,
    /// How far the buffer is read.
    used: usize,
    bytes_left: usize,
}

impl Peer {
    /// What is left until the deadline; an error when nothing is.
    fn time_left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn send(&mut self, words: &[&[u8]]) -> io::Result<()> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.stream.set_write_timeout(Some(self.time_left()?))?;
        self.stream.write_all(&request)
    }

    /// Reads on, at least one byte.
    fn fill(&mut self) -> io::Result<()> {
        self.stream.set_read_timeout(Some(self.time_left()?))?;
        let mut chunk = [0; 4096];
        let got = self.stream.read(&mut chunk)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.bytes_left = self.bytes_left.checked_sub(got).ok_or(io::ErrorKind::InvalidData)?;
        self.buffer.drain(..std::mem::take(&mut self.used));
        self.buffer.extend_from_slice(&chunk[..got]);
        Ok(())
    }

    /// One line of an answer, without its ending.
    fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let unread = &self.buffer[self.used..];
            if let Some(end) = unread.windows(2).position(|pair| pair == b"\r\n") {
                let line = unread[..end].to_vec();
                self.used += end + 2;
                return Ok(line);
            }
            if unread.len() > LINE_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.fill()?;
        }
    }

    /// A line that is `sign` and a number, as lengths are.
    fn number(&mut self, sign: u8) -> io::Result<usize> {
        let line = self.line()?;
        let digits = line.strip_prefix(&[sign]).and_then(|digits| std::str::from_utf8(digits).ok());
        digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// One string of an answer: `$<length>`, the bytes, a line ending.
    fn string(&mut self) -> io::Result<Vec<u8>> {
        let length = self.number(b'$')?;
        if length > KEY_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        while self.buffer.len() - self.used < length + 2 {
            self.fill()?;
        }
        let string = self.buffer[self.used..self.used + length].to_vec();
        self.used += length + 2;
        Ok(string)
    }

    fn log_in(&mut self, login: &Login) -> io::Result<bool> {
        let password = login.password.reveal().as_bytes();
        match &login.username {
            Some(username) => self.send(&[b"AUTH", username.as_bytes(), password])?,
            None => self.send(&[b"AUTH", password])?,
        }
        Ok(self.line()? == b"+OK")
    }

    /// Collects the names of machines, batch by batch, until the cursor is back at 0, the time or the bytes
    /// are used up, or there are implausibly many.
    fn scan(&mut self, machines: &mut BTreeSet<String>) -> io::Result<()> {
        let pattern = format!("{MACHINES}*:hostname");
        let mut cursor = b"0".to_vec();
        loop {
            self.send(&[b"SCAN", &cursor, b"MATCH", pattern.as_bytes(), b"COUNT", b"1000"])?;
            if self.number(b'*')? != 2 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            cursor = self.string()?;
            for _ in 0..self.number(b'*')? {
                if let Some(machine) = machine_of(&self.string()?) {
                    machines.insert(machine);
                }
                if machines.len() >= DISCOVERY_MACHINES_MAX {
                    return Ok(());
                }
            }
            if cursor == b"0" {
                return Ok(());
            }
        }
    }
}

/// The machine whose `hostname` key this is.
fn machine_of(key: &[u8]) -> Option<String> {
    match parse_machine(std::str::from_utf8(key).ok()?)? {
        MachineKey::Machine(host, "hostname") => host_name(host).ok().map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    //! Against listeners on the loopback only: a scan belongs into a network namespace
    //! (tests/scenarios/80_discover.sh).
    use super::*;
    use std::net::TcpListener;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A server that answers each chunk it receives with the next of `answers`, and then closes.
    fn server(answers: &[&[u8]]) -> SocketAddr {
        let answers: Vec<Vec<u8>> = answers.iter().map(|answer| answer.to_vec()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            for answer in answers {
                let mut request = [0; 1024];
                if peer.read(&mut request).unwrap_or(0) == 0 || peer.write_all(&answer).is_err() {
                    return;
                }
            }
        });
        address
    }

    fn login() -> Login {
        Login { username: None, password: Secret::new("secret") }
    }

    #[test]
    fn each_subnet_is_scanned_once_with_all_its_hosts() {
        let own = ["10.1.2.3", "10.1.2.200", "10.9.0.255"].map(|ip| ip.parse().unwrap());
        let all = targets(&own);
        assert_eq!(all.len(), 2 * 254);
        assert!(all.contains(&own[0]) && !all.contains(&"10.1.2.0".parse().unwrap()));
        assert!(!all.contains(&"10.9.0.255".parse().unwrap()));
        assert!(targets(&[]).is_empty());
    }

    #[test]
    fn a_redis_with_machines_is_asked_to_the_end_of_its_cursor() {
        let address = server(&[
            b"+PONG\r\n",
            b"*2\r\n$2\r\n17\r\n*2\r\n$24\r\ndao:machines:b:hostname2\r\n$22\r\ndao:machines:b:hostname\r\n",
        ]);
        // The second length is one short, so the answer is garbage from there on: still a Redis, without
        // machines.
        assert_eq!(probe(address, PATIENCE, None).unwrap(), Vec::<String>::new());
        let address = server(&[
            b"+PONG\r\n",
            b"*2\r\n$2\r\n17\r\n*2\r\n$23\r\ndao:machines:b:hostname\r\n$25\r\ndao:machines:../:hostname\r\n",
            b"*2\r\n$1\r\n0\r\n*1\r\n$23\r\ndao:machines:a:hostname\r\n",
        ]);
        assert_eq!(probe(address, PATIENCE, None).unwrap(), ["a", "b"]);
    }

    #[test]
    fn a_redis_that_wants_a_password_counts_and_gets_it_only_if_there_is_one() {
        let locked: &[u8] = b"-NOAUTH Authentication required.\r\n";
        assert!(probe(server(&[locked]), PATIENCE, None).unwrap().is_empty());
        assert!(probe(server(&[locked, b"-WRONGPASS no\r\n"]), PATIENCE, Some(&login())).unwrap().is_empty());
        let open =
            server(&[locked, b"+OK\r\n", b"*2\r\n$1\r\n0\r\n*1\r\n$23\r\ndao:machines:a:hostname\r\n"]);
        assert_eq!(probe(open, PATIENCE, Some(&login())).unwrap(), ["a"]);
    }

    #[test]
    fn what_is_no_redis_does_not_count() {
        for answer in [&b"HTTP/1.1 400 Bad Request\r\n"[..], b"+PONGO\r\n", b"-ERR\r\n", b"\r\n", b""] {
            assert!(probe(server(&[answer]), PATIENCE, None).is_err());
        }
        assert!(probe(server(&[&[b'x'; 100_000]]), PATIENCE, None).is_err());
    }

    #[test]
    fn silence_and_a_huge_length_end_at_their_bounds() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let short = Duration::from_millis(50);
        let why = probe(silent.local_addr().unwrap(), short, None).unwrap_err();
        assert!(matches!(why.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{why}");
        let huge = server(&[b"+PONG\r\n", b"*2\r\n$99999999999\r\n"]);
        assert!(probe(huge, PATIENCE, None).unwrap().is_empty());
    }
}
