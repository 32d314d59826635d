//! JSON and YAML as meshes write it, and what people are told when it is wrong.

use serde_json::{Value, json};

use super::{JsonError, JsonStyle, Names, ParseOptions, UnknownFields, UnknownTypes};
use crate::pb::envoy::config::bootstrap::v3::Bootstrap;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::core::v3::api_config_source::ApiType;
use crate::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use crate::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use crate::pb::envoy::config::core::v3::{DataSource, data_source};
use crate::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, TlsCertificate, UpstreamTlsContext, secret};
use crate::pb::envoy::service::discovery::v3::DiscoveryResponse;
use crate::pb::google::protobuf::{Any, Duration};
use crate::xds::type_v3::TypedStruct;
use crate::{Format, Schema, pack, unpack};

fn cluster(yaml: &str) -> Result<Cluster, String> {
    let parsed = Schema::load().parse_yaml::<Cluster>(yaml, UnknownFields::Reject);
    parsed.map(|parsed| parsed.message).map_err(|error| error.to_string())
}

const CONSUL: &str = r#"{
  "admin": {"access_log_path": "/dev/null", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 19000}}},
  "node": {"cluster": "web", "id": "web-sidecar-proxy", "metadata": {"namespace": "default", "partition": "default"}},
  "layered_runtime": {"layers": [{"name": "base", "static_layer": {"re2.max_program_size.error_level": 1048576}}]},
  "static_resources": {
    "clusters": [{
      "name": "local_agent",
      "ignore_health_on_host_removal": false,
      "connect_timeout": "1s",
      "type": "STATIC",
      "transport_socket": {
        "name": "tls",
        "typed_config": {
          "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
          "common_tls_context": {"validation_context": {"trusted_ca": {"inline_string": "-----BEGIN"}}}
        }
      },
      "http2_protocol_options": {},
      "loadAssignment": {
        "clusterName": "local_agent",
        "endpoints": [{"lbEndpoints": [{"endpoint": {"address":
          {"socket_address": {"address": "127.0.0.1", "port_value": 8502}}}}]}]
      }
    }]
  },
  "stats_config": {
    "stats_tags": [{"regex": "^cluster\\.(?:passthrough~)?((?:([^.]+)~)?)", "tag_name": "consul.destination.custom_hash"},
                   {"tag_name": "local_cluster", "fixed_value": "web"}],
    "use_all_default_tags": true
  },
  "stats_sinks": [],
  "dynamic_resources": {
    "lds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
    "cds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
    "ads_config": {
      "api_type": "DELTA_GRPC",
      "transport_api_version": "V3",
      "grpc_services": {
        "initial_metadata": [{"key": "x-consul-token", "value": ""}],
        "envoy_grpc": {"cluster_name": "local_agent"}
      }
    }
  }
}"#;

#[test]
fn a_consul_bootstrap_is_read() {
    let parsed = Schema::load().parse::<Bootstrap>(CONSUL.as_bytes(), Format::Json, UnknownFields::Reject).unwrap();
    let bootstrap = parsed.message;
    let dynamic = bootstrap.dynamic_resources.unwrap();
    let ads = dynamic.ads_config.unwrap();
    assert_eq!(ads.api_type(), ApiType::DeltaGrpc);
    let [service] = ads.grpc_services.as_slice() else { panic!("one service") };
    let Some(TargetSpecifier::EnvoyGrpc(target)) = &service.target_specifier else { panic!("an envoy_grpc target") };
    assert_eq!(target.cluster_name, "local_agent");
    let lds = dynamic.lds_config.unwrap();
    assert!(matches!(lds.config_source_specifier, Some(ConfigSourceSpecifier::Ads(_))));
    assert_eq!(lds.initial_fetch_timeout, Some(Duration { seconds: 0, nanos: 0 }));
    let cluster = &bootstrap.static_resources.unwrap().clusters[0];
    assert_eq!(cluster.load_assignment.as_ref().unwrap().cluster_name, "local_agent");
    assert_eq!(cluster.connect_timeout, Some(Duration { seconds: 1, nanos: 0 }));
}

const ISTIO: &str = r#"{
  "application_log_config": {"log_format": {"text_format": "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\tthread=%t"}},
  "node": {
    "id": "sidecar~10.0.0.1~web-1.default~default.svc.cluster.local",
    "cluster": "web.default",
    "locality": {"region": "r1"},
    "metadata": {"PROXY_CONFIG": {"concurrency": 2, "drainDuration": "45s"}, "INSTANCE_IPS": "10.0.0.1", "NULL": null}
  },
  "layered_runtime": {"layers": [
    {"name": "global config", "static_layer": {"re2.max_program_size.error_level": "32768"}},
    {"name": "admin", "admin_layer": {}}
  ]},
  "bootstrap_extensions": [{
    "name": "envoy.bootstrap.internal_listener",
    "typed_config": {
      "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
      "type_url": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
      "value": {"buffer_size_kb": 64}
    }
  }],
  "dynamic_resources": {
    "lds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
    "ads_config": {"api_type": "GRPC", "set_node_on_first_message_only": true, "transport_api_version": "V3",
      "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]}
  },
  "static_resources": {
    "clusters": [{
      "name": "xds-grpc", "type": "STATIC", "connect_timeout": "1s", "lb_policy": "ROUND_ROBIN",
      "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
          "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
          "explicit_http_config": {"http2_protocol_options": {}}
        }
      },
      "load_assignment": {"cluster_name": "xds-grpc", "endpoints": [{"lb_endpoints": [
        {"endpoint": {"address": {"pipe": {"path": "./var/run/secrets/workload-spiffe-uds/XDS"}}}}]}]},
      "circuit_breakers": {"thresholds": [{"priority": "DEFAULT", "max_connections": 100000}]},
      "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 300}},
      "from_the_future": {"a": 1}
    }],
    "listeners": [{
      "address": {"socket_address": {"protocol": "TCP", "address": "0.0.0.0", "port_value": 15090}},
      "filter_chains": [{"filters": [{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
          "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
          "codec_type": "AUTO", "stat_prefix": "stats",
          "route_config": {"virtual_hosts": [{"name": "backend", "domains": ["*"],
            "routes": [{"match": {"prefix": "/stats/prometheus"}, "route": {"cluster": "prometheus_stats"}}]}]},
          "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
          }]
        }
      }]}]
    }]
  }
}"#;

#[test]
fn an_istio_bootstrap_is_read_and_its_typed_structs_unwrap() {
    let parsed = Schema::load().parse_json::<Bootstrap>(ISTIO, UnknownFields::Collect).unwrap();
    assert_eq!(parsed.unknown_fields, ["static_resources.clusters[0].from_the_future"]);
    let extension = parsed.message.bootstrap_extensions[0].typed_config.clone().unwrap();
    let unwrapped = crate::unwrap_typed_struct(&extension, &Schema::load()).unwrap().unwrap();
    assert_eq!(
        crate::type_name(&unwrapped.type_url),
        "envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
    );
    let shown = Schema::load().message_to_json(&parsed.message, Names::Proto).unwrap();
    let metadata = &shown["node"]["metadata"];
    assert_eq!(metadata["PROXY_CONFIG"], json!({"concurrency": 2, "drainDuration": "45s"}));
    assert_eq!(metadata["NULL"], Value::Null);
    assert_eq!(
        shown["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"][0],
        json!({
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        })
    );
}

#[test]
fn a_go_control_plane_sample_is_read() {
    let text = r#"
admin:
  access_log:
    - name: envoy.access_loggers.stdout
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
  address:
    socket_address: { address: 127.0.0.1, port_value: 19000 }
dynamic_resources:
  ads_config:
    api_type: GRPC
    transport_api_version: V3
    grpc_services:
    - envoy_grpc: { cluster_name: xds_cluster }
    set_node_on_first_message_only: true
  cds_config:
    resource_api_version: V3
    ads: {}
node:
  cluster: test-cluster
  id: test-id
static_resources:
  clusters:
  - connect_timeout: 1s
    load_assignment:
      cluster_name: xds_cluster
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: { socket_address: { address: 127.0.0.1, port_value: 18000 } }
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config:
          http2_protocol_options:
            connection_keepalive: { interval: 30s, timeout: 5s }
    name: xds_cluster
layered_runtime:
  layers:
    - name: runtime-0
      rtds_layer:
        rtds_config: { resource_api_version: V3, ads: {} }
        name: runtime-0
"#;
    let parsed = Schema::load().parse::<Bootstrap>(text.as_bytes(), Format::Yaml, UnknownFields::Reject).unwrap();
    assert_eq!(parsed.message.node.unwrap().id, "test-id");
    assert_eq!(parsed.message.static_resources.unwrap().clusters[0].name, "xds_cluster");
}

#[test]
fn what_envoy_lets_pass_is_let_pass() {
    for (text, expected) in [
        ("connect_timeout: {seconds: 5}", json!({"connect_timeout": "5s"})),
        ("connect_timeout: 0.25", json!({"connect_timeout": "0.250s"})),
        ("per_connection_buffer_limit_bytes: {value: 5}", json!({"per_connection_buffer_limit_bytes": 5})),
        ("per_connection_buffer_limit_bytes: '5'", json!({"per_connection_buffer_limit_bytes": 5})),
        ("per_connection_buffer_limit_bytes: 1e3", json!({"per_connection_buffer_limit_bytes": 1000})),
        ("dns_lookup_family: v4_only", json!({"dns_lookup_family": "V4_ONLY"})),
        ("dns_lookup_family: 1", json!({"dns_lookup_family": "V4_ONLY"})),
        ("ignore_health_on_host_removal: yes", json!({"ignore_health_on_host_removal": true})),
        ("load_assignment: null", json!({})),
        ("health_checks: {timeout: 1s}", json!({"health_checks": [{"timeout": "1s"}]})),
        ("metadata: {filter_metadata: {a.b: {t: 1.5}}}", json!({"metadata": {"filter_metadata": {"a.b": {"t": 1.5}}}})),
    ] {
        let read = cluster(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(Schema::load().message_to_json(&read, Names::Proto).unwrap(), expected, "{text}");
    }
}

#[test]
fn errors_name_the_path_the_value_and_what_was_expected() {
    for (text, expected) in [
        ("connect_timeout: 5ms", r#"connect_timeout: got "5ms", expected a duration in seconds such as "0.25s""#),
        (
            "conect_timeout: 5s",
            "conect_timeout: unknown field of envoy.config.cluster.v3.Cluster; did you mean connect_timeout?",
        ),
        ("alt_stat_name: 123", "alt_stat_name: got 123, expected a string: put it in quotes"),
        ("alt_stat_name: {}", "alt_stat_name: got {}, expected a string"),
        (
            "per_connection_buffer_limit_bytes: -1",
            "per_connection_buffer_limit_bytes: got -1, expected an integer from 0 to 4294967295",
        ),
        (
            "lb_policy: BEST",
            "lb_policy: got \"BEST\", expected one of ROUND_ROBIN, LEAST_REQUEST, RING_HASH, RANDOM, MAGLEV, \
             CLUSTER_PROVIDED, LOAD_BALANCING_POLICY_CONFIG (envoy.config.cluster.v3.Cluster.LbPolicy)",
        ),
        (
            "connect_timeout: 1s\nconnectTimeout: 1s",
            "connect_timeout: is the same field as connectTimeout, expected one of them",
        ),
        ("type: EDS\ncluster_type: {name: x}", "type: excludes cluster_type, expected one of them"),
        ("health_checks: [null]", "health_checks[0]: got null, expected a value"),
        (
            "health_checks:\n- timeout: 1s\n- timeout: {second: 1}",
            "health_checks[1].timeout.second: unknown field of google.protobuf.Duration; did you mean seconds?",
        ),
        (
            "typed_extension_protocol_options: {x: {a: 1}}",
            "typed_extension_protocol_options.x: got {\"a\":1}, expected \"@type\" to name the type, such as \
             \"type.googleapis.com/package.Message\"",
        ),
        (
            "typed_extension_protocol_options: {a.b: {'@type': type.googleapis.com/foo.Bar}}",
            r#"typed_extension_protocol_options["a.b"].@type: unknown type type.googleapis.com/foo.Bar"#,
        ),
        (
            "typed_extension_protocol_options: {x: {'@type': foo.Bar}}",
            "typed_extension_protocol_options.x.@type: got \"foo.Bar\", expected a type URL such as \
             \"type.googleapis.com/foo.Bar\"",
        ),
        ("- a", "document: got [\"a\"], expected an object (envoy.config.cluster.v3.Cluster)"),
        ("", "document: got null, expected an object (envoy.config.cluster.v3.Cluster)"),
    ] {
        assert_eq!(cluster(text).unwrap_err(), expected, "{text}");
    }
}

#[test]
fn every_problem_of_a_document_is_reported_at_once() {
    let error = Schema::load()
        .parse_yaml::<Cluster>("connect_timeout: x\nname: 1\nfoo: 2\n", UnknownFields::Reject)
        .unwrap_err();
    let paths: Vec<&str> = error.problems().iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["connect_timeout", "foo", "name"]);
}

#[test]
fn text_that_is_no_json_says_where() {
    let error = Schema::load().parse_json::<Cluster>("{\"name\": \"a\",}", UnknownFields::Reject).unwrap_err();
    assert!(matches!(error, JsonError::Syntax { format: "JSON", line: 1, column: 14, .. }), "{error:?}");
    let error = Schema::load().parse::<Cluster>(b"a: \xff", Format::Yaml, UnknownFields::Reject).unwrap_err();
    assert_eq!(error.to_string(), "not valid YAML: byte 3 is not UTF-8");
    let error = Schema::load().parse::<Cluster>(b"name: \"a\"", Format::TextProto, UnknownFields::Reject).unwrap_err();
    assert_eq!(error.to_string(), "protobuf text format is not supported; write JSON, YAML or binary protobuf");
}

#[test]
fn a_secret_of_the_wrong_kind_is_not_repeated_in_the_error() {
    let text = "tls_certificate: {password: {inline_string: 12345}}";
    let error = Schema::load().parse_yaml::<Secret>(text, UnknownFields::Reject).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tls_certificate.password.inline_string: got a value not shown here, expected a string: put it in quotes"
    );
}

#[test]
fn an_unknown_type_can_be_kept() {
    let options = ParseOptions { unknown_types: UnknownTypes::Keep, ..ParseOptions::default() };
    let text = "x: {'@type': type.googleapis.com/foo.Bar, a: [1, {b: c}]}";
    let text = format!("typed_extension_protocol_options: {{{text}}}");
    let cluster = Schema::load().parse_yaml::<Cluster>(&text, options).unwrap().message;
    let kept: TypedStruct = unpack(&cluster.typed_extension_protocol_options["x"]).unwrap();
    assert_eq!(kept.type_url, "type.googleapis.com/foo.Bar");
    assert_eq!(Schema::load().message_to_json(&kept, Names::Proto).unwrap()["value"], json!({"a": [1, {"b": "c"}]}));

    let opaque = Any { type_url: "type.googleapis.com/foo.Bar".into(), value: vec![1, 2, 3] };
    let shown = Schema::load().any_to_json(&opaque, Names::Proto).unwrap();
    assert_eq!(shown, json!({"@type": "type.googleapis.com/foo.Bar", "value": "AQID"}));
    assert_eq!(Schema::load().parse_value::<Any>(&shown, options).unwrap().message, opaque);
}

#[test]
fn dumps_name_fields_in_either_style_and_keep_broken_payloads() {
    let context = UpstreamTlsContext { sni: "a".into(), allow_renegotiation: true, ..Default::default() };
    let shown = Schema::load().any_to_json(&pack(&context), Names::Camel).unwrap();
    assert_eq!(shown["allowRenegotiation"], true);
    let broken = Any { value: vec![0xff], ..pack(&context) };
    let shown = Schema::load().any_to_json(&broken, Names::Proto).unwrap();
    assert_eq!(shown, json!({"@type": broken.type_url, "value": "/w=="}));
}

#[test]
fn secrets_are_redacted_at_any_depth() {
    let key =
        DataSource { specifier: Some(data_source::Specifier::InlineString("PRIVATE".into())), ..Default::default() };
    let chain =
        DataSource { specifier: Some(data_source::Specifier::InlineString("CHAIN".into())), ..Default::default() };
    let certificate = TlsCertificate { private_key: Some(key), certificate_chain: Some(chain), ..Default::default() };
    let secret = Secret { name: "default".into(), r#type: Some(secret::Type::TlsCertificate(certificate)) };
    let response = DiscoveryResponse { resources: vec![pack(&secret)], ..Default::default() };
    let style = JsonStyle { redact: true, ..JsonStyle::default() };
    let shown = Schema::load().message_to_json(&response, style).unwrap();
    let certificate = &shown["resources"][0]["tls_certificate"];
    assert_eq!(certificate["private_key"], json!({"inline_string": "[redacted]"}));
    assert_eq!(certificate["certificate_chain"], json!({"inline_string": "CHAIN"}));
}

#[test]
fn hostile_nesting_of_anys_ends_in_base64() {
    let mut any = pack(&DiscoveryResponse::default());
    for _ in 0..500 {
        any = pack(&DiscoveryResponse { resources: vec![any], ..Default::default() });
    }
    let shown = Schema::load().any_to_json(&any, Names::Proto).unwrap();
    assert!(shown.to_string().contains("\"value\":\""));
}

#[test]
fn a_file_of_discovery_is_read_in_three_formats() {
    let schema = Schema::load();
    let yaml = "resources:\n- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: a\n";
    let json = r#"{"resources": [{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "a"}]}"#;
    let expected = DiscoveryResponse {
        resources: vec![pack(&Cluster { name: "a".into(), ..Default::default() })],
        ..Default::default()
    };
    let binary = prost::Message::encode_to_vec(&expected);
    for (content, path) in [(yaml.as_bytes(), "cds.yaml"), (json.as_bytes(), "cds"), (&binary, "cds.pb")] {
        let format = Format::of(path.as_ref(), content);
        let read = schema.parse_discovery_response(content, format, UnknownFields::Reject).unwrap();
        assert_eq!(read.message, expected, "{path}");
    }
}

#[test]
fn an_overlay_replaces_scalars_merges_messages_and_adds_to_lists() {
    let schema = Schema::load();
    let parse = |text| schema.parse_yaml::<Bootstrap>(text, UnknownFields::Reject).unwrap().message;
    let mut base = parse("node: {id: a, cluster: c}\nstatic_resources: {clusters: [{name: one}]}\n");
    schema.merge(&mut base, &parse("node: {id: b}\nstatic_resources: {clusters: [{name: two}]}\n")).unwrap();
    let expected = parse("node: {id: b, cluster: c}\nstatic_resources: {clusters: [{name: one}, {name: two}]}\n");
    assert_eq!(base, expected);
}
