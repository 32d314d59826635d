//! The PROXY protocol header of a check (<https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt>).
//!
//! Owns both versions, for a connection that is the proxy's own. Never reads one.

use std::net::SocketAddr;

use outrigger_config::cluster::ProxyProtocolVersion;

/// The header for a connection between these addresses, `None` where they are not IP addresses.
pub(super) fn header(version: ProxyProtocolVersion, addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    match (version, addresses) {
        (ProxyProtocolVersion::V1, Some((source, destination))) => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.ip(), destination.ip());
            format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
        }
        (ProxyProtocolVersion::V1, None) => b"PROXY UNKNOWN\r\n".to_vec(),
        // LOCAL: whoever connected is the sender itself, so there is nothing to say about addresses.
        (ProxyProtocolVersion::V2, _) => [SIGNATURE, &[0x20, 0, 0, 0]].concat(),
    }
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_tells_addresses_and_version_2_that_it_is_us() {
        let addresses = Some(("10.0.0.1:5".parse().unwrap(), "10.0.0.2:80".parse().unwrap()));
        let text = header(ProxyProtocolVersion::V1, addresses);
        assert_eq!(text, b"PROXY TCP4 10.0.0.1 10.0.0.2 5 80\r\n");
        assert_eq!(header(ProxyProtocolVersion::V1, None), b"PROXY UNKNOWN\r\n");
        let binary = header(ProxyProtocolVersion::V2, addresses);
        assert_eq!((binary.len(), &binary[12..]), (16, &[0x20, 0, 0, 0][..]));
    }
}
