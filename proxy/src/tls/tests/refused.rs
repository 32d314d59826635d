//! Contexts that cannot be built, and handshakes that fail: each with its words.

use std::sync::Arc;

use outrigger_config::tls::{CommonTls, DownstreamTls, SanKind, TlsCertificate, UpstreamTls, Validation};
use rcgen::{
    CertificateRevocationListParams, ExtendedKeyUsagePurpose, KeyIdMethod, RevokedCertParams, SerialNumber,
    date_time_ymd,
};

use super::pki::*;
use crate::tls::{ClientTls, HandshakeError, HandshakeFailure, ServerTls};

fn build(certificate: TlsCertificate) -> String {
    ServerTls::build(&downstream(common()), &[Arc::new(certificate)], None).unwrap_err().to_string()
}

#[test]
fn bad_certificates_name_the_file_and_the_problem() {
    let ca = Authority::new("ca");
    let (leaf, other) = (ca.leaf(&["a"]), ca.leaf(&["b"]));
    let files = || vec!["/etc/tls/chain.pem".into(), "/etc/tls/key.pem".into()];
    let from_files = |chain: &str, key: &str| TlsCertificate { files: files(), ..certificate(chain, key) };
    let place = "(/etc/tls/chain.pem, /etc/tls/key.pem)";
    assert_eq!(
        build(from_files(&leaf.pem, &other.key_pem)),
        format!("private key does not match the first certificate of the chain {place}")
    );
    assert_eq!(build(certificate("", &leaf.key_pem)), "certificate chain (inline): no certificate in the PEM data");
    assert_eq!(
        build(from_files(&leaf.pem, "")),
        format!("private key {place}: no private key in the PEM data (PKCS#8, PKCS#1 or SEC1 expected)")
    );
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let error = build(from_files(&leaf.pem, encrypted));
    assert!(error.starts_with(&format!("private key {place}: the key is encrypted")), "{error}");
    let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n";
    assert!(build(certificate(&leaf.pem, legacy)).contains("the key is encrypted"));
    let broken = leaf.key_pem.replace('M', "!");
    let error = build(certificate(&leaf.pem, &broken));
    assert_eq!(error, "private key (inline): not valid PEM");
    let not_a_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(build(certificate(not_a_certificate, &leaf.key_pem)).contains("not a valid X.509 certificate"));
}

#[test]
fn contexts_that_make_no_sense() {
    let leaf = Authority::new("ca").leaf(&["a"]);
    let error = ServerTls::build(&downstream(common()), &[], None).unwrap_err();
    assert_eq!(error.to_string(), "no certificate for a downstream TLS context");
    let build = |common: CommonTls, validation: Option<&Validation>| {
        ServerTls::build(&downstream(common), &[leaf.secret()], validation).unwrap_err().to_string()
    };
    assert!(build(only(false, false), None).contains("no usable TLS version"));
    assert!(build(alpn(&[""]), None).contains("1 to 255 bytes"));
    let names = Validation { subject_alt_names: vec![exact(SanKind::Dns, "x")], ..Validation::default() };
    assert!(build(common(), Some(&names)).contains("without trusted_ca prove nothing"));
}

#[test]
fn nothing_secret_is_printed() {
    let leaf = Authority::new("ca").leaf(&["a"]);
    let secret = leaf.key_pem.lines().nth(1).unwrap();
    let printed = format!("{:?} {:?}", server(&leaf, None), client(Some(&leaf), None));
    assert!(!printed.contains(secret) && printed.len() < 2000, "{printed}");
}

/// The client turns the server down.
async fn client_refuses(server: &ServerTls, validation: &Validation) -> HandshakeError {
    let (served, asked) = connect(server, &client(None, Some(validation))).await;
    let served = served.unwrap_err();
    assert!(!served.is_verification(), "{served}");
    let error = asked.unwrap_err();
    assert!(error.is_verification(), "{error}");
    error
}

/// The server turns the client down.
async fn server_refuses(server: &ServerTls, client: &ClientTls) -> (HandshakeError, String) {
    let (served, asked) = connect(server, client).await;
    (served.unwrap_err(), asked.unwrap_err().to_string())
}

#[tokio::test]
async fn an_unknown_issuer() {
    let server = server(&Authority::new("other").leaf(&["api"]), None);
    let error = client_refuses(&server, &Authority::new("ca").validation()).await;
    assert_eq!(error.failure(), HandshakeFailure::Untrusted);
    assert_eq!(
        error.to_string(),
        "TLS_error:|CERTIFICATE_VERIFY_FAILED: issuer is not among the trusted certificates:TLS_error_end"
    );
}

#[tokio::test]
async fn an_authority_of_the_same_name_is_another_one() {
    let server = server(&Authority::new("ca").leaf(&["api"]), None);
    let error = client_refuses(&server, &Authority::new("ca").validation()).await;
    assert_eq!(error.failure(), HandshakeFailure::Untrusted);
}

#[tokio::test]
async fn times_outside_of_validity() {
    let ca = Authority::new("ca");
    let expired = ca.leaf_with(&["api"], |params| params.not_after = date_time_ymd(2002, 1, 1));
    let error = client_refuses(&server(&expired, None), &ca.validation()).await;
    assert!(error.to_string().contains("expired"), "{error}");
    let future = ca.leaf_with(&["api"], |params| params.not_before = date_time_ymd(3000, 1, 1));
    let error = client_refuses(&server(&future, None), &ca.validation()).await;
    assert!(error.to_string().contains("not valid yet"), "{error}");
}

#[tokio::test]
async fn expired_is_allowed_but_untrusted_is_not() {
    let leaf = Authority::new("other").leaf_with(&["api"], |params| params.not_after = date_time_ymd(2002, 1, 1));
    let validation = Validation { allow_expired: true, ..Authority::new("ca").validation() };
    let error = client_refuses(&server(&leaf, None), &validation).await;
    assert!(error.to_string().contains("issuer"), "{error}");
}

#[tokio::test]
async fn names_that_no_matcher_accepts() {
    let ca = Authority::new("ca");
    let server = server(&ca.leaf(&["api.example.com", "spiffe://td/ns/a/sa/api"]), None);
    for matcher in [
        exact(SanKind::Uri, "spiffe://td/ns/a/sa/other"),
        exact(SanKind::Dns, "spiffe://td/ns/a/sa/api"),
        exact(SanKind::Email, "api.example.com"),
    ] {
        let validation = Validation { subject_alt_names: vec![matcher], ..ca.validation() };
        let error = client_refuses(&server, &validation).await;
        assert_eq!(error.failure(), HandshakeFailure::SubjectAltName);
        assert_eq!(
            error.to_string(),
            "TLS_error:|CERTIFICATE_VERIFY_FAILED: SAN matcher: none of [api.example.com, spiffe://td/ns/a/sa/api] is \
             accepted:TLS_error_end"
        );
    }
}

#[tokio::test]
async fn a_certificate_for_another_server_name() {
    let ca = Authority::new("ca");
    let server = server(&ca.leaf(&["api.example.org"]), None);
    let config = UpstreamTls { auto_sni_san_validation: true, ..upstream(common()) };
    let client = ClientTls::build(&config, &[], Some(&ca.validation())).unwrap();
    let error = connect(&server, &client).await.1.unwrap_err();
    assert_eq!(error.failure(), HandshakeFailure::SubjectAltName);
    assert!(error.to_string().contains("for [api.example.org], not for api.example.com"), "{error}");
    // Without a name there is nothing to check, which must not pass as checked.
    let error = connect_as(&server, &client, Some(""), None).await.1.unwrap_err();
    assert_eq!(error.failure(), HandshakeFailure::SubjectAltName);
}

#[tokio::test]
async fn pins_that_do_not_fit() {
    let ca = Authority::new("ca");
    let server = server(&ca.leaf(&["api"]), None);
    for base in [Validation::default(), ca.validation()] {
        let validation = Validation { certificate_hashes: vec!["ab".repeat(32)], ..base.clone() };
        assert_eq!(client_refuses(&server, &validation).await.failure(), HandshakeFailure::Pin);
        let validation = Validation { spki_pins: vec![format!("{}=", "A".repeat(43))], ..base };
        assert_eq!(client_refuses(&server, &validation).await.failure(), HandshakeFailure::Pin);
    }
}

#[tokio::test]
async fn a_chain_that_is_too_long() {
    let root = Authority::new("root");
    let middle = root.intermediate("middle");
    let server = server(&middle.leaf(&["api"]).below(&middle), None);
    let validation = Validation { max_verify_depth: Some(1), ..root.validation() };
    let error = client_refuses(&server, &validation).await;
    assert!(error.to_string().contains("chain too long"), "{error}");
}

#[tokio::test]
async fn a_missing_intermediate() {
    let root = Authority::new("root");
    let server = server(&root.intermediate("middle").leaf(&["api"]), None);
    assert!(client_refuses(&server, &root.validation()).await.to_string().contains("issuer"));
}

#[tokio::test]
async fn a_certificate_for_the_other_side() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf_with(&["api"], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let error = client_refuses(&server(&leaf, None), &ca.validation()).await;
    assert!(error.to_string().contains("extended key usage"), "{error}");
}

fn revocation(ca: &Authority, serials: &[u64], next_update: i32) -> Vec<u8> {
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(next_update, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: serials
            .iter()
            .map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
            .collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&ca.issuer).unwrap().pem().unwrap().into_bytes()
}

#[tokio::test]
async fn revoked_certificates() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf_with(&["api"], |params| params.serial_number = Some(SerialNumber::from(7)));
    let server = server(&leaf, None);
    let with = |crl_pem: Vec<u8>| Validation { crl_pem, ..ca.validation() };
    assert!(connect(&server, &client(None, Some(&with(revocation(&ca, &[8], 3000))))).await.1.is_ok());
    let error = client_refuses(&server, &with(revocation(&ca, &[7], 3000))).await;
    assert!(error.to_string().contains("certificate revoked"), "{error}");
    let error = client_refuses(&server, &with(revocation(&ca, &[8], 2021))).await;
    assert!(error.to_string().contains("revocation list has expired"), "{error}");
    let error = client_refuses(&server, &with(revocation(&Authority::new("other"), &[], 3000))).await;
    assert!(error.to_string().contains("no revocation list"), "{error}");
}

#[tokio::test]
async fn no_client_certificate() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api"]);
    let names = Validation { subject_alt_names: vec![exact(SanKind::Dns, "web")], ..ca.validation() };
    // Names make a certificate mandatory too.
    for server in [strict_server(&leaf, Some(&ca.validation())), server(&leaf, Some(&names))] {
        let (error, seen) = server_refuses(&server, &client(None, None)).await;
        assert_eq!(error.failure(), HandshakeFailure::NoPeerCertificate);
        assert_eq!(error.to_string(), "TLS_error:|PEER_DID_NOT_RETURN_A_CERTIFICATE:TLS_error_end");
        assert!(seen.contains("TLSV1_ALERT_CERTIFICATE_REQUIRED"), "{seen}");
    }
}

#[tokio::test]
async fn client_certificates_that_are_refused() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let leaf = ca.leaf(&["api"]);
    // Optional does not mean unchecked.
    let (error, seen) =
        server_refuses(&server(&leaf, Some(&ca.validation())), &client(Some(&other.leaf(&["w"])), None)).await;
    assert_eq!(error.failure(), HandshakeFailure::Untrusted);
    assert!(seen.contains("TLSV1_ALERT_UNKNOWN_CA"), "{seen}");
    let names = Validation { subject_alt_names: vec![exact(SanKind::Uri, "spiffe://td/web")], ..ca.validation() };
    let stranger = client(Some(&ca.leaf(&["spiffe://td/stranger"])), None);
    let (error, seen) = server_refuses(&server(&leaf, Some(&names)), &stranger).await;
    assert_eq!(error.failure(), HandshakeFailure::SubjectAltName);
    assert!(seen.contains("SSLV3_ALERT_CERTIFICATE_UNKNOWN"), "{seen}");
    let (error, _) = server_refuses(&strict_server(&leaf, None), &stranger).await;
    assert!(error.to_string().contains("nothing to verify the certificate with"), "{error}");
}

#[tokio::test]
async fn no_server_name_where_one_is_required() {
    let leaf = Authority::new("ca").leaf(&["api"]);
    let config = DownstreamTls { require_sni: true, ..downstream(common()) };
    let server = ServerTls::build(&config, &[leaf.secret()], None).unwrap();
    let (served, asked) = connect_as(&server, &client(None, None), Some(""), None).await;
    assert!(served.unwrap_err().to_string().contains("NO_SNI"));
    assert!(asked.unwrap_err().to_string().contains("TLSV1_ALERT_UNRECOGNIZED_NAME"));
    assert!(connect(&server, &client(None, None)).await.0.is_ok());
}

#[tokio::test]
async fn nothing_in_common() {
    let leaf = Authority::new("ca").leaf(&["api"]);
    let build = |common: CommonTls| ServerTls::build(&downstream(common), &[leaf.secret()], None).unwrap();
    let ask = |common: CommonTls| ClientTls::build(&upstream(common), &[], None).unwrap();
    let (error, _) = server_refuses(&build(only(false, true)), &ask(only(true, false))).await;
    assert_eq!(error.failure(), HandshakeFailure::Protocol);
    assert!(error.to_string().contains("UNSUPPORTED_PROTOCOL"), "{error}");
    let suite = |name| CommonTls { cipher_suites: vec![name], ..only(true, false) };
    let near = suite("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256");
    let (error, seen) = server_refuses(&build(suite("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384")), &ask(near)).await;
    assert!(error.to_string().contains("NO_SHARED_CIPHER"), "{error}");
    assert!(seen.contains("ALERT_HANDSHAKE_FAILURE"), "{seen}");
    let curve = |name| CommonTls { curves: vec![name], ..common() };
    let (error, _) = server_refuses(&build(curve("P-384")), &ask(curve("X25519"))).await;
    assert!(error.to_string().contains("NO_SHARED_GROUP"), "{error}");
}

#[tokio::test]
async fn something_that_is_no_tls() {
    use tokio::io::AsyncWriteExt as _;
    let server = server(&Authority::new("ca").leaf(&["api"]), None);
    for (bytes, failure) in [
        (&b"GET / HTTP/1.1\r\nhost: api\r\n\r\n"[..], HandshakeFailure::Protocol),
        (b"\x16\x03\x01\x02\x00\x01", HandshakeFailure::Closed),
        (b"", HandshakeFailure::Closed),
    ] {
        let (mut near, far) = tokio::io::duplex(4096);
        near.write_all(bytes).await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(server.accept(far).await.unwrap_err().failure(), failure);
    }
}

#[tokio::test]
async fn names_that_cannot_be_sent() {
    let (near, _far) = tokio::io::duplex(64);
    let error = client(None, None).connect(near, Some("a b"), None).await.unwrap_err();
    assert!(error.to_string().contains("\"a b\" cannot be sent as server name"), "{error}");
}
