//! The HTTP filters of a connection manager, and what routes say of them.
//!
//! Owns which types exist and their order in a chain; each type is read in a file of its own. Never runs filters.

mod adaptive_concurrency;
mod admission_control;
mod alpn;
mod api_key_auth;
mod bandwidth_limit;
mod basic_auth;
mod buffer;
mod compression;
mod cors;
mod credential_injector;
mod csrf;
mod custom_response;
mod delegate;
mod dynamic_forward;
mod ext_authz;
mod ext_proc;
mod fault;
mod grpc_bridge;
mod grpc_stats;
mod header_mutation;
mod header_rules;
mod header_to_metadata;
mod health_check;
mod json_to_metadata;
mod jwt_authn;
mod local_ratelimit;
mod lua;
mod oauth2;
mod on_demand;
mod peer_metadata;
mod ratelimit;
mod route;
mod router;
mod set_filter_state;
mod set_metadata;
mod stateful_session;
pub mod transcoder;
mod upstream;

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::grpc_web::v3 as grpc_web;
use outrigger_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use outrigger_api::pb::google::protobuf::Any;

pub use adaptive_concurrency::{AdaptiveConcurrency, Gradient, MinLatency};
pub use admission_control::AdmissionControl;
pub use alpn::{AlpnOffer, AlpnOverride};
pub use api_key_auth::{ApiKeyAuth, ApiKeyRoute, ApiKeys, Forwarding, KeySource};
pub use bandwidth_limit::{BandwidthLimit, BandwidthTrailers};
pub use basic_auth::{BasicAuth, Users};
pub use buffer::Buffer;
pub use compression::{
    BrotliMode, Compressible, Compression, Compressor, CompressorOverride, ContentCoding, Decompressible, Decompressor,
    EtagRule, ZstdDictionary,
};
pub use cors::CorsPolicy;
pub(crate) use cors::deprecated_cors;
pub use credential_injector::{ClientToken, Credential, CredentialInjector};
pub use csrf::CsrfPolicy;
pub use custom_response::{CustomResponse, Details, LocalResponse, RedirectedResponse, Replacement};
pub use delegate::{Delegate, DelegateAction, DelegateTree, Delegating};
pub use dynamic_forward::{DynamicForward, DynamicHost};
pub use ext_authz::{AuthzPath, AuthzRoute, AuthzService, CheckedBody, ExtAuthz, HeaderChoice, HttpAuthz, RouteBody};
pub use ext_proc::{
    Attribute, BodyMode, ExtProc, ExtProcRoute, MessageMode, MetadataChoice, ProcessingMode, RouteCacheAction,
    WantedAttribute,
};
pub use fault::{Abort, AbortStatus, DelayTime, Fault, FaultKeys, Injection, RateLimit};
pub use grpc_bridge::GrpcBridge;
pub use grpc_stats::{GrpcMethods, GrpcStats};
pub(crate) use header_mutation::header_mutations;
pub use header_mutation::{HeaderMutation, Mutation, Mutations, QueryMutation};
pub use header_rules::{HeaderChange, HeaderRules, Ruling};
pub use header_to_metadata::{EntryValue, HeaderToMetadata, MetadataEntry, MetadataRule, MetadataSource, ValueKind};
pub use health_check::{HealthCheck, HealthCheckMode};
pub use json_to_metadata::{FixedEntry, JsonEntry, JsonRule, JsonRules, JsonToMetadata, JsonValue, MetadataPlace};
pub use jwt_authn::{
    AsyncFetch, ClaimHeader, FilterStateRule, HeaderLocation, JwksSource, JwtAuthn, JwtCache, JwtProvider,
    JwtRequirement, JwtRoute, JwtRule, Lifetime, RemoteJwks,
};
pub use local_ratelimit::{LocalDescriptor, LocalRateLimit, VirtualHostLimits};
pub use lua::{ConnectionHost, KnownProgram, Lua, LuaRoute};
pub use oauth2::{
    Afterwards, Assertion, AuthorizationEndpoint, ClientAuth, Cookie, Cookies, EndSession, OAuth2, SameSite,
    SigningAlgorithm,
};
pub(crate) use on_demand::on_demand_source;
pub use on_demand::{OnDemand, OnDemandClusters};
pub use peer_metadata::PeerMetadata;
pub(crate) use ratelimit::service as rate_limit_service;
pub use ratelimit::{GlobalRateLimit, GlobalRateLimitRoute, LimitedRequests};
pub use route::{RouteFilter, RouteFilterConfig, RouteFilters};
pub use router::Router;
pub use set_filter_state::{FilterStateEntry, FilterStateKind, FilterStateSharing, SetFilterState};
pub(crate) use set_filter_state::{filter_state_entry, format_string};
pub use set_metadata::{MetadataValue, SetMetadata};

pub use stateful_session::{SessionState, StatefulSession};
use transcoder::Transcoder;
pub use upstream::UpstreamFilters;
pub(crate) use upstream::upstream_filters;

use crate::context::Context;
use crate::decide::decide;
use crate::extension::{DiscoveredFilter, Kind, message_name};
use crate::istio::StandardMetrics;
use crate::rbac::HttpRbac;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// An HTTP filter of the chain.
#[derive(Clone, Debug)]
pub struct HttpFilter {
    /// As configured; the key of `typed_per_filter_config`.
    pub name: Arc<str>,
    /// What it does.
    pub config: HttpFilterConfig,
    /// Runs only where a route enables it.
    pub disabled: bool,
}

/// The HTTP filters that exist.
#[derive(Clone, Debug)]
pub enum HttpFilterConfig {
    /// Limits concurrent requests by their latency.
    AdaptiveConcurrency(Arc<AdaptiveConcurrency>),
    /// Refuses a share of requests while too many fail.
    AdmissionControl(Arc<AdmissionControl>),
    /// Lets through requests with known API keys.
    ApiKeyAuth(Arc<ApiKeyAuth>),
    /// Limits the bytes of bodies in a time.
    BandwidthLimit(Arc<BandwidthLimit>),
    /// Lets through requests of known users.
    BasicAuth(Arc<BasicAuth>),
    /// Collects whole requests before they go on.
    Buffer(Buffer),
    /// Compresses bodies.
    Compressor(Arc<Compressor>),
    /// Answers cross-origin questions of browsers; all of its settings stand in routes.
    Cors,
    /// Adds a credential of this workload.
    CredentialInjector(Arc<CredentialInjector>),
    /// Refuses requests that other sites forge.
    Csrf(Arc<CsrfPolicy>),
    /// Answers in the place of responses.
    CustomResponse(Arc<CustomResponse>),
    /// Decompresses bodies.
    Decompressor(Arc<Decompressor>),
    /// Is what a match tree chooses.
    Delegating(Arc<Delegating>),
    /// Resolves the host that a request is for.
    DynamicForward(Arc<DynamicForward>),
    /// Asks a service outside who may do what.
    ExtAuthz(Arc<ExtAuthz>),
    /// Lets a service outside change requests and responses.
    ExtProc(Arc<ExtProc>),
    /// Delays, aborts and slows down.
    Fault(Arc<Fault>),
    /// Lets clients of HTTP/1.1 call gRPC services.
    GrpcBridge(GrpcBridge),
    /// Lets clients call gRPC services with JSON; `None` if only routes say which.
    GrpcJsonTranscoder(Option<Arc<Transcoder>>),
    /// Counts gRPC calls and messages.
    GrpcStats(Arc<GrpcStats>),
    /// Lets browsers call gRPC services.
    GrpcWeb,
    /// Waits for routes, virtual hosts and clusters that are discovered when requests want them.
    OnDemand(Arc<OnDemand>),
    /// Changes headers, trailers and query parameters.
    HeaderMutation(Arc<HeaderMutation>),
    /// Asks a rate limit service.
    GlobalRateLimit(Arc<GlobalRateLimit>),
    /// Copies headers into dynamic metadata.
    HeaderToMetadata(Arc<HeaderToMetadata>),
    /// Answers health checks.
    HealthCheck(Arc<HealthCheck>),
    /// Decides what the TLS connection of a request offers.
    IstioAlpn(Arc<AlpnOverride>),
    /// Reports the standard metrics of a mesh.
    IstioStats(Arc<StandardMetrics>),
    /// Puts values of JSON bodies into dynamic metadata.
    JsonToMetadata(Arc<JsonToMetadata>),
    /// Limits requests in a time.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// Runs a program that is known without an interpreter.
    Lua(Arc<Lua>),
    /// Lets through requests with valid JSON Web Tokens.
    JwtAuthn(Arc<JwtAuthn>),
    /// Signs users in at an authorization server; `None` if only routes say which.
    OAuth2(Option<Arc<OAuth2>>),
    /// Tells workloads of a mesh who the other side is.
    PeerMetadata(Arc<PeerMetadata>),
    /// Lets through what its rules allow.
    Rbac(Arc<HttpRbac>),
    /// Sets objects of the filter state.
    SetFilterState(Arc<SetFilterState>),
    /// Sets dynamic metadata.
    SetMetadata(Arc<SetMetadata>),
    /// Keeps sessions at their endpoints.
    StatefulSession(Arc<StatefulSession>),
    /// Comes by extension config discovery.
    Discovered(Arc<DiscoveredFilter<HttpFilterConfig>>),
    /// Terminal: sends the request upstream.
    Router(Arc<Router>),
}

/// Reads a chain: the last filter is the only terminal one. Names need not be unique (Istio has two of
/// `envoy.filters.http.rbac` where policies allow and deny); what a route says of a name holds for all of that name.
pub(super) fn http_filters(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Vec<pb::HttpFilter>,
) -> Parsed<Vec<HttpFilter>> {
    let mut filters: Vec<HttpFilter> = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        let at = at.item(index);
        let Some(filter) = http_filter(context, &at, wire)? else { continue };
        if let Some(terminal) = filters.iter().find(|filter| filter.config.is_terminal()) {
            return Err(at.reject(format!("stands after the terminal filter {:?}", terminal.name)));
        }
        filters.push(filter);
    }
    match filters.last() {
        Some(last) if last.config.is_terminal() && last.disabled => {
            Err(at.reject(format!("the terminal filter {:?} must not be disabled", last.name)))
        }
        Some(last) if last.config.is_terminal() => Ok(filters),
        Some(last) => Err(at.reject(format!("the last filter {:?} is not terminal, expected a router", last.name))),
        None => Err(at.reject("must not be empty, expected a router at the end")),
    }
}

impl HttpFilterConfig {
    /// Whether it answers or forwards every request, so that nothing can follow. A discovered filter is what its types are.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Router(_) => true,
            // Its types are either all terminal, or none is.
            Self::Discovered(filter) => filter.accepts(ROUTER),
            _ => false,
        }
    }

    /// Reads the configuration of a filter; `None` for a type that does not exist here.
    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, any: &Any) -> Parsed<Option<Self>> {
        Ok(Some(match wire::type_name(any) {
            "envoy.extensions.filters.http.cors.v3.Cors" => {
                cors::nothing(wire::decode(at, any)?);
                Self::Cors
            }
            "envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency" => {
                Self::AdaptiveConcurrency(Arc::new(AdaptiveConcurrency::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.admission_control.v3.AdmissionControl" => {
                Self::AdmissionControl(Arc::new(AdmissionControl::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit" => {
                Self::BandwidthLimit(Arc::new(BandwidthLimit::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth" => {
                Self::ApiKeyAuth(Arc::new(ApiKeyAuth::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.basic_auth.v3.BasicAuth" => {
                Self::BasicAuth(Arc::new(BasicAuth::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.rbac.v3.RBAC" => {
                Self::Rbac(Arc::new(HttpRbac::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.buffer.v3.Buffer" => {
                Self::Buffer(Buffer::parse(at, wire::decode(at, any)?)?)
            }
            "envoy.extensions.filters.http.compressor.v3.Compressor" => {
                Self::Compressor(Arc::new(Compressor::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.decompressor.v3.Decompressor" => {
                Self::Decompressor(Arc::new(Decompressor::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector" => {
                Self::CredentialInjector(Arc::new(CredentialInjector::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.oauth2.v3.OAuth2" => {
                Self::OAuth2(OAuth2::parse(context, at, wire::decode(at, any)?)?)
            }
            "envoy.extensions.filters.http.csrf.v3.CsrfPolicy" => {
                Self::Csrf(Arc::new(CsrfPolicy::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.custom_response.v3.CustomResponse" => {
                Self::CustomResponse(Arc::new(CustomResponse::parse(context, at, wire::decode(at, any)?)?))
            }
            delegate::WITH_MATCHER => {
                Self::Delegating(Arc::new(Delegating::parse(context, at, wire::decode(at, any)?)?))
            }
            delegate::COMPOSITE => {
                Self::Delegating(Arc::new(Delegating::parse_composite(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig" => {
                Self::DynamicForward(Arc::new(DynamicForward::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz" => {
                Self::ExtAuthz(Arc::new(ExtAuthz::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor" => {
                Self::ExtProc(Arc::new(ExtProc::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
                Self::Fault(Arc::new(Fault::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.ratelimit.v3.RateLimit" => {
                Self::GlobalRateLimit(Arc::new(GlobalRateLimit::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.grpc_http1_bridge.v3.Config" => {
                Self::GrpcBridge(GrpcBridge::parse(wire::decode(at, any)?))
            }
            "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder" => {
                Self::GrpcJsonTranscoder(Transcoder::parse(context, at, wire::decode(at, any)?)?)
            }
            "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig" => {
                Self::GrpcStats(Arc::new(GrpcStats::parse(wire::decode(at, any)?)))
            }
            "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb" => {
                let grpc_web::GrpcWeb {} = wire::decode(at, any)?;
                Self::GrpcWeb
            }
            "envoy.extensions.filters.http.on_demand.v3.OnDemand" => {
                Self::OnDemand(Arc::new(OnDemand::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation" => {
                Self::HeaderMutation(Arc::new(HeaderMutation::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.header_to_metadata.v3.Config" => {
                Self::HeaderToMetadata(Arc::new(HeaderToMetadata::parse(at, wire::decode(at, any)?, false)?))
            }
            "envoy.extensions.filters.http.health_check.v3.HealthCheck" => {
                Self::HealthCheck(Arc::new(HealthCheck::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" => {
                Self::LocalRateLimit(Arc::new(LocalRateLimit::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.json_to_metadata.v3.JsonToMetadata" => {
                Self::JsonToMetadata(Arc::new(JsonToMetadata::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication" => {
                Self::JwtAuthn(Arc::new(JwtAuthn::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.lua.v3.Lua" => {
                Self::Lua(Arc::new(Lua::parse(context, at, wire::decode(at, any)?)?))
            }
            "io.istio.http.peer_metadata.Config" => {
                Self::PeerMetadata(Arc::new(PeerMetadata::parse(at, wire::decode(at, any)?)?))
            }
            "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig" => {
                Self::IstioAlpn(Arc::new(AlpnOverride::parse(at, wire::decode(at, any)?)?))
            }
            "stats.PluginConfig" => Self::IstioStats(Arc::new(StandardMetrics::parse(at, wire::decode(at, any)?)?)),
            "envoy.extensions.filters.http.set_filter_state.v3.Config" => {
                Self::SetFilterState(Arc::new(SetFilterState::parse(context, at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.set_metadata.v3.Config" => {
                Self::SetMetadata(Arc::new(SetMetadata::parse(at, wire::decode(at, any)?)?))
            }
            "envoy.extensions.filters.http.stateful_session.v3.StatefulSession" => {
                Self::StatefulSession(Arc::new(StatefulSession::parse(context, at, wire::decode(at, any)?)?))
            }
            ROUTER => Self::Router(Arc::new(Router::parse(context, at, wire::decode(at, any)?)?)),
            _ => return Ok(None),
        }))
    }
}

/// Discovered HTTP filters: either all of them end a chain, or none does. Types that do not exist here never arrive, so
/// they may stand beside one that does.
const KIND: Kind<HttpFilterConfig> = Kind {
    check_types: |context, at, type_urls| {
        let mut known = type_urls.iter().filter(|url| exists(context, at, url)).map(|url| message_name(url));
        let Some(first) = known.next() else {
            return Err(at.reject(format!("none of the HTTP filters {type_urls:?} is supported")));
        };
        if known.any(|name| (name == ROUTER) != (first == ROUTER)) {
            return Err(at.reject("terminal and other filters must not stand in one list"));
        }
        Ok(())
    },
    read: |context, at, any| match HttpFilterConfig::parse(context, at, &any)? {
        Some(config) => Ok(config),
        None => Err(at.reject(format!("the HTTP filter {:?} is not supported", any.type_url))),
    },
};

/// Whether there is an HTTP filter of this type: its empty message is read or refused, never passed over.
fn exists(context: &Context<'_>, at: &FieldPath<'_>, type_url: &str) -> bool {
    let empty = Any { type_url: type_url.to_owned(), value: Vec::new() };
    !matches!(HttpFilterConfig::parse(context, at, &empty), Ok(None))
}

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

/// `None` for an optional filter that does not exist here.
fn http_filter(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::HttpFilter) -> Parsed<Option<HttpFilter>> {
    decide!(wire, at, pb::HttpFilter as "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter" {
        implemented: name, is_optional, disabled, config_type;
        no_effect: ;
        unsupported: ;
    });
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty"));
    }
    let config = at.field("typed_config");
    let any = match config_type {
        Some(pb::http_filter::ConfigType::TypedConfig(any)) => any,
        Some(pb::http_filter::ConfigType::ConfigDiscovery(wire)) => {
            let at = at.field("config_discovery");
            if is_optional && !wire.type_urls.iter().any(|url| exists(context, &at, url)) {
                return Ok(None);
            }
            let name: Arc<str> = name.into();
            let discovered = DiscoveredFilter::parse(context, &at, Arc::clone(&name), wire, &KIND)?;
            return Ok(Some(HttpFilter { name, config: HttpFilterConfig::Discovered(Arc::new(discovered)), disabled }));
        }
        None => return Err(config.reject("is required")),
    };
    // Looked at before a typed struct is unwrapped: an optional filter may have a type that nobody here knows.
    let any = match wire::extension(context, &config, any) {
        Ok(any) => any,
        Err(_) if is_optional => return Ok(None),
        Err(rejection) => return Err(rejection),
    };
    match HttpFilterConfig::parse(context, &config, &any)? {
        Some(config) => Ok(Some(HttpFilter { name: name.into(), config, disabled })),
        None if is_optional => Ok(None),
        None => Err(config.reject(format!("the HTTP filter {:?} is not supported", any.type_url))),
    }
}
