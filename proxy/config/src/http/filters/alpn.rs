//! What the TLS connection of a request offers (`istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`).
//!
//! Owns the offers by version. Never knows which version a request has.

use std::sync::Arc;

use outrigger_api::istio::alpn as pb;

use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Protocols that a TLS client offers (ALPN, RFC 7301), in order of preference.
pub type AlpnOffer = Arc<[Vec<u8>]>;

/// Source: `istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`. `None` leaves the offer as it is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AlpnOverride {
    /// For requests that go on as HTTP/1.0.
    pub http10: Option<AlpnOffer>,
    /// For requests that go on as HTTP/1.1.
    pub http11: Option<AlpnOffer>,
    /// For requests that go on as HTTP/2.
    pub http2: Option<AlpnOffer>,
}

impl AlpnOverride {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::FilterConfig) -> Parsed<Self> {
        decide!(wire, at, pb::FilterConfig as "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig" {
            implemented: alpn_override;
            no_effect: ;
            unsupported: ;
        });
        let mut overrides = Self::default();
        let entries = at.field("alpn_override");
        for (index, wire) in alpn_override.into_iter().enumerate() {
            let at = entries.item(index);
            let pb::filter_config::AlpnOverride { upstream_protocol, alpn_override } = wire;
            let version = at.field("upstream_protocol");
            let place = match pb::filter_config::Protocol::try_from(upstream_protocol) {
                Ok(pb::filter_config::Protocol::Http10) => &mut overrides.http10,
                Ok(pb::filter_config::Protocol::Http11) => &mut overrides.http11,
                Ok(pb::filter_config::Protocol::Http2) => &mut overrides.http2,
                Err(_) => return Err(wire::unknown_enum(&version, upstream_protocol)),
            };
            let list = at.field("alpn_override");
            let offer = wire::each(&list, alpn_override, |at, name| match name.len() {
                1..=255 => Ok(name.into_bytes()),
                _ => Err(at.reject("must have 1 to 255 bytes")),
            })?;
            // An empty list overrides nothing.
            if !offer.is_empty() && place.replace(offer.into()).is_some() {
                return Err(version.reject("has an offer already"));
            }
        }
        Ok(overrides)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(entries: &[(i32, &[&str])]) -> Parsed<AlpnOverride> {
        let entries = entries.iter().map(|(version, names)| pb::filter_config::AlpnOverride {
            upstream_protocol: *version,
            alpn_override: names.iter().map(|name| (*name).to_owned()).collect(),
        });
        let wire = pb::FilterConfig { alpn_override: entries.collect() };
        AlpnOverride::parse(&FieldPath::resource("filter", "f"), wire)
    }

    #[test]
    fn offers_are_kept_by_version() {
        let read = read(&[(0, &["a", "b"]), (2, &["c"]), (1, &[])]).unwrap();
        let offer = |names: &[&str]| -> AlpnOffer { names.iter().map(|name| name.as_bytes().to_vec()).collect() };
        assert_eq!(read, AlpnOverride { http10: Some(offer(&["a", "b"])), http11: None, http2: Some(offer(&["c"])) });
    }

    #[test]
    fn what_cannot_be_offered_is_refused() {
        let long = "x".repeat(256);
        for entries in [&[(3, &["a"][..])][..], &[(0, &[""])], &[(0, &[&long])], &[(1, &["a"]), (1, &["b"])]] {
            assert!(read(entries).is_err(), "{entries:?}");
        }
    }
}
