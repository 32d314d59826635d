//! Requests that two parties could read in two ways: each is refused, or passed on in one reading that nobody can mistake.
//!
//! The table is `corpus.txt`. All cases go over one proxy and its pooled connection to an endpoint that reads strictly. A
//! victim's request follows each on the same client connection, and another client's on the same upstream connection:
//! both get their own answers, or the first gets none because the connection was closed. Envoy reads the same table; where
//! its verdict is another one, the table says so with the reason, and `docs/http.md` tells it to users.
//!
//! `ONLY_CASE` chooses cases by a part of their names.

mod corpus;
mod strict;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use corpus::{Case, End};
use outrigger_tests::config::{self, bootstrap, chain, cluster_with, http};
use outrigger_tests::{Proxy, Settings, h1, proxy};
use strict::Endpoint;
use tokio::io::AsyncWriteExt;

/// Follows each case on the same connection.
const VICTIM: &str = "GET /victim HTTP/1.1\r\nhost: v\r\n\r\n";

/// Names of the listeners with their fields.
const LISTENERS: [(&str, &str); 6] = [
    ("plain", ""),
    ("trailers", ", http_protocol_options: { enable_trailers: true }"),
    ("lenient", ", http_protocol_options: { allow_chunked_length: true }"),
    ("http10", ", http_protocol_options: { accept_http_10: true }"),
    ("upgrade", ", upgrade_configs: [{ upgrade_type: websocket }]"),
    (
        "edge",
        ", normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: REJECT_REQUEST, \
         common_http_protocol_options: { headers_with_underscores_action: REJECT_REQUEST }",
    ),
];

/// `/closed` is what a path must not reach by another name.
const ROUTES: &str = "{ match: { prefix: /closed }, direct_response: { status: 403 } }, \
                      { match: { prefix: / }, route: { cluster: endpoint } }, \
                      { match: { safe_regex: { regex: '.*' } }, direct_response: { status: 404 } }";

/// Upstream protocol options by which trailers are passed on.
const TRAILERS: &str = ", typed_extension_protocol_options: { \
    envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
    explicit_http_config: { http_protocol_options: { enable_trailers: true } } } }";

/// A proxy with an endpoint of its own.
struct Side {
    proxy: Proxy,
    endpoint: Endpoint,
    listeners: Vec<SocketAddr>,
}

impl Side {
    async fn start(program: PathBuf) -> Self {
        let endpoint = Endpoint::start().await;
        let listener = |(name, more): &(&str, &str)| {
            let manager = http(name, &format!("{}, delayed_close_timeout: 0.05s{more}", config::routes(ROUTES)));
            config::listener(name, &[chain(&manager, "")], "")
        };
        let text =
            bootstrap(&LISTENERS.each_ref().map(listener), &[cluster_with("endpoint", &[endpoint.port()], TRAILERS)]);
        let proxy = Proxy::start_with(&text, Settings { program, ..Settings::default() }).await;
        let mut listeners = Vec::new();
        for (name, _) in LISTENERS {
            listeners.push(proxy.listener(name).await);
        }
        Self { proxy, endpoint, listeners }
    }

    fn listener(&self, name: &str) -> SocketAddr {
        let place = LISTENERS.iter().position(|(found, _)| *found == name);
        self.listeners[place.unwrap_or_else(|| panic!("no listener {name}"))]
    }

    /// What became of a case: statuses up to the victim's answer or the end of the connection, and behind a bar what the
    /// endpoint read.
    async fn verdict(&self, case: &Case) -> String {
        let mut client = h1::Client::connect(self.listener(&case.on)).await;
        let mut bytes = case.send.clone();
        if case.end == End::Victim {
            bytes.extend_from_slice(VICTIM.as_bytes());
        }
        client.send(&bytes).await;
        if case.end == End::Silence {
            drop(client.stream().shutdown().await);
        }
        let mut answers = Vec::new();
        let mut answered = Vec::new();
        loop {
            match client.try_response("GET").await {
                Ok(response) => {
                    answers.extend(response.interim.iter().map(u16::to_string));
                    answers.push(response.status.to_string());
                    let Some(of) = response.header("x-answer-to") else { continue };
                    answered.push(of.to_owned());
                    if of == "GET v/victim" {
                        break;
                    }
                }
                Err(error) if error.contains("in time") => break answers.push("waits".to_owned()),
                Err(_) => break answers.push("closed".to_owned()),
            }
        }
        // Whoever comes next on the pooled connection gets the answer to what it asked.
        let other = h1::get(self.listener("plain"), "/other").await;
        let other = (other.status, other.header("x-answer-to").map(str::to_owned));
        assert_eq!(other, (200, Some("GET example.com/other".to_owned())), "after {}", case.name);
        let mut read = self.endpoint.take();
        assert_eq!(read.pop().as_deref(), Some("GET example.com/other"), "after {}", case.name);
        let whole = read.iter().filter(|request| !request.starts_with('!'));
        let asked: Vec<&str> = whole.map(|request| request.split('=').next().unwrap_or_default()).collect();
        assert!(
            answered.iter().zip(&asked).all(|(answer, asked)| answer == asked),
            "{}: answers to {answered:?}, but the endpoint read {asked:?}",
            case.name
        );
        format!("{} | {}", answers.join(" "), read.join(", ")).trim().to_owned()
    }
}

#[tokio::test]
async fn every_request_has_one_reading() {
    let subject = Side::start(proxy::program()).await;
    let envoy = Side::start(proxy::envoy()).await;
    let only = std::env::var("ONLY_CASE").unwrap_or_default();
    let cases = corpus::cases(include_str!("corpus.txt"));
    assert!(cases.len() >= 80, "{} cases", cases.len());
    let mut report = String::new();
    for case in cases.iter().filter(|case| case.name.contains(&only)) {
        let (ours, theirs) = (subject.verdict(case).await, envoy.verdict(case).await);
        assert!(!case.want.contains('!'), "{}: nothing that the endpoint refuses is wanted", case.name);
        if ours != case.want {
            writeln!(report, "{}\n  want: {}\n  ours: {ours}", case.name, case.want).unwrap();
        }
        if theirs != *case.envoy.as_ref().unwrap_or(&case.want) {
            writeln!(report, "{}\n  envoy: {theirs}", case.name).unwrap();
        }
    }
    assert!(report.is_empty(), "other verdicts:\n{report}");
    // One connection for all listeners of a worker, unless one was in the middle of a request that was refused.
    assert!(subject.endpoint.connections() < cases.len(), "{} connections", subject.endpoint.connections());
    subject.proxy.stat_is("cluster.endpoint.upstream_cx_protocol_error", 0).await;
}
