//! What was typed, read value by value. [`Typed::settings`] turns it into what it means.

use crate::dtype::{DType, Shape};
use crate::error::{Error, Result};
use crate::limits;
use crate::log::Level;
use crate::settings::{Cidr, Polling, Role, Secret, Settings, Transport};
use std::net::Ipv4Addr;
use std::path::PathBuf;
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
        if let Some(file) = &self.redis_password_file {
            flags.extend(["--redis-password-file".into(), file.display().to_string()]);
        }
        flags
    }

    /// The password in its file, or the one of the environment.
    pub fn password(&self, environment: Option<String>) -> Result<Option<Secret>> {
        let Some(path) = &self.redis_password_file else {
            return Ok(environment.filter(|password| !password.is_empty()).map(Secret::new));
        };
        let wrong = |why: String| Error::usage(format!("--redis-password-file {}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|why| wrong(why.to_string()))?;
        match text.lines().next() {
            Some(password) if !password.is_empty() => Ok(Some(Secret::new(password))),
            _ => Err(wrong("its first line is empty".into())),
        }
    }
}
