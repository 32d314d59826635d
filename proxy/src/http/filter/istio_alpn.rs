//! The Istio ALPN filter: a request decides what its TLS connection offers.
//!
//! Owns the choice of the offer. Connections with different offers are kept apart by the pool.

use std::sync::Arc;

use outrigger_config::cluster::UpstreamProtocol;
use outrigger_config::http::filters::{AlpnOffer, AlpnOverride};

use super::{Exchange, HttpFilter, Verdict};
use crate::http::message::Version;

/// The filter.
pub struct IstioAlpn {
    settings: Arc<AlpnOverride>,
}

impl IstioAlpn {
    /// A filter.
    pub fn new(settings: &Arc<AlpnOverride>) -> Self {
        Self { settings: Arc::clone(settings) }
    }

    /// The offer for a request that came as `version`. An upgrade always goes on as HTTP/1.1.
    fn offer(&self, cluster: UpstreamProtocol, version: Version, upgrade: bool) -> Option<&AlpnOffer> {
        let AlpnOverride { http10, http11, http2 } = &*self.settings;
        let offer = match (cluster, version) {
            _ if upgrade => http11,
            (UpstreamProtocol::Http1, _) => http11,
            // Where the handshake decides, the higher version is hoped for.
            (UpstreamProtocol::Http2 | UpstreamProtocol::Auto, _) => http2,
            (UpstreamProtocol::UseDownstream, Version::Http10) => http10,
            (UpstreamProtocol::UseDownstream, Version::Http11) => http11,
            (UpstreamProtocol::UseDownstream, Version::Http2) => http2,
        };
        offer.as_ref()
    }
}

impl HttpFilter for IstioAlpn {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(node) = exchange.cluster() else { return Verdict::Continue };
        if node.config.istio.keep_alpn {
            return Verdict::Continue;
        }
        let head = exchange.head();
        let offer = self.offer(node.config.http.protocol, head.version, !head.protocol().is_empty());
        exchange.request_mut().alpn = offer.cloned();
        Verdict::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offer_is_that_of_the_upstream_s_version() {
        let offer = |name: &str| -> Option<AlpnOffer> { Some([name.as_bytes().to_vec()].into()) };
        let settings = AlpnOverride { http10: offer("0"), http11: offer("1"), http2: offer("2") };
        let filter = IstioAlpn::new(&Arc::new(settings));
        for (cluster, version, upgrade, expected) in [
            (UpstreamProtocol::Http1, Version::Http2, false, b"1"),
            (UpstreamProtocol::Http2, Version::Http11, false, b"2"),
            (UpstreamProtocol::Auto, Version::Http11, false, b"2"),
            (UpstreamProtocol::UseDownstream, Version::Http10, false, b"0"),
            (UpstreamProtocol::UseDownstream, Version::Http11, false, b"1"),
            (UpstreamProtocol::UseDownstream, Version::Http2, false, b"2"),
            (UpstreamProtocol::Http2, Version::Http11, true, b"1"),
        ] {
            let found = filter.offer(cluster, version, upgrade).unwrap();
            assert_eq!(found[0], expected, "{cluster:?} {version:?} {upgrade}");
        }
    }
}
