//! What travels through the authorization server with a user (`state`, RFC 6749 section 4.1.1).
//!
//! Owns its form, and what may be believed of it. Never follows where it leads.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::domains::host_of;

/// Where a user wanted to go, and which sign-in it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct State {
    /// Where to.
    pub url: String,
    /// What the cookie of the sign-in must hold.
    pub nonce: String,
    /// Tells its cookies from those of others; may be empty.
    pub flow: String,
}

/// Why a state is of no use.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StateError {
    /// Not JSON.
    #[error("State query param is not a valid JSON: {0}")]
    NotJson(String),
    /// Something is missing.
    #[error("State query param does not contain url or CSRF token: {0}")]
    Incomplete(String),
}

impl State {
    /// As the parameter of a URL.
    pub fn encode(&self) -> String {
        let Self { url, nonce, flow } = self;
        // In this order.
        let text = |text: &str| Value::from(text).to_string();
        let json = format!("{{\"url\":{},\"csrf_token\":{},\"flow_id\":{}}}", text(url), text(nonce), text(flow));
        BASE64URL.encode(json)
    }

    /// Reads the parameter. Nothing of it is to be believed before the nonce was compared.
    ///
    /// # Errors
    /// If it is not what [`Self::encode`] writes.
    pub fn decode(text: &str) -> Result<Self, StateError> {
        let bytes = BASE64URL.decode(text).unwrap_or_default();
        let shown = || String::from_utf8_lossy(&bytes).into_owned();
        let object: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|_| StateError::NotJson(shown()))?;
        let text = |name: &str| object.get(name).map(|value| value.as_str().unwrap_or_default().to_owned());
        match (text("url"), text("csrf_token")) {
            (Some(url), Some(nonce)) => Ok(Self { url, nonce, flow: text("flow_id").unwrap_or_default() }),
            _ => Err(StateError::Incomplete(shown())),
        }
    }

    /// Whether [`Self::url`] is one that a browser can be sent to.
    pub fn leads_somewhere(&self) -> bool {
        let is_http = self.url.starts_with("http://") || self.url.starts_with("https://");
        is_http && host_of(&self.url).is_some() && self.url.bytes().all(|byte| byte.is_ascii_graphic())
    }

    /// Path and query of [`Self::url`].
    pub fn path(&self) -> &str {
        let rest = self.url.split_once("://").map_or("", |(_, rest)| rest);
        rest.find(['/', '?', '#']).map_or("/", |start| &rest[start..])
    }
}

/// The name of a sign-in.
pub fn flow_id(random: u64) -> String {
    format!("{random:016x}")
}

/// Padding may be left out.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_envoy_writes_is_read_and_written_alike() {
        let text = "eyJ1cmwiOiJodHRwOi8vMTI3LjAuMC4xOjE5OTAyL3BhdGg_eD0xIiwiY3NyZl90b2tlbiI6ImJkMTA2YmJjZjQ1ZDczZWEuakRZUX\
                    lPa0NCWHdnenFKZk41VlNjelFLZjd1SG4yQW1uOHF0V1FrQldocz0iLCJmbG93X2lkIjoiYmQxMDZiYmNmNDVkNzNlYSJ9";
        let state = State::decode(text).unwrap();
        assert_eq!((&*state.url, &*state.flow), ("http://127.0.0.1:19902/path?x=1", "bd106bbcf45d73ea"));
        assert_eq!(state.nonce, "bd106bbcf45d73ea.jDYQyOkCBXwgzqJfN5VSczQKf7uHn2Amn8qtWQkBWhs=");
        assert_eq!((state.encode(), state.path()), (text.to_owned(), "/path?x=1"));
        assert!(state.leads_somewhere());
    }

    #[test]
    fn what_leads_nowhere() {
        for url in
            ["", "/path", "//host/", "javascript:alert(1)", "javascript://host/%0aalert(1)", "http://", "http://a b/"]
        {
            let state = State { url: url.into(), nonce: String::new(), flow: String::new() };
            assert!(!state.leads_somewhere(), "{url}");
        }
    }

    #[test]
    fn what_is_no_state() {
        let encoded = |text: &str| BASE64URL.encode(text);
        assert!(matches!(State::decode("%%"), Err(StateError::NotJson(_))));
        assert!(matches!(State::decode(&encoded("[]")), Err(StateError::NotJson(_))));
        assert!(matches!(State::decode(&encoded("{\"url\":\"x\"}")), Err(StateError::Incomplete(_))));
    }

    proptest! {
        #[test]
        fn a_state_comes_back(url in "\\PC{0,40}", nonce in "[a-z0-9.]{0,20}", flow in "[0-9a-f]{0,16}") {
            let state = State { url, nonce, flow };
            prop_assert_eq!(State::decode(&state.encode()), Ok(state));
        }
    }
}
