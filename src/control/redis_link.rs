//! One connection to Redis, with a time-out on everything. Each thread has its own; none is shared.
//!
//! A connection that failed is dropped and never used again: what it may still deliver belongs to another question.

use crate::control::clocks::ClockOffset;
use crate::control::redis_client::{Refusal, client, describe, open, refusal};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::log::Repeats;
use crate::metrics;
use crate::os::threads::lock;
use crate::settings::Settings;
use redis::{Client, Connection, RedisError, RedisResult};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What Redis answers while it takes no writes, whoever asks: it is a replica, has no memory or disk left, is starting.
const TAKES_NO_WRITES: [&str; 7] =
    ["READONLY", "OOM", "MISCONF", "NOREPLICAS", "LOADING", "MASTERDOWN", "EXECABORT"];
/// What failed is tried again within a second: when so long no write was refused, they are taken again.
const NONE_REFUSED: Duration = Duration::from_secs(3);

/// What `status` says of Redis: shared by all links of a daemon.
pub struct Health {
    last: Mutex<Option<std::result::Result<(), String>>>,
    silent: bool,
    /// Redis answers, and takes no writes: when last, and why.
    no_writes: Mutex<Option<(Instant, String)>>,
    clock: Mutex<Option<ClockOffset>>,
    permissions_said: Repeats,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            last: Mutex::default(),
            silent: false,
            no_writes: Mutex::default(),
            clock: Mutex::default(),
            permissions_said: Repeats::new(Duration::from_secs(60)),
        }
    }
}

impl Health {
    /// One that logs nothing: for commands, whose user gets the error itself.
    pub fn silent() -> Health {
        Health { silent: true, ..Health::default() }
    }

    fn set(&self, result: std::result::Result<(), String>) {
        let mut last = lock(&self.last);
        match (&*last, &result) {
            _ if self.silent => {}
            (Some(Ok(())), Err(why)) => {
                metrics::REDIS_DISCONNECTS.add(1);
                crate::warn!("{why} Streams go on; the registry is brought up to date when Redis is back.");
            }
            (Some(Err(_)), Ok(())) => crate::info!("Redis answers again."),
            _ => {}
        }
        *last = Some(result);
    }

    fn takes_no_writes(&self, endpoint: &str, (code, why): &(String, String)) {
        if self.silent || !TAKES_NO_WRITES.contains(&code.as_str()) {
            return;
        }
        let sentence = format!("Redis at {endpoint} answers but takes no writes: {code} {why}");
        let mut no_writes = lock(&self.no_writes);
        if no_writes.as_ref().is_none_or(|(_, before)| *before != sentence) {
            crate::warn!("{sentence} Streams go on; the registry is brought up to date when it does.");
        }
        *no_writes = Some((Instant::now(), sentence));
    }

    fn took_something(&self) {
        let mut no_writes = lock(&self.no_writes);
        if no_writes.as_ref().is_some_and(|(last, _)| last.elapsed() >= NONE_REFUSED) {
            *no_writes = None;
            crate::info!("Redis takes writes again.");
        }
    }

    /// Why Redis takes no writes, while that is so.
    pub fn why_no_writes(&self) -> Option<String> {
        lock(&self.no_writes).as_ref().map(|(_, sentence)| sentence.clone())
    }

    /// A permission that is missing: most callers only try again later, and would never tell.
    pub fn not_permitted(&self, why: &str) {
        if !self.silent && self.permissions_said.due(why).is_some() {
            crate::error!("{why}");
        }
    }

    /// What was measured last.
    pub fn clock(&self) -> Option<ClockOffset> {
        *lock(&self.clock)
    }

    /// What was measured now.
    pub fn set_clock(&self, offset: ClockOffset) {
        *lock(&self.clock) = Some(offset);
    }

    /// `Ok` while Redis answers, else why it does not.
    pub fn get(&self) -> std::result::Result<(), String> {
        let last = lock(&self.last);
        last.clone().unwrap_or_else(|| Err("Redis was not asked yet.".to_owned()))
    }
}

/// A link that connects when it is used and reconnects after a failure, not before a pause that grows.
pub struct RedisLink {
    client: std::result::Result<Client, String>,
    settings: Settings,
    connection: Option<Connection>,
    health: Arc<Health>,
    retry_at: Option<Instant>,
    pause: Duration,
}

impl RedisLink {
    /// A link that is not connected yet.
    pub fn new(settings: &Settings, health: Arc<Health>) -> RedisLink {
        RedisLink {
            client: client(settings).map_err(|error| describe(&error, settings)),
            settings: settings.clone(),
            connection: None,
            health,
            retry_at: None,
            pause: Duration::from_millis(100),
        }
    }

    fn unreachable(&self, why: &str) -> Error {
        let address = self.settings.redis_address();
        Error::new(Kind::Connection, format!("Cannot connect to Redis at {address}: {why}"))
    }

    fn connect(&mut self) -> Result<&mut Connection> {
        if self.connection.is_none() {
            if self.retry_at.is_some_and(|at| Instant::now() < at) {
                return Err(self.unreachable("it failed a moment ago and is tried again soon"));
            }
            let opened = match &self.client {
                Ok(client) => open(client).map_err(|error| describe(&error, &self.settings)),
                Err(why) => Err(why.clone()),
            };
            match opened {
                Ok(connection) => self.connection = Some(connection),
                Err(why) => return Err(self.failed(&why)),
            }
        }
        match self.connection.as_mut() {
            Some(connection) => Ok(connection),
            None => Err(Error::new(Kind::Connection, "no connection to Redis")),
        }
    }

    fn failed(&mut self, why: &str) -> Error {
        self.connection = None;
        // Jitter, so that a hundred machines do not come back in step.
        let jitter = Duration::from_millis(crate::os::clock::random_u64() % 100);
        self.retry_at = Some(Instant::now() + self.pause + jitter);
        self.pause = (self.pause * 2).min(limits::REDIS_RETRY_MAX);
        let error = self.unreachable(why);
        self.health.set(Err(error.message.clone()));
        error
    }

    /// Runs one command, pipeline or transaction. An error of the link drops the connection; one that Redis answered
    /// with (a wrong type, a refused command) does not.
    ///
    /// A connection that was used before and turns out to be closed, by a Redis that was restarted or that ends idle
    /// ones, says nothing of Redis as it is now: the work is done once more over a new one. All our commands may be.
    pub fn run<T>(&mut self, work: impl Fn(&mut Connection) -> RedisResult<T>) -> Result<T> {
        let reused = self.connection.is_some();
        let mut result = work(self.connect()?);
        if reused
            && result.as_ref().is_err_and(|error| {
                answered(error).is_none() && !error.is_timeout() && refusal(error).is_none()
            })
        {
            self.connection = None;
            result = work(self.connect()?);
        }
        match result {
            Ok(value) => {
                self.retry_at = None;
                self.pause = Duration::from_millis(100);
                self.health.set(Ok(()));
                self.health.took_something();
                Ok(value)
            }
            Err(error) => Err(self.explain(&error)),
        }
    }

    fn explain(&mut self, error: &RedisError) -> Error {
        match (refusal(error), answered(error)) {
            // Another command may be permitted: the connection is as good as before.
            (Some(Refusal::NotPermitted), _) => {
                let why = self.unreachable(&describe(error, &self.settings));
                self.health.not_permitted(&why.message);
                why
            }
            (None, Some(answer)) => {
                let address = self.settings.redis_address();
                self.health.takes_no_writes(&address, &answer);
                Error::new(Kind::Os, format!("Redis at {address} refused: {error}"))
            }
            _ => self.failed(&describe(error, &self.settings)),
        }
    }

    /// What all links of this daemon share.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Forgets the pause after a failure: for a caller who asks just now.
    pub fn retry_now(&mut self) {
        self.retry_at = None;
    }
}

/// Code and words of an error that Redis answered with; of several in a pipeline, the first. `None`: the link failed.
fn answered(error: &RedisError) -> Option<(String, String)> {
    let answers = error.clone().into_server_errors();
    let first = answers.as_deref().and_then(|answers| answers.first());
    first
        .map(|(_, one)| (one.code().to_owned(), one.details().unwrap_or_default().to_owned()))
        .or_else(|| error.code().map(|code| (code.to_owned(), error.to_string())))
}

/// A connection of its own for pub/sub; the caller sets its read time-out.
pub fn open_for_messages(settings: &Settings) -> RedisResult<Connection> {
    open(&client(settings)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::{ErrorKind, parse_redis_value};

    #[test]
    fn what_redis_answers_is_told_from_a_link_that_fails() {
        let oom = parse_redis_value(b"-OOM command not allowed\r\n").unwrap().extract_error().unwrap_err();
        assert_eq!(answered(&oom), Some(("OOM".to_owned(), "command not allowed".to_owned())));
        let read_only = parse_redis_value(b"-READONLY a replica\r\n").unwrap().extract_error().unwrap_err();
        assert_eq!(answered(&read_only).map(|(code, _)| code).as_deref(), Some("READONLY"));
        let cut = RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!((answered(&cut), cut.kind()), (None, ErrorKind::Io));
    }

    #[test]
    fn a_redis_that_takes_no_writes_is_known_until_it_has_taken_them_for_a_while() {
        let health = Health::default();
        health.takes_no_writes("h:1", &("WRONGTYPE".to_owned(), "of one key".to_owned()));
        assert_eq!(health.why_no_writes(), None);
        health.takes_no_writes("h:1", &("OOM".to_owned(), "no memory.".to_owned()));
        health.took_something(); // a read
        assert_eq!(
            health.why_no_writes().as_deref(),
            Some("Redis at h:1 answers but takes no writes: OOM no memory.")
        );
        if let Some((last, _)) = lock(&health.no_writes).as_mut() {
            *last -= NONE_REFUSED;
        }
        health.took_something();
        assert_eq!(health.why_no_writes(), None);
    }
}
