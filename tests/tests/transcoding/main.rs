//! gRPC services that are called with JSON: the same requests for Envoy and for the proxy under test.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it. The server sends back what it gets, so that an answer
//! shows the request message as well.

mod cases;
mod service;
mod streams;

use std::path::PathBuf;

use outrigger_tests::config::{bootstrap, cluster, http2_cluster};
use outrigger_tests::grpc_server::GrpcServer;
use outrigger_tests::side_by_side::{Chain, chain_of};
use tempfile::TempDir;

/// The descriptors of `tests/protos/library`, in a file.
struct Descriptors {
    _directory: TempDir,
    file: PathBuf,
}

impl Descriptors {
    fn new() -> Self {
        let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/protos");
        let mut compiler = protox::Compiler::new([protos]).expect("the protos");
        compiler.include_imports(true).open_file("library/library.proto").expect("the library");
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("library.pb");
        std::fs::write(&file, compiler.encode_file_descriptor_set()).expect("a file");
        Self { _directory: directory, file }
    }

    /// Listeners for all chains, before this server.
    fn bootstrap(&self, server: &GrpcServer) -> String {
        let file = self.file.to_str().expect("a path");
        let listeners: Vec<String> = CHAINS
            .iter()
            .map(|chain| chain.listener().replace("$SET", &format!("proto_descriptor: '{file}'")))
            .collect();
        bootstrap(&listeners, &[http2_cluster("one", &[server.port()]), cluster("empty", &[])])
    }
}

/// Calls have a route of their own, which shows in `x-route`, and those of `Plain` lead nowhere.
const ROUTES: &str = "{ match: { path: /library.Library/Plain }, route: { cluster: empty } }, \
     { match: { prefix: /library. }, route: { cluster: one }, response_headers_to_add: [{ header: { key: x-route, value: call } }] }, ";

const FILTER: &str = "grpc_json_transcoder.v3.GrpcJsonTranscoder";

macro_rules! chain {
    ($name:literal, $settings:literal) => {
        chain_of($name, &[("t", FILTER, concat!("$SET, ", $settings))], ROUTES)
    };
}

const CHAINS: &[Chain] = &[
    chain!("plain", "services: [library.Library]"),
    chain!(
        "strict",
        "services: [library.Library], convert_grpc_status: true, request_validation_options: { reject_unknown_method: true, \
         reject_unknown_query_parameters: true, reject_binding_body_field_collisions: true }"
    ),
    chain!(
        "pretty",
        "services: [library.Library], convert_grpc_status: true, \
         print_options: { add_whitespace: true, always_print_primitive_fields: true }"
    ),
    chain!(
        "lines",
        "services: [library.Library], convert_grpc_status: true, print_options: { stream_newline_delimited: true, \
         always_print_enums_as_ints: true, preserve_proto_field_names: true }"
    ),
    chain!(
        "events",
        "services: [library.Library], print_options: { stream_newline_delimited: true, stream_sse_style_delimited: true }"
    ),
    chain!(
        "loose",
        "services: [library.Library], ignore_unknown_query_parameters: true, query_param_unescape_plus: true, \
         url_unescape_spec: ALL_CHARACTERS, case_insensitive_enum_parsing: true, match_unregistered_custom_verb: true"
    ),
    chain!(
        "captured",
        "services: [library.Library], capture_unknown_query_parameters: true, \
         url_unescape_spec: ALL_CHARACTERS_EXCEPT_SLASH"
    ),
    chain!(
        "mapped",
        "services: [library.Library, library.Other], auto_mapping: true, ignored_query_parameters: [x, w], \
         match_incoming_request_route: true"
    ),
    chain!("limited", "services: [library.Library], max_request_body_size: 20, max_response_body_size: 20"),
    chain_of(
        "routed",
        &[("t", FILTER, "$SET")],
        "{ match: { prefix: /shelves }, route: { cluster: one }, typed_per_filter_config: { t: { \
         '@type': $T/grpc_json_transcoder.v3.GrpcJsonTranscoder, $SET, services: [library.Library] } } }, \
         { match: { prefix: /library. }, route: { cluster: one }, response_headers_to_add: [{ header: { key: x-route, value: call } }] }, ",
    ),
    chain_of(
        "out",
        &[("t", FILTER, "$SET, services: [library.Library]")],
        "{ match: { prefix: /shelves }, route: { cluster: one }, typed_per_filter_config: { t: { \
         '@type': $T/grpc_json_transcoder.v3.GrpcJsonTranscoder, $SET } } }, ",
    ),
];
