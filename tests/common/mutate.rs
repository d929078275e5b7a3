//! Real messages, spoiled: what every parser of outside input is given, in `cargo test` for a second and by
//! `scripts/fuzz` for as long as it is told.
//!
//! The input of number n under the seed s is that of number 0 under the seed s + n: whatever fails can be had again at
//! once. `DAOSERVER_FUZZ_SECONDS` (fractions allowed) and `DAOSERVER_FUZZ_SEED` are read from the environment.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests; scripts/fuzz reads what they print

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// An input that takes longer hangs: the slowest take milliseconds, and this machine may be busy.
const HANG: Duration = Duration::from_secs(20);

/// A linear congruential generator (Knuth's numbers), its upper half.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        let mut random = Random(seed);
        // Neighbours begin alike.
        for _ in 0..4 {
            random.next();
            random.0 ^= random.0 >> 29;
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 32
    }

    /// Less than this; 0 for 0.
    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end.max(1)
    }

    /// From 1 to two to this power, small ones more often.
    fn few(&mut self, power: usize) -> usize {
        let power = self.below(power + 1);
        1 + self.below(1 << power)
    }
}

/// What is tried on a parser.
pub struct Mutations<'a> {
    /// The parser's name, for `scripts/fuzz`.
    pub target: &'a str,
    /// Real messages or files.
    pub seeds: Vec<Vec<u8>>,
    /// Pieces that such messages have, put in anywhere.
    pub pieces: Vec<Vec<u8>>,
    /// No input is longer.
    pub bytes_max: usize,
}

/// Some texts.
#[allow(dead_code)] // not every test has some
pub fn pieces(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn from_environment<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is '{text}', and no number")),
        Err(_) => default,
    }
}

impl Mutations<'_> {
    /// Gives `judge` one input after the other until the time is over. It panics about one that it does not like.
    pub fn run(&self, mut judge: impl FnMut(&[u8])) {
        let seconds: f64 = from_environment("DAOSERVER_FUZZ_SECONDS", 1.0);
        let first: u64 = from_environment("DAOSERVER_FUZZ_SEED", 1);
        let begun = Instant::now();
        // What nobody has touched must be good for something, or the seeds are wrong.
        self.seeds.iter().for_each(|seed| judge(seed));
        let watch = Watch::start(self.target, first);
        let mut tried = 0;
        while begun.elapsed().as_secs_f64() < seconds {
            let input = self.input(first.wrapping_add(tried));
            watch.tried.store(tried, Relaxed);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| judge(&input))) {
                let seed = first.wrapping_add(tried);
                eprintln!(
                    "fuzz {}: DAOSERVER_FUZZ_SEED={seed} gives it at once: {}",
                    self.target,
                    shown(&input)
                );
                resume_unwind(panic);
            }
            tried += 1;
        }
        println!(
            "fuzz {}: {tried} inputs in {:.0} s from seed {first}",
            self.target,
            begun.elapsed().as_secs_f64()
        );
    }

    fn input(&self, seed: u64) -> Vec<u8> {
        let mut random = Random::new(seed);
        let mut bytes = self.seeds[random.below(self.seeds.len())].clone();
        // Most often few changes: what is all wrong is refused at the first look.
        for _ in 0..random.few(4) {
            self.change(&mut bytes, &mut random);
            bytes.truncate(self.bytes_max);
        }
        bytes
    }

    fn change(&self, bytes: &mut Vec<u8>, random: &mut Random) {
        let at = random.below(bytes.len());
        let some = random.few(8);
        let end = (at + some).min(bytes.len());
        match random.below(10) {
            0 => bytes.truncate(at),
            1 => bytes.extend((0..some).map(|_| random.next() as u8)),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let again = bytes[at..end].repeat(1 + random.below(8));
                drop(bytes.splice(at..at, again));
            }
            4 => {
                // The end of another message from anywhere on.
                let other = &self.seeds[random.below(self.seeds.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.below(other.len())..]);
            }
            5 if !self.pieces.is_empty() => {
                let piece = self.pieces[random.below(self.pieces.len())].iter().copied();
                let over = if random.below(2) == 0 { at } else { end };
                drop(bytes.splice(at..over, piece));
            }
            6 => number(bytes, at, random),
            7 => digits(bytes, at, random),
            _ if bytes.is_empty() => bytes.push(random.next() as u8),
            8 => bytes[at] ^= 1 << random.below(8),
            _ => bytes[at] = random.next() as u8,
        }
    }
}

/// A binary number somewhere becomes an extreme one, or one near the message's length.
fn number(bytes: &mut [u8], at: usize, random: &mut Random) {
    let width = [1, 2, 4, 8][random.below(4)];
    let length = bytes.len() as u64;
    let extremes = [
        0,
        1,
        2,
        0x7f,
        0x7fff,
        0x7fff_ffff,
        i64::MAX as u64,
        u64::MAX,
        u64::MAX - 1,
        1 << 16,
        1 << 20,
        1 << 30,
        length,
    ];
    let value = extremes[random.below(extremes.len())].wrapping_add(random.next() % 3).wrapping_sub(1);
    // Fields stand at multiples of their length.
    let at = if random.below(4) == 0 { at } else { at - at % width };
    let big_endian = random.below(4) == 0;
    for (place, byte) in value.to_le_bytes()[..width].iter().enumerate() {
        let place = if big_endian { width - 1 - place } else { place };
        if let Some(old) = bytes.get_mut(at + place) {
            *old = *byte;
        }
    }
}

/// The next number in a text becomes an extreme one.
fn digits(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    let Some(from) = bytes[at..].iter().position(u8::is_ascii_digit).map(|place| at + place) else { return };
    let length = bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let extremes = [
        "0",
        "-1",
        "1",
        "65535",
        "65536",
        "4294967295",
        "4294967296",
        "9223372036854775807",
        "18446744073709551616",
        "1e308",
        "1e999",
        "-0.0",
        "0.1",
        "NaN",
        "00",
        "0x10",
    ];
    let value = extremes[random.below(extremes.len())].bytes();
    drop(bytes.splice(from..from + length, value));
}

fn shown(input: &[u8]) -> String {
    let text: String =
        input.iter().take(2_000).flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect();
    format!("{} bytes, b\"{text}\"{}", input.len(), if input.len() > 2_000 { " and so on" } else { "" })
}

/// Ends the whole test with the number of an input that is not done with: nothing else could.
struct Watch {
    tried: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
}

impl Watch {
    fn start(target: &str, first: u64) -> Watch {
        let watch = Watch { tried: Arc::default(), done: Arc::default() };
        let (tried, done, target) = (Arc::clone(&watch.tried), Arc::clone(&watch.done), target.to_owned());
        std::thread::spawn(move || {
            let (mut last, mut since) = (u64::MAX, Instant::now());
            while !done.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                let now = tried.load(Relaxed);
                if now != last {
                    (last, since) = (now, Instant::now());
                } else if since.elapsed() > HANG {
                    eprintln!("fuzz {target}: DAOSERVER_FUZZ_SEED={} hangs", first.wrapping_add(now));
                    std::process::abort();
                }
            }
        });
        watch
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Relaxed);
    }
}
