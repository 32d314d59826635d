//! The first moments of a connection.
//!
//! Owns the way from accept to the filter chain: original destination, inspection, the chain's choice, TLS. Never speaks
//! an application protocol.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::address::Address;
use outrigger_config::listener::ConnectionFacts;
use outrigger_config::overload::TimerKind;

use super::accept::Place;
use super::inspect::{self, Findings, Refused};
use super::internal::Luggage;
use crate::accesslog::Facts;
use crate::graph::{Application, ChainNode, ListenerNode};
use crate::stream::{ConnectionInfo, ResponseFlag, StreamInfo, TlsInfo};
use crate::tls::{Ends, HandshakeError};
use crate::worker::Worker;
use crate::worker::connections::Connections;
use crate::worker::socket::{Io, Socket};
use crate::{http, network, tcp};

/// An accepted connection.
pub struct Accepted {
    /// The worker that owns it.
    pub worker: Rc<Worker>,
    /// The listener that has it now.
    pub node: Arc<ListenerNode>,
    /// Its socket.
    pub socket: Socket,
    /// Where the client wanted to go.
    pub local: Address,
    /// The client.
    pub remote: Address,
    /// The socket's peer.
    pub direct_remote: Address,
    /// `local` was restored by a listener filter.
    pub local_restored: bool,
    /// When it was accepted.
    pub start: Instant,
    /// Its place among the downstream connections.
    pub place: Place,
    /// How it came here from inside the process, if it did.
    pub arrival: Option<Box<Arrival>>,
}

/// A connection from inside the process.
#[derive(Debug)]
pub struct Arrival {
    /// The address that it was made to.
    pub local: Address,
    /// What it brings along.
    pub luggage: Luggage,
}

/// A TLS handshake that takes longer was abandoned by its client.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(15);

/// Serves a connection until it ends.
pub async fn serve(accepted: Accepted) {
    // What comes before the application is needed once; boxed, it is freed before the long part begins.
    let Some(ready) = Box::pin(establish(accepted)).await else { return };
    let Ready { worker, chain, io, info, place, buffer_limit } = ready;
    let registered = Connections::register(&worker, &chain.draining);
    let _place = place;
    let _admission = match network::admit(&worker, &chain.filters, &info).await {
        Ok(admission) => admission,
        Err(refusal) => {
            let chain = Arc::clone(&chain);
            return Box::pin(network::refuse(worker, chain, io, info, registered, refusal)).await;
        }
    };
    let io = network::begin(&worker, &chain, &info, io);
    match &chain.application {
        Application::Http(node) => http::manager::serve(worker, Arc::clone(node), io, info, registered).await,
        Application::Tcp(node) => {
            Box::pin(tcp::serve(worker, Arc::clone(node), io, info, registered, buffer_limit)).await
        }
        Application::OwnAnswer(answer) => Box::pin(tcp::answer(io, registered, answer)).await,
        Application::Missing => {}
    }
}

struct Ready {
    worker: Rc<Worker>,
    chain: Arc<ChainNode>,
    io: Io,
    info: Rc<ConnectionInfo>,
    place: Place,
    /// Bytes, of the listener.
    buffer_limit: u32,
}

async fn establish(mut accepted: Accepted) -> Option<Ready> {
    accepted.place.stats().downstream_pre_cx_active.increment();
    let inspected = inspect_all(&mut accepted).await;
    let stats = Arc::clone(accepted.place.stats());
    stats.downstream_pre_cx_active.decrement();
    let findings = match inspected {
        Ok(findings) => findings,
        Err(Refused::Timeout) => {
            stats.downstream_pre_cx_timeout.increment();
            return None;
        }
        Err(Refused::Undiscovered) => {
            stats.extension_config_missing.increment();
            return None;
        }
        Err(Refused::Closed) => {
            stats.downstream_listener_filter_remote_close.increment();
            return None;
        }
        Err(Refused::Invalid(reason)) => {
            tracing::debug!("connection from {} closed: {reason}", accepted.remote);
            stats.downstream_listener_filter_error.increment();
            return None;
        }
    };
    let chain = choose(&accepted, &findings);
    let Accepted { worker, node, socket, local, remote, direct_remote, local_restored, start, place, arrival } =
        accepted;
    let (own, luggage) = match arrival {
        None => {
            let luggage = Luggage { metadata: findings.metadata, ..Luggage::default() };
            (socket.local_address().map(Address::Ip), luggage)
        }
        Some(arrival) => (Some(arrival.local), arrival.luggage),
    };
    let own = own.filter(|own| *own != local).map(Box::new);
    let mut info = ConnectionInfo {
        id: worker.process.next_connection_id(),
        start,
        listener: Arc::clone(&node.config.name),
        local,
        remote,
        direct_remote,
        server_name: findings.server_name,
        application_protocols: findings.application_protocols,
        filter_chain: chain.as_ref().map_or_else(|| "".into(), |chain| Arc::clone(&chain.config.name)),
        tls: None,
        socket_local: own,
        local_restored,
        proxy_tlvs: findings.proxy_tlvs,
        outgoing_tlvs: Default::default(),
        tls_fingerprints: findings.fingerprints,
        dynamic_metadata: luggage.metadata.into(),
        filter_state: luggage.objects.into(),
        peer_words: Default::default(),
    };
    let Some(chain) = chain else {
        stats.no_filter_chain_match.increment();
        log_refused(&worker, &node, &info, &Refusal::Unmatched);
        return None;
    };
    place.establish();
    let (io, mut tls) = match secure(&worker, &node, &chain, socket, &info, &stats).await {
        Ok(secured) => secured,
        Err(failure) => {
            log_refused(&worker, &node, &info, &Refusal::Handshake(failure));
            return None;
        }
    };
    if let Some(tls) = &mut tls {
        tls.handshake = start.elapsed();
    }
    info.tls = tls;
    let info = Rc::new(info);
    let buffer_limit = node.config.per_connection_buffer_limit_bytes;
    Some(Ready { worker, chain, io, info, place, buffer_limit })
}

/// Runs listener filters; a listener that hands over by original destination passes the connection on once.
async fn inspect_all(accepted: &mut Accepted) -> Result<Findings, Refused> {
    let findings = inspect::run(accepted).await?;
    if !accepted.node.config.use_original_dst || accepted.arrival.is_some() {
        return Ok(findings);
    }
    let Address::Ip(destination) = accepted.local else { return Ok(findings) };
    let graph = accepted.worker.graph();
    match graph.listener_at(destination) {
        Some(other) if !Arc::ptr_eq(other, &accepted.node) => {
            accepted.node = Arc::clone(other);
            let further = inspect::run(accepted).await?;
            let found = further.tls || !further.application_protocols.is_empty();
            Ok(if found { further } else { findings })
        }
        _ => Ok(findings),
    }
}

fn choose(accepted: &Accepted, findings: &Findings) -> Option<Arc<ChainNode>> {
    let endpoint = |address: &Address| match address {
        Address::Ip(socket) => Some((socket.ip(), socket.port())),
        Address::Pipe { .. } | Address::Internal(_) => None,
    };
    let luggage = accepted.arrival.as_deref().map(|arrival| &arrival.luggage);
    let facts = ConnectionFacts {
        destination: endpoint(&accepted.local),
        source: endpoint(&accepted.remote),
        direct_source: accepted.direct_remote.ip(),
        server_name: findings.server_name.as_deref(),
        transport_protocol: if findings.tls { "tls" } else { "raw_buffer" },
        application_protocols: &findings.application_protocols,
        filter_state: luggage.map(|luggage| &*luggage.objects),
        metadata: Some(luggage.map_or(&findings.metadata, |luggage| &luggage.metadata)),
    };
    let chosen = accepted.node.index.find(&facts)?;
    accepted.node.chain(chosen).cloned()
}

/// Terminates TLS where the chain says so; the reason of a failure is for the log.
async fn secure(
    worker: &Worker,
    node: &ListenerNode,
    chain: &ChainNode,
    socket: Socket,
    info: &ConnectionInfo,
    stats: &crate::listener::stats::ListenerStats,
) -> Result<(Io, Option<TlsInfo>), Option<HandshakeError>> {
    let Some(tls) = &chain.tls else { return Ok((Io::Plain(socket), None)) };
    let ends = Ends { local: info.local.ip(), remote: info.remote.ip() };
    let limit = chain.config.transport_connect_timeout.unwrap_or(HANDSHAKE_LIMIT);
    let limit = match worker.process.overload.timers() {
        Some(timers) if !node.config.bypass_overload_manager => {
            timers.shortened(TimerKind::TransportSocketConnect, limit)
        }
        _ => limit,
    };
    match tokio::time::timeout(limit, tls.accept_between(socket, ends)).await {
        Ok(Ok((stream, info))) => {
            stats.handshake(&info);
            Ok((Io::TlsServer(Box::new(stream)), Some(info)))
        }
        Ok(Err(error)) => {
            stats.failed_handshake(error.failure());
            tracing::debug!("TLS handshake with {} failed: {error}", info.remote);
            Err(Some(error))
        }
        Err(_) => {
            stats.downstream_cx_transport_socket_connect_timeout.increment();
            Err(None)
        }
    }
}

/// Why a connection never reaches an application.
enum Refusal {
    /// No filter chain takes it.
    Unmatched,
    /// Its TLS handshake failed; without a reason, it took too long.
    Handshake(Option<HandshakeError>),
}

/// A connection that never reaches an application is closed, and logged by the listener.
fn log_refused(worker: &Worker, node: &ListenerNode, connection: &ConnectionInfo, refusal: &Refusal) {
    let now = Instant::now();
    let info = StreamInfo::new(connection.start, None);
    let mut reason = String::new();
    match refusal {
        Refusal::Unmatched => {
            info.flag(ResponseFlag::NoRouteFound);
            info.set_details("filter_chain_not_found");
        }
        Refusal::Handshake(Some(error)) => reason = error.to_string(),
        Refusal::Handshake(None) => "the TLS handshake took too long".clone_into(&mut reason),
    }
    info.end.set(Some(now));
    let mut facts = Facts::new(&info, connection, &worker.process.clock, now);
    facts.downstream_failure = &reason;
    let graph = worker.graph();
    for logger in &node.access_logs {
        logger.log(&facts, worker.random.next(), &*graph.runtime);
    }
    if !reason.is_empty() {
        *info.termination.borrow_mut() = Some(reason.into());
    }
    worker.failures.note(&info, connection, None, &worker.process.clock, &graph.runtime);
}
