//! Taking in what clusters and listeners have asked for: endpoints, routes, secrets, filters, addresses of names.
//!
//! Owns the judgement of each and what is built anew because of it. Never parses messages.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Weak;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::bootstrap::RuntimeValues;
use outrigger_config::cluster::{Assignment, DnsOptions};
use outrigger_config::extension::Extension;
use outrigger_config::route::RouteConfiguration;
use outrigger_config::tls::{Secret, SecretKind};
use outrigger_policy::route::RouteTable;
use outrigger_xds::{FileWatcher, ResourceKind};
use tokio::task::AbortHandle;

use super::manager::GraphManager;
use super::need::{self, Need, WantedFilter};
use super::offers::explain;
use super::runtime_layers;
use super::sources::SourceError;
use super::stats::count;
use super::tls_inputs::check_secret;
use super::warming::User;
use super::{hosts, xds_handler};
use crate::jwks::RemoteKeys;
use crate::upstream::dns::{Answer, DnsError, RefreshSchedule};
use crate::worker::random::Random;

impl GraphManager {
    /// Endpoints of a cluster. Those that bring or take members hold at once; others may wait for more of their kind.
    pub(super) fn take_assignment(&mut self, need: &Need, assignment: Arc<Assignment>) {
        self.time_assignment(need, &assignment);
        self.set_assignment(need, assignment);
    }

    /// The endpoints are these from now on.
    pub(super) fn set_assignment(&mut self, need: &Need, assignment: Arc<Assignment>) {
        let old = self.resources.assignments.insert(need.clone(), Arc::clone(&assignment));
        self.warming.answered(need);
        let same_members = old.is_some_and(|old| hosts::same_members(&old, &assignment));
        for user in self.warming.users(need) {
            let User::Cluster(name) = user else { continue };
            if same_members {
                self.merge_update(&name);
            } else {
                self.apply_update(&name);
            }
        }
    }

    fn apply_update(&mut self, name: &Arc<str>) {
        let merge = self.merges.entry(Arc::clone(name)).or_default();
        merge.last = Some(Instant::now());
        if let Some(timer) = merge.timer.take() {
            timer.abort();
            self.stats.clusters.update_merge_cancelled.increment();
        }
        self.rebuild_cluster(name);
    }

    fn merge_update(&mut self, name: &Arc<str>) {
        let Some(active) = self.warming.cluster(name).and_then(|entry| entry.active()) else { return };
        let window = active.config.update_merge_window;
        let merge = self.merges.entry(Arc::clone(name)).or_default();
        if merge.timer.is_some() {
            return;
        }
        let now = Instant::now();
        if merge.last.is_none_or(|last| now.saturating_duration_since(last) >= window) {
            self.stats.clusters.update_out_of_merge_window.increment();
            return self.apply_update(name);
        }
        let cluster = Arc::clone(name);
        let timer = self.after(window, move |manager| {
            if let Some(merge) = manager.merges.get_mut(&cluster) {
                merge.timer = None;
            }
            manager.stats.clusters.cluster_updated_via_merge.increment();
            manager.apply_update(&cluster);
            manager.proceed();
        });
        if let Some(merge) = self.merges.get_mut(name) {
            merge.timer = Some(timer);
        }
    }

    /// A route configuration.
    pub(super) fn take_routes(&mut self, need: &Need, routes: RouteConfiguration) -> Result<(), String> {
        let routes = Arc::new(routes);
        if let Some(source) = &routes.more_virtual_hosts {
            return self.take_open_routes(need, Arc::clone(&routes), source);
        }
        self.check_clusters(&routes)?;
        let (requirements, specs) = self.route_wants(&routes)?;
        self.end_aliases_of(need);
        self.take_specs(specs);
        let clusters = need::clusters_of_routes(&routes);
        let table = Arc::new(RouteTable::build(routes));
        self.warming.offer_routes(need, table, clusters, requirements);
        Ok(())
    }

    /// A secret. It must fit everybody who uses it.
    pub(super) fn take_secret(&mut self, need: &Need, secret: Secret) -> Result<(), String> {
        check_secret(&secret).map_err(|error| explain(&error))?;
        let secret = Arc::new(secret);
        let old = self.resources.secrets.insert(need.clone(), Arc::clone(&secret));
        if let Err(error) = self.check_users(need) {
            match old {
                Some(old) => drop(self.resources.secrets.insert(need.clone(), old)),
                None => drop(self.resources.secrets.remove(need)),
            }
            return Err(error);
        }
        self.warming.answered(need);
        // Filters look them up in the graph.
        if matches!(secret.kind, SecretKind::Generic(_)) {
            self.changed();
        }
        for user in self.warming.users(need) {
            match user {
                User::Cluster(name) => self.rebuild_cluster(&name),
                User::Listener(name) => self.rebuild_listener(&name),
                User::Routes(_) => {}
            }
        }
        self.watch_files(need, &secret);
        Ok(())
    }

    fn check_users(&self, need: &Need) -> Result<(), String> {
        for user in self.warming.users(need) {
            match user {
                User::Cluster(name) => {
                    let Some(revision) = self.warming.cluster(&name).and_then(|entry| entry.latest()) else { continue };
                    let built = self.compile_cluster(&revision.config, self.clusters.get(&name));
                    built.map_err(|error| format!("cluster {name:?}: {}", explain(&error)))?;
                }
                User::Listener(name) => {
                    let Some(revision) = self.warming.listener(&name).and_then(|entry| entry.latest()) else {
                        continue;
                    };
                    let running = self.listeners.get(&name).map(|running| &running.build);
                    let prepared = revision.prepared.borrow().clone();
                    let olds: Vec<_> = prepared.iter().chain(running).collect();
                    let built = self.compile_listener(&revision.config, &revision.extensions, &olds);
                    built.map_err(|error| format!("listener {name:?}: {}", explain(&error)))?;
                }
                User::Routes(routes) => {
                    let Some(table) = self.warming.routes_of(&routes).and_then(|entry| entry.latest()) else {
                        continue;
                    };
                    let wanted = self.route_wants(table.configuration());
                    wanted.map_err(|error| format!("{routes}: {error}"))?;
                }
            }
        }
        Ok(())
    }

    /// Reads a secret again when one of its files changes.
    fn watch_files(&mut self, need: &Need, secret: &Secret) {
        for task in self.secret_files.remove(need).into_iter().flatten() {
            task.abort();
        }
        let files = secret.kind.files();
        let mut tasks: Vec<AbortHandle> = Vec::new();
        for file in files {
            let (this, need) = (Weak::clone(&self.this), need.clone());
            // Watching starts now, so that no change falls between reading and watching.
            let mut watcher = FileWatcher::new(file, None);
            tasks.push(self.spawn(async move {
                loop {
                    watcher.changed().await;
                    // A certificate and its key change one after the other: wait for both.
                    tokio::time::sleep(SETTLE).await;
                    let Some(manager) = this.upgrade() else { return };
                    xds_handler::read_secret_again(&mut manager.borrow_mut(), &need);
                }
            }));
        }
        if !tasks.is_empty() {
            self.secret_files.insert(need.clone(), tasks);
        }
    }

    /// A discovered filter. Its listeners are offered again, with whatever the filter needs in turn.
    pub(super) fn take_extension(&mut self, need: &Need, extension: Extension) -> Result<(), String> {
        for user in self.warming.users(need) {
            let User::Listener(name) = user else { continue };
            if let Some(type_urls) = self.refusing_types(&name, need, &extension) {
                let type_name = &extension.type_name;
                return Err(format!("type {type_name} is not among the type_urls {type_urls:?} of listener {name:?}"));
            }
        }
        let old = self.resources.extensions.insert(need.clone(), Arc::new(extension));
        if let Err(error) = self.offer_users_again(need) {
            match old {
                Some(old) => drop(self.resources.extensions.insert(need.clone(), old)),
                None => drop(self.resources.extensions.remove(need)),
            }
            // Those that came before the one that refused take the old filter back.
            let _ = self.offer_users_again(need);
            return Err(error);
        }
        self.warming.answered(need);
        Ok(())
    }

    /// A discovered filter is gone: its default holds, or connections are closed and requests are answered by a 500.
    pub(super) fn lose_extension(&mut self, need: &Need) {
        self.resources.extensions.remove(need);
        self.warming.answered(need);
        if let Err(error) = self.offer_users_again(need) {
            tracing::error!("{need} was removed: {error}");
        }
    }

    fn offer_users_again(&mut self, need: &Need) -> Result<(), String> {
        for user in self.warming.users(need) {
            if let User::Listener(name) = user {
                self.offer_listener_again(&name).map_err(|error| format!("listener {name:?}: {error}"))?;
            }
        }
        Ok(())
    }

    /// The types that a listener accepts for this need, if what came is of none of them.
    fn refusing_types(&self, listener: &str, need: &Need, extension: &Extension) -> Option<Vec<String>> {
        let config = &self.warming.listener(listener)?.latest()?.config;
        let find = |wanted: WantedFilter<'_>| self.extension(wanted);
        let mut wanted = need::discovered_filters(config, &find).into_iter();
        let refuses = |wanted: &WantedFilter<'_>| {
            self.extension_need(*wanted).is_ok_and(|other| other == *need) && !wanted.accepts(extension)
        };
        wanted.find(refuses).map(|wanted| wanted.type_urls().to_vec())
    }

    /// What came for a discovered filter.
    pub(super) fn extension(&self, wanted: WantedFilter<'_>) -> Option<&Extension> {
        self.resources.extensions.get(&self.extension_need(wanted).ok()?).map(Arc::as_ref)
    }

    /// The need that a discovered filter is.
    pub(super) fn extension_need(&self, wanted: WantedFilter<'_>) -> Result<Need, SourceError> {
        self.sources.need(ResourceKind::ExtensionConfig, wanted.name(), wanted.source())
    }

    /// Keeps the addresses of a host name up to date.
    pub(super) fn keep_resolving(&mut self, need: &Need, host: &Arc<str>, options: DnsOptions) -> AbortHandle {
        let resolver = self.resolvers.get(&options);
        let (this, need, host): (Weak<RefCell<Self>>, _, _) = (Weak::clone(&self.this), need.clone(), Arc::clone(host));
        self.spawn(async move {
            let random = Random::new();
            let mut schedule = RefreshSchedule::new(options);
            loop {
                let result = resolver.resolve(&host).await;
                let jitter = (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
                let wait = match &result {
                    Ok(answer) => schedule.after_answer(answer.ttl, jitter),
                    Err(_) => schedule.after_failure(jitter),
                };
                let Some(manager) = this.upgrade() else { return };
                manager.borrow_mut().take_addresses(&need, result);
                drop(manager);
                tokio::time::sleep(wait).await;
            }
        })
    }

    /// Holds keys that are fetched in the background as long as a listener needs them, and says when that was tried once.
    pub(super) fn keep_keys(&mut self, need: &Need, keys: Arc<RemoteKeys>) -> AbortHandle {
        let (this, need): (Weak<RefCell<Self>>, _) = (Weak::clone(&self.this), need.clone());
        self.spawn(async move {
            keys.first_attempt().await;
            let Some(manager) = this.upgrade() else { return };
            manager.borrow_mut().take_keys(&need);
            drop(manager);
            std::future::pending::<()>().await;
        })
    }

    fn take_keys(&mut self, need: &Need) {
        self.warming.answered(need);
        self.proceed();
    }

    fn take_addresses(&mut self, need: &Need, result: Result<Answer, DnsError>) {
        let Need::Addresses { cluster, .. } = need else { return };
        let stats = self.stats.cluster.get(cluster);
        stats.inspect(|stats| stats.update_attempt.increment());
        match result {
            Ok(Answer { addresses, ttl: _ }) => {
                stats.inspect(|stats| stats.update_success.increment());
                let sorted = |addresses: &[IpAddr]| {
                    let mut sorted = addresses.to_vec();
                    sorted.sort();
                    sorted
                };
                let old = self.resources.addresses.get(need);
                // The order of an answer changes with every question; only its members matter.
                if old.is_none_or(|old| sorted(old) != sorted(&addresses)) {
                    self.resources.addresses.insert(need.clone(), addresses.into());
                    self.warming.answered(need);
                    self.rebuild_cluster(&Arc::clone(cluster));
                }
            }
            Err(error) => {
                stats.inspect(|stats| stats.update_failure.increment());
                tracing::warn!("cluster {cluster:?}: {error}, keeping what is known");
            }
        }
        self.warming.answered(need);
        self.proceed();
    }

    /// Reads the disk layers of the runtime, and publishes all.
    pub(super) fn read_runtime(&mut self) {
        for (directory, error) in self.runtime.read_disk(&runtime_layers::read_tree) {
            self.stats.runtime.load_error.increment();
            tracing::warn!("runtime directory {}: {error}", directory.display());
        }
        self.stats.runtime.load_success.increment();
        self.publish_runtime();
    }

    /// Values of a discovered runtime layer.
    pub(super) fn take_runtime(&mut self, name: &str, values: RuntimeValues) {
        if self.runtime.set_discovered(name, values) {
            self.publish_runtime();
        }
    }

    pub(super) fn publish_runtime(&mut self) {
        self.runtime_snapshot = Arc::new(self.runtime.snapshot());
        self.outliers.set_runtime(&self.runtime_snapshot);
        self.health_wake.notify_one();
        let stats = &self.stats.runtime;
        count(&stats.num_keys, self.runtime_snapshot.values.len());
        count(&stats.num_layers, self.runtime_snapshot.layers.len());
        count(&stats.admin_overrides_active, usize::from(self.runtime.admin_overrides() > 0));
        self.changed();
    }
}

const SETTLE: Duration = Duration::from_millis(100);
