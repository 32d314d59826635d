use std::time::Duration;

use outrigger_api::{Schema, UnknownFields};

use super::*;
use crate::bootstrap::Bootstrap;
use crate::context::NoEnvironment;

const MONITORS: &str = r#"
  resource_monitors:
  - name: heap
    typed_config: {"@type": type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 1000}
  - name: file
    typed_config: {"@type": type.googleapis.com/envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig, filename: /x}
"#;

fn bootstrap(overload: &str) -> Result<Option<OverloadManager>, String> {
    let yaml = format!("overload_manager:\n{overload}");
    let wire = Schema::load().parse_yaml(&yaml, UnknownFields::Reject).unwrap().message;
    Bootstrap::parse(&Context::new(&NoEnvironment), wire)
        .map(|bootstrap| bootstrap.overload)
        .map_err(|rejections| rejections.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

fn parse(more: &str) -> OverloadManager {
    bootstrap(&format!("{MONITORS}{more}")).unwrap_or_else(|error| panic!("{more}: {error}")).unwrap()
}

fn refused(more: &str, expected: &str) {
    let error = bootstrap(&format!("{MONITORS}{more}")).expect_err(more);
    assert_eq!(error, format!("bootstrap \"\": overload_manager.{expected}"), "{more}");
}

#[test]
fn an_empty_manager_is_one_that_does_nothing() {
    let nothing = bootstrap("  {}").unwrap().unwrap();
    assert!(nothing.is_empty() && !nothing.acts());
    let watching = parse("");
    assert!(!watching.is_empty() && !watching.acts());
    assert_eq!((watching.refresh_interval, watching.max_downstream_connections()), (Duration::from_secs(1), None));
}

#[test]
fn monitors_actions_and_points_are_read() {
    let manager = parse(
        r#"
  - name: envoy.resource_monitors.global_downstream_max_connections
    typed_config: {"@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig, max_active_downstream_connections: 7}
  - name: cpu
    typed_config: {"@type": type.googleapis.com/envoy.extensions.resource_monitors.cpu_utilization.v3.CpuUtilizationConfig, mode: CONTAINER}
  - name: cgroup
    typed_config: {"@type": type.googleapis.com/envoy.extensions.resource_monitors.cgroup_memory.v3.CgroupMemoryConfig, max_memory_bytes: 5}
  - name: changing
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig
      max_heap_size_bytes_runtime: {default_value: 9, runtime_key: heap}
  refresh_interval: 0.25s
  actions:
  - {name: envoy.overload_actions.stop_accepting_requests, triggers: [{name: file, threshold: {value: 0.5}}, {name: heap, scaled: {scaling_threshold: 0.25, saturation_threshold: 1}}]}
  - {name: envoy.overload_actions.close_idle_http_connections, triggers: [{name: cpu, threshold: {value: 1}}]}
  - name: my.timers
    triggers: [{name: heap, threshold: {}}]
    typed_config:
      "@type": type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig
      timer_scale_factors: [{timer: HTTP_DOWNSTREAM_CONNECTION_IDLE, min_timeout: 2s}, {timer: HTTP_DOWNSTREAM_STREAM_IDLE, min_scale: {value: 10}}]
  - {name: envoy.overload_actions.shrink_heap, triggers: [{name: heap, threshold: {value: 1}}], typed_config: {"@type": type.googleapis.com/envoy.config.overload.v3.ShrinkHeapConfig, timer_interval: 3s, max_unfreed_memory_bytes: 1}}
  loadshed_points:
  - {name: envoy.load_shed_points.tcp_listener_accept, triggers: [{name: file, threshold: {value: 0.5}}]}
"#,
    );
    assert_eq!(manager.refresh_interval, Duration::from_millis(250));
    assert_eq!(manager.max_downstream_connections(), Some(7));
    let kinds: Vec<_> = manager.monitors[3..].iter().map(|monitor| monitor.kind.clone()).collect();
    let changing = HeapLimit { bytes: 9, runtime_key: "heap".into() };
    assert_eq!(
        kinds,
        [
            MonitorKind::CpuUtilization(CpuScope::Container),
            MonitorKind::CgroupMemory { max: Some(5) },
            MonitorKind::FixedHeap(changing)
        ]
    );
    let triggers = [
        Trigger { monitor: 1, kind: TriggerKind::Threshold(0.5) },
        Trigger { monitor: 0, kind: TriggerKind::Scaled { from: 0.25, to: 1.0 } },
    ];
    assert_eq!(manager.actions[0].triggers, triggers);
    let OverloadActionKind::ReduceTimeouts(timers) = &manager.actions[2].kind else { panic!() };
    assert_eq!(timers[0].minimum, TimerMinimum::Absolute(Duration::from_secs(2)));
    assert_eq!(manager.actions[3].kind, OverloadActionKind::ShrinkHeap { interval: Duration::from_secs(3) });
    assert_eq!(manager.load_shed_points[0].point, ShedPoint::TcpListenerAccept);
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let action = |name: &str, more: &str| {
        format!("  actions: [{{name: {name}, triggers: [{{name: heap, threshold: {{value: 1}}}}]{more}}}]")
    };
    let stop = "envoy.overload_actions.stop_accepting_requests";
    refused(&action("foo", ""), "actions[0].name: \"foo\" is not an overload action");
    refused(
        &action("envoy.overload_actions.reset_high_memory_stream", ""),
        "actions[0].name: \"envoy.overload_actions.reset_high_memory_stream\" requires \
         overload_manager.buffer_factory_config",
    );
    refused(
        "  buffer_factory_config: {minimum_account_to_track_power_of_two: 9}",
        "buffer_factory_config.minimum_account_to_track_power_of_two: 9 is not within 10 to 56",
    );
    refused(&action("envoy.overload_actions.reduce_timeouts", ""), "actions[0].typed_config: is required");
    let shrink = r#", typed_config: {"@type": type.googleapis.com/envoy.config.overload.v3.ShrinkHeapConfig}"#;
    refused(&action(stop, shrink), &format!("actions[0].typed_config: {stop:?} takes none"));
    let triggers = |triggers: &str| format!("  actions: [{{name: {stop}, triggers: {triggers}}}]");
    refused(&triggers("[]"), "actions[0].triggers: must not be empty");
    refused(
        &triggers("[{name: other, threshold: {}}]"),
        "actions[0].triggers[0].name: \"other\" is not one of the resource_monitors",
    );
    refused(
        &triggers("[{name: heap, threshold: {}}, {name: heap, threshold: {}}]"),
        "actions[0].triggers[1].name: \"heap\" is given twice",
    );
    refused(
        &triggers("[{name: heap, threshold: {value: 1.5}}]"),
        "actions[0].triggers[0].threshold.value: 1.5 is not within 0 to 1",
    );
    refused(
        &triggers("[{name: heap, scaled: {scaling_threshold: 0.5, saturation_threshold: 0.5}}]"),
        "actions[0].triggers[0].scaled.scaling_threshold: 0.5 must be less than saturation_threshold, which is 0.5",
    );
    refused(
        "  loadshed_points: [{name: mine, triggers: [{name: heap, threshold: {}}]}]",
        "loadshed_points[0].name: \"mine\" is not a load-shed point",
    );
    refused("  refresh_interval: 0s", "refresh_interval: 0ns must be at least 1ms");
    refused(
        r#"  - {name: conns, typed_config: {"@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig, max_active_downstream_connections: 7}}"#,
        "resource_monitors[2].name: \"conns\" and \
         envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig do not belong together",
    );
}
