//! What was typed, read value by value. [`Typed::settings`] turns it into what it means.

use crate::dtype::{DType, Shape};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::log::Level;
use crate::settings::{Cidr, Polling, Role, Secret, Settings, Tls, Transport};
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How `shm read` prints a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Format {
    #[default]
    Text,
    Raw,
    Json,
}

/// Every flag's value. What was not typed has its default, which came through the same setter, or is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)] // each is the flag of its name
pub struct Typed {
    pub redis_host: String,
    pub redis_port: u16,
    pub role: Option<Role>,
    pub heartbeat_interval: Duration,
    pub base_pub_port: u16,
    pub discover: bool,
    pub redis_username: Option<String>,
    pub redis_password_file: Option<PathBuf>,
    pub redis_tls: bool,
    pub redis_ca: Option<PathBuf>,
    pub redis_cert: Option<PathBuf>,
    pub redis_key: Option<PathBuf>,
    pub shm_dir: PathBuf,
    pub hostname: Option<String>,
    pub advertise_ip: Option<Ipv4Addr>,
    pub bind: Option<Ipv4Addr>,
    pub read_only: bool,
    pub allow: Vec<Cidr>,
    pub transport: Transport,
    pub poll: Polling,
    pub cores: Vec<usize>,
    pub rt_priority: Option<u8>,
    pub lock_memory: bool,
    pub control: Option<PathBuf>,
    pub log_level: Option<Level>,

    pub json: bool,
    pub bidirectional: bool,
    pub timeout: Option<Duration>,
    pub ttl: Option<Duration>,
    pub port: Option<u16>,
    pub workers: usize,

    pub sizes_bytes: Vec<usize>,
    pub runs: Option<usize>,
    pub seconds: Option<Duration>,
    pub quick: bool,
    pub to: Option<String>,
    /// --redis-host or --redis-port was typed, and is no default.
    pub redis_named: bool,

    pub shape: Option<Shape>,
    pub dtype: Option<DType>,
    pub depth: u32,
    pub layout: Option<String>,
    pub keywords: u16,
    pub keyword: Vec<(String, String)>,
    pub raw_file: Option<PathBuf>,
    pub times: Option<PathBuf>,
    pub fill: Option<String>,
    pub rate_hz: Option<f64>,
    pub count: Option<u64>,
    pub format: Format,
    pub wait: bool,

    pub help: bool,
    pub stdio: bool,
    pub version: bool,
}

/// Keeps a value that could be read.
pub fn put<T>(slot: &mut T, value: std::result::Result<T, String>) -> std::result::Result<(), String> {
    *slot = value?;
    Ok(())
}

/// Keeps a value that has no default.
pub fn some<T>(
    slot: &mut Option<T>,
    value: std::result::Result<T, String>,
) -> std::result::Result<(), String> {
    *slot = Some(value?);
    Ok(())
}

/// Turns a switch on.
pub fn on(slot: &mut bool) -> std::result::Result<(), String> {
    *slot = true;
    Ok(())
}

/// Some text without spaces or control characters.
pub fn word(text: &str) -> std::result::Result<String, String> {
    if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("it is empty or holds a space or control character".into());
    }
    Ok(text.to_owned())
}

/// A path.
pub fn path(text: &str) -> std::result::Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("it is no path".into());
    }
    Ok(PathBuf::from(text))
}

/// A port, not 0.
pub fn port(text: &str) -> std::result::Result<u16, String> {
    whole(text, 1, u16::MAX)
}

/// A whole number between two bounds, both allowed.
pub fn whole<T>(text: &str, least: T, most: T) -> std::result::Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    match text.parse() {
        Ok(number) if number >= least && number <= most => Ok(number),
        _ => Err(format!("it is no whole number from {least} to {most}")),
    }
}

/// Seconds, with fractions, between two bounds.
pub fn seconds(text: &str, least: Duration, most: Duration) -> std::result::Result<Duration, String> {
    let time = text.parse().ok().and_then(|number| Duration::try_from_secs_f64(number).ok());
    match time {
        Some(time) if time >= least && time <= most => Ok(time),
        _ => Err(format!("it is no time from {} to {} seconds", least.as_secs_f64(), most.as_secs_f64())),
    }
}

/// A wait that a command can be asked for.
pub fn wait(text: &str) -> std::result::Result<Duration, String> {
    seconds(text, Duration::from_millis(1), limits::COMMAND_TIMEOUT_MAX)
}

/// Frames a second: faster than a million is no pace that a process can keep.
pub fn rate(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(rate) if (1e-3..=1e6).contains(&rate) => Ok(rate),
        _ => Err("it is no rate from 0.001 to 1000000 Hz".into()),
    }
}

/// An IPv4 address.
pub fn ip(text: &str) -> std::result::Result<Ipv4Addr, String> {
    text.parse().map_err(|_| "it is no IPv4 address such as 192.168.64.2".into())
}

/// An IPv4 address that others can connect to.
pub fn own_ip(text: &str) -> std::result::Result<Ipv4Addr, String> {
    match ip(text)? {
        bad if bad.is_unspecified() || bad.is_multicast() || bad.is_broadcast() => {
            Err("nobody can connect to that address".into())
        }
        good => Ok(good),
    }
}

/// `NAME=VALUE`.
pub fn keyword(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it is no NAME=VALUE".into()),
    }
}

impl Typed {
    /// What all of it means for the daemon and for the commands that talk to it or to Redis. `password` is
    /// what the environment has, and gives way to a file.
    pub fn settings(&self, password: Option<String>) -> Result<Settings> {
        let mut settings = match &self.hostname {
            Some(name) => Settings::named(name),
            None => Settings::here()?,
        };
        settings.redis_host = self.redis_host.clone();
        settings.redis_port = self.redis_port;
        settings.redis_username = self.redis_username.clone();
        settings.redis_password = self.password(password)?;
        settings.redis_tls = self.tls()?;
        settings.role = self.role;
        settings.heartbeat_interval = self.heartbeat_interval;
        settings.base_pub_port = self.base_pub_port;
        settings.shm_dir = self.shm_dir.clone();
        settings.advertise_ip = self.advertise_ip;
        settings.bind = self.bind;
        settings.read_only = self.read_only;
        settings.allow = self.allow.clone();
        settings.transport = self.transport;
        settings.poll = self.poll;
        settings.cores = self.cores.clone();
        settings.rt_priority = self.rt_priority;
        settings.lock_memory = self.lock_memory;
        settings.control = self.control.clone();
        Ok(settings)
    }

    /// What hands a Redis that was named on to another daoserver; nothing, if none was.
    pub fn redis_flags(&self) -> Vec<String> {
        if !self.redis_named {
            return Vec::new();
        }
        let mut flags = vec!["--redis-host".into(), self.redis_host.clone()];
        flags.extend(["--redis-port".into(), self.redis_port.to_string()]);
        if let Some(name) = &self.redis_username {
            flags.extend(["--redis-username".into(), name.clone()]);
        }
        if self.redis_tls {
            flags.push("--redis-tls".into());
        }
        let files = [
            ("--redis-password-file", &self.redis_password_file),
            ("--redis-ca", &self.redis_ca),
            ("--redis-cert", &self.redis_cert),
            ("--redis-key", &self.redis_key),
        ];
        for (flag, file) in files {
            flags.extend(file.iter().flat_map(|file| [flag.to_owned(), file.display().to_string()]));
        }
        flags
    }

    /// The password in its file, or the one of the environment.
    pub fn password(&self, environment: Option<String>) -> Result<Option<Secret>> {
        let Some(path) = &self.redis_password_file else {
            return Ok(environment.filter(|password| !password.is_empty()).map(Secret::new));
        };
        let text = secret_file("--redis-password-file", path)?;
        match text.lines().next() {
            Some(password) if !password.is_empty() => Ok(Some(Secret::new(password))),
            _ => Err(wrong_file("--redis-password-file", path, "its first line is empty")),
        }
    }

    /// How Redis is spoken to.
    fn tls(&self) -> Result<Option<Tls>> {
        let rest = [("ca", &self.redis_ca), ("cert", &self.redis_cert), ("key", &self.redis_key)]
            .map(|(name, file)| file.as_ref().map(|file| (format!("--redis-{name}"), file)));
        if !self.redis_tls {
            // Who names an authority does not mean to speak in the clear.
            let stray = rest.into_iter().flatten().next();
            return stray
                .map_or(Ok(None), |(flag, _)| Err(Error::usage(format!("{flag} needs --redis-tls"))));
        }
        if !cfg!(feature = "redis-tls") {
            let why = "--redis-tls: this daoserver was built without TLS; scripts/build-static makes one that has it, or \
                       cargo build --release --features redis-tls.";
            return Err(Error::new(Kind::NotImplemented, why));
        }
        let [ca, certificate, key] = rest;
        let ca = ca.map(|(flag, file)| certificates(&flag, file)).transpose()?;
        let identity = match (certificate, key) {
            (None, None) => None,
            (Some((flag, file)), Some((key_flag, key_file))) => {
                Some((certificates(&flag, file)?, Secret::new(secret_file(&key_flag, key_file)?)))
            }
            _ => return Err(Error::usage("--redis-cert and --redis-key need each other".to_owned())),
        };
        Ok(Some(Tls { ca, identity }))
    }
}

fn wrong_file(flag: &str, path: &Path, why: &str) -> Error {
    Error::usage(format!("{flag} {}: {why}", path.display()))
}

/// A small text file: of a device or of what somebody took for another file no more than this is read.
fn text_file(flag: &str, path: &Path) -> Result<(String, u32)> {
    let read = || {
        let file = std::fs::File::open(path)?;
        let mode = file.metadata()?.permissions().mode();
        let mut text = String::new();
        let got = file.take(limits::SETTINGS_FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        if got as u64 > limits::SETTINGS_FILE_BYTES_MAX {
            return Err(std::io::Error::other("it is too long"));
        }
        Ok((text, mode))
    };
    read().map_err(|why| wrong_file(flag, path, &why.to_string()))
}

/// A file with a secret in it: that everybody may read it is worth a warning.
fn secret_file(flag: &str, path: &Path) -> Result<String> {
    let (text, mode) = text_file(flag, path)?;
    if mode & 0o004 != 0 {
        let path = path.display();
        crate::warn!("{flag} {path}: every user of this machine may read it; chmod o-rwx {path}");
    }
    Ok(text)
}

fn certificates(flag: &str, path: &Path) -> Result<String> {
    let (text, _) = text_file(flag, path)?;
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        return Err(wrong_file(flag, path, "it holds no certificate in PEM form"));
    }
    Ok(text)
}
