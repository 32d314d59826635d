//! What is watched (`envoy.config.overload.v3.ResourceMonitor` and the extensions in it).
//!
//! Owns which monitors exist and their limits. Never measures anything.

use std::path::PathBuf;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::overload::v3 as overload;
use outrigger_api::pb::envoy::extensions::resource_monitors::cgroup_memory::v3 as cgroup_memory;
use outrigger_api::pb::envoy::extensions::resource_monitors::cpu_utilization::v3 as cpu_utilization;
use outrigger_api::pb::envoy::extensions::resource_monitors::downstream_connections::v3 as downstream_connections;
use outrigger_api::pb::envoy::extensions::resource_monitors::fixed_heap::v3 as fixed_heap;
use outrigger_api::pb::envoy::extensions::resource_monitors::injected_resource::v3 as injected_resource;
use outrigger_api::pb::google::protobuf::Any;

use super::name;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// The only name that the monitor of connections may have.
pub const CONNECTIONS: &str = "envoy.resource_monitors.global_downstream_max_connections";

/// One resource.
#[derive(Clone, Debug, PartialEq)]
pub struct ResourceMonitor {
    /// What triggers and stats call it.
    pub name: Arc<str>,
    /// How its pressure is found.
    pub kind: MonitorKind,
}

/// How the pressure of a resource is found, as a share of its limit.
#[derive(Clone, Debug, PartialEq)]
pub enum MonitorKind {
    /// Memory of the process.
    FixedHeap(HeapLimit),
    /// Memory of the control group.
    CgroupMemory {
        /// Bytes; a limit below that of the group.
        max: Option<u64>,
    },
    /// CPU time.
    CpuUtilization(CpuScope),
    /// Downstream connections of the process, of which there may be no more.
    DownstreamConnections {
        /// Above zero.
        max: u64,
    },
    /// A file that holds the pressure.
    Injected {
        /// Its path.
        path: PathBuf,
    },
}

/// Bytes, above zero; a runtime key may override it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HeapLimit {
    /// Used unless the runtime has a value.
    pub bytes: u64,
    /// Empty when no key was given.
    pub runtime_key: String,
}

/// Whose CPU time counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CpuScope {
    /// That of the machine.
    Host,
    /// That of the control group.
    Container,
}

impl ResourceMonitor {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: overload::ResourceMonitor) -> Parsed<Self> {
        let overload::ResourceMonitor { name, config_type } = wire;
        let name = self::name(at, name)?;
        let config = at.field("typed_config");
        let Some(overload::resource_monitor::ConfigType::TypedConfig(any)) = config_type else {
            return Err(config.reject("is required"));
        };
        let any = wire::extension(context, &config, any)?;
        let kind = kind(&config, &any)?;
        // Elsewhere this limit holds at once, and not by being measured: so there is one of them, and it has one name.
        if matches!(kind, MonitorKind::DownstreamConnections { .. }) != (*name == *CONNECTIONS) {
            let reason = format!("{name:?} and {} do not belong together", wire::type_name(&any));
            return Err(at.field("name").reject(reason));
        }
        Ok(Self { name, kind })
    }
}

fn kind(at: &FieldPath<'_>, any: &Any) -> Parsed<MonitorKind> {
    match wire::type_name(any) {
        "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig" => {
            heap(at, wire::decode(at, any)?).map(MonitorKind::FixedHeap)
        }
        "envoy.extensions.resource_monitors.cgroup_memory.v3.CgroupMemoryConfig" => {
            let wire: cgroup_memory::CgroupMemoryConfig = wire::decode(at, any)?;
            decide!(wire, at, cgroup_memory::CgroupMemoryConfig as "envoy.extensions.resource_monitors.cgroup_memory.v3.CgroupMemoryConfig" {
                implemented: max_memory_bytes;
                no_effect: ;
                unsupported: ;
            });
            Ok(MonitorKind::CgroupMemory { max: Some(max_memory_bytes).filter(|max| *max > 0) })
        }
        "envoy.extensions.resource_monitors.cpu_utilization.v3.CpuUtilizationConfig" => {
            cpu(at, wire::decode(at, any)?).map(MonitorKind::CpuUtilization)
        }
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig" => {
            let wire: downstream_connections::DownstreamConnectionsConfig = wire::decode(at, any)?;
            decide!(wire, at, downstream_connections::DownstreamConnectionsConfig as "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig" {
                implemented: max_active_downstream_connections;
                no_effect: ;
                unsupported: ;
            });
            let limit = max_active_downstream_connections;
            match u64::try_from(limit) {
                Ok(max) if max > 0 => Ok(MonitorKind::DownstreamConnections { max }),
                _ => Err(at.field("max_active_downstream_connections").reject(format!("{limit} must be above zero"))),
            }
        }
        "envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig" => {
            let wire: injected_resource::InjectedResourceConfig = wire::decode(at, any)?;
            decide!(wire, at, injected_resource::InjectedResourceConfig as "envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig" {
                implemented: filename;
                no_effect: ;
                unsupported: ;
            });
            if filename.is_empty() {
                return Err(at.field("filename").reject("must not be empty"));
            }
            Ok(MonitorKind::Injected { path: filename.into() })
        }
        other => Err(at.reject(format!("{other:?} is not supported"))),
    }
}

fn heap(at: &FieldPath<'_>, wire: fixed_heap::FixedHeapConfig) -> Parsed<HeapLimit> {
    decide!(wire, at, fixed_heap::FixedHeapConfig as "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig" {
        implemented: max_heap_size_bytes, max_heap_size_bytes_runtime;
        no_effect: ;
        unsupported: ;
    });
    let limit = match (max_heap_size_bytes, max_heap_size_bytes_runtime) {
        (0, None) => return Err(at.field("max_heap_size_bytes").reject("0 must be above zero")),
        (bytes, None) => HeapLimit { bytes, runtime_key: String::new() },
        (0, Some(core::RuntimeUInt64 { default_value, runtime_key })) => {
            HeapLimit { bytes: default_value, runtime_key }
        }
        (_, Some(_)) => {
            let reason = "cannot be given together with max_heap_size_bytes";
            return Err(at.field("max_heap_size_bytes_runtime").reject(reason));
        }
    };
    if limit.bytes == 0 {
        return Err(at.field("max_heap_size_bytes_runtime").field("default_value").reject("0 must be above zero"));
    }
    Ok(limit)
}

fn cpu(at: &FieldPath<'_>, wire: cpu_utilization::CpuUtilizationConfig) -> Parsed<CpuScope> {
    decide!(wire, at, cpu_utilization::CpuUtilizationConfig as "envoy.extensions.resource_monitors.cpu_utilization.v3.CpuUtilizationConfig" {
        implemented: mode;
        no_effect: ;
        unsupported: ;
    });
    use cpu_utilization::cpu_utilization_config::UtilizationComputeStrategy as Mode;
    match Mode::try_from(mode) {
        Ok(Mode::Host) => Ok(CpuScope::Host),
        Ok(Mode::Container) => Ok(CpuScope::Container),
        Err(_) => Err(wire::unknown_enum(&at.field("mode"), mode)),
    }
}
