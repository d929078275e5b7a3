//! What the daemon and the commands were told: the meaning of the command line and the environment, checked once.
//! A leaf: `cli/` makes it, `daemon` and `control` read it.

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
            role: None,
            heartbeat_interval: Duration::from_secs(30),
            base_pub_port: 5_560,
            shm_dir: PathBuf::from("/tmp"),
            hostname: hostname.into(),
            advertise_ip: None,
            bind: None,
            read_only: false,
            allow: Vec::new(),
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
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
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
    fn a_role_comes_back_from_its_name() {
        for role in [Role::Master, Role::Minion] {
            assert_eq!(Role::parse(role.name()), Some(role));
        }
        assert_eq!(Role::parse("auto"), None);
    }
}
