//! Sessions that are taken up again by another process with the same keys.

use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_tests::certificates::{self, Authority};
use outrigger_tests::config::{bootstrap, chain, listener};
use outrigger_tests::{Proxy, Settings, eventually, h1};

use super::{answers, downstream};

const NAME: &str = "server.example";

/// Two processes with certificates of one authority and keys from a file of secrets.
fn place(directory: &std::path::Path, authority: &Authority, keys: &[u8]) {
    authority.issue(&[NAME]).write(directory, "server");
    std::fs::write(directory.join("ca.pem"), authority.pem()).unwrap();
    write_keys(directory, keys);
}

fn write_keys(directory: &std::path::Path, keys: &[u8]) {
    let keys: Vec<_> =
        keys.iter().map(|key| format!("{{ inline_string: '{}' }}", char::from(*key).to_string().repeat(80))).collect();
    let secret = format!(
        "resources:\n- '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  \
         name: tickets\n  session_ticket_keys: {{ keys: [{}] }}\n",
        keys.join(", ")
    );
    std::fs::write(directory.join("new"), secret).unwrap();
    std::fs::rename(directory.join("new"), directory.join("tickets.yaml")).unwrap();
}

async fn start(authority: &Authority, keys: &[u8]) -> Proxy {
    let directory = tempfile::tempdir().unwrap();
    place(directory.path(), authority, keys);
    let common =
        format!("{}, validation_context: {{ trusted_ca: {{ filename: $dir/ca.pem }} }}", super::certificate("server"));
    let context = "session_ticket_keys_sds_secret_config: { name: tickets, sds_config: { resource_api_version: V3, \
                   path_config_source: { path: $dir/tickets.yaml, watched_directory: { path: $dir } } } }";
    let listeners = [listener("l", &[chain(&answers(""), &downstream(context, &common))], ", stat_prefix: l")];
    Proxy::start_in(directory, &bootstrap(&listeners, &[]), Settings::default()).await
}

/// Whether a client resumed its last session. The request makes sure that it has the tickets for the next.
async fn resumes(address: SocketAddr, client: &Arc<rustls::ClientConfig>) -> bool {
    let stream = certificates::connect(address, NAME, Arc::clone(client)).await.unwrap();
    let resumed = stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    let mut client = h1::Client::over(Box::new(stream));
    client.send(h1::request_bytes("GET", "/", &[], b"")).await;
    assert_eq!(client.response("GET").await.text(), "secret");
    resumed
}

#[tokio::test]
async fn keys_are_shared_and_rotated() {
    let authority = Authority::new();
    let (one, two) = (start(&authority, b"a").await, start(&authority, b"a").await);
    let (first, second) = (one.listener("l").await, two.listener("l").await);
    let client = authority.client(&[], None);
    assert!(!resumes(first, &client).await);
    assert!(resumes(second, &client).await, "the other process has the same key");
    assert!(resumes(first, &client).await);
    // A new key is handed out everywhere before it seals, and the old one stays until its tickets are old.
    write_keys(&two.file(""), b"ba");
    eventually("the second process seals with the new key", async || {
        let fresh = authority.client(&[], None);
        assert!(!resumes(second, &fresh).await);
        if resumes(first, &fresh).await { Err("the old key".to_owned()) } else { Ok(()) }
    })
    .await;
    assert!(resumes(second, &client).await, "a ticket of the old key still counts");
    two.wait_stat("listener.l.ssl.session_reused", |seen| seen >= 2).await;
    let dump = two.admin("/config_dump").await.text();
    assert!(dump.contains("tickets") && !dump.contains("bbbbbbbb"), "keys are not shown");
}
