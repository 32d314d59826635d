//! Servers that we connect to: those that we trust, and for the others what the response says, and what they are told.

use std::path::Path;
use std::process::Stdio;

use outrigger_tests::config::{bootstrap, chain, cluster_with, http, listener, routes};
use outrigger_tests::{Proxy, h1, within};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{certificate, directory, placed, upstream};

/// One cluster and one server in it.
struct Case {
    name: &'static str,
    /// Fields of the context.
    context: &'static str,
    /// Fields of the common context.
    common: &'static str,
    /// Arguments of `openssl s_server`.
    server: &'static [&'static str],
    /// In the body of the response; empty for a server that is trusted.
    reason: &'static str,
    /// What the server says of our alert; empty if there is none.
    alert: &'static str,
}

const fn case(
    name: &'static str,
    context: &'static str,
    common: &'static str,
    server: &'static [&'static str],
    reason: &'static str,
    alert: &'static str,
) -> Case {
    Case { name, context, common, server, reason, alert }
}

const ROOT: &str = "validation_context: { trusted_ca: { filename: $dir/ca.pem } }";
const GOOD: &[&str] = &["-cert", "$dir/server.crt", "-key", "$dir/server.key"];
const MUTUAL: &[&str] = &[
    "-cert",
    "$dir/server.crt",
    "-key",
    "$dir/server.key",
    "-CAfile",
    "$dir/ca.pem",
    "-Verify",
    "3",
    "-verify_return_error",
];
const UNTRUSTED: &str = "issuer is not among the trusted certificates";
const UNKNOWN_CA: &str = "alert unknown ca";
const UNKNOWN: &str = "alert certificate unknown";
const EXPIRED: &str = "alert certificate expired";

const CASES: &[Case] = &[
    case("good", "", ROOT, GOOD, "", ""),
    case("mutual", "", "CLIENT, ROOT", MUTUAL, "", ""),
    case("mutual-12", "", "CLIENT, ROOT, tls_params: { tls_maximum_protocol_version: TLSv1_2 }", MUTUAL, "", ""),
    case("named", "sni: server.example, auto_sni_san_validation: true", ROOT, GOOD, "", ""),
    case("stranger", "", ROOT, &["-cert", "$dir/stranger.crt", "-key", "$dir/stranger.key"], UNTRUSTED, UNKNOWN_CA),
    case(
        "self-signed",
        "",
        ROOT,
        &["-cert", "$dir/self-signed.crt", "-key", "$dir/self-signed.key"],
        UNTRUSTED,
        UNKNOWN_CA,
    ),
    case(
        "missing-intermediate",
        "",
        ROOT,
        &["-cert", "$dir/below.crt", "-key", "$dir/below.key"],
        UNTRUSTED,
        UNKNOWN_CA,
    ),
    case(
        "expired",
        "",
        ROOT,
        &["-cert", "$dir/expired.crt", "-key", "$dir/expired.key"],
        "certificate expired",
        EXPIRED,
    ),
    case(
        "not-yet-valid",
        "",
        ROOT,
        &["-cert", "$dir/future.crt", "-key", "$dir/future.key"],
        "certificate not valid yet",
        EXPIRED,
    ),
    case(
        "other-purpose",
        "",
        ROOT,
        &["-cert", "$dir/client-only.crt", "-key", "$dir/client-only.key"],
        "certificate is not meant for this side (extended key usage)",
        UNKNOWN,
    ),
    case(
        "revoked",
        "",
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, crl: { filename: $dir/crl.pem } }",
        &["-cert", "$dir/revoked.crt", "-key", "$dir/revoked.key"],
        "certificate revoked",
        "alert certificate revoked",
    ),
    case(
        "other-name",
        "",
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, match_typed_subject_alt_names: [\
         { san_type: DNS, matcher: { exact: other.example } }] }",
        GOOD,
        "SAN matcher: none of [server.example, spiffe://td/server] is accepted",
        UNKNOWN,
    ),
    case(
        "other-uri",
        "",
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, match_typed_subject_alt_names: [\
         { san_type: URI, matcher: { exact: 'spiffe://td/other' } }] }",
        GOOD,
        "SAN matcher: none of [server.example, spiffe://td/server] is accepted",
        UNKNOWN,
    ),
    case(
        "other-server-name",
        "sni: other.example, auto_sni_san_validation: true",
        ROOT,
        GOOD,
        "SAN matcher: certificate is for [server.example, spiffe://td/server], not for other.example",
        UNKNOWN,
    ),
    case(
        "certificate-pin",
        "",
        "validation_context: { verify_certificate_hash: [\
         0000000000000000000000000000000000000000000000000000000000000000] }",
        GOOD,
        "certificate hash and SPKI are not pinned",
        UNKNOWN,
    ),
    case(
        "key-pin",
        "",
        "validation_context: { verify_certificate_spki: ['AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='] }",
        GOOD,
        "certificate hash and SPKI are not pinned",
        UNKNOWN,
    ),
    case(
        "spiffe-domain",
        "",
        "validation_context: { custom_validator_config: { name: envoy.tls.cert_validator.spiffe, typed_config: { \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig, \
         trust_domains: [{ name: other, trust_bundle: { filename: $dir/ca.pem } }] } } }",
        GOOD,
        "no trust bundle for the trust domain \"td\" of the peer",
        UNKNOWN,
    ),
    case(
        "wants-a-certificate-12",
        "",
        "ROOT, tls_params: { tls_maximum_protocol_version: TLSv1_2 }",
        MUTUAL,
        "HANDSHAKE_FAILURE",
        "",
    ),
    case(
        "knows-not-us-12",
        "",
        "STRANGER, ROOT, tls_params: { tls_maximum_protocol_version: TLSv1_2 }",
        MUTUAL,
        "ALERT",
        "",
    ),
    case(
        "only-12-there",
        "",
        "ROOT, tls_params: { tls_minimum_protocol_version: TLSv1_3 }",
        &["-cert", "$dir/server.crt", "-key", "$dir/server.key", "-tls1_2"],
        "PROTOCOL_VERSION",
        "",
    ),
    case(
        "only-13-there",
        "",
        "ROOT, tls_params: { tls_maximum_protocol_version: TLSv1_2 }",
        &["-cert", "$dir/server.crt", "-key", "$dir/server.key", "-tls1_3"],
        "PROTOCOL_VERSION",
        "",
    ),
    case(
        "no-cipher",
        "",
        "ROOT, tls_params: { tls_maximum_protocol_version: TLSv1_2, cipher_suites: [ECDHE-ECDSA-AES128-GCM-SHA256] }",
        &["-cert", "$dir/server.crt", "-key", "$dir/server.key", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"],
        "HANDSHAKE_FAILURE",
        "",
    ),
    case(
        "no-group",
        "",
        "ROOT, tls_params: { ecdh_curves: [X25519] }",
        &["-cert", "$dir/server.crt", "-key", "$dir/server.key", "-groups", "P-256"],
        "HANDSHAKE_FAILURE",
        "",
    ),
    case(
        "no-signature",
        "",
        "ROOT, tls_params: { signature_algorithms: [rsa_pss_rsae_sha256] }",
        GOOD,
        "HANDSHAKE_FAILURE",
        "",
    ),
    case(
        "no-protocol",
        "",
        "ROOT, alpn_protocols: [h9]",
        &["-cert", "$dir/server.crt", "-key", "$dir/server.key", "-alpn", "h8"],
        "NO_APPLICATION_PROTOCOL",
        "",
    ),
];

/// A server of OpenSSL.
pub struct Server {
    child: Child,
    pub port: u16,
    output: BufReader<tokio::process::ChildStdout>,
    /// Its standard input: it would end with it.
    _input: tokio::process::ChildStdin,
}

impl Server {
    async fn start(case: &Case, directory: &Path) -> Self {
        let www: &[&str] = if case.reason.is_empty() { &["-www"] } else { &[] };
        let arguments = [&["-naccept", "1"], case.server, www].concat();
        Self::with(case.name, &arguments, directory).await
    }

    /// With these arguments; `name` is for failures.
    pub async fn with(name: &str, own: &[&str], directory: &Path) -> Self {
        let mut arguments = placed(&["s_server", "-accept", "127.0.0.1:0"], directory);
        arguments.extend(placed(own, directory));
        let mut child = Command::new("openssl")
            .args(&arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("this test needs `openssl`: {error}"));
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let port = within("s_server listens", async {
            loop {
                let mut line = String::new();
                assert_ne!(output.read_line(&mut line).await.unwrap(), 0, "{name}: s_server ended");
                if let Some(address) = line.trim().strip_prefix("ACCEPT ") {
                    break address.rsplit(':').next().unwrap().parse().unwrap();
                }
            }
        })
        .await;
        Self { child, port, output, _input: input }
    }

    /// What it has said until its end.
    async fn said(mut self) -> String {
        let mut said = String::new();
        let mut errors = self.child.stderr.take().unwrap();
        let mut more = String::new();
        let both = async { tokio::join!(self.output.read_to_string(&mut said), errors.read_to_string(&mut more)) };
        let _ = within("s_server ends", both).await;
        said + &more
    }
}

#[tokio::test]
async fn servers_of_openssl_are_trusted_or_told_why_not() {
    let directory = directory();
    let mut servers = Vec::new();
    let mut clusters = Vec::new();
    let mut to = String::new();
    for case in CASES {
        let server = Server::start(case, directory.path()).await;
        let common = case.common.replace("CLIENT", &certificate("client"));
        let common = common.replace("STRANGER", &certificate("stranger")).replace("ROOT", ROOT);
        clusters.push(cluster_with(case.name, &[server.port], &upstream(case.context, &common)));
        to += &format!("{{ match: {{ path: /{0} }}, route: {{ cluster: {0} }} }}, ", case.name);
        servers.push(server);
    }
    let listeners = [listener("l", &[chain(&http("h", &routes(&to)), "")], "")];
    let proxy = Proxy::start_in(directory, &bootstrap(&listeners, &clusters), Default::default()).await;
    let address = proxy.listener("l").await;
    let mut wrong = Vec::new();
    for (case, server) in CASES.iter().zip(servers) {
        let response = h1::get(address, &format!("/{}", case.name)).await;
        if case.reason.is_empty() {
            if response.status != 200 {
                wrong.push(format!("{}: {} {}", case.name, response.status, response.text()));
            }
            continue;
        }
        let body = response.text().replace('_', " ");
        if response.status != 503 || !body.contains(&case.reason.replace('_', " ")) {
            wrong.push(format!("{}: {} {body}", case.name, response.status));
        }
        if !case.alert.is_empty() {
            let said = server.said().await;
            if !said.contains(case.alert) {
                wrong.push(format!("{}: the server says {said}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n----\n"));
}
