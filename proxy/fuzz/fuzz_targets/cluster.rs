//! A cluster (`envoy.config.cluster.v3.Cluster`).
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_api::pb::envoy::config::cluster::v3::Cluster as pb;
use outrigger_config::cluster::Cluster;
use outrigger_fuzz::decoded;

fuzz_target!(|data: &[u8]| {
    decoded(data, |context, wire: pb| {
        let _ = Cluster::parse(context, wire);
    });
});
