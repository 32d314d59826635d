//! The header `traceparent` (W3C Trace Context).
//!
//! Owns its form. Takes what Envoy takes: any version, as long as the four fields of version 00 stand where they belong.

use super::hex;

/// What `traceparent` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Traceparent {
    /// Not 0.
    pub trace_id: u128,
    /// The caller's span; not 0.
    pub parent_id: u64,
    /// The caller records its span.
    pub sampled: bool,
}

/// Bytes of the header.
pub const LENGTH: usize = 55;

impl Traceparent {
    /// Reads a header; `None` if it is malformed.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text: &[u8; LENGTH] = text.try_into().ok()?;
        if text[2] != b'-' || text[35] != b'-' || text[52] != b'-' {
            return None;
        }
        hex::number(&text[..2])?;
        let (high, low) = (hex::number(&text[3..19])?, hex::number(&text[19..35])?);
        let parent_id = hex::number(&text[36..52])?;
        let flags = hex::number(&text[53..])?;
        let trace_id = u128::from(high) << 64 | u128::from(low);
        (trace_id != 0 && parent_id != 0).then_some(Self { trace_id, parent_id, sampled: flags & 1 != 0 })
    }

    /// The header of version 00 that says this.
    pub fn to_text(self) -> [u8; LENGTH] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let mut digits = [0; 16];
        for (start, number) in [(3, (self.trace_id >> 64) as u64), (19, self.trace_id as u64), (36, self.parent_id)] {
            hex::write(number, &mut digits);
            text[start..start + 16].copy_from_slice(&digits);
        }
        text[54] = if self.sampled { b'1' } else { b'0' };
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_taken_and_what_is_not() {
        let valid = "00-11111111111111111111111111111111-2222222222222222-01";
        let parsed = Traceparent::parse(valid.as_bytes()).unwrap();
        assert_eq!(
            (parsed.trace_id, parsed.parent_id, parsed.sampled),
            (0x1111 * (u128::MAX / 0xffff), 0x2222222222222222, true)
        );
        // A later version, other flags and capitals are fine.
        for text in [valid.replacen("00", "ff", 1), valid.replace("-01", "-09"), valid.replace('1', "A")] {
            assert!(Traceparent::parse(text.as_bytes()).is_some(), "{text}");
        }
        assert!(!Traceparent::parse(valid.replace("-01", "-02").as_bytes()).unwrap().sampled);
        for text in [
            String::new(),
            valid[..54].to_owned(),
            format!("{valid}0"),
            valid.replace('-', "_"),
            valid.replace("11111111111111111111111111111111", "00000000000000000000000000000000"),
            valid.replace("2222222222222222", "0000000000000000"),
            valid.replace("2222222222222222", "222222222222222g"),
            valid.replacen("00", "0x", 1),
            valid.replace("-01", "-+1"),
        ] {
            assert_eq!(Traceparent::parse(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(trace_id in 1u128.., parent_id in 1u64.., sampled: bool) {
            let written = Traceparent { trace_id, parent_id, sampled };
            prop_assert_eq!(Traceparent::parse(&written.to_text()), Some(written));
        }

        #[test]
        fn what_is_read_is_written_as_version_00(text in "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}") {
            if let Some(parsed) = Traceparent::parse(text.as_bytes()) {
                let written = parsed.to_text();
                prop_assert_eq!(&written[3..53], &text.as_bytes()[3..53]);
            }
        }

        #[test]
        fn nothing_breaks_the_parser(text: Vec<u8>) {
            let _ = Traceparent::parse(&text);
        }
    }
}
