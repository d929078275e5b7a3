//! Process-wide counters: one static table of relaxed atomics, each with a label, shown by `status`.
//! Also the histogram of a stream's latencies.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One counter of the table.
pub struct Counter {
    label: &'static str,
    value: AtomicU64,
}

impl Counter {
    const fn new(label: &'static str) -> Counter {
        Counter { label, value: AtomicU64::new(0) }
    }

    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.value.fetch_add(n, Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.value.load(Relaxed)
    }

    /// The name in `status`.
    pub fn label(&self) -> &'static str {
        self.label
    }
}

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident = $label:literal;)*) => {
        $($(#[$doc])* pub static $name: Counter = Counter::new($label);)*
        /// Every counter, in the order of `status`.
        pub static TABLE: &[&Counter] = &[$(&$name),*];
    };
}

table! {
    /// Threads that panicked.
    THREAD_PANICS = "thread_panics";
    /// Commands refused because the queue was full.
    COMMANDS_BUSY = "commands_busy";
    /// Values in Redis that made no sense.
    REDIS_VALUES_REFUSED = "redis_values_refused";
    /// Times that the connection to Redis was lost.
    REDIS_DISCONNECTS = "redis_disconnects";
    /// Lines on the control socket that made no sense.
    CONTROL_LINES_REFUSED = "control_lines_refused";
    /// Segment files that are none.
    SEGMENT_FILES_REFUSED = "segment_files_refused";
    /// Peers that --allow kept out: requests and connections.
    PEERS_REFUSED = "peers_refused";
    /// Connections over TCP that were ended for what they said, or did not, or because there were too many.
    CONNECTIONS_REFUSED = "connections_refused";
    /// Clients evicted for want of a heartbeat.
    CLIENTS_EVICTED = "clients_evicted";
    /// Machines removed by this master.
    MACHINES_REMOVED = "machines_removed";
}

/// The first edge of a [`Histogram`] is at 2 to this power, nanoseconds: 128 ns.
const FIRST_OCTAVE: usize = 7;
/// Buckets of an octave, as a power of two.
const OCTAVE_BITS: usize = 4;
/// Buckets: up to over an hour.
const BUCKETS: usize = 35 << OCTAVE_BITS;

/// Counts of durations in fixed buckets, sixteen to an octave: written by one thread without a lock or an allocation,
/// read by any. A quantile is the upper edge of its bucket, so it is at most 6 % too high.
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: [const { AtomicU64::new(0) }; BUCKETS] }
    }
}

impl Histogram {
    fn bucket(duration_ns: u64) -> usize {
        let clamped = duration_ns.max(1 << FIRST_OCTAVE);
        let octave = 63 - clamped.leading_zeros() as usize;
        // The bits below the leading one pick the part of the octave.
        let part = (clamped >> (octave - OCTAVE_BITS)) as usize & ((1 << OCTAVE_BITS) - 1);
        (((octave - FIRST_OCTAVE) << OCTAVE_BITS) + part).min(BUCKETS - 1)
    }

    fn upper_edge_ns(bucket: usize) -> u64 {
        let octave = (bucket >> OCTAVE_BITS) + FIRST_OCTAVE;
        let part = (bucket & ((1 << OCTAVE_BITS) - 1)) as u64;
        ((1 << OCTAVE_BITS) + part + 1) << (octave - OCTAVE_BITS)
    }

    /// How wide the bucket with this upper edge is; both in microseconds.
    pub fn width_us(upper_edge_us: f64) -> f64 {
        let bucket = Self::bucket(((upper_edge_us * 1_000.0).round() as u64).saturating_sub(1));
        let octave = (bucket >> OCTAVE_BITS) + FIRST_OCTAVE;
        (1u64 << (octave - OCTAVE_BITS)) as f64 / 1_000.0
    }

    /// Counts one duration.
    pub fn record(&self, duration_ns: u64) {
        // One writer a histogram: a plain load and store would do, this is as cheap on a line that we own.
        self.counts[Self::bucket(duration_ns)].fetch_add(1, Relaxed);
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.counts.iter().for_each(|count| count.store(0, Relaxed));
    }

    /// The counts so far; subtract an older copy to get those of an interval.
    pub fn snapshot(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Relaxed)).collect()
    }

    /// The buckets of a snapshot that hold anything: upper edge, microseconds, and count.
    pub fn filled(snapshot: &[u64]) -> impl Iterator<Item = (f64, u64)> {
        let buckets = snapshot.iter().enumerate().filter(|(_, count)| **count > 0);
        buckets.map(|(bucket, count)| (Self::upper_edge_ns(bucket) as f64 / 1_000.0, *count))
    }

    /// The quantile (0 to 1) of a snapshot, microseconds; `None` of nothing.
    pub fn quantile_us(snapshot: &[u64], quantile: f64) -> Option<f64> {
        let total: u64 = snapshot.iter().sum();
        let wanted = ((total as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        snapshot.iter().enumerate().find_map(|(bucket, count)| {
            seen += count;
            (total > 0 && seen >= wanted).then(|| Self::upper_edge_ns(bucket) as f64 / 1_000.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_at_most_a_bucket_too_high() {
        let histogram = Histogram::default();
        assert_eq!(Histogram::quantile_us(&histogram.snapshot(), 0.5), None);
        for us in 1..=1000u64 {
            histogram.record(us * 1_000);
        }
        let snapshot = histogram.snapshot();
        for (quantile, exact) in [(0.5, 500.0), (0.99, 990.0)] {
            let got = Histogram::quantile_us(&snapshot, quantile).unwrap();
            assert!(got >= exact && got <= exact * 1.0625, "{quantile}: {got}");
        }
    }

    #[test]
    fn every_bucket_begins_where_the_one_before_ends() {
        for bucket in 1..BUCKETS {
            let (from_ns, to_ns) = (Histogram::upper_edge_ns(bucket - 1), Histogram::upper_edge_ns(bucket));
            let width_ns = Histogram::width_us(to_ns as f64 / 1_000.0) * 1_000.0;
            assert_eq!(width_ns.round() as u64, to_ns - from_ns, "{bucket}");
        }
    }

    #[test]
    fn no_duration_is_too_short_or_too_long() {
        let histogram = Histogram::default();
        histogram.record(0);
        histogram.record(u64::MAX);
        assert_eq!(histogram.snapshot().iter().sum::<u64>(), 2);
    }

    #[test]
    fn labels_are_unique() {
        let mut labels: Vec<_> = TABLE.iter().map(|counter| counter.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), TABLE.len());
    }
}
