//! Calls with any number of messages.

use bytes::Bytes;
use outrigger_tests::side_by_side::{Case, Headers, get, same};
use outrigger_tests::{Proxy, Settings, h2c, proxy, within};

use crate::cases::INTENDED;
use crate::{CHAINS, Descriptors, service};

const fn post(
    name: &'static str,
    listener: &'static str,
    target: &'static str,
    headers: Headers,
    body: &'static str,
) -> Case {
    Case { name, listener, method: "POST", target, headers, body: body.as_bytes(), grpc: false }
}

const THREE: &str = r#"[{"id":1}, {"id":2},{"theme":"]}","tags":["["]} ]"#;

const CASES: &[Case] = &[
    get("one message", "plain", "/watch/7", &[]),
    get("two messages", "plain", "/watch/7", &[("x-answer", "twice")]),
    get("no message", "plain", "/watch/7", &[("x-answer", "empty")]),
    get("nothing but a status", "plain", "/watch/7", &[("x-answer", "only")]),
    get("failure after a message", "plain", "/watch/7", &[("x-answer", "status=5 message=m")]),
    get("failure instead of messages", "plain", "/watch/7", &[("x-answer", "empty status=5 message=m")]),
    get("failure at once", "plain", "/watch/7", &[("x-answer", "only status=5 message=m")]),
    get("failure instead of messages, told as JSON", "strict", "/watch/7", &[("x-answer", "empty status=5 message=m")]),
    get("failure at once, told as JSON", "strict", "/watch/7", &[("x-answer", "only status=5 message=m")]),
    get("no trailers", "plain", "/watch/7", &[("x-answer", "quiet")]),
    get("lines", "lines", "/watch/7", &[("x-answer", "twice")]),
    get("no lines", "lines", "/watch/7", &[("x-answer", "empty")]),
    get("no lines, at once", "lines", "/watch/7", &[("x-answer", "only")]),
    get("events", "events", "/watch/7", &[("x-answer", "twice")]),
    get("no events", "events", "/watch/7", &[("x-answer", "empty")]),
    get("no events, at once", "events", "/watch/7", &[("x-answer", "only status=5")]),
    get("one answer has no lines", "lines", "/shelves/7", &[]),
    get("one answer is no event", "events", "/shelves/7", &[]),
    get("messages with indentation", "pretty", "/watch/7", &[("x-answer", "twice")]),
    post("array to one", "plain", "/upload", &[], THREE),
    post("array to any number", "plain", "/talk", &[], THREE),
    post("empty array", "plain", "/talk", &[], "[]"),
    post("no array", "plain", "/talk", &[], ""),
    post("object instead of an array", "plain", "/talk", &[], "{}"),
    post("number instead of an array", "plain", "/talk", &[], "5 "),
    post("number in an array", "plain", "/talk", &[], "[5]"),
    post("array that is cut off", "plain", "/upload", &[], r#"[{"id":1},"#),
    post("bad message in an array", "plain", "/upload", &[], r#"[{"id":1},{"id":"x"}]"#),
    post("one field of each message", "plain", "/upload/5/books", &[], r#"[{"title":"a"},{"title":"b"}]"#),
    post("bodies that are not JSON", "plain", "/pages", &[("content-type", "text/x")], "page"),
    post(
        "bodies that are not JSON, twice",
        "plain",
        "/pages",
        &[("content-type", "text/x"), ("x-answer", "twice")],
        "page",
    ),
    post("no body that is not JSON", "plain", "/pages", &[], ""),
    post(
        "bodies that are not JSON, and a failure",
        "plain",
        "/pages",
        &[("x-answer", "empty status=5 message=m")],
        "x",
    ),
    post("element that is too large", "limited", "/upload", &[], r#"[{"theme":"a theme that is long"}]"#),
];

#[tokio::test]
async fn streams_are_translated_as_in_envoy() {
    let (server, descriptors) = (service::start().await, Descriptors::new());
    same(&descriptors.bootstrap(&server), CHAINS, CASES, INTENDED).await;
}

/// Reads until `expected` has come.
async fn read(body: &mut h2::RecvStream, expected: &str) {
    let mut text = String::new();
    while text.len() < expected.len() {
        let piece = within("a message", body.data()).await.expect("more").expect("data");
        body.flow_control().release_capacity(piece.len()).expect("as much");
        text.push_str(std::str::from_utf8(&piece).expect("text"));
    }
    assert_eq!(text, expected);
}

/// A message is answered before the next one is there, on both.
#[tokio::test]
async fn a_conversation_goes_message_by_message() {
    let (server, descriptors) = (service::start().await, Descriptors::new());
    let bootstrap = descriptors.bootstrap(&server);
    for program in [proxy::program(), proxy::envoy()] {
        let proxy = Proxy::start_with(&bootstrap, Settings { program, ..Settings::default() }).await;
        let client = h2c::Client::connect(proxy.listener("plain").await).await;
        let (response, mut sender) = client.open("POST", "/talk", &[], false).await.expect("a stream");
        let mut send = async |text: &'static str, ends| {
            h2c::send_all(&mut sender, Bytes::from_static(text.as_bytes()), ends).await.expect("sent");
        };
        send(r#"[{"id":1},{"the"#, false).await;
        let response = within("a head", response).await.expect("a response");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (200, &"application/json".parse().unwrap())
        );
        let mut body = response.into_body();
        read(&mut body, r#"[{"id":"1"}"#).await;
        send(r#"me":"t"},"#, false).await;
        read(&mut body, r#",{"theme":"t"}"#).await;
        send("]", true).await;
        read(&mut body, "]").await;
        let trailers = within("trailers", body.trailers()).await.expect("an end").expect("trailers");
        assert_eq!(trailers["grpc-status"], "0");
    }
}
