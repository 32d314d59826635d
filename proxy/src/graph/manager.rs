//! The configuration of the process in motion: what was accepted, what waits, what is published.
//!
//! Owns the graph's working copy on the control thread, carries out what `warming` decides, and publishes. Resources are
//! judged in `offers` and `answers`, nodes are made in `building`, drains are in `drains`. Never serves traffic.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_api::pb;
use outrigger_config::Environment;
use outrigger_config::address::Address;
use outrigger_config::bootstrap::{Bootstrap, RuntimeLayerKind};
use outrigger_config::cluster::{Cluster, Discovery, DnsOptions};
use outrigger_config::coverage::NoEffect;
use outrigger_config::http::filters::{ClientToken, RemoteJwks};
use outrigger_config::listener::Listener;
use outrigger_config::source::{ConfigSource, GoogleTarget, SourceKind};
use outrigger_policy::route::RouteTable;
use outrigger_xds::{Interest, ResourceKind, SourceKey, WatchId, XdsClient};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::RuntimeSnapshot;
use super::compile::{ClusterBuild, Extensions, ListenerBuild};
use super::coverage::Coverage;
use super::demands::Waiting;
use super::first_checks::FirstChecks;
use super::history::History;
use super::journal::Journal;
use super::need::{self, Need};
use super::overrides::Overrides;
use super::resources::Resources;
use super::runtime_layers::RuntimeLayers;
use super::secrets::SecretSources;
use super::sockets::BoundSockets;
use super::sources::Sources;
use super::stale::TimedAssignments;
use super::stats::Stats;
use super::targets::Targets;
use super::unknown_fields::UnknownFieldRule;
use super::warming::{Action, Phase, Warming};
use super::zone::{LocalCluster, locality_of};
use crate::accesslog::AccessLogManager;
use crate::cli::{DrainStrategy, UnknownDynamicFields};
use crate::health::{Checks, LoadStreams, Outliers};
use crate::process::Process;
use crate::upstream::dns::Resolvers;
use crate::worker::{ListenSocket, Workers};

/// Settings of the manager.
pub struct ManagerOptions {
    /// Connections of vanished filter chains and listeners have this long (`--drain-time-s`).
    pub drain_time: Duration,
    /// How connections are spread over that time (`--drain-strategy`).
    pub drain_strategy: DrainStrategy,
    /// What becomes of resources with unknown fields (`--reject-unknown-dynamic-fields` and its kin).
    pub unknown_fields: UnknownDynamicFields,
    /// Files and variables for reading resources.
    pub environment: Rc<dyn Environment>,
    /// Shares access log files.
    pub access_logs: Arc<AccessLogManager>,
    /// The bootstrap as it was read, for dumps of static resources.
    pub bootstrap_message: Option<Arc<pb::envoy::config::bootstrap::v3::Bootstrap>>,
    /// Fields of the bootstrap that have no effect.
    pub without_effect: Vec<NoEffect>,
}

/// A cluster as accepted.
pub(super) struct ClusterRevision {
    pub config: Arc<Cluster>,
}

/// A listener as accepted.
pub(super) struct ListenerRevision {
    pub config: Arc<Listener>,
    pub extensions: Extensions,
    /// What could be built when it was accepted; taken over where nothing has changed since.
    pub prepared: RefCell<Option<ListenerBuild>>,
    /// Taken when the listener becomes active; none if those of its predecessor stay.
    pub bound: RefCell<Option<BoundSockets>>,
    /// Grows with each listener that is added; an update keeps that of its predecessor.
    pub position: u64,
}

/// A listener in use.
pub(super) struct RunningListener {
    pub build: ListenerBuild,
    /// Of its sockets on the workers.
    pub sockets: Option<u64>,
    pub addresses: Vec<Address>,
    pub position: u64,
}

/// How a need is fulfilled.
#[derive(Clone)]
pub(super) enum Spec {
    Resource(ConfigSource),
    Addresses(DnsOptions),
    Keys(Arc<RemoteJwks>),
    Token(Arc<ClientToken>),
}

/// What works on a need.
pub(super) enum Running {
    Xds(WatchId),
    Task(AbortHandle),
}

/// Endpoint updates of one cluster that change nothing but health, weight and the like.
#[derive(Default)]
pub(super) struct MergeWindow {
    pub last: Option<Instant>,
    pub timer: Option<AbortHandle>,
}

/// The configuration of the process. Lives on the control thread, behind a [`super::ManagerHandle`].
pub struct GraphManager {
    pub(super) process: Arc<Process>,
    pub(super) workers: Workers,
    pub(super) options: ManagerOptions,
    pub(super) this: Weak<RefCell<GraphManager>>,
    pub(super) xds: XdsClient,
    pub(super) sources: Sources,
    pub(super) unknown_fields: UnknownFieldRule,
    pub(super) warming: Warming<ClusterRevision, Arc<RouteTable>, ListenerRevision>,
    pub(super) resources: Resources,
    pub(super) specs: HashMap<Need, Spec>,
    pub(super) running: HashMap<Need, Running>,
    pub(super) cds: Option<ConfigSource>,
    pub(super) lds: Option<ConfigSource>,
    pub(super) static_clusters: Vec<Arc<Cluster>>,
    /// Clusters of targets that static resources name.
    pub(super) static_targets: Vec<Arc<GoogleTarget>>,
    pub(super) targets: Targets,
    /// With their sockets already bound.
    pub(super) static_listeners: Vec<(Arc<Listener>, Option<BoundSockets>)>,
    /// Names that discovery may not touch.
    pub(super) static_names: HashSet<(ResourceKind, Arc<str>)>,
    pub(super) clusters: HashMap<Arc<str>, ClusterBuild>,
    pub(super) listeners: HashMap<Arc<str>, RunningListener>,
    /// Clusters among `clusters` that were removed, since when.
    pub(super) lingering: HashMap<Arc<str>, Instant>,
    pub(super) linger_timer: bool,
    /// Routes of draining connections, with the timers that end them.
    pub(super) retired_routes: HashMap<Arc<str>, (Arc<RouteTable>, AbortHandle)>,
    pub(super) merges: HashMap<Arc<str>, MergeWindow>,
    pub(super) runtime: RuntimeLayers,
    pub(super) runtime_snapshot: Arc<RuntimeSnapshot>,
    pub(super) resolvers: Resolvers,
    pub(super) outliers: Outliers,
    pub(super) checks: Checks,
    pub(super) load_streams: LoadStreams,
    pub(super) timed_assignments: TimedAssignments,
    pub(super) first_checks: FirstChecks,
    /// Clusters whose picks do not know of all marks of their endpoints yet.
    pub(super) unbalanced: HashSet<Arc<str>>,
    /// By which others are routed by zone.
    pub(super) local: LocalCluster,
    /// Where their ejections are logged; taken when that is opened.
    pub(super) outlier_event_log: Option<PathBuf>,
    /// Wakes the task that looks after endpoint health.
    pub(super) health_wake: Arc<Notify>,
    /// Requests that wait for what is discovered on demand.
    pub(super) waiting: Waiting,
    /// Watch the files of discovered secrets.
    pub(super) secret_files: HashMap<Need, Vec<AbortHandle>>,
    pub(super) secret_sources: SecretSources,
    pub(super) history: History,
    pub(super) journal: Journal,
    pub(super) coverage: Coverage,
    pub(super) overrides: Overrides,
    pub(super) stats: Stats,
    pub(super) connected: HashMap<SourceKey, bool>,
    pub(super) phase: watch::Sender<Phase>,
    /// Listeners that came to stop accepting, as asked for by the admin port.
    pub(super) stopped: Option<super::DrainScope>,
    pub(super) health_check_failed: bool,
    pub(super) draining_listeners: usize,
    pub(super) draining_chains: usize,
    pub(super) next_sockets: u64,
    pub(super) next_position: u64,
    pub(super) generation: u64,
    pub(super) dirty: bool,
    pub(super) starts: Vec<(Arc<str>, u64, Vec<Vec<ListenSocket>>)>,
    pub(super) stops: Vec<u64>,
    pub(super) check_drains: bool,
    /// Lets through what has waited for clusters long enough, then.
    release: Option<(Instant, AbortHandle)>,
}

impl GraphManager {
    /// A manager that has not begun.
    pub(super) fn new(
        process: Arc<Process>,
        bootstrap: Bootstrap,
        xds: XdsClient,
        workers: Workers,
        options: ManagerOptions,
        this: Weak<RefCell<GraphManager>>,
    ) -> Self {
        let registry = &process.stats;
        let unknown_fields = UnknownFieldRule { policy: options.unknown_fields, stats: registry.scope("server.") };
        let (ads, rule) = (bootstrap.ads.clone(), unknown_fields.clone());
        let sources = Sources::new(Arc::clone(&process), ads, &bootstrap.clusters, rule);
        let discovery = [&bootstrap.cds, &bootstrap.lds];
        let streams = discovery.into_iter().flatten().any(|source| !matches!(source.kind, SourceKind::File(_)));
        let stats = Stats {
            listeners: registry.scope("listener_manager."),
            clusters: registry.scope("cluster_manager."),
            // Shown only where there is something to count.
            lds: bootstrap.lds.as_ref().map(|_| registry.scope("listener_manager.lds.")).unwrap_or_default(),
            cds: bootstrap.cds.as_ref().map(|_| registry.scope("cluster_manager.cds.")).unwrap_or_default(),
            control_plane: if streams || bootstrap.ads.is_some() {
                registry.scope("control_plane.")
            } else {
                Arc::default()
            },
            runtime: registry.scope("runtime."),
            ..Stats::default()
        };
        let secrets = bootstrap.secrets.iter();
        let resources = Resources {
            static_secrets: secrets.map(|secret| (Arc::clone(&secret.name), Arc::clone(secret))).collect(),
            ..Resources::default()
        };
        let mut manager = Self {
            workers,
            this,
            xds,
            sources,
            unknown_fields,
            warming: Warming::new(bootstrap.cds.is_some(), bootstrap.lds.is_some()),
            resources,
            specs: HashMap::new(),
            running: HashMap::new(),
            cds: bootstrap.cds,
            lds: bootstrap.lds,
            static_clusters: bootstrap.clusters,
            static_targets: bootstrap.google_targets,
            targets: Targets::default(),
            static_listeners: bootstrap.listeners.into_iter().map(|listener| (listener, None)).collect(),
            static_names: HashSet::new(),
            clusters: HashMap::new(),
            listeners: HashMap::new(),
            lingering: HashMap::new(),
            linger_timer: false,
            retired_routes: HashMap::new(),
            merges: HashMap::new(),
            runtime: RuntimeLayers::new(&bootstrap.runtime, &process.node_cluster),
            runtime_snapshot: Arc::default(),
            resolvers: Resolvers::new(bootstrap.dns.unwrap_or_default()),
            outliers: Outliers::new(None),
            checks: Checks::default(),
            load_streams: LoadStreams::default(),
            timed_assignments: TimedAssignments::default(),
            first_checks: FirstChecks::default(),
            unbalanced: HashSet::new(),
            local: LocalCluster::new(locality_of(&bootstrap.node), bootstrap.local_cluster_name),
            outlier_event_log: bootstrap.outlier_event_log,
            health_wake: Arc::default(),
            waiting: Waiting::default(),
            secret_files: HashMap::new(),
            secret_sources: SecretSources::default(),
            history: History::default(),
            journal: Journal::default(),
            coverage: Coverage::default(),
            overrides: Overrides::default(),
            stats,
            connected: HashMap::new(),
            phase: watch::Sender::new(Phase::Primary),
            stopped: None,
            health_check_failed: false,
            draining_listeners: 0,
            draining_chains: 0,
            next_sockets: 0,
            next_position: 0,
            generation: process.graph.generation(),
            dirty: true,
            starts: Vec::new(),
            stops: Vec::new(),
            check_drains: false,
            release: None,
            process,
            options,
        };
        manager.record_statics();
        manager.read_runtime();
        for layer in &bootstrap.runtime {
            if let RuntimeLayerKind::Rtds { name, source } = &layer.kind {
                match manager.sources.resolve(source) {
                    Ok(source) => {
                        let interest = Interest::Name(name.to_string());
                        manager.xds.watch(ResourceKind::Runtime, interest, &source);
                    }
                    Err(error) => tracing::error!("runtime layer {:?}: {error}", layer.name),
                }
            }
        }
        manager
    }

    /// Offers what belongs to a phase, once it has begun.
    pub(super) fn begin(&mut self, phase: Phase) {
        let is_primary = |cluster: &Cluster| !matches!(cluster.discovery, Discovery::Eds { .. });
        match phase {
            Phase::Primary | Phase::Clusters => {
                for cluster in self.static_clusters.clone() {
                    if is_primary(&cluster) == (phase == Phase::Primary)
                        && let Err(error) = self.offer_cluster(cluster)
                    {
                        tracing::error!("static cluster: {error}");
                    }
                }
                for target in std::mem::take(&mut self.static_targets) {
                    if let Err(error) = self.offer_targets(vec![target]) {
                        tracing::error!("static resources: {error}");
                    }
                }
                if phase == Phase::Clusters {
                    self.watch_all(ResourceKind::Cluster, self.cds.clone());
                }
            }
            Phase::Listeners => {
                for (listener, bound) in std::mem::take(&mut self.static_listeners) {
                    if let Err(error) = self.offer_listener(listener, bound) {
                        tracing::error!("static listener: {error}");
                    }
                }
                self.watch_all(ResourceKind::Listener, self.lds.clone());
                self.stats.listeners.workers_started.set(1);
            }
            Phase::Initialised => tracing::info!("all clusters and listeners are initialised"),
        }
        self.phase.send_replace(phase);
    }

    fn watch_all(&mut self, kind: ResourceKind, source: Option<ConfigSource>) {
        let Some(source) = source else { return };
        match self.sources.resolve(&source) {
            Ok(source) => drop(self.xds.watch(kind, Interest::Wildcard, &source)),
            Err(error) => {
                tracing::error!("{}s cannot be discovered: {error}", kind.noun());
                match kind {
                    ResourceKind::Cluster => self.warming.clusters_discovered(),
                    _ => self.warming.listeners_discovered(),
                }
            }
        }
    }

    /// Does all that follows from what was offered and answered, and publishes once at the end.
    pub(super) fn proceed(&mut self) {
        loop {
            self.begin_first_checks();
            let actions = self.warming.settle(Instant::now());
            if actions.is_empty() {
                break;
            }
            for action in actions {
                self.act(action);
            }
        }
        self.end_lingering();
        self.publish();
        self.answer_demands();
        self.plan_release();
        self.count();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Watch(need) => self.start_watch(need),
            Action::Unwatch(need) => self.end_watch(&need),
            Action::Begin(phase) => self.begin(phase),
            Action::ClusterActivated(name) => {
                // What nobody has configured has no history.
                if !self.targets.has(&name) {
                    self.history.activated(ResourceKind::Cluster, &name);
                }
                self.rebuild_cluster(&name);
            }
            Action::RoutesActivated(need) => {
                if let Need::Resource { name, .. } = &need {
                    self.history.activated(ResourceKind::RouteConfiguration, name);
                }
                self.dirty = true;
            }
            Action::ListenerActivated(name) => {
                self.history.activated(ResourceKind::Listener, &name);
                self.activate_listener(&name);
            }
        }
    }

    fn start_watch(&mut self, need: Need) {
        if matches!(need, Need::Checks { .. }) {
            // They begin once the endpoints are known.
            return;
        }
        let running = match (&need, self.specs.get(&need)) {
            (Need::Resource { kind, name, .. }, Some(Spec::Resource(source))) => match self.sources.resolve(source) {
                Ok(source) => Some(Running::Xds(self.xds.watch(*kind, need::interest(*kind, name), &source))),
                Err(error) => {
                    tracing::error!("{need}: {error}");
                    None
                }
            },
            (Need::Addresses { host, .. }, Some(Spec::Addresses(options))) => {
                Some(Running::Task(self.keep_resolving(&need, host, options.clone())))
            }
            (Need::Token { stat_prefix, .. }, Some(Spec::Token(settings))) => {
                let token = self.process.tokens.get(stat_prefix, settings);
                Some(Running::Task(self.hold(token)))
            }
            (Need::Keys { stat_prefix, .. }, Some(Spec::Keys(source))) => {
                let keys = self.process.jwks.get(stat_prefix, source);
                Some(Running::Task(self.keep_keys(&need, keys)))
            }
            _ => None,
        };
        match running {
            Some(running) => drop(self.running.insert(need, running)),
            None => self.warming.answered(&need),
        }
    }

    fn end_watch(&mut self, need: &Need) {
        match self.running.remove(need) {
            Some(Running::Xds(watch)) => self.xds.unwatch(watch),
            Some(Running::Task(task)) => task.abort(),
            None => {}
        }
        if let Need::Resource { kind, name, source: _ } = need {
            self.history.removed(*kind, name, false);
            if *kind == ResourceKind::RouteConfiguration {
                self.retire_routes(name);
                self.end_aliases_of(need);
            }
            if need.is_everything() {
                self.history.clear(*kind);
                self.stats.scopes.remove(need);
            }
        }
        for task in self.secret_files.remove(need).into_iter().flatten() {
            task.abort();
        }
        self.specs.remove(need);
        self.resources.forget(need);
        self.secret_sources.remove(need);
        self.timed_assignments.forget(need);
        self.stats.resources.remove(need);
        self.dirty = true;
    }

    /// Looks again when the next one that waits for clusters has waited long enough.
    fn plan_release(&mut self) {
        let next = self.warming.next_release();
        if self.release.as_ref().map(|(at, _)| *at) == next {
            return;
        }
        if let Some((_, timer)) = self.release.take() {
            timer.abort();
        }
        self.release = next.map(|at| {
            let wait = at.saturating_duration_since(Instant::now());
            let timer = self.after(wait, |manager| {
                manager.release = None;
                manager.proceed();
            });
            (at, timer)
        });
    }

    /// Runs `then` on this thread after a while, unless the manager is gone by then.
    pub(super) fn after(&self, wait: Duration, then: impl FnOnce(&mut GraphManager) + 'static) -> AbortHandle {
        let this = Weak::clone(&self.this);
        self.spawn(async move {
            tokio::time::sleep(wait).await;
            if let Some(manager) = this.upgrade() {
                then(&mut manager.borrow_mut());
            }
        })
    }

    /// Keeps something from being dropped until the task is aborted.
    fn hold<T: 'static>(&self, held: T) -> AbortHandle {
        self.spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        })
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        tokio::task::spawn_local(task).abort_handle()
    }
}
