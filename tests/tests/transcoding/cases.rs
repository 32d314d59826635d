//! Requests with one answer each.

use outrigger_tests::side_by_side::{Case, Headers, Intended, get, same};

use crate::{CHAINS, Descriptors, service};

/// What differs, and why.
pub const INTENDED: Intended =
    &[("*", "h1: header connection: close", "the body is read to its end, so the connection stays in step")];

const fn send(
    name: &'static str,
    listener: &'static str,
    request: (&'static str, &'static str),
    headers: Headers,
    body: &'static str,
) -> Case {
    Case { name, listener, method: request.0, target: request.1, headers, body: body.as_bytes(), grpc: false }
}

const fn put(name: &'static str, target: &'static str, body: &'static str) -> Case {
    send(name, "plain", ("PUT", target), &[], body)
}

/// All types of values in one message.
const fn all(name: &'static str, body: &'static str) -> Case {
    send(name, "plain", ("POST", "/all"), &[], body)
}

/// Those that a client of HTTP/1.1 would have to see as a broken connection.
const fn by_h2(case: Case) -> Case {
    Case { grpc: true, ..case }
}

const fn answer(name: &'static str, listener: &'static str, target: &'static str, script: Headers) -> Case {
    get(name, listener, target, script)
}

const TOO_LONG: &str = r#"{"theme":"a theme that is long"}"#;

const PATHS: &[Case] = &[
    get("path", "plain", "/shelves/7", &[]),
    get("path with a slash at its end", "plain", "/shelves/7/", &[]),
    get("query", "plain", "/shelves/7?theme=a%20b&open=true&kind=POETRY", &[]),
    get("nested and repeated fields", "plain", "/shelves/7?first.title=x&first.author.firstName=y&tags=1&tags=2", &[]),
    get("names of fields in JSON", "plain", "/shelves/7?openedAt=2024-02-29T12:00:00.5%2B01:00", &[]),
    get("escaped name", "plain", "/shelves/7?%74heme=x", &[]),
    get("parameter without a value", "plain", "/shelves/7?theme&&=x&tags=", &[]),
    get("plus", "plain", "/shelves/7?theme=a+b", &[]),
    get("plus is a space", "loose", "/shelves/7?theme=a+b%2Bc", &[]),
    get("verb", "plain", "/shelves/7:read", &[]),
    get("verb that nobody knows", "plain", "/theme/a:b/shelves", &[]),
    get("verb that nobody knows, at the end", "plain", "/named/books/a:b", &[]),
    get("any verb is one", "loose", "/named/books/a:b", &[]),
    get("escaped slash in one segment", "plain", "/theme/a%2Fb%20c/shelves", &[]),
    get("variable of two segments", "plain", "/named/books/a%2Fb%20c%23", &[]),
    get("variable of two segments, all unescaped", "loose", "/named/books/a%2Fb%20c%23", &[]),
    get("variable of two segments, all but slashes", "captured", "/named/books/a%2Fb%20c%23", &[]),
    get("variable of any number of segments", "plain", "/deep/a/b%2Fc/d", &[]),
    get("variable of no segment", "plain", "/deep", &[]),
    get("text after any number", "plain", "/tail/a/b/c/end", &[]),
    get("verb after any number", "plain", "/late/a/b:last", &[]),
    send("custom method", "plain", ("LOOK", "/shelves/9"), &[], ""),
    send("DELETE", "plain", ("DELETE", "/shelves/9"), &[], ""),
    get("number that is none", "plain", "/shelves/x", &[]),
    get("number that is none, strict", "strict", "/shelves/x", &[]),
    get("message that is none", "plain", "/shelves/7?first=x", &[]),
    get("unknown path", "plain", "/none?a=1", &[]),
    get("unknown path, strict", "strict", "/none?a=1", &[]),
    get("unknown parameter", "plain", "/shelves/7?x=1", &[]),
    get("unknown parameter, strict", "strict", "/shelves/7?x=1", &[]),
    get("parameter inside of text, strict", "strict", "/shelves/7?theme.x=1", &[]),
    get("unknown parameter is ignored", "loose", "/shelves/7?x=1", &[]),
    get("parameter that is ignored", "mapped", "/shelves/7?x=1&w=2", &[]),
    get("unknown parameter beside it", "mapped", "/shelves/7?x=1&z=2", &[]),
    get("the route stays", "mapped", "/shelves/7", &[]),
    get("another service", "mapped", "/other?id=3", &[]),
    get("another service, not asked for", "plain", "/other?id=3", &[]),
    send("method without annotation", "mapped", ("POST", "/library.Library/Plain"), &[], r#"{"id":1}"#),
    send("method without annotation, not asked for", "plain", ("POST", "/library.Library/Watch"), &[], r#"{"id":1}"#),
    get("settings of a route", "routed", "/shelves/7", &[]),
    get("no settings", "routed", "/watch/7", &[]),
    get("switched off by a route", "out", "/shelves/7", &[]),
    get("not switched off", "out", "/watch/7", &[]),
    by_h2(send(
        "gRPC is left alone",
        "strict",
        ("POST", "/none"),
        &[("content-type", "application/grpc"), ("te", "trailers")],
        "",
    )),
];

const BODIES: &[Case] = &[
    send("whole message", "plain", ("POST", "/shelves"), &[("content-type", "application/json")], {
        r#"{"theme":"t","unknown":[1,{}],"books":[{"pages":3}]}"#
    }),
    send("no body", "plain", ("POST", "/shelves"), &[], ""),
    send("one field", "plain", ("POST", "/shelves/7/books"), &[], r#"{"title":"t"}"#),
    send("one field, no body", "plain", ("POST", "/shelves/7/books"), &[], ""),
    put("the body counts more", "/shelves/7", r#"{"id":8,"tags":["b"]}"#),
    put("lists have both", "/shelves/7?tags=a", r#"{"tags":["b"]}"#),
    put("the JSON name does not collide", "/shelves/7?opened_at=2024-01-01T00:00:00Z", {
        r#"{"openedAt":"2020-01-01T00:00:00Z"}"#
    }),
    put("messages are merged", "/shelves/7?first.title=x", r#"{"first":{"pages":1}}"#),
    send("collision", "strict", ("PUT", "/shelves/7"), &[], r#"{"id":8}"#),
    send("collision of types", "strict", ("PUT", "/shelves/7?theme=x"), &[], r#"{"theme":5}"#),
    send("no collision", "strict", ("PUT", "/shelves/7"), &[], r#"{"id":7}"#),
    put("bare keys, other quotes, a comma", "/shelves/7", "{theme:'it\\'s', \"tags\":['a',],}"),
    put("white space", "/shelves/7", "\r\n\t { } \n"),
    put("not JSON", "/shelves/7", "INVALID_JSON"),
    put("cut off", "/shelves/7", r#"{ "theme" : "Children""#),
    put("cut off in a text", "/shelves/7", r#"{ "theme" : "Child"#),
    put("no colon", "/shelves/7", r#"{ "theme"  "Children" }"#),
    put("more than one value", "/shelves/7", "{} {}"),
    put("a list", "/shelves/7", "[]"),
    put("a number", "/shelves/7", "5"),
    put("bad escape", "/shelves/7", r#"{"theme":"\u12x4"}"#),
    put("lone surrogate", "/shelves/7", r#"{"theme":"\ud800 and more"}"#),
    put("octal", "/shelves/7", r#"{"id":07}"#),
    put("number beyond all", "/shelves/7", r#"{"id":1e999}"#),
    put("text for a number", "/shelves/7", r#"{"theme":5}"#),
    put("number out of range", "/shelves/7", r#"{"first":{"pages":2147483648}}"#),
    put("fraction for a whole number", "/shelves/7", r#"{"first":{"pages":1.5}}"#),
    put("whole number with a point", "/shelves/7", r#"{"first":{"pages":1.0}}"#),
    put("number for a bool", "/shelves/7", r#"{"open":1}"#),
    put("text for a bool", "/shelves/7", r#"{"open":"true"}"#),
    put("enumeration in lower case", "/shelves/7", r#"{"kind":"short-stories"}"#),
    send("enumeration in lower case, allowed", "loose", ("PUT", "/shelves/7"), &[], r#"{"kind":"short_stories"}"#),
    put("enumeration by number", "/shelves/7", r#"{"kind":2}"#),
    put("enumeration by unknown number", "/shelves/7", r#"{"kind":9}"#),
    put("enumeration by unknown name", "/shelves/7", r#"{"kind":"PROSE"}"#),
    put("time that is none", "/shelves/7", r#"{"openedAt":"yesterday"}"#),
    put("time in a zone that is none", "/shelves/7", r#"{"openedAt":"2024-13-01T00:00:00Z"}"#),
    put("list for one value", "/shelves/7", r#"{"theme":["a"]}"#),
    put("one value for a list", "/shelves/7", r#"{"tags":"a"}"#),
    put("bad value in a list", "/shelves/7", r#"{"books":[{},{"pages":"x"}]}"#),
    put("bad text in a list", "/shelves/7", r#"{"tags":["a","b",3]}"#),
    put("text for a message", "/shelves/7", r#"{"first":"x"}"#),
    put("bytes that are no base64", "/shelves/7", r#"{"first":{"coverImage":"*"}}"#),
    send("largest body", "limited", ("POST", "/shelves"), &[], r#"{"id":1}"#),
    send("body that is too large", "limited", ("POST", "/shelves"), &[], TOO_LONG),
    all(
        "numbers",
        r#"{"aDouble":1.5,"aFloat":0.1,"anInt32":-1,"anInt64":"-9223372036854775808","aUint32":4294967295}"#,
    ),
    all("more numbers", {
        r#"{"aUint64":18446744073709551615,"aSint32":-5,"aSint64":-6,"aFixed32":7,"aFixed64":8,"aSfixed32":-9,"aSfixed64":"-10"}"#
    }),
    all(
        "numbers with a point",
        r#"{"aDouble":0.30000000000000004,"aFloat":16777216,"values":[1e21,1e-7,123456789.123]}"#,
    ),
    all("no numbers", r#"{"aDouble":"NaN","aFloat":"-Infinity"}"#),
    all("text and bytes", r#"{"aString":"<é\u2028\n\u007f\ud83d\ude00&'>","someBytes":"-_8"}"#),
    all("lists", r#"{"numbers":[1,"2"],"kinds":["POETRY",2,7],"durations":["1s","0.5s"]}"#),
    all("maps", r#"{"counts":{"z":1,"a":2},"books":{"7":{"pages":1}},"flags":{"true":"x","false":"y"}}"#),
    all("key twice", r#"{"counts":{"z":1,"z":2}}"#),
    all("bad key", r#"{"books":{"x":{}}}"#),
    all("list for a map", r#"{"counts":["a"]}"#),
    all("choice", r#"{"right":0,"maybe":0}"#),
    all("two choices", r#"{"left":"a","right":1}"#),
    all("any", r#"{"any":{"pages":2,"@type":"type.googleapis.com/library.Book"}}"#),
    all("any of a known type", r#"{"any":{"@type":"type.googleapis.com/google.protobuf.Duration","value":"1.5s"}}"#),
    all("any without a type", r#"{"any":{"a":1}}"#),
    all("any of an unknown type", r#"{"any":{"@type":"type.googleapis.com/library.None"}}"#),
    all(
        "known types",
        r#"{"duration":"-1.25s","mask":"a,bC.dE","time":"1970-01-01T00:00:01+00:00","wrapped":"5","text":""}"#,
    ),
    all("duration that is none", r#"{"duration":"1"}"#),
    all("structures", r#"{"structure":{"a":[1,"b",{"c":null}],"d":{}},"value":{"x":true},"list":[null,2.5,[]]}"#),
    all("nulls", r#"{"value":null,"nothing":null,"aString":null,"nested":null,"numbers":null,"values":[null,1]}"#),
    all("nested", r#"{"nested":{"nested":{"aBool":true}}}"#),
    all("bad value in a message", r#"{"nested":{"nested":{"aBool":"maybe"}}}"#),
    all("names", r#"{"Capital":"x","renamed":"y"}"#),
    all("declared name of a renamed field", r#"{"other_name":"y"}"#),
    send("all defaults", "pretty", ("POST", "/all"), &[], "{}"),
    send("lines and indentation", "pretty", ("POST", "/all"), &[], {
        r#"{"counts":{"a":1},"numbers":[1,2],"structure":{"a":[]},"any":{"@type":"type.googleapis.com/library.Author"}}"#
    }),
    send("declared names and numbers", "lines", ("POST", "/all"), &[], {
        r#"{"someBytes":"AQ==","aKind":"POETRY","kinds":[0,1],"renamed":"x"}"#
    }),
];

const RAW: &[Case] = &[
    send("body that is not JSON", "plain", ("POST", "/page"), &[("content-type", "text/html")], "<html>"),
    send("no body that is not JSON", "plain", ("POST", "/page"), &[], ""),
    send("in a field", "plain", ("POST", "/attach/x?note=n"), &[("content-type", "image/x")], "bytes"),
    send(
        "in a field, as the message",
        "plain",
        ("POST", "/attach/x?note=n"),
        &[("content-type", "image/x"), ("x-answer", "type=text/plain")],
        "bytes",
    ),
    send(
        "captured parameters",
        "captured",
        ("POST", "/page?a.b=1&a.b=3"),
        &[("content-type", "image/x"), ("x-answer", "type=text/plain")],
        "bytes",
    ),
    send("captured where nobody asks for it", "captured", ("GET", "/shelves/7?x=1"), &[], ""),
    send("too large, not JSON", "limited", ("POST", "/page"), &[], TOO_LONG),
    send(
        "body that is not JSON, and a failure",
        "plain",
        ("POST", "/page"),
        &[("x-answer", "empty status=5 message=no")],
        "x",
    ),
];

const ANSWERS: &[Case] = &[
    get("nothing", "plain", "/nothing", &[]),
    answer("failure after a message", "plain", "/shelves/7", &[("x-answer", "status=5 message=not%20here")]),
    answer("failure", "plain", "/shelves/7", &[("x-answer", "empty status=5 message=not%20here")]),
    answer("failure, told as JSON", "strict", "/shelves/7", &[("x-answer", "empty status=5 message=not%20here")]),
    answer("failure at once", "plain", "/shelves/7", &[("x-answer", "only status=3 message=bad")]),
    answer("failure at once, told as JSON", "strict", "/shelves/7", &[("x-answer", "only status=3 message=bad")]),
    answer("failure at once, in lines", "pretty", "/shelves/7", &[("x-answer", "only status=16")]),
    answer(
        "details",
        "strict",
        "/shelves/7",
        &[(
            "x-answer",
            "only status=9 message=m details=CAkSAW0aKQogdHlwZS5nb29nbGVhcGlzLmNvbS9saWJyYXJ5LkJvb2sSBQoBdBAH",
        )],
    ),
    answer("details in trailers", "strict", "/shelves/7", &[("x-answer", "empty status=9 details=CAkSAW0")]),
    answer(
        "details of an unknown type",
        "strict",
        "/shelves/7",
        &[("x-answer", "only status=9 details=CAkaFwoVdHlwZS5nb29nbGVhcGlzLmNvbS94")],
    ),
    answer("details that are none", "strict", "/shelves/7", &[("x-answer", "only status=9 message=m details=****")]),
    answer("success at once", "plain", "/shelves/7", &[("x-answer", "only")]),
    answer("success at once, strict", "strict", "/shelves/7", &[("x-answer", "only")]),
    answer("status that is none", "plain", "/shelves/7", &[("x-answer", "status=x")]),
    answer("status beyond all", "strict", "/shelves/7", &[("x-answer", "only status=77")]),
    answer("trailers without a status", "plain", "/shelves/7", &[("x-answer", "silent message=m")]),
    answer("no trailers", "plain", "/shelves/7", &[("x-answer", "quiet")]),
    answer("two messages", "plain", "/shelves/7", &[("x-answer", "twice")]),
    answer("not gRPC", "plain", "/shelves/7", &[("x-answer", "type=text/plain")]),
    answer("not gRPC, and a failure", "plain", "/shelves/7", &[("x-answer", "http=503")]),
    answer("cut in a message", "plain", "/shelves/7", &[("x-answer", "cut")]),
    answer("cut in a head", "plain", "/shelves/7", &[("x-answer", "hex=000000")]),
    answer("text that is none", "plain", "/shelves/7", &[("x-answer", "hex=00000000031201ff")]),
    answer("field that is cut", "plain", "/shelves/7", &[("x-answer", "hex=00000000031205ff")]),
    answer("unknown fields", "plain", "/shelves/7", &[("x-answer", "hex=00000000090807f00701fa070161")]),
    answer("too large", "limited", "/shelves/7?theme=a%20theme%20that%20is%20long", &[]),
    answer("nobody there", "mapped", "/shelves/7", &[("x-answer", "only status=14 message=gone")]),
];

#[tokio::test]
async fn requests_become_calls_as_in_envoy() {
    let (server, descriptors) = (service::start().await, Descriptors::new());
    same(&descriptors.bootstrap(&server), CHAINS, PATHS, INTENDED).await;
}

#[tokio::test]
async fn bodies_become_messages_as_in_envoy() {
    let (server, descriptors) = (service::start().await, Descriptors::new());
    same(&descriptors.bootstrap(&server), CHAINS, BODIES, INTENDED).await;
}

#[tokio::test]
async fn bodies_that_are_not_json_pass_as_in_envoy() {
    let (server, descriptors) = (service::start().await, Descriptors::new());
    same(&descriptors.bootstrap(&server), CHAINS, RAW, INTENDED).await;
}

#[tokio::test]
async fn calls_are_answered_as_in_envoy() {
    let (server, descriptors) = (service::start().await, Descriptors::new());
    same(&descriptors.bootstrap(&server), CHAINS, ANSWERS, INTENDED).await;
}
