//! The text forms of `google.protobuf.Duration` and `google.protobuf.Timestamp`.

use serde_json::Value;

const NANOS_PER_SECOND: i128 = 1_000_000_000;
/// About 10,000 years: the range that protobuf gives to durations.
const MAX_DURATION_SECONDS: i128 = 315_576_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z: the range that protobuf gives to timestamps.
const TIMESTAMPS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Seconds and nanoseconds of `"0.25s"`, or of a plain number of seconds. Both parts have the same sign.
pub(super) fn parse_duration(value: &Value) -> Option<(i64, i32)> {
    let nanos = match value {
        Value::String(text) => decimal_nanos(text.strip_suffix('s')?)?,
        // The shortest text of a number is what its author wrote.
        Value::Number(number) => decimal_nanos(&number.to_string())?,
        _ => return None,
    };
    if nanos.abs() > MAX_DURATION_SECONDS * NANOS_PER_SECOND {
        return None;
    }
    Some(((nanos / NANOS_PER_SECOND) as i64, (nanos % NANOS_PER_SECOND) as i32))
}

/// `text` times 10^9; at most nine decimals.
fn decimal_nanos(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    if whole.len() > 12 || fraction.len() > 9 {
        return None;
    }
    let nanos: i128 = format!("{whole}{fraction:0<9}").parse().ok()?;
    Some(if negative { -nanos } else { nanos })
}

pub(super) fn format_duration(seconds: i64, nanos: i32) -> String {
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    format!("{sign}{}{}s", seconds.unsigned_abs(), format_fraction(nanos.unsigned_abs()))
}

/// Nothing, or a point and 3, 6 or 9 digits.
fn format_fraction(nanos: u32) -> String {
    match nanos {
        0 => String::new(),
        _ if nanos.is_multiple_of(1_000_000) => format!(".{:03}", nanos / 1_000_000),
        _ if nanos.is_multiple_of(1_000) => format!(".{:06}", nanos / 1_000),
        _ => format!(".{nanos:09}"),
    }
}

/// Unix seconds and nanoseconds of RFC 3339 text.
pub(super) fn parse_timestamp(text: &str) -> Option<(i64, i32)> {
    let (date, time) = text.split_at_checked(10)?;
    let mut date = date.splitn(3, '-').map(|part| digits(part, if part.len() == 4 { 4 } else { 2 }));
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let time = time.strip_prefix(['T', 't'])?;
    let (clock, rest) = time.split_at_checked(8)?;
    let mut clock = clock.splitn(3, ':').map(|part| digits(part, 2));
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let zone_at = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
    let (fraction, zone) = rest.split_at(zone_at);
    let nanos = match fraction.strip_prefix('.') {
        Some(decimals) if (1..=9).contains(&decimals.len()) => format!("{decimals:0<9}").parse().ok()?,
        None if fraction.is_empty() => 0,
        _ => return None,
    };
    let is_real = (1..=12).contains(&month) && (1..=days_in_month(year, month)).contains(&day);
    if !is_real || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let local = days_from_civil(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second;
    let seconds = local - zone_offset(zone)?;
    TIMESTAMPS.contains(&seconds).then_some((seconds, nanos))
}

fn digits(text: &str, count: usize) -> Option<i64> {
    let is_number = text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// Seconds east of Greenwich.
fn zone_offset(zone: &str) -> Option<i64> {
    if zone == "Z" || zone == "z" {
        return Some(0);
    }
    let (sign, rest) = match zone.strip_prefix('+') {
        Some(rest) => (1, rest),
        None => (-1, zone.strip_prefix('-')?),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// RFC 3339 text in UTC.
pub(super) fn format_timestamp(seconds: i64, nanos: i32) -> String {
    let (year, month, day) = civil_from_days(seconds.div_euclid(SECONDS_PER_DAY));
    let second = seconds.rem_euclid(SECONDS_PER_DAY);
    let fraction = format_fraction(nanos.unsigned_abs());
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}{fraction}Z", second / 3600, second / 60 % 60, second % 60)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the Gregorian calendar. Years are counted from March, so that the leap day comes last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days.saturating_add(719_468);
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations_are_text_with_a_unit_or_plain_seconds() {
        for (value, expected) in [
            (json!("0.25s"), (0, 250_000_000)),
            (json!("-1.5s"), (-1, -500_000_000)),
            (json!("10s"), (10, 0)),
            (json!(".5s"), (0, 500_000_000)),
            (json!(5), (5, 0)),
            (json!(0.25), (0, 250_000_000)),
            (json!("315576000000s"), (315_576_000_000, 0)),
        ] {
            assert_eq!(parse_duration(&value), Some(expected), "{value}");
        }
        for bad in ["5", "5ms", "s", "1.0000000001s", "1e3s", "- 1s", "--1s", "315576000001s", "\u{663}s"] {
            assert_eq!(parse_duration(&json!(bad)), None, "{bad}");
        }
    }

    #[test]
    fn durations_show_three_six_or_nine_decimals() {
        assert_eq!(format_duration(1, 500_000_000), "1.500s");
        assert_eq!(format_duration(0, -1_000), "-0.000001s");
        assert_eq!(format_duration(3, 1), "3.000000001s");
        assert_eq!(format_duration(-7, 0), "-7s");
    }

    #[test]
    fn timestamps_go_both_ways() {
        for (text, seconds, nanos) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2024-02-29T23:59:59.123Z", 1_709_251_199, 123_000_000),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0),
            ("9999-12-31T23:59:59.999999999Z", 253_402_300_799, 999_999_999),
        ] {
            assert_eq!(parse_timestamp(text), Some((seconds, nanos)), "{text}");
            assert_eq!(format_timestamp(seconds, nanos), text);
        }
        assert_eq!(parse_timestamp("1970-01-01T02:00:00+02:00"), Some((0, 0)));
        for bad in [
            "",
            "1970-01-01",
            "1970-02-29T00:00:00Z",
            "1970-01-01T24:00:00Z",
            "1970-01-01T00:00:00",
            "é970-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_timestamp(bad), None, "{bad}");
        }
    }
}
