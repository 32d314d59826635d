//! Values of JSON as values of fields.
//!
//! Owns which value can stand for which type: numbers may come as text, enumerations by name or number, bytes in either
//! base64. Source: "ProtoJSON Format", and Envoy where it is more lenient. Never knows a message.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use outrigger_config::http::filters::transcoder::{Enumeration, Kind};

use super::json::Json;
use super::number::double;
use super::wire::{WireType, put_bytes, put_tag, put_varint, zigzag};

/// As failures show a value.
pub(super) fn shown(value: &Json) -> String {
    match value {
        Json::Null => "null".to_owned(),
        Json::Bool(value) => value.to_string(),
        Json::Int(value) => value.to_string(),
        Json::Uint(value) => value.to_string(),
        Json::Double(value) => double(*value),
        Json::String(value) => format!("\"{value}\""),
        Json::List(_) => "[...]".to_owned(),
        Json::Object(_) => "{...}".to_owned(),
    }
}

/// As failures name a type.
pub(super) fn type_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Double => "TYPE_DOUBLE",
        Kind::Float => "TYPE_FLOAT",
        Kind::Int32 => "TYPE_INT32",
        Kind::Int64 => "TYPE_INT64",
        Kind::Uint32 => "TYPE_UINT32",
        Kind::Uint64 => "TYPE_UINT64",
        Kind::Sint32 => "TYPE_SINT32",
        Kind::Sint64 => "TYPE_SINT64",
        Kind::Fixed32 => "TYPE_FIXED32",
        Kind::Fixed64 => "TYPE_FIXED64",
        Kind::Sfixed32 => "TYPE_SFIXED32",
        Kind::Sfixed64 => "TYPE_SFIXED64",
        Kind::Bool => "TYPE_BOOL",
        Kind::String => "TYPE_STRING",
        Kind::Bytes => "TYPE_BYTES",
        Kind::Enum(_) => "TYPE_ENUM",
        Kind::Message(_) => "TYPE_MESSAGE",
        Kind::Group(_) => "TYPE_GROUP",
    }
}

/// Writes a value with its tag; `None` if it cannot be of this kind. `enumeration` is that of the kind, with whether its
/// names may be written in lower case.
pub(super) fn put(
    out: &mut Vec<u8>,
    number: u32,
    kind: Kind,
    enumeration: Option<(&Enumeration, bool)>,
    value: &Json,
) -> Option<()> {
    let varint = |out: &mut Vec<u8>, value: u64| {
        put_tag(out, number, WireType::Varint);
        put_varint(out, value);
    };
    let fixed32 = |out: &mut Vec<u8>, value: [u8; 4]| {
        put_tag(out, number, WireType::Fixed32);
        out.extend_from_slice(&value);
    };
    let fixed64 = |out: &mut Vec<u8>, value: [u8; 8]| {
        put_tag(out, number, WireType::Fixed64);
        out.extend_from_slice(&value);
    };
    match kind {
        Kind::Double => fixed64(out, to_double(value)?.to_le_bytes()),
        Kind::Float => fixed32(out, to_float(value)?.to_le_bytes()),
        Kind::Int32 => varint(out, i64::from(to_int::<i32>(value)?) as u64),
        Kind::Int64 => varint(out, to_int::<i64>(value)? as u64),
        Kind::Uint32 => varint(out, to_int::<u32>(value)?.into()),
        Kind::Uint64 => varint(out, to_int::<u64>(value)?),
        Kind::Sint32 => varint(out, zigzag(to_int::<i32>(value)?.into())),
        Kind::Sint64 => varint(out, zigzag(to_int::<i64>(value)?)),
        Kind::Fixed32 => fixed32(out, to_int::<u32>(value)?.to_le_bytes()),
        Kind::Fixed64 => fixed64(out, to_int::<u64>(value)?.to_le_bytes()),
        Kind::Sfixed32 => fixed32(out, to_int::<i32>(value)?.to_le_bytes()),
        Kind::Sfixed64 => fixed64(out, to_int::<i64>(value)?.to_le_bytes()),
        Kind::Bool => varint(out, to_bool(value)?.into()),
        Kind::String => match value {
            Json::String(text) => put_bytes(out, number, text.as_bytes()),
            _ => return None,
        },
        Kind::Bytes => put_bytes(out, number, &to_bytes(value)?),
        Kind::Enum(_) => {
            let (enumeration, ignore_case) = enumeration?;
            varint(out, i64::from(to_enum(enumeration, ignore_case, value)?) as u64);
        }
        Kind::Message(_) | Kind::Group(_) => return None,
    }
    Some(())
}

/// Text that is a number: without spaces around it.
fn trimmed(text: &str) -> Option<&str> {
    if text.starts_with(' ') || text.ends_with(' ') {
        return None;
    }
    Some(text.trim_matches(|character: char| character.is_ascii_whitespace()))
}

/// A whole number, if it is one and fits.
pub(super) fn to_int<T: TryFrom<i128>>(value: &Json) -> Option<T> {
    let number: i128 = match value {
        Json::Int(number) => (*number).into(),
        Json::Uint(number) => (*number).into(),
        // Whole numbers of this size are exact; larger ones fit no type.
        Json::Double(number) if number.fract() == 0.0 && number.abs() < 1e30 => *number as i128,
        Json::String(text) => trimmed(text)?.parse().ok()?,
        _ => return None,
    };
    T::try_from(number).ok()
}

pub(super) fn to_double(value: &Json) -> Option<f64> {
    match value {
        Json::Int(number) => Some(*number as f64),
        Json::Uint(number) => Some(*number as f64),
        Json::Double(number) => Some(*number),
        Json::String(text) => match text.as_str() {
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            "NaN" => Some(f64::NAN),
            text => trimmed(text)?.parse().ok().filter(|number: &f64| number.is_finite()),
        },
        _ => None,
    }
}

fn to_float(value: &Json) -> Option<f32> {
    let number = to_double(value)?;
    let is_too_large = number.is_finite() && number.abs() > f64::from(f32::MAX);
    (!is_too_large).then_some(number as f32)
}

pub(super) fn to_bool(value: &Json) -> Option<bool> {
    match value {
        Json::Bool(value) => Some(*value),
        Json::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "1" => Some(true),
            "false" | "f" | "no" | "n" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn to_bytes(value: &Json) -> Option<Vec<u8>> {
    let Json::String(text) = value else { return None };
    let text = text.trim_end_matches('=');
    URL_SAFE_NO_PAD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).ok()
}

fn to_enum(enumeration: &Enumeration, ignore_case: bool, value: &Json) -> Option<i32> {
    let Json::String(name) = value else { return to_int(value) };
    if let Some(number) = enumeration.number(name) {
        return Some(number);
    }
    if let Some(number) = to_int(value).filter(|number| enumeration.name(*number).is_some()) {
        return Some(number);
    }
    if !ignore_case {
        return None;
    }
    enumeration.number(&name.replace('-', "_").to_ascii_uppercase())
}

/// Whether what a binding says (`said`) is what the body has, where both say something of a field; the failure if not.
pub(super) fn compare(field: &str, body: &Json, said: &str) -> Option<String> {
    let said = Json::String(said.to_owned());
    let compared = match body {
        Json::Uint(number) => to_int::<u64>(&said).map(|other| other == *number).ok_or("uint64"),
        Json::Int(number) => to_int::<i64>(&said).map(|other| other == *number).ok_or("int64"),
        Json::Double(number) => to_double(&said).map(|other| (other - number).abs() < NEAR).ok_or("double"),
        Json::Bool(value) => to_bool(&said).map(|other| other == *value).ok_or("bool"),
        Json::String(_) => Ok(said == *body),
        Json::Null | Json::List(_) | Json::Object(_) => Ok(true),
    };
    match compared {
        Ok(true) => None,
        Ok(false) => Some(format!(
            "The binding value {} of the field {field} is conflicting with the value {} in the body.",
            shown(&said),
            shown(body)
        )),
        Err(kind) => Some(format!("Failed to convert binding value {field}:{} to {kind}", shown(&said))),
    }
}

/// Numbers that are this near are the same.
const NEAR: f64 = 32.0 * f32::EPSILON as f64;

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Json {
        Json::String(text.to_owned())
    }

    #[test]
    fn numbers_may_be_text_and_must_fit() {
        assert_eq!(to_int::<i32>(&text("-12")), Some(-12));
        assert_eq!(to_int::<i32>(&Json::Uint(1 << 31)), None);
        assert_eq!(to_int::<u32>(&Json::Double(3.0)), Some(3));
        assert_eq!(to_int::<u64>(&Json::Double(1.5)), None);
        assert_eq!(to_int::<u64>(&text(" 1")), None);
        assert_eq!(to_int::<u64>(&text("")), None);
        assert_eq!(to_int::<u64>(&Json::Bool(true)), None);
        assert_eq!(to_double(&text("-Infinity")), Some(f64::NEG_INFINITY));
        assert_eq!(to_double(&text("1e400")), None);
        assert_eq!(to_float(&Json::Double(1e39)), None);
        assert_eq!(to_float(&text("Infinity")), Some(f32::INFINITY));
    }

    #[test]
    fn bytes_come_in_either_base64() {
        for given in ["-_8=", "+/8=", "-_8", "+/8"] {
            assert_eq!(to_bytes(&text(given)).as_deref(), Some(&[0xfb, 0xff][..]), "{given}");
        }
        assert_eq!(to_bytes(&text("-/8")), None);
        assert_eq!(to_bytes(&text("-_9")), None);
    }

    #[test]
    fn names_of_enumerations_may_be_lower_case() {
        let values = [("ZERO".into(), 0), ("SOME_ONE".into(), 1)].into();
        let enumeration = Enumeration { name: "E".into(), values, is_null: false };
        assert_eq!(to_enum(&enumeration, false, &text("SOME_ONE")), Some(1));
        assert_eq!(to_enum(&enumeration, false, &text("some-one")), None);
        assert_eq!(to_enum(&enumeration, true, &text("some-one")), Some(1));
        assert_eq!(to_enum(&enumeration, false, &text("1")), Some(1));
        assert_eq!(to_enum(&enumeration, false, &text("7")), None);
        assert_eq!(to_enum(&enumeration, false, &Json::Uint(7)), Some(7));
    }

    #[test]
    fn what_collides_is_told() {
        assert_eq!(compare("id", &Json::Uint(1), "1"), None);
        assert_eq!(
            compare("id", &Json::Uint(1), "2").as_deref(),
            Some("The binding value \"2\" of the field id is conflicting with the value 1 in the body.")
        );
        assert_eq!(
            compare("id", &Json::Uint(1), "x").as_deref(),
            Some("Failed to convert binding value id:\"x\" to uint64")
        );
        assert_eq!(compare("on", &Json::Bool(true), "yes"), None);
    }
}
