//! Options of connection managers about clients, certificates and failures: the same configuration and requests for Envoy and
//! for the proxy under test. Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_tests::certificates::{self, Authority, Identity};
use outrigger_tests::config::{self, access_log_of, bootstrap, chain, cluster, cluster_with, http};
use outrigger_tests::side_by_side::{Case, Intended, chain_of, get, same};
use outrigger_tests::tcp::ClosedPort;
use outrigger_tests::{Proxy, Settings, Upstream, h1, h2c, proxy};

/// Differences that are meant, by case and the thing that differs; each with its reason.
const INTENDED: Intended = &[
    ("*", ", delayed ", "how long it took depends on the machine; the log tells the code, too"),
    (
        "append: ",
        "header x-forwarded-for: ",
        "for a client on loopback Envoy names an address of the machine; we name the client",
    ),
];

/// What each log line tells besides code, flags and details.
const LOG: &str = " %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT% %REQ(:SCHEME)% \
                   %REQ(X-FORWARDED-PROTO)%";

/// A listener: its name, and fields of its connection manager. `$XFF` and `$HEADER` begin detection extensions.
const LISTENERS: &[(&str, &str)] = &[
    ("plain", ""),
    ("edge", ", use_remote_address: true"),
    ("edge-hops", ", use_remote_address: true, xff_num_trusted_hops: 1, skip_xff_append: true"),
    ("forwarded", ", original_ip_detection_extensions: [$XFF }}]"),
    ("hops", ", original_ip_detection_extensions: [$XFF, xff_num_trusted_hops: 1 }}]"),
    ("appended", ", original_ip_detection_extensions: [$XFF, skip_xff_append: false }}]"),
    (
        "networks",
        ", original_ip_detection_extensions: [$XFF, xff_trusted_cidrs: { cidrs: [ \
         { address_prefix: 127.0.0.0, prefix_len: 8 }, { address_prefix: 192.168.0.0, prefix_len: 16 }] } }}]",
    ),
    (
        "strangers",
        ", original_ip_detection_extensions: [$XFF, xff_trusted_cidrs: { cidrs: [ \
         { address_prefix: 192.168.0.0, prefix_len: 16 }] } }}]",
    ),
    ("no-networks", ", original_ip_detection_extensions: [$XFF, xff_trusted_cidrs: {} }}]"),
    ("header", ", original_ip_detection_extensions: [$HEADER }}]"),
    (
        "trusted-header",
        ", original_ip_detection_extensions: [$HEADER, allow_extension_to_set_address_as_trusted: true, \
         reject_with_status: { code: 401 } }}]",
    ),
    ("other-status", ", original_ip_detection_extensions: [$HEADER, reject_with_status: { code: 302 } }}]"),
    ("both", ", original_ip_detection_extensions: [$HEADER }}, $XFF }}]"),
    ("scheme", ", scheme_header_transformation: { scheme_to_overwrite: https }"),
    ("mapped", ", use_remote_address: true, represent_ipv4_remote_address_as_ipv4_mapped_ipv6: true"),
    ("status", ", proxy_status_config: {}"),
    ("status-bare", ", server_name: me, proxy_status_config: { remove_details: true, remove_response_flags: true }"),
    ("status-name", ", proxy_status_config: { literal_proxy_name: edge, remove_response_flags: true }"),
    (
        "status-node",
        ", proxy_status_config: { use_node_id: true, remove_connection_termination_details: true, \
         set_recommended_response_code: true }",
    ),
];

const ROUTES: &str = "\
    { match: { prefix: /nobody }, route: { cluster: nobody } }, \
    { match: { prefix: /nowhere }, route: { cluster: nowhere } }, \
    { match: { prefix: /empty }, route: { cluster: empty } }, \
    { match: { prefix: /full }, route: { cluster: full } }, \
    { match: { prefix: /late }, route: { cluster: one, timeout: 0.1s } }, \
    { match: { prefix: /again }, route: { cluster: one, timeout: 0s, retry_policy: { retry_on: 5xx, num_retries: 1 } } }, \
    { match: { prefix: /said }, direct_response: { status: 503 } }, \
    { match: { prefix: /one }, route: { cluster: one } }";

const SINGLE: (&str, &str) = ("x-forwarded-for", "10.0.0.1");
const PAIR: (&str, &str) = ("x-forwarded-for", "10.0.0.1,192.168.1.1");
const CHAIN: (&str, &str) = ("x-forwarded-for", "10.0.0.1, 1.2.3.4,192.168.1.1");

const CASES: &[Case] = &[
    get("client: nobody says", "plain", "/one", &[]),
    get("client: one address", "plain", "/one", &[SINGLE]),
    get("client: two headers", "plain", "/one", &[PAIR, ("x-forwarded-for", "1.2.3.4")]),
    get("client: not the last is an address", "plain", "/one", &[("x-forwarded-for", "x,192.168.1.1")]),
    get("client: the last is no address", "plain", "/one", &[("x-forwarded-for", "10.0.0.1,x")]),
    get("append: at the edge", "edge", "/one", &[]),
    get("append: at the edge, to two headers", "edge", "/one", &[PAIR, ("x-forwarded-for", "1.2.3.4")]),
    get("client: behind a proxy at the edge", "edge-hops", "/one", &[CHAIN]),
    get("client: behind a proxy that says nothing", "edge-hops", "/one", &[]),
    get("client: by extension", "forwarded", "/one", &[SINGLE]),
    get("client: by extension, two", "forwarded", "/one", &[PAIR]),
    get("client: by extension, nobody says", "forwarded", "/one", &[]),
    get("client: behind a hop", "hops", "/one", &[CHAIN]),
    get("client: no further than its hops", "hops", "/one", &[SINGLE]),
    get("append: by extension", "appended", "/one", &[PAIR]),
    get("append: by extension, first", "appended", "/one", &[]),
    get("client: beyond networks", "networks", "/one", &[CHAIN]),
    get("client: beyond networks, one", "networks", "/one", &[SINGLE]),
    get("client: within networks", "networks", "/one", &[("x-forwarded-for", "192.168.0.9,192.168.1.1")]),
    get("client: no address beyond networks", "networks", "/one", &[("x-forwarded-for", "x,192.168.1.1")]),
    get("client: nobody says within networks", "networks", "/one", &[]),
    get("append: what strangers say", "strangers", "/one", &[CHAIN]),
    get("append: a stranger", "strangers", "/one", &[]),
    get("client: no networks", "no-networks", "/one", &[PAIR]),
    get("client: by another header", "header", "/one", &[("x-client", "10.0.0.7"), SINGLE]),
    get("client: by another header, IPv6", "header", "/one", &[("x-client", "2001:db8::1")]),
    get("client: by another header, no address", "header", "/one", &[("x-client", "[::1]:80"), SINGLE]),
    get("client: by another header, twice", "header", "/one", &[("x-client", "10.0.0.7"), ("x-client", "x")]),
    get("client: trusted header", "trusted-header", "/one", &[("x-client", "10.0.0.7")]),
    get("client: trusted header of a stranger", "trusted-header", "/one", &[("x-client", "9.9.9.9")]),
    get("client: trusted header is missing", "trusted-header", "/one", &[SINGLE]),
    get("client: trusted header is no address", "trusted-header", "/one", &[("x-client", "x")]),
    get("client: refused with another status", "other-status", "/one", &[]),
    get("client: first extension", "both", "/one", &[("x-client", "10.0.0.7"), SINGLE]),
    get("client: second extension", "both", "/one", &[("x-client", "x"), SINGLE]),
    get("scheme: of the proxy in front", "plain", "/one", &[("x-forwarded-proto", "https")]),
    get("scheme: unknown to us", "plain", "/one", &[("x-forwarded-proto", "ftp")]),
    get("append: scheme at the edge", "edge", "/one", &[("x-forwarded-proto", "https")]),
    get("scheme: overwritten", "scheme", "/one", &[("x-forwarded-proto", "http")]),
    get("append: not mapped", "mapped", "/one", &[]),
    get("status: of a success", "status", "/one", &[]),
    get("status: of an answer of the upstream", "status", "/one", &[("x-reply", "status=503")]),
    get("status: nobody listens", "status", "/nobody", &[]),
    get("status: no cluster", "status", "/nowhere", &[]),
    get("status: no endpoint", "status", "/empty", &[]),
    get("status: limit", "status", "/full", &[]),
    get("status: too late", "status", "/late", &[("x-reply", "hang")]),
    get("status: tried again in vain", "status", "/again", &[("x-reply", "status=503")]),
    get("status: no route", "status", "/unknown", &[]),
    get("status: direct response", "status", "/said", &[]),
    get("status: after another's", "status", "/again", &[("x-reply", "status=503 header=proxy-status:next;error=x")]),
    get("status: bare", "status-bare", "/empty", &[]),
    get("status: name", "status-name", "/empty", &[]),
    get("status: node", "status-node", "/empty", &[]),
    get("status: recommended code", "status-node", "/nobody", &[]),
    get("status: recommended code for no route", "status-node", "/unknown", &[]),
];

fn listener((name, manager): &(&str, &str)) -> String {
    let log = access_log_of(
        &format!("{name}.log"),
        &format!("%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%{LOG}"),
    );
    let table = format!(
        ", route_config: {{ name: local, validate_clusters: false, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{ROUTES}] }}] }}"
    );
    let internal = ", internal_address_config: { cidr_ranges: [{ address_prefix: 10.0.0.0, prefix_len: 8 }] }";
    let detection = |kind: &str| {
        format!(
            "{{ name: d, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.http.original_ip_detection.{kind}"
        )
    };
    let manager = manager
        .replace("$XFF", &detection("xff.v3.XffConfig"))
        .replace("$HEADER", &detection("custom_header.v3.CustomHeaderConfig, header_name: X-Client"));
    config::listener(name, &[chain(&http(name, &format!("{table}{internal}{manager}{log}")), "")], "")
}

#[tokio::test]
async fn clients_and_failures_are_told_as_by_envoy() {
    let one = Upstream::start("one").await;
    let closed = ClosedPort::take();
    let none = ", circuit_breakers: { thresholds: [{ max_connections: 0, max_pending_requests: 0, max_requests: 0 }] }";
    let clusters = [
        cluster("one", &[one.port()]),
        cluster("nobody", &[closed.port()]),
        cluster("empty", &[]),
        cluster_with("full", &[one.port()], none),
    ];
    let listeners: Vec<String> = LISTENERS.iter().map(listener).collect();
    let chains: Vec<_> = LISTENERS.iter().map(|(name, _)| chain_of(name, &[], "")).collect();
    same(&bootstrap(&listeners, &clusters), &chains, CASES, INTENDED).await;
}

/// What is forwarded of a request to each port that a PROXY protocol header names.
async fn schemes_by_port(program: PathBuf) -> Vec<String> {
    let one = Upstream::start("one").await;
    let filter = ", listener_filters: [{ name: p, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol } }]";
    let of = |name: &str, more: &str| {
        let ports = ", forward_proto_config: { https_destination_ports: [443, 90], http_destination_ports: [80, 90] }";
        let routes = config::routes(&config::all_to("one"));
        config::listener(name, &[chain(&http(name, &format!("{routes}{ports}{more}")), "")], filter)
    };
    let appended = ", append_x_forwarded_port: true";
    let listeners = [of("inside", appended), of("edge", &format!("{appended}, use_remote_address: true"))];
    let text = bootstrap(&listeners, &[cluster("one", &[one.port()])]);
    let proxy = Proxy::start_with(&text, Settings { program, ..Settings::default() }).await;
    let mut seen = Vec::new();
    for name in ["inside", "edge"] {
        let address = proxy.listener(name).await;
        for port in [443, 80, 90, 8080] {
            for said in [None, Some("ftp")] {
                let mut client = h1::Client::connect(address).await;
                client.send(format!("PROXY TCP4 1.2.3.4 127.0.0.1 5555 {port}\r\n").into_bytes()).await;
                let headers: &[(&str, &str)] = match said {
                    Some(said) => &[("x-forwarded-proto", said), ("x-forwarded-port", "1")],
                    None => &[],
                };
                let response = client.request("GET", "/", headers, b"").await;
                let told = ["x-forwarded-proto", "x-forwarded-port"].map(|name| response.upstream_header(name));
                let [scheme, told_port] = told.map(Option::unwrap_or_default);
                seen.push(format!("{name} {port} {said:?}: {scheme} {told_port}"));
            }
        }
    }
    seen
}

#[tokio::test]
async fn ports_tell_the_scheme_as_with_envoy() {
    let seen = schemes_by_port(proxy::program()).await;
    assert_eq!(seen[0], "inside 443 None: https 443");
    assert_eq!(seen[1], "inside 443 Some(\"ftp\"): ftp 1");
    assert_eq!(seen, schemes_by_port(proxy::envoy()).await);
}

/// What each listener of client certificates does: fields of its connection manager.
const FORWARDING: &[(&str, &str)] = &[
    ("text", "forward_client_cert_details: SANITIZE_SET, set_current_client_cert_details: { $ALL }"),
    ("json", "forward_client_cert_details: SANITIZE_SET, set_current_client_cert_details: { $ALL, format: JSON }"),
    (
        "pem",
        "forward_client_cert_details: SANITIZE_SET, set_current_client_cert_details: { cert: true, chain: true, format: JSON }",
    ),
    (
        "url-pem",
        "forward_client_cert_details: SANITIZE_SET, set_current_client_cert_details: { cert: true, chain: true }",
    ),
    ("added", "forward_client_cert_details: APPEND_FORWARD, set_current_client_cert_details: { $ALL }"),
    (
        "added-json",
        "forward_client_cert_details: APPEND_FORWARD, set_current_client_cert_details: { $ALL, format: JSON }",
    ),
    (
        "matched",
        "forward_client_cert_matcher: { matcher_tree: { input: { name: i, typed_config: { \
         '@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x-kind } }, \
         exact_match_map: { map: { keep: { action: { name: a, typed_config: { $ACTION, \
         forward_client_cert_details: ALWAYS_FORWARD_ONLY } } }, own: { action: { name: a, typed_config: { $ACTION, \
         forward_client_cert_details: SANITIZE_SET, set_current_client_cert_details: { uri: true } } } } } } } }",
    ),
];

const CERTIFICATE_CASES: &[(&str, &[(&str, &str)])] = &[
    ("nothing", &[]),
    ("text", &[(XFCC, "By=1;Hash=2")]),
    ("an array", &[(XFCC, "[{\"hash\":\"x\"}]")]),
    ("half an array", &[(XFCC, "[broken")]),
    ("both", &[(XFCC, "[{\"hash\":\"x\"}]"), (XFCC, "Hash=3")]),
    ("an empty one", &[(XFCC, "")]),
    ("kept", &[("x-kind", "keep"), (XFCC, "By=1")]),
    ("replaced", &[("x-kind", "own"), (XFCC, "By=1")]),
];
const XFCC: &str = "x-forwarded-client-cert";

async fn forwarded_certificates(program: PathBuf, authority: &Authority, clients: &[Option<Identity>]) -> Vec<String> {
    let one = Upstream::start("one").await;
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("ca.pem"), authority.pem()).expect("a file");
    authority.issue_workload("spiffe://x/server", &["proxy.example"], "server").write(directory.path(), "server");
    let tls = ", transport_socket: { name: tls, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
        common_tls_context: { validation_context: { trusted_ca: { filename: $dir/ca.pem } }, \
        tls_certificates: [{ certificate_chain: { filename: $dir/server.crt }, \
        private_key: { filename: $dir/server.key } }] } } }";
    let types = "'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let listeners: Vec<String> = FORWARDING
        .iter()
        .map(|(name, fields)| {
            let fields = fields
                .replace("$ALL", "subject: true, dns: true, uri: true, issuer: true")
                .replace("$ACTION", &format!("{types}.ForwardClientCertConfig"));
            let routes = config::routes(&config::all_to("one"));
            config::listener(name, &[chain(&http(name, &format!("{routes}, {fields}")), tls)], "")
        })
        .collect();
    let text = bootstrap(&listeners, &[cluster("one", &[one.port()])]);
    let proxy = Proxy::start_in(directory, &text, Settings { program, ..Settings::default() }).await;
    let mut seen = Vec::new();
    for (name, _) in FORWARDING {
        let address = proxy.listener(name).await;
        for (index, identity) in clients.iter().enumerate() {
            for (case, headers) in CERTIFICATE_CASES {
                let config: Arc<rustls::ClientConfig> = authority.client(&[], identity.as_ref());
                let stream = certificates::connect(address, "proxy.example", config).await.expect("a handshake");
                let response = h1::Client::over(Box::new(stream)).request("GET", "/", headers, b"").await;
                let told = response.upstream_header(XFCC).unwrap_or_else(|| "none".to_owned());
                seen.push(format!("{name}, client {index}, {case}: {told}"));
            }
        }
    }
    seen
}

#[tokio::test]
async fn certificates_are_forwarded_as_by_envoy() {
    let authority = Authority::new();
    let clients = [
        Some(authority.issue_workload("spiffe://x/client", &["c.example"], "client; \"x\", \\y")),
        Some(authority.issue(&["bare.example"])),
        None,
    ];
    let expected = forwarded_certificates(proxy::envoy(), &authority, &clients).await;
    let seen = forwarded_certificates(proxy::program(), &authority, &clients).await;
    assert!(
        expected.iter().any(|line| line.contains("Issuer="))
            && expected.iter().any(|line| line.contains("\"issuer\":"))
    );
    for (expected, seen) in expected.iter().zip(&seen) {
        assert_eq!(seen, expected);
    }
}

/// Whether requests for upgrades are upgrades after all.
async fn upgrades(program: PathBuf) -> Vec<String> {
    let one = Upstream::start("one").await;
    let options = ", http_protocol_options: { ignore_http_11_upgrade: [{ prefix: web }] }, \
        upgrade_configs: [{ upgrade_type: other }]";
    let manager = http("web", &format!("{}{options}", config::routes(&config::all_to("one"))));
    let text = bootstrap(&[config::listener("web", &[chain(&manager, "")], "")], &[cluster("one", &[one.port()])]);
    let proxy = Proxy::start_with(&text, Settings { program, ..Settings::default() }).await;
    let address = proxy.listener("web").await;
    let mut seen = Vec::new();
    for protocol in ["websocket", "WebSocket", "unknown", "websocket, other", "webx"] {
        let headers = [("connection", "upgrade"), ("upgrade", protocol)];
        let response = h1::Client::connect(address).await.request("GET", "/", &headers, b"").await;
        let asked = (response.status == 200).then(|| response.upstream_header("upgrade")).flatten();
        let asked = asked.unwrap_or_else(|| "none".to_owned());
        seen.push(format!("{protocol}: {} {asked}", response.status));
    }
    // HTTP/2 has no such header.
    let response = h2c::Client::connect(address).await.request("GET", "/", &[], b"").await;
    seen.push(format!("HTTP/2: {}", response.status));
    seen
}

#[tokio::test]
async fn ignored_upgrades_are_plain_requests_as_with_envoy() {
    let seen = upgrades(proxy::program()).await;
    assert_eq!(seen[0], "websocket: 200 none");
    assert_eq!(seen, upgrades(proxy::envoy()).await);
}

/// Waits until this much time has passed here, and so everywhere on this machine.
async fn pass(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        tokio::task::yield_now().await;
    }
}

/// How connections end that have lasted long enough.
async fn ages(program: PathBuf) -> Vec<String> {
    let one = Upstream::start("one").await;
    let of = |name: &str, more: &str| {
        let old = "max_connection_duration: 0.5s, max_connection_duration_jitter: { value: 10 }";
        let options = format!(
            ", common_http_protocol_options: {{ {old} }}, drain_timeout: 0.01s, drain_timeout_jitter: {{ value: 50 }}{more}"
        );
        let routes = config::routes(&config::all_to("one"));
        config::listener(name, &[chain(&http(name, &format!("{routes}{options}")), "")], "")
    };
    let listeners = [of("usual", ""), of("safe", ", http1_safe_max_connection_duration: true")];
    let text = bootstrap(&listeners, &[cluster("one", &[one.port()])]);
    let proxy = Proxy::start_with(&text, Settings { program, ..Settings::default() }).await;
    let mut seen = Vec::new();
    let mut usual = h1::Client::connect(proxy.listener("usual").await).await;
    usual.ended().await;
    seen.push("usual: ended".to_owned());
    loop {
        let mut safe = h1::Client::connect(proxy.listener("safe").await).await;
        let first = safe.get("/").await;
        if first.header("connection") == Some("close") {
            // It was late already.
            continue;
        }
        // The proxy has had the connection since it answered.
        pass(Duration::from_millis(600)).await;
        let second = safe.get("/").await;
        seen.push(format!("safe: {} {:?}", second.status, second.header("connection")));
        safe.ended().await;
        break;
    }
    proxy.wait_stat("http.safe.downstream_cx_max_duration_reached", |reached| reached > 0).await;
    seen
}

#[tokio::test]
async fn old_connections_end_as_with_envoy() {
    let seen = ages(proxy::program()).await;
    assert_eq!(seen, ["usual: ended", "safe: 200 Some(\"close\")"]);
    assert_eq!(seen, ages(proxy::envoy()).await);
}

/// What the upstream sees of a client that a PROXY protocol header names.
async fn proxied(program: PathBuf) -> Option<String> {
    let one = Upstream::start("one").await;
    let manager = http("web", &format!("{}, use_remote_address: true", config::routes(&config::all_to("one"))));
    let web = config::listener("web", &[chain(&manager, ", use_proxy_proto: true")], "");
    let text = bootstrap(&[web], &[cluster("one", &[one.port()])]);
    let proxy = Proxy::start_with(&text, Settings { program, ..Settings::default() }).await;
    let mut client = h1::Client::connect(proxy.listener("web").await).await;
    client.send("PROXY TCP4 1.2.3.4 127.0.0.1 5555 80\r\n").await;
    client.request("GET", "/", &[], b"").await.upstream_header("x-forwarded-for")
}

#[tokio::test]
async fn chains_take_proxy_headers_as_with_envoy() {
    for program in [proxy::program(), proxy::envoy()] {
        assert_eq!(proxied(program).await.as_deref(), Some("1.2.3.4"));
    }
}
