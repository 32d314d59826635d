//! Calls and answers as a whole, with the messages of `tests/protos/library`.

use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::grpc_json_transcoder::v3 as pb;
use outrigger_config::http::filters::transcoder::{HttpBodyPath, Transcoder};
use outrigger_config::{Context, Environment, FieldPath};
use pb::grpc_json_transcoder::{DescriptorSet, PrintOptions, RequestValidationOptions};
use proptest::prelude::*;

use super::*;

struct Nothing;

impl Environment for Nothing {
    fn read_file(&self, _: &std::path::Path) -> std::io::Result<Vec<u8>> {
        Err(std::io::ErrorKind::NotFound.into())
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

fn descriptors() -> Vec<u8> {
    static SET: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/protos");
    SET.get_or_init(|| {
        let mut compiler = protox::Compiler::new([protos]).unwrap();
        compiler.include_imports(true).open_file("library/library.proto").unwrap();
        compiler.encode_file_descriptor_set()
    })
    .clone()
}

fn settings() -> pb::GrpcJsonTranscoder {
    pb::GrpcJsonTranscoder {
        services: vec!["library.Library".to_owned()],
        descriptor_set: Some(DescriptorSet::ProtoDescriptorBin(descriptors())),
        convert_grpc_status: true,
        ..Default::default()
    }
}

fn made(wire: pb::GrpcJsonTranscoder) -> Arc<Transcoder> {
    let root = FieldPath::resource("listener", "l");
    Transcoder::parse(&Context::new(&Nothing), &root, wire).unwrap().unwrap()
}

fn transcoder() -> Arc<Transcoder> {
    static MADE: std::sync::OnceLock<Arc<Transcoder>> = std::sync::OnceLock::new();
    Arc::clone(MADE.get_or_init(|| made(settings())))
}

/// The path of the call and the frames that a request becomes, or why it becomes none.
fn called(
    transcoder: &Arc<Transcoder>,
    method: &str,
    target: &str,
    pieces: &[&[u8]],
) -> Result<(String, Vec<u8>), String> {
    let call = find(transcoder, method, target).map_err(|error| error.to_string())?;
    let path = call.rule.method.path.to_string();
    let mut translator =
        RequestTranslator::new(transcoder, call, b"text/x", 1 << 20).map_err(|error| error.to_string())?;
    let mut frames = Vec::new();
    for piece in pieces {
        frames.extend(translator.push(piece).map_err(|error| error.to_string())?);
    }
    frames.extend(translator.finish().map_err(|error| error.to_string())?);
    Ok((path, frames))
}

/// What a server that sends back what it gets is heard to say.
fn echoed(transcoder: &Arc<Transcoder>, method: &str, target: &str, body: &str) -> Result<String, String> {
    let pieces: &[&[u8]] = if body.is_empty() { &[] } else { &[body.as_bytes()] };
    let (_, frames) = called(transcoder, method, target, pieces)?;
    let rule = find(transcoder, method, target).map_err(|error| error.to_string())?.rule;
    answered(transcoder, &rule.method.path, &[&frames])
}

fn answered(transcoder: &Arc<Transcoder>, path: &str, pieces: &[&[u8]]) -> Result<String, String> {
    let rule = transcoder.rules.iter().find(|rule| *rule.method.path == *path).unwrap();
    let mut translator = ResponseTranslator::new(transcoder, &rule.method);
    let mut text = Vec::new();
    for piece in pieces {
        text.extend(translator.push(piece).map_err(|error| error.to_string())?);
    }
    text.extend(translator.finish().map_err(|error| error.to_string())?);
    Ok(String::from_utf8(text).unwrap())
}

#[test]
fn paths_queries_and_bodies_become_messages() {
    let library = transcoder();
    for (method, target, body, expected) in [
        ("GET", "/shelves/7", "", r#"{"id":"7"}"#),
        ("GET", "/shelves/7/", "", r#"{"id":"7"}"#),
        (
            "GET",
            "/shelves/7?theme=a%20b&open=true&kind=POETRY",
            "",
            r#"{"id":"7","theme":"a b","open":true,"kind":"POETRY"}"#,
        ),
        ("GET", "/shelves/7?first.title=x&first.author.firstName=y&tags=1&tags=2", "", {
            r#"{"id":"7","first":{"title":"x","author":{"firstName":"y"}},"tags":["1","2"]}"#
        }),
        ("GET", "/shelves/7?opened_at=2024-01-01T00:00:00Z", "", r#"{"id":"7","openedAt":"2024-01-01T00:00:00Z"}"#),
        ("GET", "/shelves/7:read", "", r#"{"id":"7"}"#),
        ("GET", "/theme/a%2Fb/shelves", "", r#"{"theme":"a/b"}"#),
        ("GET", "/named/books/a%2Fb%20c", "", r#"{"first":{"title":"books/a%2Fb c"}}"#),
        ("GET", "/deep/a/b%2Fc", "", r#"{"first":{"title":"a/b%2Fc"}}"#),
        ("GET", "/tail/a/b/c/end", "", r#"{"theme":"a/b/c"}"#),
        ("GET", "/late/a/b:last", "", r#"{"theme":"a/b"}"#),
        ("LOOK", "/shelves/9", "", r#"{"id":"9"}"#),
        ("POST", "/shelves", r#"{"theme":"t","unknown":[1,{}],"books":[{"pages":3}]}"#, {
            r#"{"theme":"t","books":[{"pages":3}]}"#
        }),
        ("POST", "/shelves/7/books", r#"{"title":"t"}"#, r#"{"id":"7","first":{"title":"t"}}"#),
        ("PUT", "/shelves/7", r#"{"id":8,"tags":["b"]}"#, r#"{"id":"8","tags":["b"]}"#),
        ("PUT", "/shelves/7?tags=a", r#"{"tags":["b"]}"#, r#"{"id":"7","tags":["b","a"]}"#),
        ("GET", "/nothing", "", "{}"),
        ("GET", "/watch/1", "", r#"[{"id":"1"}]"#),
        ("POST", "/talk", r#"[{"id":1},{"id":2}]"#, r#"[{"id":"1"},{"id":"2"}]"#),
        ("POST", "/talk", "[]", "[]"),
        ("POST", "/upload/5/books", r#"[{"title":"a"},{"title":"b"}]"#, {
            r#"[{"id":"5","first":{"title":"a"}},{"first":{"title":"b"}}]"#
        }),
    ] {
        assert_eq!(echoed(&library, method, target, body).as_deref(), Ok(expected), "{method} {target} {body}");
    }
}

#[test]
fn what_calls_nothing_is_told() {
    let library = transcoder();
    for (method, target, expected) in [
        ("GET", "/none?a=1", "Could not resolve /none to a method."),
        ("POST", "/shelves/7", "Could not resolve /shelves/7 to a method."),
        ("GET", "/shelves/7:write", "id: invalid value \"7:write\" for type TYPE_INT64"),
        ("GET", "/shelves/7?x=1", "Could not find field \"x\" in the type \"library.Shelf\"."),
        ("GET", "/shelves/7?theme.x=1", {
            "Encountered a non-leaf field \"theme\" that is not a message while parsing a field path"
        }),
        ("GET", "/shelves/x", "id: invalid value \"x\" for type TYPE_INT64"),
        ("GET", "/shelves/1?first=x", "first: invalid value \"x\" for type type.googleapis.com/library.Book"),
    ] {
        assert_eq!(echoed(&library, method, target, "").unwrap_err(), expected, "{method} {target}");
    }
}

#[test]
fn unknown_parameters_are_left_out_or_captured() {
    let ignoring = made(pb::GrpcJsonTranscoder { ignore_unknown_query_parameters: true, ..settings() });
    assert_eq!(echoed(&ignoring, "GET", "/shelves/7?x=1", "").as_deref(), Ok(r#"{"id":"7"}"#));
    let ignored = vec!["x".to_owned()];
    let named = made(pb::GrpcJsonTranscoder { ignored_query_parameters: ignored, ..settings() });
    assert_eq!(echoed(&named, "GET", "/shelves/7?x=1", "").as_deref(), Ok(r#"{"id":"7"}"#));
    assert!(echoed(&named, "GET", "/shelves/7?y=1", "").is_err());
    let capturing = made(pb::GrpcJsonTranscoder { capture_unknown_query_parameters: true, ..settings() });
    let call = find(&capturing, "POST", "/page?a.b=1&c=2&a.b=3").unwrap();
    let expected = [("a.b".into(), vec!["1".into(), "3".into()]), ("c".into(), vec!["2".into()])];
    assert_eq!(call.captured, Captured::from(expected));
}

#[test]
fn all_types_survive() {
    let library = transcoder();
    for (given, expected) in [
        (r#"{"aDouble":1.5,"a_float":0.1,"anInt32":-1}"#, r#"{"aDouble":1.5,"aFloat":0.1,"anInt32":-1}"#),
        (r#"{"anInt64":"-9223372036854775808","aUint64":18446744073709551615}"#, {
            r#"{"anInt64":"-9223372036854775808","aUint64":"18446744073709551615"}"#
        }),
        (r#"{"aSint32":-5,"aSint64":"-6","aFixed32":7,"aFixed64":8,"aSfixed32":-9,"aSfixed64":-10}"#, {
            r#"{"aSint32":-5,"aSint64":"-6","aFixed32":7,"aFixed64":"8","aSfixed32":-9,"aSfixed64":"-10"}"#
        }),
        (r#"{"aDouble":"NaN","aFloat":"-Infinity"}"#, r#"{"aDouble":"NaN","aFloat":"-Infinity"}"#),
        (r#"{"aString":"<é\u2028\n>","someBytes":"-_8"}"#, {
            "{\"aString\":\"\\u003cé\\u2028\\n\\u003e\",\"someBytes\":\"+/8=\"}"
        }),
        (r#"{"numbers":[1,2],"kinds":["POETRY",2,7],"aKind":"SHORT_STORIES"}"#, {
            r#"{"aKind":"SHORT_STORIES","numbers":[1,2],"kinds":["POETRY","SHORT_STORIES",7]}"#
        }),
        (r#"{"counts":{"z":1,"a":2},"books":{"7":{"pages":1}},"flags":{"true":"x"}}"#, {
            r#"{"counts":{"z":1,"a":2},"books":{"7":{"pages":1}},"flags":{"true":"x"}}"#
        }),
        (r#"{"right":0,"maybe":0}"#, r#"{"right":0,"maybe":0}"#),
        (r#"{"any":{"@type":"type.googleapis.com/library.Book","pages":2}}"#, {
            r#"{"any":{"@type":"type.googleapis.com/library.Book","pages":2}}"#
        }),
        (r#"{"any":{"value":"1.5s","@type":"type.googleapis.com/google.protobuf.Duration"}}"#, {
            r#"{"any":{"@type":"type.googleapis.com/google.protobuf.Duration","value":"1.500s"}}"#
        }),
        (r#"{"duration":"-1s","mask":"a,bC.dE","time":"1970-01-01T00:00:01+00:00"}"#, {
            r#"{"duration":"-1s","mask":"a,bC.dE","time":"1970-01-01T00:00:01Z"}"#
        }),
        (r#"{"structure":{"a":[1,"b",{"c":null}]},"value":true,"list":[null,2.5]}"#, {
            r#"{"structure":{"a":[1,"b",{"c":null}]},"value":true,"list":[null,2.5]}"#
        }),
        (r#"{"value":null,"values":[null,1],"nothing":null}"#, r#"{"value":null,"nothing":null,"values":[null,1]}"#),
        (r#"{"wrapped":"5","text":"","durations":["1s","2s"]}"#, {
            r#"{"wrapped":"5","text":"","durations":["1s","2s"]}"#
        }),
        (r#"{"nested":{"nested":{"aBool":true}},"Capital":"x","renamed":"y"}"#, {
            r#"{"nested":{"nested":{"aBool":true}},"Capital":"x","renamed":"y"}"#
        }),
        (r#"{"aString":null,"numbers":null,"nested":null}"#, "{}"),
    ] {
        assert_eq!(echoed(&library, "POST", "/all", given).as_deref(), Ok(expected), "{given}");
    }
}

#[test]
fn what_does_not_fit_is_told_with_its_place() {
    let library = transcoder();
    for (given, expected) in [
        (r#"{"aString":5}"#, "a_string: invalid value 5 for type TYPE_STRING"),
        (r#"{"anInt32":2147483648}"#, "an_int32: invalid value 2147483648 for type TYPE_INT32"),
        (r#"{"anInt32":1.5}"#, "an_int32: invalid value 1.5 for type TYPE_INT32"),
        (r#"{"aBool":1}"#, "a_bool: invalid value 1 for type TYPE_BOOL"),
        (r#"{"aKind":"poetry"}"#, "a_kind: invalid value \"poetry\" for type type.googleapis.com/library.Kind"),
        (r#"{"someBytes":"*"}"#, "some_bytes: invalid value \"*\" for type TYPE_BYTES"),
        (r#"{"nested":{"nested":{"aBool":{}}}}"#, "nested.nested.a_bool: invalid value {...} for type TYPE_BOOL"),
        (r#"{"nested":5}"#, "nested: invalid value 5 for type type.googleapis.com/library.All"),
        (r#"{"aString":["a"]}"#, ": Proto field is not repeating, cannot start list."),
        (r#"{"counts":["a"]}"#, ": invalid value Cannot bind a list to map for field 'counts'. for type Map"),
        (r#"{"time":"xZ"}"#, {
            "time: invalid value Field 'time', Invalid time format: Failed to parse input for type type.googleapis.com/google.protobuf.Timestamp"
        }),
        (r#"{"duration":"x"}"#, {
            "duration: invalid value Field 'duration', Illegal duration format; duration must end with 's' for type \
             type.googleapis.com/google.protobuf.Duration"
        }),
        (r#"{"left":"a","right":1}"#, {
            ": invalid value oneof field 'choice' is already set. Cannot set 'right' for type oneof"
        }),
        (r#"{"any":{"a":1}}"#, "any: invalid value Missing @type for any field in library.All for type Any"),
        ("[]", ": Root element must be a message."),
        ("5 ", ": Root element must be a message."),
        ("{", "Unexpected end of string. Expected an object key or }.\n\n^"),
    ] {
        assert_eq!(echoed(&library, "POST", "/all", given).unwrap_err(), expected, "{given}");
    }
    let lower = made(pb::GrpcJsonTranscoder { case_insensitive_enum_parsing: true, ..settings() });
    assert_eq!(echoed(&lower, "POST", "/all", r#"{"aKind":"poetry"}"#).as_deref(), Ok(r#"{"aKind":"POETRY"}"#));
}

#[test]
fn collisions_are_refused_when_asked_for() {
    let reject_binding_body_field_collisions = true;
    let options = RequestValidationOptions { reject_binding_body_field_collisions, ..Default::default() };
    let strict = made(pb::GrpcJsonTranscoder { request_validation_options: Some(options), ..settings() });
    assert_eq!(echoed(&strict, "PUT", "/shelves/7", r#"{"id":7}"#).as_deref(), Ok(r#"{"id":"7"}"#));
    assert_eq!(
        echoed(&strict, "PUT", "/shelves/7", r#"{"id":8}"#).unwrap_err(),
        "The binding value \"7\" of the field id is conflicting with the value 8 in the body."
    );
}

#[test]
fn responses_are_printed_as_asked_for() {
    let printed = |options: PrintOptions, method: &str, target: &str| {
        let library = made(pb::GrpcJsonTranscoder { print_options: Some(options), ..settings() });
        echoed(&library, method, target, "").unwrap()
    };
    let target = "/shelves/7?kind=POETRY&first.cover_image=AQ==&tags=a";
    let options = PrintOptions { add_whitespace: true, ..Default::default() };
    assert_eq!(printed(options, "GET", target), {
        "{\n \"id\": \"7\",\n \"first\": {\n  \"coverImage\": \"AQ==\"\n },\n \"tags\": [\n  \"a\"\n ],\n \"kind\": \"POETRY\"\n}\n"
    });
    let options =
        PrintOptions { always_print_enums_as_ints: true, preserve_proto_field_names: true, ..Default::default() };
    assert_eq!(printed(options, "GET", target), r#"{"id":"7","first":{"cover_image":"AQ=="},"tags":["a"],"kind":1}"#);
    let options = PrintOptions { always_print_primitive_fields: true, ..Default::default() };
    assert_eq!(printed(options, "GET", "/shelves/7"), {
        r#"{"id":"7","theme":"","books":[],"tags":[],"open":false,"kind":"KIND_UNSPECIFIED"}"#
    });
    let options = PrintOptions { stream_newline_delimited: true, ..Default::default() };
    assert_eq!(printed(options, "GET", "/watch/7"), "{\"id\":\"7\"}\n");
    let options = PrintOptions { stream_sse_style_delimited: true, ..Default::default() };
    assert_eq!(printed(options, "GET", "/watch/7"), "data: {\"id\":\"7\"}\n\n");
}

#[test]
fn bodies_that_are_not_json_keep_their_bytes() {
    let library = transcoder();
    let (path, frames) = called(&library, "POST", "/attach/x?note=n", &[b"by", b"tes"]).unwrap();
    assert_eq!(path, "/library.Library/Attach");
    assert_eq!(answered(&library, &path, &[&frames]).as_deref(), Ok("bytes"));
    assert_eq!(http_body::find(&frames[5..], &[2]).unwrap().content_type, b"text/x");
    let (path, frames) = called(&library, "POST", "/pages", &[b"one", b"two"]).unwrap();
    assert_eq!(answered(&library, &path, &[&frames]).as_deref(), Ok("onetwo"));
    let (_, frames) = called(&library, "POST", "/page", &[]).unwrap();
    assert_eq!(http_body::find(&frames[5..], &HttpBodyPath::default().0).unwrap().data, b"");
}

#[test]
fn a_request_may_be_too_large() {
    let library = transcoder();
    let call = find(&library, "POST", "/talk").unwrap();
    let mut translator = RequestTranslator::new(&library, call, b"", 10).unwrap();
    translator.push(b"[{},").unwrap();
    for _ in 0..5 {
        translator.push(b"{},").unwrap();
    }
    assert_eq!(translator.push(b"{\"theme\":\"aaaa"), Err(RequestError::TooLarge { limit: 10 }));
}

#[test]
fn cut_responses_are_told() {
    let library = transcoder();
    let answer = |bytes: &[u8]| answered(&library, "/library.Library/GetShelf", &[bytes]);
    assert_eq!(answer(b"").as_deref(), Ok(""));
    assert_eq!(answer(b"\0\0\0"), Err("Incomplete gRPC frame header received".to_owned()));
    assert_eq!(answer(b"\0\0\0\0\x05ab"), Err("Incomplete gRPC frame expected size: 5 actual size: 2".to_owned()));
    assert!(answer(b"\0\0\0\0\x01\x08").is_err());
    // One message is all that is wanted.
    assert_eq!(answer(b"\0\0\0\0\x02\x08\x07\0\0\0\0\x01\xff").as_deref(), Ok(r#"{"id":"7"}"#));
}

#[test]
fn failures_are_told_as_json() {
    let library = transcoder();
    let json = |message: &[u8], details: Option<&[u8]>| {
        status_json(&library, 5, message, details).map(|json| String::from_utf8(json).unwrap())
    };
    assert_eq!(json(b"not here", None).as_deref(), Some(r#"{"code":5,"message":"not here"}"#));
    assert_eq!(json(b"", Some(b"\x08\x05\x12\x01m")).as_deref(), Some(r#"{"code":5,"message":"m"}"#));
    assert_eq!(json(b"", Some(b"\x1a\x08\x0a\x06t.co/x")), None);
}

proptest! {
    #[test]
    fn pieces_of_responses_do_not_matter(bytes in prop::collection::vec(any::<u8>(), 0..80), cut in 0usize..80) {
        let library = transcoder();
        let mut frames = Vec::new();
        frame(&mut frames, b"\x08\x07\x12\x01t");
        frames.extend_from_slice(&bytes);
        let (one, two) = frames.split_at(cut.min(frames.len()));
        let split = answered(&library, "/library.Library/Watch", &[one, two]);
        prop_assert_eq!(split, answered(&library, "/library.Library/Watch", &[&frames]));
    }

    #[test]
    fn no_message_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let library = transcoder();
        let mut frames = Vec::new();
        frame(&mut frames, &bytes);
        let _ = answered(&library, "/library.Library/Everything", &[&frames]);
        let _ = answered(&library, "/library.Library/Attach", &[&frames]);
    }

    #[test]
    fn no_request_is_too_strange(target in "/[a-z/%:?=.&0-9]{0,24}", body in "[\\[\\]{}\",:a-z0-9 ]{0,24}") {
        let library = transcoder();
        let _ = echoed(&library, "GET", &target, &body);
        let _ = echoed(&library, "POST", "/all", &body);
    }
}
