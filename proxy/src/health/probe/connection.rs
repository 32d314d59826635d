//! Connections that checks are made over.
//!
//! Owns where they lead and how they are secured. Never speaks a protocol.

use std::io;
use std::net::SocketAddr;

use outrigger_config::address::Address;
use outrigger_config::cluster::{Cluster, HealthCheck, HttpProxy, UpstreamTransport};
use outrigger_policy::transport::{Said, transport_of};
use outrigger_xds::Connector;
use outrigger_xds::connector::Connection;
use tokio::io::AsyncWriteExt as _;

use super::Target;
use crate::graph::ClusterNode;
use crate::upstream::host::Host;
use crate::upstream::{dial, http_tunnel, proxy_header};

/// A connection that was made for a check.
pub(in crate::health) struct Opened {
    /// Its bytes.
    pub stream: Connection,
    /// Ours and the endpoint's, unless it is a Unix socket.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
}

/// Where a connection to an endpoint leads, and how it is secured.
pub(in crate::health) struct Way<'a> {
    /// Its cluster.
    pub node: &'a ClusterNode,
    /// The endpoint.
    pub host: &'a Host,
    /// Its address, or another.
    pub address: Address,
    /// A place among `Cluster::transports`.
    pub transport: usize,
    /// What is offered by ALPN; what the transport offers if empty.
    pub alpn: Vec<Vec<u8>>,
}

impl Way<'_> {
    /// A new connection.
    pub(in crate::health) async fn open(&self) -> io::Result<Opened> {
        let proxy = self.http_proxy();
        let to = proxy.as_ref().map_or(&self.address, |proxy| &proxy.address);
        let (mut plain, addresses) = plain(to, &self.node.config).await?;
        if let Some(proxy) = proxy.filter(|proxy| proxy.tunnel) {
            let asked = http_tunnel::open(&mut plain, &proxy.address, &self.address, &self.host.hostname);
            asked.await.map_err(io::Error::other)?;
        }
        self.secure(plain, addresses).await
    }

    /// What the endpoint names goes with its own transport; another has its default.
    fn http_proxy(&self) -> Option<HttpProxy> {
        if self.transport == self.host.transport {
            return self.host.http_proxy.clone();
        }
        self.node.config.transports().nth(self.transport)?.http_proxy(None)
    }

    async fn secure(&self, mut plain: Connection, addresses: Option<(SocketAddr, SocketAddr)>) -> io::Result<Opened> {
        let transport = self.node.config.transports().nth(self.transport);
        if let Some(header) = transport.and_then(UpstreamTransport::proxy_header) {
            plain.write_all(&proxy_header::own(header.version, addresses)).await?;
        }
        let Some(config) = transport.and_then(UpstreamTransport::tls) else {
            return Ok(Opened { stream: plain, addresses });
        };
        let Some(tls) = self.node.tls.get(self.transport) else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the secrets of its transport have not arrived"));
        };
        let hostname = &self.host.hostname;
        let sni = (config.auto_host_sni && !hostname.is_empty()).then_some(&**hostname);
        let alpn = (!self.alpn.is_empty()).then_some(self.alpn.as_slice());
        let (stream, _) = tls.connect(plain, sni, alpn).await.map_err(io::Error::other)?;
        Ok(Opened { stream: Box::new(stream), addresses })
    }
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
    let mut way = way(target, settings, Offer::Nothing);
    if let (Address::Ip(socket), Some(port)) = (&way.address, port) {
        way.address = Address::Ip(SocketAddr::new(socket.ip(), port));
    }
    match settings.transport_criteria {
        None => plain(&way.address, &target.node.config).await.map(|(stream, _)| stream),
        Some(_) => way.open().await.map(|opened| opened.stream),
    }
}

/// A connection to an endpoint, over the transport that its checks have.
pub(super) async fn open(target: &Target, settings: &HealthCheck, offer: Offer) -> io::Result<Opened> {
    way(target, settings, offer).open().await
}

fn way<'a>(target: &'a Target, settings: &HealthCheck, offer: Offer) -> Way<'a> {
    let cluster = &target.node.config;
    let transport = match &settings.transport_criteria {
        Some(criteria) => transport_of(cluster, Said { transport: Some(criteria), balancing: None }, Said::default()),
        None => target.host.transport,
    };
    let tls = cluster.transports().nth(transport).and_then(UpstreamTransport::tls);
    let alpn = match offer {
        _ if !settings.alpn.is_empty() => settings.alpn.iter().map(|name| name.clone().into_bytes()).collect(),
        Offer::Http2 if tls.is_none_or(|tls| tls.common.alpn.is_empty()) => vec![b"h2".to_vec()],
        Offer::Http2 | Offer::Nothing => Vec::new(),
    };
    Way { node: &target.node, host: &target.host, address: address(target, settings), transport, alpn }
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
        Address::Internal(_) => Err(dial::not_on_this_thread()),
    }
}
