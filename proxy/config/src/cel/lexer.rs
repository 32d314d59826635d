//! The tokens of an expression.
//!
//! Owns literals and their escapes. Never builds trees.

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A name.
    Name(String),
    /// `1`, without a sign.
    Int(u64),
    /// `1u`
    Uint(u64),
    /// `1.5`
    Double(f64),
    /// `'a'`
    String(String),
    /// `b'a'`
    Bytes(Vec<u8>),
    /// Punctuation.
    Sign(&'static str),
}

/// Longer ones first.
const SIGNS: [&str; 24] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "+", "-", "*", "/", "%", "?", ":", ".", ",", "(", ")", "[", "]",
    "{", "}",
];

/// What is wrong, and at which byte.
pub(super) type Fault = (usize, String);

/// Splits an expression into tokens with the bytes where they begin.
pub(super) fn tokens(text: &str) -> Result<Vec<(usize, Token)>, Fault> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        if first.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
            continue;
        }
        let (token, length) = if let Some(literal) = quoted(rest).map_err(|(position, why)| (at + position, why))? {
            literal
        } else if first.is_ascii_digit() || first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit()) {
            number(rest).map_err(|why| (at, why))?
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            (Token::Name(rest[..end].to_owned()), end)
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            (Token::Sign(sign), sign.len())
        } else {
            return Err((at, format!("{first:?} has no meaning here")));
        };
        found.push((at, token));
        at += length;
    }
    Ok(found)
}

fn number(text: &str) -> Result<(Token, usize), String> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        let value = u64::from_str_radix(&hex[..end], 16).map_err(|_| "not a 64-bit number".to_owned())?;
        return Ok(integer(value, &hex[end..], end + 2));
    }
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let whole = digits(text);
    let mut end = whole;
    if let Some(fraction) = text[end..].strip_prefix('.')
        && fraction.starts_with(|c: char| c.is_ascii_digit())
    {
        end += 1 + digits(fraction);
    }
    if let Some(exponent) = text[end..].strip_prefix(['e', 'E']) {
        let signed = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        let length = digits(signed);
        if length == 0 {
            return Err("an exponent needs digits".to_owned());
        }
        end += 1 + (exponent.len() - signed.len()) + length;
    }
    if end > whole {
        let value = text[..end].parse().map_err(|_| "not a number".to_owned())?;
        return Ok((Token::Double(value), end));
    }
    let value = text[..whole].parse().map_err(|_| "not a 64-bit number".to_owned())?;
    Ok(integer(value, &text[whole..], whole))
}

fn integer(value: u64, rest: &str, length: usize) -> (Token, usize) {
    match rest.starts_with(['u', 'U']) {
        true => (Token::Uint(value), length + 1),
        false => (Token::Int(value), length),
    }
}

/// A string or bytes literal at the beginning of `text`.
fn quoted(text: &str) -> Result<Option<(Token, usize)>, Fault> {
    let prefix = text.find(|c: char| !matches!(c, 'r' | 'R' | 'b' | 'B')).unwrap_or(text.len());
    let quote = match text[prefix..].chars().next() {
        Some(quote @ ('\'' | '"')) if prefix <= 2 => quote,
        _ => return Ok(None),
    };
    let marks = text[..prefix].to_ascii_lowercase();
    let (raw, bytes) = (marks.contains('r'), marks.contains('b'));
    let triple: String = std::iter::repeat_n(quote, 3).collect();
    let close = if text[prefix..].starts_with(&triple) { triple } else { quote.to_string() };
    let mut at = prefix + close.len();
    let mut value = Vec::new();
    loop {
        let rest = &text[at..];
        if rest.starts_with(&close) {
            break;
        }
        let Some(first) = rest.chars().next() else { return Err((0, "a string has no end".to_owned())) };
        if close.len() == 1 && matches!(first, '\n' | '\r') {
            return Err((at, "a string has no end".to_owned()));
        }
        if first == '\\' && !raw {
            at += escape(&rest[1..], bytes, &mut value).map_err(|why| (at, why))? + 1;
            continue;
        }
        value.extend_from_slice(&rest.as_bytes()[..first.len_utf8()]);
        at += first.len_utf8();
    }
    let length = at + close.len();
    if bytes {
        return Ok(Some((Token::Bytes(value), length)));
    }
    let text = String::from_utf8(value).map_err(|_| (0, "a string is not UTF-8".to_owned()))?;
    Ok(Some((Token::String(text), length)))
}

/// Reads what follows a backslash; returns its length.
fn escape(text: &str, bytes: bool, value: &mut Vec<u8>) -> Result<usize, String> {
    let bad = || "is not an escape".to_owned();
    let first = text.chars().next().ok_or_else(bad)?;
    let simple = match first {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' | '\'' | '"' | '`' | '?' => first as u8,
        _ => 0,
    };
    if simple != 0 {
        value.push(simple);
        return Ok(1);
    }
    let (skip, digits, radix) = match first {
        'x' | 'X' => (1, 2, 16),
        'u' if !bytes => (1, 4, 16),
        'U' if !bytes => (1, 8, 16),
        '0'..='3' => (0, 3, 8),
        _ => return Err(bad()),
    };
    let code = text.get(skip..skip + digits).ok_or_else(bad)?;
    let code = u32::from_str_radix(code, radix).map_err(|_| bad())?;
    if bytes {
        value.push(u8::try_from(code).map_err(|_| bad())?);
    } else {
        let mut buffer = [0; 4];
        let character = char::from_u32(code).ok_or_else(bad)?;
        value.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
    }
    Ok(skip + digits)
}
