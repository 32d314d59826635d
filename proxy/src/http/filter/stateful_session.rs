//! The stateful session filter: requests of a session go to the endpoint that answered its first one.
//!
//! Owns how the endpoint is read from a request and told to the client. The router tries it first.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{SessionState, StatefulSession as Settings};
use outrigger_config::route::HashCookie;
use outrigger_policy::session::{SessionCookie, cookie_path_matches};

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::headers::{HeaderId, Headers};
use crate::http::router::affinity::set_cookie;
use crate::scope;

scope! {
    /// Stats of the filter (`http.<prefix>.stateful_session.<prefix>.*`).
    pub struct SessionStats {
        failed_closed: Counter,
        failed_open: Counter,
        no_session: Counter,
        routed: Counter,
    }
}

/// The endpoint that a request must try first.
pub struct WantedHost {
    /// Its IP and port.
    pub address: Box<str>,
    /// No other will do.
    pub strict: bool,
    /// Status of the answer if there is no such endpoint and no other will do.
    pub not_found_status: u16,
}

/// The filter.
pub struct StatefulSession {
    settings: Arc<Settings>,
    stats: Option<Arc<SessionStats>>,
}

/// What the filter keeps for a request.
#[derive(Default)]
struct Session {
    settings: Option<Arc<Settings>>,
    /// Of the filter alone, not of routes.
    stats: Option<Arc<SessionStats>>,
}

impl StatefulSession {
    /// A filter with its stats.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        let prefix = &settings.stat_prefix;
        let stats = (!prefix.is_empty()).then(|| maker.stats(&format!("stateful_session.{prefix}")));
        Self { settings: Arc::clone(settings), stats }
    }
}

impl HttpFilter for StatefulSession {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let (settings, stats) = match exchange.route_config() {
            Some(RouteFilterConfig::StatefulSession(None)) => return Verdict::Continue,
            Some(RouteFilterConfig::StatefulSession(Some(settings))) => (settings, None),
            _ => (&self.settings, self.stats.as_ref()),
        };
        let address = match &settings.state {
            None => return Verdict::Continue,
            Some(SessionState::Cookie(cookie)) => {
                if !cookie_path_matches(cookie.path.as_deref(), exchange.head().path_str()) {
                    if let Some(stats) = stats {
                        stats.no_session.increment();
                    }
                    return Verdict::Continue;
                }
                of_cookie(cookie, exchange)
            }
            Some(SessionState::Header(name)) => exchange.head().headers.get_by_name(name).and_then(of_header),
        };
        *exchange.state::<Session>() = Session { settings: Some(Arc::clone(settings)), stats: stats.cloned() };
        exchange.request_mut().wanted_host = address.map(|address| {
            let (strict, not_found_status) = (settings.strict, settings.not_found_status);
            Rc::new(WantedHost { address: address.into(), strict, not_found_status })
        });
        Verdict::Continue
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(Session { settings: Some(settings), stats }) = exchange.known_state::<Session>().map(std::mem::take)
        else {
            return Verdict::Continue;
        };
        let wanted = exchange.stream().wanted_host.clone();
        let host = exchange.info().upstream_host.borrow().as_ref().map(|host| host.address.to_string());
        let Some(host) = host else {
            if let (Some(stats), true, true) = (&stats, settings.strict, wanted.is_some()) {
                stats.failed_closed.increment();
            }
            return Verdict::Continue;
        };
        if wanted.is_some_and(|wanted| *wanted.address == *host) {
            if let Some(stats) = &stats {
                stats.routed.increment();
            }
            return Verdict::Continue;
        }
        if let (Some(stats), false) = (&stats, settings.strict) {
            stats.failed_open.increment();
        }
        let now = since_1970(exchange);
        let headers = &mut exchange.response_mut().headers;
        match &settings.state {
            Some(SessionState::Cookie(cookie)) => give_cookie(cookie, host, now, headers),
            Some(SessionState::Header(name)) => {
                headers.set_by_name(name, BASE64_STANDARD.encode(host).as_bytes());
            }
            None => {}
        }
        Verdict::Continue
    }
}

fn since_1970(exchange: &Exchange<'_, '_, '_>) -> Duration {
    exchange.worker().process.clock.at(Instant::now()).duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn of_header(value: &[u8]) -> Option<String> {
    String::from_utf8(BASE64_STANDARD.decode(value).ok()?).ok().filter(|address| !address.is_empty())
}

/// The endpoint that the request's cookie names.
fn of_cookie(cookie: &HashCookie, exchange: &Exchange<'_, '_, '_>) -> Option<String> {
    let value = cookie_value(&exchange.head().headers, &cookie.name)?;
    let session = SessionCookie::decode(&BASE64_STANDARD.decode(value).ok()?)?;
    session.is_valid(since_1970(exchange).as_secs()).then_some(session.address)
}

/// The value of a cookie, without quotes.
fn cookie_value<'h>(headers: &'h Headers, name: &str) -> Option<&'h [u8]> {
    let pairs = headers.get_all(HeaderId::Cookie).flat_map(|value| value.split(|byte| *byte == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| {
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
    })
}

fn give_cookie(cookie: &HashCookie, address: String, now: Duration, headers: &mut Headers) {
    let ttl = cookie.ttl.unwrap_or_default();
    let expires = if ttl.is_zero() { 0 } else { (now + ttl).as_secs() };
    let value = BASE64_STANDARD.encode(SessionCookie { address, expires }.encode());
    headers.append(b"set-cookie", set_cookie(cookie, &value).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_found_by_their_whole_names() {
        let mut headers = Headers::default();
        headers.append(b"cookie", b"xsid=1; sid2=2; sid=\"three\"");
        headers.append(b"cookie", b"other=4");
        assert_eq!(cookie_value(&headers, "sid"), Some(&b"three"[..]));
        assert_eq!(cookie_value(&headers, "other"), Some(&b"4"[..]));
        assert_eq!(cookie_value(&headers, "none"), None);
    }
}
