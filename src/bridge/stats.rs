//! What publishers and mirrors count: relaxed atomics, written by the one worker, read by `status`.

use crate::bridge::echoes::Echoes;
use crate::bridge::hops::Hops;
use crate::metrics::Histogram;
use crate::os::clock;
use crate::wire::frame::Refused;
use crate::wire::loss::Lost;
use serde_json::{Map, Value, json};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};

/// Frames a second, measured over about a second each time.
#[derive(Debug, Default)]
pub struct Rate {
    millihertz: AtomicU64,
}

/// The worker's side of a [`Rate`].
#[derive(Debug, Default)]
pub struct RateMeter {
    since_ns: i64,
    frames: u64,
}

impl RateMeter {
    /// Called now and then, at least once a second or so, with the frames so far.
    pub fn tick(&mut self, now_ns: i64, frames: u64, rate: &Rate) {
        let elapsed_ns = now_ns - self.since_ns;
        if self.since_ns != 0 && elapsed_ns < 1_000_000_000 {
            return;
        }
        if self.since_ns != 0 {
            let millihertz = (frames - self.frames) as f64 * 1e12 / elapsed_ns as f64;
            rate.millihertz.store(millihertz as u64, Relaxed);
        }
        (self.since_ns, self.frames) = (now_ns, frames);
    }
}

impl Rate {
    fn hz(&self) -> f64 {
        self.millihertz.load(Relaxed) as f64 / 1_000.0
    }
}

/// A publisher's counts.
#[derive(Default)]
#[allow(missing_docs)]
pub struct PublisherStats {
    pub frames: AtomicU64,
    /// Times that pixels were copied out of the segment: one a frame, however many it goes to.
    pub copies: AtomicU64,
    /// Overwritten by the source's writer before we had them.
    pub lapped: AtomicU64,
    /// Frames that some client was left out of, since it was still being sent an older one; which, its mirror counts.
    pub queue_full: AtomicU64,
    /// The same of Python peers, who cannot tell themselves.
    pub python_queue_full: AtomicU64,
    /// Times that a frame could not be copied whole because its writer was at it; it is tried again.
    pub busy: AtomicU64,
    /// Sent again for a new subscriber.
    pub resent: AtomicU64,
    /// Of a write-back: not sent, since the mirror was not up to date with its owner or nobody was there to take them.
    pub stale: AtomicU64,
    /// Of a write-back: the mirror is up to date with its owner, and the owner is there to take frames.
    pub open: AtomicBool,
    /// When a program on this machine wrote last, monotonic ns, 0 for never.
    pub last_local_ns: AtomicI64,
    pub rate: Rate,
}

impl PublisherStats {
    /// The fields of `status`.
    pub fn to_json(&self) -> Map<String, Value> {
        let value = json!({
            "frames": self.frames.load(Relaxed),
            "copies": self.copies.load(Relaxed),
            "resent": self.resent.load(Relaxed),
            "stale": self.stale.load(Relaxed),
            "rate_hz": self.rate.hz(),
            "busy": self.busy.load(Relaxed),
            "lost": {
                "lapped": self.lapped.load(Relaxed),
                "queue_full": self.queue_full.load(Relaxed),
                "python_queue_full": self.python_queue_full.load(Relaxed),
            },
        });
        if let Value::Object(map) = value { map } else { Map::new() }
    }
}

/// How a mirror gets its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Ours, which carries counters and times.
    Dao,
    /// The Python daemon's: pixels and nothing else.
    Python,
}

/// A mirror's counts.
#[derive(Default)]
#[allow(missing_docs)]
pub struct MirrorStats {
    pub frames: AtomicU64,
    pub repeated: AtomicU64,
    /// Our own frames, which came back from the owner and were not written again.
    pub echoes: AtomicU64,
    /// When they came back, from when somebody has asked for it.
    pub echo_times: OnceLock<Echoes>,
    /// Times that the owner's frame was written over a local one that had got lost.
    pub converged: AtomicU64,
    pub lapped: AtomicU64,
    pub queue_full: AtomicU64,
    pub transport: AtomicU64,
    /// Skipped by the mirror itself, which was behind, for a newer one.
    pub mirror_busy: AtomicU64,
    pub refused: [AtomicU64; Refused::LABELS.len()],
    pub rate: Rate,
    /// From the source's write to the mirror's publication, step by step.
    pub hops: Hops,
    /// Monotonic ns, 0 for never.
    pub last_frame_ns: AtomicI64,
    pub last_heard_ns: AtomicI64,
    /// Of a Python owner: since when there has been a connection on which no frame came. 0: one has.
    pub frameless_since_ns: AtomicI64,
    /// The source's counter of the newest frame.
    pub source_counter: AtomicU64,
}

impl MirrorStats {
    /// Was anything heard of the owner lately?
    pub fn connected(&self) -> bool {
        let heard_ns = self.last_heard_ns.load(Relaxed);
        heard_ns != 0 && clock::monotonic_ns() - heard_ns < crate::limits::LINK_SILENT_MAX.as_nanos() as i64
    }

    /// The losses so far, for a ledger that goes on from them.
    pub fn lost(&self) -> Lost {
        Lost {
            lapped: self.lapped.load(Relaxed),
            queue_full: self.queue_full.load(Relaxed),
            transport: self.transport.load(Relaxed),
        }
    }

    /// All losses, whatever their cause.
    pub fn lost_total(&self) -> u64 {
        let Lost { lapped, queue_full, transport } = self.lost();
        [queue_full, transport, self.mirror_busy.load(Relaxed)].into_iter().fold(lapped, u64::saturating_add)
    }

    /// Copies the ledger's sums, which the worker keeps without atomics.
    pub fn set_lost(&self, lost: &Lost) {
        self.lapped.store(lost.lapped, Relaxed);
        self.queue_full.store(lost.queue_full, Relaxed);
        self.transport.store(lost.transport, Relaxed);
    }

    /// The fields of `status`: `lost` by cause, `age_us` since the newest frame arrived (this machine's clock alone),
    /// `latency_us` from the source's write to the mirror's publication since the start of the mirror, and `hops_us` the
    /// same in steps, with the counter of the `worst` frame; `clock` is how far the owner's clock is ahead of ours, with
    /// the error of the estimate, and whether it was taken out of those times (see [`Hops`]). `null` is what
    /// nobody can know of this wire. Counts of losses go on over a change of wire; `lost_known` is of the one in use.
    pub fn to_json(&self, wire: Wire) -> Map<String, Value> {
        let last_frame_ns = self.last_frame_ns.load(Relaxed);
        let age_us = (last_frame_ns != 0).then(|| (clock::monotonic_ns() - last_frame_ns).max(0) / 1_000);
        let refused: Map<String, Value> = Refused::LABELS
            .iter()
            .zip(&self.refused)
            .map(|(label, count)| (*label, count.load(Relaxed)))
            .filter(|(_, count)| *count > 0)
            .map(|(label, count)| (label.to_owned(), json!(count)))
            .collect();
        let latency = match wire {
            Wire::Dao => self.hops.whole(),
            Wire::Python => Vec::new(),
        };
        let value = json!({
            "wire": match wire { Wire::Dao => "dao", Wire::Python => "python" },
            "lost_known": wire == Wire::Dao,
            "connected": self.connected(),
            "frames": self.frames.load(Relaxed),
            "lost": {
                "lapped": self.lapped.load(Relaxed),
                "queue_full": self.queue_full.load(Relaxed),
                "transport": self.transport.load(Relaxed),
                "mirror_busy": self.mirror_busy.load(Relaxed),
            },
            "repeated": self.repeated.load(Relaxed),
            "echoes": self.echoes.load(Relaxed),
            "converged": self.converged.load(Relaxed),
            "refused": refused,
            "rate_hz": self.rate.hz(),
            "age_us": age_us,
            "latency_us": {
                "p50": Histogram::quantile_us(&latency, 0.5),
                "p99": Histogram::quantile_us(&latency, 0.99),
                "max": Histogram::quantile_us(&latency, 1.0),
            },
            "source_counter": (wire == Wire::Dao).then(|| self.source_counter.load(Relaxed)),
        });
        let mut fields = if let Value::Object(map) = value { map } else { Map::new() };
        match wire {
            Wire::Dao => fields.extend(self.hops.to_json()),
            Wire::Python => {
                fields.extend(["hops_us", "worst", "clock"].map(|name| (name.to_owned(), Value::Null)))
            }
        }
        fields
    }
}
