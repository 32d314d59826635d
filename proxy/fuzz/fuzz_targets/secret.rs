//! A secret (`envoy.extensions.transport_sockets.tls.v3.Secret`).
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3::Secret as pb;
use outrigger_config::tls::Secret;
use outrigger_fuzz::decoded;

fuzz_target!(|data: &[u8]| {
    decoded(data, |context, wire: pb| {
        let _ = Secret::parse(context, wire);
    });
});
