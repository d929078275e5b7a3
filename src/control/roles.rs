//! Who is master, and which machines are dead: decided by Redis' clock, since machines' own may be off.

use crate::control::registry::{Machine, Registry};
use crate::error::Result;
use crate::limits;
use crate::settings::Role;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The role to take: the one asked for, else master if nobody alive is.
pub fn choose(registry: &mut Registry, host: &str, asked_for: Option<Role>) -> Result<Role> {
    let now_ns = registry.time_ns()?;
    let machines = registry.machines()?;
    let other = machines.iter().find(|machine| is_other_master(machine, host, now_ns));
    match (asked_for, other) {
        (Some(Role::Minion), _) => Ok(Role::Minion),
        (None, Some(_)) => Ok(Role::Minion),
        (Some(Role::Master), other) => {
            let ours = registry.lease_master(host)?;
            if let Some(other) = other {
                crate::warn!(
                    "two masters: {} is master as well; give one of them --role minion",
                    other.hostname
                );
            } else if !ours {
                crate::warn!(
                    "two masters: another machine holds the master's lease; give one of them --role minion"
                );
            }
            Ok(Role::Master)
        }
        // Two nodes that start together both find no master: the lease decides.
        (None, None) if registry.lease_master(host)? => {
            crate::warn!("Redis knows no live master: this machine becomes master");
            Ok(Role::Master)
        }
        (None, None) => Ok(Role::Minion),
    }
}

/// The role that [`choose`] would give now: for a daemon that does not stand in the registry yet.
pub fn expected(registry: &mut Registry, host: &str, asked_for: Option<Role>) -> Result<Role> {
    if let Some(role) = asked_for {
        return Ok(role);
    }
    let now_ns = registry.time_ns()?;
    let other = registry.machines()?.into_iter().any(|machine| is_other_master(&machine, host, now_ns));
    Ok(if other { Role::Minion } else { Role::Master })
}

fn is_other_master(machine: &Machine, host: &str, now_ns: i64) -> bool {
    machine.hostname != host
        && machine.role.as_deref() == Some(Role::Master.name())
        && age(machine, now_ns).is_some_and(|age| age < limits::MACHINE_TTL)
}

/// How old a machine's heartbeat is by this clock; `None` if it has none that makes sense. One in the future is new.
fn age(machine: &Machine, now_ns: i64) -> Option<Duration> {
    machine.last_connect_ns().map(|at| Duration::from_nanos(now_ns.saturating_sub(at).max(0) as u64))
}

/// The machines of this list whose heartbeat is older than `ttl`, or makes no sense.
pub fn older_than(machines: &[Machine], now_ns: i64, ttl: Duration) -> Vec<String> {
    let old = |machine: &&Machine| age(machine, now_ns).is_none_or(|age| age > ttl);
    machines.iter().filter(old).map(|machine| machine.hostname.clone()).collect()
}

/// Watches heartbeats change. A machine whose clock is off writes times that say nothing of its age, but they change
/// while it lives.
#[derive(Default)]
pub struct Watch {
    seen: BTreeMap<String, Seen>,
}

struct Seen {
    last_connect: Option<String>,
    first_seen: Instant,
    changed_at: Option<Instant>,
}

impl Watch {
    /// Takes note of what stands in the registry now.
    pub fn observe(&mut self, machines: &[Machine], now: Instant) {
        self.seen.retain(|host, _| machines.iter().any(|machine| machine.hostname == *host));
        for machine in machines {
            let seen = self.seen.entry(machine.hostname.clone()).or_insert_with(|| Seen {
                last_connect: machine.last_connect.clone(),
                first_seen: now,
                changed_at: None,
            });
            if seen.last_connect != machine.last_connect {
                seen.last_connect = machine.last_connect.clone();
                seen.changed_at = Some(now);
            }
        }
    }

    /// The machines that are dead: their heartbeat is old by Redis' clock and was not seen to change lately, or it
    /// has not changed for that long under our eyes, whatever it says.
    pub fn dead(&self, machines: &[Machine], now: Instant, redis_now_ns: i64, ttl: Duration) -> Vec<String> {
        let old = older_than(machines, redis_now_ns, ttl);
        let is_dead = |host: &String| {
            let Some(seen) = self.seen.get(host) else { return false };
            let still_since = now.duration_since(seen.changed_at.unwrap_or(seen.first_seen));
            let changed_lately = seen.changed_at.is_some_and(|at| now.duration_since(at) <= ttl);
            still_since > ttl || (old.contains(host) && !changed_lately)
        };
        machines.iter().map(|machine| machine.hostname.clone()).filter(is_dead).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::time;

    const SECOND_NS: i64 = 1_000_000_000;
    const TTL: Duration = Duration::from_secs(120);

    fn machine(at_s: i64) -> Vec<Machine> {
        let last_connect = Some(time::format(at_s * SECOND_NS));
        vec![Machine { hostname: "m".into(), last_connect, ..Machine::default() }]
    }

    #[test]
    fn a_machine_that_went_silent_is_dead_and_a_beating_one_is_not() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        watch.observe(&machine(1_000), start);
        assert!(watch.dead(&machine(1_000), start, 1_100 * SECOND_NS, TTL).is_empty());
        assert_eq!(watch.dead(&machine(1_000), start, 1_121 * SECOND_NS, TTL), ["m"]);
    }

    #[test]
    fn a_machine_whose_clock_is_ten_minutes_late_lives_while_its_heartbeat_changes() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        watch.observe(&machine(1_000), start);
        watch.observe(&machine(1_030), start + Duration::from_secs(30));
        let now = start + Duration::from_secs(60);
        assert!(watch.dead(&machine(1_030), now, 1_660 * SECOND_NS, TTL).is_empty());
        let later = start + Duration::from_secs(200);
        assert_eq!(watch.dead(&machine(1_030), later, 1_800 * SECOND_NS, TTL), ["m"]);
    }

    #[test]
    fn a_machine_whose_clock_is_ten_minutes_early_is_dead_when_its_heartbeat_stands_still() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        watch.observe(&machine(1_600), start);
        let now = start + Duration::from_secs(121);
        assert_eq!(watch.dead(&machine(1_600), now, 1_121 * SECOND_NS, TTL), ["m"]);
    }

    #[test]
    fn a_heartbeat_that_makes_no_sense_is_old() {
        let garbage =
            vec![Machine { hostname: "m".into(), last_connect: Some("soon".into()), ..Machine::default() }];
        assert_eq!(older_than(&garbage, 0, TTL), ["m"]);
    }
}
