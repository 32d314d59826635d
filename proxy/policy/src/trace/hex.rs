//! Hexadecimal numbers of fixed width, as headers carry them.

/// The number that all of `text` is; either case. `None` for anything but 1 to 16 digits.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 16 {
        return None;
    }
    text.iter().try_fold(0u64, |number, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(number << 4 | u64::from(digit))
    })
}

/// Writes `number` as 16 digits.
pub(super) fn write(number: u64, out: &mut [u8; 16]) {
    for (index, place) in out.iter_mut().enumerate() {
        *place = DIGITS[(number >> (60 - 4 * index) & 0xf) as usize];
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";
