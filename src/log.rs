//! Log lines on standard error. Levels by reader: error, what you asked for did not happen; warn, odd but handled;
//! info, state changed; debug, for us.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Level {
    Error = 0,
    Warn = 1,
    Info = 2,
    Debug = 3,
}

impl Level {
    /// From `--log-level`'s value.
    pub fn parse(text: &str) -> Option<Level> {
        [("error", Level::Error), ("warn", Level::Warn), ("info", Level::Info), ("debug", Level::Debug)]
            .iter()
            .find(|row| row.0 == text)
            .map(|row| row.1)
    }
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// Sets what is said from now on, in the whole process.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Is this level said at all? For callers that would spend time on the words.
pub fn enabled(level: Level) -> bool {
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

/// Writes one line: UTC time, level, thread, sentence. Line breaks in the sentence are escaped, so that nobody's
/// input can forge a line. A standard error that is gone is no reason to die.
pub fn write(level: Level, sentence: fmt::Arguments<'_>) {
    if !enabled(level) {
        return;
    }
    let label = match level {
        Level::Error => "error",
        Level::Warn => "warn ",
        Level::Info => "info ",
        Level::Debug => "debug",
    };
    let now = crate::wire::time::format(crate::os::clock::realtime_ns());
    let thread = std::thread::current().name().unwrap_or("-").to_owned();
    let text = sentence.to_string().replace('\n', "\\n").replace('\r', "\\r");
    let line = format!("{} {label} {thread}: {text}\n", now.get(..23).unwrap_or(&now));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Says a thing that may come again and again: the same key at most once a period, then with the count of what was
/// left out. Bounded: a thousand keys at most are remembered.
pub struct Repeats {
    period: Duration,
    seen: Mutex<HashMap<String, (Instant, u64)>>,
}

impl Repeats {
    /// At most one line a key and period.
    pub fn new(period: Duration) -> Repeats {
        Repeats { period, seen: Mutex::new(HashMap::new()) }
    }

    /// Is it time to say this key's line? `Some(n)`: yes, and `n` were left out since the last one.
    pub fn due(&self, key: &str) -> Option<u64> {
        let mut seen = self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = Instant::now();
        if seen.len() > 1_000 {
            seen.retain(|_, (last, _)| now.duration_since(*last) < self.period);
            if seen.len() > 1_000 {
                seen.clear();
            }
        }
        match seen.get_mut(key) {
            Some((last, left_out)) if now.duration_since(*last) < self.period => {
                *left_out += 1;
                None
            }
            Some((last, left_out)) => {
                *last = now;
                Some(std::mem::take(left_out))
            }
            None => {
                seen.insert(key.to_owned(), (now, 0));
                Some(0)
            }
        }
    }
}

/// Logs at error level.
#[macro_export]
macro_rules! error { ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Error, format_args!($($arg)*)) } }
/// Logs at warn level.
#[macro_export]
macro_rules! warn { ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Warn, format_args!($($arg)*)) } }
/// Logs at info level.
#[macro_export]
macro_rules! info { ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Info, format_args!($($arg)*)) } }
/// Logs at debug level.
#[macro_export]
macro_rules! debug { ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Debug, format_args!($($arg)*)) } }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_line_is_said_once_a_period_and_counted() {
        let repeats = Repeats::new(Duration::from_secs(3_600));
        assert_eq!(repeats.due("a"), Some(0));
        assert_eq!(repeats.due("a"), None);
        assert_eq!(repeats.due("b"), Some(0));
        let repeats = Repeats::new(Duration::ZERO);
        assert_eq!(repeats.due("a"), Some(0));
        assert_eq!(repeats.due("a"), Some(0));
    }
}
