//! What route configurations, virtual hosts, routes and weighted clusters say of HTTP filters
//! (`typed_per_filter_config`).
//!
//! Owns which types may stand there and the lookup by the filter's name. Never decides which level counts.

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::route::v3 as pb;
use outrigger_api::pb::google::protobuf::Any;

use super::transcoder::Transcoder;
use super::{
    ApiKeyAuth, ApiKeyRoute, AuthzRoute, BandwidthLimit, BasicAuth, Buffer, CompressorOverride, CorsPolicy, CsrfPolicy,
    CustomResponse, DelegateTree, Delegating, DynamicHost, ExtAuthz, ExtProc, ExtProcRoute, Fault,
    GlobalRateLimitRoute, HeaderToMetadata, JsonToMetadata, JwtRoute, LocalRateLimit, LuaRoute, Mutations, OAuth2,
    OnDemand, SetFilterState, SetMetadata, StatefulSession, Users,
};
use crate::context::Context;
use crate::decide::decide;
use crate::rbac::HttpRbac;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// What one level of a route configuration says of filters, by their names.
#[derive(Clone, Debug, Default)]
pub struct RouteFilters(Box<[(Arc<str>, RouteFilter)]>);

/// What one level says of one filter.
#[derive(Clone, Debug)]
pub struct RouteFilter {
    /// The filter does not run. An entry that does not say so makes a filter run that is disabled in the chain.
    pub disabled: bool,
    /// Replaces or completes the settings of the chain.
    pub config: Option<RouteFilterConfig>,
}

/// Settings of a filter for one level. The variant belongs to a filter type, whatever the filter's name is.
#[derive(Clone, Debug)]
pub enum RouteFilterConfig {
    /// For [`super::HttpFilterConfig::ApiKeyAuth`].
    ApiKeyAuth(Arc<ApiKeyRoute>),
    /// For [`super::HttpFilterConfig::BandwidthLimit`], instead of its settings.
    BandwidthLimit(Arc<BandwidthLimit>),
    /// For [`super::HttpFilterConfig::BasicAuth`].
    BasicAuth(Arc<Users>),
    /// For [`super::HttpFilterConfig::Buffer`]; `None` switches it off.
    Buffer(Option<Buffer>),
    /// For [`super::HttpFilterConfig::Compressor`].
    Compressor(CompressorOverride),
    /// For [`super::HttpFilterConfig::Cors`].
    Cors(Arc<CorsPolicy>),
    /// For [`super::HttpFilterConfig::Csrf`].
    Csrf(Arc<CsrfPolicy>),
    /// For [`super::HttpFilterConfig::CustomResponse`]; asked before its settings.
    CustomResponse(Arc<CustomResponse>),
    /// For [`super::HttpFilterConfig::Delegating`], instead of its tree.
    Delegating(Option<Arc<DelegateTree>>),
    /// For [`super::HttpFilterConfig::DynamicForward`].
    DynamicForward(Option<Arc<DynamicHost>>),
    /// For [`super::HttpFilterConfig::ExtAuthz`]; `None` switches it off.
    ExtAuthz(Option<Arc<AuthzRoute>>),
    /// For [`super::HttpFilterConfig::ExtProc`]; `None` switches it off.
    ExtProc(Option<Arc<ExtProcRoute>>),
    /// For [`super::HttpFilterConfig::Fault`].
    Fault(Arc<Fault>),
    /// For [`super::HttpFilterConfig::GlobalRateLimit`].
    GlobalRateLimit(Arc<GlobalRateLimitRoute>),
    /// For [`super::HttpFilterConfig::GrpcJsonTranscoder`], instead of its settings; `None` switches it off.
    GrpcJsonTranscoder(Option<Arc<Transcoder>>),
    /// For [`super::HttpFilterConfig::HeaderMutation`].
    HeaderMutation(Arc<Mutations>),
    /// For [`super::HttpFilterConfig::HeaderToMetadata`].
    HeaderToMetadata(Arc<HeaderToMetadata>),
    /// For [`super::HttpFilterConfig::JsonToMetadata`], instead of its settings.
    JsonToMetadata(Arc<JsonToMetadata>),
    /// For [`super::HttpFilterConfig::LocalRateLimit`], instead of its settings.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// For [`super::HttpFilterConfig::Lua`].
    Lua(Arc<LuaRoute>),
    /// For [`super::HttpFilterConfig::JwtAuthn`].
    JwtAuthn(Arc<JwtRoute>),
    /// For [`super::HttpFilterConfig::OAuth2`], instead of its settings.
    OAuth2(Arc<OAuth2>),
    /// For [`super::HttpFilterConfig::OnDemand`], instead of its settings.
    OnDemand(Arc<OnDemand>),
    /// For [`super::HttpFilterConfig::Rbac`]; `None` switches it off.
    Rbac(Option<Arc<HttpRbac>>),
    /// For [`super::HttpFilterConfig::SetFilterState`].
    SetFilterState(Arc<SetFilterState>),
    /// For [`super::HttpFilterConfig::SetMetadata`].
    SetMetadata(Arc<SetMetadata>),
    /// For [`super::HttpFilterConfig::StatefulSession`], instead of its settings; `None` switches it off.
    StatefulSession(Option<Arc<StatefulSession>>),
}

impl RouteFilters {
    /// No filter is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is said of the filter `name`.
    pub fn get(&self, name: &str) -> Option<&RouteFilter> {
        self.0.iter().find(|(known, _)| **known == *name).map(|(_, filter)| filter)
    }

    /// The settings of all filters.
    pub fn configs(&self) -> impl Iterator<Item = &RouteFilterConfig> {
        self.0.iter().filter_map(|(_, filter)| filter.config.as_ref())
    }

    /// Reads the map that stands at `at`. Entries whose author allows them to be missing are left out if their type
    /// does not exist here.
    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: HashMap<String, Any>) -> Parsed<Self> {
        // A map has no order, and the same input should always name the same entry.
        let mut entries: Vec<_> = wire.into_iter().collect();
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut filters = Vec::with_capacity(entries.len());
        for (name, wire) in entries {
            if let Some(filter) = route_filter(context, &at.key(&name), wire)? {
                filters.push((name.into(), filter));
            }
        }
        Ok(Self(filters.into()))
    }
}

fn route_filter(context: &Context<'_>, at: &FieldPath<'_>, wire: Any) -> Parsed<Option<RouteFilter>> {
    let wire = wire::extension(context, at, wire)?;
    if wire::type_name(&wire) != "envoy.config.route.v3.FilterConfig" {
        return match RouteFilterConfig::parse(context, at, &wire)? {
            Some(config) => Ok(Some(RouteFilter { disabled: false, config: Some(config) })),
            None => Err(at.reject(format!("per-route configuration {:?} is not supported", wire.type_url))),
        };
    }
    let wire = wire::decode::<pb::FilterConfig>(at, &wire)?;
    decide!(wire, at, pb::FilterConfig as "envoy.config.route.v3.FilterConfig" {
        implemented: config, is_optional, disabled;
        no_effect: ;
        unsupported: ;
    });
    let config_at = at.field("config");
    let config = match config {
        None if disabled => None,
        None if is_optional => return Ok(None),
        // An entry that only says that the filter runs: Envoy wants settings, too.
        None => return Err(config_at.reject("is required unless disabled is true")),
        Some(wire) if wire.type_url.is_empty() => None,
        Some(wire) => {
            let wire = match wire::extension(context, &config_at, wire) {
                Ok(wire) => wire,
                Err(_) if is_optional => return Ok(None),
                Err(rejection) => return Err(rejection),
            };
            match RouteFilterConfig::parse(context, &config_at, &wire)? {
                Some(config) => Some(config),
                // What does not run needs no settings.
                None if disabled => None,
                None if is_optional => return Ok(None),
                None => {
                    let reason = format!("per-route configuration {:?} is not supported", wire.type_url);
                    return Err(config_at.reject(reason));
                }
            }
        }
    };
    Ok(Some(RouteFilter { disabled, config }))
}

impl RouteFilterConfig {
    /// Reads the settings of a filter; `None` for a type that does not exist here.
    fn parse(context: &Context<'_>, at: &FieldPath<'_>, any: &Any) -> Parsed<Option<Self>> {
        Ok(Some(match wire::type_name(any) {
            "envoy.extensions.filters.http.rbac.v3.RBACPerRoute" => {
                Self::Rbac(HttpRbac::parse_per_route(context, at, wire::decode(at, any)?)?.map(Arc::new))
            }
            "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuthPerRoute" => {
                Self::ApiKeyAuth(Arc::new(ApiKeyAuth::parse_route(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit" => {
                Self::BandwidthLimit(Arc::new(BandwidthLimit::parse_route(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.oauth2.v3.OAuth2PerRoute" => {
                Self::OAuth2(OAuth2::parse_route(context, at, wire::decode(at, any)?)?)
            }
            "envoy.extensions.filters.http.basic_auth.v3.BasicAuthPerRoute" => {
                Self::BasicAuth(BasicAuth::parse_route(context, at, wire::decode(at, any)?)?)
            }
            "envoy.extensions.filters.http.buffer.v3.BufferPerRoute" => {
                Self::Buffer(Buffer::parse_route(at, wire::decode(at, any)?)?)
            }
            "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute" => {
                Self::Compressor(CompressorOverride::parse(context, at, wire::decode(at, any)?)?)
            }
            "envoy.extensions.filters.http.csrf.v3.CsrfPolicy" => {
                Self::Csrf(Arc::new(CsrfPolicy::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.custom_response.v3.CustomResponse" => {
                Self::CustomResponse(Arc::new(CustomResponse::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.common.matching.v3.ExtensionWithMatcherPerRoute" => {
                Self::Delegating(Delegating::parse_route(context, at, wire::decode(at, any)?)?)
            }
            "envoy.extensions.filters.http.composite.v3.CompositePerRoute" => {
                Self::Delegating(Delegating::parse_composite_route(context, at, wire::decode(at, any)?)?)
            }
            "envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig" => {
                Self::DynamicForward(DynamicHost::parse_route(at, wire::decode(at, any)?)?.map(Arc::new))
            }
            "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute" => {
                Self::ExtAuthz(ExtAuthz::parse_route(context, at, wire::decode(at, any)?)?)
            }
            "envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute" => {
                Self::ExtProc(ExtProc::parse_route(context, at, wire::decode(at, any)?)?)
            }
            "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
                Self::Fault(Arc::new(Fault::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute" => {
                Self::GlobalRateLimit(Arc::new(GlobalRateLimitRoute::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute" => {
                Self::HeaderMutation(Arc::new(Mutations::parse_route(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.header_to_metadata.v3.Config" => {
                Self::HeaderToMetadata(Arc::new(HeaderToMetadata::parse(at, wire::decode(at, any)?, true)?))
            }
            "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" => {
                Self::LocalRateLimit(Arc::new(LocalRateLimit::parse_route(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder" => {
                Self::GrpcJsonTranscoder(Transcoder::parse(context, at, wire::decode(at, any)?)?)
            }
            "envoy.extensions.filters.http.json_to_metadata.v3.JsonToMetadata" => {
                Self::JsonToMetadata(Arc::new(JsonToMetadata::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig" => {
                Self::JwtAuthn(Arc::new(JwtRoute::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.lua.v3.LuaPerRoute" => {
                Self::Lua(Arc::new(LuaRoute::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.on_demand.v3.PerRouteConfig" => {
                Self::OnDemand(Arc::new(OnDemand::parse_route(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.set_filter_state.v3.Config" => {
                Self::SetFilterState(Arc::new(SetFilterState::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.set_metadata.v3.Config" => {
                Self::SetMetadata(Arc::new(SetMetadata::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute" => {
                let read = StatefulSession::parse_route(context, at, wire::decode(at, any)?)?;
                Self::StatefulSession(read.map(Arc::new))
            }
            "envoy.extensions.filters.http.cors.v3.CorsPolicy" => {
                Self::Cors(Arc::new(CorsPolicy::parse(at, wire::decode(at, any)?)?))
            }
            _ => return Ok(None),
        }))
    }
}
