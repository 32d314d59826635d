//! From requirements to a judgement.
//!
//! Owns the walk over the tree of requirements and over the tokens of a request. It starts anew when keys have come that
//! it had to wait for: until then nothing is done to the request.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::http::filters::{JwtAuthn, JwtProvider, JwtRequirement};
use outrigger_config::jwks::Jwks;
use outrigger_config::metadata::MetadataMap;
use serde_json::{Value, json};

use super::claims;
use super::locations::{Found, Locations};
use super::request::{Changed, Changes};
use super::verify::{has_audience, has_lifetime, verify_signature, verify_times};
use super::{JwtFailure, Token};
use crate::route::RequestView;

/// The keys of a provider now.
#[derive(Clone, Debug)]
pub enum Keys {
    /// There they are.
    Ready(Arc<Jwks>),
    /// There are none and will be none.
    None,
    /// They were fetched in vain for this request.
    Failed,
    /// They must be fetched first.
    Wanted,
}

/// What a judgement depends on beside the request.
pub trait Surroundings {
    /// Seconds since 1970.
    fn now_s(&self) -> u64;
    /// The keys of a provider.
    fn keys(&mut self, provider: usize) -> Keys;
    /// A token that this provider's keys, as they are now, have verified before.
    fn recall(&mut self, provider: usize, text: &[u8]) -> Option<Rc<Token>>;
    /// Keeps a token that `keys` have verified.
    fn remember(&mut self, provider: usize, text: &[u8], token: Rc<Token>, keys: &Arc<Jwks>);
}

/// What becomes of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It goes on.
    Allowed,
    /// It is refused.
    Denied(JwtFailure),
    /// Ask again when the keys of these providers have come, or will not.
    Waiting(Vec<usize>),
}

/// The outcome and what else follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// Whether it goes on.
    pub outcome: Outcome,
    /// What is done to the request.
    pub changes: Changes,
    /// Set in dynamic metadata.
    pub metadata: MetadataMap,
    /// The route is to be chosen again.
    pub reroute: bool,
}

/// Settings of the filter, made ready to judge by.
#[derive(Debug)]
pub struct JwtAuthenticator {
    config: Arc<JwtAuthn>,
    of_provider: Vec<Locations>,
    of_all: Locations,
    /// The first provider of each issuer.
    by_issuer: BTreeMap<String, usize>,
}

impl JwtAuthenticator {
    /// Prepares settings.
    pub fn new(config: Arc<JwtAuthn>) -> Self {
        let mut by_issuer = BTreeMap::new();
        for (index, provider) in config.providers.iter().enumerate() {
            by_issuer.entry(provider.issuer.clone()).or_insert(index);
        }
        Self {
            of_provider: config.providers.iter().map(|provider| Locations::of([provider])).collect(),
            of_all: Locations::of(&config.providers),
            by_issuer,
            config,
        }
    }

    /// The settings.
    pub fn config(&self) -> &Arc<JwtAuthn> {
        &self.config
    }

    /// Judges a request.
    pub fn judge<R: RequestView>(
        &self,
        requirement: &JwtRequirement,
        request: &R,
        surroundings: &mut dyn Surroundings,
    ) -> Judgement {
        let mut walk = Walk {
            authenticator: self,
            request: Changed::new(request),
            surroundings,
            metadata: MetadataMap::new(),
            reroute: false,
            wanted: Vec::new(),
        };
        let outcome = match walk.meet(requirement) {
            Step::Pending => Outcome::Waiting(std::mem::take(&mut walk.wanted)),
            Step::Done(Ok(())) => Outcome::Allowed,
            Step::Done(Err(failure)) => Outcome::Denied(failure),
        };
        Judgement { outcome, changes: walk.request.changes, metadata: walk.metadata, reroute: walk.reroute }
    }

    /// The provider of tokens with this issuer, else the one that takes any.
    fn provider_of(&self, issuer: &str) -> Option<usize> {
        self.by_issuer.get(issuer).or_else(|| self.by_issuer.get("")).copied()
    }
}

enum Step {
    Done(Result<(), JwtFailure>),
    Pending,
}

/// Which tokens are looked at, and what a bad one means.
#[derive(Clone, Copy)]
enum Mode<'a> {
    /// Those of one provider, with other audiences than its own.
    Provider(usize, Option<&'a [String]>),
    /// Those of all; none may be bad.
    AllowMissing,
    /// Those of all.
    AllowMissingOrFailed,
}

struct Walk<'a, 'r, R> {
    authenticator: &'a JwtAuthenticator,
    request: Changed<'r, R>,
    surroundings: &'a mut dyn Surroundings,
    metadata: MetadataMap,
    reroute: bool,
    wanted: Vec<usize>,
}

impl<'a, R: RequestView> Walk<'a, '_, R> {
    fn meet(&mut self, requirement: &JwtRequirement) -> Step {
        match requirement {
            JwtRequirement::Nothing => Step::Done(Ok(())),
            JwtRequirement::Provider { provider, audiences } => {
                self.authenticate(Mode::Provider(*provider, audiences.as_deref()))
            }
            JwtRequirement::AllowMissing => self.authenticate(Mode::AllowMissing),
            JwtRequirement::AllowMissingOrFailed => self.authenticate(Mode::AllowMissingOrFailed),
            JwtRequirement::Any(children) => self.any(children),
            JwtRequirement::All(children) => self.all(children),
        }
    }

    fn any(&mut self, children: &[JwtRequirement]) -> Step {
        let allows = |bypass: &JwtRequirement| children.contains(bypass);
        let allow_failed = allows(&JwtRequirement::AllowMissingOrFailed);
        let allow_missing = allows(&JwtRequirement::AllowMissing);
        let is_bypass = |child: &&JwtRequirement| {
            matches!(child, JwtRequirement::AllowMissing | JwtRequirement::AllowMissingOrFailed)
        };
        if children.iter().all(|child| is_bypass(&child)) {
            let mode = if allow_failed { Mode::AllowMissingOrFailed } else { Mode::AllowMissing };
            return self.authenticate(mode);
        }
        let mut pending = false;
        let mut failure = JwtFailure::Missing;
        for child in children.iter().filter(|child| !is_bypass(child)) {
            match self.meet(child) {
                Step::Done(Ok(())) => return Step::Done(Ok(())),
                // A token that is bad tells more than one that is missing, or is somebody else's.
                Step::Done(Err(found)) => {
                    let tells_more = !matches!(found, JwtFailure::Missing | JwtFailure::UnknownIssuer);
                    if tells_more || failure == JwtFailure::Missing {
                        failure = found;
                    }
                }
                Step::Pending => pending = true,
            }
        }
        match () {
            () if pending => Step::Pending,
            () if allow_failed || allow_missing && failure == JwtFailure::Missing => Step::Done(Ok(())),
            () => Step::Done(Err(failure)),
        }
    }

    fn all(&mut self, children: &[JwtRequirement]) -> Step {
        let mut pending = false;
        for child in children {
            match self.meet(child) {
                Step::Done(Ok(())) => {}
                Step::Done(Err(failure)) => return Step::Done(Err(failure)),
                Step::Pending => pending = true,
            }
        }
        if pending { Step::Pending } else { Step::Done(Ok(())) }
    }

    fn authenticate(&mut self, mode: Mode<'_>) -> Step {
        let authenticator = self.authenticator;
        let locations = match mode {
            Mode::Provider(provider, _) => &authenticator.of_provider[provider],
            Mode::AllowMissing | Mode::AllowMissingOrFailed => &authenticator.of_all,
        };
        self.clean(mode);
        let tokens = locations.find(&self.request);
        if tokens.is_empty() {
            self.tell_failure(None, JwtFailure::Missing);
            return Step::Done(match mode {
                Mode::Provider(..) => Err(JwtFailure::Missing),
                Mode::AllowMissing | Mode::AllowMissingOrFailed => Ok(()),
            });
        }
        let mut failure = None;
        let mut pending = false;
        // Whose keys the last token needed; tells where failures go.
        let mut provider = None;
        for token in tokens.iter().rev() {
            match self.token(mode, token, &mut provider) {
                Ok(true) => {}
                Ok(false) => pending = true,
                Err(found) => {
                    self.tell_failure(provider, found);
                    failure = Some(found);
                    // One bad token is enough: whoever is behind us might use just that one.
                    if matches!(mode, Mode::Provider(..)) {
                        return Step::Done(Err(found));
                    }
                }
            }
        }
        match (mode, failure) {
            (Mode::AllowMissing, Some(failure)) => Step::Done(Err(failure)),
            _ if pending => Step::Pending,
            _ => Step::Done(Ok(())),
        }
    }

    /// Headers that only a valid token may bring are not taken from clients, nor from other providers.
    fn clean(&mut self, mode: Mode<'_>) {
        let config = &self.authenticator.config;
        match mode {
            Mode::Provider(provider, _) => {
                config.providers[provider].own_headers().for_each(|name| self.request.remove(name));
            }
            Mode::AllowMissing | Mode::AllowMissingOrFailed => {
                config.reserved_headers.iter().for_each(|name| self.request.remove(name));
            }
        }
    }

    /// Whether a token is valid; false if its keys must be fetched first.
    fn token(&mut self, mode: Mode<'_>, found: &Found<'_>, used: &mut Option<usize>) -> Result<bool, JwtFailure> {
        let mut recalled = None;
        if let Mode::Provider(provider, _) = mode {
            *used = Some(provider);
            recalled = self.surroundings.recall(provider, &found.text);
        }
        let is_known = recalled.is_some();
        let token = match recalled {
            Some(token) => token,
            None => Rc::new(Token::parse(&found.text)?),
        };
        if !found.issuers.allow(&token.issuer) {
            return Err(JwtFailure::UnknownIssuer);
        }
        let (index, audiences) = match mode {
            Mode::Provider(provider, audiences) => (provider, audiences),
            Mode::AllowMissing | Mode::AllowMissingOrFailed => {
                *used = self.authenticator.provider_of(&token.issuer);
                ((*used).ok_or(JwtFailure::UnknownIssuer)?, None)
            }
        };
        let provider = Arc::clone(&self.authenticator.config.providers[index]);
        self.check_claims(&token, &provider, audiences)?;
        if is_known {
            self.use_token(&token, &provider, found);
            return Ok(true);
        }
        let keys = match self.surroundings.keys(index) {
            Keys::Ready(keys) => keys,
            Keys::None => return Err(JwtFailure::NoKeys),
            Keys::Failed => return Err(JwtFailure::Fetch),
            Keys::Wanted => {
                if !self.wanted.contains(&index) {
                    self.wanted.push(index);
                }
                return Ok(false);
            }
        };
        verify_signature(&token, &keys)?;
        self.use_token(&token, &provider, found);
        if matches!(mode, Mode::Provider(..)) {
            self.surroundings.remember(index, &found.text, token, &keys);
        }
        Ok(true)
    }

    fn check_claims(
        &self,
        token: &Token,
        provider: &JwtProvider,
        audiences: Option<&[String]>,
    ) -> Result<(), JwtFailure> {
        let now_s = self.surroundings.now_s();
        verify_times(token, now_s, provider.clock_skew_s)?;
        if !has_audience(token, audiences.unwrap_or(&provider.audiences)) {
            return Err(JwtFailure::Audience);
        }
        let subject = token.subject.as_bytes();
        if provider.subjects.as_ref().is_some_and(|subjects| !subjects.matches(subject)) {
            return Err(JwtFailure::Verification);
        }
        if !has_lifetime(token, provider.lifetime, now_s) {
            return Err(JwtFailure::Verification);
        }
        Ok(())
    }

    /// A token is valid: what it brings goes into the request.
    fn use_token(&mut self, token: &Token, provider: &JwtProvider, found: &Found<'_>) {
        if let Some(name) = &provider.forward_payload_header {
            let payload = token.payload_base64();
            let value = if provider.pad_forward_payload_header { claims::padded(payload) } else { payload.to_owned() };
            self.request.append(name, value.into_bytes());
        }
        let mut changed = provider.payload_in_metadata.is_some();
        for claim in &provider.claim_headers {
            if let Some(value) = claims::header_value(&token.payload, &claim.path) {
                self.request.append(&claim.header, value.into_bytes());
                changed = true;
            }
        }
        self.reroute |= changed && provider.clear_route_cache;
        if !provider.forward {
            found.remove(&mut self.request);
        }
        if let Some(key) = &provider.header_in_metadata {
            self.metadata.insert(key.to_string(), Value::Object(token.header.clone()));
        }
        if let Some(key) = &provider.payload_in_metadata {
            let payload = claims::with_lists(&token.payload, &provider.space_delimited_claims);
            self.metadata.insert(key.to_string(), Value::Object(payload));
        }
    }

    /// Into metadata; without a known provider, that of the only one.
    fn tell_failure(&mut self, provider: Option<usize>, failure: JwtFailure) {
        let providers = &self.authenticator.config.providers;
        let provider = match (provider, &**providers) {
            (Some(provider), _) => &providers[provider],
            (None, [only]) => only,
            (None, _) => return,
        };
        if let Some(key) = &provider.failed_status_in_metadata {
            let status = json!({ "code": failure.code(), "message": failure.text() });
            self.metadata.insert(key.to_string(), status);
        }
    }
}
