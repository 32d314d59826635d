//! Client status discovery on the admin port, asked by grpcio: which resources there are, and what became of them. Envoy
//! does not serve it; other xDS clients do, and tools such as grpcdebug read it.

use control_plane_mock::MockControlPlane;
use outrigger_api::pb::envoy::admin::v3::ClientResourceStatus;
use outrigger_api::pb::envoy::config::cluster::v3::Cluster;
use outrigger_api::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use outrigger_api::pb::envoy::service::status::v3::{ClientStatusRequest, ClientStatusResponse, ConfigStatus};
use outrigger_api::{Schema, UnknownFields};
use outrigger_tests::certificates::{Authority, indented};
use outrigger_tests::config::{self, Xds, ads_bootstrap, all_to, chain, cluster, http, resource, resources, routes};
use outrigger_tests::{Proxy, SOON, programs};
use prost::Message;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn response(digits: &str) -> ClientStatusResponse {
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("two digits");
    let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
    ClientStatusResponse::decode(&*bytes).expect("a response")
}

fn request(yaml: &str) -> String {
    let parsed = Schema::load().parse_yaml::<ClientStatusRequest>(yaml, UnknownFields::Reject);
    hex(&parsed.expect("a request").message.encode_to_vec())
}

/// The resource of a type with this name.
fn find<'a>(response: &'a ClientStatusResponse, kind: &str, name: &str) -> &'a GenericXdsConfig {
    let all = &response.config[0].generic_xds_configs;
    let found = all.iter().find(|config| config.type_url.ends_with(kind) && config.name == name);
    found.unwrap_or_else(|| panic!("no {kind} {name} in {all:#?}"))
}

#[tokio::test]
async fn grpcio_reads_what_became_of_each_resource() {
    let mock = MockControlPlane::start().await;
    let web = config::listener("web", &[chain(&http("web", &routes(&all_to("a"))), "")], "");
    let identity = Authority::new().issue(&["a.example"]);
    let key = indented(&identity.key, 8);
    let certificate = indented(&identity.certificate, 8);
    // Only what is asked for is shown, so somebody has to want the secret.
    let tls = format!(
        ", transport_socket: {{ name: tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: {{ tls_certificate_sds_secret_configs: [{{ name: server, sds_config: {} }}] }} }} }}",
        config::ADS
    );
    let secure = config::listener("secure", &[chain(&http("secure", &routes(&all_to("a"))), &tls)], "");
    let refused = cluster("refused", &[1]).replace("connect_timeout: ", "connect_timeout: -");
    assert!(refused.contains("connect_timeout: -"), "{refused}");
    mock.set_yaml(&resources(&[
        resource("cds", &cluster("a", &[1])),
        resource("cds", &refused),
        resource("lds", &web),
        resource("lds", &secure),
    ]))
    .unwrap();
    mock.set_yaml(&format!(
        "resources:\n- '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: server\n  \
         tls_certificate:\n    certificate_chain:\n      inline_string: |{certificate}\n    private_key:\n      \
         inline_string: |{key}\n"
    ))
    .unwrap();
    let proxy = Proxy::start(&ads_bootstrap(Xds::AdsDelta, mock.address().port())).await;
    mock.wait_ack("sds", SOON).await.unwrap();
    proxy.listener("web").await;
    proxy.listener("secure").await;

    let everything = request("{}");
    let ours = request(
        "{ node_matchers: [{ node_id: { exact: other } }, { node_id: { prefix: proxy- } }], exclude_resource_contents: true }",
    );
    let others = request("{ node_matchers: [{ node_id: { exact: other } }] }");
    let malformed = request("{ node_matchers: [{ node_metadatas: [{}] }] }");
    let target = proxy.admin_address().to_string();
    let script = programs::interop("client_status.py");
    let arguments = [&*script.to_string_lossy(), &target, &everything, &ours, &others, &malformed];
    let said = programs::run("python3", &arguments, &[], SOON * 6).await;
    let lines: Vec<&str> = said.lines().collect();
    let [all, without, none, wrong, first, second, unknown] = lines[..] else { panic!("{said}") };

    let fetched = |line: &str| response(line.strip_prefix("fetched ").unwrap_or_else(|| panic!("{line}")));
    let all = fetched(all);
    assert_eq!(all.config[0].node.as_ref().unwrap().id, "proxy-under-test");
    let accepted = find(&all, "config.cluster.v3.Cluster", "a");
    let statuses = |config: &GenericXdsConfig| (config.client_status(), config.config_status());
    assert_eq!(statuses(accepted), (ClientResourceStatus::Acked, ConfigStatus::Synced));
    assert!(!accepted.version_info.is_empty() && accepted.last_updated.is_some() && accepted.error_state.is_none());
    let shown: Cluster = outrigger_api::unpack(accepted.xds_config.as_ref().unwrap()).unwrap();
    assert_eq!((shown.name.as_str(), shown.load_assignment.unwrap().endpoints.len()), ("a", 1));
    let refused = find(&all, "config.cluster.v3.Cluster", "refused");
    assert_eq!(statuses(refused), (ClientResourceStatus::Nacked, ConfigStatus::Error));
    let error = refused.error_state.as_ref().unwrap();
    assert!(error.details.contains("connect_timeout") && error.failed_configuration.is_some(), "{error:?}");
    assert_eq!(statuses(find(&all, "config.listener.v3.Listener", "web")).0, ClientResourceStatus::Acked);
    // Clusters of the bootstrap are nobody's to accept.
    let fixed = all.config[0].generic_xds_configs.iter().find(|config| config.is_static_resource);
    assert_eq!(statuses(fixed.unwrap()), (ClientResourceStatus::Unknown, ConfigStatus::Unknown));
    // The key of the certificate stays here.
    let secret = find(&all, "tls.v3.Secret", "server");
    let bytes = &secret.xds_config.as_ref().unwrap().value;
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("BEGIN CERTIFICATE") && has("[redacted]") && !has("PRIVATE KEY"), "{secret:?}");

    let without = fetched(without);
    let bare = find(&without, "config.cluster.v3.Cluster", "refused");
    assert!(bare.error_state.as_ref().unwrap().failed_configuration.is_none());
    assert!(without.config[0].generic_xds_configs.iter().all(|config| config.xds_config.is_none()));
    assert!(fetched(none).config.is_empty());
    assert!(
        wrong.starts_with("refused INVALID_ARGUMENT") && wrong.contains("node_matchers[0].node_metadatas[0].path"),
        "{wrong}"
    );
    for streamed in [first, second] {
        assert_eq!(response(streamed.strip_prefix("streamed ").unwrap_or_else(|| panic!("{streamed}"))), all);
    }
    assert!(unknown.starts_with("refused UNIMPLEMENTED"), "{unknown}");
    // The port speaks HTTP/1 as before.
    assert_eq!(proxy.admin("/ready").await.status, 200);
}
