//! TLVs of PROXY protocol headers that rules make metadata of: what the log of a TCP proxy tells of them, as by Envoy.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use outrigger_tests::config::{access_log_of, bootstrap, chain, cluster, listener, tcp_with};
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, Settings, eventually, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const RULES: &str = ", listener_filters: [{ name: proxy, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol, rules: [ \
    { tlv_type: 234, on_tlv_present: { key: endpoint } }, \
    { tlv_type: 2, on_tlv_present: { metadata_namespace: other, key: authority } }, \
    { tlv_type: 9, on_tlv_present: { key: absent } }] } }]";

const LOG: &str = "%DYNAMIC_METADATA(envoy.filters.listener.proxy_protocol:endpoint)% %DYNAMIC_METADATA(other:authority)% \
    %DYNAMIC_METADATA(envoy.filters.listener.proxy_protocol:absent)% %DOWNSTREAM_REMOTE_ADDRESS%";

/// A header of version 2 from 10.0.0.1:1000 to 10.0.0.2:80 with these TLVs, one after the other.
fn header(tlvs: &[u8]) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    bytes.extend_from_slice(&(12 + tlvs.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2, 3, 232, 0, 80]);
    bytes.extend_from_slice(tlvs);
    bytes
}

#[tokio::test]
async fn rules_make_metadata_of_tlvs() {
    for program in [proxy::program(), proxy::envoy()] {
        let peer = Peer::start(Conduct::Echo).await;
        let filter = tcp_with(&format!("cluster: peer{}", access_log_of("log.txt", LOG)));
        let text = bootstrap(&[listener("tcp", &[chain(&filter, "")], RULES)], &[cluster("peer", &[peer.port()])]);
        let proxy = Proxy::start_with(&text, Settings { program: program.clone(), ..Settings::default() }).await;
        let address = proxy.listener("tcp").await;
        let tlvs: &[&[u8]] = &[b"\xea\0\x05vpc-1\x02\0\x03a\xffb\x05\0\x01z", b"\xea\0\x01x\xea\0\x01y", b""];
        for tlvs in tlvs {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(&[&header(tlvs)[..], b"hello"].concat()).await.unwrap();
            let mut echo = [0; 5];
            within("the echo", client.read_exact(&mut echo)).await.unwrap();
            assert_eq!(&echo, b"hello", "{program:?}");
        }
        eventually("the log", async || {
            let log = std::fs::read_to_string(proxy.file("log.txt")).unwrap_or_default();
            let mut lines: Vec<&str> = log.lines().collect();
            lines.sort_unstable();
            let expected = ["- - - 10.0.0.1:1000", "vpc-1 a!b - 10.0.0.1:1000", "x - - 10.0.0.1:1000"];
            if lines == expected { Ok(()) } else { Err(format!("{program:?}: {log}")) }
        })
        .await;
    }
}
