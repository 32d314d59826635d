//! Filter chains that a match tree names: the same connections for Envoy and for the proxy under test.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use outrigger_tests::certificates::Authority;
use outrigger_tests::config::{bootstrap, cluster, listener, tcp};
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, Settings, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A chain whose peer says its name.
fn chain(name: &str) -> String {
    format!("{{ name: '{name}', filters: [{}] }}", tcp(name))
}

/// `$INPUT/` begins an input, `$NAME` a named chain, up to a comma or a bracket.
fn expanded(tree: &str) -> String {
    let mut out = String::new();
    let mut rest = tree;
    while let Some(start) = rest.find('$') {
        out.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        let end = rest.find([' ', ',', '}', ']']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        out.push_str(&match word.strip_prefix("INPUT/") {
            Some(input) => format!(
                "{{ name: i, typed_config: {{ '@type': \
                 type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.{input}Input }} }}"
            ),
            None => format!(
                "{{ action: {{ name: a, typed_config: {{ '@type': type.googleapis.com/google.protobuf.StringValue, \
                 value: '{word}' }} }} }}"
            ),
        });
        rest = after;
    }
    out.push_str(rest);
    out
}

const TLS_INSPECTOR: &str = "{ name: t, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }";
const HTTP_INSPECTOR: &str = "{ name: h, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector } }";

/// Listener, names of its chains, whether there is a default one, and its tree.
type Case = (&'static str, &'static [&'static str], bool, &'static str);

const CASES: &[Case] = &[
    (
        "source",
        &["a", "b"],
        false,
        "{ matcher_tree: { input: $INPUT/SourceIP, exact_match_map: { map: { '127.0.0.1': $a } } }, on_no_match: $b }",
    ),
    (
        "nowhere",
        &["a"],
        true,
        "{ matcher_tree: { input: $INPUT/SourceIP, exact_match_map: { map: { '1.0.0.1': $a } } } }",
    ),
    (
        "unknown",
        &["a"],
        true,
        "{ matcher_tree: { input: $INPUT/SourceIP, exact_match_map: { map: { '127.0.0.1': $x } } } }",
    ),
    (
        "port",
        &["a", "b"],
        false,
        "{ matcher_tree: { input: $INPUT/DestinationPort, exact_match_map: { map: { '1': $a } } }, on_no_match: $b }",
    ),
    (
        "local",
        &["a", "b"],
        false,
        "{ matcher_tree: { input: $INPUT/SourceType, exact_match_map: { map: { local: $a } } }, on_no_match: $b }",
    ),
    (
        "transport",
        &["raw", "tls", "other"],
        false,
        "{ matcher_tree: { input: $INPUT/TransportProtocol, exact_match_map: { map: { raw_buffer: $raw, tls: $tls } } }, \
         on_no_match: $other }",
    ),
    (
        "protocols",
        &["h11", "both", "h2c", "other"],
        false,
        "{ matcher_tree: { input: $INPUT/ApplicationProtocol, exact_match_map: { map: { \"'http/1.1'\": $h11, \
         \"'h2','http/1.1'\": $both, \"'h2c'\": $h2c } } }, on_no_match: $other }",
    ),
    (
        "networks",
        &["all", "wide", "never", "other"],
        false,
        "{ matcher_tree: { input: $INPUT/SourceIP, custom_match: { name: ip, typed_config: { \
         '@type': type.googleapis.com/xds.type.matcher.v3.IPMatcher, range_matchers: [ \
         { ranges: [{ address_prefix: 0.0.0.0, prefix_len: 0 }], on_match: $all }, \
         { ranges: [{ address_prefix: 10.0.0.0, prefix_len: 8 }, { address_prefix: 127.0.0.0, prefix_len: 8 }], \
           on_match: $wide , exclusive: true }, \
         { ranges: [{ address_prefix: 127.0.0.1, prefix_len: 32 }], on_match: { matcher: { matcher_tree: { \
           input: $INPUT/SourcePort, exact_match_map: { map: { '1': $never } } } } } }] } } }, on_no_match: $other }",
    ),
    (
        "smallest",
        &["wide", "narrow"],
        false,
        "{ matcher_tree: { input: $INPUT/DestinationIP, custom_match: { name: ip, typed_config: { \
         '@type': type.googleapis.com/xds.type.matcher.v3.IPMatcher, range_matchers: [ \
         { ranges: [{ address_prefix: 127.0.0.0, prefix_len: 8 }], on_match: $wide }, \
         { ranges: [{ address_prefix: 127.0.0.1, prefix_len: 32 }], on_match: $narrow }] } } } }",
    ),
    (
        "domains",
        &["ab", "xb", "any", "never", "c", "other"],
        false,
        "{ matcher_tree: { input: $INPUT/ServerName, custom_match: { name: sn, typed_config: { \
         '@type': type.googleapis.com/xds.type.matcher.v3.ServerNameMatcher, domain_matchers: [ \
         { domains: ['*'], on_match: $any }, \
         { domains: [a.example, '*.b.example'], on_match: $ab }, \
         { domains: ['*.x.b.example'], on_match: $xb }, \
         { domains: [nest.c.example], on_match: { matcher: { matcher_tree: { \
           input: $INPUT/SourcePort, exact_match_map: { map: { '1': $never } } } } } }, \
         { domains: ['*.c.example'], on_match: $c }] } } }, on_no_match: $other }",
    ),
    (
        "list",
        &["a", "b"],
        false,
        "{ matcher_list: { matchers: [ \
         { predicate: { and_matcher: { predicate: [ \
           { single_predicate: { input: $INPUT/ServerName, value_match: { suffix: .example } } }, \
           { not_matcher: { single_predicate: { input: $INPUT/ServerName, value_match: { prefix: q. } } } }] } }, \
           on_match: $a }] }, on_no_match: $b }",
    ),
];

/// The first bytes of a TLS client.
fn hello(name: &str, alpn: &[&str]) -> Vec<u8> {
    let config: Arc<rustls::ClientConfig> = Authority::new().client(alpn, None);
    let name = name.to_owned().try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(config, name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a hello");
    bytes
}

async fn answer(address: SocketAddr, first: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a listener");
    // A connection that no chain takes may be closed before all was sent.
    let _ = stream.write_all(first).await;
    let mut heard = Vec::new();
    // Envoy forgets a client that ends its half before there is a peer.
    if matches!(within("a greeting", stream.read_buf(&mut heard)).await, Ok(1..)) {
        let _ = stream.shutdown().await;
        let _ = within("the end", stream.read_to_end(&mut heard)).await;
    }
    String::from_utf8_lossy(&heard).into_owned()
}

async fn chosen(program: PathBuf) -> Vec<String> {
    let names: BTreeSet<&str> = CASES.iter().flat_map(|(_, chains, ..)| *chains).copied().chain(["default"]).collect();
    let (mut peers, mut clusters) = (Vec::new(), Vec::new());
    for name in names {
        let peer = Peer::start(Conduct::Greet(name.into())).await;
        clusters.push(cluster(name, &[peer.port()]));
        peers.push(peer);
    }
    let listeners: Vec<String> = CASES
        .iter()
        .map(|(name, chains, default, tree)| {
            let chains: Vec<String> = chains.iter().map(|name| chain(name)).collect();
            let default =
                if *default { format!(", default_filter_chain: {}", chain("default")) } else { String::new() };
            let more = format!(
                ", listener_filters: [{TLS_INSPECTOR}, {HTTP_INSPECTOR}], filter_chain_matcher: {}{default}",
                expanded(tree)
            );
            listener(name, &chains, &more)
        })
        .collect();
    let proxy = Proxy::start_with(&bootstrap(&listeners, &clusters), Settings { program, ..Settings::default() }).await;
    let mut connections = vec![
        ("HTTP/1".to_owned(), b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec()),
        ("HTTP/2".to_owned(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("two protocols".to_owned(), hello("q.example", &["h2", "http/1.1"])),
        ("one protocol".to_owned(), hello("q.example", &["http/1.1"])),
    ];
    for name in ["a.example", "b.example", "q.b.example", "q.x.b.example", "nest.c.example", "q.c.example"] {
        connections.push((name.to_owned(), hello(name, &[])));
    }
    let mut seen = Vec::new();
    for (name, ..) in CASES {
        let address = proxy.listener(name).await;
        for (what, first) in &connections {
            seen.push(format!("{name}, {what}: {}", answer(address, first).await));
        }
    }
    seen
}

#[tokio::test]
async fn trees_choose_filter_chains_as_with_envoy() {
    let seen = chosen(proxy::program()).await;
    let of = |line: &str| seen.iter().any(|seen| seen == line);
    for line in ["source, HTTP/1: a", "nowhere, HTTP/1: default", "unknown, HTTP/1: ", "networks, HTTP/1: all"] {
        assert!(of(line), "{line}: {seen:#?}");
    }
    assert_eq!(seen, chosen(proxy::envoy()).await);
}
