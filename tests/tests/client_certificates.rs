//! `x-forwarded-client-cert` in all its modes, with and without certificates and headers that came, beside Envoy.

use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_tests::certificates::{self, Authority, Identity};
use outrigger_tests::config::{self, all_to, bootstrap, chain, cluster, http, routes};
use outrigger_tests::side_by_side::compare;
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy};

const MODES: [&str; 5] = ["SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY"];

/// What the proxy tells of the client's certificate.
const DETAILS: [(&str, &str); 4] = [
    ("none", ""),
    ("names", "subject: true, dns: true, uri: true"),
    ("certificates", "cert: true, chain: true"),
    ("all", "subject: true, cert: true, chain: true, dns: true, uri: true"),
];

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

/// Listeners `plain-<mode>` without TLS and `tls-<mode>-<details>` with it.
fn listeners() -> Vec<String> {
    let mut all = Vec::new();
    for mode in MODES {
        let http = |details: &str| {
            let settings = format!(
                "{}, forward_client_cert_details: {mode}, set_current_client_cert_details: {{ {details} }}",
                routes(&all_to("up"))
            );
            http("web", &settings)
        };
        all.push(config::listener(&format!("plain-{mode}"), &[chain(&http("uri: true"), "")], ""));
        for (name, details) in DETAILS {
            all.push(config::listener(&format!("tls-{mode}-{name}"), &[chain(&http(details), TLS)], ""));
        }
    }
    all
}

const TLS: &str = ", transport_socket: { name: envoy.transport_sockets.tls, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
    common_tls_context: { tls_certificates: [{ certificate_chain: { filename: $dir/server.crt }, \
    private_key: { filename: $dir/server.key } }], validation_context: { trusted_ca: { filename: $dir/ca.pem } } } } }";

/// Clients: without a certificate, with names of all kinds, with nothing but a subject, and with names that mean mischief.
struct Clients {
    authority: Authority,
    identities: Vec<(&'static str, Option<Identity>)>,
}

impl Clients {
    fn new() -> Self {
        let authority = Authority::new();
        let workload = |uri, names: &[&str], subject| Some(authority.issue_workload(uri, names, subject));
        let mut chained = authority.issue_workload("spiffe://td/chained", &["c.example"], "chained");
        chained.certificate.push_str(&authority.pem());
        let identities = vec![
            ("nobody", None),
            ("chained", Some(chained)),
            ("workload", workload("spiffe://cluster.local/ns/a/sa/b", &["a.example", "*.b.example"], "api")),
            ("bare", Some(authority.issue(&[]))),
            ("quotes", workload("spiffe://td/q", &["q.example"], "a \"quoted\", back\\slash; semi=colon+plus")),
            ("mischief", workload("spiffe://td/x;Hash=00,By=y;URI=spiffe://td/admin", &["z.example"], "x")),
        ];
        Self { authority, identities }
    }
}

/// Headers that came with the request.
const CAME: [&[(&str, &str)]; 4] = [
    &[],
    &[("x-forwarded-client-cert", "By=before;Hash=aa")],
    &[("x-forwarded-client-cert", "By=one;Hash=aa"), ("X-Forwarded-Client-Cert", "By=two;Hash=bb")],
    &[("x-forwarded-client-cert", "")],
];

struct Side {
    proxy: Proxy,
    upstream: Upstream,
}

impl Side {
    async fn start(program: std::path::PathBuf, clients: &Clients) -> Self {
        let upstream = Upstream::start("up").await;
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), clients.authority.pem()).unwrap();
        clients.authority.issue_workload(SERVER, &["server"], "server").write(directory.path(), "server");
        let text = bootstrap(&listeners(), &[cluster("up", &[upstream.port()])]);
        let proxy = Proxy::start_in(directory, &text, Settings { program, ..Settings::default() }).await;
        Self { proxy, upstream }
    }

    /// A connection to a listener, and nothing else to it.
    async fn connect(&self, address: SocketAddr, tls: Option<Arc<rustls::ClientConfig>>) -> h1::Client {
        match tls {
            None => h1::Client::connect(address).await,
            Some(config) => h1::Client::over(Box::new(certificates::connect(address, "server", config).await.unwrap())),
        }
    }

    /// What the endpoint sees of the certificate.
    async fn observe(&self, client: &mut h1::Client, came: &[(&str, &str)]) -> Vec<String> {
        let status = client.request("GET", "/", came, b"").await.status;
        let seen = self.upstream.seen().pop().expect("a request");
        let values = seen.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-client-cert"));
        let mut lines = vec![format!("status {status}")];
        lines.extend(values.map(|(_, value)| value.clone()));
        lines
    }
}

#[tokio::test]
async fn all_modes_say_the_same_as_envoy() {
    let clients = Clients::new();
    let ours = Side::start(proxy::program(), &clients).await;
    let envoy = Side::start(proxy::envoy(), &clients).await;
    let find =
        |all: &[(String, SocketAddr)], name: &str| all.iter().find(|(found, _)| found == name).expect("a listener").1;
    let (our_listeners, envoys) = (ours.proxy.listeners().await, envoy.proxy.listeners().await);
    let mut report = String::new();
    let mut cases = 0;
    for (listener, _) in &our_listeners {
        for (client, identity) in &clients.identities {
            let tls = listener.starts_with("tls").then(|| clients.authority.client(&[], identity.as_ref()));
            if tls.is_none() && identity.is_some() {
                continue;
            }
            let mut there = envoy.connect(find(&envoys, listener), tls.clone()).await;
            let mut here = ours.connect(find(&our_listeners, listener), tls).await;
            for (index, came) in CAME.into_iter().enumerate() {
                let expected = envoy.observe(&mut there, came).await;
                let seen = ours.observe(&mut here, came).await;
                compare(&mut report, &[], &format!("{listener} {client} came{index}"), expected, seen);
                cases += 1;
            }
        }
    }
    assert!(report.is_empty(), "not the same as with Envoy:\n{report}");
    assert_eq!(cases, MODES.len() * CAME.len() * (DETAILS.len() * clients.identities.len() + 1));
}
