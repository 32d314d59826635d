//! Network addresses as the API names them (`envoy.config.core.v3.Address`).
//!
//! Owns the checked address types. Never resolves names or opens sockets.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

/// An address to listen on or to connect to, needing no resolution.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Address {
    /// IPv4 or IPv6 with a port.
    Ip(SocketAddr),
    /// A Unix socket; a path that starts with `@` is in the abstract namespace.
    Pipe { path: PathBuf, mode: u32 },
    /// A listener of this process.
    Internal(Arc<InternalAddress>),
}

/// Source: `envoy.config.core.v3.EnvoyInternalAddress`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct InternalAddress {
    /// Name of the listener.
    pub listener: Arc<str>,
    /// Tells endpoints apart that lead to the same listener; may be empty.
    pub endpoint: Arc<str>,
}

impl InternalAddress {
    /// The address of a listener itself.
    pub fn of_listener(name: &Arc<str>) -> Self {
        Self { listener: Arc::clone(name), endpoint: "".into() }
    }
}

/// An address that may still need a resolver.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum EndpointAddress {
    /// Ready to connect to.
    Resolved(Address),
    /// A host name with a port, for clusters that resolve by DNS.
    Named { host: Arc<str>, port: u16 },
}

impl Address {
    /// The IP address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Address::Ip(socket) => Some(socket.ip()),
            Address::Pipe { path: _, mode: _ } | Address::Internal(_) => None,
        }
    }

    /// The port, if it has one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Address::Ip(socket) => Some(socket.port()),
            Address::Pipe { path: _, mode: _ } | Address::Internal(_) => None,
        }
    }
}

impl EndpointAddress {
    /// Whether it can be connected to without asking a resolver.
    pub fn is_literal(&self) -> bool {
        match self {
            EndpointAddress::Resolved(_) => true,
            EndpointAddress::Named { host, port: _ } => host.parse::<IpAddr>().is_ok(),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(socket: SocketAddr) -> Self {
        Address::Ip(socket)
    }
}

/// As Envoy prints it: `10.0.0.1:80`, `[::1]:80`, the path of the pipe, or `envoy://listener/endpoint`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(socket) => write!(f, "{socket}"),
            Address::Pipe { path, mode: _ } => write!(f, "{}", path.display()),
            Address::Internal(internal) => write!(f, "envoy://{}/{}", internal.listener, internal.endpoint),
        }
    }
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndpointAddress::Resolved(address) => address.fmt(f),
            EndpointAddress::Named { host, port } => write!(f, "{host}:{port}"),
        }
    }
}
