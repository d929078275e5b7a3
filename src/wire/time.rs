//! Times in the registry: ISO-8601 UTC as Python's `datetime.isoformat` writes it and `fromisoformat` reads it.

const NS: i64 = 1_000_000_000;

/// `2026-04-27T14:37:28.123456+00:00` for nanoseconds since 1970 (UTC). Always with microseconds.
pub fn format(time_ns: i64) -> String {
    let seconds = time_ns.div_euclid(NS);
    let micros = time_ns.rem_euclid(NS) / 1_000;
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let rest = seconds.rem_euclid(86_400);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{micros:06}+00:00",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Nanoseconds since 1970 of such a time; with or without fraction, with `Z`, an offset or none (then UTC).
pub fn parse(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = bytes.get(from..to)?;
        digits.iter().try_fold(0i64, |n, c| c.is_ascii_digit().then(|| n * 10 + i64::from(c - b'0')))
    };
    let at = |position: usize, wanted: &[u8]| bytes.get(position).is_some_and(|c| wanted.contains(c));
    if !(at(4, b"-") && at(7, b"-") && at(10, b"T ") && at(13, b":") && at(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut fraction_ns = 0i64;
    if let Some(tail) = rest.strip_prefix('.') {
        let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > 9 {
            return None;
        }
        fraction_ns = tail.get(..digits)?.parse::<i64>().ok()? * 10i64.pow(9 - digits as u32);
        rest = tail.get(digits..)?;
    }
    let offset = match rest {
        "" | "Z" => 0,
        _ => {
            let sign = match rest.as_bytes().first()? {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            let (hours, minutes) = rest.get(1..)?.split_once(':')?;
            if hours.len() != 2 || minutes.len() != 2 {
                return None;
            }
            sign * (i64::from(hours.parse::<u8>().ok()?) * 3600 + i64::from(minutes.parse::<u8>().ok()?) * 60)
        }
    };
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    seconds.checked_mul(NS)?.checked_add(fraction_ns)
}

/// Days since 1970 of a date of the Gregorian calendar. The year begins in March, so that the leap day is its last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The date of a day since 1970: [`days`] read backwards.
fn civil(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted_month + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pythons_forms_are_read() {
        let expected = 1_777_300_648_123_456_000;
        assert_eq!(parse("2026-04-27T14:37:28.123456+00:00"), Some(expected));
        assert_eq!(parse("2026-04-27T14:37:28.123456"), Some(expected));
        assert_eq!(parse("2026-04-27T16:37:28.123456+02:00"), Some(expected));
        assert_eq!(parse("2026-04-27T14:37:28+00:00"), Some(expected / NS * NS));
        assert_eq!(parse("2026-04-27T14:37:28Z"), Some(expected / NS * NS));
        assert_eq!(format(expected), "2026-04-27T14:37:28.123456+00:00");
        assert_eq!(format(0), "1970-01-01T00:00:00.000000+00:00");
        assert_eq!(parse("2024-02-29T00:00:00+00:00"), Some(1_709_164_800 * NS));
    }

    #[test]
    fn garbage_is_no_time() {
        for bad in [
            "",
            "yesterday",
            "2026-13-01T00:00:00",
            "2026-04-27T14:37:28.",
            "2026-04-27T14:37:28+2:00",
            "2026-04-27T14:37:28.1234567890+00:00",
            "2026-04-27T14:37:2é",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_to_the_microsecond(time_us in -9_000_000_000_000_000i64..9_000_000_000_000_000) {
            prop_assert_eq!(parse(&format(time_us * 1_000)), Some(time_us * 1_000));
        }
    }
}
