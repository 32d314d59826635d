//! The standard metrics of a mesh: counts requests when they are over.
//!
//! Owns what of a request goes into its labels. Never changes a request.

use std::cell::RefCell;
use std::sync::Arc;

use outrigger_config::istio::{MeshMetric, StandardMetrics};
use outrigger_config::listener::TrafficDirection;

use super::{Exchange, HttpFilter, Maker};
use crate::accesslog::grpc_status_of;
use crate::istio::Told;
use crate::istio::metrics::{Lookup, Outside, Parts, PeerIds, Protocol, Reporter, Side, dimensions, principals};
use crate::trace::exemplar;

/// The filter.
pub struct IstioStats {
    reporter: Reporter,
    lookup: RefCell<Lookup>,
}

impl IstioStats {
    /// A filter in a listener of this direction.
    pub fn new(settings: &Arc<StandardMetrics>, direction: TrafficDirection, maker: &Maker<'_>) -> Self {
        let reporter = Reporter::new(settings, direction);
        reporter.begin(maker.worker);
        Self { reporter, lookup: RefCell::default() }
    }
}

impl HttpFilter for IstioStats {
    fn reports(&self) -> bool {
        true
    }

    fn report(&self, exchange: &mut Exchange<'_, '_, '_>) {
        let request = exchange.stream();
        let (info, connection, worker) = (&request.info, &request.connection.info, exchange.worker());
        let Reporter { settings, side } = &self.reporter;
        let cluster = info.cluster_config.borrow();
        let service = cluster.as_deref().and_then(|cluster| cluster.istio.service.as_ref());
        let peers = info.peers.borrow();
        let (peer, endpoint) = match side {
            Side::Source => (&peers.upstream, &None),
            Side::Destination => (&peers.downstream, &None),
            Side::Gateway => (&peers.downstream, &peers.upstream),
        };
        let id = |told: &Option<Arc<Told>>| told.as_ref().map_or(0, |told| told.id);
        let ids = PeerIds { peer: id(peer), endpoint: id(endpoint) };
        let upstream = info.upstream_tls.borrow();
        let tls = if *side == Side::Source { upstream.as_deref() } else { connection.tls.as_ref() };
        let (peer_principal, own_principal) = principals(tls);
        let outside = info.route_name.borrow().as_deref().and_then(Outside::of_route);
        // Where the service has a host name of its own, that of the request tells nothing.
        let named = outside.is_none() && service.is_some_and(|service| service.host.is_some());
        let is_grpc = request.came_as_grpc;
        let workload = &worker.process.workload;
        let dimensions = match settings.dimensions.is_empty() {
            true => Vec::new(),
            false => {
                let (client, endpoint) = (peers.downstream.as_deref(), peers.upstream.as_deref());
                dimensions(settings, &request.facts(), workload, client, endpoint)
            }
        };
        let parts = Parts {
            side: *side,
            own: workload.own(),
            peer: peer.as_ref().map(|told| &told.peer),
            endpoint: endpoint.as_ref().map(|told| &told.peer),
            peer_principal,
            own_principal,
            service: service.map(|service| &**service),
            outside,
            host: if settings.host_fallback && !named { request.head.authority_str() } else { "" },
            protocol: if is_grpc { Protocol::Grpc } else { Protocol::Http },
            code: info.response_code.get(),
            grpc_status: if is_grpc { grpc_status_of(&request.facts()) } else { None },
            flags: info.flags.get(),
            dimensions: &dimensions,
        };
        let series = self.lookup.borrow_mut().find(worker, settings, service, ids, &parts);
        series.add(MeshMetric::Requests, 1);
        let now = info.end.get().unwrap_or_else(std::time::Instant::now);
        let recorded = [
            (MeshMetric::Duration, u64::try_from(info.duration(now).as_millis()).unwrap_or(u64::MAX)),
            (MeshMetric::RequestBytes, info.request_header_bytes.get() + info.bytes_received.get()),
            (MeshMetric::ResponseBytes, info.response_header_bytes.get() + info.bytes_sent.get()),
        ];
        for (metric, value) in recorded {
            series.add(metric, value);
        }
        exemplar::keep_named(request, now, || series.named(settings, recorded, &parts));
        if let (true, Some((sent, answered))) = (is_grpc, info.grpc_messages.get()) {
            series.add(MeshMetric::RequestMessages, sent);
            series.add(MeshMetric::ResponseMessages, answered);
        }
    }
}
