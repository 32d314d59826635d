//! PROXY protocol headers towards endpoints
//! (<https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt>, both versions).
//!
//! Owns their bytes: for a connection on behalf of a client, and for one of our own. Never reads a header (see
//! `listener::filters::proxy_protocol`), and never decides which connections have one.

use std::net::{IpAddr, SocketAddr};

use outrigger_config::address::Address;
use outrigger_config::cluster::{ProxyHeaderSettings, ProxyProtocolVersion};

use crate::stream::ConnectionInfo;

/// A TLV: its type and its value.
pub type Tlv = (u8, Box<[u8]>);

/// The header for a connection on behalf of a downstream connection.
pub fn on_behalf(settings: &ProxyHeaderSettings, downstream: &ConnectionInfo) -> Vec<u8> {
    proxied(settings, &downstream.remote, &downstream.local, downstream.tlvs())
}

/// The header for a connection that nobody asked for: health checks, and calls of our own. Version 2 has a word for that,
/// version 1 names the two ends of the connection itself.
pub fn own(version: ProxyProtocolVersion, ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    match (version, ends) {
        (ProxyProtocolVersion::V1, Some((source, destination))) => line(source, destination),
        (ProxyProtocolVersion::V1, None) => UNKNOWN.to_vec(),
        (ProxyProtocolVersion::V2, _) => [SIGNATURE, &[LOCAL, 0, 0, 0]].concat(),
    }
}

fn proxied(settings: &ProxyHeaderSettings, source: &Address, destination: &Address, came: &[Tlv]) -> Vec<u8> {
    let ends = match (source, destination) {
        (Address::Ip(source), Address::Ip(destination)) => Some((*source, *destination)),
        _ => None,
    };
    match (settings.version, ends) {
        (ProxyProtocolVersion::V1, Some((source, destination))) => line(source, destination),
        (ProxyProtocolVersion::V1, None) => UNKNOWN.to_vec(),
        (ProxyProtocolVersion::V2, ends) => {
            let mut body = Vec::new();
            let family = ends.map_or(UNSPECIFIED, |(source, destination)| addresses(source, destination, &mut body));
            // Those that are added take the place of those that came.
            let is_added = |kind: u8| settings.added.iter().any(|(added, _)| *added == kind);
            let passed = came.iter().filter(|(kind, _)| settings.pass.takes(*kind) && !is_added(*kind));
            let added = settings.added.iter().map(|(kind, value)| (*kind, &**value));
            for (kind, value) in added.chain(passed.map(|(kind, value)| (*kind, &**value))) {
                let fits = body.len() + 3 + value.len() <= usize::from(u16::MAX);
                if let (true, Ok(length)) = (fits, u16::try_from(value.len())) {
                    body.push(kind);
                    body.extend_from_slice(&length.to_be_bytes());
                    body.extend_from_slice(value);
                }
            }
            let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
            [SIGNATURE, &[PROXY, family], &length.to_be_bytes(), &body].concat()
        }
    }
}

fn line(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (from, to) = same_family(source.ip(), destination.ip());
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

fn addresses(source: SocketAddr, destination: SocketAddr, body: &mut Vec<u8>) -> u8 {
    let (from, to) = same_family(source.ip(), destination.ip());
    for ip in [from, to] {
        match ip {
            IpAddr::V4(ip) => body.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => body.extend_from_slice(&ip.octets()),
        }
    }
    body.extend_from_slice(&source.port().to_be_bytes());
    body.extend_from_slice(&destination.port().to_be_bytes());
    if from.is_ipv4() { TCP_OVER_IPV4 } else { TCP_OVER_IPV6 }
}

/// A header has room for one family: where the ends differ, the IPv4 one is written as IPv6.
fn same_family(source: IpAddr, destination: IpAddr) -> (IpAddr, IpAddr) {
    let mapped = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => IpAddr::V6(ip.to_ipv6_mapped()),
        IpAddr::V6(_) => ip,
    };
    if source.is_ipv4() == destination.is_ipv4() {
        (source, destination)
    } else {
        (mapped(source), mapped(destination))
    }
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";
/// Version 2 and command.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

#[cfg(test)]
mod tests {
    use outrigger_config::cluster::TlvFilter;
    use outrigger_config::listener::ProxyProtocol;
    use proptest::prelude::*;

    use super::*;
    use crate::listener::filters::{Parse, proxy_protocol};

    fn settings(version: ProxyProtocolVersion) -> ProxyHeaderSettings {
        ProxyHeaderSettings { version, pass: TlvFilter::All, added: vec![(0xe0, b"mesh".as_slice().into())] }
    }

    fn ip(text: &str) -> Address {
        Address::Ip(text.parse().unwrap())
    }

    #[test]
    fn version_1_is_a_line_and_says_unknown_for_what_is_no_ip_address() {
        let v1 = settings(ProxyProtocolVersion::V1);
        assert_eq!(proxied(&v1, &ip("10.0.0.1:5"), &ip("10.0.0.2:80"), &[]), b"PROXY TCP4 10.0.0.1 10.0.0.2 5 80\r\n");
        let mixed = proxied(&v1, &ip("[2001:db8::1]:5"), &ip("10.0.0.2:80"), &[]);
        assert_eq!(mixed, b"PROXY TCP6 2001:db8::1 ::ffff:10.0.0.2 5 80\r\n");
        let pipe = Address::Pipe { path: "/run/a".into(), mode: 0 };
        assert_eq!(proxied(&v1, &pipe, &ip("10.0.0.2:80"), &[]), UNKNOWN);
        let ends = Some(("10.0.0.1:5".parse().unwrap(), "10.0.0.2:80".parse().unwrap()));
        assert_eq!(own(ProxyProtocolVersion::V1, ends), b"PROXY TCP4 10.0.0.1 10.0.0.2 5 80\r\n");
        assert_eq!(own(ProxyProtocolVersion::V1, None), UNKNOWN);
        assert_eq!(own(ProxyProtocolVersion::V2, ends)[12..], [0x20, 0, 0, 0]);
    }

    #[test]
    fn version_2_carries_tlvs_and_added_ones_win() {
        let came: Vec<Tlv> = vec![(0x01, (*b"h2").into()), (0xe0, (*b"old").into())];
        let header = proxied(&settings(ProxyProtocolVersion::V2), &ip("10.0.0.1:5"), &ip("10.0.0.2:80"), &came);
        let body = &header[16..];
        assert_eq!(body[..12], [10, 0, 0, 1, 10, 0, 0, 2, 0, 5, 0, 80]);
        assert_eq!(body[12..], *b"\xe0\0\x04mesh\x01\0\x02h2");
        let only = ProxyHeaderSettings { pass: TlvFilter::Types(vec![2]), ..settings(ProxyProtocolVersion::V2) };
        assert_eq!(proxied(&only, &ip("10.0.0.1:5"), &ip("10.0.0.2:80"), &came)[28..], *b"\xe0\0\x04mesh");
    }

    proptest! {
        #[test]
        fn our_own_reader_reads_what_is_written(
            source in any::<([u8; 16], u16, bool)>(),
            destination in any::<([u8; 16], u16, bool)>(),
            v2 in any::<bool>(),
            tlvs in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..5),
        ) {
            let address = |(octets, port, v6): ([u8; 16], u16, bool)| {
                let v4: [u8; 4] = [octets[0], octets[1], octets[2], octets[3]];
                let ip = if v6 { IpAddr::from(octets) } else { IpAddr::from(v4) };
                Address::Ip(SocketAddr::new(ip, port))
            };
            let (source, destination) = (address(source), address(destination));
            let version = if v2 { ProxyProtocolVersion::V2 } else { ProxyProtocolVersion::V1 };
            let came: Vec<Tlv> = tlvs.into_iter().map(|(kind, value)| (kind, value.into())).collect();
            let header = proxied(&settings(version), &source, &destination, &came);
            let rules = ProxyProtocol {
                allow_without_header: false, allow_v1: true, allow_v2: true, keep: TlvFilter::Nothing, rules: Vec::new(),
            };
            let Parse::Complete(read) = proxy_protocol::parse(&header, &rules) else { panic!("{header:?}") };
            prop_assert_eq!(read.consumed, header.len());
            let read = read.addresses.unwrap();
            let canonical = |address: &Address| match address {
                Address::Ip(ip) => (ip.ip().to_canonical(), ip.port()),
                Address::Pipe { .. } | Address::Internal(_) => unreachable!(),
            };
            prop_assert_eq!(canonical(&read.source), canonical(&source));
            prop_assert_eq!(canonical(&read.destination), canonical(&destination));
        }
    }
}
