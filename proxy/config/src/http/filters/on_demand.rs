//! Discovery while requests wait (`envoy.extensions.filters.http.on_demand.v3`).
//!
//! Owns the settings of the filter: it waits for routes and virtual hosts, and for clusters where it is told where they come
//! from. Never discovers anything.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::http::on_demand::v3 as pb;

use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::source::{self, ConfigSource, SourceKind, XdsProtocol};
use crate::wire;

/// Source: `envoy.extensions.filters.http.on_demand.v3.OnDemand`.
#[derive(Clone, Debug, Default)]
pub struct OnDemand {
    /// Where clusters come from that are not known; without, nobody waits for them.
    pub clusters: Option<Arc<OnDemandClusters>>,
}

/// Source: `OnDemandCds`, and `TcpProxy.OnDemand`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OnDemandClusters {
    /// Of the incremental protocol.
    pub source: ConfigSource,
    /// A request waits no longer, 5 s unless given; a connection waits for 60 s.
    pub timeout: Duration,
}

impl OnDemand {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::OnDemand) -> Parsed<Self> {
        decide!(wire, at, pb::OnDemand as "envoy.extensions.filters.http.on_demand.v3.OnDemand" {
            implemented: odcds;
            no_effect: ;
            unsupported: ;
        });
        Ok(Self { clusters: clusters(context, at, odcds)? })
    }

    pub(super) fn parse_route(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::PerRouteConfig) -> Parsed<Self> {
        decide!(wire, at, pb::PerRouteConfig as "envoy.extensions.filters.http.on_demand.v3.PerRouteConfig" {
            implemented: odcds;
            no_effect: ;
            unsupported: ;
        });
        Ok(Self { clusters: clusters(context, at, odcds)? })
    }
}

fn clusters(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<pb::OnDemandCds>,
) -> Parsed<Option<Arc<OnDemandClusters>>> {
    let Some(wire) = wire else { return Ok(None) };
    let at = at.field("odcds");
    decide!(wire, at, pb::OnDemandCds as "envoy.extensions.filters.http.on_demand.v3.OnDemandCds" {
        implemented: source, timeout;
        no_effect: ;
        unsupported: resources_locator;
    });
    let source_at = at.field("source");
    let Some(source) = source else { return Err(source_at.reject("is required")) };
    let source = on_demand_source(context, &source_at, source)?;
    let timeout = timeout.map(|limit| wire::positive_duration(&at.field("timeout"), limit)).transpose()?;
    Ok(Some(Arc::new(OnDemandClusters { source, timeout: timeout.unwrap_or(DEFAULT_TIMEOUT) })))
}

/// Where clusters come from one by one.
pub(crate) fn on_demand_source(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: core::ConfigSource,
) -> Parsed<ConfigSource> {
    let source = source::config_source(context, at, wire)?;
    match &source.kind {
        SourceKind::Ads => Ok(source),
        SourceKind::Api(api) if api.protocol == XdsProtocol::Delta => Ok(source),
        SourceKind::Api(_) | SourceKind::File(_) => {
            Err(at.reject("clusters need a source of type DELTA_GRPC, or ads of that type"))
        }
    }
}

/// Source: the documentation of `OnDemandCds.timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use crate::context::NoEnvironment;

    use super::*;

    fn read(odcds: pb::OnDemandCds) -> Result<OnDemand, String> {
        let root = FieldPath::resource("listener", "l");
        let wire = pb::OnDemand { odcds: Some(odcds) };
        OnDemand::parse(&Context::new(&NoEnvironment), &root, wire).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn clusters_come_by_the_incremental_protocol() {
        use super::core::config_source::ConfigSourceSpecifier;
        let of = |specifier| {
            Some(core::ConfigSource { config_source_specifier: Some(specifier), ..core::ConfigSource::default() })
        };
        let ads = of(ConfigSourceSpecifier::Ads(core::AggregatedConfigSource::default()));
        let read_ads = read(pb::OnDemandCds { source: ads.clone(), ..pb::OnDemandCds::default() }).unwrap();
        assert_eq!(read_ads.clusters.unwrap().timeout, DEFAULT_TIMEOUT);
        for (wire, expected) in [
            (pb::OnDemandCds::default(), "odcds.source: is required"),
            (
                pb::OnDemandCds { source: ads, resources_locator: "xdstp://a/b".to_owned(), timeout: None },
                "odcds.resources_locator: is not supported",
            ),
        ] {
            assert_eq!(read(wire).unwrap_err(), format!("listener \"l\": {expected}"));
        }
    }
}
