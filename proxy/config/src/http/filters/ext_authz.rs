//! Authorization by a service outside (`envoy.extensions.filters.http.ext_authz.v3`).
//!
//! Owns whom to ask, what the service is told and what it may change. Never asks.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::http::ext_authz::v3 as pb;
use outrigger_api::pb::envoy::r#type::matcher::v3::ListStringMatcher;

use super::header_rules::HeaderRules;
use crate::context::Context;
use crate::decide::decide;
use crate::http::HeaderAddition;
use crate::http::header_mutations::header_addition;
use crate::http_uri::CallRetries;
use crate::matching::{MetadataMatcher, StringMatcher};
use crate::metadata::{self, MetadataMap};
use crate::network::RuntimeFlag;
use crate::rejection::{FieldPath, Parsed};
use crate::source::{self, GrpcCall};
use crate::units::RuntimeFraction;
use crate::wire;

/// Source: `envoy.extensions.filters.http.ext_authz.v3.ExtAuthz`.
#[derive(Clone, Debug)]
pub struct ExtAuthz {
    /// Whom to ask.
    pub service: Arc<AuthzService>,
    /// Requests that the service said nothing about go on.
    pub failure_mode_allow: bool,
    /// Those get `x-envoy-auth-failure-mode-allowed`.
    pub failure_mode_allow_header: bool,
    /// What the service is told of the body.
    pub body: Option<CheckedBody>,
    /// The route is chosen anew when the service has changed the request.
    pub clear_route_cache: bool,
    /// Answer to requests that the service said nothing about; 403 unless given.
    pub status_on_error: u16,
    /// An answer with what is no header or parameter is refused.
    pub validate_mutations: bool,
    /// Namespaces of dynamic metadata that the service is told.
    pub metadata_namespaces: Vec<String>,
    /// Namespaces of route metadata that the service is told.
    pub route_metadata_namespaces: Vec<String>,
    /// Share of requests that are asked about; all unless given.
    pub enabled: Option<RuntimeFraction>,
    /// Only requests with such metadata are asked about.
    pub enabled_metadata: Option<MetadataMatcher>,
    /// Whether requests that are not asked about are refused.
    pub deny_at_disable: Option<RuntimeFlag>,
    /// The service is told the certificate of the client.
    pub tells_certificate: bool,
    /// The service is told the server name of the TLS connection.
    pub tells_tls_session: bool,
    /// Further part of the stat prefix; may be empty.
    pub stat_prefix: Arc<str>,
    /// Headers that the service is told: all, or those that match.
    pub headers: HeaderChoice,
    /// Headers are told one by one, as bytes.
    pub raw_headers: bool,
    /// What the service may change.
    pub rules: Option<HeaderRules>,
    /// What the service says becomes dynamic metadata.
    pub takes_metadata: bool,
    /// Refusals count among the responses of the route's cluster.
    pub counts_for_cluster: bool,
    /// What the service says refuses nothing, and is told in the filter state.
    pub shadow: bool,
    /// More of a refusal's body is cut off; no limit unless given.
    pub max_denied_body_bytes: Option<usize>,
    /// Questions have spans of their own where their requests are traced.
    pub emits_span: bool,
    /// What our node says of itself under this key is told as labels of ours; nothing if empty.
    pub labels_key: String,
    /// An object of the filter state that has the filter's name begins with these fields.
    pub fields: Option<MetadataMap>,
    /// How long a question took, and how long it and its answer were, become fields of that object.
    pub measures: bool,
    /// A response gets no more headers than the upstream may have sent.
    pub limits_response: bool,
}

/// Whom to ask. Source: `ExtAuthz.services`.
#[derive(Clone, Debug)]
pub enum AuthzService {
    /// `envoy.service.auth.v3.Authorization`.
    Grpc(GrpcCall),
    /// An HTTP server that says 200 or something else.
    Http(Box<HttpAuthz>),
}

impl AuthzService {
    /// The cluster that is asked.
    pub fn cluster(&self) -> &Arc<str> {
        match self {
            Self::Grpc(call) => &call.cluster,
            Self::Http(service) => &service.cluster,
        }
    }
}

/// Source: `envoy.extensions.filters.http.ext_authz.v3.HttpService`.
#[derive(Clone, Debug)]
pub struct HttpAuthz {
    /// Which cluster.
    pub cluster: Arc<str>,
    /// Limit of a question; none if `None`.
    pub timeout: Option<Duration>,
    /// In which cases it is asked again, within that time.
    pub retries: Option<CallRetries>,
    /// The path that is asked for.
    pub path: AuthzPath,
    /// Headers besides those that are always told.
    pub allowed_headers: Vec<StringMatcher>,
    /// Set in each question.
    pub headers_to_add: Vec<HeaderAddition>,
    /// Headers of a consent that are set in the request.
    pub upstream: Vec<StringMatcher>,
    /// Headers of a consent that are appended to those of the request.
    pub upstream_append: Vec<StringMatcher>,
    /// Headers of a refusal that the client gets; all if empty.
    pub client: Vec<StringMatcher>,
    /// Headers of a consent that the client gets.
    pub client_on_success: Vec<StringMatcher>,
    /// Headers that become dynamic metadata.
    pub metadata: Vec<StringMatcher>,
}

/// What stands in the path of a question. Source: `HttpService.path_prefix` and `path_override`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AuthzPath {
    /// The request's, behind this.
    Prefix(String),
    /// Always this.
    Fixed(String),
}

/// How much of the body the service is told. Source: `BufferSettings`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CheckedBody {
    /// At most so many bytes; at least 1.
    pub max_bytes: usize,
    /// What is longer is told in part, instead of being refused with 413.
    pub allow_partial: bool,
    /// Told as bytes.
    pub as_bytes: bool,
}

/// Which headers the service is told.
#[derive(Clone, Debug, Default)]
pub struct HeaderChoice {
    /// Those that match; all if `None`.
    pub allowed: Option<Vec<StringMatcher>>,
    /// But never these.
    pub disallowed: Vec<StringMatcher>,
}

/// Settings of a level of routes. Source: `CheckSettings`.
#[derive(Clone, Debug, Default)]
pub struct AuthzRoute {
    /// The service is told these.
    pub extensions: Vec<(String, String)>,
    /// What the service is told of the body, where that differs.
    pub body: RouteBody,
    /// Whom to ask instead.
    pub service: Option<Arc<AuthzService>>,
    /// Whether questions have spans of their own, where that differs.
    pub emits_span: Option<bool>,
}

/// What a route says about the body.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum RouteBody {
    /// Nothing.
    #[default]
    Inherit,
    /// The service is not told of it.
    Never,
    /// The service is told so much.
    Checked(CheckedBody),
}

impl ExtAuthz {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::ExtAuthz) -> Parsed<Self> {
        decide!(wire, at, pb::ExtAuthz as "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz" {
            implemented: transport_api_version, failure_mode_allow, failure_mode_allow_header_add, with_request_body,
                clear_route_cache, status_on_error, validate_mutations, metadata_context_namespaces,
                route_metadata_context_namespaces, filter_enabled, filter_enabled_metadata, deny_at_disable,
                include_peer_certificate, stat_prefix, allowed_headers, disallowed_headers, include_tls_session,
                charge_cluster_response_stats, encode_raw_headers, decoder_header_mutation_rules,
                enable_dynamic_metadata_ingestion, max_denied_response_body_bytes, shadow_mode, emit_client_span,
                bootstrap_metadata_labels_key, filter_metadata, emit_filter_state_stats,
                enforce_response_header_limits, services;
            no_effect: typed_metadata_context_namespaces = "no filter sets typed metadata",
                route_typed_metadata_context_namespaces = "typed metadata of routes is not kept";
            unsupported: ;
        });
        source::api_version(&at.field("transport_api_version"), transport_api_version)?;
        let service = match services {
            Some(pb::ext_authz::Services::GrpcService(wire)) => grpc(context, &at.field("grpc_service"), wire)?,
            Some(pb::ext_authz::Services::HttpService(wire)) => http(&at.field("http_service"), wire)?,
            None => return Err(at.reject("needs one of grpc_service, http_service")),
        };
        if let AuthzService::Http(service) = &service
            && !service.allowed_headers.is_empty()
            && allowed_headers.is_some()
        {
            let twice = "must not be set together with http_service.authorization_request.allowed_headers";
            return Err(at.field("allowed_headers").reject(twice));
        }
        let body =
            with_request_body.map(|wire| CheckedBody::parse(&at.field("with_request_body"), wire)).transpose()?;
        let enabled = filter_enabled.map(|wire| wire::runtime_fraction(&at.field("filter_enabled"), wire));
        let enabled_metadata =
            filter_enabled_metadata.map(|wire| MetadataMatcher::parse(&at.field("filter_enabled_metadata"), wire));
        let deny = deny_at_disable.map(|wire| RuntimeFlag::parse(&at.field("deny_at_disable"), wire));
        let rules = decoder_header_mutation_rules
            .map(|wire| HeaderRules::parse(&at.field("decoder_header_mutation_rules"), wire));
        let disallowed = disallowed_headers.map(|wire| matchers(&at.field("disallowed_headers"), wire)).transpose()?;
        Ok(Self {
            service: Arc::new(service),
            failure_mode_allow,
            failure_mode_allow_header: failure_mode_allow_header_add,
            body,
            clear_route_cache,
            status_on_error: wire::http_status(&at.field("status_on_error"), status_on_error)?.unwrap_or(403),
            validate_mutations,
            metadata_namespaces: metadata_context_namespaces,
            route_metadata_namespaces: route_metadata_context_namespaces,
            enabled: enabled.transpose()?,
            enabled_metadata: enabled_metadata.transpose()?,
            deny_at_disable: deny.transpose()?,
            tells_certificate: include_peer_certificate,
            tells_tls_session: include_tls_session,
            stat_prefix: stat_prefix.into(),
            headers: HeaderChoice {
                allowed: allowed_headers.map(|wire| matchers(&at.field("allowed_headers"), wire)).transpose()?,
                disallowed: disallowed.unwrap_or_default(),
            },
            raw_headers: encode_raw_headers,
            rules: rules.transpose()?,
            takes_metadata: enable_dynamic_metadata_ingestion.is_none_or(|flag| flag.value),
            counts_for_cluster: charge_cluster_response_stats.is_none_or(|flag| flag.value),
            shadow: shadow_mode,
            max_denied_body_bytes: Some(max_denied_response_body_bytes as usize).filter(|bytes| *bytes > 0),
            emits_span: emit_client_span.is_none_or(|flag| flag.value),
            labels_key: bootstrap_metadata_labels_key,
            fields: filter_metadata.map(metadata::object),
            measures: emit_filter_state_stats,
            limits_response: enforce_response_header_limits,
        })
    }

    /// Reads the settings of a level of routes; `None` switches the filter off.
    pub(super) fn parse_route(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: pb::ExtAuthzPerRoute,
    ) -> Parsed<Option<Arc<AuthzRoute>>> {
        use pb::ext_authz_per_route::Override;
        let pb::ExtAuthzPerRoute { r#override } = wire;
        match r#override {
            Some(Override::Disabled(true)) => Ok(None),
            Some(Override::Disabled(false)) => Ok(Some(Arc::default())),
            Some(Override::CheckSettings(wire)) => {
                AuthzRoute::parse(context, &at.field("check_settings"), wire).map(|route| Some(Arc::new(route)))
            }
            None => Err(at.reject("needs one of disabled, check_settings")),
        }
    }
}

impl AuthzRoute {
    fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::CheckSettings) -> Parsed<Self> {
        decide!(wire, at, pb::CheckSettings as "envoy.extensions.filters.http.ext_authz.v3.CheckSettings" {
            implemented: context_extensions, disable_request_body_buffering, with_request_body, service_override,
                emit_client_span;
            no_effect: ;
            unsupported: ;
        });
        use pb::check_settings::ServiceOverride;
        let body_at = at.field("with_request_body");
        let body = match with_request_body {
            Some(_) if disable_request_body_buffering => {
                return Err(body_at.reject("must not be set together with disable_request_body_buffering"));
            }
            Some(wire) => RouteBody::Checked(CheckedBody::parse(&body_at, wire)?),
            None if disable_request_body_buffering => RouteBody::Never,
            None => RouteBody::Inherit,
        };
        let service = match service_override {
            None => None,
            Some(ServiceOverride::GrpcService(wire)) => Some(grpc(context, &at.field("grpc_service"), wire)?),
            Some(ServiceOverride::HttpService(wire)) => Some(http(&at.field("http_service"), wire)?),
        };
        let mut extensions: Vec<_> = context_extensions.into_iter().collect();
        extensions.sort_unstable();
        let emits_span = emit_client_span.map(|flag| flag.value);
        Ok(Self { extensions, body, service: service.map(Arc::new), emits_span })
    }
}

impl CheckedBody {
    fn parse(at: &FieldPath<'_>, wire: pb::BufferSettings) -> Parsed<Self> {
        let pb::BufferSettings { max_request_bytes, allow_partial_message, pack_as_bytes } = wire;
        if max_request_bytes == 0 {
            return Err(at.field("max_request_bytes").reject("must be above 0"));
        }
        let max_bytes = max_request_bytes as usize;
        Ok(Self { max_bytes, allow_partial: allow_partial_message, as_bytes: pack_as_bytes })
    }
}

fn grpc(context: &Context<'_>, at: &FieldPath<'_>, wire: core::GrpcService) -> Parsed<AuthzService> {
    source::grpc_call(context, at, wire, DEFAULT_TIMEOUT).map(AuthzService::Grpc)
}

fn http(at: &FieldPath<'_>, wire: pb::HttpService) -> Parsed<AuthzService> {
    decide!(wire, at, pb::HttpService as "envoy.extensions.filters.http.ext_authz.v3.HttpService" {
        implemented: server_uri, path_prefix, path_override, authorization_request, authorization_response,
            retry_policy;
        no_effect: ;
        unsupported: ;
    });
    let uri_at = at.field("server_uri");
    let Some(core::HttpUri { uri, timeout, http_upstream_type }) = server_uri else {
        return Err(uri_at.reject("is required"));
    };
    if uri.is_empty() {
        return Err(uri_at.field("uri").reject("must not be empty"));
    }
    let Some(timeout) = timeout else { return Err(uri_at.field("timeout").reject("is required")) };
    let cluster = match http_upstream_type {
        Some(core::http_uri::HttpUpstreamType::Cluster(cluster)) if !cluster.is_empty() => cluster,
        Some(_) => return Err(uri_at.field("cluster").reject("must not be empty")),
        None => return Err(uri_at.field("cluster").reject("is required")),
    };
    for (field, path) in [("path_prefix", &path_prefix), ("path_override", &path_override)] {
        if !path.is_empty() && (!path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(at.field(field).reject(format!("{path:?} is not a path, expected it to begin with \"/\"")));
        }
    }
    let path = match (path_prefix.is_empty(), path_override.is_empty()) {
        (false, false) => return Err(at.field("path_override").reject("must not be set together with path_prefix")),
        (true, false) => AuthzPath::Fixed(path_override),
        (_, true) => AuthzPath::Prefix(path_prefix),
    };
    let request_at = at.field("authorization_request");
    let pb::AuthorizationRequest { allowed_headers, headers_to_add } = authorization_request.unwrap_or_default();
    let response_at = at.field("authorization_response");
    let pb::AuthorizationResponse {
        allowed_upstream_headers,
        allowed_upstream_headers_to_append,
        allowed_client_headers,
        allowed_client_headers_on_success,
        dynamic_metadata_from_headers,
    } = authorization_response.unwrap_or_default();
    let list = |at: FieldPath<'_>, wire: Option<ListStringMatcher>| {
        wire.map(|wire| matchers(&at, wire)).transpose().map(Option::unwrap_or_default)
    };
    Ok(AuthzService::Http(Box::new(HttpAuthz {
        cluster: cluster.into(),
        timeout: wire::limit(&uri_at.field("timeout"), Some(timeout), None)?,
        retries: match retry_policy {
            None => None,
            Some(wire) => CallRetries::parse(&at.field("retry_policy"), wire)?,
        },
        path,
        allowed_headers: list(request_at.field("allowed_headers"), allowed_headers)?,
        headers_to_add: wire::each(&request_at.field("headers_to_add"), headers_to_add, set_header)?,
        upstream: list(response_at.field("allowed_upstream_headers"), allowed_upstream_headers)?,
        upstream_append: list(
            response_at.field("allowed_upstream_headers_to_append"),
            allowed_upstream_headers_to_append,
        )?,
        client: list(response_at.field("allowed_client_headers"), allowed_client_headers)?,
        client_on_success: list(
            response_at.field("allowed_client_headers_on_success"),
            allowed_client_headers_on_success,
        )?,
        metadata: list(response_at.field("dynamic_metadata_from_headers"), dynamic_metadata_from_headers)?,
    })))
}

/// Sets a header, whatever the request has.
fn set_header(at: &FieldPath<'_>, wire: core::HeaderValue) -> Parsed<HeaderAddition> {
    use core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd;
    let action = OverwriteIfExistsOrAdd as i32;
    header_addition(at, core::HeaderValueOption { header: Some(wire), append_action: action, ..Default::default() })
}

fn matchers(at: &FieldPath<'_>, wire: ListStringMatcher) -> Parsed<Vec<StringMatcher>> {
    let ListStringMatcher { patterns } = wire;
    let at = at.field("patterns");
    if patterns.is_empty() {
        return Err(at.reject("must not be empty"));
    }
    wire::each(&at, patterns, wire::string_matcher)
}

/// Of a gRPC service without a timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::{BoolValue, Duration as WireDuration};

    use super::*;
    use crate::context::NoEnvironment;

    fn uri() -> core::HttpUri {
        core::HttpUri {
            uri: "http://authz/".into(),
            timeout: Some(WireDuration { seconds: 1, nanos: 0 }),
            http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster("authz".into())),
        }
    }

    fn with_http(service: pb::HttpService) -> pb::ExtAuthz {
        pb::ExtAuthz {
            transport_api_version: core::ApiVersion::V3 as i32,
            services: Some(pb::ext_authz::Services::HttpService(service)),
            ..Default::default()
        }
    }

    fn read(wire: pb::ExtAuthz) -> Result<ExtAuthz, String> {
        let root = FieldPath::resource("listener", "l");
        ExtAuthz::parse(&Context::new(&NoEnvironment), &root, wire).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_given_refuses() {
        let got = read(with_http(pb::HttpService { server_uri: Some(uri()), ..Default::default() })).unwrap();
        assert!(!got.failure_mode_allow && got.takes_metadata && got.counts_for_cluster);
        assert_eq!((got.status_on_error, &**got.service.cluster()), (403, "authz"));
        let AuthzService::Http(service) = &*got.service else { panic!("not HTTP") };
        assert_eq!(service.timeout, Some(Duration::from_secs(1)));
    }

    #[test]
    fn what_cannot_be_asked_is_refused_by_path() {
        let service = || pb::HttpService { server_uri: Some(uri()), ..Default::default() };
        let valid = || with_http(service());
        let prefixed = |path: &str| with_http(pb::HttpService { path_prefix: path.into(), ..service() });
        for (wire, expected) in [
            (
                pb::ExtAuthz { transport_api_version: core::ApiVersion::V2 as i32, ..valid() },
                "listener \"l\": transport_api_version: V2 is not supported, expected V3",
            ),
            (pb::ExtAuthz { services: None, ..valid() }, "listener \"l\": needs one of grpc_service, http_service"),
            (with_http(pb::HttpService::default()), "listener \"l\": http_service.server_uri: is required"),
            (
                prefixed("authz"),
                "listener \"l\": http_service.path_prefix: \"authz\" is not a path, expected it to begin with \"/\"",
            ),
            (
                pb::ExtAuthz { with_request_body: Some(pb::BufferSettings::default()), ..valid() },
                "listener \"l\": with_request_body.max_request_bytes: must be above 0",
            ),
            (
                pb::ExtAuthz { allowed_headers: Some(ListStringMatcher::default()), ..valid() },
                "listener \"l\": allowed_headers.patterns: must not be empty",
            ),
        ] {
            assert_eq!(read(wire).unwrap_err(), expected);
        }
        let off = pb::ExtAuthz { charge_cluster_response_stats: Some(BoolValue { value: false }), ..valid() };
        assert!(!read(off).unwrap().counts_for_cluster);
    }
}
