//! The TCP proxy filter (`envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`).
//!
//! Owns the checked model. Never moves bytes.

mod parse;
mod proxy_tlvs;
#[cfg(test)]
mod tests;
mod tunneling;

use std::sync::Arc;
use std::time::Duration;

pub use proxy_tlvs::{MadeTlv, ProxyTlvs, TlvMergePolicy};
pub use tunneling::{TunnelRequestId, Tunneling};

use crate::accesslog::AccessLog;
use crate::cluster::LbMetadata;
use crate::http::filters::OnDemandClusters;
use crate::route::HashPolicy;
use crate::units::Percent;

/// A TCP proxy, checked.
#[derive(Debug)]
pub struct TcpProxy {
    /// The `<prefix>` in `tcp.<prefix>.*` stats.
    pub stat_prefix: Arc<str>,
    /// Where the bytes go.
    pub target: WeightedClusters,
    /// What consistent policies choose an endpoint by; one part at most.
    pub hash_policy: Arc<[HashPolicy]>,
    /// Where a cluster comes from that is not known; without, nobody waits for it.
    pub on_demand: Option<Arc<OnDemandClusters>>,
    /// The subset of endpoints that is wanted.
    pub metadata_match: Option<Arc<LbMetadata>>,
    /// No bytes in either direction; 1 h unless given, `None` for `0s`.
    pub idle_timeout: Option<Duration>,
    /// At least 1.
    pub max_connect_attempts: u32,
    /// From accept.
    pub max_downstream_connection_duration: Option<Duration>,
    /// That limit is longer by a random part of it, up to this.
    pub max_downstream_connection_duration_jitter: Option<Percent>,
    /// Between tries to connect; none unless given.
    pub back_off: Option<BackOff>,
    /// Bytes go to the endpoint inside a request.
    pub tunneling: Option<Box<Tunneling>>,
    /// What PROXY protocol headers towards endpoints get.
    pub proxy_tlvs: Option<Box<ProxyTlvs>>,
    /// There is no connection to an endpoint before the client has sent something.
    pub connect_on_data: bool,
    /// The connection ends as soon as its listener drains and nothing is on its way to the client.
    pub check_drain_close: bool,
    /// Written when the connection ends.
    pub access_logs: Vec<Arc<AccessLog>>,
    /// Also written at this interval while the connection lasts.
    pub access_log_flush_interval: Option<Duration>,
    /// An entry is written when there is an upstream connection.
    pub log_on_connected: bool,
    /// An entry is written when the connection begins.
    pub log_on_start: bool,
}

/// Time between tries. Source: `BackoffStrategy`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BackOff {
    /// The longest time after the first try; doubles with each.
    pub base: Duration,
    /// The longest time of all.
    pub max: Duration,
}

/// One cluster, or several by weight.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WeightedClusters {
    /// Never empty; weights above zero in total.
    pub clusters: Vec<(Arc<str>, u32)>,
}

impl WeightedClusters {
    /// The cluster for an evenly distributed `random`.
    pub fn pick(&self, random: u64) -> &Arc<str> {
        if let [(only, _)] = self.clusters.as_slice() {
            return only;
        }
        let total: u64 = self.clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut point = random % total.max(1);
        for (name, weight) in &self.clusters {
            if point < u64::from(*weight) {
                return name;
            }
            point -= u64::from(*weight);
        }
        &self.clusters[self.clusters.len() - 1].0
    }
}
