//! Scopes of routes that are discovered (`ScopedRds`): which there are, and which route configurations they need.
//!
//! Owns the scopes of each source, and what listeners need because of them. Never finds the scope of a request.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use outrigger_config::http::{RouteSource, ScopeSource, ScopedRoutes};
use outrigger_config::listener::{Listener, NetworkFilterConfig};
use outrigger_config::route::{ScopeRoutes, ScopedRoute};
use outrigger_config::source::ConfigSource;
use outrigger_policy::route::{RouteTable, ScopeKey, ScopeTable};
use outrigger_xds::ResourceKind;
use tokio::sync::oneshot;

use super::ScopeTarget;
use super::compile::Extensions;
use super::manager::GraphManager;
use super::need::{self, Need, Reference};
use super::sources::SourceError;
use super::stats::{ScopedRoutesStats, count};
use super::warming::User;
use crate::stats::names;

/// The scopes of a source.
#[derive(Default)]
pub(super) struct Scopes {
    by_name: BTreeMap<Arc<str>, Scope>,
    /// Names of route configurations that requests have asked for.
    demanded: BTreeSet<Arc<str>>,
    /// The same by key, for workers.
    pub table: Arc<ScopeTable<ScopeTarget>>,
}

struct Scope {
    config: Arc<ScopedRoute>,
    target: ScopeTarget,
}

impl Scopes {
    /// The route configurations that are needed, and whether somebody waits for them.
    fn routes(&self) -> impl Iterator<Item = (&Arc<str>, bool)> {
        self.by_name.values().filter_map(|scope| match &scope.config.routes {
            ScopeRoutes::Rds { name, on_demand } if !on_demand || self.demanded.contains(name) => {
                Some((name, !on_demand))
            }
            ScopeRoutes::Rds { .. } | ScopeRoutes::Inline(_) => None,
        })
    }

    fn rebuild(&mut self) {
        let scopes = self.by_name.values();
        let keyed = scopes.map(|scope| (ScopeKey::of_scope(&scope.config.key), scope.target.share()));
        self.table = Arc::new(ScopeTable::build(keyed));
    }
}

/// Where a scope leads.
pub fn target(scope: &ScopedRoute) -> ScopeTarget {
    match &scope.routes {
        ScopeRoutes::Inline(routes) => ScopeTarget::Inline(Arc::new(RouteTable::build(Arc::clone(routes)))),
        ScopeRoutes::Rds { name, on_demand: _ } => ScopeTarget::Discovered(Arc::clone(name)),
    }
}

/// The connection managers of a listener whose scopes are discovered, with their stat prefixes.
fn scoped<'a>(
    config: &'a Listener,
    extensions: &'a Extensions,
) -> impl Iterator<Item = (&'a Arc<str>, &'a ScopedRoutes, &'a ConfigSource)> {
    let filters = need::chains(config).flat_map(|chain| &chain.filters).map(|filter| &filter.config);
    let discovered = extensions.values().filter_map(|extension| extension.network.as_ref());
    filters.chain(discovered).filter_map(|filter| {
        let NetworkFilterConfig::Http(manager) = filter else { return None };
        let RouteSource::Scoped(scoped) = &manager.routes else { return None };
        let ScopeSource::Srds(source) = &scoped.scopes else { return None };
        Some((&manager.stat_prefix, &**scoped, source))
    })
}

impl GraphManager {
    /// All scopes of a source are one need.
    pub(super) fn scopes_need(&self, source: &ConfigSource) -> Result<Need, SourceError> {
        self.sources.need(ResourceKind::ScopedRouteConfiguration, &need::EVERYTHING, source)
    }

    /// The route configurations that a listener needs for the scopes that are known.
    pub(super) fn scope_references<'a>(
        &'a self,
        config: &'a Listener,
        extensions: &'a Extensions,
    ) -> Vec<Reference<'a>> {
        let mut references = Vec::new();
        for (_, scoped, source) in scoped(config, extensions) {
            let scopes = self.scopes_need(source).ok().and_then(|need| self.resources.scopes.get(&need));
            let (Some(scopes), Some(source)) = (scopes, &scoped.rds) else { continue };
            let kind = ResourceKind::RouteConfiguration;
            references.extend(scopes.routes().map(|(name, wait)| Reference { kind, name, source, wait }));
        }
        references
    }

    /// Takes a scope in, or says why not. What follows from it is done by [`Self::scopes_changed`].
    pub(super) fn take_scope(&mut self, need: &Need, scope: ScopedRoute) -> Result<(), String> {
        match &scope.routes {
            ScopeRoutes::Inline(routes) => self.check_clusters(routes)?,
            ScopeRoutes::Rds { name, .. } => self.check_route_source(need, name)?,
        }
        let scopes = self.resources.scopes.entry(need.clone()).or_default();
        let mut others = scopes.by_name.values().filter(|other| other.config.name != scope.name);
        if let Some(other) = others.find(|other| other.config.key == scope.key) {
            return Err(format!(
                "scope key conflict found, first scope is '{}', second scope is '{}'",
                other.config.name, scope.name
            ));
        }
        let target = target(&scope);
        scopes.by_name.insert(Arc::clone(&scope.name), Scope { config: Arc::new(scope), target });
        Ok(())
    }

    /// Whoever uses the scope must know where its routes come from.
    fn check_route_source(&self, need: &Need, routes: &str) -> Result<(), String> {
        for user in self.warming.users(need) {
            let User::Listener(name) = user else { continue };
            let Some(entry) = self.warming.listener(&name) else { continue };
            for revision in entry.active().into_iter().chain(entry.warming()) {
                let lacking = scoped(&revision.config, &revision.extensions).any(|(_, scoped, source)| {
                    scoped.rds.is_none() && self.scopes_need(source).is_ok_and(|other| other == *need)
                });
                if lacking {
                    return Err(format!(
                        "route_configuration_name: {routes:?} cannot be discovered: listener {name:?} has no rds_config_source"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Forgets a scope.
    pub(super) fn lose_scope(&mut self, need: &Need, name: &str) {
        if let Some(scopes) = self.resources.scopes.get_mut(need) {
            scopes.by_name.remove(name);
        }
    }

    /// Scopes of a source have arrived, changed or gone: listeners need other route configurations.
    pub(super) fn scopes_changed(&mut self, need: &Need) {
        let scopes = self.resources.scopes.entry(need.clone()).or_default();
        let wanted: BTreeSet<Arc<str>> = scopes.by_name.values().filter_map(Scope::routes_on_demand).collect();
        scopes.demanded.retain(|name| wanted.contains(name));
        scopes.rebuild();
        self.revise_listeners(need);
        self.count_scopes(need);
        self.warming.answered(need);
        self.changed();
    }

    fn revise_listeners(&mut self, need: &Need) {
        for user in self.warming.users(need) {
            let User::Listener(name) = user else { continue };
            let Some(entry) = self.warming.listener(&name) else { continue };
            let mut specs = Vec::new();
            let mut wants = |revision: &super::manager::ListenerRevision| {
                let wanted = self.listener_wants(&revision.config, &revision.extensions);
                let (requirements, found) = wanted.inspect_err(|error| tracing::error!("{name:?}: {error}")).ok()?;
                specs.push((found, Arc::clone(&revision.config), revision.extensions.clone()));
                Some(requirements)
            };
            let active = entry.active().and_then(&mut wants);
            let warming = entry.warming().and_then(&mut wants);
            for (found, config, extensions) in specs {
                self.take_specs(found);
                self.count_routes(&config, &extensions);
            }
            self.warming.revise_listener(&name, active, warming);
        }
    }

    fn count_scopes(&mut self, need: &Need) {
        let Some(scopes) = self.resources.scopes.get(need) else { return };
        let all = scopes.by_name.len();
        let on_demand = scopes.by_name.values().filter_map(Scope::routes_on_demand);
        let (on_demand, idle) =
            on_demand.fold((0, 0), |(all, idle), name| (all + 1, idle + usize::from(!scopes.demanded.contains(&name))));
        for (_, stats) in self.stats.scopes.get(need).into_iter().flatten() {
            count(&stats.all_scopes, all);
            count(&stats.on_demand_scopes, on_demand);
            count(&stats.active_scopes, all - idle);
        }
    }

    /// Makes the stats of a listener's scopes and of the route configurations that they name.
    pub(super) fn make_scope_stats(&mut self, config: &Listener, extensions: &Extensions) {
        let mut found = Vec::new();
        for (stat_prefix, scoped, source) in scoped(config, extensions) {
            let Ok(need) = self.scopes_need(source) else { continue };
            let http = format!("http.{}", names::sanitize(stat_prefix));
            let routes = self.resources.scopes.get(&need).into_iter().flat_map(Scopes::routes);
            for (name, _) in routes {
                let rds = scoped.rds.as_ref();
                let routes = rds.and_then(|rds| self.sources.need(ResourceKind::RouteConfiguration, name, rds).ok());
                found.extend(routes.map(|routes| (routes, names::prefix(&format!("{http}.rds"), name), false)));
            }
            found.push((need, names::prefix(&format!("{http}.scoped_rds"), &scoped.name), true));
        }
        for (need, prefix, is_scopes) in found {
            self.count_under(&need, &prefix);
            if is_scopes {
                let known = self.stats.scopes.entry(need.clone()).or_default();
                if !known.iter().any(|(other, _)| **other == *prefix) {
                    let stats: Arc<ScopedRoutesStats> = self.process.stats.scope(&prefix);
                    known.push((prefix.into(), stats));
                    self.count_scopes(&need);
                }
            }
        }
    }

    /// How long the last change of scopes took to take in.
    pub(super) fn time_scopes(&self, need: &Need, since: Instant) {
        for (_, stats) in self.stats.scopes.get(need).into_iter().flatten() {
            stats.config_reload_time_ms.set(i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX));
        }
    }

    /// A request wants the routes of a scope that are discovered on demand.
    pub(super) fn want_scope(&mut self, source: &str, key: &ScopeKey, reply: oneshot::Sender<()>) {
        let found = self.resources.scopes.iter_mut().find(|(need, _)| need.source().is_some_and(|of| *of == *source));
        let Some((need, scopes)) = found else { return drop(reply) };
        let Some(ScopeTarget::Discovered(routes)) = scopes.table.find(key) else { return drop(reply) };
        let (need, routes) = (need.clone(), Arc::clone(routes));
        if scopes.demanded.insert(Arc::clone(&routes)) {
            self.revise_listeners(&need);
            self.count_scopes(&need);
        }
        // Listeners may take the same name from several sources: the last one to answer decides.
        let is_wanted = |need: &&Need| need.is(ResourceKind::RouteConfiguration, &routes);
        let mut needs = self.warming.needs().map(|(need, _)| need).filter(is_wanted);
        let unsettled = needs.find(|need| !self.warming.is_settled(need)).cloned();
        match unsettled {
            Some(need) => self.waiting.routes.push((need, reply)),
            None => drop(reply),
        }
    }
}

impl Scope {
    fn routes_on_demand(&self) -> Option<Arc<str>> {
        match &self.config.routes {
            ScopeRoutes::Rds { name, on_demand: true } => Some(Arc::clone(name)),
            ScopeRoutes::Rds { .. } | ScopeRoutes::Inline(_) => None,
        }
    }
}
