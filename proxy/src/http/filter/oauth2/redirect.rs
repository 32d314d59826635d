//! Sending users away: to sign in, and after signing out.
//!
//! Owns the addresses that they are sent to. Never asks the server.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use outrigger_config::http::filters::{Afterwards, EndSession};
use outrigger_config::http_uri::percent_encoded;
use outrigger_policy::oauth2::{State, code_challenge, flow_id, is_allowed};

use super::active::{Ready, random, sealing};
use super::{cookies_of, is_of_flow, path_of, scheme_of, written};
use crate::http::filter::{Exchange, Verdict};
use crate::http::manager::reply::LocalReply;

impl Ready {
    /// Sends a user to sign in.
    pub(super) fn send_to_sign_in(&self, exchange: &Exchange<'_, '_, '_>) -> Verdict {
        let settings = &self.settings;
        let base = match &settings.original_request_uri {
            Some(format) => written(format, exchange),
            None => format!("{}://{}", scheme_of(exchange), exchange.head().authority_str()),
        };
        if !is_allowed(&base, &settings.allowed_domains) {
            let reason = "authority or original_request_uri failed domain allow-list validation";
            return self.refuse(format!("{reason}: {base}"), "");
        }
        let redirect_uri = written(&settings.redirect_uri, exchange);
        if !is_allowed(&redirect_uri, &settings.allowed_domains) {
            return self.refuse(format!("redirect_uri failed domain allow-list validation: {redirect_uri}"), "");
        }
        let Some(secrets) = FlowSecrets::new() else { return unavailable() };
        let FlowSecrets { flow, verifier } = &secrets;
        let Some(sealed) = self.seal(verifier, sealing(exchange)) else { return unavailable() };
        let nonce = self.keys.nonce(flow);
        let state = State { url: base + &path_of(exchange), nonce, flow: flow.clone() };
        let mut parameters = settings.authorization.parameters.clone();
        for (name, value) in [
            ("state", state.encode()),
            ("redirect_uri", percent_encoded(&redirect_uri)),
            ("code_challenge", code_challenge(verifier)),
            ("code_challenge_method", "S256".to_owned()),
        ] {
            parameters.insert(name.to_owned(), value);
        }
        let query: Vec<_> = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let authorization = &settings.authorization;
        let location = format!("{}?{}{}", authorization.address, query.join("&"), authorization.resources);
        let mut reply = LocalReply::new(302, "oauth.missing_credentials");
        let names = &settings.cookies;
        for (kind, value, age) in [
            (&names.nonce, &state.nonce, settings.csrf_expires_in),
            (&names.code_verifier, &sealed, settings.code_verifier_expires_in),
        ] {
            // The second one is for versions of Envoy that know one sign-in at a time.
            for name in [format!("{}.{flow}", kind.name), kind.name.to_string()] {
                reply.header("set-cookie", self.cookie(&name, value, kind, age));
            }
        }
        reply.location = Some(location);
        self.stats.oauth_unauthorized_rq.increment();
        Verdict::reply(reply)
    }

    /// Signs a user out.
    pub(super) fn sign_out(&self, exchange: &Exchange<'_, '_, '_>) -> Verdict {
        let names = &self.settings.cookies;
        let mut reply = LocalReply::new(302, "oauth.sign_out");
        for kind in [&names.hmac, &names.bearer_token, &names.id_token, &names.refresh_token, &names.expires] {
            reply.header("set-cookie", self.no_cookie(&kind.name, kind));
        }
        let cookies = cookies_of(exchange);
        for name in cookies.names() {
            let kind = [&names.nonce, &names.code_verifier].into_iter().find(|kind| is_of_flow(name, &kind.name));
            if let (Some(kind), Ok(name)) = (kind, std::str::from_utf8(name)) {
                reply.header("set-cookie", self.no_cookie(name, kind));
            }
        }
        let root = format!("{}://{}/", exchange.head().scheme_str(), exchange.head().authority_str());
        reply.location = Some(match &self.settings.end_session {
            None => root,
            Some(end) => {
                let id_token = cookies.get(&names.id_token.name).unwrap_or_default();
                self.end_session(end, &String::from_utf8_lossy(id_token), root, exchange)
            }
        });
        Verdict::reply(reply)
    }

    fn end_session(&self, end: &EndSession, id_token: &str, root: String, exchange: &Exchange<'_, '_, '_>) -> String {
        let EndSession { endpoint, afterwards } = end;
        let client_id = &self.settings.client_id;
        let mark = if endpoint.contains('?') { '&' } else { '?' };
        let mut url = format!("{endpoint}{mark}id_token_hint={id_token}&client_id={client_id}");
        let afterwards = match afterwards {
            Afterwards::Untold => return url,
            Afterwards::Root => root,
            Afterwards::Uri(format) => written(format, exchange),
        };
        url.push_str("&post_logout_redirect_uri=");
        url.push_str(&percent_encoded(&afterwards));
        url
    }
}

/// What a sign-in begins with.
struct FlowSecrets {
    flow: String,
    verifier: String,
}

impl FlowSecrets {
    /// `None` if the system has no random numbers.
    fn new() -> Option<Self> {
        let flow = flow_id(u64::from_be_bytes(random()?));
        let verifier = URL_SAFE_NO_PAD.encode(random::<32>()?);
        Some(Self { flow, verifier })
    }
}

/// Without random numbers nobody can sign in.
fn unavailable() -> Verdict {
    Verdict::reply(LocalReply::new(503, "oauth.no_random_numbers").body(&b"Service Unavailable"[..]))
}
