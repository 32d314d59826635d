//! Dates as `%START_TIME(...)%` prints them.
//!
//! Owns the strftime subset and the calendar behind it, in UTC. Never reads a clock.

use std::time::{SystemTime, UNIX_EPOCH};

use super::number::{push, push_padded};

/// Writes `time` by `format`, or as `2026-11-21T01:43:55.049Z` without one.
///
/// Besides strftime's conversions there are `%3f`, `%6f`, `%9f` (as many digits of the fraction of the second, nine for
/// `%f`) and `%E3S` (seconds with a fraction). A conversion that is not known is written as it stands.
pub(super) fn write(format: Option<&str>, time: SystemTime, out: &mut Vec<u8>) {
    let time = Civil::of(time);
    let Some(format) = format else {
        time.date(b'-', out);
        out.push(b'T');
        time.clock(out);
        out.push(b'.');
        time.fraction(3, out);
        out.push(b'Z');
        return;
    };
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        out.extend_from_slice(&rest.as_bytes()[..start]);
        let directive = &rest[start + 1..];
        let used = time.directive(directive.as_bytes(), out);
        if used == 0 {
            out.push(b'%');
        }
        rest = &directive[used..];
    }
    out.extend_from_slice(rest.as_bytes());
}

/// A moment as calendar and clock in UTC.
struct Civil {
    year: i64,
    /// 1 to 12.
    month: u8,
    /// 1 to 31.
    day: u8,
    /// 1 to 366.
    day_of_year: u16,
    /// 0 is Sunday.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
    nanosecond: u32,
    /// Seconds since 1970.
    unix: u64,
}

impl Civil {
    /// Times before 1970 count as 1970: no stream can be that old.
    fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix = since.as_secs();
        let (days, second_of_day) = (unix / 86_400, unix % 86_400);
        // Years are counted from March, so that the leap day comes last; eras of 400 years repeat exactly.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_from_march + 2) / 153;
        let day = day_from_march - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        // March 1st is day 60, or 61 in leap years; January and February are the last 59 (60) days from March.
        let day_of_year = if month > 2 { day_from_march + 60 + u64::from(leap) } else { day_from_march - 305 };
        // All of these are small by construction.
        Self {
            year: year as i64,
            month: month as u8,
            day: day as u8,
            day_of_year: day_of_year as u16,
            weekday: ((days + 4) % 7) as u8,
            hour: (second_of_day / 3_600) as u8,
            minute: (second_of_day / 60 % 60) as u8,
            second: (second_of_day % 60) as u8,
            nanosecond: since.subsec_nanos(),
            unix,
        }
    }

    /// Writes what the conversion at the beginning of `directive` (without its `%`) stands for; returns its length, or 0
    /// if it is not known.
    fn directive(&self, directive: &[u8], out: &mut Vec<u8>) -> usize {
        match directive {
            [b'f', ..] => self.fraction(9, out),
            [digits @ b'1'..=b'9', b'f', ..] => {
                self.fraction(digits - b'0', out);
                return 2;
            }
            [b'E', digits @ b'1'..=b'9', b'f', ..] => {
                self.fraction(digits - b'0', out);
                return 3;
            }
            [b'E', digits @ b'1'..=b'9', b'S', ..] => {
                push_padded(u64::from(self.second), 2, b'0', out);
                out.push(b'.');
                self.fraction(digits - b'0', out);
                return 3;
            }
            [b'E', b'z', ..] => {
                out.extend_from_slice(b"+00:00");
                return 2;
            }
            [conversion, ..] => return self.conversion(*conversion, out),
            [] => return 0,
        }
        1
    }

    fn conversion(&self, conversion: u8, out: &mut Vec<u8>) -> usize {
        let hour12 = u64::from((self.hour + 11) % 12 + 1);
        let (month, weekday) = (MONTHS[usize::from(self.month - 1)], WEEKDAYS[usize::from(self.weekday)]);
        let two = |value: u8, out: &mut Vec<u8>| push_padded(u64::from(value), 2, b'0', out);
        match conversion {
            b'Y' => push(self.year as u64, out),
            b'C' => push_padded(self.year as u64 / 100, 2, b'0', out),
            b'y' => push_padded(self.year as u64 % 100, 2, b'0', out),
            b'm' => two(self.month, out),
            b'd' => two(self.day, out),
            b'e' => push_padded(u64::from(self.day), 2, b' ', out),
            b'j' => push_padded(u64::from(self.day_of_year), 3, b'0', out),
            b'H' => two(self.hour, out),
            b'k' => push_padded(u64::from(self.hour), 2, b' ', out),
            b'I' => push_padded(hour12, 2, b'0', out),
            b'l' => push_padded(hour12, 2, b' ', out),
            b'M' => two(self.minute, out),
            b'S' => two(self.second, out),
            b's' => push(self.unix, out),
            b'p' => out.extend_from_slice(if self.hour < 12 { b"AM" } else { b"PM" }),
            b'P' => out.extend_from_slice(if self.hour < 12 { b"am" } else { b"pm" }),
            b'a' => out.extend_from_slice(&weekday.as_bytes()[..3]),
            b'A' => out.extend_from_slice(weekday.as_bytes()),
            b'b' | b'h' => out.extend_from_slice(&month.as_bytes()[..3]),
            b'B' => out.extend_from_slice(month.as_bytes()),
            b'u' => push(if self.weekday == 0 { 7 } else { u64::from(self.weekday) }, out),
            b'w' => push(u64::from(self.weekday), out),
            b'T' => self.clock(out),
            b'R' => {
                two(self.hour, out);
                out.push(b':');
                two(self.minute, out);
            }
            b'F' => self.date(b'-', out),
            b'D' | b'x' => {
                two(self.month, out);
                out.push(b'/');
                two(self.day, out);
                out.push(b'/');
                push_padded(self.year as u64 % 100, 2, b'0', out);
            }
            b'X' => self.clock(out),
            b'c' => {
                out.extend_from_slice(&weekday.as_bytes()[..3]);
                out.push(b' ');
                out.extend_from_slice(&month.as_bytes()[..3]);
                out.push(b' ');
                push_padded(u64::from(self.day), 2, b' ', out);
                out.push(b' ');
                self.clock(out);
                out.push(b' ');
                push(self.year as u64, out);
            }
            b'z' => out.extend_from_slice(b"+0000"),
            b'Z' => out.extend_from_slice(b"UTC"),
            b't' => out.push(b'\t'),
            b'n' => out.push(b'\n'),
            b'%' => out.push(b'%'),
            _ => return 0,
        }
        1
    }

    fn date(&self, separator: u8, out: &mut Vec<u8>) {
        push_padded(self.year as u64, 4, b'0', out);
        out.push(separator);
        push_padded(u64::from(self.month), 2, b'0', out);
        out.push(separator);
        push_padded(u64::from(self.day), 2, b'0', out);
    }

    fn clock(&self, out: &mut Vec<u8>) {
        push_padded(u64::from(self.hour), 2, b'0', out);
        out.push(b':');
        push_padded(u64::from(self.minute), 2, b'0', out);
        out.push(b':');
        push_padded(u64::from(self.second), 2, b'0', out);
    }

    /// The first `digits` (1 to 9) digits of the fraction of the second, cut and not rounded.
    fn fraction(&self, digits: u8, out: &mut Vec<u8>) {
        let value = self.nanosecond / 10u32.pow(9 - u32::from(digits.min(9)));
        push_padded(u64::from(value), usize::from(digits), b'0', out);
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64, nanoseconds: u32, format: &str) -> String {
        let mut out = Vec::new();
        let format = if format.is_empty() { None } else { Some(format) };
        write(format, UNIX_EPOCH + Duration::new(seconds, nanoseconds), &mut out);
        String::from_utf8(out).unwrap()
    }

    // Conversions as Envoy 1.40 wrote them, some of them at another moment of that day. The lone `%` at the end of the last
    // one was not compared.
    #[test]
    fn formats_are_envoys() {
        for (format, expected) in [
            ("", "2026-11-21T01:43:55.049Z"),
            ("%s", "1795225435"),
            ("%s.%3f", "1795225435.049"),
            ("%Y/%m/%dT%H:%M:%S.%6f%z", "2026/11/21T01:43:55.049460+0000"),
            (
                "%9f|%f|%1f|%E3S|%j|%y|%a|%b|%e|%Z|%T|%F|%D|%p|%I",
                "049460000|049460000|0|55.049|325|26|Sat|Nov|21|UTC|01:43:55|2026-11-21|11/21/26|AM|01",
            ),
            (
                "%A %B %h %k %l %R %c|%u %w|%%|%q|%0f",
                "Saturday November Nov  1  1 01:43 Sat Nov 21 01:43:55 2026|6 6|%|%q|%0f",
            ),
            ("a%4fb%Ezc%", "a0494b+00:00c%"),
        ] {
            assert_eq!(at(1_795_225_435, 49_460_000, format), expected, "{format}");
        }
    }

    #[test]
    fn days_at_the_edges_of_years() {
        for (seconds, expected) in [
            (0, "1970-01-01 001 Thu"),
            (951_782_400, "2000-02-29 060 Tue"),
            (978_220_800, "2000-12-31 366 Sun"),
            (1_709_251_200, "2024-03-01 061 Fri"),
            (1_735_603_200, "2024-12-31 366 Tue"),
            (1_735_689_600, "2025-01-01 001 Wed"),
            (4_107_542_400, "2100-03-01 060 Mon"),
        ] {
            assert_eq!(at(seconds, 0, "%F %j %a"), expected);
        }
    }

    proptest! {
        #[test]
        fn any_format_is_written(format in "(%|E|[0-9]|[a-zA-Z]|\\PC){0,20}", seconds in 0u64..253_402_300_799) {
            let _ = at(seconds, 999_999_999, &format);
        }
    }
}
