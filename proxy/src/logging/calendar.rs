//! Calendar and clock of a moment, in UTC.
//!
//! Owns the arithmetic. Never reads a clock, and knows no other time zone: that would need the C library's tables.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

pub(super) const MONTHS: [&str; 12] = [
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

/// A moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub year: u64,
    /// From 1.
    pub month: usize,
    /// From 1.
    pub day: u64,
    /// Sunday is 0.
    pub weekday: usize,
    pub hour: u64,
    pub minute: u64,
    pub second: u64,
    /// Since 1970.
    pub since_epoch: Duration,
}

impl Moment {
    /// Times before 1970 count as 1970: such a clock is wrong anyway.
    pub fn of(time: SystemTime) -> Self {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since_epoch.as_secs();
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        // Years are counted from March, so that a leap day is the last one. 719,468 days lie between 0000-03-01 and
        // 1970-01-01.
        let days_since = days + 719_468;
        let (era, day_of_era) = (days_since / 146_097, days_since % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month: month as usize,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            weekday: ((days + 4) % 7) as usize,
            hour: of_day / 3_600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
            since_epoch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_match_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 4"),
            (951_782_400, "2000-02-29 00:00:00 2"),
            (1_709_251_199, "2024-02-29 23:59:59 4"),
            (1_795_225_935, "2026-11-21 01:52:15 6"),
            (4_107_542_400, "2100-03-01 00:00:00 1"),
        ] {
            let Moment { year, month, day, weekday, hour, minute, second, .. } =
                Moment::of(UNIX_EPOCH + Duration::from_secs(seconds));
            let shown = format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} {weekday}");
            assert_eq!(shown, expected);
        }
    }
}
