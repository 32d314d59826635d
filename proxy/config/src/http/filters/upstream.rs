//! HTTP filters in front of upstreams (`Router.upstream_http_filters`, `HttpProtocolOptions.http_filters`).
//!
//! Owns which filters may stand there, and what ends their chain. Never runs filters.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;

use super::{HttpFilter, HttpFilterConfig, http_filter};
use crate::context::Context;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// What each try of a request passes through once its endpoint was chosen; the codec, which ends every such chain, is not
/// among them.
#[derive(Clone, Debug)]
pub struct UpstreamFilters(pub Box<[HttpFilter]>);

/// Two chains are the same only if they are one.
impl PartialEq for UpstreamFilters {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

/// Reads a chain; `None` if nothing stands before the codec.
pub(crate) fn upstream_filters(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Vec<pb::HttpFilter>,
) -> Parsed<Option<Arc<UpstreamFilters>>> {
    let mut filters: Vec<HttpFilter> = Vec::new();
    let mut codec = wire.is_empty();
    for (index, wire) in wire.into_iter().enumerate() {
        let at = at.item(index);
        if codec {
            return Err(at.reject("stands after the codec"));
        }
        if is_codec(context, &at, &wire)? {
            codec = true;
            continue;
        }
        if let Some(pb::http_filter::ConfigType::ConfigDiscovery(_)) = &wire.config_type {
            return Err(at.field("config_discovery").unsupported());
        }
        if let Some(twin) = filters.iter().find(|filter| *filter.name == *wire.name) {
            return Err(at.field("name").reject(format!("{:?} is the name of another filter too", twin.name)));
        }
        let Some(filter) = http_filter(context, &at, wire)? else { continue };
        check(&at, &filter)?;
        filters.push(filter);
    }
    if !codec {
        return Err(at.reject("the last filter must be envoy.filters.http.upstream_codec"));
    }
    Ok((!filters.is_empty()).then(|| Arc::new(UpstreamFilters(filters.into()))))
}

/// The filters that Envoy has for upstreams, as far as they exist here.
fn check(at: &FieldPath<'_>, filter: &HttpFilter) -> Parsed<()> {
    match &filter.config {
        config if is_for_upstreams(config) => Ok(()),
        HttpFilterConfig::Delegating(delegating) => {
            let allowed = delegating.filters().into_iter().all(is_for_upstreams);
            if allowed {
                Ok(())
            } else {
                Err(at.reject("chooses among filters that cannot stand in front of upstreams"))
            }
        }
        _ => Err(at.reject(format!(
            "the HTTP filter {:?} cannot stand in front of upstreams, expected one of admission control, buffer, \
             compressor, credential injector, external processing, header mutation, RBAC",
            filter.name
        ))),
    }
}

fn is_for_upstreams(config: &HttpFilterConfig) -> bool {
    matches!(
        config,
        HttpFilterConfig::AdmissionControl(_)
            | HttpFilterConfig::Buffer(_)
            | HttpFilterConfig::Compressor(_)
            | HttpFilterConfig::CredentialInjector(_)
            | HttpFilterConfig::ExtProc(_)
            | HttpFilterConfig::HeaderMutation(_)
            | HttpFilterConfig::Rbac(_)
    )
}

fn is_codec(context: &Context<'_>, at: &FieldPath<'_>, wire: &pb::HttpFilter) -> Parsed<bool> {
    let Some(pb::http_filter::ConfigType::TypedConfig(config)) = &wire.config_type else { return Ok(false) };
    if wire::type_name(config) == CODEC {
        return Ok(true);
    }
    // It may come as a typed struct, and what is optional may be of a type that nobody here knows.
    let known = wire::known_extension(context, &at.field("typed_config"), config.clone())?;
    Ok(known.is_ok_and(|config| wire::type_name(&config) == CODEC))
}

const CODEC: &str = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";
