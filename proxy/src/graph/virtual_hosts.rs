//! Virtual hosts that are discovered (`RouteConfiguration.vhds`).
//!
//! Owns the virtual hosts of each source, the route configurations that take them in, and the questions for single ones.
//! A virtual host belongs to the route configuration that its name begins with. Never finds the virtual host of a request.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_config::route::{RouteConfiguration, VirtualHost};
use outrigger_config::source::ConfigSource;
use outrigger_policy::route::RouteTable;
use outrigger_xds::core::Protocol;
use outrigger_xds::{Interest, Rejection, ResourceKind, ResourceUpdate, Source, SourceConfig};
use tokio::sync::oneshot;

use super::demands::Alias;
use super::manager::{GraphManager, Spec};
use super::need::{self, Need, Requirement};
use super::offers::explain;
use super::warming::User;

/// Virtual hosts of a source by the names of their resources.
pub(super) type VirtualHosts = BTreeMap<Arc<str>, Arc<VirtualHost>>;

/// The virtual hosts of a route configuration.
fn of_routes(all: Option<&VirtualHosts>, routes: &str) -> impl Iterator<Item = Arc<VirtualHost>> {
    let first = format!("{routes}/");
    all.into_iter().flat_map(move |all| {
        let from = all.range::<str, _>((std::ops::Bound::Included(&*first), std::ops::Bound::Unbounded));
        let first = first.clone();
        // What stands behind the last slash is the host's own.
        from.take_while(move |(name, _)| name.starts_with(&*first))
            .filter(move |(name, _)| name.rfind('/') == Some(routes.len()))
            .map(|(_, host)| Arc::clone(host))
    })
}

impl GraphManager {
    /// A route configuration whose virtual hosts are discovered: it is complete once those have arrived.
    pub(super) fn take_open_routes(
        &mut self,
        need: &Need,
        routes: Arc<RouteConfiguration>,
        source: &ConfigSource,
    ) -> Result<(), String> {
        let place = "vhds.config_source";
        let resolved = self.sources.resolve(source).map_err(|error| format!("{place}: {}", explain(&error)))?;
        if let Source::Ads(ads) = &resolved.source
            && ads.protocol != Protocol::Delta
        {
            return Err(format!("{place}: virtual hosts need ads of type DELTA_GRPC"));
        }
        let hosts = Need::Resource {
            kind: ResourceKind::VirtualHost,
            source: resolved.key(ResourceKind::VirtualHost),
            name: Arc::clone(&need::EVERYTHING),
        };
        let known = of_routes(self.resources.virtual_hosts.get(&hosts), &routes.name);
        let full = routes.with_virtual_hosts(known).map_err(|error| error.to_string())?;
        self.check_clusters(&full)?;
        self.count_virtual_hosts(need, &hosts, &routes.name);
        self.specs.insert(hosts.clone(), Spec::Resource(source.clone()));
        self.resources.open_routes.insert(need.clone(), (routes, hosts.clone()));
        self.offer_full_routes(need, full, hosts);
        Ok(())
    }

    fn offer_full_routes(&mut self, need: &Need, full: RouteConfiguration, hosts: Need) {
        let clusters = need::clusters_of_routes(&full);
        let mut requirements = match self.route_wants(&full) {
            Ok((requirements, specs)) => {
                self.take_specs(specs);
                requirements
            }
            // Filters refuse requests for want of the secret.
            Err(error) => {
                tracing::error!("{need}: {error}");
                Vec::new()
            }
        };
        let table = Arc::new(RouteTable::build(Arc::new(full)));
        requirements.push(Requirement { need: hosts, wait: true });
        self.warming.offer_routes(need, table, clusters, requirements);
    }

    /// Under `http.<stat prefix>.vhds.<route configuration>.`, beside those of the route configuration.
    fn count_virtual_hosts(&mut self, need: &Need, hosts: &Need, routes: &str) {
        let known = self.stats.resources.get(need).into_iter().flatten();
        let end = format!(".rds.{}.", crate::stats::names::sanitize(routes));
        let prefixes: Vec<String> = known
            .filter_map(|(prefix, _)| prefix.strip_suffix(&*end))
            .map(|http| crate::stats::names::prefix(&format!("{http}.vhds"), routes))
            .collect();
        for prefix in prefixes {
            self.count_under(hosts, &prefix);
        }
    }

    /// Takes a virtual host in. What follows from it is done by [`Self::virtual_hosts_changed`].
    pub(super) fn take_virtual_host(&mut self, hosts: &Need, name: &Arc<str>, host: VirtualHost) {
        self.resources.virtual_hosts.entry(hosts.clone()).or_default().insert(Arc::clone(name), Arc::new(host));
    }

    /// Forgets a virtual host; a request that wants it asks again.
    pub(super) fn lose_virtual_host(&mut self, hosts: &Need, name: &Arc<str>) {
        if let Some(known) = self.resources.virtual_hosts.get_mut(hosts) {
            known.remove(name);
        }
        self.end_alias(hosts, name);
    }

    /// Virtual hosts have arrived, changed or gone: route configurations are built anew. `added` are those that were
    /// taken in; the ones that do not go together with others are taken out again and named.
    pub(super) fn virtual_hosts_changed(&mut self, hosts: &Need, added: &[ResourceUpdate]) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        for user in self.warming.users(hosts) {
            let User::Routes(need) = user else { continue };
            let Some((routes, _)) = self.resources.open_routes.get(&need) else { continue };
            let routes = Arc::clone(routes);
            let full = loop {
                let known = of_routes(self.resources.virtual_hosts.get(hosts), &routes.name);
                let conflict = match routes.with_virtual_hosts(known) {
                    Ok(full) => break Some(full),
                    Err(conflict) => conflict,
                };
                let Some(name) = self.newcomer(hosts, added, &conflict.hosts) else {
                    tracing::error!("{need} keeps its virtual hosts: {conflict}");
                    break None;
                };
                self.resources.virtual_hosts.entry(hosts.clone()).or_default().remove(&*name);
                rejections.push(Rejection { name, message: conflict.to_string() });
            };
            if let Some(full) = full {
                self.offer_full_routes(&need, full, hosts.clone());
            }
        }
        self.warming.answered(hosts);
        rejections
    }

    /// The name of the resource that brought one of two virtual hosts.
    fn newcomer(&self, hosts: &Need, added: &[ResourceUpdate], two: &(Arc<str>, Arc<str>)) -> Option<String> {
        let known = self.resources.virtual_hosts.get(hosts)?;
        let is_one = |resource: &&ResourceUpdate| {
            known.get(&*resource.name).is_some_and(|host| host.name == two.0 || host.name == two.1)
        };
        added.iter().rev().find(is_one).map(|resource| resource.name.clone())
    }

    /// A request wants a virtual host that is not known.
    pub(super) fn want_virtual_host(&mut self, routes: &str, host: &str, reply: oneshot::Sender<()>) {
        let is_wanted = |need: &Need| need.is(ResourceKind::RouteConfiguration, routes);
        let found = self.resources.open_routes.iter().find(|(need, _)| is_wanted(need));
        let Some((need, (base, hosts))) = found.map(|(need, found)| (need.clone(), found.clone())) else {
            return drop(reply);
        };
        let alias: Arc<str> = format!("{routes}/{host}").into();
        let is_known = self.resources.virtual_hosts.get(&hosts).is_some_and(|known| known.contains_key(&alias));
        if is_known {
            return self.waiting.routes.push((need, reply));
        }
        if let Some(known) = self.waiting.aliases.get_mut(&(hosts.clone(), Arc::clone(&alias))) {
            match known.answered {
                true => self.waiting.routes.push((need, reply)),
                false => known.waiting.push(reply),
            }
            return;
        }
        let source = base.more_virtual_hosts.as_deref().map(|source| self.sources.resolve(source));
        let Some(Ok(SourceConfig { source, .. })) = source else { return drop(reply) };
        // How long a request waits is its own affair.
        let config = SourceConfig { source, initial_fetch_timeout: None };
        let watch = self.xds.watch(ResourceKind::VirtualHost, Interest::Name(alias.to_string()), &config);
        let known = Alias { watch, routes: need, answered: false, waiting: vec![reply] };
        self.waiting.aliases.insert((hosts, alias), known);
    }

    /// The control plane has virtual hosts of these names: their requests go on once the route configuration is in use.
    pub(super) fn answer_aliases<'n>(&mut self, hosts: &Need, names: impl Iterator<Item = &'n str>) {
        if self.waiting.aliases.is_empty() {
            return;
        }
        for name in names {
            let Some(known) = self.waiting.aliases.get_mut(&(hosts.clone(), Arc::from(name))) else { continue };
            known.answered = true;
            let (routes, waiting) = (known.routes.clone(), std::mem::take(&mut known.waiting));
            self.waiting.routes.extend(waiting.into_iter().map(|reply| (routes.clone(), reply)));
        }
    }

    /// There is no such virtual host: its requests go on without, and the next one asks again.
    pub(super) fn end_alias(&mut self, hosts: &Need, name: &Arc<str>) {
        if let Some(known) = self.waiting.aliases.remove(&(hosts.clone(), Arc::clone(name))) {
            self.xds.unwatch(known.watch);
            self.waiting.routes.extend(known.waiting.into_iter().map(|reply| (known.routes.clone(), reply)));
        }
    }

    /// A route configuration is gone, and with it all questions for its virtual hosts.
    pub(super) fn end_aliases_of(&mut self, routes: &Need) {
        if self.resources.open_routes.remove(routes).is_none() {
            return;
        }
        let of_routes = |known: &Alias| known.routes == *routes;
        let aliases = self.waiting.aliases.iter().filter(|(_, known)| of_routes(known));
        let gone: Vec<(Need, Arc<str>)> = aliases.map(|(key, _)| key.clone()).collect();
        for (hosts, name) in gone {
            self.end_alias(&hosts, &name);
        }
    }
}
