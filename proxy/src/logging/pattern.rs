//! How a log line looks: the pattern letters of spdlog, and those that Envoy adds.
//!
//! Owns reading a pattern and filling it in. Never writes anywhere, and reads no clock. Times are in UTC.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use super::level::Level;
use crate::calendar::Moment;

/// What a line may tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub time: SystemTime,
    /// Since the line before.
    pub since_previous: Duration,
    pub thread: &'a str,
    pub level: Level,
    pub component: &'a str,
    pub file: &'a str,
    pub line: u32,
    pub module: &'a str,
    pub message: &'a str,
}

/// Whether unusual characters of a finished line are written as C escapes (`--log-format-escaped`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Escape {
    /// As they are.
    None,
    /// `\n` and the like, `\033` for those without a letter.
    C,
}

/// A pattern, ready to be filled in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pattern {
    pieces: Vec<Piece>,
    escape: Escape,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Piece {
    Literal(String),
    Flag { letter: char, padding: Option<Padding> },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Padding {
    width: usize,
    text: Side,
    truncate: bool,
}

/// Where the text stands in its field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    Left,
    Right,
    Center,
}

/// Why a JSON format cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PatternError {
    /// The message would not be escaped.
    #[error("member {member:?}: %{flag} would break the JSON, write %j for the message")]
    Unescaped {
        /// Whose pattern it is.
        member: String,
        /// The letter.
        flag: char,
    },
}

/// spdlog's limit.
const WIDEST: usize = 64;

/// Flags that have a meaning. `^` and `$` would begin and end colour; `*` and `&` stand for tags, which there are none of.
const FLAGS: &str = "+nlLtvaAbBhcCYDxmdHIMSefFEpRrTXzP^$@sg#!%uioO*&_j";

impl Pattern {
    /// Reads a pattern. What is not a known flag stands for itself.
    pub fn new(text: &str, escape: Escape) -> Self {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(start) = rest.find('%') {
            literal.push_str(&rest[..start]);
            rest = &rest[start + 1..];
            let (padding, after) = padding(rest);
            let Some(letter) = after.chars().next() else {
                rest = "";
                break;
            };
            rest = &after[letter.len_utf8()..];
            if FLAGS.contains(letter) {
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                }
                pieces.push(Piece::Flag { letter, padding });
            } else {
                literal.push('%');
                literal.push(letter);
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Self { pieces, escape }
    }

    /// A JSON object with a pattern for each member.
    ///
    /// # Errors
    /// When the message would stand in it without escapes.
    pub fn json(members: &[(String, String)]) -> Result<Self, PatternError> {
        let mut pieces = vec![Piece::Literal("{".to_owned())];
        for (index, (member, value)) in members.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            pieces.push(Piece::Literal(format!("{comma}\"{}\":\"", JsonText(member))));
            for piece in Pattern::new(value, Escape::None).pieces {
                match piece {
                    Piece::Flag { letter: flag @ ('v' | '_' | '+'), .. } => {
                        return Err(PatternError::Unescaped { member: member.clone(), flag });
                    }
                    Piece::Literal(text) => pieces.push(Piece::Literal(JsonText(&text).to_string())),
                    flag @ Piece::Flag { .. } => pieces.push(flag),
                }
            }
            pieces.push(Piece::Literal("\"".to_owned()));
        }
        pieces.push(Piece::Literal("}".to_owned()));
        Ok(Self { pieces, escape: Escape::None })
    }

    /// Appends the line of `record`, without a line break.
    pub(super) fn write(&self, record: &Record<'_>, out: &mut String) {
        let moment = Moment::of(record.time);
        let line = out.len();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => out.push_str(text),
                Piece::Flag { letter, padding } => {
                    let start = out.len();
                    // Writing to a String cannot fail.
                    let _ = write_flag(*letter, record, &moment, out);
                    if let Some(padding) = padding {
                        padding.apply(out, start);
                    }
                }
            }
        }
        if self.escape == Escape::C {
            let escaped = c_escaped(&out[line..]);
            out.replace_range(line.., &escaped);
        }
    }
}

/// The padding at the start of `text`, if any, and what follows it.
fn padding(text: &str) -> (Option<Padding>, &str) {
    let (side, digits) = match text.as_bytes().first() {
        Some(b'-') => (Side::Left, &text[1..]),
        Some(b'=') => (Side::Center, &text[1..]),
        _ => (Side::Right, text),
    };
    let count = digits.bytes().take_while(u8::is_ascii_digit).count();
    let Ok(width) = digits[..count].parse::<usize>() else { return (None, digits) };
    let rest = &digits[count..];
    // A `!` at the very end is the flag for the function.
    let (truncate, rest) = match rest.strip_prefix('!') {
        Some(after) if !after.is_empty() => (true, after),
        _ => (false, rest),
    };
    (Some(Padding { width: width.min(WIDEST), text: side, truncate }), rest)
}

impl Padding {
    fn apply(self, out: &mut String, start: usize) {
        let length = out[start..].chars().count();
        if let Some(missing) = self.width.checked_sub(length) {
            let before = match self.text {
                Side::Left => 0,
                Side::Right => missing,
                Side::Center => missing / 2,
            };
            out.insert_str(start, &" ".repeat(before));
            out.extend(std::iter::repeat_n(' ', missing - before));
        } else if self.truncate
            && let Some((end, _)) = out[start..].char_indices().nth(self.width)
        {
            out.truncate(start + end);
        }
    }
}

fn write_flag(letter: char, record: &Record<'_>, at: &Moment, out: &mut String) -> std::fmt::Result {
    let Moment { year, month, day, day_of_year: _, weekday: _, hour, minute, second, since_epoch } = *at;
    let nanosecond = since_epoch.subsec_nanos();
    let (weekday, month_name) = (at.weekday_name(), at.month_name());
    let (hour_of_12, half) = (at.hour_of_12(), if hour < 12 { "AM" } else { "PM" });
    match letter {
        'v' | '+' => out.write_str(record.message),
        '_' => out.write_str(&record.message.replace('\n', "\\n")),
        'j' => write!(out, "{}", JsonText(record.message)),
        't' => out.write_str(record.thread),
        'P' => write!(out, "{}", std::process::id()),
        'n' => out.write_str(record.component),
        'l' => out.write_str(record.level.as_str()),
        'L' => out.write_char(record.level.letter()),
        'a' => out.write_str(&weekday[..3]),
        'A' => out.write_str(weekday),
        'b' | 'h' => out.write_str(&month_name[..3]),
        'B' => out.write_str(month_name),
        'c' => {
            write!(out, "{} {} {day} {hour:02}:{minute:02}:{second:02} {year}", &weekday[..3], &month_name[..3])
        }
        'C' => write!(out, "{:02}", year % 100),
        'Y' => write!(out, "{year}"),
        'D' | 'x' => write!(out, "{month:02}/{day:02}/{:02}", year % 100),
        'm' => write!(out, "{month:02}"),
        'd' => write!(out, "{day:02}"),
        'H' => write!(out, "{hour:02}"),
        'I' => write!(out, "{hour_of_12:02}"),
        'M' => write!(out, "{minute:02}"),
        'S' => write!(out, "{second:02}"),
        'e' => write!(out, "{:03}", nanosecond / 1_000_000),
        'f' => write!(out, "{:06}", nanosecond / 1_000),
        'F' => write!(out, "{nanosecond:09}"),
        'E' => write!(out, "{}", since_epoch.as_secs()),
        'p' => out.write_str(half),
        'r' => write!(out, "{hour_of_12:02}:{minute:02}:{second:02} {half}"),
        'R' => write!(out, "{hour:02}:{minute:02}"),
        'T' | 'X' => write!(out, "{hour:02}:{minute:02}:{second:02}"),
        'z' => out.write_str("+00:00"),
        '@' => write!(out, "{}:{}", record.file, record.line),
        's' => out.write_str(record.file.rsplit('/').next().unwrap_or_default()),
        'g' => out.write_str(record.file),
        '#' => write!(out, "{}", record.line),
        '!' => out.write_str(record.module),
        '%' => out.write_char('%'),
        'u' => write!(out, "{}", record.since_previous.as_nanos()),
        'i' => write!(out, "{}", record.since_previous.as_micros()),
        'o' => write!(out, "{}", record.since_previous.as_millis()),
        'O' => write!(out, "{}", record.since_previous.as_secs()),
        _ => Ok(()),
    }
}

/// Text as it stands between the quotes of a JSON string.
struct JsonText<'a>(&'a str);

impl std::fmt::Display for JsonText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for char in self.0.chars() {
            match char {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                control if control < ' ' => write!(f, "\\u{:04x}", u32::from(control))?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

fn c_escaped(line: &str) -> String {
    let mut escaped = String::with_capacity(line.len());
    for byte in line.bytes() {
        match byte {
            b'\n' => escaped.push_str("\\n"),
            b'\r' => escaped.push_str("\\r"),
            b'\t' => escaped.push_str("\\t"),
            b'"' => escaped.push_str("\\\""),
            b'\'' => escaped.push_str("\\'"),
            b'\\' => escaped.push_str("\\\\"),
            b' '..=b'~' => escaped.push(char::from(byte)),
            other => drop(write!(escaped, "\\{other:03o}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn record(message: &str) -> Record<'_> {
        Record {
            time: UNIX_EPOCH + Duration::new(1_795_225_935, 131_863_042),
            since_previous: Duration::from_micros(4_000_202),
            thread: "42",
            level: Level::Info,
            component: "config",
            file: "proxy/src/bootstrap/load.rs",
            line: 138,
            module: "outrigger::bootstrap::load",
            message,
        }
    }

    fn line(pattern: &Pattern, message: &str) -> String {
        let mut out = String::new();
        pattern.write(&record(message), &mut out);
        out
    }

    #[test]
    fn the_default_looks_like_envoys() {
        let pattern = Pattern::new(super::super::DEFAULT_FORMAT, Escape::None);
        let expected = "[2026-11-21 01:52:15.131][42][info][config] [proxy/src/bootstrap/load.rs:138] hello";
        assert_eq!(line(&pattern, "hello"), expected);
    }

    /// The right column is what Envoy 1.40 prints for the same pattern at that time.
    #[test]
    fn flags_match_those_of_envoy() {
        for (pattern, expected) in [
            ("%l|%L|%n|%t", "info|I|config|42"),
            ("%s|%#|%@", "load.rs|138|proxy/src/bootstrap/load.rs:138"),
            ("%E|%e|%f|%F|%z", "1795225935|131|131863|131863042|+00:00"),
            ("%p %r %R %D %I", "AM 01:52:15 AM 01:52 11/21/26 01"),
            ("%a %A %b %B %c", "Sat Saturday Nov November Sat Nov 21 01:52:15 2026"),
            ("%x %X %C %Y-%m-%dT%T", "11/21/26 01:52:15 26 2026-11-21T01:52:15"),
            ("%o %i %u %O", "4000 4000202 4000202000 4"),
            ("%^%l%$ %*100%%", "info 100%"),
            ("%Z %y", "%Z %y"),
            ("no flags", "no flags"),
            ("", ""),
            ("%v %", "m m "),
            ("%-9l|%8n|%=10n|%3n|%3!n|%2v", "info     |  config|  config  |config|con|m m"),
            ("%!", "outrigger::bootstrap::load"),
        ] {
            assert_eq!(line(&Pattern::new(pattern, Escape::None), "m m"), expected, "{pattern}");
        }
    }

    #[test]
    fn messages_are_escaped_where_asked_for() {
        let message = "say \"a\\b\"\n\u{1}é";
        assert_eq!(line(&Pattern::new("{\"m\":\"%j\"}", Escape::None), message), r#"{"m":"say \"a\\b\"\n\u0001é"}"#);
        assert_eq!(line(&Pattern::new("%_", Escape::None), "a\nb"), "a\\nb");
        assert_eq!(line(&Pattern::new("%v", Escape::C), message), r#"say \"a\\b\"\n\001\303\251"#);
    }

    #[test]
    fn json_formats_make_one_object_a_line() {
        let member = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let pattern = Pattern::json(&[member("Level", "%l"), member("a\"b", "<%j> \"%%\"")]).unwrap();
        let text = line(&pattern, "x \"y\"");
        assert_eq!(text, r#"{"Level":"info","a\"b":"<x \"y\"> \"%\""}"#);
        assert_eq!(Pattern::json(&[]).map(|pattern| line(&pattern, "x")), Ok("{}".to_owned()));
        let error = Pattern::json(&[member("Message", "%v")]).unwrap_err();
        assert_eq!(error.to_string(), "member \"Message\": %v would break the JSON, write %j for the message");
    }
}
