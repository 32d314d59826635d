//! Judging clusters and listeners: everything that can be found wrong before they are acknowledged is found here.
//!
//! Owns the checks that go beyond one resource: TLS material, references, access logs, addresses. Never parses messages.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::sync::Arc;

use outrigger_config::cluster::{Cluster, Discovery};
use outrigger_config::http::RouteSource;
use outrigger_config::http::filters::{ClientToken, JwtAuthn};
use outrigger_config::listener::{Listener, NetworkFilterConfig};
use outrigger_config::route::RouteConfiguration;
use outrigger_config::source::ConfigSource;
use outrigger_xds::ResourceKind;

use super::balance_stats::BalanceStats;
use super::breaker_stats::Remaining;
use super::compile::{self, Extensions, ListenerBuild};
use super::manager::{ClusterRevision, GraphManager, ListenerRevision, Running, Spec};
use super::need::{self, Need, Reference, Requirement, WantedFilter};
use super::secrets::check_reference;
use super::sockets::{self, BoundSockets};
use super::stats::SubscriptionStats;
use crate::jwks;
use crate::stats::names;
use crate::upstream::dns_cache::Question;

/// What a cluster or listener needs, and how each need is fulfilled.
pub(super) type Wanted = (Vec<Requirement>, HashMap<Need, Spec>);

/// Says why, with all causes.
pub(super) fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = inner.source();
    }
    text
}

/// What a listener needs of keys that are fetched in the background: it waits for the first attempt, or does not.
fn background_keys(
    stat_prefix: &Arc<str>,
    settings: &JwtAuthn,
    requirements: &mut Vec<Requirement>,
    specs: &mut HashMap<Need, Spec>,
) {
    let stat_prefix: Arc<str> = jwks::stat_prefix(&names::prefix("http", stat_prefix), settings).into();
    for source in need::remote_keys(settings) {
        let Some(background) = source.in_background else { continue };
        let need = Need::Keys { stat_prefix: Arc::clone(&stat_prefix), source: format!("{source:?}").into() };
        if specs.insert(need.clone(), Spec::Keys(Arc::clone(source))).is_none() {
            requirements.push(Requirement { need, wait: !background.fast_listener });
        }
    }
}

/// What a user needs of tokens of ours. It does not wait for them.
fn tokens(
    wanted: Vec<(String, &Arc<ClientToken>)>,
    requirements: &mut Vec<Requirement>,
    specs: &mut HashMap<Need, Spec>,
) {
    for (stat_prefix, settings) in wanted {
        let need = Need::Token { stat_prefix: stat_prefix.into(), source: format!("{settings:?}").into() };
        if specs.insert(need.clone(), Spec::Token(Arc::clone(settings))).is_none() {
            requirements.push(Requirement { need, wait: false });
        }
    }
}

impl GraphManager {
    /// Takes a cluster in, or says why not.
    pub(super) fn offer_cluster(&mut self, config: Arc<Cluster>) -> Result<(), String> {
        let name = Arc::clone(&config.name);
        self.process.load_servers.check(&config)?;
        let (mut requirements, mut specs) = self.requirements(&need::of_cluster(&config))?;
        if let Discovery::StrictDns { dns, .. } | Discovery::LogicalDns { dns, .. } = &config.discovery {
            for host in need::host_names(&config) {
                let need = Need::Addresses { cluster: Arc::clone(&name), host };
                specs.insert(need.clone(), Spec::Addresses(dns.clone()));
                requirements.push(Requirement { need, wait: true });
            }
        }
        tokens(need::tokens_of_cluster(&config), &mut requirements, &mut specs);
        self.compile_cluster(&config, self.clusters.get(&name)).map_err(|error| explain(&error))?;
        requirements.extend(self.expect_first_checks(&config));
        self.take_specs(specs);
        let stats = &self.stats;
        match self.warming.cluster(&name) {
            Some(_) => stats.clusters.cluster_modified.increment(),
            None => stats.clusters.cluster_added.increment(),
        }
        let latest = self.warming.cluster(&name).and_then(|entry| entry.latest());
        if latest.is_none_or(|latest| latest.config.circuit_breakers != config.circuit_breakers) {
            self.stats.remaining.insert(Arc::clone(&name), Remaining::of(&config, &self.process.stats));
        }
        let same_balancing = |latest: &Cluster| {
            std::mem::discriminant(&latest.load_balancing) == std::mem::discriminant(&config.load_balancing)
                && latest.balancing.locality == config.balancing.locality
                && latest.balancing.subsets.is_some() == config.balancing.subsets.is_some()
                && latest.stat_name == config.stat_name
        };
        if latest.is_none_or(|latest| !same_balancing(&latest.config)) {
            let by_zone = self.local.of(&config).is_some();
            match BalanceStats::of(&config, by_zone, &self.process.stats) {
                Some(stats) => self.stats.balance.insert(Arc::clone(&name), stats),
                None => self.stats.balance.remove(&name),
            };
        }
        if latest.is_none_or(|latest| latest.config.stat_name != config.stat_name) {
            let scope = self.process.stats.scope(&names::prefix("cluster", &config.stat_name));
            self.stats.cluster.insert(Arc::clone(&name), scope);
        }
        if let (Discovery::StrictDns { assignment, .. } | Discovery::LogicalDns { assignment, .. }, Some(stats)) =
            (&config.discovery, self.stats.cluster.get(&name))
        {
            // An address needs no resolver, and counts as resolved at once.
            let endpoints = assignment.localities.iter().flat_map(|locality| &locality.endpoints);
            stats.update_success.add(endpoints.filter(|endpoint| endpoint.address.is_literal()).count() as u64);
        }
        if let Discovery::DynamicForward(cache) = &config.discovery {
            for (host, port) in &cache.preresolve {
                let (cache, host) = (Arc::clone(cache), host.to_ascii_lowercase().into());
                self.process.dns.ask(Question { cache, host, port: *port, reply: None });
            }
        }
        self.lingering.remove(&name);
        self.warming.offer_cluster(&name, ClusterRevision { config }, requirements);
        Ok(())
    }

    /// Forgets a cluster; requests that are under way keep theirs.
    pub(super) fn remove_cluster(&mut self, name: &Arc<str>) {
        if self.warming.remove_cluster(name) {
            self.stats.clusters.cluster_removed.increment();
            self.let_go(name);
            self.stats.cluster.remove(name);
            self.stats.remaining.remove(name);
            self.stats.balance.remove(name);
            self.forget_health(name);
            if let Some(timer) = self.merges.remove(name).and_then(|merge| merge.timer) {
                timer.abort();
            }
            self.changed();
        }
        self.history.removed(ResourceKind::Cluster, name, false);
    }

    /// Takes a listener in, or says why not. Sockets may have been bound before.
    pub(super) fn offer_listener(&mut self, config: Arc<Listener>, bound: Option<BoundSockets>) -> Result<(), String> {
        let name = Arc::clone(&config.name);
        self.check_addresses(&config)?;
        let extensions = self.extensions_of(&config)?;
        let (requirements, specs) = self.listener_wants(&config, &extensions)?;
        let mut clusters = need::clusters_of_listener(&config);
        for extension in extensions.values() {
            if let Some(filter) = &extension.network {
                need::clusters_of_filter(filter, &mut clusters);
            }
            if let Some(filter) = &extension.http {
                need::clusters_of_http_filter(filter, &mut clusters);
            }
        }
        self.check_inline_routes(&config)?;
        let prepared = self.prepare(&config, &extensions)?;
        let bound = match bound {
            Some(bound) => Some(bound),
            None => self.sockets_for(&config)?,
        };
        self.take_specs(specs);
        self.count_routes(&config, &extensions);
        self.count_extensions(&config);
        match self.warming.listener(&name) {
            Some(_) => self.stats.listeners.listener_modified.increment(),
            None => self.stats.listeners.listener_added.increment(),
        }
        let before = self.warming.listener(&name).and_then(|entry| entry.latest());
        let position = before.map_or(self.next_position, |before| before.position);
        self.next_position = self.next_position.max(position + 1);
        let (prepared, bound) = (Some(prepared).into(), bound.into());
        let revision = ListenerRevision { config, extensions, prepared, bound, position };
        self.warming.offer_listener(&name, revision, requirements, clusters);
        Ok(())
    }

    /// What a listener needs, with the filters and scopes that were discovered so far.
    pub(super) fn listener_wants(&self, config: &Listener, extensions: &Extensions) -> Result<Wanted, String> {
        let find = |wanted: WantedFilter<'_>| extensions.get(&self.extension_need(wanted).ok()?).map(Arc::as_ref);
        let mut references = need::of_listener(config, &find);
        references.extend(self.scope_references(config, extensions));
        let (mut requirements, mut specs) = self.requirements(&references)?;
        for (stat_prefix, settings) in need::authentication_filters(config, &find) {
            background_keys(stat_prefix, settings, &mut requirements, &mut specs);
        }
        tokens(need::tokens_of_listener(config, &find), &mut requirements, &mut specs);
        Ok((requirements, specs))
    }

    /// Builds what can be built, with all that the revisions at hand have in common with it.
    fn prepare(&self, config: &Arc<Listener>, extensions: &Extensions) -> Result<ListenerBuild, String> {
        let warming = self.warming.listener(&config.name).and_then(|entry| entry.warming());
        let prepared = warming.and_then(|revision| revision.prepared.borrow().clone());
        let running = self.listeners.get(&config.name).map(|running| &running.build);
        let olds: Vec<&ListenerBuild> = running.into_iter().chain(&prepared).collect();
        self.compile_listener(config, extensions, &olds).map_err(|error| explain(&error))
    }

    /// Offers a listener again, after a filter that it discovers has changed.
    pub(super) fn offer_listener_again(&mut self, name: &Arc<str>) -> Result<(), String> {
        let Some(latest) = self.warming.listener(name).and_then(|entry| entry.latest()) else { return Ok(()) };
        let config = Arc::clone(&latest.config);
        self.offer_listener(config, None)
    }

    /// Makes the chains of a new listener the same as those at hand, as far as they are.
    pub(super) fn share_chains(&self, config: &mut Listener) {
        let Some(entry) = self.warming.listener(&config.name) else { return };
        let olds = entry.active().into_iter().chain(entry.warming());
        let olds: Vec<Arc<Listener>> = olds.map(|revision| Arc::clone(&revision.config)).collect();
        compile::share_chains(config, &olds.iter().map(Arc::as_ref).collect::<Vec<_>>());
    }

    /// Removes a listener: no new connections, and those it has drain.
    pub(super) fn remove_listener(&mut self, name: &Arc<str>) {
        let known = self.warming.remove_listener(name);
        let running = self.listeners.remove(name);
        self.stats.listener.remove(name);
        self.history.removed(ResourceKind::Listener, name, running.is_some());
        if known {
            self.stats.listeners.listener_removed.increment();
        }
        if let Some(running) = running {
            if let Some(id) = running.sockets {
                self.stop_sockets(id);
            }
            self.drain_removed_listener(name, &running.build.node);
            self.changed();
        }
    }

    fn check_addresses(&self, config: &Listener) -> Result<(), String> {
        for (name, entry) in self.warming.listeners() {
            if *name == config.name {
                continue;
            }
            for other in [entry.active(), entry.warming()].into_iter().flatten() {
                if config.bind_to_port
                    && other.config.bind_to_port
                    && let Some(address) = sockets::conflict(config, &other.config)
                {
                    return Err(format!("has duplicate address {address} as existing listener {name:?}"));
                }
            }
        }
        Ok(())
    }

    /// New sockets, unless those at hand serve.
    fn sockets_for(&self, config: &Arc<Listener>) -> Result<Option<BoundSockets>, String> {
        if let Some(entry) = self.warming.listener(&config.name) {
            if entry.active().is_some_and(|active| sockets::same_sockets(&active.config, config)) {
                return Ok(None);
            }
            if let Some(warming) = entry.warming()
                && sockets::same_sockets(&warming.config, config)
                && let Some(bound) = warming.bound.take()
            {
                return Ok(Some(bound));
            }
        }
        sockets::bind(config, self.workers.count().max(1)).map_err(|error| error.to_string())
    }

    fn check_inline_routes(&self, config: &Listener) -> Result<(), String> {
        for filter in need::chains(config).flat_map(|chain| &chain.filters) {
            if let NetworkFilterConfig::Http(manager) = &filter.config {
                for routes in need::inline_routes(manager) {
                    self.check_clusters(routes)?;
                }
            }
        }
        Ok(())
    }

    /// Source: `RouteConfiguration.validate_clusters`.
    pub(super) fn check_clusters(&self, routes: &RouteConfiguration) -> Result<(), String> {
        if routes.validate_clusters {
            for name in need::clusters_of_routes(routes) {
                if self.warming.cluster(&name).is_none() {
                    return Err(format!("route: unknown cluster '{name}'"));
                }
            }
        }
        Ok(())
    }

    /// What has been discovered of the filters of a listener.
    fn extensions_of(&self, config: &Listener) -> Result<Extensions, String> {
        let mut extensions = HashMap::new();
        let find = |wanted: WantedFilter<'_>| self.extension(wanted);
        for wanted in need::discovered_filters(config, &find) {
            let need = self.extension_need(wanted).map_err(|error| explain(&error))?;
            if let Some(found) = self.resources.extensions.get(&need) {
                extensions.insert(need, Arc::clone(found));
            }
        }
        Ok(extensions)
    }

    /// What routes need of secrets; they do not wait for them.
    pub(super) fn route_wants(&self, routes: &RouteConfiguration) -> Result<Wanted, String> {
        let secrets = need::secrets_of_routes(routes);
        let find = |name: &Arc<str>, source: Option<&ConfigSource>| self.secret(name, source);
        for secret in &secrets {
            check_reference(secret, &find).map_err(|error| format!("typed_per_filter_config: {error}"))?;
        }
        let references: Vec<_> = need::filter_secrets(secrets, false).collect();
        self.requirements(&references)
    }

    fn requirements(&self, references: &[Reference<'_>]) -> Result<Wanted, String> {
        let mut waits: BTreeMap<Need, bool> = BTreeMap::new();
        let mut specs = HashMap::new();
        for reference in references {
            let need = self.sources.need_of(reference).map_err(|error| explain(&error))?;
            *waits.entry(need.clone()).or_default() |= reference.wait;
            specs.insert(need, Spec::Resource(reference.source.clone()));
        }
        let requirements = waits.into_iter().map(|(need, wait)| Requirement { need, wait });
        Ok((requirements.collect(), specs))
    }

    pub(super) fn take_specs(&mut self, specs: HashMap<Need, Spec>) {
        for (need, spec) in specs {
            self.count_subscription(&need);
            if let (Need::Resource { kind: ResourceKind::Secret, .. }, Spec::Resource(source)) = (&need, &spec) {
                let kinds = self.secret_sources.entry(need.clone()).or_default();
                kinds.insert(source.kind.clone());
            }
            let old = self.specs.insert(need.clone(), spec.clone());
            // Changed options of a name that is being resolved hold at once; its answers stay.
            if let (Some(Spec::Addresses(old)), Spec::Addresses(new), Need::Addresses { host, .. }) = (old, spec, &need)
                && old != new
                && let Some(Running::Task(task)) = self.running.get(&need)
            {
                task.abort();
                let task = self.keep_resolving(&need, host, new);
                self.running.insert(need, Running::Task(task));
            }
        }
    }

    /// Makes the stats of secrets; those of routes and filters are made for each user.
    fn count_subscription(&mut self, need: &Need) {
        if let Need::Resource { kind: ResourceKind::Secret, name, .. } = need {
            self.count_under(need, &names::prefix("sds", name));
        }
    }

    fn count_extensions(&mut self, config: &Listener) {
        let find = |wanted: WantedFilter<'_>| self.extension(wanted);
        let wanted = need::discovered_filters(config, &find).into_iter();
        let found: Vec<(Need, String)> = wanted
            .filter_map(|wanted| {
                let prefix = names::prefix(wanted.stat_scope(), wanted.name());
                Some((self.extension_need(wanted).ok()?, prefix))
            })
            .collect();
        for (need, prefix) in found {
            self.count_under(&need, &prefix);
        }
    }

    pub(super) fn count_routes(&mut self, config: &Listener, extensions: &Extensions) {
        let filters = need::chains(config).flat_map(|chain| &chain.filters).map(|filter| &filter.config);
        let mut found: Vec<(Need, String)> = Vec::new();
        for filter in filters.chain(extensions.values().filter_map(|extension| extension.network.as_ref())) {
            if let NetworkFilterConfig::Http(manager) = filter
                && let RouteSource::Rds { name, source } = &manager.routes
                && let Ok(need) = self.sources.need(ResourceKind::RouteConfiguration, name, source)
            {
                found.push((need, names::prefix(&format!("http.{}.rds", names::sanitize(&manager.stat_prefix)), name)));
            }
        }
        for (need, prefix) in found {
            self.count_under(&need, &prefix);
        }
        self.make_scope_stats(config, extensions);
    }

    pub(super) fn count_under(&mut self, need: &Need, prefix: &str) {
        let known = self.stats.resources.entry(need.clone()).or_default();
        if !known.iter().any(|(other, _)| **other == *prefix) {
            let stats: Arc<SubscriptionStats> = self.process.stats.scope(prefix);
            stats.update_attempt.increment();
            known.push((prefix.into(), stats));
        }
    }
}
