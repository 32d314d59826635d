//! OCSP responses that are stapled to our own certificates (RFC 6960).
//!
//! Owns the reading of a response as far as it matters here: whose it is, and until when it holds. Never verifies its
//! signature, which is the client's to do, and never fetches one.

use outrigger_config::tls::OcspPolicy;
use rustls::pki_types::UnixTime;
use x509_cert::der::asn1::{Any, GeneralizedTime, ObjectIdentifier, OctetString};
use x509_cert::der::{Decode, Encode, Tag, Tagged};

/// A response, read.
pub(super) struct Staple {
    /// `None`: the response does not say; it counts as expired, as with Envoy.
    next_update: Option<UnixTime>,
}

/// What becomes of the certificate in a handshake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stapling {
    /// The response goes with it.
    Stapled,
    /// It goes alone.
    Omitted,
    /// It must not be used.
    Refused,
}

impl Staple {
    /// Until when it holds, in Unix seconds, if it says so.
    pub(super) fn expires(&self) -> Option<u64> {
        self.next_update.map(|time| time.as_secs())
    }

    /// Reads a DER-encoded response for the certificate with the given serial number.
    pub(super) fn read(der: &[u8], serial: &[u8]) -> Result<Self, String> {
        let broken = |error: x509_cert::der::Error| format!("not a valid OCSP response: {error}");
        let response = Vec::<Any>::from_der(der).map_err(broken)?;
        match response.first().map(|status| (status.tag(), status.value())) {
            Some((Tag::Enumerated, [0])) => {}
            Some((Tag::Enumerated, [status])) => {
                return Err(format!("OCSP response has status {status}, expected 0 (successful)"));
            }
            _ => return Err("not a valid OCSP response: it has no status".to_owned()),
        }
        let basic = response.get(1).ok_or("OCSP response is empty")?;
        let basic = Vec::<Any>::from_der(basic.value()).map_err(broken)?;
        let [kind, content] = &basic[..] else { return Err("OCSP response is not a basic one".to_owned()) };
        if kind.decode_as::<ObjectIdentifier>().map_err(broken)? != BASIC_RESPONSE {
            return Err("OCSP response is not a basic one".to_owned());
        }
        let content = content.decode_as::<OctetString>().map_err(broken)?;
        let single = single_response(content.as_bytes()).map_err(broken)?;
        let [single] = &single[..] else {
            return Err(format!("OCSP response is about {} certificates, expected one", single.len()));
        };
        Self::read_single(single, serial)
            .map_err(broken)?
            .ok_or_else(|| "OCSP response is for another certificate: it has another serial number".to_owned())
    }

    /// `None` if it is about another certificate.
    fn read_single(single: &Any, serial: &[u8]) -> x509_cert::der::Result<Option<Self>> {
        let fields = items(single)?;
        let id = fields.first().map(items).transpose()?.unwrap_or_default();
        let found = id.get(3).map(|number| without_zeros(number.value()));
        if found != Some(without_zeros(serial)) {
            return Ok(None);
        }
        // certID, certStatus, thisUpdate, nextUpdate [0], singleExtensions [1]
        let next = fields
            .get(3)
            .filter(|field| matches!(field.tag(), Tag::ContextSpecific { number, .. } if number.value() == 0));
        let next_update = match next {
            Some(field) => {
                let time = GeneralizedTime::from_der(field.value())?;
                Some(UnixTime::since_unix_epoch(time.to_unix_duration()))
            }
            None => None,
        };
        Ok(Some(Self { next_update }))
    }

    /// Whether it still holds.
    pub(super) fn is_fresh(&self, now: UnixTime) -> bool {
        self.next_update.is_some_and(|next| now.as_secs() < next.as_secs())
    }
}

/// Until when a DER-encoded response for the certificate with the given serial number holds, in seconds since 1970;
/// `None` if it does not say.
///
/// # Errors
/// Why it cannot be stapled to that certificate.
pub fn staple_holds_until(der: &[u8], serial: &[u8]) -> Result<Option<u64>, String> {
    Staple::read(der, serial).map(|staple| staple.expires())
}

/// What a policy says; `staple` is the response with whether it still holds.
pub(super) fn stapling(policy: OcspPolicy, fresh: Option<bool>) -> Stapling {
    match (policy, fresh) {
        (_, Some(true)) => Stapling::Stapled,
        (OcspPolicy::Lenient, _) | (OcspPolicy::Strict, None) => Stapling::Omitted,
        (OcspPolicy::Strict, Some(false)) | (OcspPolicy::Must, _) => Stapling::Refused,
    }
}

/// The single responses of a BasicOCSPResponse.
fn single_response(der: &[u8]) -> x509_cert::der::Result<Vec<Any>> {
    let basic = Vec::<Any>::from_der(der)?;
    let data = basic.first().map(items).transpose()?.unwrap_or_default();
    // version and responderID, which come before, have tags of their own.
    data.iter().find(|field| field.tag() == Tag::Sequence).map(items).transpose().map(Option::unwrap_or_default)
}

fn items(sequence: &Any) -> x509_cert::der::Result<Vec<Any>> {
    Vec::<Any>::from_der(&sequence.to_der()?)
}

fn without_zeros(mut number: &[u8]) -> &[u8] {
    while let [0, rest @ ..] = number {
        number = rest;
    }
    number
}

const BASIC_RESPONSE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len();
        let head = match u8::try_from(length) {
            Ok(short) if short < 128 => vec![tag, short],
            Ok(short) => vec![tag, 0x81, short],
            Err(_) => vec![tag, 0x82, (length >> 8) as u8, length as u8],
        };
        [head, content.to_vec()].concat()
    }

    fn seq(parts: &[Vec<u8>]) -> Vec<u8> {
        tlv(0x30, &parts.concat())
    }

    fn single(serial: &[u8], next: Option<&str>) -> Vec<u8> {
        let id = seq(&[seq(&[tlv(6, &[0x2b, 0x0e, 3, 2, 0x1a])]), tlv(4, &[1; 20]), tlv(4, &[2; 20]), tlv(2, serial)]);
        let mut parts = vec![id, tlv(0x80, &[]), tlv(0x18, b"20300101000000Z")];
        parts.extend(next.map(|time| tlv(0xa0, &tlv(0x18, time.as_bytes()))));
        seq(&parts)
    }

    /// A response as `openssl ocsp` writes it, without a signature that counts.
    pub(crate) fn response(singles: &[Vec<u8>]) -> Vec<u8> {
        let data = seq(&[tlv(0xa2, &tlv(4, &[3; 20])), tlv(0x18, b"20300101000000Z"), seq(singles)]);
        let basic = seq(&[data, seq(&[tlv(6, &[0x2a, 0x86, 0x48])]), tlv(3, &[0, 1])]);
        let id = [0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];
        seq(&[tlv(10, &[0]), tlv(0xa0, &seq(&[tlv(6, &id), tlv(4, &basic)]))])
    }

    #[test]
    fn a_response_says_until_when_it_holds() {
        let staple = Staple::read(&response(&[single(&[0, 0xab], Some("20300102000000Z"))]), &[0xab]).unwrap();
        let end = UnixTime::since_unix_epoch(Duration::from_secs(1_893_542_400));
        assert!(!staple.is_fresh(end));
        assert!(staple.is_fresh(UnixTime::since_unix_epoch(Duration::from_secs(end.as_secs() - 1))));
        let endless = Staple::read(&response(&[single(&[5], None)]), &[5]).unwrap();
        assert!(!endless.is_fresh(UnixTime::since_unix_epoch(Duration::ZERO)));
    }

    #[test]
    fn responses_that_are_refused() {
        let one = single(&[5], None);
        let cases = [
            (b"rubbish".to_vec(), "not a valid OCSP response"),
            (seq(&[tlv(10, &[6])]), "OCSP response has status 6, expected 0 (successful)"),
            (seq(&[tlv(10, &[0])]), "OCSP response is empty"),
            (response(&[one.clone(), one.clone()]), "OCSP response is about 2 certificates, expected one"),
            (response(&[single(&[6], None)]), "OCSP response is for another certificate"),
        ];
        for (der, expected) in cases {
            let error = Staple::read(&der, &[5]).err().unwrap();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn policies() {
        use OcspPolicy::{Lenient, Must, Strict};
        for (policy, fresh, expected) in [
            (Lenient, None, Stapling::Omitted),
            (Lenient, Some(false), Stapling::Omitted),
            (Strict, None, Stapling::Omitted),
            (Strict, Some(false), Stapling::Refused),
            (Must, None, Stapling::Refused),
            (Must, Some(false), Stapling::Refused),
            (Must, Some(true), Stapling::Stapled),
        ] {
            assert_eq!(stapling(policy, fresh), expected);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
            let mut der = response(&[single(&[5], Some("20300102000000Z"))]);
            let index = at.index(der.len());
            der[index] = byte;
            der.truncate(cut.index(der.len()) + 1);
            let _ = Staple::read(&der, &[5]);
        }
    }
}
