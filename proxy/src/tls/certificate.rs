//! What a certificate says: names, validity, serial number.
//!
//! Owns the reading of X.509. Never decides whether a certificate is to be trusted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_cert::Certificate;
use x509_cert::der::asn1::Any;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{Class, Decode, Encode, SliceReader, Tag, Tagged};

use super::error::TlsError;
use super::intern::{hex, sha256};
use super::name::rfc2253;
use crate::stream::PeerCertificate;

/// A certificate, read.
pub(super) struct Parsed {
    certificate: Certificate,
    /// In the order of the certificate.
    pub(super) names: Vec<SubjectAltName>,
}

/// A subject alternative name (RFC 5280, 4.2.1.6).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SubjectAltName {
    /// DNS name, as it stands there.
    Dns(String),
    /// URI, such as a SPIFFE ID.
    Uri(String),
    /// E-mail address.
    Email(String),
    /// IP address.
    Ip(IpAddr),
    /// Named by an object identifier, in dotted form; the value as text, if it is of a kind that has one.
    Other {
        /// Which name.
        oid: String,
        /// What it says.
        value: String,
    },
}

/// What `/certs` shows of a certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateFacts {
    /// Lower-case hex.
    pub serial: String,
    /// In the order of the certificate.
    pub subject_alt_names: Vec<SubjectAltName>,
    /// Valid from then on.
    pub not_before: SystemTime,
    /// Valid until then.
    pub not_after: SystemTime,
}

impl CertificateFacts {
    /// Whole days from `now`; 0 once expired.
    pub fn days_until_expiration(&self, now: SystemTime) -> u64 {
        self.not_after.duration_since(now).unwrap_or(Duration::ZERO).as_secs() / 86_400
    }
}

/// Reads all certificates of a PEM file, in order.
pub fn certificate_details(pem: &[u8]) -> Result<Vec<CertificateFacts>, TlsError> {
    read_chain(pem)
        .and_then(|chain| chain.iter().map(|der| Parsed::read(der).map(|parsed| parsed.facts())).collect())
        .map_err(|reason| TlsError::Chain { place: "inline".to_owned(), reason })
}

/// What may be said of a certificate.
pub struct CertificateReport {
    /// Names, serial number and validity.
    pub facts: CertificateFacts,
    /// RFC 2253.
    pub subject: String,
    /// RFC 2253.
    pub issuer: String,
}

/// Reads DER; `None` if it is no certificate.
pub fn certificate_report(der: &[u8]) -> Option<CertificateReport> {
    let parsed = Parsed::read(der).ok()?;
    let body = &parsed.certificate.tbs_certificate;
    Some(CertificateReport { facts: parsed.facts(), subject: rfc2253(&body.subject), issuer: rfc2253(&body.issuer) })
}

/// The certificates in `pem`, at least one.
pub(super) fn read_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("not valid PEM: {error}"))?;
    if chain.is_empty() { Err("no certificate in the PEM data".to_owned()) } else { Ok(chain) }
}

impl Parsed {
    /// Reads DER. The reason of a failure is for people.
    pub(super) fn read(der: &[u8]) -> Result<Self, String> {
        let certificate =
            Certificate::from_der(der).map_err(|error| format!("not a valid X.509 certificate: {error}"))?;
        let names = alt_names(&certificate)
            .map_err(|error| format!("subject alternative names of the certificate are malformed: {error}"))?;
        Ok(Self { certificate, names })
    }

    /// DNS names.
    pub(super) fn dns(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter_map(|name| match name {
            SubjectAltName::Dns(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// URI names.
    pub(super) fn uris(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter_map(|name| match name {
            SubjectAltName::Uri(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Its first URI name, else its first DNS name, else its subject.
    pub(super) fn principal(&self) -> std::sync::Arc<str> {
        match self.uris().next().or_else(|| self.dns().next()) {
            Some(name) => name.into(),
            None => rfc2253(&self.certificate.tbs_certificate.subject).into(),
        }
    }

    /// The common name of the subject, if it has one.
    pub(super) fn common_name(&self) -> Option<String> {
        let subject = &self.certificate.tbs_certificate.subject;
        let attribute = subject.0.iter().flat_map(|set| set.0.iter()).find(|attribute| attribute.oid == COMMON_NAME)?;
        super::name::text(&attribute.value)
    }

    /// DER of the subject public key info.
    pub(super) fn public_key(&self) -> Result<Vec<u8>, String> {
        let key = &self.certificate.tbs_certificate.subject_public_key_info;
        key.to_der().map_err(|error| format!("public key of the certificate is malformed: {error}"))
    }

    /// The serial number, as DER has it.
    pub(super) fn serial(&self) -> &[u8] {
        self.certificate.tbs_certificate.serial_number.as_bytes()
    }

    /// Whether it must not be shown without an OCSP response (RFC 7633, `status_request`).
    pub(super) fn must_staple(&self) -> bool {
        self.extension(TLS_FEATURE).is_some_and(|features| {
            Vec::<Any>::from_der(features).is_ok_and(|list| list.iter().any(|feature| feature.value() == [5]))
        })
    }

    /// Whether it may sign certificates or revocation lists, which a leaf of SPIFFE must not (X509-SVID, 4).
    pub(super) fn is_authority(&self) -> bool {
        let constraints = self.extension(BASIC_CONSTRAINTS).map(Vec::<Any>::from_der);
        let authority = match constraints {
            Some(Ok(fields)) => fields.iter().any(|field| field.tag() == Tag::Boolean && field.value() != [0]),
            Some(Err(_)) => true,
            None => false,
        };
        let usage = self.extension(KEY_USAGE).and_then(|der| Any::from_der(der).ok());
        // The first byte of a bit string counts unused bits. keyCertSign is bit 5, cRLSign is bit 6.
        let signs = usage.is_some_and(|bits| bits.value().get(1).is_some_and(|bits| bits & 0b0000_0110 != 0));
        authority || signs
    }

    fn extension(&self, id: ObjectIdentifier) -> Option<&[u8]> {
        let mut extensions = self.certificate.tbs_certificate.extensions.iter().flatten();
        extensions.find(|extension| extension.extn_id == id).map(|extension| extension.extn_value.as_bytes())
    }

    /// First and last moment of validity.
    pub(super) fn validity(&self) -> (UnixTime, UnixTime) {
        let validity = &self.certificate.tbs_certificate.validity;
        let moment = |time: x509_cert::time::Time| UnixTime::since_unix_epoch(time.to_unix_duration());
        (moment(validity.not_before), moment(validity.not_after))
    }

    fn facts(&self) -> CertificateFacts {
        let body = &self.certificate.tbs_certificate;
        let serial = body.serial_number.as_bytes();
        // DER puts a zero before a number whose top bit is set; nobody prints it.
        let serial = serial.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(serial);
        CertificateFacts {
            serial: hex(serial),
            subject_alt_names: self.names.clone(),
            not_before: body.validity.not_before.to_system_time(),
            not_after: body.validity.not_after.to_system_time(),
        }
    }
}

/// What logs and headers may say of a peer. A leaf that cannot be read shows nothing but its hash and its bytes.
pub(super) fn peer_certificate(chain: &[CertificateDer<'_>], verified: bool) -> Option<PeerCertificate> {
    let leaf = chain.first()?;
    let mut facts = PeerCertificate {
        sha256: hex(&sha256(leaf)),
        chain_der: chain.iter().map(|der| der.to_vec()).collect(),
        verified,
        ..PeerCertificate::default()
    };
    if let Ok(parsed) = Parsed::read(leaf) {
        facts.uri_sans = parsed.uris().map(str::to_owned).collect();
        facts.dns_sans = parsed.dns().map(str::to_owned).collect();
        facts.subject = rfc2253(&parsed.certificate.tbs_certificate.subject);
        facts.issuer = rfc2253(&parsed.certificate.tbs_certificate.issuer);
    }
    Some(facts)
}

/// The names are taken apart by tag, so that kinds which nobody matches (X.400 and the like) cannot make the rest
/// unreadable.
fn alt_names(certificate: &Certificate) -> x509_cert::der::Result<Vec<SubjectAltName>> {
    let mut names = Vec::new();
    for extension in certificate.tbs_certificate.extensions.iter().flatten() {
        if extension.extn_id != SUBJECT_ALT_NAME {
            continue;
        }
        for name in Vec::<Any>::from_der(extension.extn_value.as_bytes())? {
            names.extend(alt_name(&name));
        }
    }
    Ok(names)
}

fn alt_name(name: &Any) -> Option<SubjectAltName> {
    let Tag::ContextSpecific { number, constructed } = name.tag() else { return None };
    if constructed {
        return if number.value() == 0 { other_name(name.value()) } else { None };
    }
    debug_assert_eq!(name.tag().class(), Class::ContextSpecific);
    // A name with bytes outside of ASCII is no IA5String: it is left out rather than matched after a conversion.
    let ascii = || std::str::from_utf8(name.value()).ok().filter(|text| text.is_ascii()).map(str::to_owned);
    match number.value() {
        1 => ascii().map(SubjectAltName::Email),
        2 => ascii().map(SubjectAltName::Dns),
        6 => ascii().map(SubjectAltName::Uri),
        7 => match name.value() {
            [a, b, c, d] => Some(SubjectAltName::Ip(Ipv4Addr::new(*a, *b, *c, *d).into())),
            other => <[u8; 16]>::try_from(other).ok().map(|bytes| SubjectAltName::Ip(Ipv6Addr::from(bytes).into())),
        },
        _ => None,
    }
}

/// RFC 5280, 4.2.1.6: `type-id OBJECT IDENTIFIER, value [0] EXPLICIT ANY`.
fn other_name(content: &[u8]) -> Option<SubjectAltName> {
    let mut reader = SliceReader::new(content).ok()?;
    let oid = ObjectIdentifier::decode(&mut reader).ok()?;
    let value = Any::from_der(Any::decode(&mut reader).ok()?.value()).ok()?;
    let text = match value.tag() {
        Tag::Boolean => (value.value() != [0]).to_string(),
        Tag::OctetString => std::str::from_utf8(value.value()).ok()?.to_owned(),
        Tag::Integer | Tag::Enumerated => {
            let bytes = value.value();
            // Larger or negative ones have no name here.
            let fits = bytes.len() <= 8 && bytes.first().is_some_and(|first| *first < 0x80);
            fits.then(|| bytes.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte)))?.to_string()
        }
        _ => super::name::text(&value)?,
    };
    Some(SubjectAltName::Other { oid: oid.to_string(), value: text })
}

const TLS_FEATURE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.1.24");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn sample() -> (rcgen::Certificate, SystemTime) {
        let mut params = CertificateParams::new(vec!["api.example.com".to_owned(), "10.0.0.1".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI("spiffe://td/ns/a/sa/b".try_into().unwrap()));
        params.subject_alt_names.push(SanType::Rfc822Name("x@example.com".try_into().unwrap()));
        params.distinguished_name.push(DnType::CommonName, "api, v1");
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.serial_number = Some(vec![0xab, 0xcd].into());
        params.not_after = rcgen::date_time_ymd(2031, 1, 1);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        (certificate, SystemTime::UNIX_EPOCH + Duration::from_secs(1_924_992_000))
    }

    #[test]
    fn facts_of_a_certificate() {
        let (certificate, not_after) = sample();
        let facts = certificate_details(certificate.pem().as_bytes()).unwrap().remove(0);
        assert_eq!(facts.serial, "abcd");
        assert_eq!(facts.not_after, not_after);
        assert_eq!(facts.days_until_expiration(not_after - Duration::from_secs(2 * 86_400 + 5)), 2);
        assert_eq!(facts.days_until_expiration(not_after + Duration::from_secs(5)), 0);
        assert_eq!(
            facts.subject_alt_names,
            [
                SubjectAltName::Dns("api.example.com".to_owned()),
                SubjectAltName::Ip("10.0.0.1".parse().unwrap()),
                SubjectAltName::Uri("spiffe://td/ns/a/sa/b".to_owned()),
                SubjectAltName::Email("x@example.com".to_owned()),
            ]
        );
    }

    #[test]
    fn facts_of_a_peer() {
        let (certificate, _) = sample();
        let peer = peer_certificate(&[certificate.der().clone()], true).unwrap();
        assert_eq!(peer.uri_sans, ["spiffe://td/ns/a/sa/b"]);
        assert_eq!(peer.dns_sans, ["api.example.com"]);
        assert_eq!(peer.subject, "O=Example,CN=api\\, v1");
        assert_eq!(peer.issuer, peer.subject);
        assert_eq!(peer.sha256.len(), 64);
        assert!(peer.verified);
    }

    #[test]
    fn rubbish_is_refused_with_a_reason() {
        assert!(certificate_details(b"hello").unwrap_err().to_string().contains("no certificate in the PEM data"));
        assert!(Parsed::read(b"\x30\x03\x02\x01\x01").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(position in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
            let mut der = sample().0.der().to_vec();
            let at = position.index(der.len());
            der[at] = byte;
            der.truncate(cut.index(der.len()) + 1);
            let _ = Parsed::read(&der);
            let _ = peer_certificate(&[der.into()], false);
        }
    }
}
