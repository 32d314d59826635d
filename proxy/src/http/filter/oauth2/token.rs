//! Asking the authorization server for tokens (RFC 6749 sections 4.1.3 and 6).
//!
//! Owns what is asked, and what an answer is worth. Never decides what follows.

use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outrigger_config::http::filters::ClientAuth;
use outrigger_config::http_uri::percent_encoded;
use outrigger_policy::oauth2::{TokenAnswer, TokenAnswerError};

use super::active::Ready;
use super::assertion;
use crate::http::filter::{Exchange, Verdict};
use crate::http::h1::parse::Framing;
use crate::http::message::RequestHead;
use crate::upstream::call::{self, Call, CallError};
use crate::upstream::repeated_call::call_repeatedly;

/// What tokens are asked for with.
pub(super) enum Grant {
    /// A code that a user brings, as it stands in the query.
    Code { code: String, redirect_uri: String, verifier: String },
    /// An older token.
    Refresh { token: String },
}

/// What came of it.
pub(super) enum Outcome {
    /// Tokens, and for how many seconds they hold.
    Tokens(TokenAnswer, u64),
    /// The server said no, with this status; or there is no answer, which counts as one of a gateway.
    Refused(u16),
    /// What cannot be used, and why.
    Useless(&'static str),
}

impl Ready {
    /// Asks, and does `then` with what came of it.
    pub(super) fn ask(
        self: Rc<Self>,
        grant: Grant,
        exchange: &mut Exchange<'_, '_, '_>,
        then: impl FnOnce(Rc<Self>, Outcome, &mut Exchange<'_, '_, '_>) -> Verdict + 'static,
    ) -> Verdict {
        let now = self.now(exchange);
        let Some(call) = self.question(&grant, now) else {
            let outcome = Outcome::Useless("Failed to create the client assertion");
            return then(self, outcome, exchange);
        };
        let worker = Rc::clone(exchange.worker());
        let ready = Rc::clone(&self);
        Verdict::wait(
            async move {
                let endpoint = &ready.settings.token_endpoint;
                let result = call_repeatedly(&worker, &endpoint.cluster, call, ready.settings.retries).await;
                ready.outcome(result)
            },
            move |outcome, exchange| then(self, outcome, exchange),
        )
    }

    /// `None` if we cannot prove who we are.
    fn question(&self, grant: &Grant, now: u64) -> Option<Call> {
        let endpoint = &self.settings.token_endpoint;
        let mut head = RequestHead::default();
        head.set_method(b"POST");
        head.set_scheme(b"http");
        head.set_authority(endpoint.authority.as_bytes());
        head.set_path(endpoint.path.as_bytes());
        head.headers.append(b"content-type", b"application/x-www-form-urlencoded");
        head.headers.append(b"accept", b"application/json");
        let mut body = match grant {
            Grant::Code { code, redirect_uri, verifier } => {
                let redirect_uri = percent_encoded(redirect_uri);
                format!(
                    "grant_type=authorization_code&code={code}&redirect_uri={redirect_uri}&code_verifier={verifier}"
                )
            }
            Grant::Refresh { token } => {
                format!("grant_type=refresh_token&refresh_token={}", percent_encoded(token))
            }
        };
        let id = percent_encoded(&self.settings.client_id);
        match &self.settings.client_auth {
            ClientAuth::Body(_) => {
                body.push_str(&format!("&client_id={id}&client_secret={}", percent_encoded(self.client_text()?)));
            }
            ClientAuth::Basic(_) => {
                let pair = STANDARD.encode(format!("{}:{}", self.settings.client_id, self.client_text()?));
                head.headers.append(b"authorization", format!("Basic {pair}").as_bytes());
            }
            ClientAuth::Certificate => body.push_str(&format!("&client_id={id}")),
            ClientAuth::Assertion(settings) => {
                let signed = assertion::sign(settings, &self.settings.client_id, self.client.as_deref()?, now)?;
                let kind = percent_encoded("urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
                body.push_str(&format!("&client_id={id}&client_assertion_type={kind}&client_assertion={signed}"));
            }
        }
        let length = body.len();
        head.headers.append(b"content-length", length.to_string().as_bytes());
        Some(Call {
            head,
            body: body.into_bytes(),
            framing: Framing::Length(length as u64),
            timeout: endpoint.timeout,
            // A code is good for once.
            repeatable: false,
            max_answer_bytes: MAX_ANSWER_BYTES,
            seen: None,
        })
    }

    /// The secret of the client, as text.
    fn client_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.client.as_deref()?.value).ok()
    }

    fn outcome(&self, result: Result<call::Answer, CallError>) -> Outcome {
        let answer = match result {
            Ok(answer) => answer,
            Err(CallError::NoCluster(_)) => return Outcome::Useless("Token endpoint cluster not found"),
            Err(error) => {
                tracing::debug!(cluster = &*self.settings.token_endpoint.cluster, "token endpoint: {error}");
                return Outcome::Refused(if matches!(error, CallError::Timeout(_)) { 504 } else { 503 });
            }
        };
        if answer.head.status != 200 {
            return Outcome::Refused(answer.head.status);
        }
        match TokenAnswer::parse(&answer.body) {
            Err(TokenAnswerError::Malformed) => Outcome::Useless("Failed to parse oauth response body"),
            Err(TokenAnswerError::NoToken) => Outcome::Useless("No access token found in the token exchange response"),
            Ok(answer) if !answer.is_plain() => Outcome::Useless("A token cannot stand in a cookie"),
            Ok(answer) => match answer.expires_in.unwrap_or(self.settings.default_expires_in) {
                0 => Outcome::Useless(
                    "No default or explicit access token expiration found in the token exchange response",
                ),
                seconds => Outcome::Tokens(answer, seconds),
            },
        }
    }
}

const MAX_ANSWER_BYTES: usize = 1 << 20;
