//! Connections that were accepted with a certificate which has been replaced since.

use std::path::Path;

use outrigger_tests::certificates::{self, Authority, indented};
use outrigger_tests::config::{bootstrap, chain, listener};
use outrigger_tests::{Proxy, Settings, eventually, h1};

use super::{answers, downstream};

const NAME: &str = "server.example";

fn rotate(directory: &Path, authority: &Authority) {
    let identity = authority.issue(&[NAME]);
    let secret = format!(
        "resources:\n- '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: server\n  \
         tls_certificate:\n    certificate_chain:\n      inline_string: |{}\n    private_key:\n      inline_string: |{}\n",
        indented(&identity.certificate, 8),
        indented(&identity.key, 8)
    );
    std::fs::write(directory.join("new"), secret).unwrap();
    std::fs::rename(directory.join("new"), directory.join("server.yaml")).unwrap();
}

fn listener_with(name: &str, more: &str) -> String {
    let source = "tls_certificate_sds_secret_configs: [{ name: server, sds_config: { resource_api_version: V3, \
                  path_config_source: { path: $dir/server.yaml, watched_directory: { path: $dir } } } }]";
    let chain = chain(&answers(""), &downstream("", source));
    listener(name, &[chain], more)
}

fn retiring(limit: &str) -> String {
    format!(", metadata: {{ filter_metadata: {{ outrigger.tls: {{ retire_within: {limit} }} }} }}")
}

async fn connect(proxy: &Proxy, name: &str, authority: &Authority) -> (h1::Client, Vec<u8>) {
    let address = proxy.listener(name).await;
    let stream = certificates::connect(address, NAME, authority.client(&[], None)).await.unwrap();
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    (h1::Client::over(Box::new(stream)), shown)
}

#[tokio::test]
async fn old_connections_are_asked_to_end_and_cut_when_the_time_is_up() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    rotate(directory.path(), &authority);
    let listeners = [
        listener_with("stays", ""),
        listener_with("asks", &retiring("3600s")),
        listener_with("cuts", &retiring("0.3s")),
    ];
    let arguments = vec!["--drain-strategy".to_owned(), "immediate".to_owned()];
    let settings = Settings { arguments, ..Settings::default() };
    let proxy = Proxy::start_in(directory, &bootstrap(&listeners, &[]), settings).await;

    let mut clients = Vec::new();
    let mut before = Vec::new();
    for name in ["stays", "asks", "cuts"] {
        let (mut client, shown) = connect(&proxy, name, &authority).await;
        let response = client.get("/").await;
        assert_eq!((response.status, response.header("connection")), (200, None), "{name}");
        clients.push(client);
        before.push(shown);
    }
    rotate(&proxy.file(""), &authority);
    for (name, before) in ["stays", "asks", "cuts"].into_iter().zip(&before) {
        eventually("the new certificate is shown", async || {
            let (_, shown) = connect(&proxy, name, &authority).await;
            if shown == *before { Err("the old one".to_owned()) } else { Ok(()) }
        })
        .await;
    }
    let [stays, asks, cuts] = &mut clients[..] else { unreachable!() };
    let response = stays.get("/").await;
    assert_eq!((response.status, response.header("connection")), (200, None));
    let response = asks.get("/").await;
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    asks.ended().await;
    // It was idle, and nothing came any more.
    cuts.ended().await;
    let (mut fresh, _) = connect(&proxy, "cuts", &authority).await;
    let response = fresh.get("/").await;
    assert_eq!((response.status, response.header("connection")), (200, None));
}
