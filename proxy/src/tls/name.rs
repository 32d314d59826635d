//! Distinguished names as text (RFC 2253), in the form OpenSSL gives them.
//!
//! Owns the short names of attributes and the escapes. Never matches names.

use std::fmt::Write as _;

use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::Any;
use x509_cert::der::{Encode, Tag, Tagged};
use x509_cert::name::Name;

use super::intern::hex;

/// The most specific part first: `CN=api,O=Example`.
pub(super) fn rfc2253(name: &Name) -> String {
    let mut out = String::new();
    for set in name.0.iter().rev() {
        for (index, attribute) in set.0.iter().enumerate() {
            if !out.is_empty() {
                out.push(if index == 0 { ',' } else { '+' });
            }
            write_attribute(&mut out, attribute);
        }
    }
    out
}

/// The text of a string type; `None` for any other type.
pub(super) fn text(value: &Any) -> Option<String> {
    let bytes = value.value();
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString => {
            std::str::from_utf8(bytes).ok().map(str::to_owned)
        }
        // Read as Latin-1, as everybody does.
        Tag::TeletexString => Some(bytes.iter().copied().map(char::from).collect()),
        Tag::BmpString => {
            let units = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            char::decode_utf16(units).collect::<Result<String, _>>().ok().filter(|_| bytes.len().is_multiple_of(2))
        }
        _ => None,
    }
}

fn write_attribute(out: &mut String, attribute: &AttributeTypeAndValue) {
    let oid = attribute.oid.to_string();
    let short = SHORT_NAMES.iter().find(|(known, _)| *known == oid).map(|(_, short)| *short);
    out.push_str(short.unwrap_or(&oid));
    out.push('=');
    match text(&attribute.value) {
        Some(text) if short.is_some() => write_escaped(out, &text),
        _ => {
            out.push('#');
            out.push_str(&hex(&attribute.value.to_der().unwrap_or_default()).to_ascii_uppercase());
        }
    }
}

fn write_escaped(out: &mut String, text: &str) {
    let last = text.len().wrapping_sub(1);
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b'#' if index == 0 => out.push_str("\\#"),
            b' ' if index == 0 || index == last => out.push_str("\\ "),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
}

const SHORT_NAMES: [(&str, &str); 17] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.46", "dnQualifier"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(text: &str) -> String {
        let mut out = String::new();
        write_escaped(&mut out, text);
        out
    }

    #[test]
    fn escapes() {
        assert_eq!(escaped("a,b+c"), "a\\,b\\+c");
        assert_eq!(escaped(" #x "), "\\ #x\\ ");
        assert_eq!(escaped("#x"), "\\#x");
        assert_eq!(escaped("é\n"), "\\C3\\A9\\0A");
        assert_eq!(escaped(""), "");
    }

    #[test]
    fn unusual_strings() {
        assert_eq!(text(&Any::new(Tag::BmpString, vec![0, b'a', 0x20, 0xac]).unwrap()).unwrap(), "a€");
        assert_eq!(text(&Any::new(Tag::BmpString, vec![0, b'a', 0]).unwrap()), None);
        assert_eq!(text(&Any::new(Tag::TeletexString, vec![0xe9]).unwrap()).unwrap(), "é");
        assert_eq!(text(&Any::new(Tag::Integer, vec![1]).unwrap()), None);
    }
}
