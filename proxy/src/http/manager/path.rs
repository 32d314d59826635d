//! Path normalisation (RFC 3986 section 6, as `normalize_path`, `merge_slashes` and escaped slashes want it).
//!
//! Owns pure functions from path to path; the query is never touched. `None` says that nothing had to change.

/// An escaped NUL, which ends a path for some and not for others.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an escaped NUL")]
pub struct Nul;

/// Splits off query and fragment.
fn split(path: &str) -> (&str, &str) {
    path.split_at(path.find(['?', '#']).unwrap_or(path.len()))
}

/// Removes dot segments, decodes escaped unreserved characters and escapes those that no path may hold; a backslash becomes
/// a slash. Other escapes stay as they are, and so does a percent sign that begins none: it means the same to everybody.
///
/// # Errors
/// When there is an escaped NUL.
pub fn normalize(path: &str) -> Result<Option<String>, Nul> {
    let (plain, rest) = split(path);
    let clean = |byte: u8| !matches!(byte, b'%' | b'\\') && !is_never_plain(byte);
    if plain.bytes().all(clean) && !plain.contains("/.") {
        return Ok(None);
    }
    let decoded = decode_unreserved(plain)?;
    let mut segments: Vec<&str> = Vec::new();
    let mut trailing = false;
    for segment in decoded.split('/').skip(1) {
        trailing = false;
        match segment {
            "." => trailing = true,
            ".." => {
                segments.pop();
                trailing = true;
            }
            segment => segments.push(segment),
        }
    }
    let mut normal = String::with_capacity(path.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if trailing || normal.is_empty() {
        normal.push('/');
    }
    normal.push_str(rest);
    Ok((normal != path).then_some(normal))
}

/// Printable characters that RFC 3986 does not let stand in a path as they are; brackets are left alone.
fn is_never_plain(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
}

fn decode_unreserved(plain: &str) -> Result<String, Nul> {
    let bytes = plain.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|digit| char::from(*digit).to_digit(16));
    let mut decoded = String::with_capacity(bytes.len());
    let mut position = 0;
    // Where the last percent sign stands that begins no escape. Nothing is decoded so close behind it that it would become
    // one.
    let mut lone = None;
    while let Some(byte) = bytes.get(position) {
        position += 1;
        let escaped = match byte {
            // Two hexadecimal digits are at most 255.
            b'%' => digit(position).zip(digit(position + 1)).map(|(high, low)| (high * 16 + low) as u8),
            _ => None,
        };
        if *byte == b'%' && escaped.is_none() {
            lone = Some(decoded.len());
        }
        let is_unreserved = |value: u8| value.is_ascii_alphanumeric() || matches!(value, b'-' | b'.' | b'_' | b'~');
        match escaped {
            Some(0) => return Err(Nul),
            Some(value) if is_unreserved(value) && lone.is_none_or(|lone| decoded.len() - lone > 2) => {
                decoded.push(char::from(value));
                position += 2;
            }
            _ if *byte == b'\\' => decoded.push('/'),
            _ if is_never_plain(*byte) => {
                decoded.push('%');
                decoded.extend([byte >> 4, byte & 15].map(|digit| char::from(b"0123456789ABCDEF"[usize::from(digit)])));
            }
            _ => decoded.push(char::from(*byte)),
        }
    }
    Ok(decoded)
}

/// Makes one slash of several.
pub fn merge_slashes(path: &str) -> Option<String> {
    let (plain, rest) = split(path);
    if !plain.contains("//") {
        return None;
    }
    let mut merged = String::with_capacity(path.len());
    for character in plain.chars() {
        if character != '/' || !merged.ends_with('/') {
            merged.push(character);
        }
    }
    merged.push_str(rest);
    Some(merged)
}

/// Makes slashes of `%2F` and backslashes of `%5C`.
pub fn unescape_slashes(path: &str) -> Option<String> {
    let (plain, rest) = split(path);
    let lower = plain.to_ascii_lowercase();
    if !lower.contains("%2f") && !lower.contains("%5c") {
        return None;
    }
    let mut unescaped = String::with_capacity(path.len());
    let mut position = 0;
    while position < plain.len() {
        let ahead = lower.get(position..position + 3);
        match ahead {
            Some("%2f") => unescaped.push('/'),
            Some("%5c") => unescaped.push('\\'),
            _ => {
                // Request paths are ASCII, so each byte is a character.
                unescaped.push_str(plain.get(position..position + 1).unwrap_or_default());
                position += 1;
                continue;
            }
        }
        position += 3;
    }
    unescaped.push_str(rest);
    Some(unescaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_normal() {
        let normal = |path: &str| normalize(path).unwrap().unwrap_or_else(|| path.to_owned());
        for (path, expected) in [
            ("/a/b", "/a/b"),
            ("/a/./b/../c?x=/../y", "/a/c?x=/../y"),
            ("/a/b/..", "/a/"),
            ("/../../etc", "/etc"),
            ("/%41%2f%2e%2e/b", "/A%2f../b"),
            ("/%2e%2e/b", "/b"),
            ("/a\\..\\b", "/b"),
            ("/a//b", "/a//b"),
            ("/..", "/"),
            ("/a\"b<c>{d}|e^f`g[h]?\"", "/a%22b%3Cc%3E%7Bd%7D%7Ce%5Ef%60g[h]?\""),
        ] {
            assert_eq!(normal(path), expected, "{path}");
        }
        for path in ["/a%2", "/a%zz", "/100%", "/%%41b", "/%25%32%66", "/%4%31", "/%%34%31", "/`%`%777"] {
            let once = normal(path);
            assert_eq!(normal(&once), once, "{path}");
        }
        assert_eq!(normal("/a%zz/%41"), "/a%zz/A");
        assert_eq!(normal("/a/%2%65%2%65/b"), "/a/%2%65%2%65/b");
        assert_eq!(normalize("/a%00"), Err(Nul));
    }

    #[test]
    fn slashes_are_merged_and_unescaped() {
        assert_eq!(merge_slashes("//a///b?//"), Some("/a/b?//".into()));
        assert_eq!(merge_slashes("/a/b"), None);
        assert_eq!(unescape_slashes("/a%2Fb%5cc?%2f"), Some("/a/b\\c?%2f".into()));
        assert_eq!(unescape_slashes("/a%20b"), None);
    }

    proptest::proptest! {
        #[test]
        fn a_normal_path_stays_as_it_is(path in "/[ -~]{0,40}") {
            if let Ok(changed) = normalize(&path) {
                let once = changed.unwrap_or(path);
                proptest::prop_assert_eq!(normalize(&once), Ok(None));
            }
        }
    }
}
