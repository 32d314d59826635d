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
