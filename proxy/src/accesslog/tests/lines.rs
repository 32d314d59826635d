//! What operators print. Unless a test says otherwise, expectations were taken from access logs that Envoy 1.40 wrote;
//! the samples bring together the facts of several of those requests.

use outrigger_config::accesslog::JsonFormat;
use outrigger_config::address::Address;
use proptest::prelude::*;

use super::super::samples::{Sample, format};
use super::super::{format as formats, json};
use crate::http::headers::Headers;
use crate::stream::ResponseFlag;

fn text(sample: &Sample, template: &str) -> String {
    let mut out = Vec::new();
    formats::write(&format(template), &sample.facts(), &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn operators_of_a_request() {
    let sample = Sample::http();
    for (operator, expected) in [
        ("REQ(:METHOD)", "POST"),
        ("REQ(:PATH)", "/ok/1?q=1"),
        ("REQ(X-MISS?:AUTHORITY)", "127.0.0.1:43855"),
        ("REQ(X-MISS)", "-"),
        ("REQ(X-DUP)", "1"),
        ("REQ(X-EMPTY)", ""),
        ("REQ(X-LONG):5", "abcde"),
        ("REQ(X-LONG):0", ""),
        ("REQ(X-MISS):0", "-"),
        ("REQ(:SCHEME)", "http"),
        ("REQ(HOST)", "127.0.0.1:43855"),
        ("RESP(X-MULTI)", "a"),
        ("RESP(X-EMPTY)", ""),
        ("RESP(X-MISS)", "-"),
        ("RESP(:STATUS)", "200"),
        ("TRAILER(X)", "-"),
        ("PROTOCOL", "HTTP/1.1"),
        ("RESPONSE_CODE", "200"),
        ("RESPONSE_CODE_DETAILS", "via_upstream"),
        ("RESPONSE_FLAGS", "-"),
        ("RESPONSE_FLAGS_LONG", "-"),
        ("BYTES_RECEIVED", "3"),
        ("BYTES_SENT", "5"),
        ("UPSTREAM_WIRE_BYTES_RECEIVED", "168"),
        ("UPSTREAM_WIRE_BYTES_SENT", "277"),
        ("DURATION", "47"),
        ("REQUEST_DURATION", "0"),
        ("RESPONSE_DURATION", "0"),
        ("RESPONSE_TX_DURATION", "46"),
        ("UPSTREAM_HOST", "127.0.0.1:40311"),
        ("UPSTREAM_CLUSTER", "alt"),
        ("UPSTREAM_CLUSTER_RAW", "up"),
        ("UPSTREAM_LOCAL_ADDRESS", "127.0.0.1:45184"),
        ("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", "127.0.0.1"),
        ("UPSTREAM_LOCAL_PORT", "45184"),
        ("UPSTREAM_REMOTE_ADDRESS", "127.0.0.1:40311"),
        ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "127.0.0.1"),
        ("UPSTREAM_REMOTE_PORT", "40311"),
        ("UPSTREAM_TRANSPORT_FAILURE_REASON", "-"),
        ("UPSTREAM_REQUEST_ATTEMPT_COUNT", "1"),
        ("UPSTREAM_PROTOCOL", "HTTP/1.1"),
        ("DOWNSTREAM_REMOTE_ADDRESS", "127.0.0.1:45522"),
        ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "127.0.0.1"),
        ("DOWNSTREAM_REMOTE_PORT", "45522"),
        ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", "127.0.0.1:45522"),
        ("DOWNSTREAM_LOCAL_ADDRESS", "127.0.0.1:43855"),
        ("DOWNSTREAM_LOCAL_PORT", "43855"),
        ("CONNECTION_ID", "3"),
        ("CONNECTION_TERMINATION_DETAILS", "-"),
        ("DOWNSTREAM_TRANSPORT_FAILURE_REASON", "-"),
        ("REQUESTED_SERVER_NAME", "-"),
        ("ROUTE_NAME", "myroute"),
        ("VIRTUAL_CLUSTER_NAME", "-"),
        ("FILTER_CHAIN_NAME", "fc"),
        ("DOWNSTREAM_TLS_VERSION", "-"),
        ("DOWNSTREAM_PEER_URI_SAN", "-"),
        ("DYNAMIC_METADATA(a:b)", "-"),
        ("HOSTNAME", "vm"),
        ("LOCAL_REPLY_BODY", ""),
        ("GRPC_STATUS", "-"),
        ("STREAM_ID", "00000063-554f-4600-89ed-b47e695b9dc5"),
        ("TRACE_ID", "-"),
        ("REQUEST_HEADERS_BYTES", "257"),
        ("RESPONSE_HEADERS_BYTES", "178"),
        ("ACCESS_LOG_TYPE", "DownstreamEnd"),
    ] {
        assert_eq!(text(&sample, &format!("%{operator}%")), expected, "{operator}");
    }
    // The shape only: the moment is the test's own.
    let start = text(&sample, "%START_TIME%");
    assert_eq!((start.len(), start.ends_with('Z')), (24, true), "{start}");
}

#[test]
fn operators_of_a_connection() {
    let sample = Sample::tcp();
    for (operator, expected) in [
        ("REQ(:METHOD)", "-"),
        ("RESP(:STATUS)", "-"),
        ("PROTOCOL", "-"),
        ("RESPONSE_CODE", "0"),
        ("RESPONSE_CODE_DETAILS", "-"),
        ("REQUEST_DURATION", "-"),
        ("RESPONSE_DURATION", "-"),
        ("RESPONSE_TX_DURATION", "-"),
        ("UPSTREAM_HOST", "-"),
        ("UPSTREAM_CLUSTER", "-"),
        ("UPSTREAM_CLUSTER_RAW", "-"),
        ("UPSTREAM_LOCAL_PORT", "-"),
        ("UPSTREAM_REQUEST_ATTEMPT_COUNT", "0"),
        ("ROUTE_NAME", "-"),
        ("FILTER_CHAIN_NAME", "-"),
        ("GRPC_STATUS_NUMBER", "-"),
        ("STREAM_ID", "-"),
        ("REQUEST_HEADERS_BYTES", "0"),
        ("ACCESS_LOG_TYPE", "TcpConnectionEnd"),
    ] {
        assert_eq!(text(&sample, &format!("%{operator}%")), expected, "{operator}");
    }
}

#[test]
fn a_failed_request_says_why_in_one_word() {
    let sample = Sample::http();
    *sample.info.upstream_failure.borrow_mut() = Some("delayed connect error: Connection refused".into());
    sample.info.set_details("upstream_reset_before_response_started{delayed connect error: Connection refused}");
    sample.info.flag(ResponseFlag::UpstreamConnectionFailure);
    sample.info.flag(ResponseFlag::UpstreamRetryLimitExceeded);
    sample.info.upstream_local.set(None);
    assert_eq!(
        text(&sample, "%UPSTREAM_TRANSPORT_FAILURE_REASON% %RESPONSE_CODE_DETAILS%"),
        "delayed_connect_error:_Connection_refused \
         upstream_reset_before_response_started{delayed_connect_error:_Connection_refused}"
    );
    assert_eq!(
        text(&sample, "%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG% %UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS%"),
        "URX,UF UpstreamRetryLimitExceeded,UpstreamConnectionFailure 127.0.0.1:40311 -"
    );
    let sample = Sample::tcp();
    sample.info.flag(ResponseFlag::UpstreamConnectionFailure);
    sample.info.flag(ResponseFlag::UpstreamRetryLimitExceeded);
    assert_eq!(text(&sample, "%RESPONSE_FLAGS%"), "UF,URX");
}

// The addresses of this test were not compared with Envoy.
#[test]
fn operators_of_tls_and_pipes() {
    let mut sample = Sample::http().with_tls();
    for (operator, expected) in [
        ("DOWNSTREAM_TLS_VERSION", "TLSv1.3"),
        ("DOWNSTREAM_TLS_CIPHER", "TLS_AES_128_GCM_SHA256"),
        ("DOWNSTREAM_TLS_SESSION_ID", "-"),
        ("DOWNSTREAM_PEER_URI_SAN", "spiffe://cli/a,spiffe://cli/b"),
        ("DOWNSTREAM_PEER_DNS_SAN", "cli.example,two.example"),
        ("DOWNSTREAM_LOCAL_URI_SAN", "spiffe://srv/a,spiffe://srv/b"),
        ("DOWNSTREAM_PEER_SUBJECT", "O=b c,CN=cli\\, x"),
        ("DOWNSTREAM_PEER_ISSUER", "O=An Org,CN=ca"),
        ("DOWNSTREAM_PEER_FINGERPRINT_256", "00ff"),
        ("REQUESTED_SERVER_NAME", "a.example"),
    ] {
        assert_eq!(text(&sample, &format!("%{operator}%")), expected, "{operator}");
    }
    sample.connection.remote = Address::Pipe { path: "/run/s".into(), mode: 0 };
    sample.connection.local = Address::Ip("[::1]:80".parse().unwrap());
    assert_eq!(
        text(
            &sample,
            "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_PORT% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"
        ),
        "/run/s - [::1]:80 ::1"
    );
    let client = Address::Ip(([10, 0, 0, 9], 0).into());
    let mut out = Vec::new();
    let mut facts = sample.facts();
    facts.client = Some(&client);
    formats::write(&format("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"), &facts, &mut out);
    assert_eq!(out, b"10.0.0.9");
}

#[test]
fn the_grpc_status_is_found_where_it_is() {
    let line = "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)% %GRPC_STATUS_NUMBER%";
    let mut sample = Sample::http();
    let with = |sample: &mut Sample, status: Option<&str>| {
        let headers = &mut sample.response.as_mut().unwrap().headers;
        headers.remove_by_name("grpc-status");
        if let Some(status) = status {
            headers.append(b"grpc-status", status.as_bytes());
        }
    };
    with(&mut sample, Some("4"));
    assert_eq!(text(&sample, line), "- - - -", "not a gRPC request");
    sample.request.as_mut().unwrap().headers.append(b"content-type", b"application/grpc");
    for (status, code, expected) in [
        (Some("0"), 200, "OK OK 0 0"),
        (Some("4"), 200, "DeadlineExceeded DEADLINE_EXCEEDED 4 4"),
        (Some("16"), 200, "Unauthenticated UNAUTHENTICATED 16 16"),
        (Some("17"), 200, "17 17 17 17"),
        (Some("-1"), 200, "-1 -1 -1 -1"),
        (Some("abc"), 200, "-1 -1 -1 -1"),
        (None, 200, "Unknown UNKNOWN 2 2"),
        (None, 400, "Internal INTERNAL 13 13"),
        (None, 401, "Unauthenticated UNAUTHENTICATED 16 16"),
        (None, 403, "PermissionDenied PERMISSION_DENIED 7 7"),
        (None, 404, "Unimplemented UNIMPLEMENTED 12 12"),
        (None, 429, "Unavailable UNAVAILABLE 14 14"),
        (None, 500, "Unknown UNKNOWN 2 2"),
        (None, 502, "Unavailable UNAVAILABLE 14 14"),
        (None, 503, "Unavailable UNAVAILABLE 14 14"),
        (None, 504, "Unavailable UNAVAILABLE 14 14"),
    ] {
        with(&mut sample, status);
        sample.info.response_code.set(code);
        assert_eq!(text(&sample, line), expected);
    }
    // Not compared with Envoy: its upstream sent no trailers.
    let mut trailers = Headers::default();
    trailers.append(b"grpc-status", b"5");
    sample.trailers = Some(trailers);
    assert_eq!(text(&sample, "%GRPC_STATUS% %TRAILER(grpc-status)%"), "NotFound 5");
}

#[test]
fn header_values_leave_out_what_is_absent() {
    let sample = Sample::http();
    let mut out = Vec::new();
    let template =
        format("%REQ(X-MISS)%|%RESPONSE_CODE%|%UPSTREAM_HOST%|%DOWNSTREAM_REMOTE_PORT%|%RESPONSE_FLAGS%|%REQ(X-DUP)%");
    formats::write_header(&template, &sample.facts(), &mut out);
    assert_eq!(String::from_utf8(out).unwrap(), "|200|127.0.0.1:40311|45522|-|1");
}

#[test]
fn the_default_format() {
    let line = "\"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% \
                %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
                \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \
                \"%UPSTREAM_HOST%\"\n";
    assert_eq!(
        text(&Sample::http(), line),
        "\"POST /ok/1?q=1 HTTP/1.1\" 200 - 3 5 47 3 \"-\" \"curl/7.88.1\" \
         \"00000063-554f-4600-89ed-b47e695b9dc5\" \"127.0.0.1:43855\" \"127.0.0.1:40311\"\n"
    );
}

#[test]
fn what_filters_left_keeps_its_type() {
    let sample = Sample::http();
    let serde_json::Value::Object(values) =
        serde_json::json!({"text": "a\"b", "number": 1.5, "flag": true, "null": null, "deep": {"list": [1, "x"]}})
    else {
        unreachable!("an object")
    };
    sample.info.dynamic_metadata.borrow_mut().insert("ns".to_owned(), values);
    sample.info.filter_state.borrow_mut().insert("k".to_owned(), "a\"b".to_owned());
    sample.connection.filter_state.borrow_mut().insert("c".to_owned(), "of the connection".to_owned());
    sample.info.grpc_messages.set(Some((2, 0)));
    for (operator, expected, in_json) in [
        ("DYNAMIC_METADATA(ns:text)", "a\"b", "\"a\\\"b\""),
        ("DYNAMIC_METADATA(ns:number)", "1.5", "1.5"),
        ("DYNAMIC_METADATA(ns:flag)", "true", "true"),
        ("DYNAMIC_METADATA(ns:null)", "-", "null"),
        ("DYNAMIC_METADATA(ns:deep)", "{\"list\":[1,\"x\"]}", "{\"list\":[1,\"x\"]}"),
        ("DYNAMIC_METADATA(ns:deep):5", "{\"lis", "\"{\\\"lis\""),
        ("DYNAMIC_METADATA(ns:deep:list:x)", "-", "null"),
        ("DYNAMIC_METADATA(other)", "-", "null"),
        ("FILTER_STATE(k)", "\"a\\\"b\"", "\"a\\\"b\""),
        ("FILTER_STATE(k:PLAIN)", "a\"b", "\"a\\\"b\""),
        ("FILTER_STATE(k:FIELD:f)", "-", "null"),
        ("FILTER_STATE(c:PLAIN)", "of the connection", "\"of the connection\""),
        ("FILTER_STATE(z)", "-", "null"),
        ("FILTER_STATE(envoy.filters.http.grpc_stats:PLAIN)", "2,0", "\"2,0\""),
        (
            "FILTER_STATE(envoy.filters.http.grpc_stats)",
            "{\"requestMessageCount\":\"2\"}",
            "{\"requestMessageCount\":\"2\"}",
        ),
    ] {
        assert_eq!(text(&sample, &format!("%{operator}%")), expected, "{operator}");
        let mut out = Vec::new();
        json::write(
            &[("v".to_owned(), JsonFormat::Text(format(&format!("%{operator}%"))))],
            false,
            &sample.facts(),
            &mut out,
        );
        assert_eq!(String::from_utf8(out).unwrap(), format!("{{\"v\":{in_json}}}\n"), "{operator}");
    }
}

fn json_fields() -> Vec<(String, JsonFormat)> {
    let text = |template: &str| JsonFormat::Text(format(template));
    let object = |fields: Vec<(&str, JsonFormat)>| {
        JsonFormat::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    };
    let fields = vec![
        ("a", text("%RESPONSE_CODE%")),
        ("bad", text("%REQ(X-CUT)%é")),
        ("bin", text("%REQ(X-BIN)%")),
        ("cut", text("%REQ(X-UTF):2%")),
        ("del", text("a\u{7f}b/<>&")),
        ("empty", text("")),
        ("emptyobj", object(Vec::new())),
        ("emptyq", text("%REQ(X-EMPTY)%")),
        ("esc", text("%REQ(X-ESC)%")),
        ("flags", text("%RESPONSE_FLAGS%")),
        ("gs", text("%GRPC_STATUS_NUMBER%")),
        ("k\"\n", JsonFormat::Number(1.0)),
        ("l", JsonFormat::List(vec![text("%REQ(:METHOD)%"), text("%REQ(X-MISS)%"), JsonFormat::Number(1.0)])),
        ("l1", JsonFormat::List(vec![text("%REQ(X-MISS)%")])),
        ("l3", JsonFormat::List(vec![JsonFormat::List(vec![JsonFormat::Null]), object(Vec::new())])),
        ("l4", JsonFormat::List(vec![object(vec![("a", text("%REQ(X-MISS)%"))]), JsonFormat::Number(1.0)])),
        ("lit", text("pl\"ain\u{7}é")),
        (
            "m",
            object(vec![
                ("b", text("%REQ(X-MISS)%")),
                ("f", JsonFormat::Number(1.5)),
                ("n", JsonFormat::Null),
                ("q", text("x%DURATION%")),
                ("t", JsonFormat::Bool(true)),
            ]),
        ),
        ("multi", text("%REQ(X-MISS)%%REQ(X-MISS)%")),
        ("objmiss", object(vec![("x", text("%REQ(X-MISS)%"))])),
        ("pre", text("a%REQ(X-MISS)%b")),
        ("status", text("%RESP(:STATUS)%")),
        ("z", text("%BYTES_SENT%")),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[test]
fn json_keeps_types_and_escapes() {
    let write = |fields: &[(String, JsonFormat)], omit_empty| {
        let mut out = Vec::new();
        json::write(fields, omit_empty, &Sample::http().facts(), &mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        write(&json_fields(), false),
        concat!(
            r#"{"a":200,"bad":"a\u00c3é","bin":"a\u00c3\u00a9\u00ff","cut":"a\u00c3","del":"a"#,
            "\u{7f}",
            r#"b/<>&","empty":"","emptyobj":{},"emptyq":"","esc":"a\"b\\c\td","flags":"-","gs":null,"k\"\n":1,"#,
            r#""l":["POST",null,1],"l1":[null],"l3":[[null],{}],"l4":[{"a":null},1],"lit":"pl\"ain\u0007é","#,
            r#""m":{"b":null,"f":1.5,"n":null,"q":"x47","t":true},"multi":"--","objmiss":{"x":null},"pre":"a-b","#,
            r#""status":"200","z":5}"#,
            "\n"
        )
    );
    assert_eq!(
        write(&json_fields(), true),
        concat!(
            r#"{"a":200,"bad":"a\u00c3é","bin":"a\u00c3\u00a9\u00ff","cut":"a\u00c3","del":"a"#,
            "\u{7f}",
            r#"b/<>&","empty":"","emptyq":"","esc":"a\"b\\c\td","flags":"-","k\"\n":1,"#,
            r#""l":["POST",1],"l1":[],"l3":[[]],"l4":[1],"lit":"pl\"ain\u0007é","#,
            r#""m":{"f":1.5,"q":"x47","t":true},"multi":"","pre":"ab","status":"200","z":5}"#,
            "\n"
        )
    );
    let absent = [("a".to_owned(), JsonFormat::Text(format("%REQ(X-MISS)%")))];
    assert_eq!(write(&absent, true), "{}\n");
    assert_eq!(write(&[], true), "{}\n");
}

proptest! {
    #[test]
    fn a_length_cuts_the_value_and_nothing_else(value in proptest::collection::vec(any::<u8>(), 0..40), length in 0usize..50) {
        let mut sample = Sample::http();
        sample.request.as_mut().unwrap().headers.set_by_name("x-value", &value);
        let mut out = Vec::new();
        formats::write(&format(&format!("before%REQ(X-VALUE):{length}%after")), &sample.facts(), &mut out);
        let expected = [b"before", &value[..value.len().min(length)], b"after"].concat();
        prop_assert_eq!(out, expected);
    }

    #[test]
    fn json_is_json_whatever_the_bytes(value in proptest::collection::vec(any::<u8>(), 0..40)) {
        let mut sample = Sample::http();
        sample.request.as_mut().unwrap().headers.set_by_name("x-value", &value);
        let fields = [("k".to_owned(), JsonFormat::Text(format("%REQ(X-VALUE)%")))];
        let mut out = Vec::new();
        json::write(&fields, false, &sample.facts(), &mut out);
        let line = std::str::from_utf8(&out).unwrap();
        let inside = line.strip_prefix("{\"k\":\"").and_then(|rest| rest.strip_suffix("\"}\n")).unwrap();
        prop_assert!(!inside.replace("\\\\", "").replace("\\\"", "").contains('"'), "{}", line);
        prop_assert!(inside.chars().all(|c| c >= ' '), "{}", line);
    }
}
