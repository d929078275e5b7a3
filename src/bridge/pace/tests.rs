//! Synthetic sources, and a publisher that sees what a real one would: a look takes time, and wake-ups are late.

use super::*;
use proptest::prelude::*;

const LOOK_NS: i64 = 300;
/// The watcher of quiet segments looks so often, and takes over parks above a millisecond.
const WATCH_NS: i64 = 900_000;
const WATCHED_NS: i64 = 1_000_000;

struct Seen {
    /// From a frame's arrival to the look that finds it.
    delays_ns: Vec<i64>,
    /// Share of the time in which the thread was awake.
    busy: f64,
}

impl Seen {
    /// Of the later part of the frames, this share is seen within...
    fn within_ns(&self, share: f64) -> i64 {
        let mut delays = self.delays_ns[self.delays_ns.len() / 4..].to_vec();
        delays.sort_unstable();
        delays[((delays.len() - 1) as f64 * share) as usize]
    }
}

/// Small numbers that look random, the same in each run.
fn noise(seed: &mut u64) -> i64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as i64
}

fn run(polling: Polling, arrivals: &[i64], late_ns: i64) -> Seen {
    let mut pace = Pace::new(polling, Role::Publisher);
    let (mut now, mut awake, mut seed) = (0, 0, 7);
    let mut delays_ns = Vec::new();
    while delays_ns.len() < arrivals.len() {
        let arrival = arrivals[delays_ns.len()];
        if arrival <= now {
            pace.on_work(now);
            delays_ns.push(now - arrival);
            (now, awake) = (now + 10_000, awake + 10_000);
            continue;
        }
        match pace.idle(now) {
            Idle::Spin | Idle::Yield => (now, awake) = (now + LOOK_NS, awake + LOOK_NS),
            Idle::Park(time) => {
                let park = time.as_nanos() as i64;
                assert!(park > 0);
                let mut end = now + park;
                if park > WATCHED_NS {
                    end = end.min((arrival / WATCH_NS + 1) * WATCH_NS);
                }
                now = end.max(now) + 5_000 + noise(&mut seed) % late_ns.max(1);
                awake += 3_000;
            }
        }
    }
    Seen { delays_ns, busy: awake as f64 / now as f64 }
}

fn every(period_ns: i64, count: i64) -> Vec<i64> {
    (1..=count).map(|frame| frame * period_ns).collect()
}

#[test]
fn a_steady_source_is_awaited_and_costs_little() {
    for (period_ns, busy_max) in [(1_000_000, 0.2), (250_000, 0.4), (2_000_000, 0.2), (10_000_000, 0.05)] {
        let seen = run(Polling::Adaptive, &every(period_ns, 4_000), 40_000);
        assert!(seen.within_ns(0.5) < 1_000, "{period_ns}: p50 {}", seen.within_ns(0.5));
        assert!(seen.within_ns(0.9) < 1_000, "{period_ns}: p90 {}", seen.within_ns(0.9));
        assert!(seen.busy < busy_max, "{period_ns}: busy {}", seen.busy);
    }
}

#[test]
fn a_source_that_is_late_by_chance_is_awaited_all_the_same() {
    let mut seed = 3;
    let arrivals: Vec<i64> =
        every(1_000_000, 4_000).into_iter().map(|at| at + noise(&mut seed) % 60_000).collect();
    let seen = run(Polling::Adaptive, &arrivals, 40_000);
    assert!(seen.within_ns(0.5) < 1_000, "p50 {}", seen.within_ns(0.5));
    assert!(seen.busy < 0.25, "busy {}", seen.busy);
}

#[test]
fn the_first_frame_after_a_pause_is_seen_within_a_millisecond() {
    let mut arrivals = every(1_000_000, 500);
    arrivals.extend(every(1_000_000, 500).into_iter().map(|at| at + 3_333_333_333));
    let seen = run(Polling::Adaptive, &arrivals, 20_000);
    assert!(seen.delays_ns[500] <= 1_000_000, "{}", seen.delays_ns[500]);
    assert!(seen.delays_ns[600..].iter().filter(|delay| **delay > 1_000).count() < 50);
}

#[test]
fn a_source_that_changes_its_period_is_learnt_anew() {
    let mut arrivals = every(1_000_000, 500);
    arrivals.extend(every(400_000, 1_000).into_iter().map(|at| at + 500_000_000));
    arrivals.extend(every(3_000_000, 500).into_iter().map(|at| at + 900_000_000));
    let seen = run(Polling::Adaptive, &arrivals, 20_000);
    for range in [400..500, 1_400..1_500, 1_900..2_000] {
        let late = seen.delays_ns[range.clone()].iter().filter(|delay| **delay > 1_000).count();
        assert!(late < 10, "{range:?}: {late}");
    }
}

#[test]
fn an_irregular_source_is_backed_off_from_and_never_slept_over() {
    let mut seed = 5;
    let mut at = 0;
    let arrivals: Vec<i64> = (0..3_000)
        .map(|_| {
            at += 100_000 + noise(&mut seed) % 5_000_000;
            at
        })
        .collect();
    let seen = run(Polling::Adaptive, &arrivals, 20_000);
    assert!(seen.delays_ns.iter().all(|delay| *delay <= 1_100_000));
    assert!(seen.busy < 0.1, "busy {}", seen.busy);
}

#[test]
fn sleeping_costs_less_than_waiting_awake_for_what_is_due() {
    let arrivals = every(1_000_000, 4_000);
    let (sleep, adaptive) =
        (run(Polling::Sleep, &arrivals, 40_000), run(Polling::Adaptive, &arrivals, 40_000));
    assert!(sleep.busy < adaptive.busy / 2.0, "{} {}", sleep.busy, adaptive.busy);
    assert!(sleep.within_ns(0.9) < 150_000, "{}", sleep.within_ns(0.9));
}

#[test]
fn sleeping_never_spins_and_spinning_never_sleeps() {
    let (mut sleep, mut spin) =
        (Pace::new(Polling::Sleep, Role::Publisher), Pace::new(Polling::Spin, Role::Mirror));
    for now in (0..1_000_000).step_by(1_000) {
        assert!(matches!(sleep.idle(now), Idle::Park(_)));
        assert!(!matches!(spin.idle(now), Idle::Park(_)));
    }
}

#[test]
fn after_a_frame_the_core_is_offered_once_to_whoever_waits_for_the_frame() {
    for polling in [Polling::Adaptive, Polling::Sleep, Polling::Spin] {
        for role in [Role::Publisher, Role::Mirror] {
            let mut pace = Pace::new(polling, role);
            (1..=20).for_each(|frame| pace.on_work(frame * 1_000_000));
            assert_eq!(pace.idle(20_000_000), Idle::Yield, "{polling:?} {role:?}");
            assert_ne!(pace.idle(20_000_300), Idle::Yield, "{polling:?} {role:?}");
        }
    }
}

/// On a machine with fewer cores than threads that may be the writer: of a source at 1 kHz and of one that is too fast for a
/// rhythm.
#[test]
fn who_waits_awake_offers_the_core_again_and_again() {
    for polling in [Polling::Adaptive, Polling::Spin] {
        for role in [Role::Publisher, Role::Mirror] {
            for period_ns in [20_000, 1_000_000] {
                let mut pace = Pace::new(polling, role);
                let (mut now, mut spins_in_a_row, mut spins) = (0, 0, 0);
                for arrival in every(period_ns, 1_000) {
                    while now < arrival {
                        match pace.idle(now) {
                            Idle::Spin => (spins_in_a_row, spins) = (spins_in_a_row + 1, spins + 1),
                            Idle::Yield => spins_in_a_row = 0,
                            Idle::Park(time) => {
                                (now, spins_in_a_row) = (arrival.min(now + time.as_nanos() as i64), 0);
                            }
                        }
                        assert!(spins_in_a_row < 16, "{polling:?} {role:?} {period_ns} ns");
                        now += LOOK_NS;
                    }
                    pace.on_work(now);
                    now += LOOK_NS;
                }
                assert!(spins > 100, "{polling:?} {role:?} {period_ns} ns: it is never awake");
            }
        }
    }
}

#[test]
fn a_clock_that_stands_still_or_goes_back_is_survived() {
    for role in [Role::Publisher, Role::Mirror] {
        let mut pace = Pace::new(Polling::Adaptive, role);
        for turn in 0..10_000 {
            if turn % 3 == 0 {
                pace.on_work(5)
            } else {
                let _ = pace.idle(5);
            }
        }
        every(1_000_000, 100).into_iter().rev().for_each(|now| pace.on_work(now));
        assert!(matches!(pace.idle(-1), Idle::Spin | Idle::Yield | Idle::Park(_)));
    }
}

#[test]
fn a_mirrors_rhythm_holds_where_the_kernel_ends_its_parks() {
    let mut pace = Pace::new(Polling::Adaptive, Role::Mirror);
    let (mut now, mut spun) = (0, 0);
    for arrival in every(1_000_000, 1_000) {
        while now < arrival {
            match pace.idle(now) {
                Idle::Spin | Idle::Yield => {
                    (now, spun) = (now + LOOK_NS, spun + u32::from(arrival > 500_000_000))
                }
                Idle::Park(time) => now = (now + time.as_nanos() as i64).min(arrival + 30_000) + 5_000,
            }
        }
        pace.on_work(now);
    }
    // Once a frame for about one margin.
    assert!(spun > 500 * 40 && spun < 500 * 700, "{spun}");
}

proptest! {
    #[test]
    fn whatever_comes_no_frame_waits_for_longer_than_a_watched_park(
        gaps in proptest::collection::vec(1_000i64..30_000_000, 1..300),
        late_ns in 1i64..100_000,
    ) {
        let mut at = 0;
        let arrivals: Vec<i64> = gaps.iter().map(|gap| { at += gap; at }).collect();
        let seen = run(Polling::Adaptive, &arrivals, late_ns);
        // Frames that come faster than they are taken wait for each other besides.
        let queued: i64 = 10_000 * gaps.iter().filter(|gap| **gap < 20_000).count() as i64;
        prop_assert!(seen.delays_ns.iter().all(|delay| *delay <= 1_005_000 + late_ns + queued));
    }

    #[test]
    fn whatever_the_clock_does_parks_are_bounded(times in proptest::collection::vec(any::<(i32, bool)>(), 1..400)) {
        let mut pace = Pace::new(Polling::Adaptive, Role::Publisher);
        for (now, work) in times {
            let now = i64::from(now) * 1_000;
            if work {
                pace.on_work(now);
            } else if let Idle::Park(time) = pace.idle(now) {
                prop_assert!(time > Duration::ZERO && time <= Duration::from_secs(1));
            }
        }
    }
}

#[test]
fn a_mirror_is_awake_for_the_first_part_of_a_message() {
    let mut pace = Pace::new(Polling::Adaptive, Role::Mirror);
    let mut now = 0;
    for frame in 1..2_000i64 {
        let (first, whole) = (frame * 2_000_000, frame * 2_000_000 + 500_000);
        while now < first {
            match pace.idle(now) {
                Idle::Park(time) => now = (now + time.as_nanos() as i64).min(first),
                _ => now += LOOK_NS,
            }
        }
        if frame > 1_000 {
            assert!(!pace.parked, "asleep at the first part of frame {frame}");
        }
        pace.on_part(now);
        now = whole;
        pace.on_work(now);
    }
}
