//! The characters of JSON: words, numbers and escapes.
//!
//! Owns where a token ends, whether there may be more of it, and how a failure shows its place. Never knows what is expected.

use super::json::Json;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Token {
    String,
    Number,
    True,
    False,
    Null,
    BeginObject,
    EndObject,
    BeginList,
    EndList,
    Colon,
    Comma,
    Key,
    Unknown,
}

pub(super) enum Stop {
    /// Only what comes next can tell.
    More,
    Bad(String),
}

/// The bytes of one piece, and how far they are understood.
pub(super) struct Text<'t> {
    pub(super) bytes: &'t [u8],
    pub(super) at: usize,
    /// Nothing follows.
    pub(super) last: bool,
}

impl<'t> Text<'t> {
    pub(super) fn rest(&self) -> &'t [u8] {
        &self.bytes[self.at..]
    }

    pub(super) fn skip_whitespace(&mut self) {
        let rest = self.rest();
        let count = rest.iter().position(|byte| !matches!(byte, b' ' | b'\t'..=b'\r')).unwrap_or(rest.len());
        self.at += count;
    }

    pub(super) fn token(&mut self) -> Token {
        self.skip_whitespace();
        let rest = self.rest();
        let Some(first) = rest.first() else { return Token::Unknown };
        match first {
            b'"' | b'\'' => Token::String,
            b'-' | b'0'..=b'9' => Token::Number,
            _ if rest.starts_with(b"true") => Token::True,
            _ if rest.starts_with(b"false") => Token::False,
            _ if rest.starts_with(b"null") => Token::Null,
            b'{' => Token::BeginObject,
            b'}' => Token::EndObject,
            b'[' => Token::BeginList,
            b']' => Token::EndList,
            b':' => Token::Colon,
            b',' => Token::Comma,
            first if is_letter(*first) => Token::Key,
            _ => Token::Unknown,
        }
    }

    pub(super) fn bare_key(&mut self) -> Result<String, Stop> {
        let rest = self.rest();
        let length = rest.iter().position(|byte| !is_letter(*byte) && !byte.is_ascii_digit()).unwrap_or(rest.len());
        if length == rest.len() && !self.last && length < LONGEST_TOKEN {
            return Err(Stop::More);
        }
        self.at += length;
        Ok(String::from_utf8_lossy(&rest[..length]).into_owned())
    }

    pub(super) fn string(&mut self, quote: u8, read: &mut String) -> Result<(), Stop> {
        loop {
            let rest = self.rest();
            let length = rest.iter().position(|byte| *byte == quote || *byte == b'\\').unwrap_or(rest.len());
            // Whole characters: the text is valid, and it ends before a character of one byte.
            read.push_str(&String::from_utf8_lossy(&rest[..length]));
            self.at += length;
            match self.rest() {
                [] => return Err(self.more_or("Closing quote expected in string.")),
                [found, ..] if *found == quote => {
                    self.at += 1;
                    return Ok(());
                }
                [_] => return Err(self.more_or("Closing quote expected in string.")),
                [_, b'u', ..] => read.push(self.unicode_escape()?),
                [_, escaped, ..] => {
                    match escaped {
                        b'b' => read.push('\u{8}'),
                        b'f' => read.push('\u{c}'),
                        b'n' => read.push('\n'),
                        b'r' => read.push('\r'),
                        b't' => read.push('\t'),
                        b'v' => read.push('\u{b}'),
                        byte if byte.is_ascii() => read.push(char::from(*byte)),
                        // The rest of the character follows as it is.
                        _ => {
                            self.at += 1;
                            continue;
                        }
                    }
                    self.at += 2;
                }
            }
        }
    }

    fn unicode_escape(&mut self) -> Result<char, Stop> {
        let rest = self.rest();
        let Some(first) = rest.get(..ESCAPE) else { return Err(self.more_or("Illegal hex string.")) };
        let code = self.hex(first)?;
        if !(0xd800..0xdc00).contains(&code) {
            let Some(character) = char::from_u32(code) else { return Err(self.bad("Invalid unicode code point.")) };
            self.at += ESCAPE;
            return Ok(character);
        }
        let Some(second) = rest.get(ESCAPE..2 * ESCAPE) else { return Err(self.more_or("Missing low surrogate.")) };
        if !second.starts_with(b"\\u") {
            return Err(self.bad("Missing low surrogate."));
        }
        let low = self.hex(second)?;
        if !(0xdc00..0xe000).contains(&low) {
            return Err(self.bad("Invalid low surrogate."));
        }
        let code = 0x10000 + ((code & 0x3ff) << 10 | low & 0x3ff);
        let Some(character) = char::from_u32(code) else { return Err(self.bad("Invalid unicode code point.")) };
        self.at += 2 * ESCAPE;
        Ok(character)
    }

    fn hex(&self, escape: &[u8]) -> Result<u32, Stop> {
        escape[2..].iter().try_fold(0, |code, byte| match char::from(*byte).to_digit(16) {
            Some(digit) => Ok(code << 4 | digit),
            None => Err(self.bad("Invalid escape sequence.")),
        })
    }

    pub(super) fn number(&mut self) -> Result<Json, Stop> {
        let rest = self.rest();
        let part = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-' | b'x');
        let length = rest.iter().position(|byte| !part(byte)).unwrap_or(rest.len());
        if length == rest.len() && !self.last && length < LONGEST_TOKEN {
            return Err(Stop::More);
        }
        let text = std::str::from_utf8(&rest[..length]).unwrap_or_default();
        let digits = text.strip_prefix('-').unwrap_or(text);
        if !text.contains(['.', 'e', 'E']) {
            if digits.len() > 1 && digits.starts_with('0') {
                return Err(self.bad("Octal/hex numbers are not valid JSON values."));
            }
            let whole = match text.starts_with('-') {
                true => text.parse().ok().map(Json::Int),
                false => text.parse().ok().map(Json::Uint),
            };
            if let Some(whole) = whole {
                self.at += length;
                return Ok(whole);
            }
        }
        let Ok(number) = text.parse::<f64>() else { return Err(self.bad("Unable to parse number.")) };
        if !number.is_finite() {
            return Err(self.bad("Number exceeds the range of double."));
        }
        self.at += length;
        Ok(Json::Double(number))
    }

    fn more_or(&self, message: &str) -> Stop {
        if self.last { self.bad(message) } else { Stop::More }
    }

    pub(super) fn unknown(&self, message: &str) -> Stop {
        match (self.last, self.rest().is_empty()) {
            (false, _) => Stop::More,
            (true, true) => self.bad(&format!("Unexpected end of string. {message}")),
            (true, false) => self.bad(message),
        }
    }

    pub(super) fn bad(&self, message: &str) -> Stop {
        Stop::Bad(self.failure(message))
    }

    /// The message with the text around the place that it is about.
    pub(super) fn failure(&self, message: &str) -> String {
        let begin = self.at.saturating_sub(CONTEXT);
        let end = (self.at + CONTEXT).min(self.bytes.len());
        let around = String::from_utf8_lossy(&self.bytes[begin..end]);
        format!("{message}\n{around}\n{:1$}^", "", self.at - begin)
    }
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$')
}

/// Bytes of `\u1234`.
const ESCAPE: usize = 6;
/// Bytes before and after the place of a failure.
const CONTEXT: usize = 20;
/// Numbers and bare keys that do not end before end here: they are read again with each piece.
const LONGEST_TOKEN: usize = 4096;
/// Bytes of `false`.
pub(super) const LONGEST_WORD: usize = 5;
