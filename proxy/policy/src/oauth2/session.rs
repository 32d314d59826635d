//! A user who has signed in, as cookies tell.
//!
//! Owns whether they are to be believed, and for how long. Never knows what time it is.

use super::cookies::RequestCookies;
use super::seal::Keys;
use crate::jwt::Token;

/// Tokens of a user; each is empty if there is none.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tokens {
    /// For the upstream.
    pub access: String,
    /// Who the user is.
    pub id: String,
    /// For the next access token.
    pub refresh: String,
}

/// What cookies say of a user, believed or not.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Session {
    /// The tokens, opened.
    pub tokens: Tokens,
    /// In seconds since 1970, as the cookie has it.
    pub expires: String,
    /// What vouches for it.
    pub signature: Vec<u8>,
}

impl Session {
    /// Reads cookies by their names: access token, ID token, refresh token, end, signature. Text that is not UTF-8 is
    /// nobody's.
    pub fn read(cookies: &RequestCookies, names: [&str; 5]) -> Self {
        let text = |name: &str| {
            let value = cookies.get(name).and_then(|value| std::str::from_utf8(value).ok());
            value.unwrap_or_default().to_owned()
        };
        let [access, id, refresh, expires, signature] = names;
        Self {
            tokens: Tokens { access: text(access), id: text(id), refresh: text(refresh) },
            expires: text(expires),
            signature: cookies.get(signature).unwrap_or_default().to_vec(),
        }
    }

    /// Whether the user has signed in in `domain`, and is still, `now` seconds after 1970.
    pub fn is_valid(&self, keys: &Keys, domain: &str, now: u64) -> bool {
        let is_plain = !self.expires.is_empty() && self.expires.bytes().all(|byte| byte.is_ascii_digit());
        let lasts = is_plain && self.expires.parse::<u64>().is_ok_and(|expires| expires > now);
        // The signature counts whatever the time is.
        keys.is_vouched(&self.signature, domain, &self.expires, &self.tokens) & lasts
    }
}

/// For how many seconds from `now` on a token holds that says so itself; `None` if it does not say so.
pub fn expiry_of(token: &str, now: u64) -> Option<u64> {
    let token = Token::parse(token.as_bytes()).ok().filter(|token| token.expires_s > 0)?;
    Some(token.expires_s.saturating_sub(now))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    const NAMES: [&str; 5] = ["BearerToken", "IdToken", "RefreshToken", "OauthExpires", "OauthHMAC"];

    #[test]
    fn a_user_is_signed_in_until_the_end_that_was_signed() {
        let keys = Keys::new(b"secret");
        let tokens = Tokens { access: "AT".into(), ..Tokens::default() };
        let signature = keys.vouch("host", "100", &tokens);
        let header = format!("OauthHMAC={signature}; OauthExpires=100; BearerToken=AT");
        let read = |header: &str| Session::read(&RequestCookies::parse([header.as_bytes()]), NAMES);
        let session = read(&header);
        assert!(session.is_valid(&keys, "host", 99) && !session.is_valid(&keys, "host", 100));
        assert!(!session.is_valid(&keys, "other", 99));
        assert!(!read(&header.replace("100", "1000")).is_valid(&keys, "host", 99));
        assert!(!read(&header.replace("=AT", "=BT")).is_valid(&keys, "host", 99));
        assert!(!read("").is_valid(&keys, "host", 0));
    }

    #[test]
    fn a_token_may_say_how_long_it_holds() {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let token = |claims: &str| format!("{}.{}.{}", part("{\"alg\":\"RS256\"}"), part(claims), part("x"));
        assert_eq!(expiry_of(&token("{\"exp\":110}"), 100), Some(10));
        assert_eq!(expiry_of(&token("{\"exp\":90}"), 100), Some(0));
        assert_eq!(expiry_of(&token("{}"), 100), None);
        assert_eq!(expiry_of("opaque", 100), None);
    }
}
