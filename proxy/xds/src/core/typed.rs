//! Everything about one resource type on one source that does not depend on how it is transported.
//!
//! Owns the subscription, the cache of accepted resources, time to live, `initial_fetch_timeout` and the statistics.
//! Never knows nonces or messages.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cache::{Cache, Failure, Held};
use super::decode::{Decoded, Entry};
use super::subscription::{Changes, Interest, Subscription};
use super::timers::Timers;
use super::{Event, Origin, Rejection, ResourceKind, ResourceUpdate, TypeStats, Update};

/// Judges an update; the answer lists what cannot be accepted.
pub(crate) type Judge<'a> = dyn FnMut(Update) -> Vec<Rejection> + 'a;

/// How a response is to be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reading {
    /// State of the world: for some types, absence is removal.
    Sotw,
    /// Delta: only what is named as removed is removed.
    Delta,
}

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Timer {
    TimeToLive(String),
    InitialFetch(Interest),
}

/// The state of one type.
#[derive(Debug)]
pub struct TypedState {
    kind: ResourceKind,
    pub(crate) subscription: Subscription,
    pub(crate) cache: Cache,
    pub(crate) stats: TypeStats,
    timers: Timers<Timer>,
    events: VecDeque<Event>,
}

/// What a response means against what is held; everything but the verdict.
#[derive(Debug, Default)]
struct Plan {
    added: Vec<ResourceUpdate>,
    confirmed: Vec<String>,
    removed: Vec<String>,
    absent: Vec<String>,
    rejections: Vec<Rejection>,
}

impl TypedState {
    pub(crate) fn new(kind: ResourceKind) -> Self {
        Self {
            kind,
            subscription: Subscription::default(),
            cache: Cache::default(),
            stats: TypeStats::default(),
            timers: Timers::new(),
            events: VecDeque::new(),
        }
    }

    /// The type.
    #[must_use]
    pub fn kind(&self) -> ResourceKind {
        self.kind
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> &TypeStats {
        &self.stats
    }

    /// Accepted resources by name.
    pub fn held(&self) -> impl Iterator<Item = (&str, &Held)> {
        self.cache.iter()
    }

    /// How many resources are accepted.
    #[must_use]
    pub fn held_count(&self) -> usize {
        self.cache.len()
    }

    /// Refused resources by name; a name can be held in an older version as well.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &Failure)> {
        self.cache.failures()
    }

    /// Names asked for of which nothing is held.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        self.subscription.wanted_names().filter(|name| self.cache.held(name).is_none())
    }

    /// Adds a reference. `fetch_timeout` is `initial_fetch_timeout`, `None` to wait for ever.
    pub(crate) fn subscribe(&mut self, interest: &Interest, fetch_timeout: Option<Duration>, now: Instant) {
        let had_wildcard = self.subscription.wants_wildcard();
        if !self.subscription.add(interest) {
            return;
        }
        self.stats.update_attempt += 1;
        // What is held but was given up a moment ago is handed over again: the server does not know that it was
        // given up, so it would not send it again.
        let held: Vec<ResourceUpdate> = match interest {
            Interest::Name(name) => self.cache.held(name).map(|held| resource_update(name, held)).into_iter().collect(),
            Interest::Wildcard => self
                .cache
                .iter()
                .filter(|(name, _)| !self.subscription.wants_name(name))
                .map(|(name, held)| resource_update(name, held))
                .collect(),
        };
        if !held.is_empty() {
            if !had_wildcard {
                self.push_update(held, Vec::new(), Origin::Cache);
            }
            return;
        }
        let timer = Timer::InitialFetch(interest.clone());
        if let Some(deadline) = fetch_timeout.filter(|timeout| !timeout.is_zero()).and_then(|t| now.checked_add(t)) {
            self.timers.set(timer, deadline);
        }
    }

    /// Takes a reference away. What is held stays until the server has been told ([`Self::take_changes`]).
    pub(crate) fn unsubscribe(&mut self, interest: &Interest) {
        if self.subscription.remove(interest) {
            self.timers.cancel(&Timer::InitialFetch(interest.clone()));
            if !self.subscription.is_dirty() {
                // The server never heard of it, so there will be no message that ends it.
                self.forget_unwanted();
            }
        }
    }

    /// The changes to tell the server. What is no longer wanted is forgotten, so that it is never claimed as held.
    pub(crate) fn take_changes(&mut self) -> Changes {
        let changes = self.subscription.take_changes();
        self.forget_unwanted();
        changes
    }

    fn forget_unwanted(&mut self) {
        let Self { subscription, cache, timers, .. } = self;
        if !subscription.take_given_up() {
            return;
        }
        for name in cache.retain(|name, aliases| subscription.covers(name, aliases)) {
            timers.cancel(&Timer::TimeToLive(name));
        }
    }

    /// Applies a response: compares it with what is held, has it judged, keeps what was accepted.
    /// Returns all rejections; none means ACK.
    pub(crate) fn apply(
        &mut self,
        decoded: Decoded,
        reading: Reading,
        now: Instant,
        judge: &mut Judge<'_>,
    ) -> Vec<Rejection> {
        self.stats.update_attempt += 1;
        let version = decoded.version.clone();
        if self.subscription.wants_nothing() {
            // Nobody is there to judge it: it counts as read, and nothing is kept but what was held anyway.
            self.refresh_given_up(decoded.entries, now);
            return Vec::new();
        }
        let Plan { added, confirmed, removed, absent, mut rejections } = self.plan(decoded, reading, now);
        let update = Update {
            kind: self.kind,
            version: version.clone(),
            added: added.clone(),
            confirmed,
            removed: removed.clone(),
            absent: absent.clone(),
            full_state: reading == Reading::Sotw && self.kind.is_full_state(),
            origin: Origin::Server,
        };
        rejections.extend(judge(update));
        self.timers.cancel(&Timer::InitialFetch(Interest::Wildcard));
        let refused: HashSet<&str> = rejections.iter().map(|rejection| rejection.name.as_str()).collect();
        for resource in added {
            self.settle_fetch(&resource.name, &resource.aliases);
            if !refused.contains(resource.name.as_str()) {
                self.accept(resource, now);
            }
        }
        for name in removed {
            self.settle_fetch(&name, &[]);
            self.timers.cancel(&Timer::TimeToLive(name.clone()));
            self.cache.remove(&name);
        }
        for name in absent {
            self.settle_fetch(&name, &[]);
        }
        for Rejection { name, message } in &rejections {
            self.settle_fetch(name, &[]);
            self.cache.fail(name, Failure { version: version.clone(), message: message.clone(), at: now });
        }
        self.count(version, &rejections, now);
        rejections
    }

    fn count(&mut self, version: String, rejections: &[Rejection], now: Instant) {
        if rejections.is_empty() {
            self.stats.update_success += 1;
            self.stats.version = version;
            self.stats.updated = Some(now);
            self.stats.last_error = None;
        } else {
            self.stats.update_rejected += 1;
            self.stats.last_error = Some(super::nack::error_detail(self.kind, rejections).message);
        }
    }

    fn accept(&mut self, resource: ResourceUpdate, now: Instant) {
        let ResourceUpdate { name, version, resource, ttl, aliases } = resource;
        self.set_ttl(&name, ttl, now);
        self.cache.accept(name, Held { version, resource, aliases, updated: now });
    }

    fn set_ttl(&mut self, name: &str, ttl: Option<Duration>, now: Instant) {
        let timer = Timer::TimeToLive(name.to_owned());
        match ttl.and_then(|ttl| now.checked_add(ttl)) {
            Some(deadline) => self.timers.set(timer, deadline),
            None => self.timers.cancel(&timer),
        }
    }

    fn settle_fetch(&mut self, name: &str, aliases: &[String]) {
        self.timers.cancel(&Timer::InitialFetch(Interest::Name(name.to_owned())));
        for alias in aliases {
            self.timers.cancel(&Timer::InitialFetch(Interest::Name(alias.clone())));
        }
    }

    /// Works out what is new, gone and missing. Heartbeats and unchanged resources are settled on the way.
    fn plan(&mut self, decoded: Decoded, reading: Reading, now: Instant) -> Plan {
        let Decoded { version, nonce: _, entries, removed, errors, rejections, unnamed } = decoded;
        // A place in an earlier response says nothing about this one.
        self.cache.retain_failures(|name| !name.starts_with("resources["));
        let heartbeat =
            !entries.is_empty() && rejections.is_empty() && entries.iter().all(|entry| entry.body.is_none());
        let mut plan = Plan { rejections, ..Plan::default() };
        let mut present: BTreeSet<String> = plan.rejections.iter().map(|rejection| rejection.name.clone()).collect();
        let mut given_up = Vec::new();
        for mut entry in entries {
            if entry.version.is_empty() && reading == Reading::Sotw {
                entry.version.clone_from(&version);
            }
            if self.subscription.covers(&entry.name, &entry.aliases) {
                present.insert(entry.name.clone());
                self.plan_entry(entry, reading, now, &mut plan);
            } else {
                given_up.push(entry);
            }
        }
        self.refresh_given_up(given_up, now);
        for name in removed {
            self.plan_removal(name, &mut plan);
        }
        for Rejection { name, message } in errors {
            if self.subscription.covers(&name, &[]) {
                self.cache.fail(&name, Failure { version: version.clone(), message, at: now });
            }
        }
        if reading == Reading::Sotw && self.kind.is_full_state() && !heartbeat && !unnamed {
            self.plan_absence(&present, &mut plan);
        }
        plan
    }

    fn plan_entry(&mut self, entry: Entry, reading: Reading, now: Instant, plan: &mut Plan) {
        let Entry { name, version, body, ttl, aliases } = entry;
        let Some(body) = body else {
            let held = self.cache.held(&name);
            if held.is_some_and(|held| reading == Reading::Sotw || held.version == version) {
                self.set_ttl(&name, ttl, now);
            } else if held.is_none() && self.kind == ResourceKind::VirtualHost {
                plan.absent.extend(aliases.into_iter().filter(|alias| self.subscription.wants_name(alias)));
                plan.absent.push(name);
            } else if let Some(held) = held {
                let message =
                    format!("has no body, and its version \"{version}\" is not the held \"{}\"", held.version);
                plan.rejections.push(Rejection { name, message });
            } else if reading == Reading::Delta {
                plan.rejections.push(Rejection { name, message: "has no body, and none is held".into() });
            }
            return;
        };
        let unchanged = match self.cache.held_mut(&name) {
            Some(held) if *held.resource == *body && held.aliases == aliases => {
                if held.version != version {
                    held.version.clone_from(&version);
                    held.updated = now;
                }
                true
            }
            _ => false,
        };
        if unchanged {
            self.set_ttl(&name, ttl, now);
            self.settle_fetch(&name, &aliases);
            self.cache.clear_failure(&name);
            plan.confirmed.push(name);
        } else {
            plan.added.push(ResourceUpdate { name, version, resource: body, ttl, aliases });
        }
    }

    fn plan_removal(&mut self, name: String, plan: &mut Plan) {
        let wanted = self.subscription.wants_name(&name);
        match self.cache.held(&name) {
            Some(held) if self.subscription.covers(&name, &held.aliases) => {
                if !(wanted && self.kind.outlives_removal()) {
                    plan.removed.push(name);
                }
            }
            None => {
                self.cache.clear_failure(&name);
                if wanted {
                    plan.absent.push(name);
                }
            }
            Some(_) => {}
        }
    }

    fn plan_absence(&mut self, present: &BTreeSet<String>, plan: &mut Plan) {
        self.cache.retain_failures(|name| present.contains(name));
        let already: HashSet<String> = plan.removed.iter().chain(&plan.absent).cloned().collect();
        let gone = |name: &str| !present.contains(name) && !already.contains(name);
        let removed =
            self.cache.iter().filter(|(name, held)| gone(name) && self.subscription.covers(name, &held.aliases));
        plan.removed.extend(removed.map(|(name, _)| name.to_owned()));
        plan.absent.extend(self.missing().filter(|name| gone(name)).map(str::to_owned));
    }

    /// Keeps what is held up to date for a name that was given up while the server does not know it yet. If the name
    /// is wanted again before it does, the server will not repeat itself.
    fn refresh_given_up(&mut self, entries: Vec<Entry>, now: Instant) {
        for Entry { name, version, body, ttl: _, aliases } in entries {
            if let (Some(held), Some(resource)) = (self.cache.held_mut(&name), body) {
                *held = Held { version, resource, aliases, updated: now };
            }
        }
    }

    /// Drops resources of a [`Origin::Cache`] update that were refused.
    pub(crate) fn reject_held(&mut self, rejections: &[Rejection], now: Instant) {
        if rejections.is_empty() {
            return;
        }
        self.stats.update_rejected += 1;
        self.stats.last_error = Some(super::nack::error_detail(self.kind, rejections).message);
        for Rejection { name, message } in rejections {
            let version = self.cache.held(name).map(|held| held.version.clone()).unwrap_or_default();
            self.cache.remove(name);
            self.cache.fail(name, Failure { version, message: message.clone(), at: now });
        }
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let mut expired = Vec::new();
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::TimeToLive(name) => {
                    let wanted = self.cache.held(&name).is_some_and(|h| self.subscription.covers(&name, &h.aliases));
                    self.cache.remove(&name);
                    if wanted {
                        expired.push(name);
                    }
                }
                Timer::InitialFetch(interest) => {
                    self.stats.init_fetch_timeout += 1;
                    let name = match interest {
                        Interest::Wildcard => None,
                        Interest::Name(name) => Some(name),
                    };
                    self.events.push_back(Event::FetchTimeout { kind: self.kind, name });
                }
            }
        }
        if !expired.is_empty() {
            self.push_update(Vec::new(), expired, Origin::Expiry);
        }
    }

    fn push_update(&mut self, added: Vec<ResourceUpdate>, removed: Vec<String>, origin: Origin) {
        self.events.push_back(Event::Update(Update {
            kind: self.kind,
            version: self.stats.version.clone(),
            added,
            confirmed: Vec::new(),
            removed,
            absent: Vec::new(),
            full_state: false,
            origin,
        }));
    }
}

fn resource_update(name: &str, held: &Held) -> ResourceUpdate {
    ResourceUpdate {
        name: name.to_owned(),
        version: held.version.clone(),
        resource: Arc::clone(&held.resource),
        ttl: None,
        aliases: held.aliases.clone(),
    }
}
