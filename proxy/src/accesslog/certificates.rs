//! Operators about the certificates of a connection, on both sides.
//!
//! Owns what is printed of them. Certificates are read when somebody asks, which is seldom: connections keep their bytes.

use std::time::SystemTime;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outrigger_config::format::{CertificatePart, Whose};

use super::facts::Facts;
use super::format::{Given, list, non_empty, text};
use crate::stream::{PeerCertificate, TlsInfo};
use crate::tls::{CertificateReport, SubjectAltName, certificate_report};

/// Writes a part of a certificate.
pub(super) fn write(whose: Whose, part: CertificatePart, facts: &Facts<'_>, out: &mut Vec<u8>) -> Given {
    let upstream = facts.info.upstream_tls.borrow();
    let Some(tls) = side(whose, facts, upstream.as_deref()) else { return Given::Absent };
    match whose {
        Whose::DownstreamPeer | Whose::UpstreamPeer => match tls.peer.as_deref() {
            Some(peer) => of_peer(peer, part, out),
            None => Given::Absent,
        },
        Whose::DownstreamLocal | Whose::UpstreamLocal => match (part, tls.local_chain()) {
            (CertificatePart::UriSans, _) => list(&tls.local_uri_sans, out),
            (part, Some(der)) => of_report(der, part, out),
            (_, None) => Given::Absent,
        },
    }
}

/// First and last moment at which a peer's certificate is valid.
pub(super) fn validity(whose: Whose, facts: &Facts<'_>) -> Option<(SystemTime, SystemTime)> {
    let upstream = facts.info.upstream_tls.borrow();
    let tls = side(whose, facts, upstream.as_deref())?;
    let report = certificate_report(tls.peer.as_deref()?.chain_der.first()?)?;
    Some((report.facts.not_before, report.facts.not_after))
}

fn side<'a>(whose: Whose, facts: &Facts<'a>, upstream: Option<&'a TlsInfo>) -> Option<&'a TlsInfo> {
    match whose {
        Whose::DownstreamPeer | Whose::DownstreamLocal => facts.connection.tls.as_ref(),
        Whose::UpstreamPeer | Whose::UpstreamLocal => upstream,
    }
}

fn of_peer(peer: &PeerCertificate, part: CertificatePart, out: &mut Vec<u8>) -> Given {
    use CertificatePart as Part;
    let chain = &peer.chain_der;
    let each = |of: fn(&[u8]) -> String| chain.iter().map(|der| of(der)).collect::<Vec<_>>();
    // The issuer counts if the chain was verified up to it.
    let issuer = chain.get(1).filter(|_| peer.verified);
    match part {
        Part::UriSans => list(&peer.uri_sans, out),
        Part::DnsSans => list(&peer.dns_sans, out),
        Part::Subject => non_empty(&peer.subject, out),
        Part::Issuer => non_empty(&peer.issuer, out),
        Part::Fingerprint256 => non_empty(&peer.sha256, out),
        Part::ChainFingerprints256 => list(&each(sha256), out),
        Part::ChainFingerprints1 => list(&each(sha1), out),
        Part::ChainSerials => list(&each(serial), out),
        Part::IssuerFingerprint256 => text(issuer.map(|der| sha256(der)).as_deref().map(str::as_bytes), out),
        Part::IssuerSerial => text(issuer.map(|der| serial(der)).as_deref().map(str::as_bytes), out),
        Part::IpSans | Part::EmailSans | Part::OtherSans | Part::Fingerprint1 | Part::Serial | Part::Pem => {
            match chain.first() {
                Some(der) => of_report(der, part, out),
                None => Given::Absent,
            }
        }
    }
}

fn of_report(der: &[u8], part: CertificatePart, out: &mut Vec<u8>) -> Given {
    use CertificatePart as Part;
    if part == Part::Pem {
        return text(Some(url_encoded_pem(der).as_bytes()), out);
    }
    let Some(CertificateReport { facts, subject, issuer }) = certificate_report(der) else { return Given::Absent };
    let names =
        |of: fn(&SubjectAltName) -> Option<String>| facts.subject_alt_names.iter().filter_map(of).collect::<Vec<_>>();
    match part {
        Part::UriSans => {
            list(&names(|name| if let SubjectAltName::Uri(uri) = name { Some(uri.clone()) } else { None }), out)
        }
        Part::DnsSans => {
            list(&names(|name| if let SubjectAltName::Dns(dns) = name { Some(dns.clone()) } else { None }), out)
        }
        Part::IpSans => {
            list(&names(|name| if let SubjectAltName::Ip(ip) = name { Some(ip.to_string()) } else { None }), out)
        }
        Part::EmailSans => {
            list(&names(|name| if let SubjectAltName::Email(mail) = name { Some(mail.clone()) } else { None }), out)
        }
        Part::Subject => non_empty(&subject, out),
        Part::Issuer => non_empty(&issuer, out),
        Part::Serial => non_empty(&facts.serial, out),
        Part::Fingerprint256 => non_empty(&sha256(der), out),
        Part::Fingerprint1 => non_empty(&sha1(der), out),
        // Names of kinds that nobody gives a text.
        _ => Given::Absent,
    }
}

fn sha256(der: &[u8]) -> String {
    hex(digest(&SHA256, der).as_ref())
}

fn sha1(der: &[u8]) -> String {
    hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, der).as_ref())
}

fn serial(der: &[u8]) -> String {
    certificate_report(der).map(|report| report.facts.serial).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// PEM, of which everything but letters, digits and `-_.~` is percent-encoded.
fn url_encoded_pem(der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = String::from("-----BEGIN%20CERTIFICATE-----%0A");
    for line in encoded.as_bytes().chunks(64) {
        for byte in line {
            match byte {
                b'+' => text.push_str("%2B"),
                b'/' => text.push_str("%2F"),
                b'=' => text.push_str("%3D"),
                byte => text.push(char::from(*byte)),
            }
        }
        text.push_str("%0A");
    }
    text.push_str("-----END%20CERTIFICATE-----%0A");
    text
}
