//! What the xDS client hands over: decoding, parsing, and the verdict on each resource.
//!
//! Owns the way from an `Any` to an offer, and the words of a refusal. Never decides when something is used.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use outrigger_api::NewerFields;
use outrigger_api::pb::envoy::config::cluster::v3 as cluster_pb;
use outrigger_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrigger_api::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrigger_api::pb::envoy::config::listener::v3 as listener_pb;
use outrigger_api::pb::envoy::config::route::v3 as route_pb;
use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls_pb;
use outrigger_api::pb::envoy::service::runtime::v3::Runtime;
use outrigger_api::pb::google::protobuf::Any;
use outrigger_config::Context;
use outrigger_config::bootstrap::runtime_layer;
use outrigger_config::cluster::{Assignment, Cluster};
use outrigger_config::coverage::collecting;
use outrigger_config::extension::Extension;
use outrigger_config::listener::Listener;
use outrigger_config::route::{RouteConfiguration, ScopedRoute, VirtualHost};
use outrigger_config::tls::Secret;
use outrigger_xds::{Handler, Rejection, ResourceKind, ResourceUpdate, SourceKey, Update};

use super::history::{Record, Refusal};
use super::journal::{Change, Former, Push};
use super::manager::GraphManager;
use super::need::{EVERYTHING, Need};
use super::stats::{follow, milliseconds, version_gauge};
use super::targets::check_name;

/// Hands everything to the manager.
pub(super) struct XdsHandler(pub Rc<RefCell<GraphManager>>);

impl Handler for XdsHandler {
    fn on_update(&mut self, source: &SourceKey, update: Update) -> Vec<Rejection> {
        self.0.borrow_mut().take_update(source, update)
    }

    fn on_fetch_timeout(&mut self, source: &SourceKey, kind: ResourceKind, name: Option<&str>) {
        self.0.borrow_mut().take_timeout(source, kind, name);
    }

    fn on_connected(&mut self, source: &SourceKey, connected: bool) {
        let mut manager = self.0.borrow_mut();
        manager.connected.insert(source.clone(), connected);
        let all = manager.connected.values().all(|connected| *connected);
        manager.stats.control_plane.connected_state.set(i64::from(all));
    }
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl GraphManager {
    fn take_update(&mut self, source: &SourceKey, update: Update) -> Vec<Rejection> {
        let Update { kind, version, added, confirmed, removed, absent, full_state: _, origin: _ } = update;
        let mut push = Push::new(kind.noun(), source.to_string(), version.clone());
        let mut changes = Vec::new();
        // Removals first: an address or a name may have a new owner in the same update.
        for name in &removed {
            let name = Arc::from(name.as_str());
            let before = self.history.latest(kind, &name);
            self.take_removal(source, kind, &name);
            if before != Former::Absent && self.history.latest(kind, &name) == Former::Absent {
                push.removed.push(&name);
                changes.push(Change::new(kind, &name, before));
            }
        }
        let mut rejections = Vec::new();
        let mut seen = HashSet::new();
        for resource in &added {
            let name: Arc<str> = resource.name.as_str().into();
            let verdict = match seen.insert(resource.name.as_str()) {
                true => self.take_resource(source, kind, &name, resource),
                false => Err(format!("duplicate {} {name:?} found", kind.noun())),
            };
            let before = self.history.latest(kind, &name);
            self.note(source, kind, &name, resource, &verdict);
            match &verdict {
                Err(message) => push.reject(&name, message),
                Ok(()) => match (before, self.history.latest(kind, &name)) {
                    (Former::Absent, _) => {
                        push.added.push(&name);
                        changes.push(Change::new(kind, &name, Former::Absent));
                    }
                    (before, after) if before == after => push.unchanged += 1,
                    (before, _) => {
                        push.changed.push(&name);
                        changes.push(Change::new(kind, &name, before));
                    }
                },
            }
            if let Err(message) = verdict {
                rejections.push(Rejection { name: resource.name.clone(), message });
            }
        }
        if kind == ResourceKind::ClusterLoadAssignment {
            for name in &confirmed {
                self.confirm_assignment(&named(source, kind, &Arc::from(name.as_str())));
            }
        }
        rejections.extend(self.settle_everything(source, kind, &version, &added, &absent, &rejections));
        for name in absent.iter().chain(rejections.iter().map(|rejection| &rejection.name)) {
            // Nobody should wait for what does not exist or is not acceptable.
            self.warming.answered(&named(source, kind, &Arc::from(name.as_str())));
        }
        match kind {
            ResourceKind::Cluster => {
                // What is in use stays wanted, even if its next version is no good.
                for name in absent.iter().chain(rejections.iter().map(|rejection| &rejection.name)) {
                    if !self.has_cluster(name) {
                        self.end_cluster_demand(name);
                    }
                }
                self.warming.clusters_discovered();
            }
            ResourceKind::Listener => self.warming.listeners_discovered(),
            _ => {}
        }
        if rejections.is_empty() {
            self.history.set_version(kind, &version);
        }
        let generation = self.generation();
        self.proceed();
        // What is waited for comes with a later generation.
        self.journal.write(push, changes, self.generation().max(generation + 1));
        self.refresh_stats();
        rejections
    }

    /// What follows from all resources of an answer together, where they are asked for together.
    fn settle_everything(
        &mut self,
        source: &SourceKey,
        kind: ResourceKind,
        version: &str,
        added: &[ResourceUpdate],
        absent: &[String],
        refused: &[Rejection],
    ) -> Vec<Rejection> {
        let need = everything(source, kind);
        let began = Instant::now();
        let rejections = match kind {
            ResourceKind::ScopedRouteConfiguration => {
                self.scopes_changed(&need);
                self.time_scopes(&need, began);
                Vec::new()
            }
            ResourceKind::VirtualHost => {
                let rejections = self.virtual_hosts_changed(&need, added);
                for name in absent {
                    self.end_alias(&need, &Arc::from(name.as_str()));
                }
                let names = added.iter().flat_map(|host| host.aliases.iter().chain([&host.name]));
                self.answer_aliases(&need, names.map(String::as_str));
                rejections
            }
            _ => return Vec::new(),
        };
        for (_, stats) in self.stats.resources.get(&need).into_iter().flatten() {
            match rejections.is_empty() && refused.is_empty() {
                true => stats.accepted(version, SystemTime::now()),
                false => stats.update_rejected.increment(),
            }
        }
        rejections
    }

    fn take_resource(
        &mut self,
        source: &SourceKey,
        kind: ResourceKind,
        name: &Arc<str>,
        update: &ResourceUpdate,
    ) -> Result<(), String> {
        let any = &*update.resource;
        if self.static_names.contains(&(kind, Arc::clone(name))) {
            tracing::warn!("{} {name:?} is static and stays as it is", kind.noun());
            return Ok(());
        }
        let unknown = self.unknown_fields.check_resource(&format_args!("{} {name:?}", kind.noun()), any)?;
        let (taken, without_effect) = collecting(|| self.take_known_resource(source, kind, name, any));
        if taken.is_ok() {
            self.coverage.set(kind.noun(), name, &without_effect, &unknown);
        }
        taken
    }

    fn take_known_resource(
        &mut self,
        source: &SourceKey,
        kind: ResourceKind,
        name: &Arc<str>,
        any: &Any,
    ) -> Result<(), String> {
        let need = named(source, kind, name);
        let environment = Rc::clone(&self.options.environment);
        let context = &Context::new(&*environment);
        context.set_local_cluster(self.local.name().is_some());
        match kind {
            ResourceKind::Cluster => {
                let wire = decode::<cluster_pb::Cluster>(any)?;
                let newer = match wire.health_checks.is_empty() {
                    true => NewerFields::default(),
                    false => NewerFields::of_cluster(&any.value),
                };
                let context = &Context::new(&*environment).with_newer(newer);
                let config = Cluster::parse(context, wire).map_err(words)?;
                check_name(name)?;
                self.offer_targets(context.take_google_targets())?;
                self.offer_cluster(Arc::new(config))
            }
            ResourceKind::Listener => {
                let mut config = Listener::parse(context, decode::<listener_pb::Listener>(any)?).map_err(words)?;
                config.name = Arc::clone(name);
                self.offer_targets(context.take_google_targets())?;
                self.share_chains(&mut config);
                let offered = self.offer_listener(Arc::new(config), None);
                if offered.is_err() {
                    self.stats.listeners.listener_create_failure.increment();
                }
                offered
            }
            ResourceKind::RouteConfiguration => {
                let routes = decode::<route_pb::RouteConfiguration>(any)?;
                let routes = RouteConfiguration::parse(context, routes).map_err(words)?;
                self.offer_targets(context.take_google_targets())?;
                self.take_routes(&need, routes)
            }
            ResourceKind::ClusterLoadAssignment => {
                let assignment = decode::<ClusterLoadAssignment>(any)?;
                let assignment = Assignment::parse(context, assignment).map_err(words)?;
                self.take_assignment(&need, Arc::new(assignment));
                Ok(())
            }
            ResourceKind::Secret => {
                let secret = Secret::parse(context, decode::<tls_pb::Secret>(any)?).map_err(words)?;
                self.take_secret(&need, secret)
            }
            ResourceKind::ExtensionConfig => {
                let extension = decode::<TypedExtensionConfig>(any)?;
                let extension = Extension::parse(context, extension).map_err(words)?;
                self.offer_targets(context.take_google_targets())?;
                self.take_extension(&need, extension)
            }
            ResourceKind::Runtime => {
                let (_, values) = runtime_layer(context, decode::<Runtime>(any)?).map_err(words)?;
                self.take_runtime(name, values);
                Ok(())
            }
            ResourceKind::ScopedRouteConfiguration => {
                let scope = decode::<route_pb::ScopedRouteConfiguration>(any)?;
                let scope = ScopedRoute::parse(context, scope).map_err(words)?;
                self.offer_targets(context.take_google_targets())?;
                self.take_scope(&everything(source, kind), scope)
            }
            ResourceKind::VirtualHost => {
                let host = decode::<route_pb::VirtualHost>(any)?;
                let host = VirtualHost::parse(context, host).map_err(words)?;
                self.offer_targets(context.take_google_targets())?;
                self.take_virtual_host(&everything(source, kind), name, host);
                Ok(())
            }
        }
    }

    fn take_removal(&mut self, source: &SourceKey, kind: ResourceKind, name: &Arc<str>) {
        if self.static_names.contains(&(kind, Arc::clone(name))) {
            return;
        }
        match kind {
            ResourceKind::Cluster => {
                self.remove_cluster(name);
                self.end_cluster_demand(name);
            }
            ResourceKind::Listener => self.remove_listener(name),
            ResourceKind::ExtensionConfig => {
                self.lose_extension(&named(source, kind, name));
                self.history.removed(kind, name, false);
            }
            ResourceKind::Runtime => self.take_runtime(name, Default::default()),
            ResourceKind::ScopedRouteConfiguration => {
                self.lose_scope(&everything(source, kind), name);
                self.history.removed(kind, name, false);
            }
            ResourceKind::VirtualHost => {
                self.lose_virtual_host(&everything(source, kind), name);
                self.history.removed(kind, name, false);
            }
            // These go with the last one that refers to them.
            ResourceKind::ClusterLoadAssignment | ResourceKind::RouteConfiguration | ResourceKind::Secret => {}
        }
    }

    fn take_timeout(&mut self, source: &SourceKey, kind: ResourceKind, name: Option<&str>) {
        match (kind, name) {
            (ResourceKind::Cluster, None) => self.warming.clusters_discovered(),
            (ResourceKind::Listener, None) => self.warming.listeners_discovered(),
            (_, Some(name)) => {
                let need = named(source, kind, &Arc::from(name));
                for (_, stats) in self.stats.resources.get(&need).into_iter().flatten() {
                    stats.init_fetch_timeout.increment();
                }
                self.each_cluster_of(&need, |stats| stats.init_fetch_timeout.increment());
                self.warming.answered(&need);
            }
            (ResourceKind::ScopedRouteConfiguration | ResourceKind::VirtualHost, None) => {
                let need = everything(source, kind);
                for (_, stats) in self.stats.resources.get(&need).into_iter().flatten() {
                    stats.init_fetch_timeout.increment();
                }
                self.warming.answered(&need);
            }
            (_, None) => {}
        }
        self.proceed();
        self.refresh_stats();
    }

    /// Writes down what came of a resource.
    fn note(
        &mut self,
        source: &SourceKey,
        kind: ResourceKind,
        name: &Arc<str>,
        resource: &ResourceUpdate,
        verdict: &Result<(), String>,
    ) {
        let now = SystemTime::now();
        let record =
            Record { version: resource.version.clone(), updated: now, resource: Some(Arc::clone(&resource.resource)) };
        let is_static = self.static_names.contains(&(kind, Arc::clone(name)));
        let need = named(source, kind, name);
        match verdict {
            Ok(()) if is_static => {}
            Ok(()) => {
                self.history.offered(kind, name, record, false);
                let waits = matches!(kind, ResourceKind::Cluster | ResourceKind::Listener)
                    || kind == ResourceKind::RouteConfiguration;
                if !waits {
                    self.history.activated(kind, name);
                }
            }
            Err(details) => {
                tracing::warn!("{} {name:?} refused: {details}", kind.noun());
                self.history.refused(kind, name, Refusal { record, details: details.clone() });
            }
        }
        for (_, stats) in self.stats.resources.get(&need).into_iter().flatten() {
            match verdict {
                Ok(()) => stats.accepted(&resource.version, now),
                Err(_) => stats.update_rejected.increment(),
            }
        }
        if kind == ResourceKind::ClusterLoadAssignment {
            self.each_cluster_of(&need, |stats| {
                stats.update_attempt.increment();
                match verdict {
                    Ok(()) => {
                        stats.update_success.increment();
                        stats.version.set(version_gauge(&resource.version));
                        stats.update_time.set(milliseconds(now));
                    }
                    Err(_) => stats.update_rejected.increment(),
                }
            });
        }
    }

    pub(super) fn each_cluster_of(&self, need: &Need, mut act: impl FnMut(&super::stats::ClusterControlStats)) {
        for user in self.warming.users(need) {
            if let super::warming::User::Cluster(name) = user
                && let Some(stats) = self.stats.cluster.get(&name)
            {
                act(stats);
            }
        }
    }

    /// Brings the stats of `cluster_manager.cds` and `listener_manager.lds` up to what the client has counted.
    pub fn refresh_stats(&mut self) {
        for source in self.xds.stats().sources {
            for summary in source.types {
                let stats = match summary.kind {
                    ResourceKind::Cluster => &self.stats.cds,
                    ResourceKind::Listener => &self.stats.lds,
                    kind => {
                        self.spread_failures(&source.key, kind, summary.stats.update_failure);
                        continue;
                    }
                };
                follow(&stats.update_attempt, summary.stats.update_attempt);
                follow(&stats.update_success, summary.stats.update_success);
                follow(&stats.update_rejected, summary.stats.update_rejected);
                follow(&stats.update_failure, summary.stats.update_failure);
                follow(&stats.init_fetch_timeout, summary.stats.init_fetch_timeout);
                stats.version.set(version_gauge(&summary.stats.version));
                if let Some(at) = summary.updated_at {
                    stats.update_time.set(milliseconds(at));
                }
            }
        }
    }
}

impl GraphManager {
    /// What failed for all of a source's resources of a type failed for each of them.
    fn spread_failures(&mut self, source: &SourceKey, kind: ResourceKind, total: u64) {
        let known = self.stats.failures.entry((source.clone(), kind)).or_default();
        let new = total.saturating_sub(std::mem::replace(known, total));
        if new == 0 {
            return;
        }
        let concerned = |need: &&Need| match need {
            Need::Resource { kind: of, source: from, name: _ } => *of == kind && from == source,
            Need::Addresses { .. } | Need::Checks { .. } | Need::Keys { .. } | Need::Token { .. } => false,
        };
        for need in self.running.keys().filter(concerned) {
            for (_, stats) in self.stats.resources.get(need).into_iter().flatten() {
                stats.update_failure.add(new);
            }
            if kind == ResourceKind::ClusterLoadAssignment {
                self.each_cluster_of(need, |stats| stats.update_failure.add(new));
            }
        }
    }
}

/// A secret refers to a file that has changed.
pub(super) fn read_secret_again(manager: &mut GraphManager, need: &Need) {
    let Need::Resource { kind, name, source } = need else { return };
    let known = manager.history.of(*kind).find(|(known, _)| *known == name);
    let Some(record) = known.and_then(|(_, history)| history.active.clone()) else { return };
    let Some(resource) = record.resource else { return };
    let update =
        ResourceUpdate { name: name.to_string(), version: record.version, resource, ttl: None, aliases: Vec::new() };
    let verdict = manager.take_resource(source, *kind, name, &update);
    manager.note(source, *kind, name, &update, &verdict);
    manager.proceed();
}

fn named(source: &SourceKey, kind: ResourceKind, name: &Arc<str>) -> Need {
    Need::Resource { kind, source: source.clone(), name: Arc::clone(name) }
}

fn everything(source: &SourceKey, kind: ResourceKind) -> Need {
    named(source, kind, &EVERYTHING)
}

fn decode<M: prost::Message + prost::Name + Default>(any: &Any) -> Result<M, String> {
    outrigger_api::unpack(any).map_err(words)
}
