//! Signing users in at an authorization server (`envoy.extensions.filters.http.oauth2.v3`).
//!
//! Owns the way of a request: let through, signed in, sent to sign in, back from there, signed out. What cookies and the
//! state mean is decided in `outrigger_policy::oauth2`; the server is asked in `token`. Never keeps a user: all that
//! is known of one stands in cookies.

mod active;
mod assertion;
mod callback;
mod redirect;
mod set_cookie;
mod token;

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::OAuth2 as Settings;
use outrigger_policy::oauth2::{RequestCookies, Session, TokenAnswer};
use outrigger_policy::route::request_header_matches;

use self::active::{Active, Ready, sealing};
use self::set_cookie::ResponseCookies;
use self::token::{Grant, Outcome};
use super::routed::Routed;
use super::shared::SettingsStates;
use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::accesslog::format;
use crate::http::manager::reply::LocalReply;
use crate::scope;
use crate::worker::Worker;

scope! {
    /// Stats of the filter (`http.<prefix>.<stat_prefix>.*`; of settings of routes without what stands before
    /// `<stat_prefix>`, as in Envoy).
    pub struct OAuth2Stats {
        oauth_allow_failed_passthrough: Counter,
        oauth_failure: Counter,
        oauth_legacy_cbc_decrypt: Counter,
        oauth_passthrough: Counter,
        oauth_refreshtoken_failure: Counter,
        oauth_refreshtoken_success: Counter,
        oauth_success: Counter,
        oauth_unauthorized_rq: Counter,
    }
}

/// The filter.
pub struct OAuth2 {
    settings: Option<Arc<Settings>>,
    /// Of the chain and of routes.
    active: SettingsStates<Settings, Active>,
    prefix: String,
}

/// What a response gets.
#[derive(Default)]
struct ForResponse(Vec<Vec<u8>>);

impl OAuth2 {
    /// A filter; `None` as settings does nothing where routes have none.
    pub fn new(settings: Option<&Arc<Settings>>, maker: &Maker<'_>) -> Self {
        let filter = Self {
            settings: settings.map(Arc::clone),
            active: SettingsStates::default(),
            prefix: maker.prefix.clone(),
        };
        // So that its stats are there from the start.
        if let Some(settings) = &filter.settings {
            filter.active(settings, maker.worker, &filter.prefix);
        }
        filter
    }

    fn active(&self, settings: &Arc<Settings>, worker: &Worker, prefix: &str) -> Rc<Active> {
        self.active.get(settings, || Active::new(settings, worker, prefix))
    }
}

impl HttpFilter for OAuth2 {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let headers = &mut exchange.head_mut().headers;
        headers.remove_by_name(STATUS_HEADER);
        headers.remove_by_name(REASON_HEADER);
        let of_route = exchange.route_configs().find_map(|config| match config {
            RouteFilterConfig::OAuth2(settings) => Some(settings),
            _ => None,
        });
        let (settings, prefix) = match (of_route, &self.settings) {
            (Some(settings), _) => (settings, ""),
            (None, Some(settings)) => (settings, &*self.prefix),
            (None, None) => return Verdict::Continue,
        };
        let active = self.active(settings, exchange.worker(), prefix);
        if matches_any(&settings.pass_through, exchange) {
            active.stats.oauth_passthrough.increment();
            return Verdict::Continue;
        }
        match active.ready(exchange.graph()) {
            Some(ready) => Rc::new(ready).look(exchange),
            None => {
                active.stats.oauth_failure.increment();
                let reply = LocalReply::new(503, "OAuth2 secrets are not ready");
                Verdict::reply(reply.body(&b"Service Unavailable"[..]))
            }
        }
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let cookies = exchange.known_state::<ForResponse>().map(|wanted| std::mem::take(&mut wanted.0));
        let headers = &mut exchange.response_mut().headers;
        for cookie in cookies.into_iter().flatten() {
            headers.append(b"set-cookie", &cookie);
        }
        Verdict::Continue
    }
}

fn matches_any(matchers: &[outrigger_config::route::HeaderMatcher], exchange: &Exchange<'_, '_, '_>) -> bool {
    let view = Routed(exchange.stream());
    matchers.iter().any(|matcher| request_header_matches(matcher, &view))
}

/// The cookies of a request.
fn cookies_of(exchange: &Exchange<'_, '_, '_>) -> RequestCookies {
    RequestCookies::parse(exchange.head().headers.get_all_by_name("cookie"))
}

fn set_cookies(cookies: &RequestCookies, exchange: &mut Exchange<'_, '_, '_>) {
    let headers = &mut exchange.head_mut().headers;
    match cookies.is_empty() {
        true => drop(headers.remove_by_name("cookie")),
        false => headers.set_by_name("cookie", &cookies.header()),
    }
}

/// The path without its query.
fn plain_path(path: &str) -> &str {
    path.split(['?', '#']).next().unwrap_or_default()
}

/// What a format makes of the request.
fn written(format: &outrigger_config::format::Format, exchange: &Exchange<'_, '_, '_>) -> String {
    let mut text = Vec::new();
    format::write(format, &exchange.stream().facts(), &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

impl Ready {
    /// What becomes of a request.
    fn look(self: Rc<Self>, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let settings = &self.settings;
        self.open_cookies(exchange);
        let headers = &mut exchange.head_mut().headers;
        if !settings.preserve_authorization {
            // Nobody has vouched for it.
            headers.remove_by_name("authorization");
        }
        if let Some(header) = &settings.forward_id_token {
            headers.remove_by_name(header);
        }
        let path = exchange.head().path_str();
        let is_back = settings.redirect_path.matches(plain_path(path).as_bytes());
        if settings.signout_path.matches(plain_path(path).as_bytes()) {
            return self.sign_out(exchange);
        }
        let cookies = cookies_of(exchange);
        let session = self.session(&cookies);
        if session.is_valid(&self.keys, self.domain(exchange), self.now(exchange)) {
            self.stats.oauth_success.increment();
            self.forward(&session.tokens.access, &session.tokens.id, exchange);
            if is_back {
                return self.already_signed_in(exchange);
            }
            self.without_flow(cookies, exchange);
            return Verdict::Continue;
        }
        if is_back {
            return self.sign_in(exchange);
        }
        if settings.use_refresh_token && !session.tokens.refresh.is_empty() {
            return self.renew(session.tokens.refresh, exchange);
        }
        let path = path_of(exchange);
        let allowed = format!("Unauthorized, and forwarding as unauthorized because OAuth failure is allowed: {path}");
        let denied = format!("Unauthorized, and redirecting to OAuth server is not allowed: {path}");
        self.not_signed_in(&allowed, denied.into(), exchange)
    }

    /// Opens the cookies that hold tokens. What cannot be opened stays, and nothing will vouch for it.
    fn open_cookies(&self, exchange: &mut Exchange<'_, '_, '_>) {
        if !self.settings.seals_tokens {
            return;
        }
        let mut cookies = cookies_of(exchange);
        let names = &self.settings.cookies;
        let mut opened = false;
        for cookie in [&names.bearer_token, &names.id_token, &names.refresh_token] {
            let text = cookies.get(&cookie.name).map(|sealed| self.open(sealed, exchange));
            match text {
                Some(Some(text)) => {
                    cookies.set(&cookie.name, &text);
                    opened = true;
                }
                Some(None) => opened = true,
                None => {}
            }
        }
        if opened {
            set_cookies(&cookies, exchange);
        }
    }

    fn session(&self, cookies: &RequestCookies) -> Session {
        let names = &self.settings.cookies;
        let names = [&names.bearer_token, &names.id_token, &names.refresh_token, &names.expires, &names.hmac];
        Session::read(cookies, names.map(|cookie| &*cookie.name))
    }

    /// Tells the upstream who the user is.
    fn forward(&self, access: &str, id: &str, exchange: &mut Exchange<'_, '_, '_>) {
        let headers = &mut exchange.head_mut().headers;
        if self.settings.forward_bearer_token && !access.is_empty() {
            headers.set_by_name("authorization", format!("Bearer {access}").as_bytes());
        }
        if let Some(header) = self.settings.forward_id_token.as_deref().filter(|_| !id.is_empty()) {
            match header {
                "authorization" => headers.set_by_name(header, format!("Bearer {id}").as_bytes()),
                header => headers.set_by_name(header, id.as_bytes()),
            }
        }
    }

    /// Takes away what is between the user and us.
    fn without_flow(&self, mut cookies: RequestCookies, exchange: &mut Exchange<'_, '_, '_>) {
        let names = &self.settings.cookies;
        let own = [&names.hmac, &names.expires, &names.refresh_token];
        cookies.remove_where(|name| {
            own.iter().any(|cookie| cookie.name.as_bytes() == name)
                || [&names.nonce, &names.code_verifier].iter().any(|cookie| is_of_flow(name, &cookie.name))
        });
        set_cookies(&cookies, exchange);
    }

    /// What becomes of a request of nobody.
    fn not_signed_in(&self, allowed: &str, denied: Cow<'static, str>, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        if self.may_fail(exchange) {
            return self.go_on_as_nobody(allowed, exchange);
        }
        if matches_any(&self.settings.deny_redirect, exchange) {
            return self.refuse(denied, "");
        }
        self.send_to_sign_in(exchange)
    }

    /// Whether the request may go on without a user. One that is for us may not.
    fn may_fail(&self, exchange: &Exchange<'_, '_, '_>) -> bool {
        let path = exchange.head().path_str();
        !self.settings.redirect_path.matches(plain_path(path).as_bytes())
            && matches_any(&self.settings.allow_failed, exchange)
    }

    fn go_on_as_nobody(&self, reason: &str, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let mut cookies = cookies_of(exchange);
        let names = &self.settings.cookies;
        cookies.remove_where(|name| {
            [&names.bearer_token, &names.id_token].iter().any(|cookie| cookie.name.as_bytes() == name)
        });
        self.without_flow(cookies, exchange);
        let headers = &mut exchange.head_mut().headers;
        headers.set_by_name(STATUS_HEADER, b"failed");
        headers.set_by_name(REASON_HEADER, reason.as_bytes());
        self.stats.oauth_allow_failed_passthrough.increment();
        Verdict::Continue
    }

    /// Refuses a request, and forgets the sign-in `flow` unless it is empty.
    fn refuse(&self, details: impl Into<Cow<'static, str>>, flow: &str) -> Verdict {
        self.stats.oauth_failure.increment();
        let mut reply = LocalReply::new(401, details).body(&b"OAuth flow failed."[..]);
        if !flow.is_empty() {
            self.forget_flow(flow).into_iter().for_each(|cookie| reply.header("set-cookie", cookie));
        }
        Verdict::reply(reply)
    }

    /// Asks for a new access token.
    fn renew(self: Rc<Self>, refresh: String, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        self.ask(Grant::Refresh { token: refresh }, exchange, |ready, outcome, exchange| {
            let failed = |exchange: &mut Exchange<'_, '_, '_>| {
                ready.stats.oauth_refreshtoken_failure.increment();
                let allowed = "Failed to refresh the access token, and forwarding as unauthorized because OAuth failure \
                               is allowed";
                let denied = "Failed to refresh the access token, and redirecting to OAuth server is not allowed";
                ready.not_signed_in(allowed, denied.into(), exchange)
            };
            match outcome {
                Outcome::Tokens(answer, expires_in) => ready.renewed(answer, expires_in, exchange),
                Outcome::Refused(_) => failed(exchange),
                Outcome::Useless(reason) => ready.failed(reason, "", exchange),
            }
        })
    }

    /// The server has given what cannot be used.
    fn failed(&self, reason: &'static str, flow: &str, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        if self.may_fail(exchange) { self.go_on_as_nobody(reason, exchange) } else { self.refuse(reason, flow) }
    }

    fn renewed(&self, answer: TokenAnswer, expires_in: u64, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let now = self.now(exchange);
        let mut granted = self.granted(answer, expires_in, now);
        let mut cookies = cookies_of(exchange);
        let names = &self.settings.cookies;
        cookies.set(&names.expires.name, granted.expires.as_bytes());
        for (cookie, token) in [(&names.bearer_token, &granted.tokens.access), (&names.id_token, &granted.tokens.id)] {
            if !token.is_empty() {
                cookies.set(&cookie.name, token.as_bytes());
            }
        }
        // A server that gives no other one lets the old one be used again.
        if granted.tokens.refresh.is_empty()
            && let Some(old) = cookies.get(&names.refresh_token.name)
        {
            granted.tokens.refresh = String::from_utf8_lossy(old).into_owned();
        }
        self.forward(&granted.tokens.access, &granted.tokens.id, exchange);
        self.stats.oauth_refreshtoken_success.increment();
        self.stats.oauth_success.increment();
        self.without_flow(cookies, exchange);
        let response = ResponseCookies {
            ready: self,
            granted: &granted,
            request: &cookies_of(exchange),
            domain: self.domain(exchange),
            sealing: sealing(exchange),
        };
        let cookies = response.all();
        exchange.state::<ForResponse>().0 = cookies;
        Verdict::Continue
    }

    /// Whom cookies are for.
    fn domain<'e>(&'e self, exchange: &'e Exchange<'_, '_, '_>) -> &'e str {
        self.settings.cookies.domain.as_deref().unwrap_or_else(|| exchange.head().authority_str())
    }

    /// Seconds since 1970.
    fn now(&self, exchange: &Exchange<'_, '_, '_>) -> u64 {
        let now = exchange.worker().process.clock.at(std::time::Instant::now());
        now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }
}

fn path_of(exchange: &Exchange<'_, '_, '_>) -> String {
    exchange.head().path_str().to_owned()
}

/// Whether a cookie is one of a sign-in: the name that its kind has, alone or with the sign-in after a dot.
fn is_of_flow(name: &[u8], kind: &str) -> bool {
    name.strip_prefix(kind.as_bytes()).is_some_and(|rest| rest.is_empty() || (rest.len() > 1 && rest[0] == b'.'))
}

/// Whether the scheme of a request is that of plain HTTP; anything else is taken for HTTPS.
fn scheme_of(exchange: &Exchange<'_, '_, '_>) -> &'static str {
    if exchange.head().scheme() == b"http" { "http" } else { "https" }
}

const STATUS_HEADER: &str = "x-envoy-oauth-status";
const REASON_HEADER: &str = "x-envoy-oauth-failure-reason";
