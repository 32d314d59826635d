//! A worker: one thread that owns its connections from accept to close.
//!
//! Owns what is shared by the tasks of one thread: buffers, random numbers, pools, the pinned graph. Never shared with
//! other threads: they send it commands.

pub mod buffer;
pub mod command;
pub mod connections;
pub mod date;
pub mod deadlines;
pub mod heads;
pub mod in_process;
pub mod live;
pub mod on_use;
pub mod random;
pub mod socket;
pub mod thread;
pub mod topology;

use std::any::{Any, TypeId};
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

pub use command::{Command, ListenSocket, Workers};

use outrigger_config::http::filters::UpstreamFilters;

use crate::failures::Recorder;
use crate::graph::{Graph, HttpNode, ListenerNode};
use crate::http::filter::{Filters, SettingsStates};
use crate::http::h2::stats::Http2Stats;
use crate::http::manager::stats::HttpStats;
use crate::istio::Mesh;
use crate::listener::stats::{ListenerShare, TlsInspectorStats};
use crate::network::NetworkStats;
use crate::overload::{Hook, Rescaling, Weighing};
use crate::process::Process;
use crate::stats::{Scope, names};
use crate::tcp::stats::TcpStats;
use crate::upstream::clusters::WorkerClusters;
use crate::upstream::dns_cache::WorkerCaches;
use crate::upstream::google_call::GoogleCalls;
use buffer::BufferPool;
use connections::Connections;
use random::Random;

/// A graph that a request, or a moment of a connection, holds on to.
pub struct GraphView {
    graph: Arc<Graph>,
    by_address: OnceCell<HashMap<SocketAddr, Arc<ListenerNode>>>,
}

impl GraphView {
    /// Of this graph.
    pub fn new(graph: Arc<Graph>) -> Self {
        Self { graph, by_address: OnceCell::new() }
    }

    /// The listener that takes over connections to `destination`: its exact address, or its port on any address.
    pub fn listener_at(&self, destination: SocketAddr) -> Option<&Arc<ListenerNode>> {
        let index = self.by_address.get_or_init(|| {
            let listeners = self.graph.listeners.values();
            let addresses = listeners.flat_map(|node| {
                node.config.addresses.iter().filter_map(move |address| match &address.address {
                    outrigger_config::address::Address::Ip(socket) => Some((*socket, Arc::clone(node))),
                    outrigger_config::address::Address::Pipe { .. }
                    | outrigger_config::address::Address::Internal(_) => None,
                })
            });
            addresses.collect()
        });
        let any: SocketAddr = match destination {
            SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, destination.port()).into(),
            SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, destination.port()).into(),
        };
        index.get(&destination).or_else(|| index.get(&any))
    }
}

impl Deref for GraphView {
    type Target = Graph;

    fn deref(&self) -> &Graph {
        &self.graph
    }
}

/// The type and the prefix of a scope.
type ScopeKey = (TypeId, Box<str>);

/// The filters of a connection manager that may be gone.
type KnownFilters = (Weak<HttpNode>, Rc<Filters>);

/// What the tasks of one worker share.
pub struct Worker {
    /// 0 to the number of workers.
    pub index: usize,
    /// What all threads share.
    pub process: Arc<Process>,
    /// Free buffers.
    pub buffers: BufferPool,
    /// For balancing, sampling and ids.
    pub random: Random,
    /// Endpoints, pools and cluster stats.
    pub clusters: WorkerClusters,
    /// Names that have been resolved for dynamic forward proxies.
    pub dns: WorkerCaches,
    /// Free message heads.
    pub heads: heads::Heads,
    /// Free time limits.
    pub deadlines: deadlines::FreeDeadlines,
    /// The `date` header.
    pub date: date::Date,
    /// Live downstream connections.
    pub connections: Connections,
    /// What is served at this moment.
    pub live: live::LiveList,
    /// Which requests hold much memory, when that is asked.
    pub weighing: Weighing,
    /// What failed last.
    pub failures: Recorder,
    /// Stats that requests bring about.
    pub on_use: on_use::OnUse,
    /// Stats of network filters.
    pub network: NetworkStats,
    /// Stats of targets of `google_grpc`.
    pub google_calls: GoogleCalls,
    /// What is known of the mesh.
    pub mesh: Mesh,
    /// HTTP filters in front of upstreams.
    pub upstream_filters: SettingsStates<UpstreamFilters, Filters>,
    view: RefCell<Rc<GraphView>>,
    listener_stats: RefCell<HashMap<Arc<str>, ListenerShare>>,
    listener_connections: RefCell<HashMap<Arc<str>, Arc<AtomicU64>>>,
    /// Accept loops that are to be woken when they may go on.
    paused: RefCell<Vec<Waker>>,
    http_stats: RefCell<HashMap<Arc<str>, Arc<HttpStats>>>,
    http2_stats: OnceCell<Arc<Http2Stats>>,
    tls_inspector_stats: OnceCell<Arc<TlsInspectorStats>>,
    tcp_stats: RefCell<HashMap<Arc<str>, Arc<TcpStats>>>,
    /// Other scopes, by their type and prefix; kept, since counters must not start again with each change of a filter.
    scopes: RefCell<HashMap<ScopeKey, Arc<dyn Any + Send + Sync>>>,
    /// By the address of the connection manager, which may not be reused while it is known here.
    filters: RefCell<HashMap<*const HttpNode, KnownFilters>>,
}

impl Worker {
    /// A worker of this process.
    pub fn new(index: usize, process: Arc<Process>) -> Self {
        let graph = process.graph.load();
        let rescaling = Rescaling::of(&process);
        Self {
            index,
            process,
            buffers: BufferPool::default(),
            random: Random::new(),
            clusters: WorkerClusters::default(),
            dns: WorkerCaches::default(),
            heads: heads::Heads::default(),
            deadlines: deadlines::FreeDeadlines::new(rescaling),
            date: date::Date::default(),
            connections: Connections::default(),
            live: live::LiveList::default(),
            weighing: Weighing::default(),
            failures: Recorder::default(),
            on_use: on_use::OnUse::default(),
            network: NetworkStats::default(),
            google_calls: GoogleCalls::default(),
            mesh: Mesh::default(),
            upstream_filters: SettingsStates::default(),
            view: RefCell::new(Rc::new(GraphView::new(graph))),
            listener_stats: RefCell::default(),
            listener_connections: RefCell::default(),
            paused: RefCell::default(),
            http_stats: RefCell::default(),
            http2_stats: OnceCell::new(),
            tls_inspector_stats: OnceCell::new(),
            tcp_stats: RefCell::default(),
            scopes: RefCell::default(),
            filters: RefCell::default(),
        }
    }

    /// The current graph. One atomic load while nothing changes.
    pub fn graph(&self) -> Rc<GraphView> {
        if self.view.borrow().generation != self.process.graph.generation() {
            let graph = self.process.graph.load();
            *self.view.borrow_mut() = Rc::new(GraphView::new(graph));
            self.clusters.retain(&self.view.borrow().clusters);
            self.filters.borrow_mut().retain(|_, (node, _)| node.strong_count() > 0);
        }
        Rc::clone(&self.view.borrow())
    }

    /// The graph that [`Self::graph`] saw last. Forgets nothing, so that it may be asked amid work on clusters.
    pub fn seen_graph(&self) -> Rc<GraphView> {
        Rc::clone(&self.view.borrow())
    }

    /// This worker's stats under `prefix`, which ends with a dot.
    pub fn scope<S: Scope + Default>(&self, prefix: &str) -> Arc<S> {
        let key = (TypeId::of::<S>(), Box::from(prefix));
        let make = || {
            let scope: Arc<S> = self.process.stats.scope(prefix);
            scope as Arc<dyn Any + Send + Sync>
        };
        let scope = Arc::clone(self.scopes.borrow_mut().entry(key).or_insert_with(make));
        match scope.downcast() {
            Ok(scope) => scope,
            Err(_) => unreachable!("the key holds the type"),
        }
    }

    /// This worker's stats of a listener, by its stat prefix.
    pub fn listener_stats(&self, prefix: &Arc<str>) -> ListenerShare {
        let make = || {
            let listener = names::prefix("listener", prefix);
            let worker = format!("{listener}worker_{}.", self.index);
            ListenerShare { listener: self.process.stats.scope(&listener), worker: self.process.stats.scope(&worker) }
        };
        self.listener_stats.borrow_mut().entry(Arc::clone(prefix)).or_insert_with(make).clone()
    }

    /// Downstream connections of a listener, by its name; all workers count there.
    pub fn listener_connections(&self, name: &Arc<str>) -> Arc<AtomicU64> {
        let find = || self.process.listener_connections.of(name);
        Arc::clone(self.listener_connections.borrow_mut().entry(Arc::clone(name)).or_insert_with(find))
    }

    /// Ready unless the accept loop of a listener has to pause; the task is woken when it has not any more.
    pub fn poll_accepting(&self, listener: &str, cx: &Context<'_>) -> Poll<()> {
        if !self.process.overload.may(Hook::StopConnections) || self.listener_bypasses(listener) {
            return Poll::Ready(());
        }
        let mut paused = self.paused.borrow_mut();
        if !paused.iter().any(|waker| waker.will_wake(cx.waker())) {
            paused.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Wakes the accept loops that had to pause.
    pub fn resume_accepting(&self) {
        self.paused.take().into_iter().for_each(Waker::wake);
    }

    /// This worker's stats of a connection manager, by its stat prefix.
    pub fn http_stats(&self, prefix: &Arc<str>) -> Arc<HttpStats> {
        let make = || self.process.stats.scope(&names::prefix("http", prefix));
        Arc::clone(self.http_stats.borrow_mut().entry(Arc::clone(prefix)).or_insert_with(make))
    }

    /// This worker's stats of HTTP/2 on downstream connections.
    pub fn http2_stats(&self) -> &Arc<Http2Stats> {
        self.http2_stats.get_or_init(|| self.process.stats.scope("http2."))
    }

    /// This worker's stats of TLS inspectors.
    pub fn tls_inspector_stats(&self) -> &Arc<TlsInspectorStats> {
        self.tls_inspector_stats.get_or_init(|| self.process.stats.scope("tls_inspector."))
    }

    /// This worker's filters of a connection manager.
    pub fn filters(self: &Rc<Self>, node: &Arc<HttpNode>) -> Rc<Filters> {
        let mut known = self.filters.borrow_mut();
        let make = || (Arc::downgrade(node), Rc::new(Filters::build(self, node)));
        Rc::clone(&known.entry(Arc::as_ptr(node)).or_insert_with(make).1)
    }

    /// This worker's stats of a TCP proxy, by its stat prefix.
    pub fn tcp_stats(&self, prefix: &Arc<str>) -> Arc<TcpStats> {
        let make = || self.process.stats.scope(&names::prefix("tcp", prefix));
        Arc::clone(self.tcp_stats.borrow_mut().entry(Arc::clone(prefix)).or_insert_with(make))
    }
}
