//! What stands in the cookie of a session: the address of its endpoint, and when it ends.
//!
//! Owns the form, which is Envoy's, so that sessions survive a change from one proxy to the other. Never reads a clock.

/// What a cookie tells.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionCookie {
    /// IP and port of the endpoint.
    pub address: String,
    /// Seconds since 1970; 0 if the client forgets it by itself.
    pub expires: u64,
}

impl SessionCookie {
    /// As a message with the fields `string address = 1` and `uint64 expires = 2`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![ADDRESS_TAG];
        varint(self.address.len() as u64, &mut out);
        out.extend_from_slice(self.address.as_bytes());
        if self.expires > 0 {
            out.push(EXPIRES_TAG);
            varint(self.expires, &mut out);
        }
        out
    }

    /// Reads a message, or the address alone, which older proxies gave.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.first() != Some(&ADDRESS_TAG) {
            let address = std::str::from_utf8(bytes).ok().filter(|address| !address.is_empty())?;
            return Some(Self { address: address.to_owned(), expires: 0 });
        }
        let (length, rest) = read_varint(&bytes[1..])?;
        let (address, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        let expires = match rest.split_first() {
            None => 0,
            Some((&EXPIRES_TAG, rest)) => read_varint(rest)?.0,
            Some(_) => return None,
        };
        Some(Self { address: std::str::from_utf8(address).ok()?.to_owned(), expires })
    }

    /// Whether it still counts at `now`, in seconds since 1970.
    pub fn is_valid(&self, now: u64) -> bool {
        self.expires == 0 || self.expires > now
    }
}

/// Whether a cookie with this path is sent with a request for `path`. RFC 6265 section 5.1.4.
pub fn cookie_path_matches(cookie: Option<&str>, path: &str) -> bool {
    let Some(cookie) = cookie else { return true };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    match path.strip_prefix(cookie) {
        Some(rest) => rest.is_empty() || cookie.ends_with('/') || rest.starts_with('/'),
        None => false,
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(MAX_VARINT_BYTES) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * index as u32)?;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

const ADDRESS_TAG: u8 = 1 << 3 | 2;
const EXPIRES_TAG: u8 = 2 << 3;
const MAX_VARINT_BYTES: usize = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_form_is_envoys() {
        let cookie = SessionCookie { address: "127.0.0.1:37507".to_owned(), expires: 1_796_006_985 };
        assert_eq!(cookie.encode(), b"\x0a\x0f127.0.0.1:37507\x10\xc9\xc8\xb3\xd8\x06");
        let bare = SessionCookie::decode(b"10.0.0.1:80");
        assert_eq!(bare, Some(SessionCookie { address: "10.0.0.1:80".to_owned(), expires: 0 }));
        for bytes in [&b""[..], b"\x0a", b"\x0a\x05abc", b"\x0a\x01a\x18\x01", b"\xff"] {
            assert_eq!(SessionCookie::decode(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_cookie_ends_when_it_says() {
        let cookie = |expires| SessionCookie { address: String::new(), expires };
        assert!(cookie(0).is_valid(u64::MAX) && cookie(10).is_valid(9) && !cookie(10).is_valid(10));
    }

    #[test]
    fn cookies_are_for_paths_below_theirs() {
        for (cookie, path, expected) in [
            (None, "/x", true),
            (Some("/"), "/x", true),
            (Some("/a"), "/a", true),
            (Some("/a"), "/a?b", true),
            (Some("/a"), "/a/b", true),
            (Some("/a/"), "/a/b", true),
            (Some("/a"), "/ab", false),
            (Some("/a"), "/", false),
        ] {
            assert_eq!(cookie_path_matches(cookie, path), expected, "{cookie:?} {path}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(address in "[a-f0-9.:]{0,40}", expires: u64) {
            let cookie = SessionCookie { address, expires };
            prop_assert_eq!(SessionCookie::decode(&cookie.encode()), Some(cookie));
        }

        #[test]
        fn nothing_breaks_the_reading(bytes in prop::collection::vec(any::<u8>(), 0..30)) {
            let _ = SessionCookie::decode(&bytes);
        }
    }
}
