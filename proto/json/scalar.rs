//! Single values: what JSON text a protobuf scalar takes, and base64.

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use serde_json::Value;

use crate::schema::kind;
use crate::wire::{self, Raw};

/// Encoders differ in padding, and in the two last letters of the alphabet (see `base64_decode`).
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

pub(crate) fn base64_encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Reads the standard and the URL-safe alphabet.
pub(super) fn base64_decode(text: &str) -> Option<Vec<u8>> {
    LENIENT.decode(text.replace('-', "+").replace('_', "/")).ok()
}

/// A scalar ready for the wire.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(Vec<u8>),
}

impl Scalar {
    /// Whether it is what an absent field without presence stands for.
    pub(super) fn is_default(&self) -> bool {
        match self {
            Self::Varint(value) | Self::Fixed64(value) => *value == 0,
            Self::Fixed32(value) => *value == 0,
            Self::Bytes(bytes) => bytes.is_empty(),
        }
    }

    pub(super) fn put_field(&self, out: &mut Vec<u8>, number: u32) {
        let raw = match self {
            Self::Varint(value) => Raw::Varint(*value),
            Self::Fixed64(value) => Raw::Fixed64(*value),
            Self::Fixed32(value) => Raw::Fixed32(*value),
            Self::Bytes(bytes) => Raw::Bytes(bytes),
        };
        wire::put_raw(out, number, raw);
    }

    /// Writes it as an element of a packed field.
    pub(super) fn put_packed(&self, out: &mut Vec<u8>) {
        match self {
            Self::Varint(value) => wire::put_varint(out, *value),
            Self::Fixed64(value) => out.extend(value.to_le_bytes()),
            Self::Fixed32(value) => out.extend(value.to_le_bytes()),
            Self::Bytes(bytes) => out.extend(bytes),
        }
    }
}

/// Reads a scalar that is neither an enum nor a message; the error says what was expected.
pub(super) fn parse(kind: u8, value: &Value) -> Result<Scalar, &'static str> {
    match kind {
        kind::DOUBLE => float(value).map(|v| Scalar::Fixed64(v.to_bits())).ok_or("a number"),
        kind::FLOAT => {
            let fits = |v: &f64| !v.is_finite() || v.abs() <= f64::from(f32::MAX);
            let value = float(value).filter(fits).ok_or("a number in the range of a 32-bit float")?;
            Ok(Scalar::Fixed32((value as f32).to_bits()))
        }
        kind::BOOL => boolean(value).map(|v| Scalar::Varint(v.into())).ok_or("true or false"),
        kind::STRING => match value {
            Value::String(text) => Ok(Scalar::Bytes(text.clone().into_bytes())),
            Value::Number(_) | Value::Bool(_) => Err("a string: put it in quotes"),
            _ => Err("a string"),
        },
        kind::BYTES => value.as_str().and_then(base64_decode).map(Scalar::Bytes).ok_or("a base64 string"),
        kind::INT32 | kind::SINT32 | kind::SFIXED32 => {
            let number = integer::<i32>(value).ok_or("an integer from -2147483648 to 2147483647")?;
            Ok(match kind {
                kind::SFIXED32 => Scalar::Fixed32(number.cast_unsigned()),
                kind::SINT32 => Scalar::Varint(zigzag(number.into())),
                // Negative numbers take ten bytes on the wire.
                _ => Scalar::Varint(i64::from(number).cast_unsigned()),
            })
        }
        kind::INT64 | kind::SINT64 | kind::SFIXED64 => {
            let number = integer::<i64>(value).ok_or("a 64-bit integer")?;
            Ok(match kind {
                kind::SFIXED64 => Scalar::Fixed64(number.cast_unsigned()),
                kind::SINT64 => Scalar::Varint(zigzag(number)),
                _ => Scalar::Varint(number.cast_unsigned()),
            })
        }
        kind::UINT32 | kind::FIXED32 => {
            let number = integer::<u32>(value).ok_or("an integer from 0 to 4294967295")?;
            Ok(if kind == kind::FIXED32 { Scalar::Fixed32(number) } else { Scalar::Varint(number.into()) })
        }
        _ => {
            let number = integer::<u64>(value).ok_or("an integer of 0 or more, up to 64 bits")?;
            Ok(if kind == kind::FIXED64 { Scalar::Fixed64(number) } else { Scalar::Varint(number) })
        }
    }
}

fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

/// A whole number, written as a number or a string; `5.0` and `1e3` are whole.
pub(super) fn integer<T: TryFrom<i128>>(value: &Value) -> Option<T> {
    let whole = match value {
        Value::Number(number) => {
            let exact = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
            exact.or_else(|| whole_float(number.as_f64()?))
        }
        Value::String(text) => text.parse().ok().or_else(|| whole_float(plain_number(text)?)),
        _ => None,
    };
    T::try_from(whole?).ok()
}

fn whole_float(value: f64) -> Option<i128> {
    // 2^64 bounds every protobuf integer, and doubles of that size are whole numbers that i128 holds.
    (value.fract() == 0.0 && value.abs() <= 18_446_744_073_709_551_616.0).then_some(value as i128)
}

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            text => plain_number(text),
        },
        _ => None,
    }
}

/// Rust also parses words such as `inf`; JSON does not know them.
fn plain_number(text: &str) -> Option<f64> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    text.parse().ok().filter(|value: &f64| is_number && value.is_finite())
}

/// Envoy's YAML reader takes the words of YAML 1.1 for booleans, so files have them.
fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Some(true),
            "false" | "no" | "off" | "n" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn integers_are_numbers_or_strings_within_their_range() {
        for good in [json!(5), json!("5"), json!(5.0), json!("5.0"), json!(0.5e1), json!("5e0")] {
            assert_eq!(parse(kind::UINT32, &good), Ok(Scalar::Varint(5)), "{good}");
        }
        for bad in [json!(-1), json!(4_294_967_296_u64), json!(5.5), json!("5s"), json!(""), json!(true), json!([])] {
            assert_eq!(parse(kind::UINT32, &bad), Err("an integer from 0 to 4294967295"), "{bad}");
        }
        assert_eq!(parse(kind::UINT64, &json!(u64::MAX)), Ok(Scalar::Varint(u64::MAX)));
        assert_eq!(parse(kind::INT64, &json!(i64::MIN.to_string())), Ok(Scalar::Varint(1 << 63)));
        assert_eq!(parse(kind::SINT32, &json!(-2)), Ok(Scalar::Varint(3)));
        assert_eq!(parse(kind::INT32, &json!(-1)), Ok(Scalar::Varint(u64::MAX)));
    }

    #[test]
    fn floats_know_their_three_words() {
        assert_eq!(parse(kind::DOUBLE, &json!("Infinity")), Ok(Scalar::Fixed64(f64::INFINITY.to_bits())));
        assert_eq!(parse(kind::DOUBLE, &json!("0.5")), parse(kind::DOUBLE, &json!(0.5)));
        assert_eq!(parse(kind::DOUBLE, &json!("inf")), Err("a number"));
        assert!(parse(kind::FLOAT, &json!(1e39)).is_err());
    }

    #[test]
    fn booleans_take_the_words_of_old_yaml() {
        assert_eq!(parse(kind::BOOL, &json!("yes")), Ok(Scalar::Varint(1)));
        assert_eq!(parse(kind::BOOL, &json!("False")), Ok(Scalar::Varint(0)));
        assert_eq!(parse(kind::BOOL, &json!(1)), Err("true or false"));
    }

    #[test]
    fn base64_comes_in_two_alphabets() {
        assert_eq!(parse(kind::BYTES, &json!("-_-_")), parse(kind::BYTES, &json!("+/+/")));
        assert_eq!(parse(kind::BYTES, &json!("YQ")), Ok(Scalar::Bytes(b"a".to_vec())));
        assert_eq!(parse(kind::BYTES, &json!("*")), Err("a base64 string"));
    }
}
