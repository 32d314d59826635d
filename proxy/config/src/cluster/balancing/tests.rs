use std::sync::Arc;
use std::time::Duration;

use super::super::tests::{assert_refused, with};
use super::*;
use crate::rejection::Parsed;
use crate::route::HashSource;

fn policy(name: &str, fields: &str) -> Parsed<crate::cluster::Cluster> {
    with(&format!(
        "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: x, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.load_balancing_policies.{name}, {fields}}}}}}}]}}"
    ))
}

const CHILD: &str = "{policies: [{typed_extension_config: {name: x, typed_config: {'@type': \
    type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random}}}]}";

const AT: &str = "load_balancing_policy.policies[0].typed_extension_config.typed_config";

#[test]
fn ring_hash_as_an_enum_and_as_an_extension() {
    let by_enum = with(
        "lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 10, maximum_ring_size: 20, \
         hash_function: MURMUR_HASH_2}, common_lb_config: {consistent_hashing_lb_config: {use_hostname_for_hashing: \
         true, hash_balance_factor: 150}, locality_weighted_lb_config: {}}",
    )
    .unwrap();
    let consistent = Consistent { use_hostname: true, balance_factor: Some(150) };
    let ring =
        LoadBalancing::RingHash { function: HashFunction::MurmurHash2, minimum_size: 10, maximum_size: 20, consistent };
    assert_eq!((by_enum.load_balancing, by_enum.balancing.locality), (ring, LocalityBalancing::Weighted));
    let extension = policy(
        "ring_hash.v3.RingHash",
        "minimum_ring_size: 10, maximum_ring_size: 20, hash_function: MURMUR_HASH_2, locality_weighted_lb_config: {}, \
         consistent_hashing_lb_config: {use_hostname_for_hashing: true, hash_balance_factor: 150, hash_policy: \
         [{header: {header_name: X-User}, terminal: true}]}",
    )
    .unwrap();
    assert_eq!((extension.load_balancing, extension.balancing.locality), (ring, LocalityBalancing::Weighted));
    let [part] = &*extension.balancing.hash_policy else { panic!("{:?}", extension.balancing) };
    assert!(part.terminal && matches!(&part.source, HashSource::Header { name, .. } if &**name == "x-user"));
    let plain = with("lb_policy: RING_HASH").unwrap().load_balancing;
    assert_eq!(policy("ring_hash.v3.RingHash", "").unwrap().load_balancing, plain);
    let LoadBalancing::RingHash { minimum_size, maximum_size, .. } = plain else { panic!("{plain:?}") };
    assert_eq!((minimum_size, maximum_size), (1024, 8_388_608));
}

#[test]
fn sizes_must_make_sense() {
    for (fields, reason) in [
        (
            "lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 30, maximum_ring_size: 20}",
            "ring_hash_lb_config.minimum_ring_size: 30 is more than the maximum_ring_size of 20",
        ),
        (
            "lb_policy: RING_HASH, ring_hash_lb_config: {maximum_ring_size: 8388609}",
            "ring_hash_lb_config.maximum_ring_size: 8388609 is not within 1 to 8388608",
        ),
        (
            "lb_policy: MAGLEV, maglev_lb_config: {table_size: 65536}",
            "maglev_lb_config.table_size: 65536 is not a prime number",
        ),
        (
            "common_lb_config: {consistent_hashing_lb_config: {hash_balance_factor: 99}}",
            "common_lb_config.consistent_hashing_lb_config.hash_balance_factor: 99 is not within 100 to 4294967295",
        ),
    ] {
        assert_refused(with(fields), reason);
    }
    let table = with("lb_policy: MAGLEV, maglev_lb_config: {table_size: 251}").unwrap().load_balancing;
    assert_eq!(table, LoadBalancing::Maglev { table_size: 251, consistent: Consistent::default() });
}

#[test]
fn what_extensions_replace_must_not_be_set_beside_them() {
    let list = format!("load_balancing_policy: {CHILD}");
    for beside in [
        "common_lb_config: {locality_weighted_lb_config: {}}",
        "common_lb_config: {zone_aware_lb_config: {}}",
        "common_lb_config: {consistent_hashing_lb_config: {use_hostname_for_hashing: true}}",
    ] {
        assert_refused(
            with(&format!("{list}, {beside}")),
            "load_balancing_policy: must not be set together with zone_aware_lb_config, locality_weighted_lb_config \
             or consistent_hashing_lb_config of common_lb_config",
        );
    }
    assert_refused(
        with(&format!("{list}, lb_subset_config: {{}}")),
        "load_balancing_policy: must not be set together with lb_subset_config",
    );
}

#[test]
fn slow_start_needs_a_window() {
    let config = "slow_start_config: {slow_start_window: 30s, aggression: {default_value: 2, runtime_key: a}, \
                  min_weight_percent: {value: 5}}";
    let wanted = SlowStart { window: Duration::from_secs(30), aggression: 2.0, min_weight: Percent::new(5.0).unwrap() };
    let by_enum = with(&format!("round_robin_lb_config: {{{config}}}")).unwrap().balancing.slow_start;
    let least = with(&format!("lb_policy: LEAST_REQUEST, least_request_lb_config: {{{config}}}")).unwrap();
    let extension = policy("round_robin.v3.RoundRobin", config).unwrap().balancing.slow_start;
    assert_eq!((by_enum, least.balancing.slow_start, extension), (Some(wanted), Some(wanted), Some(wanted)));
    let without = with("round_robin_lb_config: {slow_start_config: {min_weight_percent: {value: 5}}}").unwrap();
    assert_eq!(without.balancing.slow_start, None);
}

#[test]
fn zones_in_their_old_and_new_forms() {
    let zone = |cluster: crate::cluster::Cluster| match cluster.balancing.locality {
        LocalityBalancing::ZoneAware(zone) => zone,
        other => panic!("{other:?}"),
    };
    let old = zone(with("common_lb_config: {zone_aware_lb_config: {fail_traffic_on_panic: true}}").unwrap());
    assert_eq!((old.min_cluster_size, old.routing_enabled.value(), old.force_local_zone), (6, 100.0, None));
    assert!(old.fail_traffic_on_panic);
    let new = zone(
        policy(
            "least_request.v3.LeastRequest",
            "locality_lb_config: {zone_aware_lb_config: {min_cluster_size: 2, routing_enabled: {value: 50}, \
             force_local_zone: {min_size: 3}, locality_basis: HEALTHY_HOSTS_WEIGHT}}",
        )
        .unwrap(),
    );
    assert_eq!((new.min_cluster_size, new.routing_enabled.value()), (2, 50.0));
    assert_eq!((new.force_local_zone, new.by_weight), (Some(3), true));
}

#[test]
fn a_full_scan_looks_at_all() {
    let choice = |fields: &str| policy("least_request.v3.LeastRequest", fields).unwrap().load_balancing;
    let all = LoadBalancing::LeastRequest { choice_count: u32::MAX, active_request_bias: 1.0 };
    assert_eq!((choice("selection_method: FULL_SCAN"), choice("enable_full_scan: true")), (all, all));
}

#[test]
fn subsets_as_a_field_and_as_an_extension() {
    let selectors = "subset_selectors: [{keys: [version, stage, version], fallback_policy: KEYS_SUBSET, \
        fallback_keys_subset: [stage]}, {keys: [stage, version]}, {keys: [id], single_host_per_subset: true, \
        fallback_policy: ANY_ENDPOINT}], default_subset: {stage: prod}, list_as_any: true, panic_mode_any: true, \
        metadata_fallback_policy: FALLBACK_LIST, locality_weight_aware: true, scale_locality_weight: true, \
        fallback_policy: DEFAULT_SUBSET";
    let old = with(&format!("lb_subset_config: {{{selectors}}}")).unwrap().balancing.subsets.unwrap();
    let keys: Vec<Arc<str>> = vec!["stage".into(), "version".into()];
    let single = SubsetSelector {
        keys: vec!["id".into()],
        single_host: true,
        fallback: Some(SelectorFallback::Of(Fallback::Any)),
    };
    let first =
        SubsetSelector { keys, single_host: false, fallback: Some(SelectorFallback::Keys(vec!["stage".into()])) };
    assert_eq!(old.selectors, [first, single]);
    assert_eq!((old.fallback, old.default_subset.len()), (Fallback::Default, 1));
    let new = policy("subset.v3.Subset", &format!("{selectors}, subset_lb_policy: {CHILD}")).unwrap();
    assert_eq!((new.balancing.subsets.unwrap(), new.load_balancing), (old, LoadBalancing::Random));
    assert_eq!(with("lb_subset_config: {}").unwrap().balancing.subsets, None);
}

#[test]
fn policies_in_policies_are_refused_where_they_make_no_sense() {
    let outer = |name: &str, field: &str, inner: &str| {
        let inner = format!(
            "{{policies: [{{typed_extension_config: {{name: x, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.load_balancing_policies.{inner}}}}}}}]}}"
        );
        policy(name, &format!("{field}: {inner}"))
    };
    let locality = outer("wrr_locality.v3.WrrLocality", "endpoint_picking_policy", "round_robin.v3.RoundRobin");
    assert_eq!(locality.unwrap().balancing.locality, LocalityBalancing::Weighted);
    let provided = "cluster_provided.v3.ClusterProvided";
    assert_refused(
        outer("subset.v3.Subset", "subset_lb_policy", provided),
        &format!("{AT}.subset_lb_policy: must be a policy that chooses among all endpoints it is given"),
    );
    assert_refused(policy("subset.v3.Subset", ""), &format!("{AT}.subset_lb_policy: is required"));
    for (selector, reason) in [
        ("{}", "keys: must not be empty"),
        ("{keys: [a, b], single_host_per_subset: true}", "keys: must be one key with single_host_per_subset"),
        ("{keys: [a], fallback_policy: KEYS_SUBSET}", "fallback_keys_subset: must not be empty with KEYS_SUBSET"),
        (
            "{keys: [a], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [a]}",
            "fallback_keys_subset: must be some of the selector's keys, but not all",
        ),
    ] {
        let refused = with(&format!("lb_subset_config: {{subset_selectors: [{selector}]}}"));
        assert_refused(refused, &format!("lb_subset_config.subset_selectors[0].{reason}"));
    }
}

#[test]
fn the_policy_by_latency_is_read_as_a_message_and_as_a_typed_struct() {
    let own = |fields: &str| {
        with(&format!(
            "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: x, typed_config: {fields}}}}}]}}"
        ))
    };
    let default = PeakEwma {
        choice_count: 2,
        decay: Duration::from_secs(10),
        default_rtt: Duration::from_millis(30),
        failure_penalty: Duration::from_secs(1),
    };
    const TYPE: &str = "'@type': type.googleapis.com/outrigger.lb.v1.PeakEwma";
    assert_eq!(own(&format!("{{{TYPE}}}")).unwrap().load_balancing, LoadBalancing::PeakEwma(default));
    let full = "decay_time: 5s, default_rtt: 0.010s, choice_count: 4, failure_penalty: 0s, slow_start_config: \
                {slow_start_window: 60s}, locality_lb_config: {locality_weighted_lb_config: {}}";
    let typed_struct = "'@type': type.googleapis.com/xds.type.v3.TypedStruct, type_url: \
                        type.googleapis.com/outrigger.lb.v1.PeakEwma";
    for fields in [format!("{{{TYPE}, {full}}}"), format!("{{{typed_struct}, value: {{{full}}}}}")] {
        let cluster = own(&fields).unwrap();
        let expected = PeakEwma {
            choice_count: 4,
            decay: Duration::from_secs(5),
            default_rtt: Duration::from_millis(10),
            failure_penalty: Duration::ZERO,
        };
        assert_eq!(cluster.load_balancing, LoadBalancing::PeakEwma(expected));
        assert_eq!(cluster.balancing.slow_start.unwrap().window, Duration::from_secs(60));
        assert_eq!(cluster.balancing.locality, LocalityBalancing::Weighted);
    }
    for (field, reason) in [
        ("decay_time: 0s", "decay_time: 0s must be above zero"),
        ("default_rtt: 0s", "default_rtt: 0s must be above zero"),
        ("choice_count: 1", "choice_count: 1 is not within 2 to 4294967295"),
    ] {
        assert_refused(own(&format!("{{{TYPE}, {field}}}")), &format!("{AT}.{reason}"));
    }
}

#[test]
fn weights_that_endpoints_report() {
    const NAME: &str = "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin";
    let plain = policy(NAME, "").unwrap();
    assert_eq!(plain.load_balancing, LoadBalancing::Reported);
    let default = ReportOptions {
        blackout_period: Duration::from_secs(10),
        weight_expiration_period: Duration::from_secs(180),
        weight_update_period: Duration::from_secs(1),
        error_utilization_penalty: 1.0,
        metrics: Vec::new(),
        out_of_band: None,
    };
    assert_eq!(*plain.balancing.reports.unwrap(), default);
    let full = policy(
        NAME,
        "enable_oob_load_report: false, blackout_period: 0s, weight_expiration_period: 9s, weight_update_period: \
         0.001s, error_utilization_penalty: 0.5, metric_names_for_computing_utilization: [mem_utilization, \
         named_metrics.a.b], slow_start_config: {slow_start_window: 1s}",
    )
    .unwrap();
    let expected = ReportOptions {
        blackout_period: Duration::ZERO,
        weight_expiration_period: Duration::from_secs(9),
        weight_update_period: Duration::from_millis(100),
        error_utilization_penalty: 0.5,
        metrics: vec![
            ReportedMetric::Field("mem_utilization".into()),
            ReportedMetric::Entry("named_metrics".into(), "a.b".into()),
        ],
        out_of_band: None,
    };
    assert_eq!(*full.balancing.reports.unwrap(), expected);
    assert!(full.balancing.slow_start.is_some());
    let asked = |fields: &str| {
        let policy = policy(NAME, &format!("enable_oob_load_report: true{fields}")).unwrap();
        *policy.balancing.reports.unwrap().out_of_band.clone().unwrap()
    };
    let usual = OutOfBand { period: Duration::from_secs(10), port: None, authority: None, transport_criteria: None };
    assert_eq!((asked(""), asked(", oob_reporting_period: 0s")), (usual.clone(), usual));
    let full = asked(
        ", oob_reporting_period: 3s, oob_reporting_config: {port_value: 9001, authority: orca.example.com, \
         transport_socket_match_criteria: {a: b}}",
    );
    assert_eq!(
        (full.period, full.port, full.authority.as_deref()),
        (Duration::from_secs(3), Some(9001), Some("orca.example.com"))
    );
    assert!(full.transport_criteria.is_some());
    let wrong = policy(NAME, "oob_reporting_config: {port_value: 70000}");
    assert_refused(wrong, &format!("{AT}.oob_reporting_config.port_value: 70000 must be at most 65535"));
    let refused = policy(NAME, "error_utilization_penalty: -1");
    assert_refused(refused, &format!("{AT}.error_utilization_penalty: -1 must be 0 or more"));
}

#[test]
fn policies_for_the_first_for_a_subset_and_for_named_endpoints() {
    let first = policy("pick_first.v3.PickFirst", "shuffle_address_list: true").unwrap();
    assert_eq!(first.load_balancing, LoadBalancing::PickFirst { shuffle: true });
    let subset =
        policy("random_subsetting.v3.RandomSubsetting", &format!("subset_size: 5, child_policy: {CHILD}")).unwrap();
    assert_eq!((subset.load_balancing, subset.balancing.subset_size), (LoadBalancing::Random, Some(5)));
    const NAMED: &str = "override_host.v3.OverrideHost";
    let sources = "override_host_sources: [{header: X-Gateway-Destination}, {metadata: {key: envoy.lb, path: [{key: \
                   a}, {key: b}]}}]";
    let named = policy(NAMED, &format!("{sources}, fallback_policy: {CHILD}")).unwrap();
    assert_eq!(named.load_balancing, LoadBalancing::Random);
    let path = MetadataPath { namespace: "envoy.lb".into(), keys: vec!["a".into(), "b".into()] };
    let expected = OverrideHosts {
        sources: vec![OverrideSource::Header("x-gateway-destination".into()), OverrideSource::Metadata(path.clone())],
        selected: None,
    };
    assert_eq!(*named.balancing.override_hosts.unwrap(), expected);
    let told = policy(
        NAMED,
        &format!(
            "{sources}, fallback_policy: {CHILD}, selected_host_key: {{key: envoy.lb, path: [{{key: a}}, {{key: b}}]}}"
        ),
    );
    assert_eq!(told.unwrap().balancing.override_hosts.unwrap().selected, Some(path));
    for (name, fields, reason) in [
        (
            "random_subsetting.v3.RandomSubsetting",
            format!("child_policy: {CHILD}"),
            "subset_size: is required".to_owned(),
        ),
        (
            "random_subsetting.v3.RandomSubsetting",
            format!("subset_size: 0, child_policy: {CHILD}"),
            "subset_size: 0 is not within 1 to 4294967295".to_owned(),
        ),
        (NAMED, format!("fallback_policy: {CHILD}"), "override_host_sources: must not be empty".to_owned()),
        (NAMED, sources.to_owned(), "fallback_policy: is required".to_owned()),
        (
            NAMED,
            format!("override_host_sources: [{{}}], fallback_policy: {CHILD}"),
            "override_host_sources[0]: needs one of header, metadata".to_owned(),
        ),
        (
            NAMED,
            format!(
                "override_host_sources: [{{metadata: {{key: a, path: [{{index: 1}}]}}}}], fallback_policy: {CHILD}"
            ),
            "override_host_sources[0].metadata.path[0].index: is not supported".to_owned(),
        ),
    ] {
        assert_refused(policy(name, &fields), &format!("{AT}.{reason}"));
    }
}

#[test]
fn endpoints_may_be_named_in_the_statuses_that_the_cluster_says() {
    use crate::cluster::HealthStatus::{Degraded, Draining, Healthy, Unhealthy, Unknown};
    let status = |fields: &str| with(fields).unwrap().balancing.override_status;
    let default = status("common_lb_config: {}");
    assert!(default.takes(Unknown) && default.takes(Healthy) && default.takes(Degraded));
    assert!(!default.takes(Unhealthy) && !default.takes(Draining));
    let draining = status("common_lb_config: {override_host_status: {statuses: [DRAINING, HEALTHY]}}");
    assert!(draining.takes(Draining) && draining.takes(Healthy) && !draining.takes(Unknown));
    assert!(!status("common_lb_config: {override_host_status: {}}").takes(Healthy));
}
