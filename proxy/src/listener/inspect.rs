//! Listener filters: what is learnt from a connection before its filter chain is chosen.
//!
//! Owns running them in order, the bytes they need and the time they may take. Never parses (see `filters`).

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use outrigger_config::address::Address;
use outrigger_config::listener::{ListenerFilterKind, TlsInspector};
use outrigger_config::metadata::Namespaces;
use tokio::io::{AsyncRead, ReadBuf};

use super::connection::Accepted;
use super::filters::fingerprint::{self, Fingerprints};
use super::filters::{Parse, client_hello, http_inspect, proxy_protocol};
use super::internal::Luggage;
use crate::graph::ListenerNode;
use crate::upstream::proxy_header::Tlv;
use crate::worker::socket::SocketKind;

/// What inspection found.
#[derive(Debug, Default)]
pub struct Findings {
    /// TLS was found.
    pub tls: bool,
    /// SNI, lower case.
    pub server_name: Option<String>,
    /// ALPN offers, or the HTTP version found.
    pub application_protocols: Vec<String>,
    /// TLVs of a PROXY protocol header that are to be kept.
    pub proxy_tlvs: Option<Box<Vec<Tlv>>>,
    /// What TLVs of the header say, where rules ask for them and the connection comes from outside the process.
    pub metadata: Namespaces,
    /// Fingerprints of the client, if they are wanted.
    pub fingerprints: Option<Box<Fingerprints>>,
}

/// Why a connection is closed before its filter chain is chosen.
#[derive(Debug, Eq, PartialEq)]
pub enum Refused {
    /// The client went away.
    Closed,
    /// The bytes broke a rule of a filter.
    Invalid(&'static str),
    /// `listener_filters_timeout` has passed.
    Timeout,
    /// A filter has not been discovered.
    Undiscovered,
}

/// A PROXY header of version 2 can be this large.
const MOST_BYTES: usize = 16 + 65_535;

/// Runs the filters of the connection's listener. Bytes read ahead are put back in front of the socket.
///
/// # Errors
/// When the connection must be closed.
pub async fn run(accepted: &mut Accepted) -> Result<Findings, Refused> {
    let node = accepted.node.clone();
    let mut findings = Findings::default();
    if node.config.listener_filters.is_empty() {
        return Ok(findings);
    }
    let mut ahead = accepted.socket.take_ahead();
    let result = {
        let running = run_all(accepted, &node, &mut ahead, &mut findings);
        match node.config.listener_filters_timeout {
            None => running.await,
            Some(limit) => match tokio::time::timeout(limit, running).await {
                Ok(result) => result,
                Err(_) => timed_out(limit, node.config.continue_on_listener_filters_timeout),
            },
        }
    };
    accepted.socket.put_back(ahead);
    result.map(|()| findings)
}

fn timed_out(limit: Duration, go_on: bool) -> Result<(), Refused> {
    tracing::debug!("listener filters found nothing within {limit:?}");
    if go_on { Ok(()) } else { Err(Refused::Timeout) }
}

async fn run_all(
    accepted: &mut Accepted,
    node: &ListenerNode,
    ahead: &mut Vec<u8>,
    findings: &mut Findings,
) -> Result<(), Refused> {
    for (filter, kind) in node.listener_filters() {
        let Some(kind) = kind else { return Err(Refused::Undiscovered) };
        let port = accepted.local.port().unwrap_or_default();
        if filter.disabled.as_ref().is_some_and(|disabled| disabled.matches(port)) {
            continue;
        }
        match kind {
            // What takes its place is never discovered in turn.
            ListenerFilterKind::Discovered(_) => return Err(Refused::Undiscovered),
            ListenerFilterKind::OriginalDst => restore_destination(accepted),
            ListenerFilterKind::TlsInspector(inspector) => {
                let most = inspector.max_client_hello_bytes as usize;
                let found = read_until(accepted, ahead, |bytes| client_hello::parse(bytes, most)).await;
                let stats = accepted.worker.tls_inspector_stats();
                if found == Err(Refused::Invalid(client_hello::TOO_LARGE)) {
                    stats.client_hello_too_large.increment();
                }
                let found = found?;
                match &found {
                    Some(hello) => stats.found(hello.server_name.is_some(), !hello.alpn.is_empty()),
                    None => stats.tls_not_found.increment(),
                }
                match found {
                    Some(hello) => {
                        findings.tls = true;
                        findings.server_name = hello.server_name;
                        findings.application_protocols = hello.alpn;
                        findings.fingerprints = fingerprints(ahead, inspector);
                    }
                    None if inspector.close_on_errors => return Err(Refused::Invalid("no valid ClientHello")),
                    None => {}
                }
            }
            // TLS hides what is inside.
            ListenerFilterKind::HttpInspector if findings.tls => {}
            ListenerFilterKind::HttpInspector => {
                if let Some(protocol) = read_until(accepted, ahead, http_inspect::inspect).await? {
                    findings.application_protocols = vec![protocol.to_owned()];
                }
            }
            ListenerFilterKind::ProxyProtocol(rules) => {
                let found = read_until(accepted, ahead, |bytes| proxy_protocol::parse(bytes, rules)).await?;
                match found {
                    Some(header) => {
                        let tlvs = header.tlvs(ahead, &rules.keep);
                        findings.proxy_tlvs = (!tlvs.is_empty()).then(|| Box::new(tlvs));
                        let metadata = header.metadata(ahead, &rules.rules);
                        match &mut accepted.arrival {
                            Some(arrival) => arrival.luggage.metadata.extend(metadata),
                            None => findings.metadata = metadata,
                        }
                        ahead.drain(..header.consumed.min(ahead.len()));
                        if let Some(addresses) = header.addresses {
                            accepted.remote = addresses.source;
                            accepted.local = addresses.destination;
                            accepted.local_restored = true;
                        }
                    }
                    None if rules.allow_without_header => {}
                    None => return Err(Refused::Invalid("no PROXY protocol header")),
                }
            }
        }
    }
    Ok(())
}

fn fingerprints(ahead: &[u8], inspector: &TlsInspector) -> Option<Box<Fingerprints>> {
    let TlsInspector { ja3, ja4, max_client_hello_bytes, close_on_errors: _ } = *inspector;
    if !ja3 && !ja4 {
        return None;
    }
    let body = client_hello::body(ahead, max_client_hello_bytes as usize)?;
    Some(Box::new(fingerprint::fingerprints(&body, ja3, ja4)))
}

fn restore_destination(accepted: &mut Accepted) {
    if let Some(arrival) = &accepted.arrival {
        let (local, remote) = told_addresses(&arrival.luggage);
        if let Some(local) = local {
            accepted.local = Address::Ip(local);
            accepted.local_restored = true;
        }
        if let Some(remote) = remote {
            accepted.remote = Address::Ip(remote);
        }
        return;
    }
    let SocketKind::Tcp(tcp) = accepted.socket.kind() else { return };
    // Connections that were not redirected have none, and stay as they are.
    if let Ok(original) = outrigger_sys::original_dst::original_dst(tcp) {
        let original = Address::Ip((original.ip().to_canonical(), original.port()).into());
        accepted.local_restored = accepted.local_restored || original != accepted.local;
        accepted.local = original;
    }
}

/// Destination and source, as they are told of a connection from inside the process. Of the two ways to tell a destination,
/// filter state comes first.
fn told_addresses(luggage: &Luggage) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let object = |key: &str| luggage.objects.get(key)?.parse::<SocketAddr>().ok();
    let in_metadata = || luggage.metadata.get(ORIGINAL_DST)?.get("local")?.as_str()?.parse::<SocketAddr>().ok();
    (object(DESTINATION_OBJECT).or_else(in_metadata), object(SOURCE_OBJECT))
}

/// The namespace in which metadata tells a destination.
const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";
/// The object that tells a destination.
const DESTINATION_OBJECT: &str = "envoy.filters.listener.original_dst.local_ip";
/// The object that tells a source.
const SOURCE_OBJECT: &str = "envoy.filters.listener.original_dst.remote_ip";

/// Reads ahead until `parse` has decided; `None` for something else.
async fn read_until<T>(
    accepted: &mut Accepted,
    ahead: &mut Vec<u8>,
    parse: impl Fn(&[u8]) -> Parse<T>,
) -> Result<Option<T>, Refused> {
    loop {
        match parse(ahead) {
            Parse::Complete(found) => return Ok(Some(found)),
            Parse::NotThis => return Ok(None),
            Parse::Invalid(reason) => return Err(Refused::Invalid(reason)),
            Parse::Partial if ahead.len() >= MOST_BYTES => return Err(Refused::Invalid("too many bytes")),
            Parse::Partial => {}
        }
        if read_some(accepted, ahead).await.map_err(|_| Refused::Closed)? == 0 {
            // A client that says nothing more is whatever its first bytes were.
            return if ahead.is_empty() { Err(Refused::Closed) } else { Ok(None) };
        }
    }
}

async fn read_some(accepted: &mut Accepted, ahead: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = accepted.worker.buffers.small();
    let count = {
        let mut spare = ReadBuf::new(buffer.spare());
        poll_fn(|cx| Pin::new(&mut accepted.socket).poll_read(cx, &mut spare)).await.map(|()| spare.filled().len())
    };
    if let Ok(count) = count {
        buffer.fill(count);
        ahead.extend_from_slice(buffer.filled());
    }
    accepted.worker.buffers.give(buffer);
    count
}
