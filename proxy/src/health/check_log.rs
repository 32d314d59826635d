//! Lines of the health check event log (`envoy.data.core.v3.HealthCheckEvent` as JSON).
//!
//! Owns which results are logged, and the form, which is Envoy's. Never writes to a file.

use std::time::SystemTime;

use outrigger_config::address::Address;
use outrigger_config::cluster::{HealthCheck, Probe};
use outrigger_policy::health::{FailureKind, Verdict};

use super::event_line::EventLine;
use crate::upstream::host::Host;

/// Something that is logged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum CheckEvent {
    AddHealthy { first: bool },
    EjectUnhealthy { kind: FailureKind, status: u16 },
    Failure { kind: FailureKind, first: bool, status: u16 },
    Degraded,
    NoLongerDegraded,
    Successful,
}

/// What failed, with the HTTP status or 0.
pub type Failure = Option<(FailureKind, u16)>;

/// The lines for what a check came to.
pub fn lines(settings: &HealthCheck, cluster: &str, host: &Host, verdict: &Verdict, failure: Failure) -> Vec<String> {
    let now = SystemTime::now();
    events(settings, verdict, failure).into_iter().map(|event| line(settings, cluster, host, event, now)).collect()
}

fn events(settings: &HealthCheck, verdict: &Verdict, failure: Failure) -> Vec<CheckEvent> {
    let first = verdict.first;
    let mut events = Vec::new();
    match failure {
        None => {
            if verdict.turned {
                events.push(CheckEvent::AddHealthy { first });
            }
            if settings.always_log_success {
                events.push(CheckEvent::Successful);
            }
        }
        Some((kind, status)) => {
            if verdict.turned {
                events.push(CheckEvent::EjectUnhealthy { kind, status });
            }
            if first || settings.always_log_failures {
                events.push(CheckEvent::Failure { kind, first, status });
            }
        }
    }
    match verdict.degraded {
        Some(true) => events.push(CheckEvent::Degraded),
        Some(false) => events.push(CheckEvent::NoLongerDegraded),
        None => {}
    }
    events
}

fn line(settings: &HealthCheck, cluster: &str, host: &Host, event: CheckEvent, now: SystemTime) -> String {
    let mut line = EventLine::new();
    let checker = match settings.probe {
        Probe::Http(_) => "HTTP",
        Probe::Tcp(_) | Probe::Agent(_) => "TCP",
        Probe::Grpc(_) | Probe::GrpcWatch(_) => "GRPC",
    };
    line.field("health_checker_type", checker);
    line.object("host", |line| address(line, &host.address)).field("cluster_name", cluster);
    match event {
        CheckEvent::EjectUnhealthy { kind, status } => {
            line.object("eject_unhealthy_event", |event| {
                event.field("failure_type", type_name(kind)).field("http_status_code", status);
            });
        }
        CheckEvent::AddHealthy { first } => {
            line.object("add_healthy_event", |event| {
                event.field("first_check", first);
            });
        }
        _ => {}
    }
    line.time("timestamp", now);
    match event {
        CheckEvent::Failure { kind, first, status } => {
            line.object("health_check_failure_event", |event| {
                event.field("failure_type", type_name(kind)).field("first_check", first);
                event.field("http_status_code", status);
            });
        }
        CheckEvent::Degraded => {
            line.object("degraded_healthy_host", |_| {});
        }
        CheckEvent::NoLongerDegraded => {
            line.object("no_longer_degraded_host", |_| {});
        }
        _ => {}
    }
    let at = &host.locality;
    line.object("locality", |line| {
        line.field("region", &*at.region).field("zone", &*at.zone).field("sub_zone", &*at.sub_zone);
    });
    if event == CheckEvent::Successful {
        line.object("successful_health_check_event", |_| {});
    }
    line.finish()
}

fn address(line: &mut EventLine, address: &Address) {
    match address {
        Address::Ip(socket) => line.object("socket_address", |line| {
            line.field("protocol", "TCP").field("address", socket.ip().to_string()).field("port_value", socket.port());
            line.field("resolver_name", "").field("ipv4_compat", false).field("network_namespace_filepath", "");
        }),
        Address::Pipe { path, mode } => line.object("pipe", |line| {
            line.field("path", path.to_string_lossy().into_owned()).field("mode", *mode);
        }),
        Address::Internal(internal) => line.object("envoy_internal_address", |line| {
            line.field("server_listener_name", &*internal.listener).field("endpoint_id", &*internal.endpoint);
        }),
    };
}

fn type_name(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Active => "ACTIVE",
        FailureKind::Passive => "PASSIVE",
        FailureKind::Network => "NETWORK",
        FailureKind::NetworkTimeout => "NETWORK_TIMEOUT",
    }
}
