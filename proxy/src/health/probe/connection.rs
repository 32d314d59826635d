//! Connections that checks are made over.
//!
//! Owns where they lead and how they are secured. Never speaks a protocol.

use std::io;
use std::net::SocketAddr;

use outrigger_config::address::Address;
use outrigger_config::cluster::{Cluster, HealthCheck, UpstreamTransport};
use outrigger_xds::Connector;
use outrigger_xds::connector::Connection;
use tokio::io::AsyncWriteExt as _;

use super::Target;
use crate::upstream::{dial, proxy_header};

/// A connection that was made for a check.
pub(super) struct Opened {
    /// Its bytes.
    pub stream: Connection,
    /// Ours and the endpoint's, unless it is a Unix socket.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
}

/// What is offered by ALPN where neither the check nor the cluster says anything.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Offer {
    /// Nothing.
    Nothing,
    /// HTTP/2, which many servers speak by ALPN only.
    Http2,
}

/// Where the checks of an endpoint go.
pub(super) fn address(target: &Target, settings: &HealthCheck) -> Address {
    let own = target.host.health_check.as_deref();
    let named = own.and_then(|check| check.address.as_ref());
    let port = own.and_then(|check| check.port).or(if named.is_some() { None } else { settings.alt_port });
    match (named.unwrap_or(&target.host.address), port) {
        (Address::Ip(socket), Some(port)) => Address::Ip(SocketAddr::new(socket.ip(), port)),
        (address, _) => address.clone(),
    }
}

/// A connection to this port of an endpoint (that of other checks if `None`) without any transport of its own, or over the
/// one that its checks name.
pub(super) async fn open_at(target: &Target, settings: &HealthCheck, port: Option<u16>) -> io::Result<Connection> {
    let address = match (address(target, settings), port) {
        (Address::Ip(socket), Some(port)) => Address::Ip(SocketAddr::new(socket.ip(), port)),
        (address, _) => address,
    };
    let (stream, addresses) = plain(&address, &target.node.config).await?;
    match settings.transport_criteria {
        None => Ok(stream),
        Some(_) => secure(target, settings, Offer::Nothing, stream, addresses).await.map(|opened| opened.stream),
    }
}

/// A connection to an endpoint, over the transport that its checks have.
pub(super) async fn open(target: &Target, settings: &HealthCheck, offer: Offer) -> io::Result<Opened> {
    let (plain, addresses) = plain(&address(target, settings), &target.node.config).await?;
    secure(target, settings, offer, plain, addresses).await
}

async fn secure(
    target: &Target,
    settings: &HealthCheck,
    offer: Offer,
    mut plain: Connection,
    addresses: Option<(SocketAddr, SocketAddr)>,
) -> io::Result<Opened> {
    let cluster = &target.node.config;
    let place = match &settings.transport_criteria {
        Some(criteria) => cluster.transport_of(Some(criteria), None),
        None => target.host.transport,
    };
    let transport = cluster.transports().nth(place);
    if let Some(header) = transport.and_then(UpstreamTransport::proxy_header) {
        plain.write_all(&proxy_header::own(header.version, addresses)).await?;
    }
    let Some(config) = transport.and_then(UpstreamTransport::tls) else {
        return Ok(Opened { stream: plain, addresses });
    };
    let Some(tls) = target.node.tls.get(place) else {
        return Err(io::Error::new(io::ErrorKind::NotConnected, "the secrets of its transport have not arrived"));
    };
    let hostname = &target.host.hostname;
    let sni = (config.auto_host_sni && !hostname.is_empty()).then_some(&**hostname);
    let names: Vec<Vec<u8>> = match offer {
        _ if !settings.alpn.is_empty() => settings.alpn.iter().map(|name| name.clone().into_bytes()).collect(),
        Offer::Http2 if config.common.alpn.is_empty() => vec![b"h2".to_vec()],
        Offer::Http2 | Offer::Nothing => Vec::new(),
    };
    let alpn = (!names.is_empty()).then_some(names.as_slice());
    let (stream, _) = tls.connect(plain, sni, alpn).await.map_err(io::Error::other)?;
    Ok(Opened { stream: Box::new(stream), addresses })
}

async fn plain(address: &Address, cluster: &Cluster) -> io::Result<(Connection, Option<(SocketAddr, SocketAddr)>)> {
    match address {
        Address::Ip(address) => {
            let source = cluster.bind.as_ref().and_then(|bind| bind.source_for(*address));
            let stream = dial::open_tcp(*address, source).await?;
            let addresses = Some((stream.local_addr()?, *address));
            Ok((Box::new(stream), addresses))
        }
        Address::Pipe { path, .. } => Ok((Connector::unix(path.clone()).connect().await?, None)),
    }
}
