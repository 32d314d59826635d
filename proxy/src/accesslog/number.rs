//! Numbers as text, without the formatting machinery.
//!
//! Owns decimal digits for integers and JSON's form of floating-point numbers. Never allocates for integers.

/// Appends `value` in decimal.
pub(super) fn push(value: u64, out: &mut Vec<u8>) {
    push_padded(value, 1, b'0', out);
}

/// Appends `value` in decimal, filled up to `width` with `fill` at the left.
pub(super) fn push_padded(value: u64, width: usize, fill: u8, out: &mut Vec<u8>) {
    let mut digits = [fill; 20];
    let mut position = digits.len();
    let mut rest = value;
    loop {
        position -= 1;
        digits[position] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let position = position.min(digits.len() - width.min(digits.len()));
    out.extend_from_slice(&digits[position..]);
}

/// Appends a finite number with as few digits as tell it apart, in decimal or with an exponent of at least two digits,
/// whichever is shorter. Numbers that JSON does not have are `null`.
pub(super) fn push_float(value: f64, out: &mut Vec<u8>) {
    if !value.is_finite() {
        out.extend_from_slice(b"null");
        return;
    }
    // Whole numbers show all their digits, beyond what a double tells apart.
    let decimal =
        if value.fract() == 0.0 && value.abs() < 1e20 { (value as i128).to_string() } else { value.to_string() };
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    let scientific = format!("{mantissa}e{sign}{digits:0>2}");
    out.extend_from_slice(if scientific.len() < decimal.len() { scientific.as_bytes() } else { decimal.as_bytes() });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_padded() {
        let mut out = Vec::new();
        for (value, width, fill) in [(0, 1, b'0'), (7, 3, b'0'), (7, 3, b' '), (1234, 2, b'0'), (u64::MAX, 1, b'0')] {
            push_padded(value, width, fill, &mut out);
            out.push(b'|');
        }
        assert_eq!(String::from_utf8(out).unwrap(), "0|007|  7|1234|18446744073709551615|");
    }

    // As Envoy 1.40 wrote these numbers in a JSON format, but for 0 and NaN, which were not compared.
    #[test]
    fn floats_are_as_short_as_can_be() {
        for (value, expected) in [
            (0.0, "0"),
            (3.0, "3"),
            (1.5, "1.5"),
            (-5.0, "-5"),
            (-0.5, "-0.5"),
            (0.001, "0.001"),
            (0.0001, "1e-04"),
            (1e-9, "1e-09"),
            (12_345_678_901.0, "12345678901"),
            (1e14, "1e+14"),
            (1e30, "1e+30"),
            (100_000.5, "100000.5"),
            (1_234_567.25, "1234567.25"),
            (1.0 / 3.0, "0.3333333333333333"),
            (123_456_789_012_345_680.0, "123456789012345680"),
            (9_223_372_036_854_775_808.0, "9223372036854775808"),
            (f64::NAN, "null"),
        ] {
            let mut out = Vec::new();
            push_float(value, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
