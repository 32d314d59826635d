//! What answers tell the balancer: latencies, reported weights, and endpoints that cannot be reached. And load reports: the
//! metrics of endpoints.
//!
//! Owns which policy is told what. Costs a comparison for clusters whose policy goes by none of it. Never picks an
//! endpoint.

use std::cell::Cell;
use std::time::{Duration, Instant};

use outrigger_config::cluster::LoadBalancing;
use outrigger_policy::balance::Latency;
use outrigger_policy::balance::load_report::{BINARY_HEADER, HEADER, LoadReport, metrics, metrics_binary};

use super::worker_host::WorkerHost;
use crate::graph::facts;
use crate::http::headers::Headers;

/// What a worker remembers of an endpoint for policies that go by it.
#[derive(Debug, Default)]
pub struct Feedback {
    /// To the response head.
    pub latency: Cell<Latency>,
    /// When the last attempt at a connection failed, in milliseconds of [`facts::now`]; 0 if it did not.
    unreachable_at: Cell<u64>,
}

impl Feedback {
    /// Whether there was no connection a moment before `now`.
    pub fn is_unreachable(&self, now: u64) -> bool {
        let at = self.unreachable_at.get();
        at > 0 && now.saturating_sub(at) < UNREACHABLE_MILLIS
    }
}

/// How a try at an endpoint ended without a response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unanswered {
    /// There was no connection.
    Unreachable,
    /// There was one, and it was not the client who ended the try.
    Failed,
    /// The client or we gave it up, so all that is known is that it took longer.
    GivenUp,
}

/// A try at an endpoint, timed where the policy goes by latency.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Watch(Option<Instant>);

impl Watch {
    /// A try begins.
    pub fn begin(host: &WorkerHost) -> Self {
        let timed = matches!(host.node.config.load_balancing, LoadBalancing::PeakEwma(_));
        Self(timed.then(Instant::now))
    }

    /// There is a response head, or a connection whose bytes are not looked at.
    pub fn answered(self, host: &WorkerHost, is_error: bool, headers: Option<&Headers>) {
        if let Some(headers) = headers {
            keep_metrics(host, headers);
        }
        match host.node.config.load_balancing {
            LoadBalancing::PeakEwma(options) => self.record(host, |latency, took, now| match is_error {
                true => latency.record_failure(took, now, &options),
                false => latency.record(took, now, &options),
            }),
            LoadBalancing::Reported => {
                if let Some(headers) = headers {
                    report(host, headers);
                }
            }
            LoadBalancing::PickFirst { .. } => {
                if let Some(feedback) = host.feedback.get() {
                    feedback.unreachable_at.set(0);
                }
            }
            _ => {}
        }
    }

    /// There is none.
    pub fn unanswered(self, host: &WorkerHost, how: Unanswered) {
        match host.node.config.load_balancing {
            LoadBalancing::PeakEwma(options) => self.record(host, |latency, took, now| match how {
                Unanswered::Unreachable | Unanswered::Failed => latency.record_failure(took, now, &options),
                Unanswered::GivenUp if took.as_secs_f64() * 1000.0 > latency.expected(now, &options) => {
                    latency.record(took, now, &options);
                }
                Unanswered::GivenUp => {}
            }),
            LoadBalancing::PickFirst { .. } if how == Unanswered::Unreachable => {
                host.feedback.get_or_init(Box::default).unreachable_at.set(facts::now());
            }
            _ => {}
        }
    }

    fn record(self, host: &WorkerHost, change: impl FnOnce(&mut Latency, Duration, u64)) {
        let Self(Some(began)) = self else { return };
        let cell = &host.feedback.get_or_init(Box::default).latency;
        let mut latency = cell.get();
        change(&mut latency, began.elapsed(), facts::now());
        cell.set(latency);
    }
}

/// Looks for a report in trailers, unless the response head had one.
pub fn trailers(host: &WorkerHost, head: &Headers, trailers: Option<&Headers>) {
    let Some(trailers) = trailers else { return };
    let config = &host.node.config;
    let is_read = config.load_balancing == LoadBalancing::Reported || !config.load_metrics.is_empty();
    if is_read && found(head).is_none() {
        keep_metrics(host, trailers);
        if config.load_balancing == LoadBalancing::Reported {
            report(host, trailers);
        }
    }
}

/// Keeps the metrics that load reports are to have, if there are any. What is not understood changes nothing.
fn keep_metrics(host: &WorkerHost, headers: &Headers) {
    let wanted = &host.node.config.load_metrics;
    if wanted.is_empty() {
        return;
    }
    let metrics = match found(headers) {
        None => return,
        Some((Form::Binary, value)) => metrics_binary(value, wanted),
        Some((Form::Any, value)) => metrics(value, wanted),
    };
    match metrics {
        Ok(metrics) => host.host.shared.add_load_metrics(metrics),
        Err(error) => tracing::debug!(target: "upstream", "load report of {}: {error}", host.host.address),
    }
}

/// Keeps the weight that follows from a report. What is not understood changes nothing.
fn report(host: &WorkerHost, headers: &Headers) {
    let Some(options) = host.node.config.balancing.reports.as_deref() else { return };
    let report = match found(headers) {
        None => return,
        Some((Form::Binary, value)) => LoadReport::parse_binary(value, options),
        Some((Form::Any, value)) => LoadReport::parse(value, options),
    };
    match report {
        Ok(report) => {
            if let Some(weight) = report.weight(options) {
                let shared = &host.host.shared;
                shared.set_reported(shared.reported().reported(weight, facts::now(), options));
            }
        }
        Err(error) => tracing::debug!(target: "upstream", "load report of {}: {error}", host.host.address),
    }
}

enum Form {
    Binary,
    Any,
}

fn found(headers: &Headers) -> Option<(Form, &[u8])> {
    let binary = headers.get_by_name(BINARY_HEADER).map(|value| (Form::Binary, value));
    binary.or_else(|| headers.get_by_name(HEADER).map(|value| (Form::Any, value)))
}

/// How long an endpoint is passed over that could not be reached.
const UNREACHABLE_MILLIS: u64 = 5_000;
