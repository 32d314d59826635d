//! Results of requests and connections, as the data path has them.
//!
//! Owns what counts as which result of an endpoint. Costs a few loads for a success, and nothing for clusters without
//! outlier detection. Never decides what follows.

use std::sync::Arc;

use outrigger_policy::grpc_status::http_status;
use outrigger_policy::outlier::{Findings, HostMonitor, Limits, Outlier, ResponseView, status_by};

use super::flags::HealthFlag;
use super::reports::{Observation, Report};
use crate::http::headers::{HeaderId, Headers};
use crate::process::Process;
use crate::upstream::connect::ConnectError;
use crate::upstream::worker_host::WorkerHost;

/// The head of a response to a request. `grpc_status` stands in for the status code of a gRPC response without a body.
pub fn response(process: &Process, host: &WorkerHost, status: u16, grpc_status: Option<u32>, headers: &Headers) {
    if !host.node.config.health_checks.is_empty()
        && headers.get_by_name("x-envoy-immediate-health-check-fail").is_some()
        && !host.host.shared.flags.has(HealthFlag::Excluded)
    {
        send(process, host, Observation::ImmediateFailure);
    }
    let Some((limits, monitor)) = watched(host) else { return };
    let status = match &host.node.config.http.error_matcher {
        Some(matcher) => status_by(matcher, status, &Head(headers)),
        None => self::status(status, grpc_status),
    };
    report(process, host, monitor.response(limits, status));
    if !(500..600).contains(&status) && monitor.passes_probation() {
        send(process, host, Observation::ProbationPassed);
    }
    if limits.looks_for_degraded()
        && headers.contains(HeaderId::XEnvoyDegraded)
        && !host.host.shared.flags.has(HealthFlag::DegradedOutlierCheck)
    {
        send(process, host, Observation::Outlier(Outlier::Degraded));
    }
}

struct Head<'a>(&'a Headers);

impl ResponseView for Head<'_> {
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.0.get_all_by_name(name)
    }
}

/// There is a connection for a request.
pub fn reached(host: &WorkerHost) {
    if let Some((limits, monitor)) = watched(host) {
        monitor.reached(limits);
    }
}

/// A connection whose bytes are not looked at was made, which is all the success that there can be.
pub fn connected(process: &Process, host: &WorkerHost) {
    let Some((limits, monitor)) = watched(host) else { return };
    monitor.connected(limits);
    if monitor.passes_probation() {
        send(process, host, Observation::ProbationPassed);
    }
}

/// There is no connection.
pub fn not_connected(process: &Process, host: &WorkerHost, error: &ConnectError) {
    match error {
        // Our own limit says nothing of the endpoint.
        ConnectError::Timeout => timed_out(process, host),
        ConnectError::Io(_)
        | ConnectError::Immediate(..)
        | ConnectError::Tls(_)
        | ConnectError::Tunnel(_)
        | ConnectError::Shared(_) => unreachable(process, host),
    }
}

/// A request failed before there was a response.
pub fn unreachable(process: &Process, host: &WorkerHost) {
    if let Some((limits, monitor)) = watched(host) {
        report(process, host, monitor.unreachable(limits));
    }
}

/// A request was not answered in time.
pub fn timed_out(process: &Process, host: &WorkerHost) {
    if let Some((limits, monitor)) = watched(host) {
        report(process, host, monitor.timed_out(limits));
    }
}

fn watched(host: &WorkerHost) -> Option<(&Limits, &HostMonitor)> {
    let state = host.node.outlier.as_ref()?;
    Some((&state.limits, host.host.shared.monitor()))
}

fn report(process: &Process, host: &WorkerHost, findings: Findings) {
    for outlier in findings {
        send(process, host, Observation::Outlier(outlier));
    }
}

fn send(process: &Process, host: &WorkerHost, what: Observation) {
    let cluster = Arc::clone(&host.node.config.name);
    process.reports.send(Report { cluster, host: Arc::clone(&host.host.shared), what });
}

/// The status that says how a response went: that of gRPC, if it has one.
pub fn status(status: u16, grpc_status: Option<u32>) -> u16 {
    grpc_status.map_or(status, |grpc| http_status(grpc.into()))
}
