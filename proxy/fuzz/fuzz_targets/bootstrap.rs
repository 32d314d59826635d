//! A bootstrap: decoded, and checked in whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_api::pb::envoy::config::bootstrap::v3::Bootstrap as pb;
use outrigger_config::bootstrap::Bootstrap;
use outrigger_fuzz::decoded;

fuzz_target!(|data: &[u8]| {
    decoded(data, |context, wire: pb| {
        if let Err(rejections) = Bootstrap::parse(context, wire) {
            assert!(!rejections.is_empty(), "refused without a reason");
        }
    });
});
