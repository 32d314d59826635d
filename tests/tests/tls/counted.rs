//! What is counted of handshakes (`ssl.*`), beside Envoy: by version, suite, group and signature, also where sessions are
//! taken up again, and when certificates expire.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use outrigger_tests::certificates::{Authority, indented};
use outrigger_tests::config::{bootstrap, chain, cluster_with, http, listener, routes};
use outrigger_tests::{Proxy, Settings, h1, proxy, within};
use tokio::process::Command;

use super::servers::Server;
use super::{answers, certificate, directory, downstream, placed, upstream};

/// Arguments of `openssl s_client`, in order: later ones take up sessions of earlier ones.
const CLIENTS: &[&[&str]] = &[
    &["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384", "-groups", "X25519"],
    &["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256", "-groups", "P-384", "RSA", "-sess_out", "$dir/13"],
    &["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256", "-groups", "P-256", "RSA", "-sess_in", "$dir/13"],
    &["-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384", "-groups", "P-384", "EC", "-sess_out", "$dir/12"],
    &["-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384", "-groups", "P-384", "EC", "-sess_in", "$dir/12"],
    &["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305", "-groups", "P-256"],
    &["-tls1_2", "-cipher", "AES128-SHA"],
];
const RSA: &[&str] = &["-cert", "$dir/rsa.crt", "-key", "$dir/rsa.key", "-client_sigalgs", "rsa_pss_rsae_sha256"];
const EC: &[&str] =
    &["-cert", "$dir/client.crt", "-key", "$dir/client.key", "-client_sigalgs", "ecdsa_secp256r1_sha256"];

/// Clusters: fields of the context, and arguments of `openssl s_server`.
const SERVERS: &[(&str, &str, &[&str])] = &[
    (
        "new",
        "tls_params: { tls_maximum_protocol_version: TLSv1_3, ecdh_curves: [P-384, X25519] }",
        &[
            "-cert",
            "$dir/server.crt",
            "-key",
            "$dir/server.key",
            "-tls1_3",
            "-ciphersuites",
            "TLS_CHACHA20_POLY1305_SHA256",
        ],
    ),
    (
        "old",
        "tls_params: { tls_maximum_protocol_version: TLSv1_2, ecdh_curves: [P-256] }",
        &[
            "-cert",
            "$dir/rsa.crt",
            "-key",
            "$dir/rsa.key",
            "-tls1_2",
            "-cipher",
            "ECDHE-RSA-AES128-GCM-SHA256",
            "-sigalgs",
            "RSA-PSS+SHA256",
        ],
    ),
    (
        "middle",
        "tls_params: { tls_maximum_protocol_version: TLSv1_2, ecdh_curves: [X25519, P-256] }",
        &[
            "-cert",
            "$dir/server.crt",
            "-key",
            "$dir/server.key",
            "-tls1_2",
            "-cipher",
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            "-sigalgs",
            "ECDSA+SHA256",
        ],
    ),
];

/// Runs a client that asks once and reads to the end, so that it has its tickets.
async fn ask(address: std::net::SocketAddr, arguments: &[&str], directory: &Path) {
    let request = directory.join("request");
    std::fs::write(&request, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut all = vec!["s_client".to_owned(), "-connect".to_owned(), address.to_string(), "-ign_eof".to_owned()];
    for argument in arguments {
        match *argument {
            "RSA" => all.extend(placed(RSA, directory)),
            "EC" => all.extend(placed(EC, directory)),
            other => all.extend(placed(&[other], directory)),
        }
    }
    let input = std::fs::File::open(request).unwrap();
    let client = Command::new("openssl").args(&all).stdin(Stdio::from(input)).kill_on_drop(true).output();
    within("s_client", client).await.unwrap_or_else(|error| panic!("this test needs `openssl`: {error}"));
}

/// All stats of TLS of one proxy, as text and for Prometheus.
async fn counted(program: PathBuf, certificates: &Path) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(certificates).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), directory.path().join(file.file_name())).unwrap();
    }
    let mut clusters = Vec::new();
    let mut servers = Vec::new();
    let mut to = String::new();
    for (name, common, arguments) in SERVERS {
        let arguments: Vec<&str> = arguments.iter().chain(&["-www"]).copied().collect();
        let server = Server::with(name, &arguments, directory.path()).await;
        clusters.push(cluster_with(name, &[server.port], &upstream("", common)));
        to += &format!("{{ match: {{ path: /{name} }}, route: {{ cluster: {name} }} }}, ");
        servers.push(server);
    }
    let common = format!(
        "{}, {{ certificate_chain: {{ filename: $dir/rsa.crt }}, private_key: {{ filename: $dir/rsa.key }} }}], \
         validation_context: {{ trusted_ca: {{ filename: $dir/ca.pem }} }}, tls_params: {{ \
         cipher_suites: [ECDHE-ECDSA-CHACHA20-POLY1305, ECDHE-RSA-AES256-GCM-SHA384], ecdh_curves: [X25519, P-256, P-384] }}",
        certificate("server").trim_end_matches(']')
    );
    let listeners = [
        listener("l", &[chain(&answers(""), &downstream("", &common))], ", stat_prefix: l"),
        listener("plain", &[chain(&http("h", &routes(&to)), "")], ""),
    ];
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_in(directory, &bootstrap(&listeners, &clusters), settings).await;
    let (secure, plain) = (proxy.listener("l").await, proxy.listener("plain").await);
    for arguments in CLIENTS {
        ask(secure, arguments, &proxy.file("")).await;
    }
    for (name, ..) in SERVERS {
        for _ in 0..2 {
            assert_eq!(h1::get(plain, &format!("/{name}")).await.status, 200, "{name}");
        }
    }
    // All but the last client came in.
    proxy.stat_is("listener.l.ssl.handshake", CLIENTS.len() as u64 - 1).await;
    proxy.stat_is("listener.l.ssl.connection_error", 1).await;
    let text = proxy.admin("/stats?filter=%5C.ssl%5C.").await.text();
    let prometheus = proxy.admin("/stats/prometheus?filter=%5C.ssl%5C.").await.text();
    let mut lines: Vec<String> = text.lines().chain(prometheus.lines()).map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn handshakes_are_counted_as_by_envoy() {
    let certificates = directory();
    let (own, envoy) =
        tokio::join!(counted(proxy::program(), certificates.path()), counted(proxy::envoy(), certificates.path()));
    let without = |a: &[String], b: &[String]| a.iter().filter(|line| !b.contains(line)).cloned().collect::<Vec<_>>();
    assert_eq!((without(&own, &envoy), without(&envoy, &own)), (Vec::new(), Vec::new()), "ours and Envoy's alone");
    for line in [
        "listener.l.ssl.ciphers.ECDHE-RSA-AES256-GCM-SHA384: 2",
        "listener.l.ssl.curves.P-384: 3",
        "listener.l.ssl.no_certificate: 2",
        "listener.l.ssl.session_reused: 2",
        "listener.l.ssl.sigalgs.ecdsa_secp256r1_sha256: 2",
        "listener.l.ssl.sigalgs.rsa_pss_rsae_sha256: 2",
        "listener.l.ssl.versions.TLSv1.2: 3",
        "cluster.new.ssl.session_reused: 1",
        "cluster.old.ssl.curves.P-256: 2",
        "cluster.old.ssl.sigalgs.rsa_pss_rsae_sha256: 2",
        "envoy_cluster_ssl_versions{envoy_ssl_version=\"TLSv1.3\",envoy_cluster_name=\"new\"} 2",
    ] {
        assert!(own.iter().any(|seen| seen == line), "{line} is not in {own:#?}");
    }
}

/// Puts a secret with a new certificate in place.
fn place(directory: &Path, authority: &Authority, name: &str) {
    let identity = authority.issue(&["server.example"]);
    let secret = format!(
        "resources:\n- '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: {name}\n  \
         tls_certificate:\n    certificate_chain:\n      inline_string: |{}\n    private_key:\n      inline_string: |{}\n",
        indented(&identity.certificate, 8),
        indented(&identity.key, 8)
    );
    std::fs::write(directory.join("new"), secret).unwrap();
    std::fs::rename(directory.join("new"), directory.join(format!("{name}.yaml"))).unwrap();
}

/// How often contexts took up secrets: after the start, and after one was replaced.
async fn updated(program: PathBuf) -> [Vec<u64>; 2] {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    place(directory.path(), &authority, "one");
    place(directory.path(), &authority, "two");
    let source = |name: &str| {
        format!(
            "tls_certificate_sds_secret_configs: [{{ name: {name}, sds_config: {{ resource_api_version: V3, \
             path_config_source: {{ path: $dir/{name}.yaml, watched_directory: {{ path: $dir }} }} }} }}]"
        )
    };
    let chain_for = |name: &str| {
        let matched = format!(", filter_chain_match: {{ server_names: [{name}.example] }}, name: {name}");
        chain(&answers(""), &format!("{}{matched}", downstream("", &source("one"))))
    };
    let listeners = [listener("l", &[chain_for("a"), chain_for("b")], ", stat_prefix: l")];
    let clusters = ["one", "two"].map(|name| cluster_with(name, &[1], &upstream("", &source(name))));
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_in(directory, &bootstrap(&listeners, &clusters), settings).await;
    let names = ["listener.l.server_ssl", "cluster.one.client_ssl", "cluster.two.client_ssl"];
    let counts = async |wanted: [u64; 3]| {
        let mut counts = Vec::new();
        for (name, wanted) in names.iter().zip(wanted) {
            let name = format!("{name}_socket_factory.ssl_context_update_by_sds");
            counts.push(proxy.wait_stat(&name, |count| count == wanted).await);
        }
        counts
    };
    let first = counts([2, 1, 1]).await;
    place(&proxy.file(""), &authority, "one");
    [first, counts([4, 2, 1]).await]
}

#[tokio::test]
async fn contexts_take_up_secrets_as_often_as_with_envoy() {
    let (own, envoy) = tokio::join!(updated(proxy::program()), updated(proxy::envoy()));
    assert_eq!(own, envoy);
}
