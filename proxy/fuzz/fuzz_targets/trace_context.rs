//! Headers that carry the context of a trace: nothing breaks the parsers, and what they read they write and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_policy::trace::b3::{self, Single};
use outrigger_policy::trace::w3c::Traceparent;

fuzz_target!(|data: &[u8]| {
    if let Some(parsed) = Traceparent::parse(data) {
        assert_eq!(Traceparent::parse(&parsed.to_text()), Some(parsed));
    }
    if let Ok(parsed) = Single::parse(data) {
        assert_eq!(Single::parse(&parsed.to_text()), Ok(parsed));
    }
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let _ = b3::from_several(parts.next(), parts.next(), parts.next());
});
