//! The headers of B3 propagation: `b3`, or `x-b3-traceid` and those beside it.
//!
//! Owns their forms, as Envoy reads them.

use super::hex;

/// A context: ids of a trace and of a span in it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Context {
    /// 64 bits if the upper half is 0.
    pub trace_id: u128,
    /// The span.
    pub span_id: u64,
    /// Its parent.
    pub parent_id: Option<u64>,
}

/// What the header `b3` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Single {
    /// The context, unless there is nothing but a decision.
    pub context: Option<Context>,
    /// The decision, if the caller made one.
    pub sampled: Option<bool>,
}

/// A header that cannot be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Malformed;

impl Single {
    /// Reads the header.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn parse(text: &[u8]) -> Result<Self, Malformed> {
        if let [flag] = text {
            return Ok(Self { context: None, sampled: Some(self::flag(*flag)?) });
        }
        let end = text.iter().position(|byte| *byte == b'-').ok_or(Malformed)?;
        if end != 16 && end != 32 {
            return Err(Malformed);
        }
        let trace_id = self::trace_id(&text[..end])?;
        let rest = &text[end + 1..];
        let (span, rest) = rest.split_at_checked(16).ok_or(Malformed)?;
        let span_id = hex::number(span).ok_or(Malformed)?;
        let (sampled, parent_id) = match rest {
            [] => (None, None),
            [b'-', flag] => (Some(self::flag(*flag)?), None),
            [b'-', flag, b'-', parent @ ..] if parent.len() == 16 => {
                (Some(self::flag(*flag)?), Some(hex::number(parent).ok_or(Malformed)?))
            }
            _ => return Err(Malformed),
        };
        Ok(Self { context: Some(Context { trace_id, span_id, parent_id }), sampled })
    }

    /// The header that says this.
    pub fn to_text(self) -> Vec<u8> {
        let mut text = Vec::with_capacity(68);
        let flag = self.sampled.map(|sampled| if sampled { b'1' } else { b'0' });
        let Some(Context { trace_id, span_id, parent_id }) = self.context else {
            text.extend(flag);
            return text;
        };
        text.extend_from_slice(&trace_id_text(trace_id));
        text.push(b'-');
        text.extend_from_slice(&id_text(span_id));
        // A parent cannot stand without a decision before it.
        if let Some(flag) = flag {
            text.extend([b'-', flag]);
            if let Some(parent) = parent_id {
                text.push(b'-');
                text.extend_from_slice(&id_text(parent));
            }
        }
        text
    }
}

fn flag(byte: u8) -> Result<bool, Malformed> {
    match byte {
        b'0' => Ok(false),
        // Debug means sampled, and more that concerns nobody here.
        b'1' | b'd' => Ok(true),
        _ => Err(Malformed),
    }
}

/// The id of a trace: 32 digits, or up to 16.
fn trace_id(text: &[u8]) -> Result<u128, Malformed> {
    match text.split_at_checked(16) {
        Some((high, low)) if low.len() == 16 => {
            let high = hex::number(high).ok_or(Malformed)?;
            let low = hex::number(low).ok_or(Malformed)?;
            Ok(u128::from(high) << 64 | u128::from(low))
        }
        _ => hex::number(text).map(u128::from).ok_or(Malformed),
    }
}

/// The context that `x-b3-traceid`, `x-b3-spanid` and `x-b3-parentspanid` say, if the first two are there.
///
/// # Errors
/// If one of them is malformed.
pub fn from_several(
    trace: Option<&[u8]>,
    span: Option<&[u8]>,
    parent: Option<&[u8]>,
) -> Result<Option<Context>, Malformed> {
    let (Some(trace), Some(span)) = (trace, span) else { return Ok(None) };
    let parent_id = match parent.filter(|parent| !parent.is_empty()) {
        Some(parent) => Some(hex::number(parent).ok_or(Malformed)?),
        None => None,
    };
    let (trace_id, span_id) = (trace_id(trace)?, hex::number(span).ok_or(Malformed)?);
    Ok(Some(Context { trace_id, span_id, parent_id }))
}

/// What `x-b3-sampled` says; some old tracers write `true`.
pub fn sampled(text: &[u8]) -> bool {
    matches!(text, b"1" | b"true")
}

/// An id of a span in its usual form.
pub fn id_text(id: u64) -> [u8; 16] {
    let mut text = [0; 16];
    hex::write(id, &mut text);
    text
}

/// An id of a trace in its usual form: 32 digits, or 16 if that is enough.
pub fn trace_id_text(id: u128) -> Vec<u8> {
    let high = (id >> 64) as u64;
    let mut text = Vec::with_capacity(32);
    if high != 0 {
        text.extend_from_slice(&id_text(high));
    }
    text.extend_from_slice(&id_text(id as u64));
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_single_header_in_all_its_forms() {
        let parse = |text: &str| Single::parse(text.as_bytes());
        let context = |trace_id, parent_id| Some(Context { trace_id, span_id: 0xbb, parent_id });
        assert_eq!(parse("0"), Ok(Single { context: None, sampled: Some(false) }));
        assert_eq!(parse("d"), Ok(Single { context: None, sampled: Some(true) }));
        let short = "00000000000000aa-00000000000000bb";
        assert_eq!(parse(short), Ok(Single { context: context(0xaa, None), sampled: None }));
        let long = "00000000000000cc00000000000000aa-00000000000000bb-1-00000000000000dd";
        assert_eq!(parse(long), Ok(Single { context: context(0xcc << 64 | 0xaa, Some(0xdd)), sampled: Some(true) }));
        for text in [
            "",
            "z",
            "zz",
            "00000000000000aa",
            "00000000000000aa-",
            "00000000000000aa-00000000000000b",
            "00000000000000aa-00000000000000bb-",
            "00000000000000aa-00000000000000bb-2",
            "00000000000000aa-00000000000000bb-1-",
            "00000000000000aa-00000000000000bb-00000000000000dd",
            "00000000000000aa-00000000000000bb-1-00000000000000dd0",
            "0a-00000000000000bb-1",
            "0000000000000gaa-00000000000000bb",
        ] {
            assert_eq!(parse(text), Err(Malformed), "{text:?}");
        }
    }

    #[test]
    fn several_headers_are_a_context_if_both_ids_are_there() {
        let several = |trace: &'static str, span: &'static str, parent: &'static str| {
            from_several(Some(trace.as_bytes()), Some(span.as_bytes()), Some(parent.as_bytes()))
        };
        let expected = Context { trace_id: 0xaa, span_id: 0xb, parent_id: None };
        assert_eq!(several("aa", "b", ""), Ok(Some(expected)));
        assert_eq!(from_several(Some(b"aa"), None, None), Ok(None));
        assert_eq!(several("xx", "b", ""), Err(Malformed));
        assert_eq!(several("aa", "b", "-"), Err(Malformed));
        assert!(sampled(b"1") && sampled(b"true") && !sampled(b"0") && !sampled(b"TRUE"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(trace_id: u128, span_id: u64, parent_id: Option<u64>, sampled: bool) {
            let written = Single { context: Some(Context { trace_id, span_id, parent_id }), sampled: Some(sampled) };
            prop_assert_eq!(Single::parse(&written.to_text()), Ok(written));
        }

        #[test]
        fn nothing_breaks_the_parser(text: Vec<u8>) {
            let _ = Single::parse(&text);
            let _ = from_several(Some(&text), Some(&text), Some(&text));
        }
    }
}
