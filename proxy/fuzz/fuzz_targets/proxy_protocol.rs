//! PROXY protocol headers. The first byte chooses the rules.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::listener::filters::proxy_protocol::parse;
use outrigger_config::cluster::TlvFilter;
use outrigger_config::listener::ProxyProtocol;
use outrigger_fuzz::same_for_every_split;

fuzz_target!(|data: &[u8]| {
    let Some((first, header)) = data.split_first() else { return };
    let rules = ProxyProtocol {
        allow_without_header: first & 1 != 0,
        allow_v1: first & 2 != 0,
        allow_v2: first & 4 != 0,
        keep: TlvFilter::All,
        rules: Vec::new(),
    };
    same_for_every_split(header, |bytes| parse(bytes, &rules));
});
