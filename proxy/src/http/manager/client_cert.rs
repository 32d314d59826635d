//! `x-forwarded-client-cert`: what later hops are told of the certificate that a client showed.
//!
//! Owns both forms of the header and what becomes of the one that a client sent. Never verifies a certificate.

use std::borrow::Cow;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use outrigger_config::http::{ClientCertDetails, ClientCertForwarding, ForwardClientCert};
use serde_json::Value;

use super::request::Request;
use crate::http::filter;
use crate::http::headers::HeaderId;
use crate::http::message::joined;
use crate::stream::{PeerCertificate, TlsInfo};

/// Does to the header of a request what its connection manager says.
pub(super) fn forward(request: &mut Request<'_>) {
    let connection = request.connection;
    let config = &connection.node.config;
    let matched = config.client_cert_matcher.as_deref().and_then(|tree| filter::find_in(request, tree));
    let ClientCertForwarding { mode, details } = matched.copied().unwrap_or(config.client_cert);
    let tls = connection.info.tls.as_ref();
    let authenticated = tls.and_then(|tls| Some((tls, tls.peer.as_deref()?))).filter(|(_, peer)| peer.verified);
    let headers = &mut request.head.headers;
    match (mode, authenticated) {
        (ForwardClientCert::AlwaysForwardOnly, _) | (ForwardClientCert::ForwardOnly, Some(_)) => {
            // Several headers are one list; not all who come after read more than the first.
            if let Some(Cow::Owned(list)) = joined(headers, HeaderId::XForwardedClientCert.name()) {
                headers.set(HeaderId::XForwardedClientCert, &list);
            }
        }
        (ForwardClientCert::AppendForward, Some((tls, peer))) => {
            let before = joined(headers, HeaderId::XForwardedClientCert.name());
            let value = match before.as_deref().filter(|before| !before.is_empty()) {
                Some(before) => appended(before, tls, peer, &details),
                None => element(tls, peer, &details),
            };
            headers.set(HeaderId::XForwardedClientCert, &value);
        }
        (ForwardClientCert::SanitizeSet, Some((tls, peer))) => {
            headers.set(HeaderId::XForwardedClientCert, &element(tls, peer, &details));
        }
        _ => {
            headers.remove(HeaderId::XForwardedClientCert);
        }
    }
}

/// A header with one element, which tells of `peer` as far as `details` want it.
pub fn element(tls: &TlsInfo, peer: &PeerCertificate, details: &ClientCertDetails) -> Vec<u8> {
    match details.json {
        true => format!("[{}]", json(tls, peer, details)).into_bytes(),
        false => text(tls, peer, details).into_bytes(),
    }
}

/// One more element, in the form of those before it.
fn appended(before: &[u8], tls: &TlsInfo, peer: &PeerCertificate, details: &ClientCertDetails) -> Vec<u8> {
    let array = before.trim_ascii().strip_prefix(b"[").and_then(|array| array.strip_suffix(b"]"));
    let Some(elements) = array else {
        return [before, b",", text(tls, peer, details).as_bytes()].concat();
    };
    let comma: &[u8] = if elements.trim_ascii().is_empty() { b"" } else { b"," };
    [b"[", elements, comma, json(tls, peer, details).as_bytes(), b"]"].concat()
}

fn text(tls: &TlsInfo, peer: &PeerCertificate, details: &ClientCertDetails) -> String {
    let mut parts: Vec<String> = tls.local_uri_sans.iter().map(|uri| format!("By={uri}")).collect();
    parts.push(format!("Hash={}", peer.sha256));
    if details.cert
        && let Some(leaf) = peer.chain_der.first()
    {
        parts.push(format!("Cert=\"{}\"", url_pem(std::slice::from_ref(leaf))));
    }
    if details.chain && !peer.chain_der.is_empty() {
        parts.push(format!("Chain=\"{}\"", url_pem(&peer.chain_der)));
    }
    if details.subject {
        // Quotation marks within names are escaped by the form that names have (RFC 2253).
        parts.push(format!("Subject=\"{}\"", peer.subject));
    }
    if details.uri {
        match peer.uri_sans.as_slice() {
            [] => parts.push("URI=".into()),
            uris => parts.extend(uris.iter().map(|uri| format!("URI={uri}"))),
        }
    }
    if details.dns {
        parts.extend(peer.dns_sans.iter().map(|name| format!("DNS={name}")));
    }
    if details.issuer {
        parts.push(format!("Issuer=\"{}\"", peer.issuer));
    }
    // Names in certificates may hold anything; line ends would begin another header.
    parts.join(";").replace(|character: char| character.is_control(), "_")
}

fn json(tls: &TlsInfo, peer: &PeerCertificate, details: &ClientCertDetails) -> String {
    let mut members: Vec<(&str, Value)> = Vec::new();
    let mut add = |wanted: bool, key: &'static str, value: Value| {
        let is_empty = value.as_array().is_some_and(Vec::is_empty);
        if wanted && !is_empty {
            members.push((key, value));
        }
    };
    add(true, "by", Value::from(&*tls.local_uri_sans));
    add(true, "hash", Value::from(&*peer.sha256));
    if details.cert
        && let Some(leaf) = peer.chain_der.first()
    {
        add(true, "cert", Value::from(pem(leaf)));
    }
    if details.chain {
        add(true, "chain", peer.chain_der.iter().map(|der| pem(der)).collect());
    }
    add(details.subject, "subject", Value::from(&*peer.subject));
    add(details.uri, "uri", Value::from(&*peer.uri_sans));
    add(details.dns, "dns", Value::from(&*peer.dns_sans));
    add(details.issuer, "issuer", Value::from(&*peer.issuer));
    // In this order, which an object of the library would not keep.
    let members: Vec<String> = members.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
    // JSON leaves this one control character as it is, and no header may hold it.
    format!("{{{}}}", members.join(",")).replace('\x7f', "\\u007f")
}

fn pem(der: &[u8]) -> String {
    let body = BASE64_STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().copied().map(char::from));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// PEM with everything escaped that may not stand in a header element.
pub(crate) fn url_pem(chain: &[Vec<u8>]) -> String {
    let mut text = String::new();
    for der in chain {
        for character in pem(der).chars() {
            match character {
                ' ' => text.push_str("%20"),
                '\n' => text.push_str("%0A"),
                '+' => text.push_str("%2B"),
                '/' => text.push_str("%2F"),
                '=' => text.push_str("%3D"),
                character => text.push(character),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> PeerCertificate {
        PeerCertificate {
            uri_sans: vec!["spiffe://x/client".into()],
            subject: "CN=a\\, \\\"b\\\"".into(),
            sha256: "ab".into(),
            ..PeerCertificate::default()
        }
    }

    #[test]
    fn names_with_control_characters_stay_within_their_header() {
        let peer = PeerCertificate { uri_sans: vec!["a\r\nb\x7f".into()], ..PeerCertificate::default() };
        for (json, expected) in [(false, "Hash=;URI=a__b_"), (true, r#"[{"hash":"","uri":["a\r\nb\u007f"]}]"#)] {
            let details = ClientCertDetails { json, uri: true, ..ClientCertDetails::default() };
            let value = element(&TlsInfo::default(), &peer, &details);
            assert_eq!(String::from_utf8(value).unwrap(), expected);
        }
    }

    #[test]
    fn elements_are_added_in_the_form_of_those_before() {
        let (tls, peer) = (TlsInfo::default(), peer());
        for json in [false, true] {
            let details = ClientCertDetails { json, subject: true, uri: true, ..ClientCertDetails::default() };
            let add = |before: &str| String::from_utf8(appended(before.as_bytes(), &tls, &peer, &details)).unwrap();
            let own = "Hash=ab;Subject=\"CN=a\\, \\\"b\\\"\";URI=spiffe://x/client";
            let object = r#"{"hash":"ab","subject":"CN=a\\, \\\"b\\\"","uri":["spiffe://x/client"]}"#;
            assert_eq!(add("Hash=1"), format!("Hash=1,{own}"));
            assert_eq!(add("[broken"), format!("[broken,{own}"));
            assert_eq!(add(r#" [{"hash":"x"}] "#), format!(r#"[{{"hash":"x"}},{object}]"#));
            assert_eq!(add("[ ]"), format!("[ {object}]"));
            let alone = String::from_utf8(element(&tls, &peer, &details)).unwrap();
            assert_eq!(alone, if json { format!("[{object}]") } else { own.to_owned() });
        }
    }
}
