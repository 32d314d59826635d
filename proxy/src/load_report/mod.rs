//! Load reports to control planes (`envoy.service.load_stats.v3.LoadReportingService`).
//!
//! Owns which servers are reported to: that of the bootstrap hears of all clusters, others of the clusters that name them.
//! Runs on the control thread, and reads the counters that workers keep of each endpoint anyway; nothing more is counted
//! for the sake of reports. Never decides what is counted.

mod loads;
mod servers;
mod stats;
mod stream;

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3::Node;
use outrigger_config::source::GrpcService;
use tokio::task::AbortHandle;

use crate::accesslog::ChannelError;
use crate::process::Process;
pub use servers::LoadServers;
use stream::{Channels, Reporter};

/// A reporter that ends when it is dropped.
struct Running(AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reports for ever to whoever wants to know, as `node`. `channels` makes channels, anew for each stream.
pub async fn run(
    process: Arc<Process>,
    node: Node,
    channels: impl Fn(&GrpcService) -> Result<tonic::transport::Channel, ChannelError> + 'static,
) {
    let (node, channels): (Rc<Node>, Rc<Channels>) = (Rc::new(node), Rc::new(channels));
    let mut stats = None;
    let mut start = |service: &GrpcService, all: bool| {
        let stats = stats.get_or_insert_with(|| process.stats.scope("load_reporter."));
        let reporter = Reporter {
            process: Arc::clone(&process),
            node: Rc::clone(&node),
            channels: Rc::clone(&channels),
            service: service.clone(),
            all,
            stats: Arc::clone(stats),
        };
        Running(tokio::task::spawn_local(reporter.run()).abort_handle())
    };
    let of_all = process.load_servers.of_all();
    let _of_all = of_all.map(|service| start(service, true));
    let mut running: HashMap<GrpcService, Running> = HashMap::new();
    loop {
        let mut published = pin!(process.graph.published());
        // From here on nothing is missed.
        published.as_mut().enable();
        {
            let graph = process.graph.load();
            let servers = graph.clusters.values().filter_map(|node| process.load_servers.of(&node.config));
            let wanted: HashSet<&GrpcService> = servers.filter(|server| Some(*server) != of_all).collect();
            running.retain(|server, _| wanted.contains(server));
            for server in wanted {
                if !running.contains_key(server) {
                    running.insert(server.clone(), start(server, false));
                }
            }
        }
        published.await;
    }
}
