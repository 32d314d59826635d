//! The inbound listeners of meshes: Istio's with PERMISSIVE mutual TLS, and Consul's public listener. The same through
//! Envoy, so that what is expected is what people know.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use outrigger_tests::certificates::{self, Authority, Identity};
use outrigger_tests::config::{access_log_of, bootstrap, cluster, listener};
use outrigger_tests::tcp::{Conduct, Peer};
use outrigger_tests::{Proxy, Settings, Upstream, h1, proxy, within};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

const INSPECTORS: &str = ", listener_filters_timeout: 0s, continue_on_listener_filters_timeout: true, listener_filters: [\
    { name: envoy.filters.listener.tls_inspector, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }, \
    { name: envoy.filters.listener.http_inspector, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector } }]";
const SERVER: &str = "spiffe://cluster.local/ns/ns/sa/server";
const WEB: &str = "spiffe://cluster.local/ns/ns/sa/web";
const FOREIGN: &str = "spiffe://other.local/ns/ns/sa/web";

struct Mesh {
    authority: Authority,
    web: Identity,
    foreign: Identity,
}

impl Mesh {
    fn new() -> Self {
        let authority = Authority::new();
        let (web, foreign) = (authority.issue_workload(WEB, &[], "web"), authority.issue_workload(FOREIGN, &[], "x"));
        Self { authority, web, foreign }
    }

    fn directory(&self) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), self.authority.pem()).unwrap();
        self.authority.issue_workload(SERVER, &["server"], "server").write(directory.path(), "server");
        directory
    }

    fn client(&self, alpn: &[&str], identity: Option<&Identity>) -> Arc<rustls::ClientConfig> {
        self.authority.client(alpn, identity)
    }
}

fn mutual_tls(alpn: &str) -> String {
    super::downstream(
        "require_client_certificate: true",
        &format!(
            "alpn_protocols: [{alpn}], {}, validation_context: {{ trusted_ca: {{ filename: $dir/ca.pem }}, \
             match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ prefix: 'spiffe://cluster.local/' }} }}] }}",
            super::certificate("server")
        ),
    )
}

fn http(log: &str) -> String {
    outrigger_tests::config::http(
        "inbound",
        &format!(
            "{log}, forward_client_cert_details: APPEND_FORWARD, \
             set_current_client_cert_details: {{ subject: true, dns: true, uri: true }}{}",
            outrigger_tests::config::routes(&outrigger_tests::config::all_to("http"))
        ),
    )
}

/// What one connection says and hears.
async fn says(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &[u8], answer: usize) -> Option<Vec<u8>> {
    stream.write_all(bytes).await.ok()?;
    let mut heard = vec![0; answer];
    within("an answer", stream.read_exact(&mut heard)).await.ok()?;
    Some(heard)
}

/// The chains that a port of unknown protocol has.
async fn permissive(mesh: &Mesh, program: PathBuf, http_port: u16, tcp_port: u16, secret_port: u16) -> Proxy {
    let format = "%FILTER_CHAIN_NAME% %DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_TLS_VERSION% %REQUESTED_SERVER_NAME%";
    let log = access_log_of("access.log", format);
    let tcp = |cluster: &str| outrigger_tests::config::tcp_with(&format!("cluster: {cluster}{log}"));
    let chain = |name: &str, matches: &str, filter: &str, more: &str| {
        format!("{{ name: {name}, filter_chain_match: {{ {matches} }}, filters: [{filter}]{more} }}")
    };
    let chains = [
        chain(
            "http-mtls",
            "transport_protocol: tls, application_protocols: [istio-http/1.0, istio-http/1.1, istio-h2]",
            &http(&log),
            &mutual_tls("h2, http/1.1"),
        ),
        chain("http-plain", "transport_protocol: raw_buffer, application_protocols: [http/1.1, h2c]", &http(&log), ""),
        chain(
            "tcp-mtls",
            "transport_protocol: tls, application_protocols: [istio-peer-exchange, istio]",
            &tcp("tcp"),
            &mutual_tls("istio-peer-exchange, h2, http/1.1"),
        ),
        chain("tcp-plain", "transport_protocol: raw_buffer", &tcp("tcp"), ""),
        chain("tls-through", "transport_protocol: tls", &tcp("secret"), ""),
    ];
    let clusters = [cluster("http", &[http_port]), cluster("tcp", &[tcp_port]), cluster("secret", &[secret_port])];
    let text = bootstrap(&[listener("in", &chains, INSPECTORS)], &clusters);
    Proxy::start_in(mesh.directory(), &text, Settings { program, ..Settings::default() }).await
}

async fn get_over_tls(address: SocketAddr, config: Arc<rustls::ClientConfig>) -> String {
    let Ok(stream) = certificates::connect(address, "server", config).await else { return "refused".to_owned() };
    let mut client = h1::Client::over(Box::new(stream));
    client.send(h1::request_bytes("GET", "/", &[], b"")).await;
    match client.try_response("GET").await {
        Ok(response) => {
            let header = response.upstream_header("x-forwarded-client-cert").unwrap_or_default();
            // Certificates are made anew each time, so their hashes differ.
            let told: Vec<_> = header.split(';').filter(|part| !part.starts_with("Hash=")).collect();
            format!("{} {}", response.status, told.join(";"))
        }
        Err(_) => "refused".to_owned(),
    }
}

/// Every way to come in, and what the log says of it.
async fn permissive_ways(program: PathBuf) -> (Vec<String>, Vec<String>) {
    let mesh = Mesh::new();
    let upstream = Upstream::start("http").await;
    let echo = Peer::start(Conduct::Echo).await;
    let own = mesh.authority.issue(&["server"]).server(&[]);
    let secret = Upstream::tls("secret", own).await;
    let proxy = permissive(&mesh, program, upstream.port(), echo.port(), secret.port()).await;
    let address = proxy.listener("in").await;
    let mut seen = Vec::new();
    let mut lines = 0;
    let mut logged = async |seen: &mut Vec<String>, what: String| {
        lines += 1;
        proxy.lines("access.log", lines).await;
        seen.push(what);
    };
    let plain = h1::get(address, "/").await;
    logged(&mut seen, format!("plain: {}", plain.status)).await;
    let alpn = &["istio-http/1.1", "istio", "http/1.1"];
    let answer = get_over_tls(address, mesh.client(alpn, Some(&mesh.web))).await;
    logged(&mut seen, format!("istio-http/1.1: {answer}")).await;
    for identity in [Some(&mesh.foreign), None] {
        let answer = get_over_tls(address, mesh.client(alpn, identity)).await;
        seen.push(format!("{}: {answer}", if identity.is_some() { "foreign" } else { "nobody" }));
    }
    {
        let config = mesh.client(&["istio"], Some(&mesh.web));
        let mut stream = certificates::connect(address, "server", config).await.unwrap();
        seen.push(format!("istio: {:?}", says(&mut stream, b"\x00hello", 6).await));
    }
    logged(&mut seen, "istio has ended".to_owned()).await;
    {
        let mut stream = TcpStream::connect(address).await.unwrap();
        seen.push(format!("tcp: {:?}", says(&mut stream, b"\x00hello", 6).await));
    }
    logged(&mut seen, "tcp has ended".to_owned()).await;
    // TLS of the application's own is none of our business.
    for alpn in [&[][..], &["http/1.1"]] {
        seen.push(format!("through: {}", get_over_tls(address, mesh.client(alpn, None)).await));
        logged(&mut seen, "through has ended".to_owned()).await;
    }
    (seen, proxy.lines("access.log", lines).await)
}

#[tokio::test]
async fn a_permissive_port_takes_every_client_by_its_chain() {
    let (seen, logged) = permissive_ways(proxy::program()).await;
    let (envoys_seen, envoys_logged) = permissive_ways(proxy::envoy()).await;
    assert_eq!(seen, envoys_seen);
    assert_eq!(logged, envoys_logged);
    let chains: Vec<_> = logged.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(chains, ["http-plain", "http-mtls", "tcp-mtls", "tcp-plain", "tls-through", "tls-through"]);
    assert!(logged[1].starts_with(&format!("http-mtls {WEB} TLSv1.3 server")), "{}", logged[1]);
    assert_eq!(seen.iter().filter(|line| line.ends_with("refused")).count(), 2, "{seen:?}");
}

/// Consul's public listener: mutual TLS, intentions as RBAC on names, and the client's certificate for the application.
async fn public_listener(program: PathBuf) -> Vec<String> {
    let mesh = Mesh::new();
    let upstream = Upstream::start("http").await;
    let rules = "{ name: envoy.filters.http.rbac, typed_config: { \
        '@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: { action: ALLOW, policies: { \
        consul-intentions-layer7-0: { permissions: [{ url_path: { path: { prefix: /open } } }], principals: [\
        { authenticated: { principal_name: { safe_regex: { google_re2: {}, \
        regex: '^spiffe://[^/]+/ns/ns/sa/web$' } } } }] } } } } }, ";
    let manager = outrigger_tests::config::http(
        "public_listener",
        &format!(
            ", codec_type: AUTO, forward_client_cert_details: APPEND_FORWARD, set_current_client_cert_details: {{ \
             subject: true, cert: true, chain: true, dns: true, uri: true }}{}{}",
            outrigger_tests::config::routes(&outrigger_tests::config::all_to("http")),
            access_log_of("access.log", "%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %DOWNSTREAM_PEER_URI_SAN%"),
        ),
    );
    let manager = manager.replace("http_filters: [", &format!("http_filters: [{rules}"));
    let tls = super::downstream(
        "require_client_certificate: true",
        &format!(
            "alpn_protocols: [http/1.1], {}, validation_context: {{ trusted_ca: {{ filename: $dir/ca.pem }} }}",
            super::certificate("server")
        ),
    );
    let chain = format!("{{ filters: [{manager}]{tls} }}");
    let more = ", traffic_direction: INBOUND";
    let text = bootstrap(&[listener("public", &[chain], more)], &[cluster("http", &[upstream.port()])]);
    let proxy = Proxy::start_in(mesh.directory(), &text, Settings { program, ..Settings::default() }).await;
    let address = proxy.listener("public").await;
    let stranger = mesh.authority.issue_workload("spiffe://cluster.local/ns/ns/sa/batch", &[], "batch");
    let mut seen = Vec::new();
    for (who, identity, path) in [
        ("web", Some(&mesh.web), "/open"),
        ("web", Some(&mesh.web), "/closed"),
        ("batch", Some(&stranger), "/open"),
        ("nobody", None, "/open"),
    ] {
        let stream = certificates::connect(address, "server", mesh.client(&["http/1.1"], identity)).await;
        let answer = match stream {
            Err(_) => "refused".to_owned(),
            Ok(stream) => {
                let mut client = h1::Client::over(Box::new(stream));
                client.send(h1::request_bytes("GET", path, &[("x-forwarded-client-cert", "By=a;Hash=b")], b"")).await;
                match client.try_response("GET").await {
                    Err(_) => "refused".to_owned(),
                    Ok(response) if response.status != 200 => response.status.to_string(),
                    Ok(response) => {
                        let header = response.upstream_header("x-forwarded-client-cert").unwrap_or_default();
                        // Certificates are made anew each time.
                        let keys: Vec<_> = header.split(';').map(|part| part.split('=').next().unwrap()).collect();
                        format!("{} {}", response.status, keys.join(";"))
                    }
                }
            }
        };
        seen.push(format!("{who} {path}: {answer}"));
    }
    seen.extend(proxy.lines("access.log", 3).await);
    seen
}

#[tokio::test]
async fn a_public_listener_asks_for_certificate_and_intention() {
    let seen = public_listener(proxy::program()).await;
    assert_eq!(seen, public_listener(proxy::envoy()).await);
    assert!(seen[0].starts_with("web /open: 200 ") && seen[1].starts_with("web /closed: 403"), "{seen:?}");
    assert!(seen[2].starts_with("batch /open: 403") && seen[3].ends_with("refused"), "{seen:?}");
}
