//! Whether the names in a certificate are the expected ones.
//!
//! Owns what a match of each kind of name means. Never verifies chains.

use std::borrow::Cow;

use outrigger_config::matching::StringMatcher;
use outrigger_config::tls::{SanKind, SanMatcher};

use super::certificate::{Parsed, SubjectAltName};
use crate::stream::PeerCertificate;

/// Whether any matcher accepts any name.
pub(super) fn any_accepted(matchers: &[SanMatcher], names: &[SubjectAltName]) -> bool {
    matchers.iter().any(|matcher| names.iter().any(|name| accepted(matcher, name)))
}

/// Whether a peer's certificate has a name that `matcher` accepts.
pub fn peer_has_name(peer: &PeerCertificate, matcher: &SanMatcher) -> bool {
    let any = |names: &[String], kind: fn(String) -> SubjectAltName| {
        names.iter().any(|name| accepted(matcher, &kind(name.clone())))
    };
    match matcher.kind {
        Some(SanKind::Uri) => any(&peer.uri_sans, SubjectAltName::Uri),
        Some(SanKind::Dns) => any(&peer.dns_sans, SubjectAltName::Dns),
        // The others are rarely asked for, and not kept.
        _ => peer.chain_der.first().and_then(|leaf| Parsed::read(leaf).ok()).is_some_and(|leaf| {
            let names = &leaf.names;
            any_accepted(std::slice::from_ref(matcher), names)
        }),
    }
}

/// Whether a certificate with these names is for the server `expected` (a host name or an IP address).
pub(super) fn is_for_server(expected: &str, names: &[SubjectAltName]) -> bool {
    names.iter().any(|name| match name {
        SubjectAltName::Dns(pattern) => dns_matches(pattern, expected),
        SubjectAltName::Ip(address) => expected.parse() == Ok(*address),
        SubjectAltName::Uri(_) | SubjectAltName::Email(_) | SubjectAltName::Other { .. } => false,
    })
}

/// Whether `pattern`, a DNS name of a certificate, covers `host`. A wildcard stands for exactly one whole label, the
/// first one, and at least two labels must follow (RFC 6125, 6.4.3).
pub(super) fn dns_matches(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return !pattern.is_empty();
    }
    let Some(parent) = pattern.strip_prefix("*.") else { return false };
    match host.split_once('.') {
        Some((label, rest)) => !label.is_empty() && parent.contains('.') && parent.eq_ignore_ascii_case(rest),
        None => false,
    }
}

/// All names for a message.
pub(super) fn list(names: &[SubjectAltName]) -> String {
    // Peers choose how many names they send; a log line must not follow them without end.
    const SHOWN: usize = 8;
    let mut shown: Vec<_> = names.iter().take(SHOWN).map(|name| text(name).1).collect();
    if names.len() > SHOWN {
        shown.push(Cow::Borrowed("..."));
    }
    format!("[{}]", shown.join(", "))
}

fn accepted(matcher: &SanMatcher, name: &SubjectAltName) -> bool {
    let (kind, text) = text(name);
    let wanted = match (matcher.kind, name) {
        // The older list knows four kinds.
        (None, SubjectAltName::Other { .. }) => false,
        (Some(SanKind::OtherName), SubjectAltName::Other { oid, .. }) => matcher.oid.as_deref() == Some(oid),
        (wanted, _) => wanted.is_none_or(|wanted| wanted == kind),
    };
    if !wanted {
        return false;
    }
    match (&matcher.matcher, kind) {
        // An exact DNS name is accepted from a wildcard certificate too.
        (StringMatcher::Exact { value, .. }, SanKind::Dns) => dns_matches(&text, value),
        (other, _) => other.matches(text.as_bytes()),
    }
}

fn text(name: &SubjectAltName) -> (SanKind, Cow<'_, str>) {
    match name {
        SubjectAltName::Dns(name) => (SanKind::Dns, Cow::Borrowed(name)),
        SubjectAltName::Uri(name) => (SanKind::Uri, Cow::Borrowed(name)),
        SubjectAltName::Email(name) => (SanKind::Email, Cow::Borrowed(name)),
        SubjectAltName::Ip(address) => (SanKind::IpAddress, Cow::Owned(address.to_string())),
        SubjectAltName::Other { oid: _, value } => (SanKind::OtherName, Cow::Borrowed(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(name: &str) -> SubjectAltName {
        SubjectAltName::Dns(name.to_owned())
    }

    fn exact(kind: Option<SanKind>, value: &str) -> SanMatcher {
        SanMatcher { kind, oid: None, matcher: StringMatcher::Exact { value: value.to_owned(), ignore_case: false } }
    }

    #[test]
    fn wildcards_cover_one_label() {
        assert!(dns_matches("*.example.com", "API.example.com"));
        assert!(dns_matches("api.Example.com", "api.example.com"));
        assert!(!dns_matches("*.example.com", "a.b.example.com"));
        assert!(!dns_matches("*.example.com", "example.com"));
        assert!(!dns_matches("*.example.com", ".example.com"));
        assert!(!dns_matches("*.com", "example.com"));
        assert!(!dns_matches("*", "com"));
        assert!(!dns_matches("", ""));
    }

    #[test]
    fn kinds_do_not_mix() {
        let uri = SubjectAltName::Uri("spiffe://td/x".to_owned());
        assert!(any_accepted(&[exact(Some(SanKind::Uri), "spiffe://td/x")], std::slice::from_ref(&uri)));
        assert!(!any_accepted(&[exact(Some(SanKind::Dns), "spiffe://td/x")], std::slice::from_ref(&uri)));
        assert!(any_accepted(&[exact(None, "spiffe://td/x")], std::slice::from_ref(&uri)));
        let ip = SubjectAltName::Ip("10.0.0.1".parse().unwrap());
        assert!(any_accepted(&[exact(Some(SanKind::IpAddress), "10.0.0.1")], std::slice::from_ref(&ip)));
        assert!(!any_accepted(&[exact(Some(SanKind::Dns), "10.0.0.1")], std::slice::from_ref(&ip)));
    }

    #[test]
    fn other_names_go_by_their_identifier() {
        let upn = SubjectAltName::Other { oid: "1.3.6.1.4.1.311.20.2.3".to_owned(), value: "a@b".to_owned() };
        let matcher = |oid: &str| SanMatcher { oid: Some(oid.into()), ..exact(Some(SanKind::OtherName), "a@b") };
        let upn = std::slice::from_ref(&upn);
        assert!(any_accepted(&[matcher("1.3.6.1.4.1.311.20.2.3")], upn));
        assert!(!any_accepted(&[matcher("1.3.6.1.4.1.311.20.2.4")], upn));
        assert!(!any_accepted(&[exact(None, "a@b"), exact(Some(SanKind::Email), "a@b")], upn));
    }

    #[test]
    fn any_matcher_and_any_name_will_do() {
        let names = [dns("a.example.com"), dns("*.b.example.com")];
        assert!(any_accepted(&[exact(None, "z"), exact(Some(SanKind::Dns), "x.b.example.com")], &names));
        let prefix = StringMatcher::Prefix { value: "a.".to_owned(), ignore_case: false };
        assert!(any_accepted(&[SanMatcher { kind: Some(SanKind::Dns), oid: None, matcher: prefix }], &names));
        assert!(!any_accepted(&[], &names));
        assert!(is_for_server("A.example.com", &names));
        assert!(!is_for_server("b.example.com", &names));
        assert_eq!(list(&names), "[a.example.com, *.b.example.com]");
    }
}
