//! How two machines' clocks are compared: each measures how far Redis' clock is ahead of its own, and says so in the
//! registry (key `clock`).

use serde_json::{Value, json};

/// How far Redis' clock is ahead of this machine's: what two machines' clocks are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ClockOffset {
    pub offset_ns: i64,
    /// Half the round trip that it was asked with: Redis may have answered at either end of it.
    pub error_ns: i64,
}

impl ClockOffset {
    /// Reads the key `clock`.
    pub fn parse(text: &str) -> Result<ClockOffset, String> {
        let value = serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
        let numbers: Option<[f64; 2]> = match &value {
            Value::Array(pair) => pair
                .iter()
                .map(Value::as_f64)
                .collect::<Option<Vec<_>>>()
                .and_then(|numbers| numbers.try_into().ok()),
            _ => None,
        };
        let [offset_us, error_us] =
            numbers.filter(|[_, error_us]| *error_us >= 0.0).ok_or("it is no pair of numbers")?;
        // A cast of what is too large gives the largest there is.
        Ok(ClockOffset { offset_ns: (offset_us * 1e3) as i64, error_ns: (error_us * 1e3) as i64 })
    }

    /// The value of the key `clock`: offset and its error, in microseconds.
    pub fn to_text(self) -> String {
        json!([self.offset_ns as f64 / 1e3, self.error_ns as f64 / 1e3]).to_string()
    }

    /// From a question that left at one time of ours and was answered at another.
    pub fn from_answer(asked_ns: i64, redis_ns: i64, answered_ns: i64) -> ClockOffset {
        let error_ns = answered_ns.saturating_sub(asked_ns).max(0) / 2 + 1_000; // Redis counts in microseconds
        let middle_ns = asked_ns.saturating_add(answered_ns.saturating_sub(asked_ns) / 2);
        ClockOffset { offset_ns: redis_ns.saturating_sub(middle_ns), error_ns }
    }

    /// How far the clock of the machine that has `theirs` is ahead of that of the one that has `self`.
    pub fn ahead_of_us(&self, theirs: &ClockOffset) -> ClockOffset {
        ClockOffset {
            offset_ns: self.offset_ns.saturating_sub(theirs.offset_ns),
            error_ns: self.error_ns.saturating_add(theirs.error_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_offsets_to_redis_give_that_between_two_machines() {
        // Redis is 5 s ahead of us and 2 s ahead of the owner: the owner's clock is 3 s ahead of ours.
        let ours = ClockOffset::from_answer(1_000_000_000, 6_000_050_000, 1_000_100_000);
        assert_eq!(ours, ClockOffset { offset_ns: 5_000_000_000, error_ns: 51_000 });
        let theirs = ClockOffset { offset_ns: 2_000_000_000, error_ns: 9_000 };
        assert_eq!(ours.ahead_of_us(&theirs), ClockOffset { offset_ns: 3_000_000_000, error_ns: 60_000 });
        assert_eq!(ClockOffset::parse(&ours.to_text()), Ok(ours));
    }

    #[test]
    fn garbage_is_no_offset() {
        for bad in ["", "[]", "[1]", "[1, 2, 3]", "[1, -2]", "[1, null]", "{}", "5"] {
            assert!(ClockOffset::parse(bad).is_err(), "{bad}");
        }
    }
}
