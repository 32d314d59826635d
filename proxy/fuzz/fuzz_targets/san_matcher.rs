//! Matchers of names in certificates.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::stream::PeerCertificate;
use outrigger::tls::peer_has_name;
use outrigger_config::matching::StringMatcher;
use outrigger_config::tls::{SanKind, SanMatcher};

fuzz_target!(|input: (String, Vec<String>, Vec<String>, bool)| {
    let (wanted, uri_sans, dns_sans, ignore_case) = input;
    let matcher = |kind, matcher| SanMatcher { kind: Some(kind), oid: None, matcher };
    let exact = || StringMatcher::Exact { value: wanted.clone(), ignore_case: false };
    let contains = || StringMatcher::Contains { value: wanted.clone(), ignore_case };
    let peer = |uri_sans: &[String], dns_sans: &[String]| PeerCertificate {
        uri_sans: uri_sans.to_vec(),
        dns_sans: dns_sans.to_vec(),
        ..PeerCertificate::default()
    };
    let both = peer(&uri_sans, &dns_sans);
    let is_named = peer_has_name(&both, &matcher(SanKind::Uri, exact()));
    assert_eq!(is_named, uri_sans.contains(&wanted), "a URI is only itself");
    // Kinds do not mix.
    for kind in [SanKind::Uri, SanKind::Dns] {
        let other = if kind == SanKind::Uri { peer(&[], &dns_sans) } else { peer(&uri_sans, &[]) };
        assert!(!peer_has_name(&other, &matcher(kind, exact())));
        assert!(!peer_has_name(&other, &matcher(kind, contains())));
    }
    // A name of a host is itself, or has one more label than the wildcard that covers it.
    let covers = |pattern: &String| {
        let same = !pattern.is_empty() && pattern.eq_ignore_ascii_case(&wanted);
        let parent = pattern.strip_prefix("*.").filter(|parent| parent.contains('.'));
        let rest = wanted.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, rest)| rest);
        same || parent.zip(rest).is_some_and(|(parent, rest)| parent.eq_ignore_ascii_case(rest))
    };
    assert_eq!(peer_has_name(&both, &matcher(SanKind::Dns, exact())), dns_sans.iter().any(covers));
});
