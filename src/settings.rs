//! What the daemon and the commands were told: the meaning of the command line and the environment, checked once.
//! A leaf: `cli/` makes it, `daemon` and `control` read it.

use crate::limits::CORES_MAX;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

/// A machine's role in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Cleans up after machines that went silent; may deregister others.
    Master,
    /// Everybody else.
    Minion,
}

impl Role {
    /// The word that stands in Redis.
    pub fn name(self) -> &'static str {
        match self {
            Role::Master => "master",
            Role::Minion => "minion",
        }
    }

    /// From the word that stands in Redis.
    pub fn parse(text: &str) -> Option<Role> {
        [Role::Master, Role::Minion].into_iter().find(|role| role.name() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How frames travel between two daoservers. Python peers have ZMQ, whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// TCP where the other side offers it, else ZMQ.
    #[default]
    Auto,
    /// ZMQ alone: TCP is neither offered nor taken.
    Zmq,
    /// TCP alone: from an owner that does not offer it there is no mirror.
    Tcp,
}

impl Transport {
    /// From the command line's word.
    pub fn parse(text: &str) -> Option<Transport> {
        let rows = [("auto", Transport::Auto), ("zmq", Transport::Zmq), ("tcp", Transport::Tcp)];
        rows.into_iter().find(|row| row.0 == text).map(|row| row.1)
    }
}

/// How the thread of a stream waits for the next frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Polling {
    /// It never sleeps: a core for each stream.
    Spin,
    /// It learns when a frame is due, sleeps until shortly before, and spins around it.
    #[default]
    Adaptive,
    /// It never spins.
    Sleep,
}

impl Polling {
    /// From the command line's word.
    pub fn parse(text: &str) -> Option<Polling> {
        let rows = [("spin", Polling::Spin), ("adaptive", Polling::Adaptive), ("sleep", Polling::Sleep)];
        rows.into_iter().find(|row| row.0 == text).map(|row| row.1)
    }
}

/// Core numbers, as the kernel writes them: `2,3,5-7`.
pub fn cores(text: &str) -> Result<Vec<usize>, String> {
    let number = |text: &str| {
        let known = text.parse::<usize>().ok().filter(|core| *core < CORES_MAX);
        known.ok_or_else(|| format!("'{text}' is no core number from 0 to {}", CORES_MAX - 1))
    };
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("'{part}' runs backwards"));
        }
        cores.extend(first..=last);
    }
    Ok(cores)
}

/// A range of addresses: `192.168.64.0/24`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: u32,
    mask: u32,
}

impl Cidr {
    /// From the command line's words; the error says what is wrong with them.
    pub fn parse(text: &str) -> Result<Cidr, String> {
        let (address, bits) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr =
            address.parse().map_err(|_| "it is no IPv4 address or range of them".to_owned())?;
        let bits =
            bits.parse::<u32>().ok().filter(|bits| *bits <= 32).ok_or("behind the slash belongs 0 to 32")?;
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        Ok(Cidr { network: address.to_bits() & mask, mask })
    }

    /// Is this address in it?
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask == self.network
    }
}

/// May this address come in? Nobody named: everybody may.
pub fn allows(ranges: &[Cidr], address: Ipv4Addr) -> bool {
    ranges.is_empty() || ranges.iter().any(|range| range.contains(address))
}

/// A password: neither `{:?}` nor a log line shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a password.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The password itself, for the one who sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// TLS to Redis. All of it is PEM text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The authorities that may have signed Redis' certificate; `None`: those of this machine.
    pub ca: Option<String>,
    /// Our certificate and its key, for a Redis that asks for one.
    pub identity: Option<(String, Secret)>,
}

/// Everything that the daemon was told. Commands that talk to Redis or to the daemon use a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Redis' host name or address.
    pub redis_host: String,
    /// Redis' port.
    pub redis_port: u16,
    /// Redis' user, for servers with access lists.
    pub redis_username: Option<String>,
    /// Redis' password, from a file or from `REDISCLI_AUTH`.
    pub redis_password: Option<Secret>,
    /// How the connection to Redis is encrypted; `None`: it is not. Needs the feature `redis-tls`.
    pub redis_tls: Option<Tls>,
    /// The role asked for; `None`: found out at start.
    pub role: Option<Role>,
    /// Between two writes of `last_connect`.
    pub heartbeat_interval: Duration,
    /// The first port tried for a publisher.
    pub base_pub_port: u16,
    /// Where segments are and mirrors go.
    pub shm_dir: PathBuf,
    /// This machine's name in the registry.
    pub hostname: String,
    /// The address in the registry; `None`: the local one of the connection to Redis.
    pub advertise_ip: Option<Ipv4Addr>,
    /// Where publishers listen; `None`: at the advertised address.
    pub bind: Option<Ipv4Addr>,
    /// Every write from another machine is refused.
    pub read_only: bool,
    /// Who may subscribe or write; nobody named: all.
    pub allow: Vec<Cidr>,
    /// How frames travel.
    pub transport: Transport,
    /// How threads of streams wait.
    pub poll: Polling,
    /// The cores that they are pinned to, one each in turn; none named: wherever the kernel puts them.
    pub cores: Vec<usize>,
    /// Their priority of `SCHED_FIFO`; `None`: they are like other threads.
    pub rt_priority: Option<u8>,
    /// The daemon's memory is never paged out, and there before it is needed.
    pub lock_memory: bool,
    /// The control socket; `None`: `<shm_dir>/.daoserver-<hostname>.sock`.
    pub control: Option<PathBuf>,
}

impl Settings {
    /// Every flag's default, under this name.
    pub fn named(hostname: impl Into<String>) -> Settings {
        Settings {
            redis_host: "localhost".to_owned(),
            redis_port: 6_379,
            redis_username: None,
            redis_password: None,
            redis_tls: None,
            role: None,
            heartbeat_interval: Duration::from_secs(30),
            base_pub_port: 5_560,
            shm_dir: PathBuf::from("/tmp"),
            hostname: hostname.into(),
            advertise_ip: None,
            bind: None,
            read_only: false,
            allow: Vec::new(),
            transport: Transport::Auto,
            poll: Polling::Adaptive,
            cores: Vec::new(),
            rt_priority: None,
            lock_memory: false,
            control: None,
        }
    }

    /// Where the control socket is.
    pub fn control_path(&self) -> PathBuf {
        let default = || self.shm_dir.join(format!(".daoserver-{}.sock", self.hostname));
        self.control.clone().unwrap_or_else(default)
    }

    /// Redis' address as error sentences give it: `h:p`.
    pub fn redis_address(&self) -> String {
        format!("{}:{}", self.redis_host, self.redis_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_does_not_show_in_debug_output() {
        let mut settings = Settings::named("m");
        settings.redis_password = Some(Secret::new("hunter2"));
        settings.redis_tls = Some(Tls { ca: None, identity: Some((String::new(), Secret::new("hunter2"))) });
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn a_range_holds_its_addresses_and_no_others() {
        let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let range = Cidr::parse("192.168.64.7/24").unwrap();
        assert!(range.contains(ip("192.168.64.255")) && !range.contains(ip("192.168.65.1")));
        assert!(Cidr::parse("0.0.0.0/0").unwrap().contains(ip("8.8.8.8")));
        let one = Cidr::parse("10.0.0.1").unwrap();
        assert!(one.contains(ip("10.0.0.1")) && !one.contains(ip("10.0.0.2")));
        for bad in ["", "10.0.0", "10.0.0.1/33", "10.0.0.1/", "10.0.0.1/-1", "host/8", "::1"] {
            assert!(Cidr::parse(bad).is_err(), "{bad}");
        }
        assert!(
            allows(&[], ip("8.8.8.8"))
                && !allows(&[one], ip("8.8.8.8"))
                && allows(&[one, range], ip("192.168.64.1"))
        );
    }

    #[test]
    fn core_numbers_are_read_as_the_kernel_writes_them() {
        assert_eq!(cores("2,3,5-7"), Ok(vec![2, 3, 5, 6, 7]));
        assert_eq!(cores("0"), Ok(vec![0]));
        for bad in ["", "a", "1,", "3-1", "1-", "-1", "1024", "0-99999999999", "1 2"] {
            assert!(cores(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_role_comes_back_from_its_name() {
        for role in [Role::Master, Role::Minion] {
            assert_eq!(Role::parse(role.name()), Some(role));
        }
        assert_eq!(Role::parse("auto"), None);
    }
}
