//! Accept loops, one for each listening socket of a worker, and connections from inside the process, which need none.
//!
//! Owns taking connections from the system and the limits on their number. Never reads from them.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::ready;
use std::time::{Duration, Instant};

use outrigger_config::address::Address;
use outrigger_config::listener::{ListenAddress, TcpKeepalive};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UnixListener};

use super::connection::{self, Accepted, Arrival};
use super::internal::{Luggage, client_address};
use super::stats::{ListenerShare, ListenerStats};
use crate::graph::ListenerNode;
use crate::overload::{CONNECTIONS_PREFIX, Hook, RefusedStats, limits};
use crate::upstream::socket::set_keepalive;
use crate::worker::Worker;
use crate::worker::socket::{Socket, SocketKind};

/// After an error such as "too many open files" the loop rests this long instead of spinning.
const REST: Duration = Duration::from_millis(50);

/// Accepts TCP connections for the listener `name` until the task is aborted.
pub async fn accept_tcp(worker: Rc<Worker>, name: Arc<str>, socket: TcpListener) {
    let local = socket.local_addr().ok();
    loop {
        let accepted = poll_fn(|cx| {
            ready!(worker.poll_accepting(&name, cx));
            socket.poll_accept(cx)
        });
        match accepted.await {
            Ok((stream, peer)) => {
                let Some(node) = node(&worker, &name) else { continue };
                // What a client that is gone already makes fail here is met again when reading.
                let _ = prepare(&stream, node.config.tcp_keepalive.as_ref());
                let local = stream.local_addr().ok().or(local).unwrap_or(peer);
                let (local, remote) = (Address::Ip(canonical(local)), Address::Ip(canonical(peer)));
                start(&worker, node, Socket::new(SocketKind::Tcp(stream)), local, remote);
            }
            Err(error) => rest(&name, &error).await,
        }
    }
}

/// Accepts Unix connections for the listener `name` until the task is aborted.
pub async fn accept_unix(worker: Rc<Worker>, name: Arc<str>, socket: UnixListener) {
    loop {
        let accepted = poll_fn(|cx| {
            ready!(worker.poll_accepting(&name, cx));
            socket.poll_accept(cx)
        });
        match accepted.await {
            Ok((stream, _)) => {
                let Some(node) = node(&worker, &name) else { continue };
                let pipe = node.config.addresses.iter().find_map(|address| match &address.address {
                    pipe @ Address::Pipe { .. } => Some(pipe.clone()),
                    Address::Ip(_) | Address::Internal(_) => None,
                });
                let local = pipe.unwrap_or_else(|| Address::Pipe { path: "".into(), mode: 0 });
                start(&worker, node, Socket::new(SocketKind::Unix(stream)), local.clone(), local);
            }
            Err(error) => rest(&name, &error).await,
        }
    }
}

fn node(worker: &Worker, name: &Arc<str>) -> Option<Arc<ListenerNode>> {
    worker.graph().listeners.get(name).cloned()
}

/// IPv4 clients of an IPv6 socket are IPv4 clients.
fn canonical(address: std::net::SocketAddr) -> std::net::SocketAddr {
    (address.ip().to_canonical(), address.port()).into()
}

fn prepare(stream: &TcpStream, keepalive: Option<&TcpKeepalive>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    keepalive.map_or(Ok(()), |keepalive| set_keepalive(&SockRef::from(stream), keepalive))
}

async fn rest(name: &str, error: &io::Error) {
    // The client gave up before it was accepted: nothing is wrong here.
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tracing::warn!("listener {name:?}: cannot accept: {error}");
        tokio::time::sleep(REST).await;
    }
}

/// A place among the downstream connections, given back when dropped.
pub struct Place {
    worker: Rc<Worker>,
    stats: ListenerShare,
    start: Instant,
    /// Connections of the listener.
    listener: Arc<AtomicU64>,
    /// It counts among the connections of the process.
    of_process: bool,
    /// A filter chain has taken it.
    established: Cell<bool>,
}

impl Place {
    fn counted(worker: &Rc<Worker>, stats: ListenerShare, listener: Arc<AtomicU64>, of_process: bool) -> Self {
        let established = Cell::new(false);
        Self { worker: Rc::clone(worker), stats, start: Instant::now(), listener, of_process, established }
    }

    /// A filter chain takes the connection. Only from then on it counts in the stats of connections: those that say nothing,
    /// such as checks by a load balancer, do not.
    pub fn establish(&self) {
        let ListenerShare { listener, worker } = &self.stats;
        if !self.established.replace(true) {
            listener.downstream_cx_total.increment();
            listener.downstream_cx_active.increment();
            worker.downstream_cx_total.increment();
            worker.downstream_cx_active.increment();
        }
    }

    /// Stats of the listener that accepted the connection.
    pub fn stats(&self) -> &Arc<ListenerStats> {
        &self.stats.listener
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.established.get() {
            let ListenerShare { listener, worker } = &self.stats;
            worker.downstream_cx_active.decrement();
            listener.downstream_cx_active.decrement();
            listener.downstream_cx_destroy.increment();
            listener.downstream_cx_length_ms.record(self.start.elapsed().as_millis() as u64);
        }
        self.listener.fetch_sub(1, Ordering::Relaxed);
        if self.of_process {
            self.worker.process.downstream_connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Takes a place; `None` when the process or the listener has as many connections as it may, or overload refuses it.
fn take_place(worker: &Rc<Worker>, node: &ListenerNode) -> Option<Place> {
    let stats = worker.listener_stats(&stat_prefix(node));
    let process = &worker.process;
    let graph = worker.graph();
    let ignored = node.config.ignore_global_connection_limit;
    let limit = limits::of_process(process, &graph.runtime).filter(|_| !ignored);
    if !limits::take_place(&process.downstream_connections, limit) {
        stats.listener.downstream_global_cx_overflow.increment();
        if process.max_downstream_connections.is_some() {
            worker.scope::<RefusedStats>(CONNECTIONS_PREFIX).failed_updates.increment();
        }
        return None;
    }
    let bypasses = || node.config.bypass_overload_manager;
    let listener = worker.listener_connections(&node.config.name);
    if worker.is_overloaded(Hook::TcpAccept, bypasses) || worker.is_overloaded(Hook::RejectConnections, bypasses) {
        stats.listener.downstream_cx_overload_reject.increment();
    } else if !limits::take_place(&listener, limits::of_listener(&node.config.name, &graph.runtime)) {
        stats.listener.downstream_cx_overflow.increment();
    } else {
        return Some(Place::counted(worker, stats, listener, true));
    }
    process.downstream_connections.fetch_sub(1, Ordering::Relaxed);
    None
}

/// A place for a connection from inside the process. It has its place among those of the process already, as the one that
/// it is made for, so that no limit holds for it.
fn internal_place(worker: &Rc<Worker>, node: &ListenerNode) -> Place {
    let stats = worker.listener_stats(&stat_prefix(node));
    let listener = worker.listener_connections(&node.config.name);
    listener.fetch_add(1, Ordering::Relaxed);
    Place::counted(worker, stats, listener, false)
}

/// The `<prefix>` of `listener.<prefix>.*`: given, or the address with its colons replaced as Envoy does.
pub(crate) fn stat_prefix(node: &ListenerNode) -> Arc<str> {
    match (&node.config.stat_prefix, node.config.addresses.first()) {
        (Some(prefix), _) => Arc::clone(prefix),
        (None, Some(ListenAddress { address: Address::Internal(own), .. })) => {
            format!("envoy_internal_{}", own.listener).into()
        }
        (None, Some(address)) => address.address.to_string().replace(':', "_").into(),
        (None, None) => Arc::clone(&node.config.name),
    }
}

fn start(worker: &Rc<Worker>, node: Arc<ListenerNode>, socket: Socket, local: Address, remote: Address) {
    let Some(place) = take_place(worker, &node) else { return };
    serve(place, node, socket, local, remote, None);
}

/// Serves a connection from inside the process.
pub(super) fn start_internal(
    worker: &Rc<Worker>,
    node: Arc<ListenerNode>,
    socket: Socket,
    local: Address,
    luggage: Luggage,
) {
    let place = internal_place(worker, &node);
    let arrival = Arrival { local: local.clone(), luggage };
    serve(place, node, socket, local, client_address(), Some(Box::new(arrival)));
}

fn serve(
    place: Place,
    node: Arc<ListenerNode>,
    socket: Socket,
    local: Address,
    remote: Address,
    arrival: Option<Box<Arrival>>,
) {
    let accepted = Accepted {
        worker: Rc::clone(&place.worker),
        node,
        socket,
        local,
        direct_remote: remote.clone(),
        remote,
        local_restored: false,
        start: Instant::now(),
        place,
        arrival,
    };
    tokio::task::spawn_local(connection::serve(accepted));
}
