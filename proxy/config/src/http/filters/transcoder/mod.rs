//! Calling gRPC services with JSON (`envoy.extensions.filters.http.grpc_json_transcoder.v3`).
//!
//! Owns which requests are calls of which methods, and how their messages are read and written. Never translates a message.

mod rules;
mod schema;
mod template;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::grpc_json_transcoder::v3 as pb;
use outrigger_api::pb::google::protobuf::UInt32Value;
use prost_reflect::DescriptorPool;

pub use rules::{HttpBodyPath, TranscodedMethod, TranscodingRule};
pub use schema::{EnumId, Enumeration, Field, Kind, Message, MessageId, PathError, Schema, Shape, WellKnown};
pub use template::{End, PathTemplate, PathTree, Segment, TemplateError, Variable};

use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed, Rejection};
use crate::wire;

/// Source: `GrpcJsonTranscoder`.
#[derive(Debug)]
pub struct Transcoder {
    /// The types of all messages.
    pub schema: Schema,
    /// What is called by which requests.
    pub rules: Box<[TranscodingRule]>,
    /// Places in `rules`, by methods and paths.
    pub paths: PathTree,
    /// How responses are written.
    pub printing: Printing,
    /// How parts of paths are read.
    pub unescaping: Unescaping,
    /// `+` is a space in query parameters.
    pub unescape_plus: bool,
    /// What follows the last colon of a path is a verb even if no template has it.
    pub any_verb: bool,
    /// Query parameters that are no fields.
    pub ignored_parameters: BTreeSet<String>,
    /// What is done with other query parameters that are no fields.
    pub unknown_parameters: UnknownParameters,
    /// Requests that are no calls are answered with 404 instead of passed on.
    pub rejects_unknown_method: bool,
    /// Requests with query parameters that are no fields are answered with 400 instead of passed on.
    pub rejects_unknown_parameters: bool,
    /// So are those whose path or query says something else than their body.
    pub rejects_collisions: bool,
    /// Values of enumerations may be written in lower case.
    pub ignores_enum_case: bool,
    /// The route of a request stays as it was before it became a call.
    pub keeps_route: bool,
    /// A failed call without a response is answered with its status as JSON.
    pub converts_status: bool,
    /// Limit for the body of a request, in bytes.
    pub max_request_bytes: Option<u32>,
    /// Limit for the body of a response, in bytes.
    pub max_response_bytes: Option<u32>,
}

/// How responses are written. Source: `GrpcJsonTranscoder.PrintOptions`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Printing {
    /// With line ends and indentation.
    pub whitespace: bool,
    /// Fields that have their defaults, too.
    pub defaults: bool,
    /// Values of enumerations as numbers.
    pub enum_numbers: bool,
    /// Names of fields as declared.
    pub declared_names: bool,
    /// How the messages of a stream are set apart.
    pub stream: StreamStyle,
}

/// How the messages of a stream are set apart.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum StreamStyle {
    /// As the values of an array.
    #[default]
    Array,
    /// By line ends.
    Lines,
    /// As events (`text/event-stream`).
    Events,
}

/// Which characters are unescaped in variables of more than one segment. Source: `GrpcJsonTranscoder.UrlUnescapeSpec`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Unescaping {
    /// All but those that RFC 6570 reserves.
    #[default]
    ExceptReserved,
    /// All but the slash.
    ExceptSlash,
    /// All.
    Everything,
}

/// What is done with query parameters that are no fields.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum UnknownParameters {
    /// The request is no call.
    #[default]
    NoCall,
    /// They are left out.
    Ignore,
    /// They are put into the `extensions` of a `google.api.HttpBody`, and left out elsewhere.
    Capture,
}

impl Transcoder {
    /// Reads the settings; `None` if they name no service, which switches the filter off.
    pub fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::GrpcJsonTranscoder) -> Parsed<Option<Arc<Self>>> {
        decide!(wire, at, pb::GrpcJsonTranscoder
            as "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder" {
            implemented: services, print_options, match_incoming_request_route, ignored_query_parameters, auto_mapping,
                ignore_unknown_query_parameters, convert_grpc_status, url_unescape_spec, query_param_unescape_plus,
                match_unregistered_custom_verb, request_validation_options, case_insensitive_enum_parsing,
                max_request_body_size, max_response_body_size, capture_unknown_query_parameters, descriptor_set;
            no_effect: ;
            unsupported: ;
        });
        let Some(set) = descriptor_set else {
            return Err(at.reject("needs proto_descriptor or proto_descriptor_bin"));
        };
        let max_request_bytes = limit(&at.field("max_request_body_size"), max_request_body_size)?;
        let max_response_bytes = limit(&at.field("max_response_body_size"), max_response_body_size)?;
        let unescaping = match pb::grpc_json_transcoder::UrlUnescapeSpec::try_from(url_unescape_spec) {
            Ok(pb::grpc_json_transcoder::UrlUnescapeSpec::AllCharactersExceptReserved) => Unescaping::ExceptReserved,
            Ok(pb::grpc_json_transcoder::UrlUnescapeSpec::AllCharactersExceptSlash) => Unescaping::ExceptSlash,
            Ok(pb::grpc_json_transcoder::UrlUnescapeSpec::AllCharacters) => Unescaping::Everything,
            Err(_) => return Err(wire::unknown_enum(&at.field("url_unescape_spec"), url_unescape_spec)),
        };
        let printing = print_options.map(printing).unwrap_or_default();
        let validation = request_validation_options.map(Validation::parse).unwrap_or_default();
        if services.is_empty() {
            return Ok(None);
        }
        let (pool, set_at) = descriptors(context, at, set, convert_grpc_status)?;
        let schema = Schema::of(&pool);
        let list = at.field("services");
        let (rules, paths) = rules::read(&list, &set_at, &pool, &schema, &services, auto_mapping)?;
        Ok(Some(Arc::new(Self {
            schema,
            rules,
            paths,
            printing,
            unescaping,
            unescape_plus: query_param_unescape_plus,
            any_verb: match_unregistered_custom_verb,
            ignored_parameters: ignored_query_parameters.into_iter().collect(),
            unknown_parameters: match (capture_unknown_query_parameters, ignore_unknown_query_parameters) {
                (true, _) => UnknownParameters::Capture,
                (false, true) => UnknownParameters::Ignore,
                (false, false) => UnknownParameters::NoCall,
            },
            rejects_unknown_method: validation.method,
            rejects_unknown_parameters: validation.parameters,
            rejects_collisions: validation.collisions,
            ignores_enum_case: case_insensitive_enum_parsing,
            keeps_route: match_incoming_request_route,
            converts_status: convert_grpc_status,
            max_request_bytes,
            max_response_bytes,
        })))
    }
}

#[derive(Default)]
struct Validation {
    method: bool,
    parameters: bool,
    collisions: bool,
}

impl Validation {
    fn parse(wire: pb::grpc_json_transcoder::RequestValidationOptions) -> Self {
        decide!(wire, at, pb::grpc_json_transcoder::RequestValidationOptions
            as "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder.RequestValidationOptions" {
            implemented: reject_unknown_method, reject_unknown_query_parameters, reject_binding_body_field_collisions;
            no_effect: ;
            unsupported: ;
        });
        Self {
            method: reject_unknown_method,
            parameters: reject_unknown_query_parameters,
            collisions: reject_binding_body_field_collisions,
        }
    }
}

fn printing(wire: pb::grpc_json_transcoder::PrintOptions) -> Printing {
    decide!(wire, at, pb::grpc_json_transcoder::PrintOptions
        as "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder.PrintOptions" {
        implemented: add_whitespace, always_print_primitive_fields, always_print_enums_as_ints,
            preserve_proto_field_names, stream_newline_delimited, stream_sse_style_delimited;
        no_effect: ;
        unsupported: ;
    });
    Printing {
        whitespace: add_whitespace,
        defaults: always_print_primitive_fields,
        enum_numbers: always_print_enums_as_ints,
        declared_names: preserve_proto_field_names,
        stream: match (stream_sse_style_delimited, stream_newline_delimited) {
            (true, _) => StreamStyle::Events,
            (false, true) => StreamStyle::Lines,
            (false, false) => StreamStyle::Array,
        },
    }
}

fn limit(at: &FieldPath<'_>, wire: Option<UInt32Value>) -> Parsed<Option<u32>> {
    match wire {
        Some(UInt32Value { value: 0 }) => Err(at.reject("0 must be above zero")),
        wire => Ok(wire.map(|wire| wire.value)),
    }
}

/// The descriptors of a set, and where the set stands.
fn descriptors<'p>(
    context: &Context<'_>,
    at: &'p FieldPath<'p>,
    set: pb::grpc_json_transcoder::DescriptorSet,
    with_status: bool,
) -> Parsed<(DescriptorPool, FieldPath<'p>)> {
    use pb::grpc_json_transcoder::DescriptorSet;
    let (bytes, at) = match set {
        DescriptorSet::ProtoDescriptorBin(bytes) => (bytes, at.field("proto_descriptor_bin")),
        DescriptorSet::ProtoDescriptor(name) => {
            let at = at.field("proto_descriptor");
            let read = context.environment().read_file(&PathBuf::from(&name));
            (read.map_err(|error| at.reject(format!("cannot read {name:?}: {error}")))?, at)
        }
    };
    let bad = |error: &dyn std::fmt::Display| at.reject(format!("is not a complete set of descriptors: {error}"));
    let mut pool = DescriptorPool::decode(bytes.as_slice()).map_err(|error| bad(&error))?;
    if with_status {
        add_status(&mut pool).map_err(|error| bad(&error))?;
    }
    Ok((pool, at))
}

/// Adds `google.rpc.Status`, and what it needs, where they are missing.
fn add_status(pool: &mut DescriptorPool) -> Result<(), prost_reflect::DescriptorError> {
    use prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
    use prost_reflect::prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto};
    if pool.get_message_by_name("google.rpc.Status").is_some() {
        return Ok(());
    }
    let field = |name: &str, number, kind: Type, label: Label| FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        r#type: Some(kind.into()),
        label: Some(label.into()),
        ..Default::default()
    };
    let file = |name: &str, package: &str, dependency: &[&str], message: &str, field: Vec<FieldDescriptorProto>| {
        let message = DescriptorProto { name: Some(message.to_owned()), field, ..Default::default() };
        FileDescriptorProto {
            name: Some(name.to_owned()),
            package: Some(package.to_owned()),
            dependency: dependency.iter().map(|name| (*name).to_owned()).collect(),
            message_type: vec![message],
            syntax: Some("proto3".to_owned()),
            ..Default::default()
        }
    };
    let any = match pool.get_message_by_name("google.protobuf.Any") {
        Some(any) => any.parent_file().name().to_owned(),
        None => {
            let fields = vec![
                field("type_url", 1, Type::String, Label::Optional),
                field("value", 2, Type::Bytes, Label::Optional),
            ];
            pool.add_file_descriptor_proto(file(ANY_FILE, "google.protobuf", &[], "Any", fields))?;
            ANY_FILE.to_owned()
        }
    };
    let details = FieldDescriptorProto {
        type_name: Some(".google.protobuf.Any".to_owned()),
        ..field("details", 3, Type::Message, Label::Repeated)
    };
    let fields = vec![
        field("code", 1, Type::Int32, Label::Optional),
        field("message", 2, Type::String, Label::Optional),
        details,
    ];
    pool.add_file_descriptor_proto(file("google/rpc/status.proto", "google.rpc", &[any.as_str()], "Status", fields))
}

const ANY_FILE: &str = "google/protobuf/any.proto";

/// A rule that stands in a set of descriptors.
fn refuse(at: &FieldPath<'_>, method: &str, reason: &str) -> Rejection {
    at.reject(format!("the rule of {method:?} {reason}"))
}

#[cfg(test)]
mod tests;
