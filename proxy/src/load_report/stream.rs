//! The stream of reports to one server.
//!
//! Owns when a report is due, and when to connect again. Never builds a report (see `loads`).

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_api::pb::envoy::service::load_stats::v3::load_reporting_service_client::LoadReportingServiceClient;
use outrigger_api::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use outrigger_config::source::GrpcService;
use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tracing::{debug, warn};

use super::loads::{Loads, Wanted};
use super::stats::LoadReporterStats;
use crate::accesslog::ChannelError;
use crate::graph::{ClusterNode, Graph};
use crate::process::Process;
use crate::upstream::call_metadata::call_metadata;
use crate::worker::random::Random;

/// Makes a channel to a service.
pub(super) type Channels = dyn Fn(&GrpcService) -> Result<Channel, ChannelError>;

/// Reports to one server.
pub(super) struct Reporter {
    pub process: Arc<Process>,
    /// Who we are.
    pub node: Rc<Node>,
    /// Makes channels.
    pub channels: Rc<Channels>,
    /// The server.
    pub service: GrpcService,
    /// It hears of all clusters, not only of those that name it.
    pub all: bool,
    pub stats: Arc<LoadReporterStats>,
}

impl Reporter {
    /// Reports for ever.
    pub async fn run(self) {
        let random = Random::new();
        let mut pause = MIN_PAUSE;
        loop {
            let (status, answered) = self.stream().await;
            if answered {
                pause = MIN_PAUSE;
            }
            self.stats.errors.increment();
            warn!(server = self.service.authority(), error = %status, "load report stream failed");
            // Servers that come back are not to meet everybody in the same moment.
            let half = u64::try_from(pause.as_millis() / 2).unwrap_or(u64::MAX).max(1);
            sleep(pause / 2 + Duration::from_millis((random.next() >> 11) % half)).await;
            pause = (pause * 2).min(MAX_PAUSE);
            self.stats.retries.increment();
        }
    }

    /// One stream, until it breaks: why, and whether the server had answered.
    async fn stream(&self) -> (Status, bool) {
        let mut answered = false;
        let status = match self.exchange(&mut answered).await {
            Ok(()) => Status::unavailable("the server ended the stream"),
            Err(status) => status,
        };
        (status, answered)
    }

    async fn exchange(&self, answered: &mut bool) -> Result<(), Status> {
        let channel = (self.channels)(&self.service).map_err(|error| Status::unavailable(error.to_string()))?;
        let (sender, receiver) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(receiver));
        *request.metadata_mut() =
            call_metadata(&self.service).map_err(|error| Status::unauthenticated(error.to_string()))?;
        // There is room for it, and the receiver is still here.
        let _ = sender.try_send(LoadStatsRequest { node: Some(self.introduction()), cluster_stats: Vec::new() });
        self.stats.responses.increment();
        let mut responses = LoadReportingServiceClient::new(channel).stream_load_stats(request).await?.into_inner();
        let mut loads = Loads::default();
        let mut due: Option<(Instant, Duration)> = None;
        loop {
            let timer = async {
                match due {
                    Some((at, _)) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                response = responses.message() => {
                    let Some(response) = response? else { return Ok(()) };
                    *answered = true;
                    self.stats.requests.increment();
                    let interval = self.follow(&mut loads, response);
                    due = Some((Instant::now() + interval, interval));
                }
                () = timer => {
                    // A server that does not read gets one report for the whole time later.
                    if let Ok(permit) = sender.try_reserve() {
                        permit.send(LoadStatsRequest { node: None, cluster_stats: self.report(&mut loads) });
                        self.stats.responses.increment();
                    }
                    due = due.map(|(_, interval)| (Instant::now() + interval, interval));
                }
            }
        }
    }

    /// Who we are and what we can do.
    fn introduction(&self) -> Node {
        let mut node = Node::clone(&self.node);
        node.client_features.push("envoy.lrs.supports_send_all_clusters".to_owned());
        node
    }

    /// Takes in what the server wants. The time between reports.
    fn follow(&self, loads: &mut Loads, response: LoadStatsResponse) -> Duration {
        let LoadStatsResponse { clusters, send_all_clusters, load_reporting_interval, report_endpoint_granularity } =
            response;
        debug!(server = self.service.authority(), ?clusters, send_all_clusters, "load reports are asked for");
        let wanted = Wanted {
            all: send_all_clusters,
            clusters: clusters.into_iter().collect(),
            endpoints: report_endpoint_granularity,
        };
        let graph = self.process.graph.load();
        loads.follow(wanted, self.clusters(&graph), &self.process.stats, Instant::now());
        let interval = load_reporting_interval.map(|wire| {
            let nanos = u32::try_from(wire.nanos).unwrap_or(0).min(999_999_999);
            Duration::new(u64::try_from(wire.seconds).unwrap_or(0), nanos)
        });
        interval.filter(|interval| !interval.is_zero()).map_or(DEFAULT_INTERVAL, |interval| interval.max(MIN_INTERVAL))
    }

    fn report(&self, loads: &mut Loads) -> Vec<outrigger_api::pb::envoy::config::endpoint::v3::ClusterStats> {
        let graph = self.process.graph.load();
        loads.report(self.clusters(&graph), &self.process.stats, Instant::now())
    }

    /// The clusters that this server may hear of.
    fn clusters<'a>(&'a self, graph: &'a Graph) -> impl Iterator<Item = &'a Arc<ClusterNode>> {
        let servers = &self.process.load_servers;
        graph.clusters.values().filter(move |node| self.all || servers.of(&node.config) == Some(&self.service))
    }
}

/// Between a broken stream and the next; doubled each time, up to `MAX_PAUSE`, and shortened by up to half at random.
const MIN_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Where the server says nothing.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// Whatever it says.
const MIN_INTERVAL: Duration = Duration::from_millis(10);
