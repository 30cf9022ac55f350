//! Times in ISO 8601 that both Elixir's `DateTime.from_iso8601` and Postgres' `timestamptz` read:
//! `YYYY-MM-DDTHH:MM:SS[.fraction]` and `Z` or `±HH:MM`.

/// A second in microseconds.
const SECOND: i64 = 1_000_000;

/// The number of days from 0001-01-01 to 2000-01-01.
const EPOCH: i64 = 730_119;

/// The years 1 to 9999 in UTC, in microseconds since 2000-01-01. Elixir or Postgres fails on other
/// years.
const RANGE: std::ops::Range<i64> = -EPOCH * 86_400 * SECOND..(3_652_059 - EPOCH) * 86_400 * SECOND;

/// Returns whether both programs read a time, which is in microseconds since 2000-01-01 UTC.
pub fn is_readable(micros: i64) -> bool {
    RANGE.contains(&micros)
}

/// Returns the time in microseconds since 2000-01-01 UTC, or `None` if the text is no time or has
/// no offset.
pub fn micros(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let mark = |at: usize, wanted: &[u8]| text.as_bytes().get(at).is_some_and(|b| wanted.contains(b));
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let marked = mark(4, b"-") && mark(7, b"-") && mark(10, b"T ") && mark(13, b":") && mark(16, b":");
    if !(marked && hour < 24 && minute < 60 && second < 60) {
        return None;
    }
    let (fraction, zone) = match text[19..].strip_prefix('.') {
        Some(rest) => fraction(rest)?,
        None => (0, &text[19..]),
    };
    let minutes = hour * 60 + minute - offset(zone)?;
    let micros = ((days(year, month, day)? * 24 * 60 + minutes) * 60 + second) * SECOND + fraction;
    is_readable(micros).then_some(micros)
}

/// Reads one to nine digits at the beginning of `text`. Returns the fraction of a second, rounded
/// to microseconds, and the text behind the digits. `None`: there are no digits, or more than nine.
fn fraction(text: &str) -> Option<(i64, &str)> {
    let len = text.bytes().take_while(u8::is_ascii_digit).count();
    if !(1..=9).contains(&len) {
        return None;
    }
    let nanos = text[..len].parse::<i64>().ok()? * 10_i64.pow(9 - len as u32);
    Some(((nanos + 500) / 1_000, &text[len..]))
}

/// Returns the offset of a time zone in minutes, or `None`. Postgres reads offsets up to 15:59,
/// other readers fewer, so the greatest offset here is 14:59. Elixir does not read -00:00.
fn offset(zone: &str) -> Option<i64> {
    match zone.as_bytes() {
        b"Z" => Some(0),
        b"-00:00" => None,
        [sign @ (b'+' | b'-'), a, b, b':', c, d] if [a, b, c, d].iter().all(|d| d.is_ascii_digit()) => {
            let two = |tens: &u8, ones: &u8| i64::from(tens - b'0') * 10 + i64::from(ones - b'0');
            let (hours, minutes) = (two(a, b), two(c, d));
            let sign = if *sign == b'-' { -1 } else { 1 };
            (hours < 15 && minutes < 60).then_some(sign * (hours * 60 + minutes))
        }
        _ => None,
    }
}

/// Returns the days since 2000-01-01 of a date of the Gregorian calendar, or `None` if there is no
/// such date.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let in_month = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1 || !(1..=in_month).contains(&day) {
        return None;
    }
    let years = year - 1;
    let leaps = years / 4 - years / 100 + years / 400 + i64::from(leap && month > 2);
    Some(years * 365 + leaps + BEFORE[month as usize - 1] + day - 1 - EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn instants_as_postgres_counts_them() {
        // SELECT (extract(epoch FROM t) - 946684800) * 1000000
        for (text, wanted) in [
            ("2000-01-01T00:00:00Z", 0),
            ("1999-12-31T23:59:59.999999Z", -1),
            ("2026-01-31T12:00:00.5+02:00", 823_168_800_500_000),
            ("0001-01-01T00:00:00Z", -63_082_281_600_000_000),
            ("9999-12-31T23:59:59.999999Z", 252_455_615_999_999_999),
            ("2024-02-29T00:00:00-14:59", 762_533_940_000_000),
        ] {
            assert_eq!(micros(text), Some(wanted), "{text}");
        }
    }

    #[test]
    fn times_with_an_offset_and_only_they() {
        for good in ["2024-02-29T23:59:59Z", "2026-01-31 12:00:00.5+02:00", "0001-01-01T00:00:00-14:59"] {
            assert!(micros(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "2026",
            "2023-02-29T00:00:00Z",
            "2026-01-31T12:00:00-00:00",
            "0001-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59.9999995Z",
            "9999-12-31T23:59:59-00:01",
            "2026-13-01T00:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:00:60Z",
            "2026-01-31T12:00:00",
            "2026-01-31T12:00:00.Z",
            "0000-01-01T00:00:00Z",
            "2026-01-31T12:00:00+2:00",
            "2026-01-31T12:00:00+15:00",
            "2026-01-31T12:00:00+02:60",
            "2026-01-31T12:00:00Zjunk",
            "+026-01-31T12:00:00Z",
            "２026-01-31T12:00:00Z",
        ] {
            assert!(micros(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn time_never_panics(text in any::<String>()) {
            micros(&text);
        }
    }
}
