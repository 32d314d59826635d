//! The element of `x-forwarded-client-cert` that tells of a client's certificate, whatever that holds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::http::manager::client_cert::element;
use outrigger::stream::{PeerCertificate, TlsInfo};
use outrigger_config::http::ClientCertDetails;

fuzz_target!(|input: (String, String, Vec<String>, Vec<String>, Vec<String>, Vec<Vec<u8>>, u8)| {
    let (subject, issuer, uri_sans, dns_sans, local_uri_sans, chain_der, flags) = input;
    let peer = PeerCertificate { subject, issuer, uri_sans, dns_sans, chain_der, ..PeerCertificate::default() };
    let tls = TlsInfo { local_uri_sans, ..TlsInfo::default() };
    let mut details = ClientCertDetails::default();
    (details.subject, details.issuer, details.cert) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    (details.chain, details.dns, details.uri) = (flags & 8 != 0, flags & 16 != 0, flags & 32 != 0);
    details.json = flags & 64 != 0;
    let value = element(&tls, &peer, &details);
    assert!(!value.iter().any(u8::is_ascii_control), "{value:?}");
    if details.json {
        let read: serde_json::Value = serde_json::from_slice(&value).expect("JSON");
        let uris = read[0].get("uri").and_then(|uris| uris.as_array()).map_or(0, Vec::len);
        assert_eq!(uris, if details.uri { peer.uri_sans.len() } else { 0 }, "{read}");
    }
});
