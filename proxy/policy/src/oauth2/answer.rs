//! The answer of a token endpoint (RFC 6749 section 5.1).
//!
//! Owns what of it counts. Never keeps a token.

use std::fmt;

use serde_json::{Map, Value};

/// What a server gives; a token is empty if there is none.
#[derive(Clone, Eq, PartialEq)]
pub struct TokenAnswer {
    /// For the upstream. Never printed.
    pub access: String,
    /// Who the user is. Never printed.
    pub id: String,
    /// For the next access token. Never printed.
    pub refresh: String,
    /// Seconds that the access token holds, as far as the server says.
    pub expires_in: Option<u64>,
}

impl fmt::Debug for TokenAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenAnswer").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

/// Why an answer gives nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenAnswerError {
    /// Not JSON, or something in it is of another type.
    #[error("is not the JSON of a token response")]
    Malformed,
    /// No access token.
    #[error("has no access token")]
    NoToken,
}

impl TokenAnswer {
    /// Reads the body of an answer with status 200.
    ///
    /// # Errors
    /// If it gives no access token.
    pub fn parse(body: &[u8]) -> Result<Self, TokenAnswerError> {
        let object: Map<String, Value> = serde_json::from_slice(body).map_err(|_| TokenAnswerError::Malformed)?;
        let text = |name: &str| match object.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(TokenAnswerError::Malformed),
        };
        let expires_in = match object.get("expires_in") {
            None | Some(Value::Null) => None,
            Some(value) => Some(seconds(value).ok_or(TokenAnswerError::Malformed)?),
        };
        Ok(Self {
            id: text("id_token")?.unwrap_or_default(),
            refresh: text("refresh_token")?.unwrap_or_default(),
            access: text("access_token")?.ok_or(TokenAnswerError::NoToken)?,
            expires_in,
        })
    }

    /// Whether all tokens can stand in headers and cookies.
    pub fn is_plain(&self) -> bool {
        let Self { access, id, refresh, expires_in: _ } = self;
        [access, id, refresh].into_iter().all(|token| is_plain(token.as_bytes()))
    }
}

/// Whether a token can stand in a header and as the value of a cookie (RFC 6749 appendix A.12, without what ends a cookie).
pub fn is_plain(token: &[u8]) -> bool {
    token.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b';') && token.trim_ascii().len() == token.len()
}

/// A whole number, or text that is one.
fn seconds(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => {
            let whole = |number: f64| number >= 0.0 && number.fract() == 0.0 && number < u64::MAX as f64;
            number.as_u64().or_else(|| number.as_f64().filter(|number| whole(*number)).map(|number| number as u64))
        }
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_may_be_text() {
        for expires in ["3600", "\"3600\"", "3600.0"] {
            let body = format!("{{\"access_token\":\"a\",\"expires_in\":{expires},\"scope\":[1]}}");
            let answer = TokenAnswer::parse(body.as_bytes()).unwrap();
            assert_eq!((&*answer.access, answer.expires_in, &*answer.refresh), ("a", Some(3600), ""));
        }
    }

    #[test]
    fn what_gives_nothing() {
        let parse = |body: &str| TokenAnswer::parse(body.as_bytes()).unwrap_err();
        assert_eq!(parse("{}"), TokenAnswerError::NoToken);
        assert_eq!(parse("{\"access_token\":null}"), TokenAnswerError::NoToken);
        for body in [
            "",
            "[]",
            "{\"access_token\":1}",
            "{\"access_token\":\"a\",\"expires_in\":-1}",
            "{\"access_token\":\"a\",\"expires_in\":1.5}",
        ] {
            assert_eq!(parse(body), TokenAnswerError::Malformed, "{body}");
        }
    }

    #[test]
    fn a_token_that_would_break_a_cookie() {
        let plain = |token: &str| {
            let body = serde_json::json!({ "access_token": token }).to_string();
            TokenAnswer::parse(body.as_bytes()).unwrap().is_plain()
        };
        assert!(plain("a.b-c_d~e+f/g==") && plain("a b"));
        assert!(!plain("a; Domain=x") && !plain("a\r\nb") && !plain("é") && !plain(" a"));
        let answer = TokenAnswer::parse(b"{\"access_token\":\"secret\"}").unwrap();
        assert!(!format!("{answer:?}").contains("secret"));
    }
}
