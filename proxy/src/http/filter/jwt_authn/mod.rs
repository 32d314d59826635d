//! Authentication by JSON Web Tokens (`envoy.extensions.filters.http.jwt_authn.v3`).
//!
//! Owns which requirement a request has, the keys and known tokens of this worker, stats and the refusal. Never judges a
//! token (see `outrigger_policy::jwt`) and never fetches keys (see `crate::jwks`).

mod memory;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{JwksSource, JwtAuthn as Settings, JwtRequirement, JwtRoute};
use outrigger_config::jwks::Jwks;
use outrigger_policy::jwt::{Changes, Judgement, JwtAuthenticator, JwtFailure, Keys, Outcome, Surroundings, Token};
use outrigger_policy::route::rule_matches;

use super::challenge::realm;
use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::manager::reply::LocalReply;
use crate::http::message::RequestHead;
use crate::jwks::{RemoteKeys, stat_prefix};
use crate::scope;
use memory::Memory;

scope! {
    /// Stats of the filter (`http.<prefix>.jwt_authn.*`).
    pub struct JwtAuthnStats {
        allowed: Counter,
        cors_preflight_bypassed: Counter,
        denied: Counter,
        jwks_fetch_failed: Counter,
        jwks_fetch_success: Counter,
        jwt_cache_hit: Counter,
        jwt_cache_miss: Counter,
    }
}

/// The filter.
pub struct JwtAuthn(Rc<Shared>);

struct Shared {
    authenticator: JwtAuthenticator,
    providers: Vec<Provider>,
    stats: Arc<JwtAuthnStats>,
}

/// What a worker has of a provider.
struct Provider {
    keys: KeySource,
    memory: Option<RefCell<Memory>>,
}

enum KeySource {
    Local(Arc<Jwks>),
    Remote(Arc<RemoteKeys>),
}

/// Keys of providers that this request has waited for.
type Awaited = Vec<(usize, Option<Arc<Jwks>>)>;

impl JwtAuthn {
    /// A filter with its stats.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        let prefix: Arc<str> = stat_prefix(&maker.prefix, settings).into();
        let process = &maker.worker.process;
        let providers = settings.providers.iter().map(|provider| Provider {
            keys: match &provider.jwks {
                JwksSource::Local(keys) => KeySource::Local(Arc::clone(keys)),
                JwksSource::Remote(source) => KeySource::Remote(process.jwks.get(&prefix, source)),
            },
            memory: provider.cache.map(|limits| RefCell::new(Memory::new(limits))),
        });
        Self(Rc::new(Shared {
            providers: providers.collect(),
            authenticator: JwtAuthenticator::new(Arc::clone(settings)),
            stats: maker.worker.scope(&prefix),
        }))
    }
}

impl HttpFilter for JwtAuthn {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let shared = &self.0;
        let settings = shared.authenticator.config();
        for name in &settings.reserved_headers {
            exchange.head_mut().headers.remove_by_name(name);
        }
        if settings.bypass_cors_preflight && is_cors_preflight(exchange.head()) {
            shared.stats.cors_preflight_bypassed.increment();
            shared.stats.allowed.increment();
            return Verdict::Continue;
        }
        match requirement(settings, exchange) {
            Ok(None) => {
                shared.stats.allowed.increment();
                Verdict::Continue
            }
            Ok(Some(requirement)) => Shared::judge(shared, requirement, Vec::new(), exchange),
            Err(unknown) => shared.refuse_route(unknown),
        }
    }
}

impl Shared {
    fn judge(
        this: &Rc<Self>,
        requirement: &JwtRequirement,
        awaited: Awaited,
        exchange: &mut Exchange<'_, '_, '_>,
    ) -> Verdict {
        let mut seen = Seen { shared: this, awaited: &awaited, now_s: now_s(), hits: 0, misses: 0 };
        let judgement = this.authenticator.judge(requirement, exchange.head(), &mut seen);
        let (hits, misses) = (seen.hits, seen.misses);
        if let Outcome::Waiting(providers) = &judgement.outcome {
            let providers = providers.clone();
            return Self::wait_for_keys(this, requirement.clone(), awaited, &providers);
        }
        this.stats.jwt_cache_hit.add(hits);
        this.stats.jwt_cache_miss.add(misses);
        this.finish(judgement, exchange)
    }

    /// Waits for one fetch. All are begun, so that the next does not take long.
    fn wait_for_keys(
        this: &Rc<Self>,
        requirement: JwtRequirement,
        mut awaited: Awaited,
        providers: &[usize],
    ) -> Verdict {
        let fetches = providers.iter().filter_map(|provider| match &this.providers[*provider].keys {
            KeySource::Remote(keys) => Some((*provider, keys.next())),
            KeySource::Local(_) => None,
        });
        let fetches: Vec<_> = fetches.collect();
        let this = Rc::clone(this);
        let all = async move {
            let mut outcomes = Vec::with_capacity(fetches.len());
            for (provider, fetch) in fetches {
                outcomes.push((provider, fetch.await));
            }
            outcomes
        };
        Verdict::wait(all, move |outcomes, exchange| {
            awaited.extend(outcomes);
            Self::judge(&this, &requirement, awaited, exchange)
        })
    }

    fn finish(&self, judgement: Judgement, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Judgement { outcome, changes, metadata, reroute } = judgement;
        let realm = match &outcome {
            Outcome::Denied(_) => realm(exchange.head()),
            Outcome::Allowed | Outcome::Waiting(_) => Vec::new(),
        };
        apply(changes, exchange.head_mut());
        if !metadata.is_empty() {
            exchange.set_metadata(NAMESPACE, &metadata);
        }
        match outcome {
            Outcome::Denied(failure) => self.refuse(failure, &realm),
            Outcome::Allowed | Outcome::Waiting(_) => {
                self.stats.allowed.increment();
                if reroute {
                    exchange.reroute();
                }
                Verdict::Continue
            }
        }
    }

    fn refuse(&self, failure: JwtFailure, realm: &[u8]) -> Verdict {
        self.stats.denied.increment();
        let mut reply = LocalReply::new(failure.status(), details(failure.text()));
        if !self.authenticator.config().strip_failure_response {
            let error = if failure == JwtFailure::Missing { "" } else { ", error=\"invalid_token\"" };
            let value = [b"Bearer realm=\"", realm, b"\"", error.as_bytes()].concat();
            reply.header("www-authenticate", value);
            reply = reply.body(failure.text().as_bytes());
        }
        Verdict::reply(reply)
    }

    /// A route names a requirement that does not exist.
    fn refuse_route(&self, name: &str) -> Verdict {
        self.stats.denied.increment();
        let settings = self.authenticator.config();
        let known: Vec<&str> = settings.by_name.keys().map(String::as_str).collect();
        let error = format!("Wrong requirement_name: {name}. It should be one of [{}]", known.join(","));
        let mut reply = LocalReply::new(403, details(&error));
        if !settings.strip_failure_response {
            reply = reply.body(format!("Failed JWT authentication: {error}").into_bytes());
        }
        Verdict::reply(reply)
    }
}

/// What a request must show; the error is a name that does not exist.
fn requirement<'s, 'g: 's>(
    settings: &'s Settings,
    exchange: &Exchange<'_, '_, 'g>,
) -> Result<Option<&'s JwtRequirement>, &'g str> {
    let of_route = exchange.route_configs().find_map(|config| match config {
        RouteFilterConfig::JwtAuthn(route) => Some(&**route),
        _ => None,
    });
    match of_route {
        Some(JwtRoute::Disabled) => return Ok(None),
        Some(JwtRoute::Requirement(name)) => return settings.by_name.get(name).map(Some).ok_or(name),
        None => {}
    }
    let head = exchange.head();
    if let Some(rule) = settings.rules.iter().find(|rule| rule_matches(&rule.matches, head)) {
        return Ok(rule.requires.as_ref());
    }
    let Some(rule) = &settings.by_filter_state else { return Ok(None) };
    let state = exchange.info().filter_state.borrow();
    Ok(state.get(&*rule.key).and_then(|value| rule.requires.get(&**value)))
}

/// What a judgement may ask of this worker.
struct Seen<'a> {
    shared: &'a Shared,
    awaited: &'a Awaited,
    now_s: u64,
    hits: u64,
    misses: u64,
}

impl Seen<'_> {
    fn ready(&self, provider: usize) -> Option<Arc<Jwks>> {
        match &self.shared.providers[provider].keys {
            KeySource::Local(keys) => Some(Arc::clone(keys)),
            KeySource::Remote(keys) => match self.awaited.iter().rev().find(|(index, _)| *index == provider) {
                Some((_, outcome)) => outcome.clone(),
                None => keys.current(),
            },
        }
    }
}

impl Surroundings for Seen<'_> {
    fn now_s(&self) -> u64 {
        self.now_s
    }

    fn keys(&mut self, provider: usize) -> Keys {
        match (self.ready(provider), &self.shared.providers[provider].keys) {
            (Some(keys), KeySource::Local(_)) if keys.keys.is_empty() => Keys::None,
            (Some(keys), _) => Keys::Ready(keys),
            (None, _) if self.awaited.iter().any(|(index, _)| *index == provider) => Keys::Failed,
            (None, _) => Keys::Wanted,
        }
    }

    fn recall(&mut self, provider: usize, text: &[u8]) -> Option<Rc<Token>> {
        let memory = self.shared.providers[provider].memory.as_ref();
        let keys = memory.and_then(|_| self.ready(provider));
        let known = memory.zip(keys).and_then(|(memory, keys)| memory.borrow_mut().recall(text, &keys));
        match known {
            Some(_) => self.hits += 1,
            None => self.misses += 1,
        }
        known
    }

    fn remember(&mut self, provider: usize, text: &[u8], token: Rc<Token>, keys: &Arc<Jwks>) {
        if let Some(memory) = &self.shared.providers[provider].memory {
            memory.borrow_mut().remember(text, token, keys);
        }
    }
}

fn apply(changes: Changes, head: &mut RequestHead) {
    let Changes { headers, path } = changes;
    for (name, values) in headers {
        head.headers.remove_by_name(&name);
        for value in values {
            head.headers.append(name.as_bytes(), &value);
        }
    }
    if let Some(path) = path {
        head.set_path(path.as_bytes());
    }
}

/// Source: the Fetch standard, "CORS-preflight request".
fn is_cors_preflight(head: &RequestHead) -> bool {
    let has = |name: &str| head.headers.get_by_name(name).is_some_and(|value| !value.is_empty());
    head.method() == b"OPTIONS" && has("origin") && has("access-control-request-method")
}

/// Without spaces, since it goes into access logs.
fn details(text: &str) -> String {
    format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_"))
}

fn now_s() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The namespace of dynamic metadata that others look into.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";
