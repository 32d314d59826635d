//! Processing by a service outside (`envoy.extensions.filters.http.ext_proc.v3`).
//!
//! Owns whom to ask, what the service is told of requests and responses, and what it may change. Never asks.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::http::ext_proc::v3 as pb;
use outrigger_api::pb::envoy::r#type::matcher::v3::ListStringMatcher;

use super::ext_authz::HeaderChoice;
use super::header_rules::HeaderRules;
use crate::cel::Expression;
use crate::context::Context;
use crate::decide::decide;
use crate::metadata::{self, MetadataMap};
use crate::rejection::{FieldPath, Parsed};
use crate::source::{self, GrpcCall};
use crate::wire;

/// Source: `envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor`.
#[derive(Clone, Debug)]
pub struct ExtProc {
    /// Whom to ask; its stream has no time limit.
    pub service: Arc<GrpcCall>,
    /// What the service fails at goes on as it is.
    pub failure_mode_allow: bool,
    /// What it is told.
    pub mode: ProcessingMode,
    /// What it is told with the first message about the request.
    pub request_attributes: Box<[WantedAttribute]>,
    /// What it is told with the first message about the response.
    pub response_attributes: Box<[WantedAttribute]>,
    /// For each message; 200 ms unless given.
    pub message_timeout: Duration,
    /// What the service may ask for instead; nothing if zero.
    pub max_message_timeout: Duration,
    /// Further part of the stat prefix; may be empty.
    pub stat_prefix: Arc<str>,
    /// What it may change.
    pub rules: HeaderRules,
    /// Headers that it is told.
    pub headers: HeaderChoice,
    /// It may change what it is told further.
    pub allow_mode_override: bool,
    /// To one of these alone, unless there are none.
    pub allowed_override_modes: Box<[ProcessingMode]>,
    /// An answer of its own that ends a request counts as an error.
    pub disable_immediate_response: bool,
    /// Metadata that it is told and may set.
    pub metadata: MetadataChoice,
    /// It is told, and what it says is not looked at.
    pub observes: bool,
    /// Whether the route is chosen anew.
    pub route_cache: RouteCacheAction,
    /// How long a stream of an observer stays when its request is over; 5 s unless given.
    pub deferred_close_timeout: Duration,
    /// It is told the body before it has answered to the head.
    pub sends_body_early: bool,
    /// Answer to requests that the service failed at; 500 unless given.
    pub status_on_error: u16,
    /// Streams have spans of their own where their requests are traced.
    pub emits_span: bool,
    /// An object of the filter state that has the filter's name has these fields.
    pub fields: Option<MetadataMap>,
}

/// What a service is told. Source: `ProcessingMode`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ProcessingMode {
    /// Of the request.
    pub request: MessageMode,
    /// Of the response.
    pub response: MessageMode,
}

/// What a service is told of a request or of a response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MessageMode {
    /// Its head.
    pub headers: bool,
    /// Its body.
    pub body: BodyMode,
    /// Its trailers.
    pub trailers: bool,
}

impl Default for MessageMode {
    fn default() -> Self {
        Self { headers: true, body: BodyMode::None, trailers: false }
    }
}

/// How a service is told a body. Source: `BodySendMode`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum BodyMode {
    /// Not at all.
    #[default]
    None,
    /// Piece by piece; each piece waits for its answer.
    Streamed,
    /// As a whole, before the message goes on.
    Buffered,
    /// Its beginning, as much as is buffered, before the message goes on.
    BufferedPartial,
    /// Piece by piece; what comes back has pieces of its own.
    FullDuplex,
}

/// Whether a change of a request head makes its route be chosen anew. Source: `RouteCacheAction`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum RouteCacheAction {
    /// As the service says.
    #[default]
    Default,
    /// Always.
    Clear,
    /// Never.
    Retain,
}

/// Namespaces of dynamic metadata. Source: `MetadataOptions`.
#[derive(Clone, Debug, Default)]
pub struct MetadataChoice {
    /// Those that the service is told.
    pub told: Vec<String>,
    /// Those that it may set.
    pub taken: Vec<String>,
}

/// Something that a service is told of a request besides, under the words that ask for it.
#[derive(Clone, Debug)]
pub enum WantedAttribute {
    /// What most ask for, which needs no evaluation.
    Known(Attribute),
    /// Any other expression.
    Expression(Box<str>, Box<Expression>),
}

impl WantedAttribute {
    fn parse(at: &FieldPath<'_>, text: String) -> Parsed<Self> {
        if let Some((_, attribute)) = ATTRIBUTES.iter().find(|(known, _)| *known == text) {
            return Ok(Self::Known(*attribute));
        }
        let expression = Expression::parse(&text).map_err(|error| at.reject(error))?;
        Ok(Self::Expression(text.into(), Box::new(expression)))
    }
}

/// A fact of a request or of its connection, by the name that CEL has for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Attribute {
    /// `request.path`.
    RequestPath,
    /// `request.url_path`: the path without its query.
    RequestUrlPath,
    /// `request.query`.
    RequestQuery,
    /// `request.host`.
    RequestHost,
    /// `request.scheme`.
    RequestScheme,
    /// `request.method`.
    RequestMethod,
    /// `request.referer`.
    RequestReferer,
    /// `request.useragent`.
    RequestUserAgent,
    /// `request.id`.
    RequestId,
    /// `request.protocol`.
    RequestProtocol,
    /// `response.code`.
    ResponseCode,
    /// `source.address`.
    SourceAddress,
    /// `source.port`.
    SourcePort,
    /// `destination.address`.
    DestinationAddress,
    /// `destination.port`.
    DestinationPort,
    /// `connection.id`.
    ConnectionId,
    /// `connection.mtls`.
    ConnectionMtls,
    /// `connection.requested_server_name`.
    ConnectionServerName,
    /// `connection.tls_version`.
    ConnectionTlsVersion,
    /// `connection.subject_peer_certificate`.
    ConnectionPeerSubject,
    /// `connection.uri_san_peer_certificate`.
    ConnectionPeerUri,
    /// `connection.dns_san_peer_certificate`.
    ConnectionPeerDns,
    /// `upstream.address`.
    UpstreamAddress,
    /// `upstream.port`.
    UpstreamPort,
    /// `xds.cluster_name`.
    ClusterName,
    /// `xds.route_name`.
    RouteName,
    /// `xds.virtual_host_name`.
    VirtualHostName,
    /// `xds.filter_chain_name`.
    FilterChainName,
}

const ATTRIBUTES: [(&str, Attribute); 28] = [
    ("request.path", Attribute::RequestPath),
    ("request.url_path", Attribute::RequestUrlPath),
    ("request.query", Attribute::RequestQuery),
    ("request.host", Attribute::RequestHost),
    ("request.scheme", Attribute::RequestScheme),
    ("request.method", Attribute::RequestMethod),
    ("request.referer", Attribute::RequestReferer),
    ("request.useragent", Attribute::RequestUserAgent),
    ("request.id", Attribute::RequestId),
    ("request.protocol", Attribute::RequestProtocol),
    ("response.code", Attribute::ResponseCode),
    ("source.address", Attribute::SourceAddress),
    ("source.port", Attribute::SourcePort),
    ("destination.address", Attribute::DestinationAddress),
    ("destination.port", Attribute::DestinationPort),
    ("connection.id", Attribute::ConnectionId),
    ("connection.mtls", Attribute::ConnectionMtls),
    ("connection.requested_server_name", Attribute::ConnectionServerName),
    ("connection.tls_version", Attribute::ConnectionTlsVersion),
    ("connection.subject_peer_certificate", Attribute::ConnectionPeerSubject),
    ("connection.uri_san_peer_certificate", Attribute::ConnectionPeerUri),
    ("connection.dns_san_peer_certificate", Attribute::ConnectionPeerDns),
    ("upstream.address", Attribute::UpstreamAddress),
    ("upstream.port", Attribute::UpstreamPort),
    ("xds.cluster_name", Attribute::ClusterName),
    ("xds.route_name", Attribute::RouteName),
    ("xds.virtual_host_name", Attribute::VirtualHostName),
    ("xds.filter_chain_name", Attribute::FilterChainName),
];

impl Attribute {
    /// Its name.
    pub fn name(self) -> &'static str {
        ATTRIBUTES.iter().find(|(_, attribute)| *attribute == self).map_or("", |(name, _)| name)
    }
}

/// Settings of a level of routes. Source: `ExtProcOverrides`.
#[derive(Clone, Debug, Default)]
pub struct ExtProcRoute {
    /// What the service is told instead.
    pub mode: Option<ProcessingMode>,
    /// Whom to ask instead.
    pub service: Option<Arc<GrpcCall>>,
    /// Instead of those of the chain.
    pub metadata: Option<MetadataChoice>,
    /// Sent with the stream besides, or instead of headers of the same names.
    pub initial_metadata: Vec<(String, String)>,
    /// Instead of what the chain says.
    pub failure_mode_allow: Option<bool>,
    /// Whether streams have spans of their own, where that differs.
    pub emits_span: Option<bool>,
}

impl ExtProc {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::ExternalProcessor) -> Parsed<Self> {
        decide!(wire, at, pb::ExternalProcessor as "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor" {
            implemented: grpc_service, failure_mode_allow, processing_mode, request_attributes, response_attributes,
                message_timeout, stat_prefix, mutation_rules, max_message_timeout, forward_rules, allow_mode_override,
                disable_immediate_response, metadata_options, observability_mode, disable_clear_route_cache,
                route_cache_action, deferred_close_timeout, send_body_without_waiting_for_header_response,
                allowed_override_modes, status_on_error, emit_client_span, filter_metadata;
            no_effect: allow_content_length_header = "a body has the length that it has";
            unsupported: http_service, processing_request_modifier, on_processing_response;
        });
        let service_at = at.field("grpc_service");
        let Some(wire) = grpc_service else { return Err(service_at.reject("is required")) };
        let mode = processing_mode.unwrap_or_default();
        let mode = ProcessingMode::parse(&at.field("processing_mode"), mode)?;
        let timeout = |field: &'static str, wire: Option<_>, default: Duration| {
            let at = at.field(field);
            let timeout = wire.map_or(Ok(default), |wire| wire::duration(&at, wire))?;
            if timeout > MOST_TIMEOUT {
                return Err(at.reject(format!("{timeout:?} is too long, expected at most {MOST_TIMEOUT:?}")));
            }
            Ok(timeout)
        };
        let action_at = at.field("route_cache_action");
        let action = pb::external_processor::RouteCacheAction::try_from(route_cache_action)
            .map_err(|_| wire::unknown_enum(&action_at, route_cache_action))?;
        use pb::external_processor::RouteCacheAction as Action;
        let route_cache = match (action, disable_clear_route_cache) {
            (Action::Default, false) => RouteCacheAction::Default,
            (Action::Default, true) | (Action::Retain, false) => RouteCacheAction::Retain,
            (Action::Clear, false) => RouteCacheAction::Clear,
            (Action::Clear | Action::Retain, true) => {
                return Err(action_at.reject("must not be set together with disable_clear_route_cache"));
            }
        };
        let attributes = |field: &'static str, names| wire::each(&at.field(field), names, WantedAttribute::parse);
        let max_message_timeout = timeout("max_message_timeout", max_message_timeout, Duration::ZERO)?;
        Ok(Self {
            service: service(context, &service_at, wire)?,
            failure_mode_allow,
            mode,
            request_attributes: attributes("request_attributes", request_attributes)?.into(),
            response_attributes: attributes("response_attributes", response_attributes)?.into(),
            message_timeout: timeout("message_timeout", message_timeout, MESSAGE_TIMEOUT)?,
            max_message_timeout,
            stat_prefix: stat_prefix.into(),
            rules: HeaderRules::parse(&at.field("mutation_rules"), mutation_rules.unwrap_or_default())?,
            headers: forwarding(&at.field("forward_rules"), forward_rules.unwrap_or_default())?,
            allow_mode_override,
            allowed_override_modes: wire::each(
                &at.field("allowed_override_modes"),
                allowed_override_modes,
                ProcessingMode::parse,
            )?
            .into(),
            disable_immediate_response,
            metadata: MetadataChoice::parse(&at.field("metadata_options"), metadata_options.unwrap_or_default())?,
            observes: observability_mode,
            route_cache,
            deferred_close_timeout: match deferred_close_timeout {
                None => DEFERRED_CLOSE,
                Some(wire) => wire::duration(&at.field("deferred_close_timeout"), wire)?,
            },
            sends_body_early: send_body_without_waiting_for_header_response,
            status_on_error: wire::http_status(&at.field("status_on_error"), status_on_error)?.unwrap_or(500),
            emits_span: emit_client_span.is_none_or(|flag| flag.value),
            fields: filter_metadata.map(metadata::object),
        })
    }

    /// Reads the settings of a level of routes; `None` switches the filter off.
    pub(super) fn parse_route(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: pb::ExtProcPerRoute,
    ) -> Parsed<Option<Arc<ExtProcRoute>>> {
        use pb::ext_proc_per_route::Override;
        let pb::ExtProcPerRoute { r#override } = wire;
        match r#override {
            Some(Override::Disabled(true)) => Ok(None),
            Some(Override::Disabled(false)) => Err(at.field("disabled").reject("must be true")),
            Some(Override::Overrides(wire)) => {
                ExtProcRoute::parse(context, &at.field("overrides"), wire).map(|route| Some(Arc::new(route)))
            }
            None => Err(at.reject("needs one of disabled, overrides")),
        }
    }
}

impl ExtProcRoute {
    fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::ExtProcOverrides) -> Parsed<Self> {
        decide!(wire, at, pb::ExtProcOverrides as "envoy.extensions.filters.http.ext_proc.v3.ExtProcOverrides" {
            implemented: processing_mode, grpc_service, metadata_options, grpc_initial_metadata, failure_mode_allow,
                emit_client_span;
            no_effect: ;
            unsupported: async_mode, request_attributes, response_attributes, processing_request_modifier;
        });
        let mode = processing_mode.map(|wire| ProcessingMode::parse(&at.field("processing_mode"), wire));
        let service = grpc_service.map(|wire| service(context, &at.field("grpc_service"), wire));
        let metadata = metadata_options.map(|wire| MetadataChoice::parse(&at.field("metadata_options"), wire));
        let initial_metadata =
            wire::each(&at.field("grpc_initial_metadata"), grpc_initial_metadata, source::metadata_entry)?;
        Ok(Self {
            mode: mode.transpose()?,
            service: service.transpose()?,
            metadata: metadata.transpose()?,
            initial_metadata,
            failure_mode_allow: failure_mode_allow.map(|flag| flag.value),
            emits_span: emit_client_span.map(|flag| flag.value),
        })
    }
}

impl ProcessingMode {
    fn parse(at: &FieldPath<'_>, wire: pb::ProcessingMode) -> Parsed<Self> {
        let mode = Self::read(&wire).map_err(|(field, value)| wire::unknown_enum(&at.field(field), value))?;
        for (field, value) in
            [("request_body_mode", wire.request_body_mode), ("response_body_mode", wire.response_body_mode)]
        {
            if value == pb::processing_mode::BodySendMode::Grpc as i32 {
                return Err(at.field(field).reject("GRPC is not supported"));
            }
        }
        for (field, mode) in [("request_trailer_mode", mode.request), ("response_trailer_mode", mode.response)] {
            if mode.body == BodyMode::FullDuplex && !mode.trailers {
                return Err(at.field(field).reject("must be SEND where the body is FULL_DUPLEX_STREAMED"));
            }
        }
        Ok(mode)
    }

    /// What a message says. An unknown value is given back with its field.
    ///
    /// # Errors
    /// If there is an unknown value.
    pub fn read(wire: &pb::ProcessingMode) -> Result<Self, (&'static str, i32)> {
        use pb::processing_mode::HeaderSendMode;
        let &pb::ProcessingMode {
            request_header_mode,
            response_header_mode,
            request_body_mode,
            response_body_mode,
            request_trailer_mode,
            response_trailer_mode,
        } = wire;
        let sends = |field, value, default: bool| match HeaderSendMode::try_from(value) {
            Ok(HeaderSendMode::Default) => Ok(default),
            Ok(HeaderSendMode::Send) => Ok(true),
            Ok(HeaderSendMode::Skip) => Ok(false),
            Err(_) => Err((field, value)),
        };
        Ok(Self {
            request: MessageMode {
                headers: sends("request_header_mode", request_header_mode, true)?,
                body: BodyMode::read("request_body_mode", request_body_mode)?,
                trailers: sends("request_trailer_mode", request_trailer_mode, false)?,
            },
            response: MessageMode {
                headers: sends("response_header_mode", response_header_mode, true)?,
                body: BodyMode::read("response_body_mode", response_body_mode)?,
                trailers: sends("response_trailer_mode", response_trailer_mode, false)?,
            },
        })
    }
}

impl BodyMode {
    fn read(field: &'static str, value: i32) -> Result<Self, (&'static str, i32)> {
        use pb::processing_mode::BodySendMode;
        Ok(match BodySendMode::try_from(value) {
            // Refused where it is configured; a service that asks for it is not told the body.
            Ok(BodySendMode::None | BodySendMode::Grpc) => Self::None,
            Ok(BodySendMode::Streamed) => Self::Streamed,
            Ok(BodySendMode::Buffered) => Self::Buffered,
            Ok(BodySendMode::BufferedPartial) => Self::BufferedPartial,
            Ok(BodySendMode::FullDuplexStreamed) => Self::FullDuplex,
            Err(_) => return Err((field, value)),
        })
    }
}

impl MetadataChoice {
    fn parse(at: &FieldPath<'_>, wire: pb::MetadataOptions) -> Parsed<Self> {
        decide!(wire, at, pb::MetadataOptions as "envoy.extensions.filters.http.ext_proc.v3.MetadataOptions" {
            implemented: forwarding_namespaces, receiving_namespaces;
            no_effect: ;
            unsupported: cluster_metadata_forwarding_namespaces;
        });
        Ok(Self {
            told: namespaces(&at.field("forwarding_namespaces"), forwarding_namespaces)?,
            taken: namespaces(&at.field("receiving_namespaces"), receiving_namespaces)?,
        })
    }
}

fn namespaces(at: &FieldPath<'_>, wire: Option<pb::metadata_options::MetadataNamespaces>) -> Parsed<Vec<String>> {
    use pb::metadata_options::MetadataNamespaces;
    let wire = wire.unwrap_or_default();
    decide!(wire, at, MetadataNamespaces
        as "envoy.extensions.filters.http.ext_proc.v3.MetadataOptions.MetadataNamespaces" {
        implemented: untyped;
        no_effect: ;
        unsupported: typed;
    });
    Ok(untyped)
}

fn forwarding(at: &FieldPath<'_>, wire: pb::HeaderForwardingRules) -> Parsed<HeaderChoice> {
    let pb::HeaderForwardingRules { allowed_headers, disallowed_headers } = wire;
    let read = |field: &'static str, wire: Option<ListStringMatcher>| {
        let patterns = wire.map(|ListStringMatcher { patterns }| patterns).unwrap_or_default();
        wire::each(&at.field(field).field("patterns"), patterns, wire::string_matcher)
    };
    let allowed = read("allowed_headers", allowed_headers)?;
    Ok(HeaderChoice {
        // An empty list allows everything.
        allowed: Some(allowed).filter(|allowed| !allowed.is_empty()),
        disallowed: read("disallowed_headers", disallowed_headers)?,
    })
}

fn service(context: &Context<'_>, at: &FieldPath<'_>, wire: core::GrpcService) -> Parsed<Arc<GrpcCall>> {
    // As in Envoy, a limit for calls is none for a stream.
    let wire = core::GrpcService { timeout: None, ..wire };
    let call = source::grpc_call(context, at, wire, Duration::ZERO)?;
    Ok(Arc::new(GrpcCall { timeout: None, ..call }))
}

const MESSAGE_TIMEOUT: Duration = Duration::from_millis(200);
const DEFERRED_CLOSE: Duration = Duration::from_secs(5);
/// Source: `(validate.rules).duration`.
const MOST_TIMEOUT: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::NoEnvironment;
    use pb::processing_mode::{BodySendMode, HeaderSendMode};

    const ROOT: FieldPath<'static> = FieldPath::Resource { kind: "filter", name: "" };

    fn settings() -> pb::ExternalProcessor {
        let target = core::grpc_service::EnvoyGrpc { cluster_name: "processor".into(), ..Default::default() };
        let service = core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(target)),
            ..Default::default()
        };
        pb::ExternalProcessor { grpc_service: Some(service), ..Default::default() }
    }

    fn read(change: impl FnOnce(&mut pb::ExternalProcessor)) -> Result<ExtProc, String> {
        let mut wire = settings();
        change(&mut wire);
        ExtProc::parse(&Context::new(&NoEnvironment), &ROOT, wire).map_err(|error| error.to_string())
    }

    #[test]
    fn only_heads_are_told_unless_more_is_said() {
        let plain = read(|_| {}).unwrap();
        assert_eq!(plain.mode, ProcessingMode::default());
        assert!(plain.mode.request.headers && plain.mode.response.headers);
        assert_eq!((plain.message_timeout, plain.status_on_error), (Duration::from_millis(200), 500));
        assert_eq!(plain.service.timeout, None);
        let more = read(|wire| {
            wire.processing_mode = Some(pb::ProcessingMode {
                request_header_mode: HeaderSendMode::Skip as i32,
                response_body_mode: BodySendMode::BufferedPartial as i32,
                response_trailer_mode: HeaderSendMode::Send as i32,
                ..Default::default()
            });
        });
        let mode = more.unwrap().mode;
        assert_eq!(mode.request, MessageMode { headers: false, body: BodyMode::None, trailers: false });
        assert_eq!(mode.response, MessageMode { headers: true, body: BodyMode::BufferedPartial, trailers: true });
    }

    #[test]
    fn settings_that_are_refused() {
        type Change = fn(&mut pb::ExternalProcessor);
        let cases: [(Change, &str); 6] = [
            (|wire| wire.grpc_service = None, ".grpc_service: is required"),
            (
                |wire| {
                    wire.processing_mode = Some(pb::ProcessingMode {
                        request_body_mode: BodySendMode::FullDuplexStreamed as i32,
                        ..Default::default()
                    });
                },
                ".processing_mode.request_trailer_mode: must be SEND where the body is FULL_DUPLEX_STREAMED",
            ),
            (
                |wire| {
                    let mode =
                        pb::ProcessingMode { response_body_mode: BodySendMode::Grpc as i32, ..Default::default() };
                    wire.allowed_override_modes = vec![mode];
                },
                ".allowed_override_modes[0].response_body_mode: GRPC is not supported",
            ),
            (
                |wire| wire.request_attributes = vec!["request.path".into(), "1 +".into()],
                ".request_attributes[1]: \"1 +\" is not a valid expression: at character 4: expected something more",
            ),
            (
                |wire| {
                    wire.disable_clear_route_cache = true;
                    wire.route_cache_action = pb::external_processor::RouteCacheAction::Clear as i32;
                },
                ".route_cache_action: must not be set together with disable_clear_route_cache",
            ),
            (|wire| wire.http_service = Some(Default::default()), ".http_service: is not supported"),
        ];
        for (change, expected) in cases {
            let error = read(change).unwrap_err();
            assert!(error.ends_with(expected.trim_start_matches('.')), "{error} {expected}");
        }
    }
}
