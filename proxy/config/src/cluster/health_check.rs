//! Active health checks (`envoy.config.core.v3.HealthCheck`): when, how often, and what follows.
//!
//! Owns the checked settings but for what is sent and expected (see `health_check_probe`). Never checks anybody.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::endpoint::v3::endpoint;
use outrigger_api::pb::envoy::extensions::health_check::event_sinks::file::v3 as file;
use outrigger_api::pb::google::protobuf::{Duration as WireDuration, UInt32Value};

use super::LbMetadata;
use super::health_check_probe::{Probe, probe};
use crate::address::Address;
use crate::address_parse;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// One way in which the endpoints of a cluster are checked.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    /// Stands in the names of its stats unless empty; unique within the cluster.
    pub name: Arc<str>,
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// Time between checks, and what varies it.
    pub intervals: CheckIntervals,
    /// Failures in a row until a healthy endpoint counts as unhealthy; some failures count at once.
    pub unhealthy_threshold: u32,
    /// Successes in a row until an unhealthy endpoint counts as healthy; the first check of all counts at once.
    pub healthy_threshold: u32,
    /// One connection serves many checks; true unless given.
    pub reuse_connection: bool,
    /// Checks go to this port unless the endpoint names another.
    pub alt_port: Option<u16>,
    /// Chooses the transport of checks, instead of what an endpoint says of itself.
    pub transport_criteria: Option<LbMetadata>,
    /// What is offered by ALPN; what the cluster offers if empty.
    pub alpn: Vec<String>,
    /// What is sent and expected.
    pub probe: Probe,
    /// Events are written to these files.
    pub event_logs: Vec<PathBuf>,
    /// All failures are logged, not only those that change something.
    pub always_log_failures: bool,
    /// All successes are logged, not only those that change something.
    pub always_log_success: bool,
}

/// Time between the checks of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CheckIntervals {
    /// While healthy.
    pub healthy: Duration,
    /// After a success that does not yet make it healthy.
    pub healthy_edge: Duration,
    /// While unhealthy; as `healthy` unless given.
    pub unhealthy: Duration,
    /// After a failure that does not yet make it unhealthy; as `unhealthy` unless given.
    pub unhealthy_edge: Duration,
    /// As long as the cluster was never used; 60 s unless given.
    pub no_traffic: Duration,
    /// The same, while healthy; as `no_traffic` unless given.
    pub no_traffic_healthy: Duration,
    /// The first check comes at random within this.
    pub initial_jitter: Duration,
    /// Added at random to each interval, up to this.
    pub jitter: Duration,
    /// Added at random to each interval, up to this share of it in percent.
    pub jitter_percent: u32,
}

/// What an endpoint says about its checks. Source: `Endpoint.HealthCheckConfig`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointCheck {
    /// Checked instead of the endpoint's address.
    pub address: Option<Address>,
    /// Checked instead of that address's port.
    pub port: Option<u16>,
    /// The host header of its checks, instead of the cluster's.
    pub hostname: Option<Arc<str>>,
    /// It is not checked, and counts as healthy.
    pub disabled: bool,
}

/// Reads what an endpoint says about its checks; `None` if that is nothing.
pub(super) fn endpoint_check(
    at: &FieldPath<'_>,
    wire: Option<endpoint::HealthCheckConfig>,
) -> Parsed<Option<EndpointCheck>> {
    let wire = wire.unwrap_or_default();
    decide!(wire, at, endpoint::HealthCheckConfig as "envoy.config.endpoint.v3.Endpoint.HealthCheckConfig" {
        implemented: port_value, hostname, address, disable_active_health_check;
        no_effect: ;
        unsupported: ;
    });
    let port_at = at.field("port_value");
    let port =
        u16::try_from(port_value).map_err(|_| port_at.reject(format!("{port_value} is not within 0 to 65535")))?;
    wire::header_value(&at.field("hostname"), &hostname)?;
    let check = EndpointCheck {
        address: match address {
            None => None,
            Some(wire) => Some(address_parse::address(&at.field("address"), wire)?),
        },
        port: (port > 0).then_some(port),
        hostname: (!hostname.is_empty()).then(|| hostname.into()),
        disabled: disable_active_health_check,
    };
    Ok((check != EndpointCheck::default()).then_some(check))
}

/// Reads the active checks of a cluster. Several of them must have names, and names are unique, as Envoy has it.
pub(super) fn health_checks(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    cluster: &str,
    wire: Vec<core::HealthCheck>,
) -> Parsed<Box<[HealthCheck]>> {
    let newer = context.newer().health_checks(cluster);
    let several = wire.len() > 1;
    let mut checks: Vec<HealthCheck> = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        let at = at.item(index);
        let name = newer.get(index).map_or("", |newer| &*newer.name);
        if several && name.is_empty() {
            return Err(at.field("name").reject("is required where there are several health checks"));
        }
        if several && checks.iter().any(|other| *other.name == *name) {
            return Err(at.field("name").reject(format!("{name:?} is the name of another health check too")));
        }
        checks.push(health_check(context, &at, name, wire)?);
    }
    Ok(checks.into())
}

fn health_check(context: &Context<'_>, at: &FieldPath<'_>, name: &str, wire: core::HealthCheck) -> Parsed<HealthCheck> {
    decide!(wire, at, core::HealthCheck as "envoy.config.core.v3.HealthCheck" {
        implemented: timeout, interval, initial_jitter, interval_jitter, interval_jitter_percent, unhealthy_threshold,
            healthy_threshold, alt_port, reuse_connection, no_traffic_interval, no_traffic_healthy_interval,
            unhealthy_interval, unhealthy_edge_interval, healthy_edge_interval, event_log_path, event_logger,
            always_log_health_check_failures, always_log_health_check_success, tls_options, health_checker,
            transport_socket_match_criteria;
        no_effect: ;
        unsupported: event_service;
    });
    let required = |field, value: Option<WireDuration>| match value {
        None => Err(at.field(field).reject("is required")),
        Some(wire) => wire::positive_duration(&at.field(field), wire),
    };
    let threshold = |field, value: Option<UInt32Value>| match value {
        None => Err(at.field(field).reject("is required")),
        Some(value) => Ok(value.value),
    };
    let optional = |field, value: Option<WireDuration>, default| match value {
        None => Ok(default),
        Some(wire) => wire::positive_duration(&at.field(field), wire),
    };
    let jitter = |field, value: Option<WireDuration>| match value {
        None => Ok(Duration::ZERO),
        Some(wire) => wire::duration(&at.field(field), wire),
    };
    let healthy = required("interval", interval)?;
    let unhealthy = optional("unhealthy_interval", unhealthy_interval, healthy)?;
    let no_traffic = optional("no_traffic_interval", no_traffic_interval, DEFAULT_NO_TRAFFIC)?;
    let alpn = match tls_options {
        None => Vec::new(),
        Some(core::health_check::TlsOptions { alpn_protocols }) => alpn_protocols,
    };
    if let Some(name) = alpn.iter().find(|name| !(1..=255).contains(&name.len())) {
        let at = at.field("tls_options");
        return Err(at.field("alpn_protocols").reject(format!("{name:?} must have 1 to 255 bytes")));
    }
    let port = wire::number_within(&at.field("alt_port"), alt_port, 0..=65_535)?;
    Ok(HealthCheck {
        name: name.into(),
        timeout: required("timeout", timeout)?,
        intervals: CheckIntervals {
            healthy,
            healthy_edge: optional("healthy_edge_interval", healthy_edge_interval, healthy)?,
            unhealthy,
            unhealthy_edge: optional("unhealthy_edge_interval", unhealthy_edge_interval, unhealthy)?,
            no_traffic,
            no_traffic_healthy: optional("no_traffic_healthy_interval", no_traffic_healthy_interval, no_traffic)?,
            initial_jitter: jitter("initial_jitter", initial_jitter)?,
            jitter: jitter("interval_jitter", interval_jitter)?,
            jitter_percent: interval_jitter_percent,
        },
        unhealthy_threshold: threshold("unhealthy_threshold", unhealthy_threshold)?,
        healthy_threshold: threshold("healthy_threshold", healthy_threshold)?,
        reuse_connection: reuse_connection.is_none_or(|flag| flag.value),
        alt_port: port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0),
        transport_criteria: transport_socket_match_criteria.map(LbMetadata::from),
        alpn,
        probe: probe(context, at, health_checker)?,
        event_logs: event_logs(context, at, event_log_path, event_logger)?,
        always_log_failures: always_log_health_check_failures,
        always_log_success: always_log_health_check_success,
    })
}

fn event_logs(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    path: String,
    sinks: Vec<core::TypedExtensionConfig>,
) -> Parsed<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    if !path.is_empty() {
        paths.push(path.into());
    }
    let list = at.field("event_logger");
    for (index, wire) in sinks.into_iter().enumerate() {
        let at = list.item(index);
        let core::TypedExtensionConfig { name: _, typed_config } = wire;
        let at = at.field("typed_config");
        let Some(config) = typed_config else { return Err(at.reject("is required")) };
        let config = wire::extension(context, &at, config)?;
        match wire::type_name(&config) {
            "envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink" => {
                let file::HealthCheckEventFileSink { event_log_path } = wire::decode(&at, &config)?;
                if event_log_path.is_empty() {
                    return Err(at.field("event_log_path").reject("must not be empty"));
                }
                paths.push(event_log_path.into());
            }
            _ => return Err(at.reject(format!("{:?} is not supported", config.type_url))),
        }
    }
    Ok(paths)
}

const DEFAULT_NO_TRAFFIC: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::super::health_check_probe::TcpProbe;
    use super::*;
    use crate::context::NoEnvironment;
    use outrigger_api::pb::envoy::config::cluster::v3::Cluster;
    use outrigger_api::{Format, NewerFields, ParseOptions, Schema};

    fn read(fields: &str) -> Result<HealthCheck, String> {
        let yaml = format!("{{unhealthy_threshold: 2, healthy_threshold: 3, {fields}}}");
        let wire = Schema::load().parse_yaml(&yaml, ParseOptions::default()).unwrap().message;
        let root = FieldPath::resource("cluster", "c");
        let read = health_checks(&Context::new(&NoEnvironment), &root.field("health_checks"), "c", vec![wire]);
        read.map(|checks| checks[0].clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn several_checks_need_names_of_their_own() {
        let read = |names: &[&str]| {
            let list: Vec<String> = names
                .iter()
                .map(|name| format!("{{name: '{name}', unhealthy_threshold: 2, healthy_threshold: 3, {TIMES}}}"))
                .collect();
            let text = format!("{{name: c, health_checks: [{}]}}", list.join(", "));
            let mut newer = NewerFields::default();
            let wire: Cluster = Schema::load()
                .parse_seeing(text.as_bytes(), Format::Yaml, ParseOptions::default(), &mut |bytes| {
                    newer = NewerFields::of_cluster(bytes);
                })
                .unwrap()
                .message;
            let context = Context::new(&NoEnvironment).with_newer(newer);
            let root = FieldPath::resource("cluster", "c");
            let read = health_checks(&context, &root.field("health_checks"), "c", wire.health_checks);
            read.map(|checks| checks.iter().map(|check| check.name.to_string()).collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        };
        assert_eq!(read(&["a", "b"]).unwrap(), ["a", "b"]);
        assert_eq!((read(&["a"]).unwrap(), read(&[""]).unwrap()), (vec!["a".to_owned()], vec![String::new()]));
        for (names, reason) in [
            (["a", ""], "health_checks[1].name: is required where there are several health checks"),
            (["a", "a"], "health_checks[1].name: \"a\" is the name of another health check too"),
        ] {
            assert_eq!(read(&names).unwrap_err(), format!("cluster \"c\": {reason}"));
        }
    }

    const TIMES: &str = "timeout: 1s, interval: 5s, tcp_health_check: {}";

    #[test]
    fn what_is_not_given_follows_from_what_is() {
        let check = read(TIMES).unwrap();
        let seconds = Duration::from_secs;
        assert_eq!((check.timeout, check.unhealthy_threshold, check.healthy_threshold), (seconds(1), 2, 3));
        let CheckIntervals { healthy, healthy_edge, unhealthy, unhealthy_edge, no_traffic, no_traffic_healthy, .. } =
            check.intervals;
        assert!([healthy, healthy_edge, unhealthy, unhealthy_edge].iter().all(|interval| *interval == seconds(5)));
        assert_eq!((no_traffic, no_traffic_healthy), (seconds(60), seconds(60)));
        assert!(check.reuse_connection && check.alt_port.is_none() && check.event_logs.is_empty());
        assert_eq!(check.probe, Probe::Tcp(TcpProbe::default()));
        let edge = read(&format!("{TIMES}, unhealthy_interval: 7s, no_traffic_interval: 9s")).unwrap().intervals;
        assert_eq!((edge.unhealthy_edge, edge.no_traffic_healthy), (seconds(7), seconds(9)));
    }

    #[test]
    fn everything_else_is_taken() {
        let sink = "type.googleapis.com/envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink";
        let check = read(&format!(
            "{TIMES}, healthy_edge_interval: 1s, unhealthy_edge_interval: 2s, no_traffic_healthy_interval: 3s, \
             initial_jitter: 4s, interval_jitter: 6s, interval_jitter_percent: 7, alt_port: 8080, \
             reuse_connection: false, tls_options: {{alpn_protocols: [a, b]}}, event_log_path: /a, \
             event_logger: [{{name: x, typed_config: {{'@type': {sink}, event_log_path: /b}}}}], \
             always_log_health_check_failures: true, always_log_health_check_success: true"
        ))
        .unwrap();
        assert_eq!((check.alt_port, check.reuse_connection, check.alpn.len()), (Some(8080), false, 2));
        assert_eq!(check.event_logs, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert!(check.always_log_failures && check.always_log_success);
        assert_eq!((check.intervals.jitter, check.intervals.jitter_percent), (Duration::from_secs(6), 7));
    }

    #[test]
    fn checks_that_are_refused() {
        for (fields, reason) in [
            ("interval: 1s, tcp_health_check: {}", "timeout: is required"),
            ("timeout: 1s, tcp_health_check: {}", "interval: is required"),
            ("timeout: 0s, interval: 1s, tcp_health_check: {}", "timeout: 0s must be above zero"),
            ("timeout: 1s, interval: 1s", "health_checker: is required"),
            (
                "timeout: 1s, interval: 1s, custom_health_check: {name: envoy.health_checkers.redis}",
                "custom_health_check.typed_config: is required",
            ),
            (&format!("{TIMES}, alt_port: 70000"), "alt_port: 70000 is not within 0 to 65535"),
            (&format!("{TIMES}, event_service: {{}}"), "event_service: is not supported"),
            (&format!("{TIMES}, unhealthy_interval: 0s"), "unhealthy_interval: 0s must be above zero"),
            (
                &format!("{TIMES}, tls_options: {{alpn_protocols: ['']}}"),
                "tls_options.alpn_protocols: \"\" must have 1 to 255 bytes",
            ),
        ] {
            assert_eq!(read(fields).unwrap_err(), format!("cluster \"c\": health_checks[0].{reason}"));
        }
    }
}
