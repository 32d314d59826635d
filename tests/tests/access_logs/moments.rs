//! When entries are written, and which of them filters let through, beside Envoy.

use std::path::PathBuf;

use outrigger_tests::config::{self, bootstrap, chain, http, routes, tcp_with};
use outrigger_tests::tcp::{ClosedPort, Conduct, Peer};
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::setup::{clusters, file, logs, text};

const LINE: &str = "%ACCESS_LOG_TYPE% %RESPONSE_CODE% %PATH% %UPSTREAM_CLUSTER%";

/// Filters by the name of their file, each with the fields of an `AccessLogFilter`.
const FILTERS: &[(&str, &str)] = &[
    ("types", "log_type_filter: { types: [DownstreamStart] }"),
    ("other-types", "log_type_filter: { types: [DownstreamStart], exclude: true }"),
    (
        "cel",
        "extension_filter: { name: cel, typed_config: { '@type': type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter, expression: \"response.code >= 400 && request.path.startsWith('/n')\" } }",
    ),
    (
        "cel-error",
        "extension_filter: { name: cel, typed_config: { '@type': type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter, expression: \"request.headers['none'] == 'a'\" } }",
    ),
    (
        "cel-text",
        "extension_filter: { name: cel, typed_config: { '@type': type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter, expression: \"request.path\" } }",
    ),
    (
        "metadata",
        "metadata_filter: { matcher: { filter: none, path: [{ key: k }], value: { bool_match: true } }, match_if_key_not_found: true }",
    ),
    (
        "metadata-strict",
        "metadata_filter: { matcher: { filter: none, path: [{ key: k }], value: { bool_match: true } }, match_if_key_not_found: false }",
    ),
    (
        "metadata-default",
        "metadata_filter: { matcher: { filter: none, path: [{ key: k }], value: { bool_match: true } } }",
    ),
];

/// The lines of all files, by name.
async fn http_lines(program: PathBuf, bootstrap: &str) -> Vec<(String, Vec<String>)> {
    let mut proxy = Proxy::start_with(bootstrap, Settings { program, ..Settings::default() }).await;
    let web = proxy.listener("web").await;
    for (round, target) in ["/a", "/none", "/gone"].into_iter().enumerate() {
        h1::Client::connect(web).await.request("GET", target, &[], b"").await;
        proxy.lines("all", 2 * (round + 1)).await;
    }
    // What never comes cannot be waited for; at the end everything is written.
    proxy.signal("TERM").await;
    proxy.exit().await;
    let names = ["all", "upstream"].into_iter().chain(FILTERS.iter().map(|(name, _)| *name));
    let read = |name: &str| std::fs::read_to_string(proxy.file(name)).unwrap_or_default();
    names.map(|name| (name.to_owned(), read(name).lines().map(str::to_owned).collect())).collect()
}

#[tokio::test]
async fn entries_come_when_they_do_with_envoy() {
    let upstream = Upstream::start("a").await;
    let gone = ClosedPort::take();
    let filtered = FILTERS.iter().map(|(name, filter)| file(name, &text(LINE), &format!(", filter: {{ {filter} }}")));
    let all: Vec<String> = std::iter::once(file("all", &text(LINE), "")).chain(filtered).collect();
    let all_routes =
        "{ match: { prefix: /gone }, route: { cluster: gone } }, { match: { prefix: /a }, route: { cluster: one } }";
    let options = ", access_log_options: { flush_access_log_on_new_request: true }";
    let manager = http("web", &format!("{}{}{options}", logs(&all), routes(all_routes)));
    let line = "%ACCESS_LOG_TYPE% %RESPONSE_FLAGS% %PATH% %UPSTREAM_CLUSTER%";
    let upstream_log = format!(", upstream_log: [{}] }} }}]", file("upstream", &text(line), ""));
    let manager = manager.replace("router.v3.Router } }]", &format!("router.v3.Router{upstream_log}"));
    let listener = config::listener("web", &[chain(&manager, "")], "");
    let bootstrap = bootstrap(&[listener], &clusters(upstream.port(), gone.port()));
    let envoy = http_lines(proxy::envoy(), &bootstrap).await;
    assert_eq!(envoy.iter().find(|(name, _)| name == "types").map(|(_, lines)| lines.len()), Some(3), "{envoy:?}");
    assert_eq!(http_lines(proxy::program(), &bootstrap).await, envoy);
}

async fn tcp_lines(program: PathBuf, bootstrap: &str) -> Vec<String> {
    let proxy = Proxy::start_with(bootstrap, Settings { program, ..Settings::default() }).await;
    let mut stream = TcpStream::connect(proxy.listener("tcp").await).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut echoed = [0; 5];
    within("the echo", stream.read_exact(&mut echoed)).await.unwrap();
    drop(stream);
    proxy.lines("tcp", 3).await
}

#[tokio::test]
async fn sessions_are_logged_when_they_begin_connect_and_end() {
    let peer = Peer::start(Conduct::Echo).await;
    let line = "%ACCESS_LOG_TYPE% %UPSTREAM_CLUSTER% %UPSTREAM_HOST% %BYTES_RECEIVED% %DOWNSTREAM_WIRE_BYTES_SENT%";
    let options = "access_log_options: { flush_access_log_on_connected: true, flush_access_log_on_start: true }";
    let log = logs(&[file("tcp", &text(line), "")]);
    let listener = config::listener("tcp", &[chain(&tcp_with(&format!("cluster: one, {options}{log}")), "")], "");
    let gone = ClosedPort::take();
    let bootstrap = bootstrap(&[listener], &clusters(peer.address().port(), gone.port()));
    assert_eq!(tcp_lines(proxy::program(), &bootstrap).await, tcp_lines(proxy::envoy(), &bootstrap).await);
}

#[tokio::test]
async fn a_request_that_lasts_is_logged_again_and_again() {
    let upstream = Upstream::start("a").await;
    let options = ", access_log_options: { access_log_flush_interval: 0.02s }";
    let log = logs(&[file("lasts", &text("%ACCESS_LOG_TYPE% %RESPONSE_CODE%"), "")]);
    let manager = http("web", &format!("{log}{}{options}", routes(&config::all_to("one"))));
    let listener = config::listener("web", &[chain(&manager, "")], "");
    let gone = ClosedPort::take();
    let proxy = Proxy::start(&bootstrap(&[listener], &clusters(upstream.port(), gone.port()))).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    upstream.close_gate();
    client.send(h1::request_bytes("GET", "/", &[("x-reply", "gate")], b"")).await;
    let lines = proxy.lines("lasts", 3).await;
    assert!(lines.iter().all(|line| line == "DownstreamPeriodic 0"), "{lines:?}");
    upstream.open_gate();
    assert_eq!(client.response("GET").await.status, 200);
    // The connection goes on without a request.
    assert_eq!(client.get("/").await.status, 200);
    let whole = outrigger_tests::eventually("the last entries", async || {
        let lines = proxy.lines("lasts", 1).await;
        let ends = lines.iter().filter(|line| *line == "DownstreamEnd 200").count();
        if ends == 2 { Ok(lines) } else { Err(format!("{lines:?}")) }
    })
    .await;
    assert_eq!(whole.last().map(String::as_str), Some("DownstreamEnd 200"));
}
