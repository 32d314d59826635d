//! Envoy, curl and gRPC on the other side.

use std::path::Path;
use std::time::Duration;

use outrigger_tests::config::{self, access_log_of, bootstrap, chain, cluster_with, http, listener, routes};
use outrigger_tests::{Proxy, Settings, h1, programs, proxy};

use super::{answers, certificate, directory, downstream, placed, run, texts, upstream};

const REQUIRED: &str = "require_client_certificate: true";
const ROOT: &str = "validation_context: { trusted_ca: { filename: $dir/ca.pem } }";

/// Certificate of the client, versions, ALPN, names that it accepts, and the reason of a refusal by either side.
struct Pair {
    name: &'static str,
    client: &'static str,
    params: &'static str,
    names: &'static str,
    /// In the log of our listener, when Envoy connects to us.
    ours: &'static str,
    /// In the body of our response, when we connect to Envoy.
    theirs: &'static str,
}

const PAIRS: &[Pair] = &[
    Pair { name: "both", client: "client", params: "", names: "", ours: "", theirs: "" },
    Pair {
        name: "both-12",
        client: "client",
        params: "tls_params: { tls_maximum_protocol_version: TLSv1_2 }, ",
        names: "",
        ours: "",
        theirs: "",
    },
    Pair {
        name: "both-h2",
        client: "client",
        params: "alpn_protocols: [h2, http/1.1], ",
        names: "",
        ours: "",
        theirs: "",
    },
    Pair { name: "rsa", client: "rsa", params: "", names: "", ours: "", theirs: "" },
    Pair {
        name: "named",
        client: "client",
        params: "",
        names: ", match_typed_subject_alt_names: [{ san_type: URI, matcher: { exact: 'spiffe://td/server' } }]",
        ours: "",
        theirs: "",
    },
    Pair {
        name: "nobody",
        client: "",
        params: "tls_params: { tls_maximum_protocol_version: TLSv1_2 }, ",
        names: "",
        ours: "PEER_DID_NOT_RETURN_A_CERTIFICATE",
        theirs: "HANDSHAKE_FAILURE",
    },
    Pair {
        name: "stranger",
        client: "stranger",
        params: "tls_params: { tls_maximum_protocol_version: TLSv1_2 }, ",
        names: "",
        ours: "issuer is not among the trusted certificates",
        theirs: "UNKNOWN_CA",
    },
    Pair {
        name: "expired",
        client: "expired",
        params: "tls_params: { tls_maximum_protocol_version: TLSv1_2 }, ",
        names: "",
        ours: "certificate expired",
        theirs: "CERTIFICATE_EXPIRED",
    },
    Pair {
        name: "misnamed",
        client: "client",
        params: "",
        names: ", match_typed_subject_alt_names: [{ san_type: DNS, matcher: { exact: other.example } }]",
        // The client turns away.
        ours: "ALERT",
        theirs: "SAN matcher: none of [server.example, spiffe://td/server] is accepted",
    },
];

/// A copy of the certificates, so that both proxies have the same.
fn copy(from: &Path) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    directory
}

/// One proxy that terminates TLS, and one that originates it.
async fn pair(server: std::path::PathBuf, client: std::path::PathBuf) -> (Proxy, Proxy) {
    let directory = directory();
    let other = copy(directory.path());
    let log = access_log_of("refused.log", "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%");
    let common = format!("{}, alpn_protocols: [h2, http/1.1], {ROOT}", certificate("server"));
    let chain_of = |name: &str| {
        let log = log.replace("refused", name);
        listener(name, &[chain(&answers(""), &downstream(REQUIRED, &common))], &log)
    };
    let listeners: Vec<_> = PAIRS.iter().map(|pair| chain_of(pair.name)).collect();
    let settings = |program| Settings { program, ..Settings::default() };
    let server = Proxy::start_in(directory, &bootstrap(&listeners, &[]), settings(server)).await;
    let mut clusters = Vec::new();
    let mut to = String::new();
    for Pair { name, client, params, names, .. } in PAIRS {
        let own = if client.is_empty() { String::new() } else { format!("{}, ", certificate(client)) };
        let root = format!("validation_context: {{ trusted_ca: {{ filename: $dir/ca.pem }}{names} }}");
        let version = if params.contains("h2") { config::HTTP2 } else { "" };
        let more = format!("{version}{}", upstream("sni: server.example", &format!("{own}{params}{root}")));
        clusters.push(cluster_with(name, &[server.listener(name).await.port()], &more));
        to += &format!("{{ match: {{ path: /{name} }}, route: {{ cluster: {name} }} }}, ");
    }
    let listeners = [listener("l", &[chain(&http("h", &routes(&to)), "")], "")];
    let client = Proxy::start_in(other, &bootstrap(&listeners, &clusters), settings(client)).await;
    (server, client)
}

#[tokio::test]
async fn envoy_connects_to_us() {
    let (server, client) = pair(proxy::program(), proxy::envoy()).await;
    let address = client.listener("l").await;
    for pair in PAIRS {
        let response = h1::get(address, &format!("/{}", pair.name)).await;
        if pair.ours.is_empty() {
            assert_eq!((response.status, response.text().as_str()), (200, "secret"), "{}", pair.name);
            continue;
        }
        assert_eq!(response.status, 503, "{}", pair.name);
        let logged = server.lines(&format!("{}.log", pair.name), 1).await.remove(0).replace('_', " ");
        assert!(logged.contains(&pair.ours.replace('_', " ")), "{}: {logged}", pair.name);
    }
}

#[tokio::test]
async fn we_connect_to_envoy() {
    let (_server, client) = pair(proxy::envoy(), proxy::program()).await;
    let address = client.listener("l").await;
    for pair in PAIRS {
        let response = h1::get(address, &format!("/{}", pair.name)).await;
        if pair.theirs.is_empty() {
            assert_eq!((response.status, response.text().as_str()), (200, "secret"), "{}", pair.name);
            continue;
        }
        assert_eq!(response.status, 503, "{}", pair.name);
        let body = response.text().replace('_', " ");
        assert!(body.contains(&pair.theirs.replace('_', " ")), "{}: {body}", pair.name);
    }
}

async fn mutual() -> (Proxy, String) {
    let common = format!("{}, alpn_protocols: [h2, http/1.1], {ROOT}", certificate("server"));
    let listeners = [listener("l", &[chain(&answers(""), &downstream(REQUIRED, &common))], ", stat_prefix: l")];
    let proxy = Proxy::start_in(directory(), &bootstrap(&listeners, &[]), Settings::default()).await;
    let port = proxy.listener("l").await.port().to_string();
    (proxy, port)
}

#[tokio::test]
async fn curl_shows_its_certificate() {
    let (proxy, port) = mutual().await;
    let ask = async |more: &[&str]| {
        let url = format!("https://server.example:{port}/");
        let resolve = format!("server.example:{port}:127.0.0.1");
        let mut arguments = placed(&["-sS", "--cacert", "$dir/ca.pem", "--resolve", &resolve], &proxy.file(""));
        arguments.extend(placed(more, &proxy.file("")));
        arguments.push(url);
        run("curl", &arguments).await
    };
    for version in ["--http1.1", "--http2"] {
        for tls in ["--tlsv1.2", "--tlsv1.3"] {
            let output = ask(&["--cert", "$dir/client.crt", "--key", "$dir/client.key", version, tls]).await;
            assert!(output.status.success() && texts(&output).contains("secret"), "{}", texts(&output));
        }
    }
    let output = ask(&["--tls-max", "1.2"]).await;
    assert!(!output.status.success() && texts(&output).contains("alert"), "{}", texts(&output));
    let output = ask(&["--cert", "$dir/stranger.crt", "--key", "$dir/stranger.key", "--tls-max", "1.2"]).await;
    assert!(texts(&output).contains("unknown ca"), "{}", texts(&output));
    proxy.stat_is("listener.l.ssl.handshake", 4).await;
    proxy.stat_is("listener.l.ssl.fail_verify_no_cert", 1).await;
    proxy.stat_is("listener.l.ssl.fail_verify_error", 1).await;
    proxy.stat_is("listener.l.ssl.connection_error", 0).await;
}

const GRPC: &str = "
import grpc, sys
port, directory = sys.argv[1], sys.argv[2]
read = lambda name: open(directory + '/' + name, 'rb').read()
def ready(name):
    if name:
        own = dict(private_key=read(name + '.key'), certificate_chain=read(name + '.crt'))
    else:
        own = {}
    credentials = grpc.ssl_channel_credentials(read('ca.pem'), **own)
    options = [('grpc.ssl_target_name_override', 'server.example')]
    channel = grpc.secure_channel('127.0.0.1:' + port, credentials, options)
    call = channel.unary_unary('/a/b', request_serializer=bytes, response_deserializer=bytes)
    try:
        call(b'', timeout=60)
    except grpc.RpcError as error:
        return error.code().name
    return 'OK'
print(ready('client'), ready('stranger'), ready(''))
";

#[tokio::test]
async fn grpc_channels_come_up_with_the_right_certificate() {
    let (proxy, port) = mutual().await;
    let directory = proxy.file("").display().to_string();
    let said = programs::run("python3", &["-c", GRPC, &port, &directory], &[], Duration::from_secs(90)).await;
    // The answer is no gRPC message, but it is an answer: the others get none.
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(words[1..], ["UNAVAILABLE", "UNAVAILABLE"], "{said}");
    assert!(!["OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"].contains(&words[0]), "{said}");
}
