//! Bootstraps as launchers write them, and what is told about those that are wrong.

use std::io;
use std::path::Path;
use std::time::Duration;

use outrigger_api::pb;
use outrigger_api::{Schema, UnknownFields};
use outrigger_config::bootstrap::{Bootstrap, RuntimeLayerKind, StatsMatcher, StatsTagValue, runtime_layer};
use outrigger_config::source::{GrpcTarget, SourceKind, XdsProtocol};
use outrigger_config::tls::{Secret, SecretKind};
use outrigger_config::{Context, Environment};
use proptest::prelude::*;

/// No files but one, and no variables.
struct Files;

impl Environment for Files {
    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        if path == Path::new("/certs/tls.pem") { Ok(b"PEM".to_vec()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

fn parse(yaml: &str) -> Result<Bootstrap, Vec<String>> {
    let wire = Schema::load().parse_yaml(yaml, UnknownFields::Reject).unwrap().message;
    Bootstrap::parse(&Context::new(&Files), wire)
        .map_err(|rejections| rejections.iter().map(ToString::to_string).collect())
}

fn refused(yaml: &str, expected: &[&str]) {
    let rejections = parse(yaml).expect_err(yaml);
    let expected: Vec<_> = expected.iter().map(|text| format!("bootstrap \"\": {text}")).collect();
    assert_eq!(rejections, expected, "{yaml}");
}

#[test]
fn istio_starts() {
    let bootstrap = parse(include_str!("bootstraps/istio.yaml")).unwrap_or_else(|error| panic!("{error:#?}"));
    assert_eq!(bootstrap.node.id, "sidecar~10.3.3.3~billing-1.shop~shop.svc.cluster.local");
    assert_eq!(bootstrap.overload.as_ref().unwrap().max_downstream_connections(), Some(2_147_483_647));
    assert_eq!(bootstrap.admin.as_ref().unwrap().address.to_string(), "127.0.0.1:15000");
    assert!(!bootstrap.stats.use_all_default_tags);
    assert!(matches!(&bootstrap.stats.matcher, StatsMatcher::Include(list) if list.len() == 4));
    let ads = bootstrap.ads.as_ref().unwrap();
    assert_eq!(ads.protocol, XdsProtocol::Delta);
    assert!(ads.set_node_on_first_message_only);
    assert_eq!(bootstrap.lds.as_ref().unwrap().initial_fetch_timeout, None);
    let RuntimeLayerKind::Static(values) = &bootstrap.runtime[0].kind else { panic!() };
    assert_eq!(values["re2.max_program_size.error_level"].number, Some(32768.0));
    assert!(matches!(bootstrap.runtime[1].kind, RuntimeLayerKind::Admin));
    assert_eq!(bootstrap.internal_buffer_bytes, 64 * 1024);
    let names: Vec<_> = bootstrap.clusters.iter().map(|cluster| cluster.name.to_string()).collect();
    assert_eq!(names, ["prometheus_stats", "agent", "sds-grpc", "xds-grpc"]);
    // A listener without a name is called after its address.
    assert_eq!(&*bootstrap.listeners[0].name, "0.0.0.0:15090");
    assert_eq!(&*bootstrap.listeners[1].name, "0.0.0.0:15021");
}

#[test]
fn consul_starts() {
    let bootstrap = parse(include_str!("bootstraps/consul.yaml")).unwrap_or_else(|error| panic!("{error:#?}"));
    assert_eq!(bootstrap.node.cluster, "billing");
    let service = &bootstrap.ads.as_ref().unwrap().services[0];
    assert_eq!(service.initial_metadata, [("x-consul-token".to_owned(), "secret".to_owned())]);
    assert!(matches!(&service.target, GrpcTarget::Cluster { name, .. } if &**name == "local_agent"));
    assert_eq!(bootstrap.admin.as_ref().unwrap().access_logs.len(), 1);
    assert!(bootstrap.stats.use_all_default_tags);
    assert_eq!(bootstrap.stats.tags[1].value, StatsTagValue::Fixed("billing".into()));
    assert!(matches!(bootstrap.lds.as_ref().unwrap().kind, SourceKind::Ads));
}

#[test]
fn kuma_starts_without_a_cluster_for_its_server() {
    let bootstrap = parse(include_str!("bootstraps/kuma.yaml")).unwrap_or_else(|error| panic!("{error:#?}"));
    let GrpcTarget::Uri { tls, token_file, .. } = &bootstrap.ads.as_ref().unwrap().services[0].target else { panic!() };
    assert_eq!(tls.as_ref().unwrap().root_certs.as_deref(), Some(&b"CA"[..]));
    assert_eq!(token_file.as_deref(), Some(Path::new("/tokens/billing")));
    assert_eq!(&*bootstrap.secrets[0].name, "cp_validation_ctx");
}

#[test]
fn an_empty_bootstrap_has_the_defaults() {
    let bootstrap = parse("{}").unwrap();
    assert!(bootstrap.admin.is_none() && bootstrap.lds.is_none() && bootstrap.dns.is_none());
    assert_eq!(bootstrap.stats_flush_interval, Some(Duration::from_secs(5)));
    assert_eq!(bootstrap.header_prefix, "x-envoy");
    assert!(bootstrap.stats.use_all_default_tags);
    assert!(matches!(bootstrap.runtime[..], [ref layer] if matches!(layer.kind, RuntimeLayerKind::Admin)));
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    refused(
        "
static_resources:
  clusters:
  - {name: a, connect_timeout: -1s}
  - {name: b}
  - {name: b}
dynamic_resources:
  lds_config: {ads: {}}
  cds_config: {api_config_source: {api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: c}}]}}
layered_runtime:
  layers: [{name: x, admin_layer: {}}, {name: x, static_layer: {}}, {name: y, admin_layer: {}}, {name: z}]
stats_flush_interval: 300s
flags_path: /tmp
",
        // A refused field of the bootstrap itself ends the reading of the other sections.
        &[
            "static_resources.clusters[0]: cluster \"a\": connect_timeout: -1.000000000s must not be negative",
            "static_resources.clusters[2]: \"b\" is given twice",
            "flags_path: is not supported",
        ],
    );
    refused(
        "
dynamic_resources:
  lds_config: {ads: {}}
  cds_config: {api_config_source: {api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: c}}]}}
layered_runtime:
  layers: [{name: x, admin_layer: {}}, {name: x, static_layer: {}}, {name: y, admin_layer: {}}, {name: z}]
stats_flush_interval: 300s
stats_sinks: [{name: statsd}, {name: s, typed_config: {'@type': type.googleapis.com/envoy.config.metrics.v3.StatsdSink}}]
admin: {address: {socket_address: {address: localhost, port_value: 1}}}
",
        &[
            "dynamic_resources.lds_config.ads: needs dynamic_resources.ads_config",
            "dynamic_resources.cds_config.api_config_source.grpc_services[0].envoy_grpc.cluster_name: \
             \"c\" is not a static cluster",
            "layered_runtime.layers[1].name: \"x\" is given twice",
            "layered_runtime.layers[2].admin_layer: is given twice",
            "layered_runtime.layers[3]: needs one of static_layer, disk_layer, admin_layer, rtds_layer",
            "admin.address.socket_address.address: \"localhost\" is not an IP address",
            "stats_sinks[0].typed_config: is required",
            "stats_flush_interval: 300s is not within 1ms to 300s",
        ],
    );
}

#[test]
fn eviction_goes_with_flushing() {
    let read = |text: &str| parse(text).map(|bootstrap| bootstrap.stats_eviction_interval);
    assert_eq!(read("{}").unwrap(), None);
    assert_eq!(read("stats_eviction_interval: 10s").unwrap(), Some(Duration::from_secs(10)));
    assert_eq!(
        read("{stats_flush_on_admin: true, stats_eviction_interval: 10s}").unwrap(),
        Some(Duration::from_secs(10))
    );
    refused(
        "stats_eviction_interval: 7s",
        &["stats_eviction_interval: 7s is not a multiple of the stats_flush_interval, 5s"],
    );
    refused(
        "{stats_flush_interval: 2s, stats_eviction_interval: 3s}",
        &["stats_eviction_interval: 3s is not a multiple of the stats_flush_interval, 2s"],
    );
    refused("stats_eviction_interval: 0s", &["stats_eviction_interval: 0ns, expected at least 1ms"]);
}

#[test]
fn sections_that_are_refused() {
    let cases = [
        ("tracing: {http: {name: zipkin}}", "tracing.http.typed_config: is required"),
        (
            "bootstrap_extensions: [{name: a, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}]",
            "bootstrap_extensions[0].typed_config: \"google.protobuf.Empty\" is not supported",
        ),
        (
            "bootstrap_extensions: [{name: a, typed_config: {'@type': \
             type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener, buffer_size_kb: 9000}}]",
            "bootstrap_extensions[0].typed_config.buffer_size_kb: 9000 is not within 1 to 8192",
        ),
        ("header_prefix: 'x y'", "header_prefix: \"x y\" cannot begin a header name"),
        (
            "cluster_manager: {local_cluster_name: a}",
            "cluster_manager.local_cluster_name: \"a\" is not a static cluster",
        ),
        ("overload_manager: {actions: [{name: a}]}", "overload_manager.resource_monitors: must not be empty"),
        (
            "admin: {allow_paths: [{}]}",
            "admin.allow_paths[0]: needs one of exact, prefix, suffix, contains, safe_regex",
        ),
        ("stats_config: {stats_tags: [{fixed_value: a}]}", "stats_config.stats_tags[0].tag_name: must not be empty"),
        (
            "stats_config: {stats_matcher: {inclusion_list: {}}}",
            "stats_config.stats_matcher.inclusion_list.patterns: must not be empty",
        ),
        (
            "stats_config: {histogram_bucket_settings: [{match: {prefix: a}, buckets: [1, 1]}]}",
            "stats_config.histogram_bucket_settings[0].buckets[1]: 1 is given twice",
        ),
        (
            "dynamic_resources: {ads_config: {api_type: AGGREGATED_GRPC}}",
            "dynamic_resources.ads_config.api_type: AGGREGATED_GRPC is not supported, expected GRPC or DELTA_GRPC",
        ),
    ];
    for (yaml, expected) in cases {
        refused(yaml, &[expected]);
    }
}

#[test]
fn secrets_come_inline_or_from_files() {
    let read = |yaml: &str| {
        let wire = Schema::load().parse_yaml(yaml, UnknownFields::Reject).unwrap().message;
        Secret::parse(&Context::new(&Files), wire).map_err(|error| error.to_string())
    };
    let secret = read(
        "{name: a, tls_certificate: {certificate_chain: {filename: /certs/tls.pem}, private_key: {inline_string: K}}}",
    );
    let SecretKind::Certificate(certificate) = secret.unwrap().kind else { panic!() };
    assert_eq!((&certificate.chain_pem[..], &certificate.key_pem[..]), (&b"PEM"[..], &b"K"[..]));
    assert_eq!(certificate.files, [Path::new("/certs/tls.pem")]);
    let SecretKind::Validation(validation) =
        read("{name: a, validation_context: {system_root_certs: {}}}").unwrap().kind
    else {
        panic!()
    };
    assert!(validation.system_roots && validation.authenticates());
    assert_eq!(read("{validation_context: {}}").unwrap_err(), "secret \"\": name: must not be empty");
    assert_eq!(
        read("{name: a}").unwrap_err(),
        "secret \"a\": needs one of tls_certificate, validation_context, session_ticket_keys, generic_secret"
    );
}

/// A bootstrap with some bytes changed.
fn damaged_bootstraps() -> impl Strategy<Value = Vec<u8>> {
    let texts = [
        include_str!("bootstraps/istio.yaml"),
        include_str!("bootstraps/consul.yaml"),
        include_str!("bootstraps/kuma.yaml"),
    ];
    let whole = texts.map(|text| {
        let wire: pb::envoy::config::bootstrap::v3::Bootstrap =
            Schema::load().parse_yaml(text, UnknownFields::Reject).unwrap().message;
        prost::Message::encode_to_vec(&wire)
    });
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    (prop::sample::select(whole.to_vec()), changes).prop_map(|(mut bytes, changes)| {
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes
    })
}

/// Bytes that are nearly messages: fields of any number and shape, nested.
fn wire_bytes() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        (1u32..60, any::<u64>()).prop_map(|(field, value)| {
            let mut bytes = Vec::new();
            prost::encoding::uint64::encode(field, &value, &mut bytes);
            bytes
        }),
        (1u32..60, "[a-z@:./]{0,8}").prop_map(|(field, value)| {
            let mut bytes = Vec::new();
            prost::encoding::string::encode(field, &value, &mut bytes);
            bytes
        }),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        (1u32..60, prop::collection::vec(inner, 0..6)).prop_map(|(field, parts)| {
            let mut bytes = Vec::new();
            prost::encoding::bytes::encode(field, &parts.concat(), &mut bytes);
            bytes
        })
    })
    .prop_flat_map(|first| prop::collection::vec(Just(first), 1..3).prop_map(|parts| parts.concat()))
}

proptest! {
    #[test]
    fn no_damage_makes_reading_panic(bytes in damaged_bootstraps()) {
        if let Ok(wire) = prost::Message::decode(&bytes[..]) {
            let _ = Bootstrap::parse(&Context::new(&Files), wire);
        }
    }

    #[test]
    fn no_bytes_make_reading_panic(bytes in prop_oneof![wire_bytes(), prop::collection::vec(any::<u8>(), 0..200)]) {
        let context = Context::new(&Files);
        if let Ok(wire) = prost::Message::decode(&bytes[..]) {
            let _ = Bootstrap::parse(&context, wire);
        }
        if let Ok(wire) = prost::Message::decode(&bytes[..]) {
            let _ = Secret::parse(&context, wire);
        }
        if let Ok(wire) = <pb::envoy::service::runtime::v3::Runtime as prost::Message>::decode(&bytes[..]) {
            let _ = runtime_layer(&context, wire);
        }
    }
}
