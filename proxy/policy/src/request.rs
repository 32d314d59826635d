//! Parts of requests that hold credentials: query parameters and cookies.
//!
//! Owns finding them, and taking them away without touching anything beside them. Never judges a credential.

use std::borrow::Cow;

/// The first value of a query parameter of `path`, without its escapes.
pub fn query_parameter(path: &str, name: &str) -> Option<Vec<u8>> {
    let (_, query) = path.split_once('?')?;
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) = pairs.find(|(key, _)| *unescaped(key) == *name.as_bytes())?;
    Some(unescaped(value).into_owned())
}

/// `path` without a query parameter; all others stay as they stand. `None` if it has no query.
pub fn without_query_parameter(path: &str, name: &str) -> Option<String> {
    let (path, query) = path.split_once('?')?;
    let is_other = |pair: &&str| {
        let key = pair.split_once('=').map_or(*pair, |(key, _)| key);
        *unescaped(key) != *name.as_bytes()
    };
    let rest: Vec<&str> = query.split('&').filter(is_other).collect();
    Some(if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) })
}

/// The value of a cookie in a `cookie` header, without quotes.
pub fn cookie<'h>(header: &'h [u8], name: &str) -> Option<&'h [u8]> {
    let mut pairs = header.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let value = pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

/// A `cookie` header without a cookie; empty if there was no other.
pub fn without_cookie(header: &[u8], name: &str) -> Vec<u8> {
    let is_other = |pair: &&[u8]| {
        let value = pair.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
        value.is_none() && !pair.is_empty()
    };
    let rest: Vec<&[u8]> = header.split(|byte| *byte == b';').map(<[u8]>::trim_ascii).filter(is_other).collect();
    rest.join(&b"; "[..])
}

/// Source: RFC 3986 section 2.1. What is no escape stays.
fn unescaped(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    Cow::Owned(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_and_taken_away() {
        let path = "/p?a=1&%62=x%2Ey%&b=2&c";
        assert_eq!(query_parameter(path, "b"), Some(b"x.y%".to_vec()));
        assert_eq!(query_parameter(path, "c"), Some(Vec::new()));
        assert_eq!(query_parameter(path, "d"), None);
        assert_eq!(query_parameter("/p", "a"), None);
        assert_eq!(without_query_parameter(path, "b").unwrap(), "/p?a=1&c");
        assert_eq!(without_query_parameter("/p?a=1", "a").unwrap(), "/p");
        assert_eq!(without_query_parameter("/p", "a"), None);
    }

    #[test]
    fn cookies_are_found_and_taken_away() {
        let header = b"xa=0; a=\"1\"; b=2;a=3";
        assert_eq!(cookie(header, "a"), Some(&b"1"[..]));
        assert_eq!(cookie(header, "c"), None);
        assert_eq!(without_cookie(header, "a"), b"xa=0; b=2");
        assert_eq!(without_cookie(b"a=1", "a"), b"");
    }
}
