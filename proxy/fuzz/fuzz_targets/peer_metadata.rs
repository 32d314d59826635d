//! What peers of an Istio mesh say of themselves: in a header, and before the first byte of a TCP connection.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::istio::KnownPeers;

fuzz_target!(|data: &[u8]| {
    let known = KnownPeers::default();
    for told in [known.in_header(data), known.in_preamble(data)].into_iter().flatten() {
        let facts: serde_json::Value = serde_json::from_str(&told.facts).expect("facts are JSON");
        assert!(facts.is_object(), "{facts}");
    }
    let first = known.in_header(data).map(|told| told.id);
    assert_eq!(known.in_header(data).map(|told| told.id), first, "found again");
});
