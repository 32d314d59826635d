//! Peers that are trusted by more than a chain: SPIFFE, other names, signature algorithms; and what is written of them.

use std::sync::Arc;

use outrigger_config::matching::StringMatcher;
use outrigger_config::tls::{
    CommonTls, DownstreamTls, KeyLog, OcspPolicy, SanKind, SanMatcher, SpiffeTrust, TlsCertificate, TrustDomain,
    Validation,
};
use rcgen::SanType;

use super::pki::{Authority, Leaf, client, common, connect, downstream, exact, strict_server, upstream};
use crate::tls::{ClientTls, HandshakeFailure, ServerTls, TlsError};

fn spiffe(domains: &[(&str, &Authority)]) -> Validation {
    let domain = |(name, authority): &(&str, &Authority)| TrustDomain {
        name: (*name).into(),
        bundle_pem: authority.pem.clone().into_bytes(),
    };
    let trust = SpiffeTrust { domains: domains.iter().map(domain).collect() };
    Validation { spiffe: Some(Arc::new(trust)), ..Validation::default() }
}

/// How the server refused a client, if it did.
async fn refusal(server: &ServerTls, leaf: &Leaf) -> Option<(HandshakeFailure, String)> {
    let (seen, _) = connect(server, &client(Some(leaf), None)).await;
    seen.err().map(|error| (error.failure(), error.to_string()))
}

#[tokio::test]
async fn a_trust_domain_vouches_for_its_own_alone() {
    let (a, b) = (Authority::new("a"), Authority::new("b"));
    let validation = spiffe(&[("a.org", &a), ("b.org", &b)]);
    let server = strict_server(&a.leaf(&["api.example.com"]), Some(&validation));
    let below = a.intermediate("below");
    for leaf in [
        a.leaf(&["spiffe://a.org/web"]),
        b.leaf(&["spiffe://b.org/web"]),
        below.leaf(&["spiffe://a.org/x/y"]).below(&below),
    ] {
        let (seen, asked) = connect(&server, &client(Some(&leaf), None)).await;
        assert!(asked.is_ok() && seen.unwrap().peer.unwrap().verified);
    }
    let authority = a.leaf_with(&["spiffe://a.org/web"], |params| {
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    });
    for (leaf, expected) in [
        (a.leaf(&["spiffe://b.org/web"]), "issuer is not among the trusted certificates"),
        (a.leaf(&["spiffe://c.org/web"]), "no trust bundle for the trust domain \"c.org\" of the peer"),
        (a.leaf(&["web.a.org"]), "a SPIFFE ID is one URI, the certificate has [web.a.org]"),
        (a.leaf(&["spiffe://a.org/x", "spiffe://a.org/y"]), "a SPIFFE ID is one URI, the certificate has"),
        (a.leaf(&["https://a.org/x"]), "\"https://a.org/x\" is not a SPIFFE ID"),
        (authority, "certificate of an authority where a SPIFFE ID of a workload should be"),
    ] {
        let (failure, reason) = refusal(&server, &leaf).await.unwrap();
        assert_eq!(failure, HandshakeFailure::Untrusted);
        assert!(reason.contains(expected), "{reason}");
    }
}

#[tokio::test]
async fn spiffe_matches_uris_alone() {
    let ca = Authority::new("a");
    let leaf = ca.leaf(&["spiffe://a.org/web", "web"]);
    let with = |matcher| Validation { subject_alt_names: vec![matcher], ..spiffe(&[("a.org", &ca)]) };
    let own = ca.leaf(&["api.example.com"]);
    let by_uri = strict_server(&own, Some(&with(exact(SanKind::Uri, "spiffe://a.org/web"))));
    assert_eq!(refusal(&by_uri, &leaf).await, None);
    let by_dns = strict_server(&own, Some(&with(exact(SanKind::Dns, "web"))));
    assert_eq!(refusal(&by_dns, &leaf).await.unwrap().0, HandshakeFailure::SubjectAltName);
}

#[test]
fn a_bad_bundle_names_its_trust_domain() {
    let bundle = TrustDomain { name: "a.org".into(), bundle_pem: b"rubbish".to_vec() };
    let trust = Some(Arc::new(SpiffeTrust { domains: vec![bundle] }));
    let validation = Validation { spiffe: trust, ..Validation::default() };
    let error = ClientTls::build(&upstream(common()), &[], Some(&validation)).unwrap_err().to_string();
    assert_eq!(error, "trusted certificates (inline): trust domain \"a.org\": no certificate in the PEM data");
}

#[tokio::test]
async fn other_names_are_matched_by_identifier() {
    let ca = Authority::new("ca");
    let upn = vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3];
    let leaf = ca.leaf_with(&["x"], |params| {
        params.subject_alt_names.push(SanType::OtherName((upn, "web@a.org".into())));
    });
    let with = |oid: &str| {
        let matcher = StringMatcher::Exact { value: "web@a.org".to_owned(), ignore_case: false };
        let matcher = SanMatcher { kind: Some(SanKind::OtherName), oid: Some(oid.into()), matcher };
        let validation = Validation { subject_alt_names: vec![matcher], ..ca.validation() };
        strict_server(&ca.leaf(&["api.example.com"]), Some(&validation))
    };
    assert_eq!(refusal(&with("1.3.6.1.4.1.311.20.2.3"), &leaf).await, None);
    let refused = refusal(&with("1.3.6.1.4.1.311.20.2.4"), &leaf).await.unwrap();
    assert_eq!(refused.0, HandshakeFailure::SubjectAltName);
}

#[tokio::test]
async fn signature_algorithms_limit_both_signing_and_verifying() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api.example.com"]);
    let only = |name| CommonTls { signature_algorithms: vec![name], ..common() };
    for (name, works) in [("ecdsa_secp256r1_sha256", true), ("rsa_pss_rsae_sha256", false)] {
        // The server cannot sign with it.
        let server = ServerTls::build(&downstream(only(name)), &[leaf.secret()], None).unwrap();
        assert_eq!(connect(&server, &client(None, None)).await.0.is_ok(), works, "{name}");
        // The client does not offer to verify anything else.
        let server = super::pki::server(&leaf, None);
        let client = ClientTls::build(&upstream(only(name)), &[], None).unwrap();
        assert_eq!(connect(&server, &client).await.0.is_ok(), works, "{name}");
    }
}

#[tokio::test]
async fn the_policy_leaves_its_own_algorithms() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api.example.com"]);
    let strict = CommonTls {
        fips_202205: true,
        cipher_suites: vec!["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"],
        curves: vec!["P-256"],
        signature_algorithms: vec!["ecdsa_secp256r1_sha256"],
        ..common()
    };
    let server = ServerTls::build(&downstream(strict), &[leaf.secret()], None).unwrap();
    let (_, seen) = connect(&server, &client(None, None)).await;
    assert!(seen.unwrap().cipher.contains("GCM"));
    let other = CommonTls { curves: vec!["X25519"], ..common() };
    let other = ClientTls::build(&upstream(other), &[], None).unwrap();
    let reason = connect(&server, &other).await.0.unwrap_err().to_string();
    assert!(reason.contains("NO_SHARED_GROUP"), "{reason}");
}

#[tokio::test]
async fn secrets_of_both_sides_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let leaf = Authority::new("ca").leaf(&["api.example.com"]);
    let logged = |name: &str| {
        let path = directory.path().join(name);
        CommonTls { key_log: Some(Arc::new(KeyLog { path, local: Vec::new(), remote: Vec::new() })), ..common() }
    };
    let server = ServerTls::build(&downstream(logged("server")), &[leaf.secret()], None).unwrap();
    let client = ClientTls::build(&upstream(logged("client")), &[], None).unwrap();
    connect(&server, &client).await.0.unwrap();
    let read = |name: &str| {
        let text = std::fs::read_to_string(directory.path().join(name)).unwrap();
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert!(read("server").iter().any(|line| line.starts_with("SERVER_TRAFFIC_SECRET_0 ")));
    assert_eq!(read("server"), read("client"));
}

#[test]
fn staples_that_cannot_be_used() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api.example.com"]);
    let build = |policy, staple: Option<&[u8]>, leaf: &Leaf| {
        let certificate = TlsCertificate { ocsp_staple: staple.map(<[u8]>::to_vec), ..(*leaf.secret()).clone() };
        let config = DownstreamTls { ocsp_policy: policy, ..downstream(common()) };
        ServerTls::build(&config, &[Arc::new(certificate)], None)
    };
    let error = build(OcspPolicy::Lenient, Some(b"rubbish"), &leaf).unwrap_err();
    assert!(error.to_string().starts_with("ocsp_staple (inline): not a valid OCSP response"), "{error}");
    let error = build(OcspPolicy::Must, None, &leaf).unwrap_err();
    assert_eq!(error.to_string(), "ocsp_staple (inline): is required by ocsp_staple_policy MUST_STAPLE");
    let feature = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], vec![0x30, 3, 2, 1, 5]);
    let stern = ca.leaf_with(&["api.example.com"], |params| params.custom_extensions.push(feature));
    let error = build(OcspPolicy::Lenient, None, &stern).unwrap_err();
    assert!(matches!(error, TlsError::Staple { .. }), "{error}");
    assert!(build(OcspPolicy::Strict, None, &leaf).is_ok());
}
