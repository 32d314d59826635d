//! Calendar and clock of a moment, in UTC.
//!
//! Owns the arithmetic and the English names. Never reads a clock, never writes a date (each format has its own place), and
//! knows no other time zone: that would need the C library's tables.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment. The numbers count from 0 unless said otherwise.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moment {
    /// From 1970.
    pub year: u64,
    /// 1 to 12.
    pub month: u64,
    /// Of the month, 1 to 31.
    pub day: u64,
    /// 1 to 366.
    pub day_of_year: u64,
    /// 0 is Sunday.
    pub weekday: u64,
    /// Of the day.
    pub hour: u64,
    /// Of the hour.
    pub minute: u64,
    /// Of the minute; leap seconds do not exist here, as in Unix time.
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
        // Years are counted from March, so that a leap day is the last one, and repeat exactly after 400. 719,468 days lie
        // between 0000-03-01 and 1970-01-01.
        let days_since = days + 719_468;
        let (era, day_of_era) = (days_since / 146_097, days_since % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_from_march + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        Self {
            year,
            month,
            day: day_from_march - (153 * month_from_march + 2) / 5 + 1,
            // March 1st is day 60, or 61 in leap years; January 1st is 306 days after the March before it.
            day_of_year: if month > 2 { day_from_march + 60 + u64::from(leap) } else { day_from_march - 305 },
            // 1970 began on a Thursday.
            weekday: (days + 4) % 7,
            hour: of_day / 3_600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
            since_epoch,
        }
    }

    /// `January` to `December`; the usual short forms are the first three letters.
    pub fn month_name(&self) -> &'static str {
        MONTHS[self.month as usize - 1]
    }

    /// `Sunday` to `Saturday`; the usual short forms are the first three letters.
    pub fn weekday_name(&self) -> &'static str {
        WEEKDAYS[self.weekday as usize]
    }

    /// The hour on a clock with two halves, 1 to 12.
    pub fn hour_of_12(&self) -> u64 {
        (self.hour + 11) % 12 + 1
    }
}

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_match_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 001 Thursday 00:00:00 12"),
            (951_782_400, "2000-02-29 060 Tuesday 00:00:00 12"),
            (978_220_800, "2000-12-31 366 Sunday 00:00:00 12"),
            (1_709_251_199, "2024-02-29 060 Thursday 23:59:59 11"),
            (1_709_251_200, "2024-03-01 061 Friday 00:00:00 12"),
            (1_735_689_600, "2025-01-01 001 Wednesday 00:00:00 12"),
            (1_795_225_935, "2026-11-21 325 Saturday 01:52:15 1"),
            (4_107_542_400, "2100-03-01 060 Monday 00:00:00 12"),
        ] {
            let moment = Moment::of(UNIX_EPOCH + Duration::from_secs(seconds));
            let Moment { year, month, day, day_of_year, hour, minute, second, .. } = moment;
            let (weekday, hour_of_12) = (moment.weekday_name(), moment.hour_of_12());
            let date = format!("{year}-{month:02}-{day:02} {day_of_year:03} {weekday}");
            assert_eq!(format!("{date} {hour:02}:{minute:02}:{second:02} {hour_of_12}"), expected);
        }
        assert_eq!(Moment::of(UNIX_EPOCH + Duration::from_secs(1_795_225_935)).month_name(), "November");
    }

    #[test]
    fn times_before_the_epoch_are_the_epoch() {
        assert_eq!(Moment::of(UNIX_EPOCH - Duration::from_secs(1)), Moment::of(UNIX_EPOCH));
    }
}
