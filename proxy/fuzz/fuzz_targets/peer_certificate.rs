//! The certificate of a peer: X.509, its names, and the matchers that are asked about them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::stream::PeerCertificate;
use outrigger::tls::peer_has_name;
use outrigger_config::matching::StringMatcher;
use outrigger_config::tls::{SanKind, SanMatcher};

fuzz_target!(|data: &[u8]| {
    let peer = PeerCertificate { chain_der: vec![data.to_vec()], ..PeerCertificate::default() };
    let matcher = || StringMatcher::Prefix { value: "a".to_owned(), ignore_case: true };
    for kind in [None, Some(SanKind::Email), Some(SanKind::IpAddress), Some(SanKind::OtherName)] {
        let oid = (kind == Some(SanKind::OtherName)).then(|| "1.3.6.1.4.1.311.20.2.3".into());
        peer_has_name(&peer, &SanMatcher { kind, oid, matcher: matcher() });
    }
});
