//! Endpoints (`envoy.config.endpoint.v3.ClusterLoadAssignment`).
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_api::pb::envoy::config::endpoint::v3::ClusterLoadAssignment as pb;
use outrigger_config::cluster::Assignment;
use outrigger_fuzz::decoded;

fuzz_target!(|data: &[u8]| {
    decoded(data, |context, wire: pb| {
        let _ = Assignment::parse(context, wire);
    });
});
