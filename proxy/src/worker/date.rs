//! The `date` header (RFC 9110 section 6.6.1), made once a second.
//!
//! Owns the text of the current second. Never used for anything but headers.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
pub type DateText = [u8; 29];

/// A worker's current date.
#[derive(Debug)]
pub struct Date(Cell<(u64, DateText)>);

impl Default for Date {
    fn default() -> Self {
        Self(Cell::new((0, text_of(0))))
    }
}

impl Date {
    /// The text for `now`.
    pub fn text(&self, now: SystemTime) -> DateText {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (cached, text) = self.0.get();
        if cached == seconds {
            return text;
        }
        let text = text_of(seconds);
        self.0.set((seconds, text));
        text
    }
}

/// Civil date from days since 1970, after Howard Hinnant's published algorithm for the proleptic Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

fn text_of(seconds: u64) -> DateText {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    let weekdays = b"ThuFriSatSunMonTueWed";
    let weekday = (days % 7) as usize * 3;
    text[..3].copy_from_slice(&weekdays[weekday..weekday + 3]);
    let months = b"JanFebMarAprMayJunJulAugSepOctNovDec";
    let name = (month as usize - 1) * 3;
    text[8..11].copy_from_slice(&months[name..name + 3]);
    let mut two = |at: usize, number: u64| {
        text[at] = b'0' + (number / 10 % 10) as u8;
        text[at + 1] = b'0' + (number % 10) as u8;
    };
    two(5, day);
    two(12, year / 100);
    two(14, year % 100);
    two(17, rest / 3600);
    two(20, rest / 60 % 60);
    two(23, rest % 60);
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let text = |seconds| String::from_utf8(text_of(seconds).to_vec()).unwrap();
        assert_eq!(text(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(text(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(text(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(text(4_102_444_799), "Thu, 31 Dec 2099 23:59:59 GMT");
        let date = Date::default();
        assert_eq!(date.text(UNIX_EPOCH + Duration::from_secs(784_111_777)), text_of(784_111_777));
    }
}
