//! How a loop without work waits: spin, then yield, then park, ever longer. Work starts it over.

use std::time::Duration;

/// How many parks of one length come before the next is twice as long: a 1 kHz source is watched at the shortest.
const PARKS_A_LENGTH: u32 = 16;

/// The numbers of one role.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Turns of the loop that only tell the processor that we spin.
    pub spins: u32,
    /// Turns that give the core to another thread that is ready.
    pub yields: u32,
    /// Length of the first parks.
    pub park_shortest: Duration,
    /// Length of the last.
    pub park_longest: Duration,
}

/// What to do in a turn without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Spin once.
    Spin,
    /// Yield the core.
    Yield,
    /// Sleep, or wait in the kernel, this long.
    Park(Duration),
}

/// The state of one loop.
#[derive(Debug)]
pub struct Backoff {
    policy: Policy,
    turns: u32,
}

impl Backoff {
    /// At its start: spinning.
    pub fn new(policy: Policy) -> Backoff {
        Backoff { policy, turns: 0 }
    }

    /// There was work.
    pub fn reset(&mut self) {
        self.turns = 0;
    }

    /// There was none: what now.
    pub fn idle(&mut self) -> Idle {
        let turn = self.turns;
        self.turns = self.turns.saturating_add(1);
        let Some(after_spins) = turn.checked_sub(self.policy.spins) else { return Idle::Spin };
        let Some(parks) = after_spins.checked_sub(self.policy.yields) else { return Idle::Yield };
        let doublings = (parks / PARKS_A_LENGTH).min(20);
        Idle::Park((self.policy.park_shortest * (1 << doublings)).min(self.policy.park_longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        spins: 100,
        yields: 10,
        park_shortest: Duration::from_micros(50),
        park_longest: Duration::from_micros(800),
    };

    #[test]
    fn a_loop_without_work_spins_then_yields_then_parks_ever_longer_and_work_starts_it_over() {
        let mut backoff = Backoff::new(POLICY);
        let turns: Vec<Idle> = (0..100_000).map(|_| backoff.idle()).collect();
        assert_eq!(turns[0], Idle::Spin);
        assert_eq!(turns[100], Idle::Yield);
        assert_eq!(turns[110], Idle::Park(POLICY.park_shortest));
        assert_eq!(turns.last(), Some(&Idle::Park(POLICY.park_longest)));
        backoff.reset();
        assert_eq!(backoff.idle(), Idle::Spin);
    }
}
