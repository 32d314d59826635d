//! A listener (`envoy.config.listener.v3.Listener`), and the index of its filter chains.
#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use outrigger_api::pb::envoy::config::listener::v3::Listener as pb;
use outrigger_config::listener::{ConnectionFacts, Listener};
use outrigger_fuzz::decoded;
use outrigger_policy::filter_chain::FilterChainIndex;

fuzz_target!(|data: &[u8]| {
    decoded(data, |context, wire: pb| {
        let Ok(listener) = Listener::parse(context, wire) else { return };
        let index = FilterChainIndex::of_listener(&listener);
        let _ = index.find(&ConnectionFacts {
            destination: Some((Ipv4Addr::new(10, 0, 0, 1).into(), 443)),
            source: Some((Ipv4Addr::LOCALHOST.into(), 40_000)),
            direct_source: Some(Ipv4Addr::LOCALHOST.into()),
            server_name: Some("www.example.com"),
            transport_protocol: "tls",
            application_protocols: &["h2".to_owned()],
            filter_state: None,
            metadata: None,
        });
    });
});
