//! Asking a rate limit service whether there is room for a connection
//! (`envoy.extensions.filters.network.ratelimit.v3.RateLimit`).
//!
//! Owns what is asked of a connection and what follows. Without an answer the connection goes on, unless the settings say
//! otherwise. Never counts towards a limit, which is the service's.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use outrigger_api::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use outrigger_api::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use outrigger_api::pb::envoy::service::ratelimit::v3::rate_limit_response::Code;
use outrigger_api::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use outrigger_config::metadata;
use outrigger_config::network::GlobalRateLimit as Settings;
use outrigger_config::units::{Fraction, RuntimeFraction};

use super::Refusal;
use super::stats::GlobalRateStats;
use crate::accesslog::{Facts, format};
use crate::stats::names;
use crate::stream::{ConnectionInfo, StreamInfo};
use crate::upstream::call;
use crate::upstream::repeated_call::ask;
use crate::worker::Worker;

/// The filter of a chain.
pub struct GlobalRateFilter {
    settings: Arc<Settings>,
    prefix: Arc<str>,
    enabled: RuntimeFraction,
    enforced: RuntimeFraction,
}

/// A question that is counted as long as it is open.
struct Open(Arc<GlobalRateStats>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.active.decrement();
    }
}

impl GlobalRateFilter {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        let prefix = names::prefix("ratelimit", &settings.stat_prefix).into();
        let by_runtime = |key: &str| RuntimeFraction { default: Fraction::ALWAYS, runtime_key: key.to_owned() };
        let (enabled, enforced) = ("ratelimit.tcp_filter_enabled", "ratelimit.tcp_filter_enforcing");
        Self { settings, prefix, enabled: by_runtime(enabled), enforced: by_runtime(enforced) }
    }

    /// Asks the service.
    pub(super) async fn check(&self, worker: &Rc<Worker>, connection: &ConnectionInfo) -> Result<(), Refusal> {
        let holds = |share: &RuntimeFraction| worker.graph().runtime.holds(share, worker.random.next());
        if !holds(&self.enabled) {
            return Ok(());
        }
        let stats = worker.network.global_rate.get(&worker.process.stats, &self.prefix);
        let settings = &self.settings;
        stats.total.increment();
        stats.active.increment();
        let open = Open(Arc::clone(&stats));
        let call = call::unary(&settings.service, SHOULD_RATE_LIMIT, &self.question(worker, connection), false);
        let answer = ask::<RateLimitResponse>(worker, &settings.service, call).await;
        drop(open);
        let response = match answer {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(cluster = &*settings.service.cluster, "rate limit service: {error}");
                stats.error.increment();
                if !settings.failure_mode_deny {
                    stats.failure_mode_allowed.increment();
                    return Ok(());
                }
                stats.cx_closed.increment();
                return Err(Refusal::default());
            }
        };
        if let Some(told) = response.dynamic_metadata.filter(|told| !told.fields.is_empty()) {
            let mut known = connection.dynamic_metadata.borrow_mut();
            metadata::merge(known.entry(NAMESPACE.to_owned()).or_default(), &metadata::object(told));
        }
        if response.overall_code != Code::OverLimit as i32 {
            stats.ok.increment();
            return Ok(());
        }
        stats.over_limit.increment();
        if !holds(&self.enforced) {
            return Ok(());
        }
        stats.cx_closed.increment();
        Err(Refusal::default())
    }

    fn question(&self, worker: &Worker, connection: &ConnectionInfo) -> RateLimitRequest {
        let mut info = StreamInfo::new(connection.start, None);
        info.dynamic_metadata.clone_from(&connection.dynamic_metadata);
        info.filter_state.clone_from(&connection.filter_state);
        let facts = Facts::new(&info, connection, &worker.process.clock, Instant::now());
        let descriptors = self.settings.descriptors.iter().map(|descriptor| {
            let entries = descriptor.0.iter().map(|(key, value)| {
                let mut text = Vec::new();
                format::write(value, &facts, &mut text);
                Entry { key: key.to_string(), value: String::from_utf8_lossy(&text).into_owned() }
            });
            RateLimitDescriptor { entries: entries.collect(), ..RateLimitDescriptor::default() }
        });
        let domain = self.settings.domain.to_string();
        RateLimitRequest { domain, descriptors: descriptors.collect(), hits_addend: 0 }
    }
}

/// Where metadata of the service goes, as in Envoy whatever the filter's name is.
const NAMESPACE: &str = "envoy.filters.network.ratelimit";
const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
