//! Log levels, by the names that Envoy gives them.
//!
//! Owns the names and the order. Never knows where a level applies.

use std::fmt;
use std::str::FromStr;

use tracing::Metadata;
use tracing::level_filters::LevelFilter;

/// How grave a line is, or from which gravity on lines are written.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// Every step.
    Trace,
    /// What helps to find a fault.
    Debug,
    /// What happens seldom.
    Info,
    /// What should not happen, without harm to traffic.
    Warning,
    /// What harms traffic.
    Error,
    /// What ends the process. Written as an error event with a field `critical`, since `tracing` has no such level.
    Critical,
    /// As a limit: nothing is written.
    Off,
}

impl Level {
    /// All, the most talkative first.
    pub const ALL: [Level; 7] =
        [Level::Trace, Level::Debug, Level::Info, Level::Warning, Level::Error, Level::Critical, Level::Off];

    /// As in the log and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
            Level::Critical => "critical",
            Level::Off => "off",
        }
    }

    /// The short form in the log.
    pub fn letter(self) -> char {
        match self {
            Level::Trace => 'T',
            Level::Debug => 'D',
            Level::Info => 'I',
            Level::Warning => 'W',
            Level::Error => 'E',
            Level::Critical => 'C',
            Level::Off => 'O',
        }
    }

    pub(super) fn of(metadata: &Metadata<'_>) -> Self {
        match *metadata.level() {
            tracing::Level::TRACE => Level::Trace,
            tracing::Level::DEBUG => Level::Debug,
            tracing::Level::INFO => Level::Info,
            tracing::Level::WARN => Level::Warning,
            tracing::Level::ERROR if metadata.fields().field("critical").is_some() => Level::Critical,
            tracing::Level::ERROR => Level::Error,
        }
    }

    pub(super) fn from_number(number: u8) -> Self {
        Level::ALL.get(usize::from(number)).copied().unwrap_or(Level::Off)
    }

    pub(super) fn filter(self) -> LevelFilter {
        match self {
            Level::Trace => LevelFilter::TRACE,
            Level::Debug => LevelFilter::DEBUG,
            Level::Info => LevelFilter::INFO,
            Level::Warning => LevelFilter::WARN,
            Level::Error | Level::Critical => LevelFilter::ERROR,
            Level::Off => LevelFilter::OFF,
        }
    }
}

/// A name that is no level.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is none of trace, debug, info, warning, error, critical, off")]
pub struct UnknownLevel(pub String);

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        if text == "warn" {
            return Ok(Level::Warning);
        }
        Level::ALL.into_iter().find(|level| level.as_str() == text).ok_or_else(|| UnknownLevel(text.to_owned()))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (number, level) in Level::ALL.into_iter().enumerate() {
            assert_eq!(level.as_str().parse(), Ok(level));
            assert_eq!(Level::from_number(number as u8), level);
        }
        assert_eq!("warn".parse(), Ok(Level::Warning));
        assert_eq!(
            "loud".parse::<Level>().unwrap_err().to_string(),
            "\"loud\" is none of trace, debug, info, warning, error, critical, off"
        );
    }
}
