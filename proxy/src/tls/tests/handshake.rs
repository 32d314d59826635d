//! Handshakes that succeed.

use outrigger_config::tls::{CommonTls, DownstreamTls, SanKind, UpstreamTls, Validation};
use rcgen::{KeyPair, PKCS_RSA_SHA256};

use super::pki::*;
use crate::tls::{ClientTls, ServerTls};

#[tokio::test]
async fn defaults_are_tls13_with_aes128() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api.example.com", "spiffe://td/ns/a/sa/api"]);
    let (server, client) = connect(&server(&leaf, None), &client(None, Some(&ca.validation()))).await;
    let (server, client) = (server.unwrap(), client.unwrap());
    assert_eq!((server.version, server.cipher), ("TLSv1.3", "TLS_AES_128_GCM_SHA256"));
    assert_eq!(server.local_uri_sans, ["spiffe://td/ns/a/sa/api"]);
    assert!(server.peer.is_none());
    assert_eq!((client.version, client.cipher), (server.version, server.cipher));
    let peer = client.peer.unwrap();
    assert!(peer.verified);
    assert_eq!((peer.subject.as_str(), peer.issuer.as_str()), ("CN=leaf", "CN=ca"));
    assert_eq!(peer.uri_sans, ["spiffe://td/ns/a/sa/api"]);
    assert_eq!(peer.chain_der, [leaf.der]);
}

#[tokio::test]
async fn tls12_with_a_cipher_list_and_a_curve() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api.example.com"]);
    let list =
        CommonTls { cipher_suites: vec!["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"], curves: vec!["P-384"], ..common() };
    let server = ServerTls::build(&downstream(list), &[leaf.secret()], None).unwrap();
    let client = ClientTls::build(&upstream(only(true, false)), &[], Some(&ca.validation())).unwrap();
    let info = connect(&server, &client).await.0.unwrap();
    assert_eq!((info.version, info.cipher), ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384"));
}

#[tokio::test]
async fn mutual_tls_shows_each_side_the_other() {
    let ca = Authority::new("ca");
    let validation = ca.validation();
    let near = ca.leaf(&["spiffe://td/ns/a/sa/web"]);
    let far = ca.leaf(&["spiffe://td/ns/a/sa/api"]);
    for versions in [(true, false), (false, true)] {
        let config = DownstreamTls { require_client_certificate: true, ..downstream(only(versions.0, versions.1)) };
        let server = ServerTls::build(&config, &[far.secret()], Some(&validation)).unwrap();
        let (server, client) = connect(&server, &client(Some(&near), Some(&validation))).await;
        let peer = server.unwrap().peer.unwrap();
        assert_eq!(peer.uri_sans, ["spiffe://td/ns/a/sa/web"]);
        assert!(peer.verified);
        let client = client.unwrap();
        assert_eq!(client.local_uri_sans, ["spiffe://td/ns/a/sa/web"]);
        assert_eq!(client.peer.unwrap().uri_sans, ["spiffe://td/ns/a/sa/api"]);
    }
}

#[tokio::test]
async fn client_certificates_are_optional_unless_required() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api.example.com"]);
    let server_info = connect(&server(&leaf, Some(&ca.validation())), &client(None, None)).await.0.unwrap();
    assert!(server_info.peer.is_none());
    // Without anything to verify with, a client is not even asked.
    let server_info = connect(&server(&leaf, None), &client(Some(&leaf), None)).await.0.unwrap();
    assert!(server_info.peer.is_none());
}

#[tokio::test]
async fn alpn_is_chosen_by_the_server_and_no_overlap_is_no_alpn() {
    let leaf = Authority::new("ca").leaf(&["api.example.com"]);
    let server = ServerTls::build(&downstream(alpn(&["h2", "http/1.1"])), &[leaf.secret()], None).unwrap();
    for (offer, expected) in [
        (&["http/1.1", "h2"][..], Some(&b"h2"[..])),
        (&["http/1.1"], Some(b"http/1.1")),
        (&["istio-peer-exchange"], None),
        (&[], None),
    ] {
        let client = ClientTls::build(&upstream(alpn(offer)), &[], None).unwrap();
        let (server, client) = connect(&server, &client).await;
        assert_eq!(server.unwrap().alpn.as_deref(), expected, "{offer:?}");
        assert_eq!(client.unwrap().alpn.as_deref(), expected, "{offer:?}");
    }
    let client = ClientTls::build(&upstream(alpn(&["h2"])), &[], None).unwrap();
    let info = connect_as(&server, &client, None, Some(&[b"http/1.1".to_vec()])).await.0.unwrap();
    assert_eq!(info.alpn.as_deref(), Some(&b"http/1.1"[..]));
}

#[tokio::test]
async fn the_certificate_follows_the_server_name() {
    let ca = Authority::new("ca");
    let leaves = [ca.leaf(&["first.example.com"]), ca.leaf(&["*.example.com"]), ca.leaf(&["exact.example.com"])];
    let secrets: Vec<_> = leaves.iter().map(Leaf::secret).collect();
    let server = ServerTls::build(&downstream(common()), &secrets, None).unwrap();
    for (name, expected) in [
        ("exact.example.com", "exact.example.com"),
        ("other.example.com", "*.example.com"),
        ("outbound_.80_._.api.default.svc", "first.example.com"),
        ("10.0.0.1", "first.example.com"),
        ("", "first.example.com"),
    ] {
        let info = connect_as(&server, &client(None, None), Some(name), None).await.1.unwrap();
        assert_eq!(info.peer.unwrap().dns_sans, [expected], "{name}");
    }
}

#[tokio::test]
async fn rsa_and_ecdsa_side_by_side() {
    let ca = Authority::new("ca");
    let rsa = ca.leaf_with_key(&["api.example.com"], KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap(), |_| {});
    let ecdsa = ca.leaf(&["api.example.com"]);
    let server = ServerTls::build(&downstream(common()), &[rsa.secret(), ecdsa.secret()], None).unwrap();
    let trusted = ca.validation();
    let info = connect(&server, &client(None, Some(&trusted))).await.1.unwrap();
    assert_eq!(info.peer.unwrap().chain_der, [ecdsa.der]);
    let suites = CommonTls { cipher_suites: vec!["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"], ..only(true, false) };
    let only_rsa = ServerTls::build(&downstream(common()), &[rsa.secret()], None).unwrap();
    let client = ClientTls::build(&upstream(suites), &[], Some(&trusted)).unwrap();
    let info = connect(&only_rsa, &client).await.1.unwrap();
    assert_eq!(info.cipher, "ECDHE-RSA-AES128-GCM-SHA256");
    assert_eq!(info.peer.unwrap().chain_der, [rsa.der]);
}

#[tokio::test]
async fn no_host_name_is_checked_unless_asked_for() {
    let ca = Authority::new("ca");
    let server = server(&ca.leaf(&["other.example.org"]), None);
    assert!(connect(&server, &client(None, Some(&ca.validation()))).await.1.is_ok());
    let matching = Validation {
        subject_alt_names: vec![exact(SanKind::Dns, "no.example.org"), exact(SanKind::Dns, "other.example.org")],
        ..ca.validation()
    };
    assert!(connect(&server, &client(None, Some(&matching))).await.1.is_ok());
}

#[tokio::test]
async fn the_sent_name_can_be_checked() {
    let ca = Authority::new("ca");
    let server = server(&ca.leaf(&["*.example.com", "10.0.0.1"]), None);
    let config = UpstreamTls { auto_sni_san_validation: true, ..upstream(common()) };
    // It takes the place of matchers.
    let validation = Validation { subject_alt_names: vec![exact(SanKind::Dns, "elsewhere.org")], ..ca.validation() };
    let client = ClientTls::build(&config, &[], Some(&validation)).unwrap();
    for name in ["api.example.com", "api.example.com.", "10.0.0.1"] {
        assert!(connect_as(&server, &client, Some(name), None).await.1.is_ok(), "{name}");
    }
}

#[tokio::test]
async fn without_a_trusted_ca_any_server_is_accepted_but_not_called_verified() {
    let server = server(&Authority::new("unknown").leaf(&["x"]), None);
    let peer = connect(&server, &client(None, None)).await.1.unwrap().peer.unwrap();
    assert!(!peer.verified);
}

#[tokio::test]
async fn untrusted_clients_may_be_accepted_and_are_told_apart() {
    let (known, unknown) = (Authority::new("known"), Authority::new("unknown"));
    let validation = Validation { accept_untrusted: true, ..known.validation() };
    let server = strict_server(&known.leaf(&["api"]), Some(&validation));
    for (authority, verified) in [(&known, true), (&unknown, false)] {
        let info = connect(&server, &client(Some(&authority.leaf(&["web"])), None)).await.0.unwrap();
        assert_eq!(info.peer.unwrap().verified, verified);
    }
}

#[tokio::test]
async fn accepting_untrusted_clients_asks_them_but_needs_no_certificate() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api"]);
    let nothing = Validation { accept_untrusted: true, ..Validation::default() };
    let names = Validation { subject_alt_names: vec![exact(SanKind::Dns, "web")], ..ca.validation() };
    for validation in [nothing.clone(), Validation { accept_untrusted: true, ..names }] {
        let server = server(&leaf, Some(&validation));
        assert!(connect(&server, &client(None, None)).await.0.unwrap().peer.is_none());
        let peer = connect(&server, &client(Some(&ca.leaf(&["other"])), None)).await.0.unwrap().peer.unwrap();
        assert!(!peer.verified);
    }
}

#[tokio::test]
async fn pins_stand_alone_or_beside_a_ca() {
    use base64::Engine as _;
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api"]);
    let spki = crate::tls::certificate::Parsed::read(&leaf.der).unwrap().public_key().unwrap();
    let spki = base64::engine::general_purpose::STANDARD.encode(crate::tls::intern::sha256(&spki));
    let hash = crate::tls::intern::hex(&crate::tls::intern::sha256(&leaf.der));
    let server = server(&leaf, None);
    for validation in [
        Validation { spki_pins: vec![spki.clone()], ..Validation::default() },
        Validation { certificate_hashes: vec!["0".repeat(64), hash], ..ca.validation() },
        Validation { certificate_hashes: vec!["0".repeat(64)], spki_pins: vec![spki], ..ca.validation() },
    ] {
        assert!(connect(&server, &client(None, Some(&validation))).await.1.is_ok());
    }
}

#[tokio::test]
async fn a_leaf_that_is_itself_trusted_needs_no_issuer() {
    let leaf = Authority::new("nowhere to be found").leaf(&["api"]);
    let validation = Validation { trusted_ca_pem: leaf.pem.clone().into_bytes(), ..Validation::default() };
    let peer = connect(&server(&leaf, None), &client(None, Some(&validation))).await.1.unwrap().peer.unwrap();
    assert!(peer.verified);
}

#[tokio::test]
async fn intermediates_are_sent_and_an_intermediate_can_be_the_anchor() {
    let root = Authority::new("root");
    let middle = root.intermediate("middle");
    let server = server(&middle.leaf(&["api"]).below(&middle), None);
    for trusted in [&root, &middle] {
        assert!(connect(&server, &client(None, Some(&trusted.validation()))).await.1.is_ok());
    }
    let two = Validation { max_verify_depth: Some(2), ..root.validation() };
    assert!(connect(&server, &client(None, Some(&two))).await.1.is_ok());
}

#[tokio::test]
async fn expired_certificates_load_and_pass_where_allowed() {
    let ca = Authority::new("ca");
    let expired = ca.leaf_with(&["api"], |params| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    let future = ca.leaf_with(&["api"], |params| params.not_before = rcgen::date_time_ymd(3000, 1, 1));
    let validation = Validation { allow_expired: true, ..ca.validation() };
    for leaf in [expired, future] {
        let result = connect(&server(&leaf, None), &client(None, Some(&validation))).await.1;
        assert!(result.is_ok(), "{result:?}");
    }
}

#[tokio::test]
async fn a_client_comes_back_with_a_ticket() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api.example.com"]);
    for common in [only(true, false), only(false, true)] {
        for stateless in [true, false] {
            let config = DownstreamTls { disable_stateless_resumption: !stateless, ..downstream(common.clone()) };
            let server = ServerTls::build(&config, &[leaf.secret()], Some(&ca.validation())).unwrap();
            let client = client(Some(&leaf), Some(&ca.validation()));
            assert!(!resumed(&server, &client).await);
            assert!(resumed(&server, &client).await, "{stateless} {:?}", common.versions);
            assert!(resumed(&server, &client).await);
        }
    }
}

#[tokio::test]
async fn resumption_can_be_switched_off_on_both_sides() {
    let leaf = Authority::new("ca").leaf(&["api.example.com"]);
    let config =
        DownstreamTls { disable_stateless_resumption: true, disable_stateful_resumption: true, ..downstream(common()) };
    let never = ServerTls::build(&config, &[leaf.secret()], None).unwrap();
    let keeps = client(None, None);
    let forgets = ClientTls::build(&UpstreamTls { max_session_keys: 0, ..upstream(common()) }, &[], None).unwrap();
    let willing = server(&leaf, None);
    for (server, client) in [(&never, &keeps), (&willing, &forgets)] {
        assert!(!resumed(server, client).await);
        assert!(!resumed(server, client).await);
    }
}

pub(super) async fn resumed(server: &ServerTls, client: &ClientTls) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (near, far) = tokio::io::duplex(64 << 10);
    let serve = async {
        let (mut stream, info) = server.accept(far).await.unwrap();
        stream.write_u8(1).await.unwrap();
        let _ = stream.shutdown().await;
        info
    };
    let ask = async {
        let (mut stream, info) = client.connect(near, None, None).await.unwrap();
        stream.read_u8().await.unwrap();
        (stream.get_ref().1.handshake_kind(), info)
    };
    let (served, (kind, asked)) = tokio::join!(serve, ask);
    // What is known of the peer must not depend on resumption.
    assert!(asked.peer.is_some());
    assert_eq!(served.peer.is_some(), server.verifies_clients());
    kind == Some(rustls::HandshakeKind::Resumed)
}

#[tokio::test]
async fn keys_in_all_three_encodings() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api"]);
    let convert = |arguments: &[&str], pem: &str| -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let input = file(&dir, "key.pem", pem);
        let output = std::process::Command::new("openssl").args(arguments).arg("-in").arg(input).output().ok()?;
        String::from_utf8(output.stdout).ok().filter(|text| text.contains("PRIVATE KEY"))
    };
    let rsa = ca.leaf_with_key(&["api"], KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap(), |_| {});
    for (leaf, key) in [
        (&leaf, Some(leaf.key_pem.clone())),
        (&leaf, convert(&["ec"], &leaf.key_pem)),
        (&rsa, convert(&["rsa", "-traditional"], &rsa.key_pem)),
    ] {
        // A machine without openssl has only the first to try.
        let Some(key) = key else { continue };
        let secret = std::sync::Arc::new(certificate(&leaf.pem, &key));
        let server = ServerTls::build(&downstream(common()), &[secret], None).unwrap();
        assert!(connect(&server, &client(None, Some(&ca.validation()))).await.1.is_ok());
    }
}
