//! What of the settings is refused, and what is read.

use outrigger_api::pb::google::protobuf::UInt32Value;
use pb::grpc_json_transcoder::{DescriptorSet, PrintOptions};

use super::*;
use crate::context::NoEnvironment;

/// A service `p.S` with a method `M` whose messages have a string `a`, and with these options of the method.
fn set(rule: &str) -> Vec<u8> {
    let source = format!(
        "syntax = \"proto3\"; package p; import \"google/api/annotations.proto\"; \
         message Q {{ string a = 1; Q q = 2; }} service S {{ rpc M(Q) returns (Q) {{ {rule} }} }}"
    );
    let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/protos");
    let mut resolver = protox::file::ChainFileResolver::new();
    resolver.add(protox::file::IncludeFileResolver::new(protos.into()));
    resolver.add(protox::file::GoogleFileResolver::new());
    resolver.add(Source(source));
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).open_file("p.proto").unwrap();
    compiler.encode_file_descriptor_set()
}

struct Source(String);

impl protox::file::FileResolver for Source {
    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        match name {
            "p.proto" => protox::file::File::from_source(name, &self.0),
            _ => Err(protox::Error::file_not_found(name)),
        }
    }
}

fn settings(set: Vec<u8>) -> pb::GrpcJsonTranscoder {
    pb::GrpcJsonTranscoder {
        services: vec!["p.S".to_owned()],
        descriptor_set: Some(DescriptorSet::ProtoDescriptorBin(set)),
        ..Default::default()
    }
}

fn read(wire: pb::GrpcJsonTranscoder) -> Result<Option<Arc<Transcoder>>, String> {
    let context = Context::new(&NoEnvironment);
    Transcoder::parse(&context, &FieldPath::resource("listener", "l"), wire).map_err(|rejection| rejection.to_string())
}

#[test]
fn rules_know_their_paths_and_bodies() {
    let rule =
        "option (google.api.http) = { post: \"/a/{q.a=b/*}\" body: \"q\" additional_bindings { get: \"/c:d\" } };";
    let read = read(settings(set(rule))).unwrap().unwrap();
    assert_eq!(read.rules.len(), 2);
    assert_eq!(&*read.rules[0].method.path, "/p.S/M");
    assert_eq!(read.rules[0].body, ["q".into()].into());
    assert_eq!(read.paths.find(&["a", "b", "x"], "POST", ""), Some(0));
    assert_eq!(read.paths.find(&["c"], "GET", "d"), Some(1));
    let input = read.schema.message(read.rules[0].method.input);
    assert_eq!((&*input.name, input.fields.len(), input.is_proto3), ("p.Q", 2, true));
    assert!(input.field("a").unwrap().is_implicit);
}

#[test]
fn methods_without_annotations_are_mapped_when_asked_for() {
    assert_eq!(read(settings(set(""))).unwrap().unwrap().rules.len(), 0);
    let mapped = read(pb::GrpcJsonTranscoder { auto_mapping: true, ..settings(set("")) }).unwrap().unwrap();
    assert_eq!(mapped.paths.find(&["p.S", "M"], "POST", ""), Some(0));
}

#[test]
fn no_services_switch_it_off() {
    let wire = pb::GrpcJsonTranscoder { services: Vec::new(), ..settings(b"no set".to_vec()) };
    assert!(read(wire).unwrap().is_none());
}

#[test]
fn the_type_of_a_status_is_there_when_it_is_needed() {
    let rule = "";
    assert!(read(settings(set(rule))).unwrap().unwrap().schema.find("google.rpc.Status").is_none());
    let read = read(pb::GrpcJsonTranscoder { convert_grpc_status: true, ..settings(set(rule)) }).unwrap().unwrap();
    let status = read.schema.message(read.schema.find("google.rpc.Status").unwrap());
    assert_eq!(status.fields.iter().map(|field| &*field.name).collect::<Vec<_>>(), ["code", "message", "details"]);
}

#[test]
fn streams_have_one_style() {
    let style = |stream_newline_delimited, stream_sse_style_delimited| {
        let options = PrintOptions { stream_newline_delimited, stream_sse_style_delimited, ..Default::default() };
        let wire = pb::GrpcJsonTranscoder { print_options: Some(options), ..settings(set("")) };
        read(wire).unwrap().unwrap().printing.stream
    };
    assert_eq!(style(false, false), StreamStyle::Array);
    assert_eq!(style(true, false), StreamStyle::Lines);
    assert_eq!(style(true, true), StreamStyle::Events);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let good = || settings(set(""));
    let with = |rule: &str| settings(set(&format!("option (google.api.http) = {{ {rule} }};")));
    for (wire, expected) in [
        (
            pb::GrpcJsonTranscoder { descriptor_set: None, ..good() },
            "listener \"l\": needs proto_descriptor or proto_descriptor_bin",
        ),
        (
            pb::GrpcJsonTranscoder { services: vec!["p.S".into(), "p.T".into()], ..good() },
            "listener \"l\": services[1]: \"p.T\" is not a service of the descriptors",
        ),
        (
            pb::GrpcJsonTranscoder { max_request_body_size: Some(UInt32Value { value: 0 }), ..good() },
            "listener \"l\": max_request_body_size: 0 must be above zero",
        ),
        (
            pb::GrpcJsonTranscoder { url_unescape_spec: 7, ..good() },
            "listener \"l\": url_unescape_spec: 7 is not a known value",
        ),
        (
            pb::GrpcJsonTranscoder { descriptor_set: Some(DescriptorSet::ProtoDescriptor("/none".into())), ..good() },
            "listener \"l\": proto_descriptor: cannot read \"/none\": entity not found",
        ),
        (
            with("get: \"a\""),
            "listener \"l\": proto_descriptor_bin: the rule of \"p.S.M\" has the path \"a\", which must begin with \"/\"",
        ),
        (
            with("post: \"/a\" body: \"b\""),
            "listener \"l\": proto_descriptor_bin: the rule of \"p.S.M\" has the body \"b\": Could not find field \"b\" in the \
             type \"p.Q\".",
        ),
        (
            with("get: \"/a\" response_body: \"q\""),
            "listener \"l\": proto_descriptor_bin: the rule of \"p.S.M\" has the response_body \"q\", which is supported for \
             fields of the type google.api.HttpBody alone",
        ),
    ] {
        assert_eq!(read(wire).unwrap_err(), expected);
    }
    let error = read(settings(b"no set".to_vec())).unwrap_err();
    assert!(
        error.starts_with("listener \"l\": proto_descriptor_bin: is not a complete set of descriptors: "),
        "{error}"
    );
}
