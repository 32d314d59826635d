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
pub mod random;
pub mod socket;
pub mod thread;
pub mod topology;

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

pub use command::{Command, ListenSocket, Workers};

use crate::graph::{Graph, ListenerNode};
use crate::http::manager::stats::HttpStats;
use crate::listener::stats::ListenerStats;
use crate::process::Process;
use crate::stats::names;
use crate::tcp::stats::TcpStats;
use crate::upstream::clusters::WorkerClusters;
use buffer::BufferPool;
use connections::Connections;
use random::Random;

/// A graph that a request, or a moment of a connection, holds on to.
pub struct GraphView {
    graph: Arc<Graph>,
    by_address: OnceCell<HashMap<SocketAddr, Arc<ListenerNode>>>,
}

impl GraphView {
    /// The listener that takes over connections to `destination`: its exact address, or its port on any address.
    pub fn listener_at(&self, destination: SocketAddr) -> Option<&Arc<ListenerNode>> {
        let index = self.by_address.get_or_init(|| {
            let listeners = self.graph.listeners.values();
            let addresses = listeners.flat_map(|node| {
                node.config.addresses.iter().filter_map(move |address| match &address.address {
                    outrigger_config::address::Address::Ip(socket) => Some((*socket, Arc::clone(node))),
                    outrigger_config::address::Address::Pipe { .. } => None,
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
    /// Free message heads.
    pub heads: heads::Heads,
    /// The `date` header.
    pub date: date::Date,
    /// Live downstream connections.
    pub connections: Connections,
    view: RefCell<Rc<GraphView>>,
    listener_stats: RefCell<HashMap<Arc<str>, Arc<ListenerStats>>>,
    http_stats: RefCell<HashMap<Arc<str>, Arc<HttpStats>>>,
    tcp_stats: RefCell<HashMap<Arc<str>, Arc<TcpStats>>>,
}

impl Worker {
    /// A worker of this process.
    pub fn new(index: usize, process: Arc<Process>) -> Self {
        let graph = process.graph.load();
        Self {
            index,
            process,
            buffers: BufferPool::default(),
            random: Random::new(),
            clusters: WorkerClusters::default(),
            heads: heads::Heads::default(),
            date: date::Date::default(),
            connections: Connections::default(),
            view: RefCell::new(Rc::new(GraphView { graph, by_address: OnceCell::new() })),
            listener_stats: RefCell::default(),
            http_stats: RefCell::default(),
            tcp_stats: RefCell::default(),
        }
    }

    /// The current graph. One atomic load while nothing changes.
    pub fn graph(&self) -> Rc<GraphView> {
        if self.view.borrow().generation != self.process.graph.generation() {
            let graph = self.process.graph.load();
            *self.view.borrow_mut() = Rc::new(GraphView { graph, by_address: OnceCell::new() });
            self.clusters.retain(&self.view.borrow().clusters);
        }
        Rc::clone(&self.view.borrow())
    }

    /// This worker's stats of a listener, by its stat prefix.
    pub fn listener_stats(&self, prefix: &Arc<str>) -> Arc<ListenerStats> {
        let make = || self.process.stats.scope(&names::prefix("listener", prefix));
        Arc::clone(self.listener_stats.borrow_mut().entry(Arc::clone(prefix)).or_insert_with(make))
    }

    /// This worker's stats of a connection manager, by its stat prefix.
    pub fn http_stats(&self, prefix: &Arc<str>) -> Arc<HttpStats> {
        let make = || self.process.stats.scope(&names::prefix("http", prefix));
        Arc::clone(self.http_stats.borrow_mut().entry(Arc::clone(prefix)).or_insert_with(make))
    }

    /// This worker's stats of a TCP proxy, by its stat prefix.
    pub fn tcp_stats(&self, prefix: &Arc<str>) -> Arc<TcpStats> {
        let make = || self.process.stats.scope(&names::prefix("tcp", prefix));
        Arc::clone(self.tcp_stats.borrow_mut().entry(Arc::clone(prefix)).or_insert_with(make))
    }
}
