//! Path normalisation (RFC 3986 section 6, as `normalize_path`, `merge_slashes` and escaped slashes want it).
//!
//! Owns pure functions from path to path; the query is never touched. `None` says that nothing had to change.

/// A percent sign without two hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a percent sign without two hexadecimal digits")]
pub struct BadEscape;

/// Splits off query and fragment.
fn split(path: &str) -> (&str, &str) {
    path.split_at(path.find(['?', '#']).unwrap_or(path.len()))
}

/// Removes dot segments, decodes escaped unreserved characters and writes the other escapes in upper case; a backslash
/// becomes a slash.
///
/// # Errors
/// When an escape is not two hexadecimal digits.
pub fn normalize(path: &str) -> Result<Option<String>, BadEscape> {
    let (plain, rest) = split(path);
    let clean = |byte: u8| byte != b'%' && byte != b'\\';
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

fn decode_unreserved(plain: &str) -> Result<String, BadEscape> {
    let bytes = plain.as_bytes();
    let mut decoded = String::with_capacity(bytes.len());
    let mut position = 0;
    while let Some(byte) = bytes.get(position) {
        match byte {
            b'%' => {
                let digit =
                    |at: usize| bytes.get(at).and_then(|digit| char::from(*digit).to_digit(16)).ok_or(BadEscape);
                // Two hexadecimal digits are at most 255.
                let value = (digit(position + 1)? * 16 + digit(position + 2)?) as u8;
                if value.is_ascii_alphanumeric() || matches!(value, b'-' | b'.' | b'_' | b'~') {
                    decoded.push(char::from(value));
                } else {
                    decoded.push('%');
                    decoded.push(char::from(bytes[position + 1].to_ascii_uppercase()));
                    decoded.push(char::from(bytes[position + 2].to_ascii_uppercase()));
                }
                position += 3;
            }
            b'\\' => {
                decoded.push('/');
                position += 1;
            }
            byte => {
                decoded.push(char::from(*byte));
                position += 1;
            }
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
            ("/%41%2f%2e%2e/b", "/A%2F../b"),
            ("/%2e%2e/b", "/b"),
            ("/a\\..\\b", "/b"),
            ("/a//b", "/a//b"),
            ("/..", "/"),
        ] {
            assert_eq!(normal(path), expected, "{path}");
        }
        assert_eq!(normalize("/a%2"), Err(BadEscape));
        assert_eq!(normalize("/a%zz"), Err(BadEscape));
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
