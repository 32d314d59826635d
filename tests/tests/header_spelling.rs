//! Header names leave as their peer wrote them (`preserve_case`), as through Envoy.

use std::path::PathBuf;

use outrigger_tests::config::{bootstrap, chain, cluster_with, http, listener};
use outrigger_tests::h1::{Client, Reader};
use outrigger_tests::{Proxy, Settings, proxy, within};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// `stateful_formatter` with these fields.
fn preserve(fields: &str) -> String {
    format!(
        "header_key_format: {{ stateful_formatter: {{ name: preserve_case, typed_config: {{ '@type': \
         type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig\
         {fields} }} }} }}"
    )
}

/// A listener and a cluster of the same name whose sides have these formats.
fn pair(name: &str, downstream: &str, upstream: &str, port: u16) -> (String, String) {
    let manager = http(
        name,
        &format!(
            ", http_protocol_options: {{ {downstream} }}, route_config: {{ virtual_hosts: [{{ name: v, domains: ['*'], \
             request_headers_to_add: [{{ header: {{ key: X-Added, value: '1' }} }}], \
             response_headers_to_add: [{{ header: {{ key: X-Also, value: '1' }} }}], routes: [ \
             {{ match: {{ prefix: /local }}, direct_response: {{ status: 404 }} }}, \
             {{ match: {{ prefix: / }}, route: {{ cluster: {name} }} }} ] }}] }}"
        ),
    );
    let options = format!(
        ", typed_extension_protocol_options: {{ envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{ '@type': \
         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{ \
         http_protocol_options: {{ {upstream} }} }} }} }}"
    );
    (listener(name, &[chain(&manager, "")], ""), cluster_with(name, &[port], &options))
}

/// A server that says how each head was written that it got, and answers in its own spelling.
async fn server() -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut reader = Reader::new(Box::new(stream), Vec::new());
            let Ok(Some(head)) = reader.head().await else { continue };
            let _ = sender.send(String::from_utf8(head).expect("text"));
            let answer = b"HTTP/1.1 200 Fine Here\r\nContent-LENGTH: 2\r\nX-MiXeD: a\r\nx-MIXED: b\r\nSeRver: up\r\n\
                           conNection: close\r\n\r\nok";
            let _ = reader.stream().write_all(answer).await;
        }
    });
    (port, receiver)
}

/// The lines of a head, without what differs from run to run.
fn lines(head: &str) -> Vec<String> {
    let (head, _) = head.split_once("\r\n\r\n").unwrap_or((head, ""));
    head.split("\r\n")
        .map(|line| match line.split_once(": ") {
            Some((name, _)) if ["date", "x-request-id", "server"].contains(&&*name.to_ascii_lowercase()) => name.into(),
            Some((name, _)) if name.eq_ignore_ascii_case("x-envoy-upstream-service-time") => name.into(),
            _ => line.to_owned(),
        })
        .collect()
}

async fn exchange(program: PathBuf) {
    let (port, mut heads) = server().await;
    let pairs = [
        pair("plain", &preserve(""), &preserve(""), port),
        pair(
            "full",
            &preserve(", formatter_type_on_envoy_headers: PROPER_CASE"),
            &preserve(", forward_reason_phrase: true"),
            port,
        ),
        pair("proper", &preserve(""), "header_key_format: { proper_case_words: {} }", port),
    ];
    let (listeners, clusters): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_with(&bootstrap(&listeners, &clusters), settings).await;

    let mut seen = Vec::new();
    for name in ["plain", "full", "proper"] {
        for path in ["/", "/local"] {
            let mut client = Client::connect(proxy.listener(name).await).await;
            let request = format!(
                "GET {path} HTTP/1.1\r\nHOST: x\r\nX-ABc: 1\r\nx-aBC: 2\r\nAccEpt: */*\r\nConnection: close\r\n\r\n"
            );
            client.send(request).await;
            let answer = String::from_utf8(within("the answer", client.rest()).await).expect("text");
            if path == "/" {
                seen.push(lines(&within("the request", heads.recv()).await.expect("it came")));
            }
            seen.push(lines(&answer));
        }
    }
    let [plain, plain_answer, local, full, full_answer, full_local, proper, proper_answer, _] = &seen[..] else {
        panic!("{seen:?}")
    };
    // Headers that came keep the first spelling; the proxy's own ones are in lower case.
    let own = ["x-forwarded-proto: http", "x-request-id", "x-envoy-expected-rq-timeout-ms: 15000", "x-added: 1"];
    let came = ["GET / HTTP/1.1", "HOST: x", "X-ABc: 1", "X-ABc: 2", "AccEpt: */*"];
    assert_eq!(*plain, [&came[..], &own].concat());
    let answer_came = ["Content-LENGTH: 2", "X-MiXeD: a", "X-MiXeD: b", "SeRver"];
    let answer_own = ["x-envoy-upstream-service-time", "x-also: 1", "date", "conNection: close"];
    assert_eq!(sorted(plain_answer), sorted(&[&["HTTP/1.1 200 OK"], &answer_came[..], &answer_own].concat()));
    let lower = ["HTTP/1.1 404 Not Found", "x-also: 1", "date", "server", "connection: close", "content-length: 0"];
    assert_eq!(sorted(local), sorted(&lower));
    // What the formatter says of other headers holds where the head came from; replies of the proxy have none.
    let own = ["X-Forwarded-Proto: http", "X-Request-Id", "X-Envoy-Expected-Rq-Timeout-Ms: 15000", "X-Added: 1"];
    assert_eq!(*full, [&came[..], &own].concat());
    assert_eq!(sorted(full_answer), sorted(&[&["HTTP/1.1 200 Fine Here"], &answer_came[..], &answer_own].concat()));
    assert_eq!(sorted(full_local), sorted(&lower));
    // A head that remembers its spelling is not written by the cluster's format, and a response that came from a
    // cluster without the formatter remembers nothing.
    assert_eq!(proper, plain);
    let answer_own = ["x-envoy-upstream-service-time", "x-also: 1", "date", "connection: close"];
    let answer_came = ["content-length: 2", "x-mixed: a", "x-mixed: b", "server"];
    assert_eq!(sorted(proper_answer), sorted(&[&["HTTP/1.1 200 OK"], &answer_came[..], &answer_own].concat()));
}

fn sorted(lines: &[impl AsRef<str>]) -> Vec<&str> {
    let mut lines: Vec<&str> = lines.iter().map(AsRef::as_ref).collect();
    lines.sort_unstable();
    lines
}

#[tokio::test]
async fn names_leave_as_they_came() {
    exchange(proxy::program()).await;
}

#[tokio::test]
async fn names_leave_as_they_came_through_envoy() {
    exchange(proxy::envoy()).await;
}
