//! Durations and timestamps of expressions.
//!
//! Owns their text and their parts. Never reads a clock; knows no names of time zones.

use outrigger_config::cel::TimePart;

use super::value::Value;

const SECOND: i128 = 1_000_000_000;
const DAY: i64 = 86_400;
/// 0001-01-01 and 9999-12-31, in seconds since 1970.
const FIRST: i128 = -62_135_596_800;
const LAST: i128 = 253_402_300_799;
/// 10,000 years.
const LONGEST: i128 = 315_576_000_000 * SECOND;

/// The value, if it is in the range of its type.
pub(super) fn checked(value: Value<'static>) -> Option<Value<'static>> {
    let fits = match value {
        Value::Timestamp(at) => (FIRST * SECOND..(LAST + 1) * SECOND).contains(&at),
        Value::Duration(length) => length.abs() <= LONGEST,
        _ => true,
    };
    fits.then_some(value)
}

/// `1h30m`, `-1.5s`, `100ms`.
pub(super) fn duration(text: &str) -> Option<i128> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, tail) = rest.split_at(end);
        let (unit, length) = match tail.as_bytes() {
            [b'n', b's', ..] => (1, 2),
            [b'u', b's', ..] => (1_000, 2),
            [b'm', b's', ..] => (1_000_000, 2),
            [b's', ..] => (SECOND, 1),
            [b'm', ..] => (60 * SECOND, 1),
            [b'h', ..] => (3_600 * SECOND, 1),
            _ => return None,
        };
        total = total.checked_add(scaled(number, unit)?)?;
        rest = &tail[length..];
    }
    Some(sign * total).filter(|length| length.abs() <= LONGEST)
}

/// A decimal number times a unit, cut to whole nanoseconds.
fn scaled(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || whole.len() > 15 || fraction.len() > 18 {
        return None;
    }
    let parsed = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<i128>().ok() };
    let of_fraction = parsed(fraction)? * unit / 10i128.pow(u32::try_from(fraction.len()).ok()?);
    parsed(whole)?.checked_mul(unit)?.checked_add(of_fraction)
}

/// RFC 3339.
pub(super) fn timestamp(text: &str) -> Option<i128> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let sign = |at: usize, wanted: &[u8]| text.as_bytes().get(at).is_some_and(|byte| wanted.contains(byte));
    if !(sign(4, b"-") && sign(7, b"-") && sign(10, b"Tt") && sign(13, b":") && sign(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 60;
    if !in_range || civil(days(year, month, day)) != (year, month, day) {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanoseconds = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction.find(|c: char| !c.is_ascii_digit())?;
        nanoseconds = scaled(&format!("0.{}", &fraction[..end]), SECOND).filter(|_| end > 0)?;
        rest = &fraction[end..];
    }
    let zone = if matches!(rest, "Z" | "z") { 0 } else { offset(rest)? };
    let seconds = days(year, month, day) * DAY + hour * 3_600 + minute * 60 + second - zone;
    let at = i128::from(seconds) * SECOND + nanoseconds;
    checked(Value::Timestamp(at)).map(|_| at)
}

/// Seconds of `+02:00`, `-02:00` or `02:00`; `UTC` is 0.
pub(super) fn offset(text: &str) -> Option<i64> {
    if matches!(text, "UTC" | "GMT" | "") {
        return Some(0);
    }
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes): (i64, i64) = (hours.parse().ok()?, minutes.parse().ok()?);
    ((0..24).contains(&hours) && (0..60).contains(&minutes)).then_some(sign * (hours * 3_600 + minutes * 60))
}

/// A part of a timestamp in a zone, or of a duration.
pub(super) fn part(part: TimePart, value: &Value<'_>, zone: i64) -> Option<i64> {
    let at = match value {
        Value::Duration(length) => {
            let unit = match part {
                TimePart::Hours => 3_600 * SECOND,
                TimePart::Minutes => 60 * SECOND,
                TimePart::Seconds => SECOND,
                TimePart::Milliseconds => return i64::try_from(length % SECOND / 1_000_000).ok(),
                _ => return None,
            };
            return i64::try_from(length / unit).ok();
        }
        Value::Timestamp(at) => *at,
        _ => return None,
    };
    let seconds = i64::try_from(at.div_euclid(SECOND)).ok()? + zone;
    let (day, of_day) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, date) = civil(day);
    Some(match part {
        TimePart::FullYear => year,
        TimePart::Month => month - 1,
        TimePart::DayOfMonth => date - 1,
        TimePart::Date => date,
        // 1970 began on a Thursday.
        TimePart::DayOfWeek => (day + 4).rem_euclid(7),
        TimePart::DayOfYear => day - days(year, 1, 1),
        TimePart::Hours => of_day / 3_600,
        TimePart::Minutes => of_day / 60 % 60,
        TimePart::Seconds => of_day % 60,
        TimePart::Milliseconds => i64::try_from(at.rem_euclid(SECOND) / 1_000_000).ok()?,
    })
}

/// Days since 1970. Years are counted from March, so that a leap day is the last one, and repeat after 400.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Year, month and day of days since 1970.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, of_year - (153 * from_march + 2) / 5 + 1)
}
