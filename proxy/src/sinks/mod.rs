//! Stats on their way to those who want them sent (`Bootstrap.stats_sinks`).
//!
//! Owns when they are sent, and the senders. Runs on the control thread; without sinks there is nothing of it. Never writes
//! a stat but its own.

mod metrics_service;
mod otlp;
mod snapshot;
mod statsd;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_config::bootstrap::StatsSink;
use outrigger_config::source::GrpcService;
use tokio::time::MissedTickBehavior;
use tonic::transport::Channel;

use crate::accesslog::ChannelError;
use crate::process::Process;
use crate::stats::export::ExportSettings;
use crate::stats::names;
use crate::trace::Channels;
use snapshot::{Flush, Memory};

/// What senders need beside the stats.
pub struct Outlet {
    /// Of the process.
    pub process: Arc<Process>,
    /// Which stats exist, their tags and buckets.
    pub settings: Rc<ExportSettings>,
    /// Who we are.
    pub node: Node,
    /// Makes channels.
    pub channels: Arc<Channels>,
    /// Between two flushes; `None` for those that asking the admin port for stats brings about.
    pub interval: Option<Duration>,
}

impl Outlet {
    fn channel(&self, service: &GrpcService) -> Result<Channel, ChannelError> {
        (self.channels)(service)
    }
}

/// One sink at work.
enum Sender {
    Statsd(statsd::Sender),
    MetricsService(Box<metrics_service::Sender>),
    OpenTelemetry(Box<otlp::Sender>),
}

impl Sender {
    fn new(sink: StatsSink, outlet: &Outlet) -> Self {
        match sink {
            StatsSink::Statsd(sink) => Self::Statsd(statsd::Sender::new(sink, outlet)),
            StatsSink::MetricsService(sink) => Self::MetricsService(Box::new(metrics_service::Sender::new(sink))),
            StatsSink::OpenTelemetry(sink) => Self::OpenTelemetry(Box::new(otlp::Sender::new(sink, outlet))),
        }
    }

    async fn send(&mut self, flush: &Flush, outlet: &Outlet) {
        match self {
            Self::Statsd(sender) => sender.send(flush, outlet).await,
            Self::MetricsService(sender) => sender.send(flush, outlet).await,
            Self::OpenTelemetry(sender) => sender.send(flush, outlet).await,
        }
    }
}

/// Sends stats to `sinks`, for ever; `refresh` brings those up to date that are not counted as things happen.
pub async fn run(sinks: Vec<StatsSink>, outlet: Outlet, refresh: impl Fn()) {
    if sinks.is_empty() {
        return;
    }
    let mut senders: Vec<Sender> = sinks.into_iter().map(|sink| Sender::new(sink, &outlet)).collect();
    let mut memory = Memory::new(SystemTime::now());
    let mut ticks = outlet.interval.map(tokio::time::interval);
    if let Some(ticks) = &mut ticks {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is due at once, when there is nothing yet.
        ticks.tick().await;
    }
    loop {
        match &mut ticks {
            Some(ticks) => drop(ticks.tick().await),
            None => outlet.process.stats_asked_for.notified().await,
        }
        refresh();
        let families = outlet.process.stats.collect(&|name| names::exists(&outlet.settings.matcher, name));
        let flush = memory.flush(families, SystemTime::now());
        // One after the other: each bounds its own time, and all of them share one copy of the stats.
        for sender in &mut senders {
            sender.send(&flush, &outlet).await;
        }
    }
}

/// A sink that does not answer holds up the others no longer than this.
const SEND_LIMIT: Duration = Duration::from_secs(5);
