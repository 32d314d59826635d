//! Dates as `%START_TIME(...)%` prints them.
//!
//! Owns the strftime subset. Never does calendar arithmetic, and never reads a clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::number::{push, push_padded};
use crate::calendar::Moment;

/// Writes `time` by `format`, or as `2026-11-21T01:43:55.049Z` without one.
///
/// Besides strftime's conversions there are `%3f`, `%6f`, `%9f` (as many digits of the fraction of the second, nine for
/// `%f`) and `%E3S` (seconds with a fraction). A conversion that is not known is written as it stands.
/// In the time zone of this machine if `local`, else in UTC.
pub(super) fn write(format: Option<&str>, time: SystemTime, local: bool, out: &mut Vec<u8>) {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let zone = if local { outrigger_sys::time_zone::offset_seconds(seconds) } else { 0 };
    let shift = Duration::from_secs(zone.unsigned_abs().into());
    let shown = if zone < 0 { time.checked_sub(shift) } else { time.checked_add(shift) }.unwrap_or(time);
    let time = Written { at: Moment::of(shown), seconds, zone };
    let Some(format) = format else {
        time.date(b'-', out);
        out.push(b'T');
        time.clock(out);
        out.push(b'.');
        time.fraction(3, out);
        if local {
            time.zone(true, out);
        } else {
            out.push(b'Z');
        }
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

/// A moment that is being written.
struct Written {
    at: Moment,
    /// Since 1970, wherever.
    seconds: u64,
    /// Seconds east of Greenwich.
    zone: i32,
}

impl Written {
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
                push_two(self.at.second, out);
                out.push(b'.');
                self.fraction(digits - b'0', out);
                return 3;
            }
            [b'E', b'z', ..] => {
                self.zone(true, out);
                return 2;
            }
            [conversion, ..] => return self.conversion(*conversion, out),
            [] => return 0,
        }
        1
    }

    fn conversion(&self, conversion: u8, out: &mut Vec<u8>) -> usize {
        let at = &self.at;
        let (month, weekday) = (at.month_name().as_bytes(), at.weekday_name().as_bytes());
        match conversion {
            b'Y' => push(at.year, out),
            b'C' => push_two(at.year / 100, out),
            b'y' => push_two(at.year % 100, out),
            b'm' => push_two(at.month, out),
            b'd' => push_two(at.day, out),
            b'e' => push_padded(at.day, 2, b' ', out),
            b'j' => push_padded(at.day_of_year, 3, b'0', out),
            b'H' => push_two(at.hour, out),
            b'k' => push_padded(at.hour, 2, b' ', out),
            b'I' => push_two(at.hour_of_12(), out),
            b'l' => push_padded(at.hour_of_12(), 2, b' ', out),
            b'M' => push_two(at.minute, out),
            b'S' => push_two(at.second, out),
            b's' => push(self.seconds, out),
            b'p' => out.extend_from_slice(if at.hour < 12 { b"AM" } else { b"PM" }),
            b'P' => out.extend_from_slice(if at.hour < 12 { b"am" } else { b"pm" }),
            b'a' => out.extend_from_slice(&weekday[..3]),
            b'A' => out.extend_from_slice(weekday),
            b'b' | b'h' => out.extend_from_slice(&month[..3]),
            b'B' => out.extend_from_slice(month),
            b'u' => push(if at.weekday == 0 { 7 } else { at.weekday }, out),
            b'w' => push(at.weekday, out),
            b'T' | b'X' => self.clock(out),
            b'R' => {
                push_two(at.hour, out);
                out.push(b':');
                push_two(at.minute, out);
            }
            b'F' => self.date(b'-', out),
            b'D' | b'x' => {
                push_two(at.month, out);
                out.push(b'/');
                push_two(at.day, out);
                out.push(b'/');
                push_two(at.year % 100, out);
            }
            b'c' => {
                out.extend_from_slice(&weekday[..3]);
                out.push(b' ');
                out.extend_from_slice(&month[..3]);
                out.push(b' ');
                push_padded(at.day, 2, b' ', out);
                out.push(b' ');
                self.clock(out);
                out.push(b' ');
                push(at.year, out);
            }
            b'z' => self.zone(false, out),
            b'Z' => out.extend_from_slice(b"UTC"),
            b't' => out.push(b'\t'),
            b'n' => out.push(b'\n'),
            b'%' => out.push(b'%'),
            _ => return 0,
        }
        1
    }

    fn zone(&self, colon: bool, out: &mut Vec<u8>) {
        out.push(if self.zone < 0 { b'-' } else { b'+' });
        let minutes = u64::from(self.zone.unsigned_abs()) / 60;
        push_two(minutes / 60, out);
        if colon {
            out.push(b':');
        }
        push_two(minutes % 60, out);
    }

    fn date(&self, separator: u8, out: &mut Vec<u8>) {
        push_padded(self.at.year, 4, b'0', out);
        out.push(separator);
        push_two(self.at.month, out);
        out.push(separator);
        push_two(self.at.day, out);
    }

    fn clock(&self, out: &mut Vec<u8>) {
        push_two(self.at.hour, out);
        out.push(b':');
        push_two(self.at.minute, out);
        out.push(b':');
        push_two(self.at.second, out);
    }

    /// The first `digits` (1 to 9) digits of the fraction of the second, cut and not rounded.
    fn fraction(&self, digits: u8, out: &mut Vec<u8>) {
        let value = self.at.since_epoch.subsec_nanos() / 10u32.pow(9 - u32::from(digits.min(9)));
        push_padded(u64::from(value), usize::from(digits), b'0', out);
    }
}

fn push_two(value: u64, out: &mut Vec<u8>) {
    push_padded(value, 2, b'0', out);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64, nanoseconds: u32, format: &str) -> String {
        let mut out = Vec::new();
        let format = if format.is_empty() { None } else { Some(format) };
        write(format, UNIX_EPOCH + Duration::new(seconds, nanoseconds), false, &mut out);
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
