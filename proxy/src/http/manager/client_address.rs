//! Who a client is, and what is told of it to others: `x-forwarded-for`, `x-forwarded-proto`, `x-forwarded-port`.
//!
//! Owns which address counts as the client's, and whether it may count as internal. Never removes what clients must not
//! say (see `normalize`).

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use outrigger_config::address::Address;
use outrigger_config::http::{Detection, TrustedProxies};

use super::HttpConnection;
use super::reply::LocalReply;
use crate::http::headers::HeaderId;
use crate::http::message::{RequestHead, joined};
use crate::stream::StreamInfo;

/// The client of a request.
pub struct Client {
    /// Without one, the peer is no IP socket.
    pub address: Option<IpAddr>,
    /// It may count as internal, if its address does.
    pub may_be_internal: bool,
}

/// Finds the client, records it, and adds what later hops are told. `Err` is the answer where one has to be found and is
/// not.
pub(super) fn identify(
    connection: &HttpConnection,
    head: &mut RequestHead,
    info: &StreamInfo,
) -> Result<Client, LocalReply> {
    let config = &connection.node.config;
    let peer = connection.info.remote.ip();
    let edge = config.use_remote_address;
    join_forwarded(head);
    let found = match (edge, &*config.detections) {
        (true, _) => at_edge(connection, head),
        (false, []) => {
            let list = forwarded_for(head);
            Client { address: list.address(config.xff_num_trusted_hops), may_be_internal: list.is_single() }
        }
        (false, detections) => detect(connection, head, detections)?,
    };
    let client = Client { address: found.address.or(peer), ..found };
    if let Some(address) = client.address.filter(|address| Some(*address) != peer) {
        // Nothing was recorded before: this is done once for each request.
        let _ = info.client.set(Box::new(Address::Ip(SocketAddr::new(address, 0))));
    }
    let trusted = !edge || config.xff_num_trusted_hops > 0;
    if !trusted || !head.headers.contains(HeaderId::XForwardedProto) {
        head.headers.set(HeaderId::XForwardedProto, scheme(connection));
    }
    if config.append_x_forwarded_port
        && (!trusted || !head.headers.contains(HeaderId::XForwardedPort))
        && let Some(port) = connection.info.local.port()
    {
        head.headers.set(HeaderId::XForwardedPort, port.to_string().as_bytes());
    }
    Ok(client)
}

/// The client of a request that [`identify`] has seen.
pub fn client_address(connection: &HttpConnection, info: &StreamInfo) -> Option<IpAddr> {
    match info.client.get() {
        Some(client) => client.ip(),
        None => connection.info.remote.ip(),
    }
}

/// The peer is the client, unless it is one of the proxies in front.
fn at_edge(connection: &HttpConnection, head: &mut RequestHead) -> Client {
    let config = &connection.node.config;
    let list = forwarded_for(head);
    let address = config.xff_num_trusted_hops.checked_sub(1).and_then(|hops| list.address(hops));
    let may_be_internal = list.0.is_none();
    if !config.skip_xff_append {
        append_peer(connection, head, list);
    }
    Client { address, may_be_internal }
}

fn detect(connection: &HttpConnection, head: &mut RequestHead, detections: &[Detection]) -> Result<Client, LocalReply> {
    for detection in detections {
        match detection {
            Detection::Forwarded { trusted, append } => {
                let list = forwarded_for(head);
                let (client, append) = match trusted {
                    TrustedProxies::Hops(hops) => {
                        (Client { address: list.address(*hops), may_be_internal: list.is_single() }, *append)
                    }
                    TrustedProxies::Networks(networks) => match connection.info.remote.ip() {
                        Some(peer) if is_within(networks, &peer) => {
                            let address = list.beyond(networks);
                            (Client { address, may_be_internal: list.is_single() }, *append)
                        }
                        // What strangers say counts for nothing, and whoever comes next shall see that they said it.
                        _ => (Client { address: None, may_be_internal: false }, true),
                    },
                };
                if append {
                    append_peer(connection, head, list);
                }
                if client.address.is_some() {
                    return Ok(client);
                }
            }
            Detection::Header { name, may_be_internal, reject } => {
                let said = head.headers.get_by_name(name).and_then(|value| std::str::from_utf8(value).ok());
                match (said.and_then(|value| value.parse().ok()), reject) {
                    (Some(address), _) => {
                        return Ok(Client { address: Some(address), may_be_internal: *may_be_internal });
                    }
                    (None, Some(status)) => return Err(LocalReply::new(*status, "rejecting_because_detection_failed")),
                    (None, None) => {}
                }
            }
        }
    }
    Ok(Client { address: None, may_be_internal: false })
}

/// The list in `x-forwarded-for`.
struct Forwarded(Option<String>);

fn forwarded_for(head: &RequestHead) -> Forwarded {
    Forwarded(head.headers.get_str(HeaderId::XForwardedFor).map(str::to_owned))
}

/// Several headers become one, so that who looks at the first alone sees all.
fn join_forwarded(head: &mut RequestHead) {
    if head.headers.get_all(HeaderId::XForwardedFor).nth(1).is_some()
        && let Some(list) = joined(&head.headers, HeaderId::XForwardedFor.name()).map(Cow::into_owned)
    {
        head.headers.set(HeaderId::XForwardedFor, &list);
    }
}

impl Forwarded {
    /// The address that stands `skip` places from the right.
    fn address(&self, skip: u32) -> Option<IpAddr> {
        self.0.as_deref()?.rsplit(',').nth(skip as usize)?.trim().parse().ok()
    }

    /// From the right, the first address outside of these networks; the leftmost one if there is none.
    fn beyond(&self, networks: &[IpNet]) -> Option<IpAddr> {
        let mut last = None;
        for entry in self.0.as_deref()?.rsplit(',') {
            let address: IpAddr = entry.trim().parse().ok()?;
            last = Some(address);
            if !is_within(networks, &address) {
                break;
            }
        }
        last
    }

    fn is_single(&self) -> bool {
        self.0.as_deref().is_some_and(|list| !list.contains(','))
    }
}

fn is_within(networks: &[IpNet], address: &IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

fn append_peer(connection: &HttpConnection, head: &mut RequestHead, list: Forwarded) {
    let Some(peer) = connection.info.remote.ip() else { return };
    let list = match list.0 {
        Some(list) => format!("{list},{peer}"),
        None => peer.to_string(),
    };
    head.headers.set(HeaderId::XForwardedFor, list.as_bytes());
}

/// The scheme that the client used, as far as its connection tells.
fn scheme(connection: &HttpConnection) -> &'static [u8] {
    if let Some(ports) = &connection.node.config.forward_proto
        && connection.info.local_restored
        && let Some(port) = connection.info.local.port().map(u32::from)
    {
        if ports.https.contains(&port) {
            return b"https";
        }
        if ports.http.contains(&port) {
            return b"http";
        }
    }
    if connection.info.tls.is_some() { b"https" } else { b"http" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Forwarded {
        Forwarded(Some(text.to_owned()))
    }

    fn address(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    #[test]
    fn hops_are_counted_from_the_right() {
        assert_eq!(list("1.1.1.1, 2.2.2.2,3.3.3.3").address(0), address("3.3.3.3"));
        assert_eq!(list("1.1.1.1, 2.2.2.2,3.3.3.3").address(1), address("2.2.2.2"));
        assert_eq!(list("1.1.1.1").address(1), None);
        assert_eq!(list("x, ::1").address(0), address("::1"));
        assert_eq!(list("x").address(0), None);
        assert_eq!(Forwarded(None).address(0), None);
        assert!(list("1.1.1.1").is_single() && !list("1.1.1.1,2.2.2.2").is_single() && !Forwarded(None).is_single());
    }

    #[test]
    fn the_first_stranger_from_the_right_is_the_client() {
        let networks: Vec<IpNet> = ["10.0.0.0/8", "fc00::/7"].map(|network| network.parse().unwrap()).into();
        for (text, expected) in [
            ("1.1.1.1,2.2.2.2, 10.0.0.1", address("2.2.2.2")),
            ("1.1.1.1", address("1.1.1.1")),
            ("fc00::1,10.0.0.1", address("fc00::1")),
            // Behind what is no address nobody can be trusted.
            ("1.1.1.1,x,10.0.0.1", None),
            ("x,1.1.1.1,10.0.0.1", address("1.1.1.1")),
            ("", None),
        ] {
            assert_eq!(list(text).beyond(&networks), expected, "{text}");
        }
        assert_eq!(Forwarded(None).beyond(&networks), None);
    }
}
