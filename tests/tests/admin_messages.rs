//! What the admin port shows as JSON can be read into the messages of `envoy.admin.v3`, as istioctl and others read it: as
//! a whole, and through masks. The same of Envoy shows that the reading is right.

use control_plane_mock::MockControlPlane;
use outrigger_api::pb::envoy::admin::v3 as pb;
use outrigger_api::pb::google::protobuf::Any;
use outrigger_api::{Schema, UnknownFields};
use outrigger_tests::certificates::{Authority, indented};
use outrigger_tests::config::{
    self, Xds, ads_bootstrap, all_to, chain, eds_cluster, endpoints, http, rds, resource, resources,
    route_configuration,
};
use outrigger_tests::{Proxy, SOON, Settings, Upstream, h1, proxy};

/// Reads a page; a field that the message does not have is an error.
async fn page<M: prost::Message + prost::Name + Default>(proxy: &Proxy, path: &str) -> M {
    let text = proxy.admin(path).await.text();
    let parsed = Schema::load().parse_json::<M>(&text, UnknownFields::Reject);
    parsed.unwrap_or_else(|error| panic!("{path}: {error}\n{text}")).message
}

fn section<M: prost::Message + prost::Name + Default>(all: &[Any]) -> M {
    let name = M::NAME;
    let found = all.iter().find(|any| any.type_url.ends_with(&format!("admin.v3.{name}")));
    outrigger_api::unpack(found.unwrap_or_else(|| panic!("no {name}")))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

async fn reads(program: std::path::PathBuf) {
    let upstream = Upstream::start("a").await;
    let mock = MockControlPlane::start().await;
    let identity = Authority::new().issue(&["a.example"]);
    let tls = format!(
        ", transport_socket: {{ name: tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: {{ tls_certificate_sds_secret_configs: [{{ name: server, sds_config: {} }}] }} }} }}",
        config::ADS
    );
    let web = config::listener("web", &[chain(&http("web", &rds("web-routes")), "")], "");
    let secure = config::listener("secure", &[chain(&http("secure", &rds("web-routes")), &tls)], "");
    mock.set_yaml(&resources(&[
        resource("cds", &eds_cluster("a")),
        resource("eds", &endpoints("a", &[upstream.port()])),
        resource("rds", &route_configuration("web-routes", &all_to("a"))),
        resource("lds", &web),
        resource("lds", &secure),
    ]))
    .unwrap();
    mock.set_yaml(&format!(
        "resources:\n- '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: server\n  \
         tls_certificate:\n    certificate_chain:\n      inline_string: |{}\n    private_key:\n      inline_string: |{}\n",
        indented(&identity.certificate, 8),
        indented(&identity.key, 8)
    ))
    .unwrap();
    let settings = Settings { program, ..Settings::default() };
    let proxy = Proxy::start_with(&ads_bootstrap(Xds::AdsDelta, mock.address().port()), settings).await;
    mock.wait_ack("sds", SOON).await.unwrap();
    assert_eq!(h1::get(proxy.listener("web").await, "/").await.status, 200);
    proxy.listener("secure").await;

    let all: pb::ConfigDump = page(&proxy, "/config_dump?include_eds").await;
    let clusters: pb::ClustersConfigDump = section(&all.configs);
    assert_eq!((clusters.dynamic_active_clusters.len(), clusters.static_clusters.len()), (1, 1));
    let listeners: pb::ListenersConfigDump = section(&all.configs);
    let mut names: Vec<_> = listeners.dynamic_listeners.iter().map(|listener| listener.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["secure", "web"]);
    assert!(listeners.dynamic_listeners.iter().all(|listener| listener.active_state.is_some()));
    let routes: pb::RoutesConfigDump = section(&all.configs);
    assert_eq!(routes.dynamic_route_configs.len(), 1);
    let endpoints: pb::EndpointsConfigDump = section(&all.configs);
    assert!(!endpoints.dynamic_endpoint_configs.is_empty());
    let secrets: pb::SecretsConfigDump = section(&all.configs);
    assert_eq!(secrets.dynamic_active_secrets[0].name, "server");
    let bootstrap: pb::BootstrapConfigDump = section(&all.configs);
    assert_eq!(bootstrap.bootstrap.unwrap().node.unwrap().id, "proxy-under-test");

    // A mask, and a list with a mask.
    let masked: pb::ConfigDump = page(&proxy, "/config_dump?mask=dynamic_route_configs").await;
    let [only] = &masked.configs[..] else { panic!("{masked:?}") };
    assert_eq!(section::<pb::RoutesConfigDump>(std::slice::from_ref(only)).dynamic_route_configs.len(), 1);
    let listed: pb::ConfigDump =
        page(&proxy, "/config_dump?resource=dynamic_listeners&mask=name,active_state.version_info").await;
    let listed: Vec<pb::listeners_config_dump::DynamicListener> =
        listed.configs.iter().map(|any| outrigger_api::unpack(any).expect("a listener")).collect();
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|listener| listener.active_state.as_ref().unwrap().listener.is_none()), "{listed:?}");

    let clusters: pb::Clusters = page(&proxy, "/clusters?format=json").await;
    let host = clusters.cluster_statuses.iter().find(|status| status.name == "a").unwrap();
    assert!(host.added_via_api && host.host_statuses.len() == 1, "{host:?}");
    assert!(host.host_statuses[0].stats.iter().any(|stat| stat.name == "rq_total" && stat.value == 1), "{host:?}");
    let listeners: pb::Listeners = page(&proxy, "/listeners?format=json").await;
    assert_eq!(listeners.listener_statuses.len(), 2);
    let info: pb::ServerInfo = page(&proxy, "/server_info").await;
    assert_eq!(info.state(), pb::server_info::State::Live);
    let certificates: pb::Certificates = page(&proxy, "/certs").await;
    assert_eq!(certificates.certificates.len(), 1);
    let _: pb::Memory = page(&proxy, "/memory").await;
    let _: pb::UnreadyTargetsDumps = page(&proxy, "/init_dump").await;
}

#[tokio::test]
async fn all_pages_are_messages_of_the_admin_api() {
    reads(proxy::program()).await;
}

#[tokio::test]
async fn so_are_those_of_envoy() {
    reads(proxy::envoy()).await;
}
