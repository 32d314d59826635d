//! `/config_dump`: what tools read out of it.

use outrigger_api::pb::envoy::config::cluster::v3::Cluster;
use outrigger_api::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrigger_api::pb::envoy::config::listener::v3::Listener;
use outrigger_api::pb::envoy::config::route::v3::RouteConfiguration;
use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use outrigger_xds::ResourceKind;
use serde_json::{Value, json};

use super::fixture::{Fixture, active, ask, message, record, refused, run};
use crate::graph::history::ResourceHistory;

fn filled() -> Fixture {
    let fixture = Fixture::new();
    fixture.publish(&["{name: fixed, load_assignment: {cluster_name: fixed, endpoints: [{lb_endpoints: \
                       [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9}}}}]}]}}"]);
    let fixed: Cluster = message("{name: fixed}");
    fixture.add(ResourceKind::Cluster, "fixed", ResourceHistory { is_static: true, ..active(record("", &fixed)) });
    let moving: Cluster = message("{name: moving, type: EDS}");
    fixture.add(
        ResourceKind::Cluster,
        "moving",
        ResourceHistory {
            warming: Some(record("2", &moving)),
            refusal: Some(refused(record("3", &moving), "connect_timeout: must be positive")),
            ..active(record("1", &moving))
        },
    );
    let assignment: ClusterLoadAssignment = message("{cluster_name: moving}");
    fixture.add(ResourceKind::ClusterLoadAssignment, "moving", active(record("e1", &assignment)));
    let listener: Listener = message(
        "
name: in
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: s
      route_config: {name: inline-routes}",
    );
    fixture.add(ResourceKind::Listener, "in", active(record("l1", &listener)));
    let routes: RouteConfiguration = message("{name: routes}");
    fixture.add(ResourceKind::RouteConfiguration, "routes", active(record("r1", &routes)));
    let secret: Secret = message(
        "{name: default, tls_certificate: {certificate_chain: {inline_bytes: Y2VydA==}, private_key: {inline_bytes: a2V5}}}",
    );
    fixture.add(ResourceKind::Secret, "default", active(record("s1", &secret)));
    fixture.add(ResourceKind::Secret, "ROOTCA", ResourceHistory::default());
    fixture
}

fn kinds(dump: &Value) -> Vec<&str> {
    let urls = dump["configs"].as_array().unwrap().iter().filter_map(|config| config["@type"].as_str());
    urls.map(|url| url.rsplit('.').next().unwrap_or(url)).collect()
}

#[test]
fn the_whole_dump_has_every_resource_as_received_and_no_key() {
    run(async {
        let fixture = filled();
        let bound = fixture.serve();
        let answer = ask(&bound, "GET", "/config_dump").await;
        assert!(answer.head.contains("content-type: application/json"));
        assert!(answer.body.starts_with("{\n \"configs\": [\n  {\n   \"@type\": "), "{}", answer.body);
        let dump = answer.json();
        assert_eq!(
            kinds(&dump),
            [
                "BootstrapConfigDump",
                "ClustersConfigDump",
                "ListenersConfigDump",
                "ScopedRoutesConfigDump",
                "RoutesConfigDump",
                "SecretsConfigDump"
            ]
        );
        let configs = &dump["configs"];
        assert_eq!(configs[0]["bootstrap"]["node"]["id"], "n1");
        assert_eq!(configs[0]["last_updated"], "2026-11-21T01:53:45Z");
        let clusters = &configs[1];
        assert_eq!(clusters["version_info"], "c7");
        assert_eq!(clusters["static_clusters"][0]["cluster"]["name"], "fixed");
        let moving = &clusters["dynamic_active_clusters"][0];
        assert_eq!(
            moving["cluster"],
            json!({
                "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "moving", "type": "EDS"
            })
        );
        assert_eq!((&moving["version_info"], &moving["error_state"]["version_info"]), (&"1".into(), &"3".into()));
        assert_eq!(moving["error_state"]["details"], "connect_timeout: must be positive");
        assert_eq!(clusters["dynamic_warming_clusters"][0]["version_info"], "2");
        let listener = &configs[2]["dynamic_listeners"][0];
        assert_eq!((&listener["name"], &listener["active_state"]["version_info"]), (&"in".into(), &"l1".into()));
        assert_eq!(
            listener["active_state"]["listener"]["filter_chains"][0]["filters"][0]["typed_config"]["stat_prefix"],
            "s"
        );
        assert_eq!(configs[4]["static_route_configs"][0]["route_config"]["name"], "inline-routes");
        assert_eq!(configs[4]["dynamic_route_configs"][0]["version_info"], "r1");
        let secret = &configs[5]["dynamic_active_secrets"][0];
        assert_eq!(secret["secret"]["tls_certificate"]["certificate_chain"]["inline_bytes"], "Y2VydA==");
        assert_eq!(secret["secret"]["tls_certificate"]["private_key"]["inline_bytes"], "W3JlZGFjdGVkXQ==");
        let waiting = &configs[5]["dynamic_warming_secrets"][0];
        assert_eq!(waiting, &json!({"name": "ROOTCA", "version_info": "uninitialized"}));
    });
}

#[test]
fn endpoints_come_on_demand() {
    run(async {
        let bound = filled().serve();
        for query in ["include_eds", "include_eds=true"] {
            let dump = ask(&bound, "GET", &format!("/config_dump?{query}")).await.json();
            assert_eq!(kinds(&dump)[2], "EndpointsConfigDump");
            let endpoints = &dump["configs"][2];
            let fixed = &endpoints["static_endpoint_configs"][0]["endpoint_config"];
            let endpoint = &fixed["endpoints"][0]["lb_endpoints"][0];
            assert_eq!((&fixed["cluster_name"], &endpoint["health_status"]), (&"fixed".into(), &"HEALTHY".into()));
            assert_eq!(endpoint["endpoint"]["address"]["socket_address"]["port_value"], 9);
            let moving = &endpoints["dynamic_endpoint_configs"][0];
            assert_eq!(
                (&moving["version_info"], &moving["endpoint_config"]["cluster_name"]),
                (&"e1".into(), &"moving".into())
            );
        }
    });
}

#[test]
fn the_masks_of_a_mesh_tool_give_whole_envelopes_with_only_those_fields() {
    run(async {
        let bound = filled().serve();
        for (mask, kind, fields) in [
            (
                "dynamic_active_clusters,dynamic_warming_clusters,static_clusters",
                "ClustersConfigDump",
                &["dynamic_active_clusters", "dynamic_warming_clusters", "static_clusters"][..],
            ),
            ("dynamic_listeners,static_listeners", "ListenersConfigDump", &["dynamic_listeners"]),
            (
                "dynamic_route_configs,static_route_configs",
                "RoutesConfigDump",
                &["dynamic_route_configs", "static_route_configs"],
            ),
            (
                "dynamic_active_secrets,dynamic_warming_secrets",
                "SecretsConfigDump",
                &["dynamic_active_secrets", "dynamic_warming_secrets"],
            ),
            ("bootstrap", "BootstrapConfigDump", &["bootstrap"]),
        ] {
            let dump = ask(&bound, "GET", &format!("/config_dump?mask={mask}")).await.json();
            assert_eq!(kinds(&dump), [kind]);
            let mut shown: Vec<&str> = dump["configs"][0].as_object().unwrap().keys().map(String::as_str).collect();
            shown.retain(|name| *name != "@type");
            assert_eq!(shown, fields);
        }
        let node = ask(&bound, "GET", "/config_dump?mask=bootstrap.node.id").await.json();
        assert_eq!(node["configs"][0]["bootstrap"], json!({"node": {"id": "n1"}}));
        for mask in
            ["zzz", "bootstrap,static_clusters", "static_clusters.cluster.name", "bootstrap.zzz", "zzz,static_clusters"]
        {
            let refused = ask(&bound, "GET", &format!("/config_dump?mask={mask}")).await;
            let reason = format!("FieldMask {mask} could not be successfully applied to any configs.");
            assert_eq!((refused.status, refused.body), (400, reason));
        }
    });
}

#[test]
fn one_list_can_be_asked_for() {
    run(async {
        let bound = filled().serve();
        let listed = ask(&bound, "GET", "/config_dump?resource=dynamic_active_clusters&mask=cluster.name").await.json();
        assert_eq!(
            listed,
            json!({"configs": [{
                "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster",
                "cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "moving"}
            }]})
        );
        let empty = ask(&bound, "GET", "/config_dump?resource=static_listeners").await;
        assert_eq!((empty.status, empty.body.as_str()), (200, "{}\n"));
        assert_eq!(ask(&bound, "GET", "/config_dump?resource=foo").await.status, 404);
        assert_eq!(ask(&bound, "GET", "/config_dump?resource=bootstrap").await.status, 400);
        assert_eq!(ask(&bound, "GET", "/config_dump?resource=static_clusters&mask=zzz").await.status, 400);
    });
}

#[test]
fn names_can_be_chosen_by_a_regular_expression() {
    run(async {
        let bound = filled().serve();
        let dump = ask(&bound, "GET", "/config_dump?name_regex=^moving$").await.json();
        let clusters = &dump["configs"][1];
        assert!(clusters["static_clusters"].is_null());
        assert_eq!(clusters["dynamic_active_clusters"].as_array().unwrap().len(), 1);
        assert!(dump["configs"][2]["dynamic_listeners"].is_null());
        assert_eq!(ask(&bound, "GET", "/config_dump?name_regex=((").await.status, 400);
    });
}

#[test]
fn a_thousand_clusters_come_in_pieces() {
    run(async {
        let fixture = Fixture::new();
        for index in 0..1000 {
            let name = format!("cluster-{index}");
            let cluster: Cluster = message(&format!("{{name: {name}, type: EDS, alt_stat_name: {name};}}"));
            fixture.add(ResourceKind::Cluster, &name, active(record("1", &cluster)));
        }
        let bound = fixture.serve();
        let dump = ask(&bound, "GET", "/config_dump").await;
        assert!(dump.body.len() > 200_000);
        assert_eq!(dump.json()["configs"][1]["dynamic_active_clusters"].as_array().unwrap().len(), 1000);
    });
}
