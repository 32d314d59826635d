//! Points of time and durations as text.
//!
//! Owns RFC 3339 in the form of `google.protobuf.Timestamp`, and the seconds of `google.protobuf.Duration`. Never knows
//! a clock.

/// Seconds, and nanoseconds that are added to them.
pub(super) type Parts = (i64, i32);

/// `2024-02-29T12:00:00.5+01:00`; seconds since 1970.
pub(super) fn read_timestamp(text: &str) -> Option<Parts> {
    let (date, rest) = text.split_at_checked(19)?;
    let bytes = date.as_bytes();
    let punctuated =
        bytes[4] == b'-' && bytes[7] == b'-' && bytes[10] == b'T' && bytes[13] == b':' && bytes[16] == b':';
    let number = |from: usize, to: usize| digits(date.get(from..to)?);
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let fits = punctuated && year >= 1 && (1..=12).contains(&month) && hour < 24 && minute < 60 && second < 60;
    if !fits || day < 1 || day > days_in(year, month) {
        return None;
    }
    let (nanos, zone) = match rest.strip_prefix('.') {
        Some(rest) => {
            let length = rest.find(|character: char| !character.is_ascii_digit())?;
            (fraction(&rest[..length])?, &rest[length..])
        }
        None => (0, rest),
    };
    let local = days_before(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
    let seconds = local - offset(zone)?;
    (MIN_SECONDS..=MAX_SECONDS).contains(&seconds).then_some((seconds, nanos))
}

/// Whether a point of time ends with what says where it is meant.
pub(super) fn has_zone(text: &str) -> bool {
    let length = if text.ends_with('Z') { 1 } else { "+00:00".len() };
    text.len().checked_sub(length).and_then(|at| text.get(at..)).and_then(offset).is_some()
}

/// Seconds east of Greenwich.
fn offset(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let sign = if zone.starts_with('+') { 1 } else { -1 };
    let rest = zone.strip_prefix(['+', '-'])?;
    let (hour, minute) = rest.split_once(':')?;
    let two = |text: &str| digits(text).filter(|_| text.len() == 2);
    let (hour, minute) = (two(hour)?, two(minute)?);
    (hour < 24 && minute < 60).then_some(sign * (hour * 3600 + minute * 60))
}

/// Writes it; `None` if it is outside of the years 1 to 9999.
pub(super) fn timestamp((seconds, nanos): Parts) -> Option<String> {
    if !(MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
        return None;
    }
    let (days, rest) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = date(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{}Z", fraction_text(nanos)))
}

/// `-1.5s`.
pub(super) fn read_duration(text: &str) -> Result<Parts, &'static str> {
    let Some(text) = text.strip_suffix('s') else { return Err("Illegal duration format; duration must end with 's'") };
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let (whole, part) = text.rsplit_once('.').unwrap_or((text, ""));
    let seconds: u64 = whole.parse().map_err(|_| "Invalid duration format, failed to parse seconds")?;
    let nanos = if part.is_empty() { Some(0) } else { fraction(part) };
    let nanos = nanos.ok_or(match digits(part) {
        Some(_) => "Duration value exceeds limits",
        None => "Invalid duration format, failed to parse nano seconds",
    })?;
    match i64::try_from(seconds) {
        Ok(seconds) if seconds <= MAX_DURATION => Ok((sign * seconds, sign as i32 * nanos)),
        _ => Err("Duration value exceeds limits"),
    }
}

/// Writes it.
pub(super) fn duration((seconds, nanos): Parts) -> Result<String, &'static str> {
    if seconds.abs() > MAX_WRITTEN_DURATION || nanos.abs() >= SECOND {
        return Err("duration out of range");
    }
    if seconds != 0 && nanos != 0 && (seconds < 0) != (nanos < 0) {
        return Err("nanos and seconds signs do not match");
    }
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    Ok(format!("{sign}{}{}s", seconds.abs(), fraction_text(nanos.abs())))
}

/// A point with three, six or nine digits; nothing for zero.
fn fraction_text(nanos: i32) -> String {
    match nanos.abs() {
        0 => String::new(),
        nanos if nanos % 1_000_000 == 0 => format!(".{:03}", nanos / 1_000_000),
        nanos if nanos % 1_000 == 0 => format!(".{:06}", nanos / 1_000),
        nanos => format!(".{nanos:09}"),
    }
}

/// Nanoseconds of digits after a point, of which there are nine at most.
fn fraction(text: &str) -> Option<i32> {
    let value = digits(text).filter(|_| text.len() <= 9)?;
    let scale = 10i64.pow(9 - u32::try_from(text.len()).ok()?);
    i32::try_from(value * scale).ok()
}

fn digits(text: &str) -> Option<i64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date. The year begins in March, so that the leap day is its last.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    era * ERA + of_era * 365 + of_era / 4 - of_era / 100 + of_year - EPOCH
}

/// The date that is so many days after 1970-01-01.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + EPOCH;
    let era = days.div_euclid(ERA);
    let of_era = days.rem_euclid(ERA);
    let year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

const DAY: i64 = 86_400;
const SECOND: i32 = 1_000_000_000;
/// Days of 400 years.
const ERA: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: i64 = 719_468;
/// 0001-01-01T00:00:00Z.
const MIN_SECONDS: i64 = -62_135_596_800;
/// 9999-12-31T23:59:59Z.
const MAX_SECONDS: i64 = 253_402_300_799;
/// Source: `google/protobuf/duration.proto`.
const MAX_DURATION: i64 = 315_576_000_000;
/// 10,000 years without leap seconds.
const MAX_WRITTEN_DURATION: i64 = 3_652_500 * DAY;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, parts, written) in [
            ("1970-01-01T00:00:00Z", (0, 0), "1970-01-01T00:00:00Z"),
            ("2024-02-29T12:00:00.5+01:00", (1_709_204_400, 500_000_000), "2024-02-29T11:00:00.500Z"),
            ("0001-01-01T00:00:00.000001Z", (MIN_SECONDS, 1_000), "0001-01-01T00:00:00.000001Z"),
            ("9999-12-31T23:59:59.999999999Z", (MAX_SECONDS, 999_999_999), "9999-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(read_timestamp(text), Some(parts), "{text}");
            assert_eq!(timestamp(parts).as_deref(), Some(written));
        }
        for text in [
            "",
            "2024-02-30T00:00:00Z",
            "2024-01-01 00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00.1234567890Z",
            "2024-01-01T00:00:00+1:00",
            "2024-01-0éT00:00:00Z",
            "0001-01-01T00:00:00+00:01",
        ] {
            assert_eq!(read_timestamp(text), None, "{text}");
        }
        assert_eq!(timestamp((MAX_SECONDS + 1, 0)), None);
    }

    #[test]
    fn durations_are_read_and_written() {
        for (text, parts, written) in [
            ("1s", (1, 0), "1s"),
            ("-1.5s", (-1, -500_000_000), "-1.500s"),
            ("0.000000001s", (0, 1), "0.000000001s"),
            ("-0.25s", (0, -250_000_000), "-0.250s"),
            ("3.s", (3, 0), "3s"),
        ] {
            assert_eq!(read_duration(text), Ok(parts), "{text}");
            assert_eq!(duration(parts).as_deref(), Ok(written));
        }
        for (text, error) in [
            ("1", "Illegal duration format; duration must end with 's'"),
            ("xs", "Invalid duration format, failed to parse seconds"),
            ("1.xs", "Invalid duration format, failed to parse nano seconds"),
            ("1.0000000001s", "Duration value exceeds limits"),
            ("315576000001s", "Duration value exceeds limits"),
        ] {
            assert_eq!(read_duration(text), Err(error), "{text}");
        }
        assert!(duration((1, -1)).is_err() && duration((0, SECOND)).is_err());
    }

    proptest! {
        #[test]
        fn times_survive(seconds in MIN_SECONDS..=MAX_SECONDS, nanos in 0..SECOND) {
            let text = timestamp((seconds, nanos)).unwrap();
            prop_assert_eq!(read_timestamp(&text), Some((seconds, nanos)), "{}", text);
        }
    }
}
