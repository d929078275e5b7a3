//! Where the time of a mirror's frames goes: a histogram of each step from the source's write to the mirror's
//! publication. Relaxed atomics, written by the mirror's worker alone, read by `status`.
//!
//! The first steps are timed by the owner's clock, the last by ours; the one between holds the clocks' difference. Where
//! that is known, and larger than the error it is known with, it is taken out; where not, subtracting it would only add
//! that error.

use crate::metrics::Histogram;
use crate::wire::frame::FrameHeader;
use serde_json::{Map, Value, json};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};

/// The steps, in a frame's order, and the whole of it.
const LABELS: [&str; 5] =
    ["write_to_seen", "seen_to_sent", "sent_to_received", "received_to_published", "whole"];
const WHOLE: usize = LABELS.len() - 1;

/// By how much the owner's clock is ahead of ours.
#[derive(Default)]
pub struct ClockDifference {
    offset_ns: AtomicI64,
    error_ns: AtomicI64,
    known: AtomicBool,
    /// Offsets have been larger than their error: from then on they are taken out.
    corrected: AtomicBool,
}

impl ClockDifference {
    /// What was estimated now.
    pub fn set(&self, offset_ns: i64, error_ns: i64) {
        self.offset_ns.store(offset_ns, Relaxed);
        self.error_ns.store(error_ns, Relaxed);
        self.known.store(true, Relaxed);
        // It stays so: a difference that wanders about its error would be in some frames and not in others.
        if offset_ns.saturating_abs() > error_ns {
            self.corrected.store(true, Relaxed);
        }
    }

    /// What is to be added to a time of ours that is compared with one of theirs.
    pub fn ahead_ns(&self) -> i64 {
        if self.corrected.load(Relaxed) { self.offset_ns.load(Relaxed) } else { 0 }
    }

    fn to_json(&self) -> Value {
        let known = self.known.load(Relaxed);
        let us = |value: &AtomicI64| known.then(|| value.load(Relaxed) as f64 / 1_000.0);
        json!({
            "offset_us": us(&self.offset_ns), "error_us": us(&self.error_ns),
            "corrected": self.corrected.load(Relaxed),
        })
    }
}

/// What a mirror knows of its frames' ways.
#[derive(Default)]
pub struct Hops {
    /// Between the owner's clock and ours.
    pub clock: ClockDifference,
    hops: [Histogram; LABELS.len()],
    most_ns: [AtomicU64; LABELS.len()],
    worst_counter: AtomicU64,
    /// The clocks' difference is out of what the histograms hold.
    corrected: AtomicBool,
}

impl Hops {
    /// Counts one frame by its header and two times of our clock.
    pub fn record(&self, header: &FrameHeader, received_ns: i64, published_ns: i64) {
        let corrected = self.clock.corrected.load(Relaxed);
        if corrected && !self.corrected.swap(true, Relaxed) {
            self.clear(); // what was counted before holds the difference
        }
        let ahead_ns = self.clock.ahead_ns();
        let theirs = |ours_ns: i64| ours_ns.saturating_add(ahead_ns);
        let (atime_ns, seen_ns, sent_ns) = (header.atime_ns, header.seen_ns, header.sent_ns);
        // In the order of LABELS. All of it is of anybody: nothing may overflow.
        let hops = [
            seen_ns.saturating_sub(atime_ns),
            sent_ns.saturating_sub(seen_ns),
            theirs(received_ns).saturating_sub(sent_ns),
            published_ns.saturating_sub(received_ns),
            theirs(published_ns).saturating_sub(atime_ns),
        ]
        .map(|hop_ns| hop_ns.max(0) as u64);
        if hops[WHOLE] >= self.most_ns[WHOLE].load(Relaxed) {
            self.worst_counter.store(header.cnt0, Relaxed);
        }
        for ((histogram, most_ns), hop_ns) in self.hops.iter().zip(&self.most_ns).zip(hops) {
            histogram.record(hop_ns);
            most_ns.fetch_max(hop_ns, Relaxed);
        }
    }

    fn clear(&self) {
        self.hops.iter().for_each(Histogram::clear);
        self.most_ns.iter().for_each(|most_ns| most_ns.store(0, Relaxed));
    }

    /// The whole way's counts, as [`Histogram::snapshot`] gives them.
    pub fn whole(&self) -> Vec<u64> {
        self.hops[WHOLE].snapshot()
    }

    /// The fields `hops_us`, `worst` and `clock` of `status`. `counts` of the whole way are pairs of a bucket's upper edge,
    /// microseconds, and the frames in it: those of an interval are what two looks differ by.
    pub fn to_json(&self) -> [(String, Value); 3] {
        let most_us = |hop: usize| self.most_ns[hop].load(Relaxed) as f64 / 1_000.0;
        let mut any = false;
        let hops: Map<String, Value> = LABELS
            .iter()
            .enumerate()
            .map(|(hop, label)| {
                let counts = self.hops[hop].snapshot();
                any |= counts.iter().any(|count| *count > 0);
                // A quantile is its bucket's upper edge, which may lie above the longest of all.
                let quantile =
                    |q| Histogram::quantile_us(&counts, q).map(|us: f64| us.min(most_us(hop)));
                let mut fields = json!({
                    "p50": quantile(0.5), "p99": quantile(0.99), "p99.9": quantile(0.999), "max": quantile(1.0),
                });
                if hop == WHOLE {
                    fields["counts"] = Histogram::filled(&counts).map(|pair| json!(pair)).collect();
                }
                ((*label).to_owned(), fields)
            })
            .collect();
        let worst =
            any.then(|| json!({"counter": self.worst_counter.load(Relaxed), "whole_us": most_us(WHOLE)}));
        [
            ("hops_us".to_owned(), Value::Object(hops)),
            ("worst".to_owned(), worst.unwrap_or(Value::Null)),
            ("clock".to_owned(), self.clock.to_json()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::tests::header;

    const MS: i64 = 1_000_000;

    fn frame(cnt0: u64, atime_ms: i64) -> FrameHeader {
        FrameHeader {
            cnt0,
            atime_ns: atime_ms * MS,
            seen_ns: (atime_ms + 1) * MS,
            sent_ns: (atime_ms + 3) * MS,
            ..header(cnt0)
        }
    }

    fn fields(hops: &Hops) -> Map<String, Value> {
        hops.to_json().into_iter().collect()
    }

    #[test]
    fn each_hop_is_counted_and_the_worst_frame_named() {
        let hops = Hops::default();
        assert_eq!(fields(&hops)["worst"], Value::Null);
        assert_eq!(fields(&hops)["hops_us"]["whole"]["p50"], Value::Null);
        for (cnt0, late_ms) in [(1, 0), (2, 50), (3, 0)] {
            hops.record(&frame(cnt0, 100), (107 + late_ms) * MS, (108 + late_ms) * MS);
        }
        let fields = fields(&hops);
        let max = |hop: &str| fields["hops_us"][hop]["max"].as_f64();
        assert_eq!(LABELS.map(max), [1e3, 2e3, 54e3, 1e3, 58e3].map(Some));
        assert_eq!(fields["worst"], json!({"counter": 2, "whole_us": 58e3}));
        assert!(fields["hops_us"]["whole"]["p50"].as_f64().unwrap() < 10.1e3);
    }

    #[test]
    fn a_clock_that_differs_by_more_than_the_error_is_corrected_and_by_less_is_not() {
        let hops = Hops::default();
        hops.clock.set(-20_000, 30_000);
        hops.record(&frame(1, 100), 107 * MS, 108 * MS);
        assert_eq!(fields(&hops)["hops_us"]["whole"]["max"], json!(8e3));
        assert_eq!(fields(&hops)["clock"], json!({"offset_us": -20.0, "error_us": 30.0, "corrected": false}));
        // The owner's clock is a second behind ours: what was counted before goes.
        hops.clock.set(-1_000 * MS, 30_000);
        hops.record(&frame(2, 100), 1_107 * MS, 1_108 * MS);
        assert_eq!(fields(&hops)["hops_us"]["whole"]["max"], json!(8e3));
        assert_eq!(fields(&hops)["worst"]["counter"], 2);
        hops.clock.set(0, 30_000);
        assert_eq!(fields(&hops)["clock"]["corrected"], true);
    }

    #[test]
    fn no_time_is_too_strange() {
        let hops = Hops::default();
        hops.clock.set(i64::MIN, i64::MAX);
        hops.clock.set(i64::MAX, 0);
        for ns in [i64::MIN, i64::MAX] {
            hops.record(&FrameHeader { atime_ns: ns, seen_ns: -ns.max(1), sent_ns: ns, ..header(1) }, ns, ns);
        }
    }
}
