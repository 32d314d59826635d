//! Building the nodes of the graph from what was accepted.
//!
//! Owns what a node is made of at the moment, and how it takes the place of its predecessor, which stays if a new one cannot
//! be built. Never decides when something is due (see `warming`).

use std::sync::Arc;
use std::time::SystemTime;

use outrigger_config::address::Address;
use outrigger_config::cluster::{Cluster, Discovery};
use outrigger_config::listener::{DrainType, Listener};
use outrigger_config::source::ConfigSource;
use outrigger_config::tls::Secret;
use outrigger_config::tracing::HttpTracing;
use outrigger_xds::ResourceKind;

use super::ListenerNode;
use super::compile::{self, ClusterBuild, ClusterInputs, CompileError, Extensions, ListenerBuild, Surroundings};
use super::history::{Record, Refusal};
use super::hosts::same_hosts;
use super::manager::{GraphManager, RunningListener};
use super::need::{Need, WantedFilter};
use super::sockets::BoundSockets;
use crate::accesslog::AccessLogger;
use crate::listener::accept::stat_prefix;
use crate::stats::names;

impl GraphManager {
    /// Builds the node of a cluster anew; the old one stays if that fails.
    pub(super) fn rebuild_cluster(&mut self, name: &Arc<str>) {
        self.renew_first_checks(name);
        let Some(config) = self.warming.cluster(name).and_then(|entry| entry.active()) else { return };
        let config = Arc::clone(&config.config);
        let checked = self.take_checked(name, &config);
        let old = self.clusters.get(name);
        match self.compile_cluster(&config, checked.as_ref().or(old)) {
            Ok(build) => {
                let changed = old.is_none_or(|old| !Arc::ptr_eq(&old.node, &build.node));
                let moved = old.is_none_or(|old| !Arc::ptr_eq(&old.node.hosts, &build.node.hosts));
                let new = &build.node.hosts;
                let resized = moved && old.map_or(!new.hosts.is_empty(), |old| !same_hosts(&old.node.hosts, new));
                self.dirty |= changed;
                if let Some(stats) = self.stats.cluster.get(name) {
                    stats.ssl_context_update_by_sds.add(build.secret_updates(old));
                }
                // Not again for each new certificate.
                if build.node.tls.accept_anybody() && !old.is_some_and(|old| old.node.tls.accept_anybody()) {
                    tracing::warn!("cluster {name:?}: no trusted CA in a TLS context: any server is accepted");
                }
                self.clusters.insert(Arc::clone(name), build);
                if moved && self.is_changed_by_hand(name) && self.put_by_hand(name) {
                    self.rebalance(name);
                }
                self.follow_health(name);
                self.follow_local_cluster(name);
                if moved && let Some(stats) = self.stats.cluster.get(name) {
                    if resized {
                        stats.membership_change.increment();
                    }
                    self.show_membership(name);
                }
            }
            Err(error) => self.cannot_build(ResourceKind::Cluster, name, &error),
        }
    }

    /// The node of a cluster, made of all that is known now.
    pub(super) fn compile_cluster(
        &self,
        config: &Arc<Cluster>,
        old: Option<&ClusterBuild>,
    ) -> Result<ClusterBuild, CompileError> {
        let assignment = match &config.discovery {
            Discovery::Eds { service_name, source } => {
                let need = self.sources.need(ResourceKind::ClusterLoadAssignment, service_name, source).ok();
                need.and_then(|need| self.resources.assignments.get(&need)).cloned()
            }
            _ => None,
        };
        let addresses = |host: &str| {
            let need = Need::Addresses { cluster: Arc::clone(&config.name), host: host.into() };
            self.resources.addresses.get(&need).cloned()
        };
        let secrets = |name: &Arc<str>, source: Option<&ConfigSource>| self.secret(name, source);
        let zones = self.local.of(config);
        compile::cluster(ClusterInputs { config, assignment, addresses: &addresses, secrets: &secrets, zones }, old)
    }

    /// A secret as it is now.
    pub(super) fn secret(&self, name: &Arc<str>, source: Option<&ConfigSource>) -> Option<Arc<Secret>> {
        match source {
            None => self.resources.static_secrets.get(name).cloned(),
            Some(source) => {
                let need = self.sources.need(ResourceKind::Secret, name, source).ok()?;
                self.resources.secrets.get(&need).cloned()
            }
        }
    }

    /// The node of a listener. What `olds` have in common with it is taken from them.
    pub(super) fn compile_listener(
        &self,
        config: &Arc<Listener>,
        extensions: &Extensions,
        olds: &[&ListenerBuild],
    ) -> Result<ListenerBuild, CompileError> {
        let secrets = |name: &Arc<str>, source: Option<&ConfigSource>| self.secret(name, source);
        let open = |log: &Arc<_>| AccessLogger::open(log, &self.options.access_logs).map(Arc::new);
        let need = |wanted: WantedFilter<'_>| self.extension_need(wanted).ok();
        let scope_source = |source: &ConfigSource| match self.scopes_need(source) {
            Ok(need) => need.source().unwrap_or_default().into(),
            Err(_) => Arc::default(),
        };
        let process = &self.process;
        let tracer = |tracing: &HttpTracing| process.traces.tracer(tracing.provider.as_ref(), process);
        let surroundings = Surroundings {
            secrets: &secrets,
            open_log: &open,
            open_tracer: &tracer,
            extension_need: &need,
            scope_source: &scope_source,
        };
        compile::listener(config, extensions, olds, &surroundings)
    }

    /// Builds the node of a listener in use anew, after a secret has changed.
    pub(super) fn rebuild_listener(&mut self, name: &Arc<str>) {
        let Some(revision) = self.warming.listener(name).and_then(|entry| entry.active()) else { return };
        let Some(running) = self.listeners.get(name) else { return };
        match self.compile_listener(&revision.config, &revision.extensions, &[&running.build]) {
            Ok(build) => {
                let new = Arc::clone(&build.node);
                let updates = build.secret_updates(Some(&running.build));
                self.count_secret_updates(name, &new, updates);
                let Some(running) = self.listeners.get_mut(name) else { return };
                let old = std::mem::replace(&mut running.build, build).node;
                self.dirty = true;
                self.retire_rotated(&old, &new);
            }
            Err(error) => self.cannot_build(ResourceKind::Listener, name, &error),
        }
    }

    /// Puts a listener that is ready in the place of its predecessor.
    pub(super) fn activate_listener(&mut self, name: &Arc<str>) {
        let Some(revision) = self.warming.listener(name).and_then(|entry| entry.active()) else { return };
        let old = self.listeners.get(name);
        let prepared = revision.prepared.take();
        let olds: Vec<&ListenerBuild> = prepared.iter().chain(old.map(|old| &old.build)).collect();
        let built = self.compile_listener(&revision.config, &revision.extensions, &olds);
        let bound = revision.bound.take();
        let binds = revision.config.bind_to_port;
        let internal = revision.config.is_internal();
        let own = || revision.config.addresses.iter().map(|listen| listen.address.clone()).collect();
        let internal: Option<Vec<Address>> = internal.then(own);
        let drain_type = revision.config.drain_type;
        let direction = revision.config.traffic_direction;
        let position = revision.position;
        let listening = built.map_err(|error| error.to_string()).and_then(|build| {
            let addresses = bound.as_ref().map(|bound| bound.addresses.clone());
            let sockets = bound.map(BoundSockets::listen).transpose().map_err(|error| error.to_string())?;
            Ok((build, addresses, sockets))
        });
        let (build, addresses, sockets) = match listening {
            Ok(parts) => parts,
            Err(error) => {
                self.stats.listeners.listener_create_failure.increment();
                return self.cannot_build(ResourceKind::Listener, name, &error);
            }
        };
        let stopped = self.stopped.is_some_and(|scope| scope.covers(direction));
        let old = self.listeners.remove(name);
        let updates = build.secret_updates(old.as_ref().map(|old| &old.build));
        self.count_secret_updates(name, &build.node, updates);
        let (mut id, kept) = old.as_ref().map_or((None, Vec::new()), |old| (old.sockets, old.addresses.clone()));
        if sockets.is_some() || !binds {
            self.stops.extend(id.take());
        }
        if let Some(sockets) = sockets.filter(|_| !stopped) {
            id = Some(self.next_sockets);
            self.starts.push((Arc::clone(name), self.next_sockets, sockets));
            self.next_sockets += 1;
        }
        if self.health_check_failed && drain_type == DrainType::Default {
            build.node.chains.iter().for_each(|chain| chain.draining.begin());
        }
        if let Some(old) = &old {
            let mut vanished = compile::vanished(&old.build.node, Some(&build.node));
            self.stats.listeners.listener_in_place_updated.increment();
            let rotated = self.retire_rotated(&old.build.node, &build.node);
            vanished.retain(|draining| !rotated.iter().any(|other| Arc::ptr_eq(other, draining)));
            self.drain_chains(vanished);
        }
        self.stats.listeners.listener_create_success.increment();
        let addresses = internal.or(addresses).unwrap_or(kept);
        self.listeners.insert(Arc::clone(name), RunningListener { build, sockets: id, addresses, position });
        self.dirty = true;
    }

    fn count_secret_updates(&mut self, name: &Arc<str>, node: &ListenerNode, updates: u64) {
        if updates == 0 {
            return;
        }
        let prefix = names::prefix("listener", &stat_prefix(node));
        let known = self.stats.listener.entry(Arc::clone(name));
        let (of, stats) = known.or_insert_with(|| (prefix.clone(), self.process.stats.scope(&prefix)));
        if *of != prefix {
            (*of, *stats) = (prefix.clone(), self.process.stats.scope(&prefix));
        }
        stats.ssl_context_update_by_sds.add(updates);
    }

    pub(super) fn cannot_build(&mut self, kind: ResourceKind, name: &Arc<str>, error: &dyn std::fmt::Display) {
        tracing::error!("{} {name:?} keeps its predecessor: {error}", kind.noun());
        let record = Record { version: String::new(), updated: SystemTime::now(), resource: None };
        self.history.refused(kind, name, Refusal { record, details: error.to_string() });
    }
}
