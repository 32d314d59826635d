//! Users who come back from the authorization server (RFC 6749 section 4.1.2).
//!
//! Owns what of their requests is believed, and where they go then. Never believes anything that the cookies of the sign-in
//! do not say, too.

use std::collections::BTreeMap;
use std::rc::Rc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use outrigger_policy::oauth2::{RequestCookies, State, is_allowed};

use super::active::{Ready, sealing};
use super::set_cookie::ResponseCookies;
use super::token::{Grant, Outcome};
use super::{cookies_of, path_of, plain_path, written};
use crate::http::filter::{Exchange, Verdict};
use crate::http::manager::reply::LocalReply;

/// Someone who has been at the server.
struct Arrival {
    code: String,
    state: State,
}

/// Why someone is not believed, and which sign-in is over.
struct Doubt {
    details: String,
    flow: String,
}

fn doubt(details: impl Into<String>, flow: &str) -> Doubt {
    Doubt { details: details.into(), flow: flow.to_owned() }
}

impl Ready {
    /// Lets the server tell who the user is.
    pub(super) fn sign_in(self: Rc<Self>, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let cookies = cookies_of(exchange);
        let Arrival { code, state } = match self.arrival(&path_of(exchange), &cookies) {
            Ok(arrival) => arrival,
            Err(Doubt { details, flow }) => return self.refuse(details, &flow),
        };
        let State { url, nonce: _, flow } = state;
        let Some(sealed) = of_flow(&cookies, &self.settings.cookies.code_verifier.name, &flow) else {
            return self.refuse("Code verifier cookie is missing in the request", &flow);
        };
        let verifier = self.open(sealed, exchange).and_then(|verifier| String::from_utf8(verifier).ok());
        let Some(verifier) = verifier else {
            return self.refuse("Failed to decrypt code verifier", &flow);
        };
        let redirect_uri = written(&self.settings.redirect_uri, exchange);
        let grant = Grant::Code { code, redirect_uri, verifier };
        self.ask(grant, exchange, move |ready, outcome, exchange| match outcome {
            Outcome::Tokens(answer, expires_in) => {
                let granted = ready.granted(answer, expires_in, ready.now(exchange));
                let response = ResponseCookies {
                    ready: &ready,
                    granted: &granted,
                    request: &cookies_of(exchange),
                    domain: ready.domain(exchange),
                    sealing: sealing(exchange),
                };
                let mut reply = LocalReply::new(302, "oauth.logged_in");
                let cookies = response.all().into_iter().chain(ready.forget_flow(&flow));
                cookies.for_each(|cookie| reply.header("set-cookie", cookie));
                reply.location = Some(url);
                ready.stats.oauth_success.increment();
                Verdict::reply(reply)
            }
            // What the server says stays out of logs: it may hold tokens.
            Outcome::Refused(status) => {
                ready.refuse(format!("Failed to get access token: response code: {status}"), &flow)
            }
            Outcome::Useless(reason) => ready.refuse(reason, &flow),
        })
    }

    /// Sends a user, who has signed in meanwhile, to where the user wanted to go.
    pub(super) fn already_signed_in(&self, exchange: &Exchange<'_, '_, '_>) -> Verdict {
        let state = match self.arrival(&path_of(exchange), &cookies_of(exchange)) {
            Ok(arrival) => arrival.state,
            Err(Doubt { details, flow }) => return self.refuse(details, &flow),
        };
        if self.settings.redirect_path.matches(plain_path(state.path()).as_bytes()) {
            // Or there would be no end.
            let reason = "State url query params matches the redirect path matcher";
            return self.refuse(format!("{reason}: {}", state.path()), &state.flow);
        }
        let mut reply = LocalReply::new(302, "oauth.race_redirect");
        self.forget_flow(&state.flow).into_iter().for_each(|cookie| reply.header("set-cookie", cookie));
        reply.location = Some(state.url);
        Verdict::reply(reply)
    }

    fn arrival(&self, path: &str, cookies: &RequestCookies) -> Result<Arrival, Doubt> {
        let parameters = Parameters::parse(path);
        let state = parameters.first("state");
        if parameters.first("error").is_some() {
            let flow = state.and_then(|state| {
                self.state(state, cookies).map_or_else(|doubt| Some(doubt.flow), |state| Some(state.flow))
            });
            let details = format!("OAuth server returned an error: {}", parameters.text());
            return Err(doubt(details, &flow.unwrap_or_default()));
        }
        let (Some(code), Some(state)) = (parameters.first("code"), state) else {
            return Err(doubt(format!("Code or state query param does not exist: {}", parameters.text()), ""));
        };
        Ok(Arrival { code: code.to_owned(), state: self.state(state, cookies)? })
    }

    /// The state, once the cookies of the sign-in say the same.
    fn state(&self, text: &str, cookies: &RequestCookies) -> Result<State, Doubt> {
        let state = State::decode(text).map_err(|error| doubt(error.to_string(), ""))?;
        let nonce = of_flow(cookies, &self.settings.cookies.nonce.name, &state.flow).unwrap_or_default();
        let is_same = verify_slices_are_equal(nonce, state.nonce.as_bytes()).is_ok();
        if nonce.is_empty() || !is_same || !self.keys.is_nonce(&state.nonce) {
            return Err(doubt("CSRF token validation failed", ""));
        }
        if !state.leads_somewhere() {
            return Err(doubt(format!("State url can not be initialized: {}", state.url), &state.flow));
        }
        if !is_allowed(&state.url, &self.settings.allowed_domains) {
            let reason = "State url host is not in the allowed redirect domains";
            return Err(doubt(format!("{reason}: {}", state.url), &state.flow));
        }
        Ok(state)
    }
}

/// The cookie of a sign-in; that of whichever sign-in if it has none of its own, as older versions of Envoy make them.
fn of_flow<'c>(cookies: &'c RequestCookies, kind: &str, flow: &str) -> Option<&'c [u8]> {
    cookies.get(&format!("{kind}.{flow}")).or_else(|| cookies.get(kind))
}

/// The parameters of a path, as they stand there.
struct Parameters<'p>(BTreeMap<&'p str, Vec<&'p str>>);

impl<'p> Parameters<'p> {
    fn parse(path: &'p str) -> Self {
        let query = path.split_once('?').map_or("", |(_, query)| query);
        let query = query.split('#').next().unwrap_or_default();
        let mut all = BTreeMap::<_, Vec<_>>::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            all.entry(name).or_default().push(value);
        }
        Self(all)
    }

    fn first(&self, name: &str) -> Option<&'p str> {
        self.0.get(name)?.first().copied()
    }

    /// All by name, for logs. Codes are good for once, and stay out of them.
    fn text(&self) -> String {
        let values = self.0.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
        let pairs: Vec<_> = values
            .map(|(name, value)| if *name == "code" { format!("{name}=<hidden>") } else { format!("{name}={value}") })
            .collect();
        if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_told_by_name_without_codes() {
        let parameters = Parameters::parse("/callback?state=s&code=c&error&code=d#code=e");
        assert_eq!((parameters.first("code"), parameters.first("error")), (Some("c"), Some("")));
        assert_eq!(parameters.text(), "?code=<hidden>&code=<hidden>&error=&state=s");
        assert_eq!(Parameters::parse("/callback").text(), "");
    }
}
