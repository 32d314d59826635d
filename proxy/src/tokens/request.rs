//! What an authorization server is asked for a token of ours, and what its answer is worth.
//!
//! Owns both as plain values. Never asks.

use http::StatusCode;
use outrigger_config::http::filters::ClientToken;
use outrigger_config::http_uri::percent_encoded;
use outrigger_policy::oauth2::{TokenAnswer, is_plain};

/// A form with who we are and what we want (RFC 6749 section 4.4.2).
pub(super) fn body(settings: &ClientToken, secret: &str) -> String {
    let ClientToken { client_id, scopes, parameters, .. } = settings;
    let (id, secret) = (percent_encoded(client_id), percent_encoded(secret));
    let mut body = format!("grant_type=client_credentials&client_id={id}&client_secret={secret}");
    if !scopes.is_empty() {
        body.push_str("&scope=");
        body.push_str(&percent_encoded(&scopes.join(" ")));
    }
    for (name, value) in parameters {
        body.push_str(&format!("&{}={}", percent_encoded(name), percent_encoded(value)));
    }
    body
}

/// Why there is no token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Refused {
    /// The server said no.
    #[error("answered with {0}")]
    Status(u16),
    /// The server said something else.
    #[error("the answer has no access_token with expires_in")]
    Malformed,
}

/// The token, and for how many seconds it holds.
pub(super) fn token(status: StatusCode, body: &[u8]) -> Result<(String, u64), Refused> {
    if status != StatusCode::OK {
        return Err(Refused::Status(status.as_u16()));
    }
    match TokenAnswer::parse(body) {
        Ok(TokenAnswer { access, expires_in: Some(seconds), .. }) if is_plain(access.as_bytes()) => {
            Ok((access, seconds))
        }
        Ok(_) | Err(_) => Err(Refused::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_config::http_uri::HttpTarget;
    use outrigger_config::tls::SecretRef;

    use super::*;

    #[test]
    fn everything_is_escaped() {
        let settings = ClientToken {
            endpoint: HttpTarget {
                uri: "http://idp/token".into(),
                authority: "idp".into(),
                path: "/token".into(),
                cluster: "idp".into(),
                timeout: None,
            },
            client_id: "me&%é :".into(),
            secret: SecretRef { name: "s".into(), source: None },
            scopes: ["a".to_owned(), "b c".to_owned()].into(),
            parameters: [("aud ience&".to_owned(), "x y/&%é~+".to_owned()), ("b".to_owned(), String::new())].into(),
            retry_interval: Duration::from_secs(1),
        };
        // What Envoy 1.40 sends, but for the tilde, which needs no escape.
        assert_eq!(
            body(&settings, "s%e c~r+e&t=é:/"),
            "grant_type=client_credentials&client_id=me%26%25%C3%A9%20%3A\
             &client_secret=s%25e%20c~r%2Be%26t%3D%C3%A9%3A%2F&scope=a%20b%20c\
             &aud%20ience%26=x%20y%2F%26%25%C3%A9~%2B&b="
        );
    }

    #[test]
    fn what_is_not_a_token_is_refused() {
        let ok = |body: &str| token(StatusCode::OK, body.as_bytes());
        assert_eq!(ok("{\"access_token\":\"a\",\"expires_in\":60}"), Ok(("a".to_owned(), 60)));
        assert_eq!(ok("{\"access_token\":\"a\"}"), Err(Refused::Malformed));
        assert_eq!(ok("{\"access_token\":\"a\\r\\nx: y\",\"expires_in\":60}"), Err(Refused::Malformed));
        assert_eq!(token(StatusCode::FORBIDDEN, b"{}"), Err(Refused::Status(403)));
    }
}
