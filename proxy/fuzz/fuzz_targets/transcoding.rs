//! Requests with JSON that become calls, and responses of gRPC services that become JSON.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use outrigger_api::pb::envoy::extensions::filters::http::grpc_json_transcoder::v3 as pb;
use outrigger_config::http::filters::transcoder::Transcoder;
use outrigger_config::{Context, FieldPath};
use outrigger_fuzz::Nothing;
use outrigger_policy::transcoding::{RequestTranslator, ResponseTranslator, find};
use pb::grpc_json_transcoder::DescriptorSet;

static LIBRARY: LazyLock<Arc<Transcoder>> = LazyLock::new(|| {
    let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/protos");
    let mut compiler = protox::Compiler::new([protos]).unwrap();
    compiler.include_imports(true).open_file("library/library.proto").unwrap();
    let wire = pb::GrpcJsonTranscoder {
        services: vec!["library.Library".to_owned()],
        descriptor_set: Some(DescriptorSet::ProtoDescriptorBin(compiler.encode_file_descriptor_set())),
        ignore_unknown_query_parameters: true,
        ..Default::default()
    };
    Transcoder::parse(&Context::new(&Nothing), &FieldPath::resource("listener", "l"), wire).unwrap().unwrap()
});

fuzz_target!(|input: (u8, &str, &[u8], &[u8], usize)| {
    let (method, target, body, answer, cut) = input;
    let method = ["GET", "POST", "PUT", "PATCH", "DELETE", "LOOK"][usize::from(method) % 6];
    // Most paths are none: bodies should be reached as well.
    for target in [target, "/all"] {
        let method = if target == "/all" { "POST" } else { method };
        let whole = frames(method, target, body, body.len());
        assert_eq!(frames(method, target, body, cut), whole);
        if let (Some(Ok(frames)), "/all") = (&whole, target) {
            let _ = text("/library.Library/Everything", frames, cut);
        }
    }
    for rule in &LIBRARY.rules {
        let path = &rule.method.path;
        assert_eq!(text(path, answer, cut), text(path, answer, answer.len()));
    }
});

/// What a body becomes that is cut in two; what is wrong with it is told in other words where it is cut elsewhere.
fn frames(method: &str, target: &str, body: &[u8], cut: usize) -> Option<Result<Vec<u8>, ()>> {
    let call = find(&LIBRARY, method, target).ok()?;
    if call.rule.method.raw_input.is_some() {
        return None;
    }
    let mut translator = RequestTranslator::new(&LIBRARY, call, b"text/plain", usize::MAX).ok()?;
    let (one, two) = body.split_at(cut.min(body.len()));
    let mut frames = Vec::new();
    for piece in [one, two] {
        if piece.is_empty() {
            continue;
        }
        match translator.push(piece) {
            Ok(more) => frames.extend(more),
            Err(_) => return Some(Err(())),
        }
    }
    match translator.finish() {
        Ok(more) => frames.extend(more),
        Err(_) => return Some(Err(())),
    }
    Some(Ok(frames))
}

fn text(path: &str, answer: &[u8], cut: usize) -> Result<Vec<u8>, String> {
    let rule = LIBRARY.rules.iter().find(|rule| *rule.method.path == *path).ok_or("no rule")?;
    let mut translator = ResponseTranslator::new(&LIBRARY, &rule.method);
    let (one, two) = answer.split_at(cut.min(answer.len()));
    let mut text = Vec::new();
    for piece in [one, two] {
        text.extend(translator.push(piece).map_err(|error| error.to_string())?);
    }
    text.extend(translator.finish().map_err(|error| error.to_string())?);
    Ok(text)
}
