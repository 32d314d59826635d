//! Sessions that are taken up again: whose tickets count where, and how long.

use std::sync::Arc;
use std::time::Duration;

use outrigger_config::tls::{CommonTls, DownstreamTls, TicketKeys, Validation};

use super::handshake::resumed;
use super::pki::{Authority, Leaf, client, common, connect, downstream, only, upstream};
use crate::tls::{ClientTls, ServerTls};

fn keys(letters: &[u8]) -> TicketKeys {
    TicketKeys { keys: letters.iter().map(|letter| [*letter; 80]).collect(), files: Vec::new() }
}

fn server(leaf: &Leaf, validation: Option<&Validation>, letters: &[u8]) -> ServerTls {
    ServerTls::build_with(&downstream(common()), &[leaf.secret()], validation, Some(&keys(letters))).unwrap()
}

#[tokio::test]
async fn servers_with_the_same_keys_take_each_others_sessions() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api.example.com"]);
    // A certificate that was renewed is another one with the same names.
    let renewed = ca.leaf(&["api.example.com"]);
    for common in [only(true, false), only(false, true)] {
        let build = |leaf: &Leaf, letters: &[u8]| {
            let config = downstream(common.clone());
            ServerTls::build_with(&config, &[leaf.secret()], Some(&ca.validation()), Some(&keys(letters))).unwrap()
        };
        let client = client(Some(&leaf), Some(&ca.validation()));
        assert!(!resumed(&build(&leaf, b"a"), &client).await);
        assert!(resumed(&build(&renewed, b"a"), &client).await);
        // A new key comes first, and the old one still opens.
        assert!(resumed(&build(&leaf, b"ba"), &client).await);
        assert!(resumed(&build(&leaf, b"cb"), &client).await);
        assert!(!resumed(&build(&leaf, b"xy"), &client).await);
    }
}

#[tokio::test]
async fn a_session_is_worth_nothing_where_its_client_was_not_checked() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let leaf = ca.leaf(&["api.example.com"]);
    let client = client(Some(&leaf), Some(&ca.validation()));
    let lenient = Validation { accept_untrusted: true, ..ca.validation() };
    assert!(!resumed(&server(&leaf, Some(&lenient), b"a"), &client).await);
    assert!(!resumed(&server(&leaf, Some(&ca.validation()), b"a"), &client).await);
    assert!(resumed(&server(&leaf, Some(&ca.validation()), b"a"), &client).await);
    let both = [ca.pem, other.pem].concat();
    let wider = Validation { trusted_ca_pem: both.into_bytes(), ..Validation::default() };
    assert!(!resumed(&server(&leaf, Some(&wider), b"a"), &client).await);
}

#[tokio::test]
async fn a_timeout_holds_for_tickets_and_for_the_store() {
    let leaf = Authority::new("ca").leaf(&["api.example.com"]);
    for stateless in [true, false] {
        let config = DownstreamTls {
            session_timeout: Some(Duration::from_secs(3600)),
            disable_stateless_resumption: !stateless,
            ..downstream(common())
        };
        let server = ServerTls::build(&config, &[leaf.secret()], None).unwrap();
        let client = client(None, None);
        assert!(!resumed(&server, &client).await);
        assert!(resumed(&server, &client).await);
    }
}

#[tokio::test]
async fn a_session_remembers_how_it_began() {
    let ca = Authority::new("ca");
    let leaf = ca.leaf(&["api.example.com"]);
    let client = |common| ClientTls::build(&upstream(common), &[leaf.secret()], Some(&ca.validation())).unwrap();
    for (version, common) in [("TLSv1.2", only(true, false)), ("TLSv1.3", only(false, true))] {
        for stateless in [true, false] {
            let common = CommonTls { curves: vec!["P-384"], ..common.clone() };
            let config = DownstreamTls { disable_stateless_resumption: !stateless, ..downstream(common.clone()) };
            let server = ServerTls::build(&config, &[leaf.secret()], Some(&ca.validation())).unwrap();
            let client = client(common);
            for resumed in [false, true, true] {
                let (served, asked) = connect(&server, &client).await;
                let seen = [served, asked].map(|info| info.unwrap());
                let facts = seen.map(|info| (info.resumed, info.version, info.group, info.peer_signature));
                assert_eq!(facts, [(resumed, version, "P-384", "ecdsa_secp256r1_sha256"); 2], "stateless: {stateless}");
            }
        }
    }
}

#[test]
fn keys_are_not_printed() {
    let leaf = Authority::new("ca").leaf(&["api"]);
    let text = format!("{:?} {:?}", Arc::new(keys(b"s")), server(&leaf, None, b"s"));
    assert!(!text.contains("115") && !text.contains("sss"), "{text}");
}
