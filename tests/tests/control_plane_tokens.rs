//! Tokens for control planes: read from a file for each stream, so that one that was renewed is used.
//!
//! Not for Envoy, whose gRPC library and this control plane do not understand each other over a Unix socket.

use control_plane_mock::MockControlPlane;
use outrigger_tests::config::{self, ADS, chain, http, resource, resources, routes};
use outrigger_tests::{Proxy, SOON, Settings, h1};

/// Credentials as `google_grpc` has them, with a token in `$dir/token`.
const SERVICE: &str = "google_grpc: { target_uri: 'unix:$dir/xds.sock', stat_prefix: xds, \
    channel_credentials: { local_credentials: {} }, \
    credentials_factory_name: envoy.grpc_credentials.file_based_metadata, \
    call_credentials: [{ from_plugin: { name: envoy.grpc_credentials.file_based_metadata, typed_config: { \
    '@type': type.googleapis.com/envoy.config.grpc_credential.v3.FileBasedMetadataConfig, \
    secret_data: { filename: $dir/token }, header_prefix: 'Bearer ' } } }] }";

#[tokio::test]
async fn a_renewed_token_is_sent_with_the_next_stream() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    let mock = MockControlPlane::builder().unix(directory.path().join("xds.sock")).start().await.unwrap();
    let answer = "{ match: { prefix: / }, direct_response: { status: 204 } }";
    let listener = config::listener("web", &[chain(&http("web", &routes(answer)), "")], "");
    mock.set_yaml(&resources(&[resource("lds", &listener)])).unwrap();
    let bootstrap = format!(
        "node: {{ id: proxy-under-test, cluster: tests }}
dynamic_resources:
  ads_config: {{ api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{{ {SERVICE} }}] }}
  cds_config: {ADS}
  lds_config: {ADS}
"
    );
    // Mounted after the start, as a token of Kubernetes may be: streams are tried until it is there.
    let settings = Settings { await_ready: false, ..Settings::default() };
    let proxy = Proxy::start_in(directory, &bootstrap, settings).await;
    proxy.wait_stat("cluster_manager.cds.update_failure", |count| count > 0).await;
    std::fs::write(&token, "first\n").unwrap();
    proxy.wait_ready().await;
    assert_eq!(h1::get(proxy.listener("web").await, "/").await.status, 204);
    let sent = |token: &'static str| {
        mock.wait_for(SOON, move |world| {
            let streams = world.streams();
            let found = streams.iter().find(|stream| stream.headers.get("authorization").is_some_and(|is| is == token));
            found.map(|_| ())
        })
    };
    assert!(sent("Bearer first").await.is_some(), "{:?}", mock.streams());

    std::fs::write(&token, "second\n").unwrap();
    mock.drop_streams();
    assert!(sent("Bearer second").await.is_some(), "{:?}", mock.streams());
}
