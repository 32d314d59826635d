//! Clients that connect to us: those that may, and for those that may not what they are told, and what our log says.

use outrigger_tests::config::{access_log_of, bootstrap, chain, listener};
use outrigger_tests::{Proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{answers, certificate, directory, downstream, placed, run, texts};

/// One listener and one client of it.
struct Case {
    name: &'static str,
    /// Fields of the context.
    context: &'static str,
    /// Fields of the common context, besides the certificate.
    common: &'static str,
    /// Arguments of `openssl s_client`.
    client: &'static [&'static str],
    /// In the listener's access log; empty for a client that may connect.
    reason: &'static str,
    /// What the client says of our alert.
    alert: &'static str,
}

const fn case(
    name: &'static str,
    context: &'static str,
    common: &'static str,
    client: &'static [&'static str],
    reason: &'static str,
    alert: &'static str,
) -> Case {
    Case { name, context, common, client, reason, alert }
}

const REQUIRED: &str = "require_client_certificate: true";
const ROOT: &str = "validation_context: { trusted_ca: { filename: $dir/ca.pem } }";
const CLIENT: &[&str] = &["-cert", "$dir/client.crt", "-key", "$dir/client.key"];
const STRANGER: &[&str] = &["-cert", "$dir/stranger.crt", "-key", "$dir/stranger.key"];
const BELOW: &[&str] = &["-cert", "$dir/below.crt", "-key", "$dir/below.key", "-cert_chain", "$dir/middle.pem"];
const SPIFFE: &str = "validation_context: { custom_validator_config: { name: envoy.tls.cert_validator.spiffe, \
    typed_config: { '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig, \
    trust_domains: [{ name: td, trust_bundle: { filename: $dir/ca.pem } }, \
    { name: other, trust_bundle: { filename: $dir/other.pem } }] } } }";
const UNKNOWN_CA: &str = "alert unknown ca";
const UNKNOWN: &str = "alert certificate unknown";
const EXPIRED: &str = "alert certificate expired";
const REFUSED: &str = "alert handshake failure";
const VERSION: &str = "alert protocol version";

const CASES: &[Case] = &[
    case("anybody", "", "", &[], "", ""),
    case("anybody-12", "", "", &["-tls1_2"], "", ""),
    case("mutual", REQUIRED, ROOT, CLIENT, "", ""),
    case("optional", "", ROOT, &[], "", ""),
    case("through-an-intermediate", REQUIRED, ROOT, BELOW, "", ""),
    case("spiffe", REQUIRED, SPIFFE, CLIENT, "", ""),
    case(
        "no-certificate",
        REQUIRED,
        ROOT,
        &["-tls1_3"],
        "PEER_DID_NOT_RETURN_A_CERTIFICATE",
        "alert certificate required",
    ),
    case(
        "no-certificate-12",
        REQUIRED,
        ROOT,
        &["-tls1_2"],
        "PEER_DID_NOT_RETURN_A_CERTIFICATE",
        "alert certificate required",
    ),
    case("stranger", REQUIRED, ROOT, STRANGER, "issuer is not among the trusted certificates", UNKNOWN_CA),
    case("optional-stranger", "", ROOT, STRANGER, "issuer is not among the trusted certificates", UNKNOWN_CA),
    case(
        "self-signed",
        REQUIRED,
        ROOT,
        &["-cert", "$dir/self-signed.crt", "-key", "$dir/self-signed.key"],
        "issuer is not among the trusted certificates",
        UNKNOWN_CA,
    ),
    case(
        "expired",
        REQUIRED,
        ROOT,
        &["-cert", "$dir/expired.crt", "-key", "$dir/expired.key"],
        "certificate expired",
        EXPIRED,
    ),
    case(
        "not-yet-valid",
        REQUIRED,
        ROOT,
        &["-cert", "$dir/future.crt", "-key", "$dir/future.key"],
        "certificate not valid yet",
        EXPIRED,
    ),
    case(
        "other-purpose",
        REQUIRED,
        ROOT,
        &["-cert", "$dir/server-only.crt", "-key", "$dir/server-only.key"],
        "certificate is not meant for this side (extended key usage)",
        UNKNOWN,
    ),
    case(
        "missing-intermediate",
        REQUIRED,
        ROOT,
        &["-cert", "$dir/below.crt", "-key", "$dir/below.key"],
        "issuer is not among the trusted certificates",
        UNKNOWN_CA,
    ),
    case(
        "long-chain",
        REQUIRED,
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, max_verify_depth: 1 }",
        BELOW,
        "certificate chain too long",
        UNKNOWN,
    ),
    case(
        "forbidden-name",
        REQUIRED,
        ROOT,
        &["-cert", "$dir/outside.crt", "-key", "$dir/outside.key", "-cert_chain", "$dir/narrow.pem"],
        "a name is outside of what its authority may certify",
        UNKNOWN,
    ),
    case(
        "authority-as-client",
        REQUIRED,
        ROOT,
        &["-cert", "$dir/middle.crt", "-key", "$dir/middle.key"],
        "certificate of an authority where the peer's own should be",
        UNKNOWN,
    ),
    case(
        "revoked",
        REQUIRED,
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, crl: { filename: $dir/crl.pem } }",
        &["-cert", "$dir/revoked.crt", "-key", "$dir/revoked.key"],
        "certificate revoked",
        "alert certificate revoked",
    ),
    case(
        "without-a-list",
        REQUIRED,
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, crl: { filename: $dir/crl.pem } }",
        BELOW,
        "no revocation list for the certificate's issuer",
        UNKNOWN,
    ),
    case(
        "old-list",
        REQUIRED,
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, crl: { filename: $dir/old-crl.pem } }",
        CLIENT,
        "revocation list has expired",
        UNKNOWN,
    ),
    case(
        "other-uri",
        REQUIRED,
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, match_typed_subject_alt_names: [\
         { san_type: URI, matcher: { exact: 'spiffe://td/other' } }] }",
        CLIENT,
        "SAN matcher: none of [client.example, spiffe://td/client] is accepted",
        UNKNOWN,
    ),
    case(
        "other-prefix",
        REQUIRED,
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, match_typed_subject_alt_names: [\
         { san_type: URI, matcher: { prefix: 'spiffe://else/' } }] }",
        CLIENT,
        "SAN matcher: none of",
        UNKNOWN,
    ),
    case(
        "other-dns-name",
        REQUIRED,
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, match_typed_subject_alt_names: [\
         { san_type: DNS, matcher: { exact: other.example } }] }",
        CLIENT,
        "SAN matcher: none of",
        UNKNOWN,
    ),
    case(
        "other-kind-of-name",
        REQUIRED,
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, match_typed_subject_alt_names: [\
         { san_type: DNS, matcher: { exact: 'spiffe://td/client' } }] }",
        CLIENT,
        "SAN matcher: none of",
        UNKNOWN,
    ),
    case(
        "untyped-name",
        REQUIRED,
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, match_subject_alt_names: [{ exact: x }] }",
        CLIENT,
        "SAN matcher: none of",
        UNKNOWN,
    ),
    case(
        "no-name",
        REQUIRED,
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, match_typed_subject_alt_names: [\
         { san_type: DNS, matcher: { safe_regex: { google_re2: {}, regex: '.*' } } }] }",
        &["-cert", "$dir/nameless.crt", "-key", "$dir/nameless.key"],
        "SAN matcher: none of [] is accepted",
        UNKNOWN,
    ),
    case(
        "other-name",
        REQUIRED,
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, match_typed_subject_alt_names: [\
         { san_type: OTHER_NAME, oid: 1.3.6.1.4.1.311.20.2.3, matcher: { exact: other@td } }] }",
        &["-cert", "$dir/user.crt", "-key", "$dir/user.key"],
        "SAN matcher: none of [spiffe://td/client, client@td] is accepted",
        UNKNOWN,
    ),
    case(
        "the-right-other-name",
        REQUIRED,
        "validation_context: { trusted_ca: { filename: $dir/ca.pem }, match_typed_subject_alt_names: [\
         { san_type: OTHER_NAME, oid: 1.3.6.1.4.1.311.20.2.3, matcher: { exact: client@td } }] }",
        &["-cert", "$dir/user.crt", "-key", "$dir/user.key"],
        "",
        "",
    ),
    case(
        "certificate-pin",
        REQUIRED,
        "validation_context: { verify_certificate_hash: [\
         0000000000000000000000000000000000000000000000000000000000000000] }",
        CLIENT,
        "certificate hash and SPKI are not pinned",
        UNKNOWN,
    ),
    case(
        "key-pin",
        REQUIRED,
        "validation_context: { verify_certificate_spki: ['AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='] }",
        CLIENT,
        "certificate hash and SPKI are not pinned",
        UNKNOWN,
    ),
    case("spiffe-stranger", REQUIRED, SPIFFE, STRANGER, "issuer is not among the trusted certificates", UNKNOWN_CA),
    case(
        "spiffe-forged-domain",
        REQUIRED,
        SPIFFE,
        &["-cert", "$dir/other-domain.crt", "-key", "$dir/other-domain.key"],
        "issuer is not among the trusted certificates",
        UNKNOWN_CA,
    ),
    case(
        "spiffe-two-ids",
        REQUIRED,
        SPIFFE,
        &["-cert", "$dir/two-ids.crt", "-key", "$dir/two-ids.key"],
        "a SPIFFE ID is one URI",
        UNKNOWN,
    ),
    case(
        "spiffe-no-id",
        REQUIRED,
        SPIFFE,
        &["-cert", "$dir/nameless.crt", "-key", "$dir/nameless.key"],
        "a SPIFFE ID is one URI",
        UNKNOWN,
    ),
    case(
        "spiffe-authority",
        REQUIRED,
        SPIFFE,
        &["-cert", "$dir/middle.crt", "-key", "$dir/middle.key"],
        "certificate of an authority where a SPIFFE ID of a workload should be",
        UNKNOWN,
    ),
    case(
        "only-12-here",
        "",
        "tls_params: { tls_maximum_protocol_version: TLSv1_2 }",
        &["-tls1_3"],
        "UNSUPPORTED_PROTOCOL",
        VERSION,
    ),
    case(
        "only-13-here",
        "",
        "tls_params: { tls_minimum_protocol_version: TLSv1_3 }",
        &["-tls1_2"],
        "UNSUPPORTED_PROTOCOL",
        VERSION,
    ),
    case("ancient", "", "", &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "UNSUPPORTED_PROTOCOL", REFUSED),
    case(
        "no-cipher",
        "",
        "tls_params: { cipher_suites: [ECDHE-ECDSA-AES128-GCM-SHA256] }",
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"],
        "NO_SHARED_CIPHER",
        REFUSED,
    ),
    case("key-exchange-of-old", "", "", &["-tls1_2", "-cipher", "AES128-SHA"], "NO_SHARED_GROUP", REFUSED),
    case("no-group", "", "tls_params: { ecdh_curves: [X25519] }", &["-groups", "P-256"], "NO_SHARED_GROUP", REFUSED),
    case(
        "fips-group",
        "",
        "tls_params: { compliance_policies: [FIPS_202205] }",
        &["-groups", "X25519"],
        "NO_SHARED_GROUP",
        REFUSED,
    ),
    case(
        "fips-cipher",
        "",
        "tls_params: { compliance_policies: [FIPS_202205] }",
        &["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256", "-groups", "P-256"],
        "NO_SHARED_CIPHER",
        REFUSED,
    ),
    case("no-signature", "", "", &["-tls1_3", "-sigalgs", "RSA-PSS+SHA256"], "NO_COMMON_SIGNATURE_ALGORITHMS", REFUSED),
    case(
        "our-signatures",
        "",
        "tls_params: { signature_algorithms: [rsa_pss_rsae_sha256] }",
        &["-tls1_3"],
        "NO_COMMON_SIGNATURE_ALGORITHMS",
        REFUSED,
    ),
    case("no-server-name", "require_sni: true", "", &["-noservername"], "NO_SNI", "unrecognized name"),
];

/// The listener's own log of connections that never reached an application.
fn logged_listener(case: &Case) -> String {
    let common = format!("{}, {}", certificate("server"), case.common);
    let chain = chain(&answers(""), &downstream(case.context, &common));
    let log = access_log_of(&format!("{}.log", case.name), "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%");
    listener(case.name, &[chain], &log)
}

async fn start(cases: &[Case]) -> Proxy {
    let listeners: Vec<_> = cases.iter().map(logged_listener).collect();
    Proxy::start_in(directory(), &bootstrap(&listeners, &[]), Default::default()).await
}

#[tokio::test]
async fn openssl_is_let_in_or_told_why_not() {
    let proxy = start(CASES).await;
    let directory = proxy.file("");
    let mut wrong = Vec::new();
    for case in CASES {
        let address = proxy.listener(case.name).await.to_string();
        let mut arguments = placed(&["s_client", "-connect", &address, "-CAfile", "$dir/ca.pem"], &directory);
        if !case.client.contains(&"-noservername") {
            arguments.extend(["-servername".to_owned(), super::pki::SERVER.to_owned()]);
        }
        arguments.extend(placed(case.client, &directory));
        if case.reason.is_empty() {
            arguments.push("-verify_return_error".to_owned());
            let said = texts(&run("openssl", &arguments).await);
            // With nothing to send, it goes once the handshake is over.
            if !said.contains("Verify return code: 0 (ok)") {
                wrong.push(format!("{}: {said}", case.name));
            }
            continue;
        }
        // It stays until we close, so that an alert after its own end of the handshake is seen.
        arguments.push("-ign_eof".to_owned());
        let said = texts(&run("openssl", &arguments).await);
        let logged = proxy.lines(&format!("{}.log", case.name), 1).await.join("\n").replace('_', " ");
        if !logged.contains(&case.reason.replace('_', " ")) {
            wrong.push(format!("{}: the log says {logged}", case.name));
        }
        if !said.contains(case.alert) {
            wrong.push(format!("{}: the client says {said}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n----\n"));
    assert!(CASES.iter().filter(|case| !case.reason.is_empty()).count() >= 40);
}

/// What is no TLS at all.
#[tokio::test]
async fn others_than_tls_are_told_and_logged() {
    let cases = [
        ("http", &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], "WRONG_VERSION_NUMBER"),
        ("noise", &[0x16, 3, 1, 0, 4, 9, 9, 9, 9][..], "not a valid TLS message"),
        ("half", &[0x16, 3, 1][..], "connection closed during the handshake"),
        ("nothing", b"", "connection closed during the handshake"),
    ];
    let settings = cases.map(|(name, ..)| case(name, "", "", &[], "", ""));
    let proxy = start(&settings).await;
    for (name, sent, reason) in cases {
        let mut client = TcpStream::connect(proxy.listener(name).await).await.unwrap();
        client.write_all(sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A reset is an end as well.
        let _ = within("the end", client.read_to_end(&mut answer)).await;
        let logged = proxy.lines(&format!("{name}.log"), 1).await.join("\n").replace('_', " ");
        assert!(logged.contains(&reason.replace('_', " ")), "{name}: {logged}");
        if name == "http" {
            assert_eq!(answer.first(), Some(&21), "an alert: {answer:?}");
        }
    }
}

/// A response of OCSP whose time is over is not enough where there must be one.
#[tokio::test]
async fn staples_go_to_those_who_ask() {
    let directory = directory();
    let path = directory.path().to_owned();
    std::fs::write(path.join("index.txt"), index(&path).await).unwrap();
    for (name, more) in [("fresh", &["-ndays", "1"][..]), ("endless", &[])] {
        let mut arguments = placed(
            &[
                "ocsp",
                "-index",
                "$dir/index.txt",
                "-rsigner",
                "$dir/ca.pem",
                "-rkey",
                "$dir/ca.key",
                "-CA",
                "$dir/ca.pem",
                "-issuer",
                "$dir/ca.pem",
                "-cert",
                "$dir/server.crt",
                "-respout",
            ],
            &path,
        );
        arguments.push(path.join(format!("{name}.der")).display().to_string());
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let output = run("openssl", &arguments).await;
        assert!(output.status.success(), "{}", texts(&output));
    }
    let with = |name: &str, staple: &str, policy: &str| {
        let certificate = format!(
            "tls_certificates: [{{ certificate_chain: {{ filename: $dir/server.crt }}, \
             private_key: {{ filename: $dir/server.key }}, ocsp_staple: {{ filename: $dir/{staple}.der }} }}]"
        );
        let context = format!("ocsp_staple_policy: {policy}");
        let log = access_log_of(&format!("{name}.log"), "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%");
        listener(name, &[chain(&answers(""), &downstream(&context, &certificate))], &log)
    };
    let listeners = [
        with("stapled", "fresh", "MUST_STAPLE"),
        with("lenient", "endless", "LENIENT_STAPLING"),
        with("strict", "endless", "STRICT_STAPLING"),
    ];
    let proxy = Proxy::start_in(directory, &bootstrap(&listeners, &[]), Default::default()).await;
    let ask = async |name: &str, more: &str| {
        let address = proxy.listener(name).await.to_string();
        let mut arguments = vec!["s_client".to_owned(), "-connect".to_owned(), address];
        arguments.extend((!more.is_empty()).then(|| more.to_owned()));
        texts(&run("openssl", &arguments).await)
    };
    let said = ask("stapled", "-status").await;
    assert!(said.contains("OCSP Response Status: successful"), "{said}");
    let said = ask("lenient", "-status").await;
    assert!(said.contains("OCSP response: no response sent"), "{said}");
    let said = ask("strict", "-status").await;
    assert!(said.contains("alert handshake failure"), "{said}");
    let said = ask("strict", "").await;
    assert!(said.contains("BEGIN CERTIFICATE"), "{said}");
    let logged = proxy.lines("strict.log", 1).await.remove(0);
    assert!(logged.contains("OCSP"), "{logged}");
}

/// The index of an authority that has issued the server's certificate.
async fn index(path: &std::path::Path) -> String {
    let arguments = placed(&["x509", "-in", "$dir/server.crt", "-noout", "-serial"], path);
    let said = texts(&run("openssl", &arguments).await);
    let serial = said.trim().trim_start_matches("serial=");
    format!("V\t400101000000Z\t\t{serial}\tunknown\t/CN=leaf\n")
}
