//! The standard metrics of a mesh (`stats.PluginConfig`).
//!
//! Owns how streams are reported: from which side, and in which series. A worker looks a series up by a small key, and
//! writes names only when it meets the first stream of a kind. Never decides what a label says (see `labels`).

mod expressions;
mod labels;
mod series;
mod tcp;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::istio::{MeshMetric, MeshService, StandardMetrics};
use outrigger_config::listener::TrafficDirection;

pub use expressions::values as dimensions;
pub(super) use labels::{NAMESPACE, push};
pub use labels::{Outside, Parts, Protocol, Side};
use series::Room;
pub use series::{MeshCounts, Series, SeriesStats, SeriesTable};
pub use tcp::TcpReport;

use crate::stream::TlsInfo;
use crate::worker::Worker;

/// A filter of a mesh's standard metrics.
#[derive(Clone, Debug)]
pub struct Reporter {
    /// As configured.
    pub settings: Arc<StandardMetrics>,
    /// From where it sees streams.
    pub side: Side,
}

impl Reporter {
    /// A filter in a listener of this direction.
    pub fn new(settings: &Arc<StandardMetrics>, direction: TrafficDirection) -> Self {
        for left_out in &settings.left_out {
            tracing::warn!("standard metrics are emitted without {left_out}");
        }
        let side = match direction {
            _ if settings.gateway => Side::Gateway,
            TrafficDirection::Inbound => Side::Destination,
            TrafficDirection::Outbound | TrafficDirection::Unspecified => Side::Source,
        };
        Self { settings: Arc::clone(settings), side }
    }

    /// What the worker has to know of it.
    pub fn begin(&self, worker: &Worker) {
        worker.mesh.series.stats(&worker.process.stats);
        if let Some(rotation) = self.settings.rotation {
            worker.mesh.series.rotate(rotation);
        }
    }
}

/// Who proved what in a handshake: the other side, and we. Empty for what nobody proved.
pub fn principals(tls: Option<&TlsInfo>) -> (&str, &str) {
    let Some(tls) = tls else { return ("", "") };
    let peer = tls.peer.as_deref().and_then(|peer| peer.uri_sans.first()).map_or("", String::as_str);
    (peer, tls.local_uri_sans.first().map_or("", String::as_str))
}

/// The series of requests that one filter has met, by what tells them apart.
#[derive(Default)]
pub struct Lookup {
    names: HashMap<Box<str>, u32>,
    known: HashMap<Key, (Option<Arc<MeshService>>, Rc<Series>)>,
}

/// What is remembered of each kind; more is forgotten, and costs a lookup by name.
const MAX_KNOWN: usize = 4096;

/// The workloads of a request, by numbers of this worker; 0 for those that said nothing.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct PeerIds {
    /// On the other side.
    pub peer: u32,
    /// Behind a gateway.
    pub endpoint: u32,
}

#[derive(Eq, Hash, PartialEq)]
struct Key {
    /// Its place in memory, which what is known holds.
    service: Option<usize>,
    peers: PeerIds,
    host: u32,
    peer_principal: u32,
    own_principal: u32,
    outside: Option<Outside>,
    protocol: Protocol,
    code: u16,
    grpc_status: Option<i64>,
    flags: u32,
    dimensions: Vec<u32>,
}

impl Lookup {
    /// The series of a request. `service` is that of `parts`.
    pub fn find(
        &mut self,
        worker: &Worker,
        settings: &StandardMetrics,
        service: Option<&Arc<MeshService>>,
        peers: PeerIds,
        parts: &Parts<'_>,
    ) -> Rc<Series> {
        if self.known.len() >= MAX_KNOWN || self.names.len() >= MAX_KNOWN {
            self.known.clear();
            self.names.clear();
        }
        let key = Key {
            service: service.map(|service| Arc::as_ptr(service).addr()),
            peers,
            host: self.number(parts.host),
            peer_principal: self.number(parts.peer_principal),
            own_principal: self.number(parts.own_principal),
            outside: parts.outside,
            protocol: parts.protocol,
            code: parts.code,
            grpc_status: parts.grpc_status,
            flags: parts.flags.bits(),
            dimensions: parts.dimensions.iter().map(|value| self.number(value)).collect(),
        };
        if let Some((_, series)) = self.known.get(&key).filter(|(_, series)| series.is_whole()) {
            return Rc::clone(series);
        }
        let metrics = if parts.protocol == Protocol::Grpc { REQUEST_METRICS } else { &REQUEST_METRICS[..4] };
        let found = Series::look_up(&worker.mesh.series, &Room::of(worker), settings, metrics, parts);
        let series = Rc::new(found);
        self.known.insert(key, (service.cloned(), Rc::clone(&series)));
        series
    }

    fn number(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        if let Some(number) = self.names.get(name) {
            return *number;
        }
        // Far fewer than there are numbers, see `MAX_KNOWN`.
        let number = self.names.len() as u32 + 1;
        self.names.insert(name.into(), number);
        number
    }
}

/// Those of gRPC calls alone come last.
const REQUEST_METRICS: &[MeshMetric] = &[
    MeshMetric::Requests,
    MeshMetric::Duration,
    MeshMetric::RequestBytes,
    MeshMetric::ResponseBytes,
    MeshMetric::RequestMessages,
    MeshMetric::ResponseMessages,
];

/// What a worker keeps of its mesh.
#[derive(Default)]
pub struct Mesh {
    /// What peers have said.
    pub peers: super::peer::KnownPeers,
    /// The series of standard metrics.
    pub series: Rc<SeriesTable>,
}
