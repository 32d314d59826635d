//! Numbers with a point as JSON has them.
//!
//! Owns how many digits they have: as few of `%g` as are read back as the same number, in two steps, as Envoy writes them.

/// A number of 64 bits.
pub(super) fn double(value: f64) -> String {
    if let Some(text) = special(value) {
        return text.to_owned();
    }
    let short = general(value, 15);
    if short.parse() == Ok(value) { short } else { general(value, 17) }
}

/// A number of 32 bits.
pub(super) fn float(value: f32) -> String {
    if let Some(text) = special(value.into()) {
        return text.to_owned();
    }
    let short = general(value.into(), 6);
    if short.parse() == Ok(value) { short } else { general(value.into(), 9) }
}

fn special(value: f64) -> Option<&'static str> {
    match value {
        f64::INFINITY => Some("Infinity"),
        f64::NEG_INFINITY => Some("-Infinity"),
        value if value.is_nan() => Some("NaN"),
        _ => None,
    }
}

/// `%.{digits}g` of C.
fn general(value: f64, digits: usize) -> String {
    let scientific = format!("{value:.*e}", digits - 1);
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let places = i32::try_from(digits).unwrap_or(i32::MAX) - 1 - exponent;
    if exponent < -4 || places < 0 {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", without_zeros(mantissa), exponent.abs());
    }
    without_zeros(&format!("{value:.*}", usize::try_from(places).unwrap_or_default())).to_owned()
}

fn without_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_have_the_digits_that_they_need() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e21, "1e+21"),
            (1e15, "1e+15"),
            (123456789012345.0, "123456789012345"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
            (f64::INFINITY, "Infinity"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(double(value), text);
        }
        for (value, text) in [(0.1f32, "0.1"), (16777216.0, "16777216"), (1.0 / 3.0, "0.333333343"), (1e10, "1e+10")] {
            assert_eq!(float(value), text);
        }
    }

    proptest! {
        #[test]
        fn numbers_are_read_back(wide in prop::num::f64::NORMAL, narrow in prop::num::f32::NORMAL) {
            prop_assert_eq!(double(wide).parse(), Ok(wide));
            prop_assert_eq!(float(narrow).parse(), Ok(narrow));
        }
    }
}
