//! Reading how HTTP is spoken towards a cluster (`envoy.extensions.upstreams.http.v3.HttpProtocolOptions`, and the
//! older fields of `Cluster` that it replaces).
//!
//! Owns which protocol is chosen. Never opens a connection.

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::cluster::v3::cluster::ClusterProtocolSelection;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::upstreams::http::v3 as pb;
use outrigger_api::pb::google::protobuf::{Any, UInt32Value};
use pb::http_protocol_options::{AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig};

use super::concurrency::{self, Concurrency};
use super::error_matcher::error_matcher;
use super::request_policies::{RequestPolicies, WirePolicies};
use super::{UpstreamHttp, UpstreamProtocol};
use crate::context::Context;
use crate::decide::decide;
use crate::http::filters::upstream_filters;
use crate::http::header_mutations::header_name;
use crate::http::protocol_options::{CommonHttpOptions, common_http_options, http1_options, http2_options};
use crate::http::{Http1Options, Http2Options};
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// The fields of a cluster that are about HTTP.
pub(super) struct HttpFields {
    pub typed: HashMap<String, Any>,
    pub common: Option<core::HttpProtocolOptions>,
    pub upstream: Option<core::UpstreamHttpProtocolOptions>,
    pub http1: Option<core::Http1ProtocolOptions>,
    pub http2: Option<core::Http2ProtocolOptions>,
    pub protocol_selection: i32,
    pub max_requests_per_connection: Option<UInt32Value>,
}

/// What was read.
pub(super) struct ReadHttp {
    pub http: UpstreamHttp,
    pub requests: Option<RequestPolicies>,
    pub max_requests_per_connection: Option<u32>,
    /// The other options that stand where those of HTTP do.
    pub concurrency: Option<Concurrency>,
}

/// Which protocol, and its options.
struct Protocol {
    protocol: UpstreamProtocol,
    http1: Http1Options,
    http2: Http2Options,
}

/// Reads how HTTP is spoken towards the cluster `at`, and how many requests a connection takes. The extension, if
/// given, replaces the older fields.
pub(super) fn upstream_http(context: &Context<'_>, at: &FieldPath<'_>, wire: HttpFields) -> Parsed<ReadHttp> {
    let HttpFields { typed, common, upstream, http1, http2, protocol_selection, max_requests_per_connection } = wire;
    let older_limit = max_requests_per_connection.map(|limit| limit.value).filter(|limit| *limit > 0);
    let TypedOptions { http, concurrency } =
        typed_options(context, &at.field("typed_extension_protocol_options"), typed)?;
    let ReadOptions { common, http, requests } = match http {
        Some(read) => read,
        None => {
            let common = common_http_options(&at.field("common_http_protocol_options"), common)?;
            let protocol = older_protocol(context, at, http1, http2, protocol_selection)?;
            let upstream = upstream_options(&at.field("upstream_http_protocol_options"), upstream)?;
            let http = together(&common, protocol, upstream);
            ReadOptions { common, http, requests: None }
        }
    };
    match (older_limit, common.max_requests_per_connection) {
        (Some(_), Some(_)) => Err(at
            .field("max_requests_per_connection")
            .reject("must not be set both here and in the HTTP protocol options")),
        (older, newer) => Ok(ReadHttp { http, requests, max_requests_per_connection: newer.or(older), concurrency }),
    }
}

fn older_protocol(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    http1: Option<core::Http1ProtocolOptions>,
    http2: Option<core::Http2ProtocolOptions>,
    selection: i32,
) -> Parsed<Protocol> {
    let selection_at = at.field("protocol_selection");
    let selection =
        ClusterProtocolSelection::try_from(selection).map_err(|_| wire::unknown_enum(&selection_at, selection))?;
    let protocol = match (selection, &http1, &http2) {
        (ClusterProtocolSelection::UseDownstreamProtocol, _, _) => UpstreamProtocol::UseDownstream,
        (ClusterProtocolSelection::UseConfiguredProtocol, Some(_), Some(_)) => {
            return Err(at
                .field("http2_protocol_options")
                .reject("must not be set together with http_protocol_options unless the downstream protocol is used"));
        }
        (ClusterProtocolSelection::UseConfiguredProtocol, _, Some(_)) => UpstreamProtocol::Http2,
        (ClusterProtocolSelection::UseConfiguredProtocol, _, None) => UpstreamProtocol::Http1,
    };
    both(context, at, protocol, http1, http2)
}

fn both(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    protocol: UpstreamProtocol,
    http1: Option<core::Http1ProtocolOptions>,
    http2: Option<core::Http2ProtocolOptions>,
) -> Parsed<Protocol> {
    Ok(Protocol {
        protocol,
        http1: http1_options(context, &at.field("http_protocol_options"), http1.unwrap_or_default())?,
        http2: http2_options(&at.field("http2_protocol_options"), http2.unwrap_or_default())?,
    })
}

/// Host names taken from the request: for the server name, and for checking the certificate.
struct AutoNames {
    sni: bool,
    san_validation: bool,
    header: Option<Arc<str>>,
}

fn upstream_options(at: &FieldPath<'_>, wire: Option<core::UpstreamHttpProtocolOptions>) -> Parsed<AutoNames> {
    let wire = wire.unwrap_or_default();
    decide!(wire, at, core::UpstreamHttpProtocolOptions as "envoy.config.core.v3.UpstreamHttpProtocolOptions" {
        implemented: auto_sni, auto_san_validation, override_auto_sni_header;
        no_effect: ;
        unsupported: ;
    });
    let header = match override_auto_sni_header.as_str() {
        "" => None,
        name => Some(header_name(&at.field("override_auto_sni_header"), name)?),
    };
    Ok(AutoNames { sni: auto_sni, san_validation: auto_san_validation, header })
}

fn together(common: &CommonHttpOptions, protocol: Protocol, names: AutoNames) -> UpstreamHttp {
    UpstreamHttp {
        protocol: protocol.protocol,
        http1: protocol.http1,
        http2: protocol.http2,
        idle_timeout: common.idle_timeout,
        max_connection_duration: common.max_connection_duration,
        max_headers_count: common.max_headers_count.unwrap_or(DEFAULT_MAX_HEADERS),
        max_response_headers_bytes: common.max_response_headers_bytes.unwrap_or(DEFAULT_MAX_HEADER_BYTES),
        max_stream_duration: common.max_stream_duration,
        error_matcher: None,
        filters: None,
        auto_sni: names.sni,
        auto_san_validation: names.san_validation,
        override_auto_sni_header: names.header,
    }
}

/// What `HttpProtocolOptions` say.
struct ReadOptions {
    common: CommonHttpOptions,
    http: UpstreamHttp,
    requests: Option<RequestPolicies>,
}

#[derive(Default)]
struct TypedOptions {
    http: Option<ReadOptions>,
    concurrency: Option<Concurrency>,
}

fn typed_options(context: &Context<'_>, at: &FieldPath<'_>, wire: HashMap<String, Any>) -> Parsed<TypedOptions> {
    // A map has no order, and the same input should always name the same entry.
    let mut entries: Vec<_> = wire.into_iter().collect();
    entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let mut read = TypedOptions::default();
    for (key, wire) in entries {
        let at = at.key(&key);
        let wire = wire::extension(context, &at, wire)?;
        match wire::type_name(&wire) {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions" => {
                if read.http.is_some() {
                    return Err(at.reject("HttpProtocolOptions are there twice"));
                }
                read.http = Some(http_protocol_options(context, &at, wire::decode(&at, &wire)?)?);
            }
            concurrency::TYPE_NAME => {
                if read.concurrency.is_some() {
                    return Err(at.reject("ConcurrencyOptions are there twice"));
                }
                read.concurrency = Some(concurrency::parse(&at, wire::decode(&at, &wire)?)?);
            }
            _ => return Err(at.reject(format!("{:?} is not supported", wire.type_url))),
        }
    }
    Ok(read)
}

fn http_protocol_options(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: pb::HttpProtocolOptions,
) -> Parsed<ReadOptions> {
    decide!(wire, at, pb::HttpProtocolOptions as "envoy.extensions.upstreams.http.v3.HttpProtocolOptions" {
        implemented: common_http_protocol_options, upstream_http_protocol_options, http_filters,
            upstream_protocol_options, outlier_detection, request_mirror_policies, hash_policy, retry_policy;
        no_effect: ;
        unsupported: header_validation_config;
    });
    let filters = upstream_filters(context, &at.field("http_filters"), http_filters)?;
    let common = common_http_options(&at.field("common_http_protocol_options"), common_http_protocol_options)?;
    let names = upstream_options(&at.field("upstream_http_protocol_options"), upstream_http_protocol_options)?;
    let protocol = match upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(wire)) => {
            explicit(context, &at.field("explicit_http_config"), wire)?
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(wire)) => {
            use_downstream(context, &at.field("use_downstream_protocol_config"), wire)?
        }
        Some(UpstreamProtocolOptions::AutoConfig(wire)) => auto(context, &at.field("auto_config"), wire)?,
        None => {
            return Err(at.reject("needs one of explicit_http_config, use_downstream_protocol_config, auto_config"));
        }
    };
    let mut http = together(&common, protocol, names);
    http.filters = filters;
    if let Some(wire) = outlier_detection {
        http.error_matcher = Some(error_matcher(&at.field("outlier_detection"), wire)?);
    }
    let requests =
        RequestPolicies::read(context, at, WirePolicies { request_mirror_policies, hash_policy, retry_policy })?;
    Ok(ReadOptions { common, http, requests })
}

fn explicit(context: &Context<'_>, at: &FieldPath<'_>, wire: ExplicitHttpConfig) -> Parsed<Protocol> {
    use pb::http_protocol_options::explicit_http_config::ProtocolConfig;
    let ExplicitHttpConfig { protocol_config } = wire;
    match protocol_config {
        Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
            both(context, at, UpstreamProtocol::Http1, Some(http1), None)
        }
        Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
            both(context, at, UpstreamProtocol::Http2, None, Some(http2))
        }
        Some(ProtocolConfig::Http3ProtocolOptions(_)) => Err(at.field("http3_protocol_options").unsupported()),
        None => Err(at.reject("needs one of http_protocol_options, http2_protocol_options")),
    }
}

fn use_downstream(context: &Context<'_>, at: &FieldPath<'_>, wire: UseDownstreamHttpConfig) -> Parsed<Protocol> {
    decide!(wire, at, UseDownstreamHttpConfig
        as "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig" {
        implemented: http_protocol_options, http2_protocol_options;
        no_effect: ;
        unsupported: http3_protocol_options;
    });
    both(context, at, UpstreamProtocol::UseDownstream, http_protocol_options, http2_protocol_options)
}

fn auto(context: &Context<'_>, at: &FieldPath<'_>, wire: AutoHttpConfig) -> Parsed<Protocol> {
    decide!(wire, at, AutoHttpConfig as "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.AutoHttpConfig" {
        implemented: http_protocol_options, http2_protocol_options;
        no_effect: ;
        unsupported: http3_protocol_options, alternate_protocols_cache_options;
    });
    both(context, at, UpstreamProtocol::Auto, http_protocol_options, http2_protocol_options)
}

const DEFAULT_MAX_HEADERS: u32 = 100;
const DEFAULT_MAX_HEADER_BYTES: u32 = 60 * 1024;
