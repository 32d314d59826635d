//! What names of headers and methods may consist of, and which names are about one connection.
//!
//! Owns these two rules (RFC 9110 sections 5.6.2 and 7.6.1). Never changes a message.

/// Whether a byte may stand in a token.
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a text is a token.
pub fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| is_token_byte(*byte))
}

/// Headers that say how one message is framed on one connection: services that change headers have no say in them.
/// `name` is in lower case.
pub fn is_framing(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "content-length"
            | "http2-settings"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tokens() {
        for name in ["GET", "x-a", "a_b", "~"] {
            assert!(is_token(name.as_bytes()), "{name}");
        }
        for name in ["", ":path", "a b", "a:", "a\r", "\u{e9}"] {
            assert!(!is_token(name.as_bytes()), "{name}");
        }
        assert!(is_framing("te") && !is_framing("expect") && !is_framing("x-te"));
    }
}
