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
    /// The IP address, if this is not a pipe.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Address::Ip(socket) => Some(socket.ip()),
            Address::Pipe { path: _, mode: _ } => None,
        }
    }

    /// The port, if this is not a pipe.
    pub fn port(&self) -> Option<u16> {
        match self {
            Address::Ip(socket) => Some(socket.port()),
            Address::Pipe { path: _, mode: _ } => None,
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

/// As Envoy prints it: `10.0.0.1:80`, `[::1]:80`, or the path of the pipe.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(socket) => write!(f, "{socket}"),
            Address::Pipe { path, mode: _ } => write!(f, "{}", path.display()),
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
