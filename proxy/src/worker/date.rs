//! The `date` header (RFC 9110 section 6.6.1), made once a second.
//!
//! Owns the text of the current second. Never does calendar arithmetic, and is not used for anything but headers.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::calendar::Moment;

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
pub type DateText = [u8; 29];

/// A worker's current date.
#[derive(Debug)]
pub struct Date(Cell<(u64, DateText)>);

impl Default for Date {
    fn default() -> Self {
        Self(Cell::new((0, text_of(UNIX_EPOCH))))
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
        let text = text_of(now);
        self.0.set((seconds, text));
        text
    }
}

fn text_of(time: SystemTime) -> DateText {
    let moment = Moment::of(time);
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    text[..3].copy_from_slice(&moment.weekday_name().as_bytes()[..3]);
    text[8..11].copy_from_slice(&moment.month_name().as_bytes()[..3]);
    let mut two = |at: usize, number: u64| {
        text[at] = b'0' + (number / 10 % 10) as u8;
        text[at + 1] = b'0' + (number % 10) as u8;
    };
    two(5, moment.day);
    two(12, moment.year / 100);
    two(14, moment.year % 100);
    two(17, moment.hour);
    two(20, moment.minute);
    two(23, moment.second);
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let text = |seconds| String::from_utf8(text_of(at(seconds)).to_vec()).unwrap();
        assert_eq!(text(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(text(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(text(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(text(4_102_444_799), "Thu, 31 Dec 2099 23:59:59 GMT");
        let date = Date::default();
        for _ in 0..2 {
            assert_eq!(date.text(at(784_111_777)), text_of(at(784_111_777)));
        }
    }
}
