//! Connections that the proxy answers by itself: `direct_response` and `echo`, as by Envoy.
//!
//! Needs `envoy` on the PATH (or `ENVOY_BIN`) and fails without it.

use outrigger_tests::config::{bootstrap, chain, listener};
use outrigger_tests::{Proxy, Settings, h1, proxy, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DIRECT: &str = "{ name: envoy.filters.network.direct_response, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config, \
    response: { inline_string: 'hello there' } } }";

const SILENT: &str = "{ name: envoy.filters.network.direct_response, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config } }";

const ECHO: &str = "{ name: envoy.filters.network.echo, typed_config: { \
    '@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo } }";

async fn start(program: std::path::PathBuf) -> Proxy {
    let listeners = [("direct", DIRECT), ("silent", SILENT), ("echo", ECHO)];
    let listeners = listeners.map(|(name, filter)| listener(name, &[chain(filter, "")], ""));
    Proxy::start_with(&bootstrap(&listeners, &[]), Settings { program, ..Settings::default() }).await
}

async fn connect(proxy: &Proxy, listener: &str) -> TcpStream {
    let address = proxy.listener(listener).await;
    within("connecting", TcpStream::connect(address)).await.unwrap()
}

async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    within("the end", stream.read_to_end(&mut all)).await.unwrap();
    all
}

#[tokio::test]
async fn a_connection_gets_a_fixed_answer_and_its_end() {
    for program in [proxy::program(), proxy::envoy()] {
        let proxy = start(program).await;
        assert_eq!(read_to_end(&mut connect(&proxy, "direct").await).await, b"hello there");
        assert_eq!(read_to_end(&mut connect(&proxy, "silent").await).await, b"");
    }
}

#[tokio::test]
async fn an_answer_is_not_lost_on_a_client_that_speaks_first() {
    let proxy = start(proxy::program()).await;
    let mut stream = connect(&proxy, "direct").await;
    stream.write_all(&[b'x'; 20_000]).await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, b"hello there");
    drop(stream);
    proxy.wait_stat("listener.direct.downstream_cx_active", |count| count == 0).await;
}

#[tokio::test]
async fn what_a_client_says_comes_back() {
    for program in [proxy::program(), proxy::envoy()] {
        let proxy = start(program).await;
        let mut stream = connect(&proxy, "echo").await;
        for word in ["one", "two"] {
            stream.write_all(word.as_bytes()).await.unwrap();
            let mut answer = vec![0; word.len()];
            within("the echo", stream.read_exact(&mut answer)).await.unwrap();
            assert_eq!(answer, word.as_bytes());
        }
        stream.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut stream).await, b"");
    }
}

/// Envoy drops what is under way when a client has said all.
#[tokio::test]
async fn an_echo_tells_everything_to_a_client_that_has_said_all() {
    let proxy = start(proxy::program()).await;
    let mut stream = connect(&proxy, "echo").await;
    stream.write_all(b"the end").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, b"the end");
}

#[tokio::test]
async fn a_drained_echo_ends() {
    let proxy = Proxy::start_with(
        &bootstrap(&[listener("echo", &[chain(ECHO, "")], ", stat_prefix: echo")], &[]),
        Settings { arguments: vec!["--drain-time-s".into(), "1".into()], ..Settings::default() },
    )
    .await;
    let mut stream = connect(&proxy, "echo").await;
    stream.write_all(b"x").await.unwrap();
    within("the echo", stream.read_exact(&mut [0])).await.unwrap();
    let explained = h1::get(proxy.admin_address(), "/explain?listener=echo&host=any").await.text();
    assert!(explained.contains("the connection is answered here"), "{explained}");
    proxy.admin_post("/quitquitquit").await;
    assert_eq!(read_to_end(&mut stream).await, b"");
}
