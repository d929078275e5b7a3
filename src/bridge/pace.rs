//! When a stream's thread looks again: always, as often as it backs off, or when the next frame is due. One mechanism
//! for publishers, which watch a counter, and for mirrors, which the kernel wakes for bytes. Pure: fed with times.

use crate::bridge::backoff::{Backoff, Idle, Policy};
use crate::settings::Polling;
use std::time::Duration;

/// A publisher that watches a counter. Spinning is short: on a machine with fewer cores than threads it takes the
/// core from the writer that it waits for.
const PUBLISHER: Policy = Policy {
    spins: 100,
    yields: 10,
    park_shortest: Duration::from_micros(50),
    park_longest: Duration::from_millis(100),
};

/// A mirror's park ends with the first byte.
const MIRROR: Policy = Policy {
    spins: 50,
    yields: 2,
    park_shortest: Duration::from_millis(100),
    park_longest: Duration::from_millis(100),
};

/// One that only sleeps.
const fn asleep(policy: Policy, park_shortest: Duration) -> Policy {
    Policy { spins: 0, yields: 0, park_shortest, ..policy }
}

/// One that spins offers its core once in so many turns, some tens of microseconds: else whoever the scheduler has put on
/// the same core, be it the other end of the stream, waits for the next tick, milliseconds. Alone on a core it costs
/// about a hundredth of the looks.
const SPINS_A_YIELD: u32 = 8;
/// The same around the time when a frame is due.
const NEAR_SPINS_A_YIELD: u32 = 2;

/// One that never spins looks so often then.
const NEAR_PARK: Duration = Duration::from_micros(50);

/// Frames in a row at about the same distance, before it is taken for a period.
const REGULAR_MIN: u32 = 8;
/// Shorter periods are spun through, longer ones are no rhythm that is worth keeping.
const PERIOD_NS: (i64, i64) = (120_000, 1_000_000_000);
/// A frame is expected so long before it is due, and for twice as long after it: bounds of what is learnt.
const MARGIN_NS: (i64, i64) = (40_000, 200_000);
/// Of a period, the margin is at most this part, so that three margins cost no more than a share of a core.
const MARGINS_A_PERIOD: i64 = 8;
/// Frames in a row without rhythm, or periods without a frame, before the rhythm is given up.
const STRIKES_MAX: u32 = 3;
const MISSED_MAX: u32 = 2;
/// A wait that is shorter than going to sleep takes.
const SHORTEST_SLEEP_NS: i64 = 5_000;

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Watches a counter: nobody tells it of a frame.
    Publisher,
    /// Waits where the kernel wakes it.
    Mirror,
}

/// Where a moment lies in a source's period.
enum Phase {
    /// Before the next frame is expected.
    Ahead { ns: i64 },
    /// It may come any moment.
    Near,
    /// It is late; the one after it is expected in this time.
    Late { next_in_ns: i64 },
}

/// What has been learnt of a source: period and phase, by a filter of second order, and how early to be there.
#[derive(Debug)]
struct Rhythm {
    locked: bool,
    period_ns: i64,
    last_ns: i64,
    due_ns: i64,
    margin_ns: i64,
    regular: u32,
    strikes: u32,
    missed: u32,
}

impl Rhythm {
    fn new() -> Rhythm {
        Rhythm {
            locked: false,
            period_ns: 0,
            last_ns: 0,
            due_ns: 0,
            margin_ns: MARGIN_NS.1 / 2,
            regular: 0,
            strikes: 0,
            missed: 0,
        }
    }

    /// A frame came between these two looks.
    fn on_frame(&mut self, empty_ns: i64, seen_ns: i64) {
        if !self.locked {
            return self.learn(seen_ns);
        }
        let early = empty_ns < self.due_ns - self.margin_ns;
        // Within what is known it came when it was due: a late look says nothing of the phase.
        let error_ns = self.due_ns.max(empty_ns).min(seen_ns) - self.due_ns;
        self.missed = 0;
        if error_ns.abs() > self.period_ns / 4 {
            self.strikes += 1;
            if self.strikes >= STRIKES_MAX {
                *self = Rhythm { last_ns: seen_ns, margin_ns: self.margin_ns, ..Rhythm::new() };
            } else if error_ns > 0 {
                self.due_ns = seen_ns + self.period_ns;
            }
            return;
        }
        self.strikes = 0;
        self.period_ns += error_ns / 32;
        self.due_ns += error_ns / 4 + self.period_ns;
        // Rests where some four frames in a thousand are there before us: fewer than a 99th percentile notices.
        self.margin_ns += if early { self.margin_ns / 4 } else { -self.margin_ns / 1024 };
        self.bound();
    }

    fn learn(&mut self, seen_ns: i64) {
        let apart_ns = seen_ns.saturating_sub(self.last_ns);
        self.last_ns = seen_ns;
        if (apart_ns - self.period_ns).abs() > self.period_ns / 4 {
            self.period_ns = apart_ns;
            self.regular = 0;
            return;
        }
        self.period_ns += (apart_ns - self.period_ns) / 4;
        self.regular += 1;
        if self.regular >= REGULAR_MIN && (PERIOD_NS.0..=PERIOD_NS.1).contains(&self.period_ns) {
            self.locked = true;
            self.due_ns = seen_ns + self.period_ns;
            self.bound();
        }
    }

    fn bound(&mut self) {
        self.period_ns = self.period_ns.clamp(PERIOD_NS.0, PERIOD_NS.1);
        let most_ns = (self.period_ns / MARGINS_A_PERIOD).clamp(MARGIN_NS.0, MARGIN_NS.1);
        self.margin_ns = self.margin_ns.clamp(MARGIN_NS.0, most_ns);
    }

    fn phase(&mut self, now_ns: i64) -> Option<Phase> {
        while self.locked && now_ns - self.due_ns > self.period_ns / 2 {
            self.due_ns += self.period_ns;
            self.missed += 1;
            if self.missed >= MISSED_MAX {
                *self = Rhythm { last_ns: now_ns, margin_ns: self.margin_ns, ..Rhythm::new() };
            }
        }
        if !self.locked {
            return None;
        }
        let ahead_ns = self.due_ns - self.margin_ns - now_ns;
        Some(if ahead_ns > 0 {
            Phase::Ahead { ns: ahead_ns.min(self.period_ns) } // whatever the clock did
        } else if now_ns < self.due_ns + 2 * self.margin_ns {
            Phase::Near
        } else {
            Phase::Late { next_in_ns: ahead_ns + self.period_ns }
        })
    }
}

/// The waiting of one thread.
#[derive(Debug)]
pub struct Pace {
    polling: Polling,
    role: Role,
    backoff: Backoff,
    rhythm: Rhythm,
    /// The last look that found nothing, and whether a park followed it.
    empty_ns: i64,
    parked: bool,
    /// The look that found the first part of what is not whole yet.
    begun_ns: Option<i64>,
    /// The last look found work.
    worked: bool,
    turns: u32,
}

impl Pace {
    /// At its start, with nothing learnt.
    pub fn new(polling: Polling, role: Role) -> Pace {
        let policy = match (role, polling) {
            (Role::Publisher, Polling::Sleep) => asleep(PUBLISHER, Duration::from_micros(100)),
            (Role::Publisher, _) => PUBLISHER,
            (Role::Mirror, Polling::Sleep) => asleep(MIRROR, MIRROR.park_shortest),
            (Role::Mirror, _) => MIRROR,
        };
        Pace {
            polling,
            role,
            backoff: Backoff::new(policy),
            rhythm: Rhythm::new(),
            empty_ns: 0,
            parked: false,
            begun_ns: None,
            worked: false,
            turns: 0,
        }
    }

    /// A look that began at this time found a part of something. A mirror has to be awake for the first part of a message:
    /// it is that which keeps the rhythm.
    pub fn on_part(&mut self, now_ns: i64) {
        if self.role == Role::Mirror {
            self.begun_ns.get_or_insert(now_ns);
        }
    }

    /// May it wait without sleeping?
    pub fn may_spin(&self) -> bool {
        self.polling != Polling::Sleep
    }

    /// A look that began at this time found work.
    pub fn on_work(&mut self, now_ns: i64) {
        self.backoff.reset();
        let now_ns = self.begun_ns.take().unwrap_or(now_ns);
        if self.keeps_rhythm() {
            // The kernel ends a mirror's park when the frame comes; a publisher's ends when it ends.
            let exact = self.parked && self.role == Role::Mirror && now_ns < self.rhythm.due_ns;
            self.rhythm.on_frame(if exact { now_ns } else { self.empty_ns.min(now_ns) }, now_ns);
        }
        (self.parked, self.worked) = (false, true);
    }

    /// A look that began at this time found none: what now. Looking comes before each wait, so that a frame that is
    /// there already is never slept over.
    pub fn idle(&mut self, now_ns: i64) -> Idle {
        self.turns = self.turns.wrapping_add(1);
        let idle = match self.polling {
            // Whoever the frame went to may wait for this very core, and to fall asleep takes another ten microseconds.
            _ if std::mem::take(&mut self.worked) => Idle::Yield,
            Polling::Spin => self.spin(SPINS_A_YIELD),
            Polling::Sleep if !self.keeps_rhythm() => self.back_off(),
            _ => match self.rhythm.phase(now_ns) {
                Some(Phase::Ahead { ns }) if ns >= SHORTEST_SLEEP_NS => park_ns(ns),
                Some(Phase::Ahead { .. } | Phase::Near) if self.polling == Polling::Sleep => NEAR_PARK.into(),
                Some(Phase::Ahead { .. }) => Idle::Spin,
                Some(Phase::Near) => self.spin(NEAR_SPINS_A_YIELD),
                Some(Phase::Late { next_in_ns }) => match self.back_off() {
                    Idle::Park(time) => time.min(Duration::from_nanos(next_in_ns.max(1) as u64)).into(),
                    other => other,
                },
                None => self.back_off(),
            },
        };
        (self.empty_ns, self.parked) = (now_ns, matches!(idle, Idle::Park(_)));
        idle
    }

    /// Whoever is woken by the kernel, and may not spin, needs to know nothing.
    fn keeps_rhythm(&self) -> bool {
        self.polling == Polling::Adaptive || self.polling == Polling::Sleep && self.role == Role::Publisher
    }

    fn back_off(&mut self) -> Idle {
        match self.backoff.idle() {
            Idle::Spin => self.spin(SPINS_A_YIELD),
            other => other,
        }
    }

    fn spin(&self, spins_a_yield: u32) -> Idle {
        if self.turns.is_multiple_of(spins_a_yield) { Idle::Yield } else { Idle::Spin }
    }
}

impl From<Duration> for Idle {
    fn from(time: Duration) -> Idle {
        Idle::Park(time)
    }
}

fn park_ns(ns: i64) -> Idle {
    Idle::Park(Duration::from_nanos(ns.max(0) as u64))
}

#[cfg(test)]
mod tests;
