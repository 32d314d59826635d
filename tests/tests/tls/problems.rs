//! What an operator sees of a secret that cannot be used, while its predecessor serves.

use std::path::Path;

use outrigger_tests::certificates::{self, Authority, Identity, indented};
use outrigger_tests::config::{bootstrap, chain, listener};
use outrigger_tests::{Proxy, Settings, eventually};
use serde_json::Value;

use super::{answers, downstream};

const NAME: &str = "server.example";

fn secret(directory: &Path, certificate: &str, key: &str) {
    let secret = format!(
        "resources:\n- '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: server\n  \
         tls_certificate:\n    certificate_chain:\n      inline_string: |{}\n    private_key:\n      inline_string: |{}\n",
        indented(certificate, 8),
        indented(key, 8)
    );
    std::fs::write(directory.join("new"), secret).unwrap();
    std::fs::rename(directory.join("new"), directory.join("server.yaml")).unwrap();
}

async fn problems(proxy: &Proxy) -> Vec<Value> {
    let page: Value = serde_json::from_str(&proxy.admin("/certs").await.text()).unwrap();
    page["problems"].as_array().cloned().unwrap_or_default()
}

async fn until(proxy: &Proxy, what: &str, good: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    eventually(what, async || {
        let problems = problems(proxy).await;
        if good(&problems) { Ok(problems) } else { Err(format!("{problems:?}")) }
    })
    .await
}

#[tokio::test]
async fn a_secret_that_is_refused_is_listed_until_it_is_mended() {
    let authority = Authority::new();
    let issue = || authority.issue(&[NAME]);
    let (first, other) = (issue(), issue());
    let directory = tempfile::tempdir().unwrap();
    secret(directory.path(), &first.certificate, &first.key);
    let source = "tls_certificate_sds_secret_configs: [{ name: server, sds_config: { resource_api_version: V3, \
                  path_config_source: { path: $dir/server.yaml, watched_directory: { path: $dir } } } }]";
    let listeners = [listener("l", &[chain(&answers(""), &downstream("", source))], ", stat_prefix: l")];
    let proxy = Proxy::start_in(directory, &bootstrap(&listeners, &[]), Settings::default()).await;
    let address = proxy.listener("l").await;
    let shown = async || {
        let stream = certificates::connect(address, NAME, authority.client(&[], None)).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let before = shown().await;
    assert!(problems(&proxy).await.is_empty());
    let expires = "listener.l.ssl.certificate.server.expiration_unix_time_seconds";
    assert!(proxy.stat(expires).await > 0);

    // The key of another certificate.
    secret(&proxy.file(""), &first.certificate, &other.key);
    let listed = until(&proxy, "the secret is refused", |problems| problems.len() == 1).await;
    let problem = &listed[0];
    assert_eq!((&problem["of"], &problem["predecessor_in_use"]), (&"secret \"server\"".into(), &true.into()));
    assert!(problem["problem"].as_str().unwrap().contains("private key does not match"), "{problem}");
    assert_eq!(shown().await, before);

    // What is wrong may change; since when it is does not.
    let Identity { certificate, .. } = &other;
    secret(&proxy.file(""), certificate, "no key");
    let again =
        until(&proxy, "another reason", |problems| problems.iter().all(|now| now["problem"] != problem["problem"]));
    let again = again.await;
    assert_eq!((again.len(), &again[0]["since"]), (1, &problem["since"]));
    assert_eq!(shown().await, before);

    secret(&proxy.file(""), certificate, &other.key);
    until(&proxy, "no problem", |problems| problems.is_empty()).await;
    eventually(
        "the new certificate",
        async || if shown().await == before { Err("the old one".to_owned()) } else { Ok(()) },
    )
    .await;
}
