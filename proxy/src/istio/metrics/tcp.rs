//! What is reported of a TCP connection.
//!
//! Owns when that happens: every interval once it is known who the peer is, and at the end. Never moves bytes.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::task::Context;

use outrigger_config::istio::MeshMetric;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::super::peer::Heard;
use super::labels::{Parts, Protocol, Side};
use super::series::{Room, Series};
use super::{Reporter, dimensions, principals};
use crate::accesslog::Facts;
use crate::stream::{ConnectionInfo, ResponseFlags, StreamInfo};
use crate::worker::Worker;

/// The reports of one connection.
#[derive(Debug)]
pub struct TcpReport {
    reporter: Reporter,
    /// What the endpoint says of itself.
    endpoint: Heard,
    /// Where the connection counts, once it does.
    series: RefCell<Option<Series>>,
    /// What labels say went wrong: the same from the first report to the last.
    flags: Cell<ResponseFlags>,
    /// Bytes received and sent that were reported.
    reported: Cell<(u64, u64)>,
    ticks: RefCell<Option<Interval>>,
}

impl TcpReport {
    /// Of a connection that begins.
    pub fn begin(worker: &Worker, reporter: &Reporter) -> Self {
        reporter.begin(worker);
        let ticks = reporter.settings.tcp_interval.map(|period| {
            let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        Self {
            reporter: reporter.clone(),
            endpoint: Heard::default(),
            series: RefCell::default(),
            flags: Cell::default(),
            reported: Cell::default(),
            ticks: RefCell::new(ticks),
        }
    }

    /// Where the endpoint's words go, if they are wanted.
    pub fn endpoint(&self) -> Option<Heard> {
        (self.reporter.side != Side::Destination).then(|| Arc::clone(&self.endpoint))
    }

    /// Reports what is due, and wakes the task when there is more.
    pub fn poll(&self, cx: &mut Context<'_>, worker: &Worker, connection: &ConnectionInfo, info: &StreamInfo) {
        let mut due = false;
        if let Some(ticks) = self.ticks.borrow_mut().as_mut() {
            while ticks.poll_tick(cx).is_ready() {
                due = true;
            }
        }
        if due {
            self.report(worker, connection, info, false);
        }
    }

    /// Reports the rest.
    pub fn end(&self, worker: &Worker, connection: &ConnectionInfo, info: &StreamInfo) {
        self.report(worker, connection, info, true);
    }

    fn report(&self, worker: &Worker, connection: &ConnectionInfo, info: &StreamInfo, end: bool) {
        let mut series = self.series.borrow_mut();
        let is_first = series.is_none();
        if is_first {
            // Who does not say who it is by then will not do so any more.
            if !end && self.is_awaited(connection) {
                return;
            }
            self.flags.set(info.flags.get());
        }
        if series.as_ref().is_none_or(|series| !series.is_whole()) {
            *series = Some(self.look_up(worker, connection, info));
        }
        let Some(series) = &*series else { return };
        if is_first {
            series.add(MeshMetric::TcpOpened, 1);
        }
        let (received, sent) = (info.bytes_received.get(), info.bytes_sent.get());
        let (received_before, sent_before) = self.reported.replace((received, sent));
        series.add(MeshMetric::TcpSent, sent - sent_before);
        series.add(MeshMetric::TcpReceived, received - received_before);
        if end {
            series.add(MeshMetric::TcpClosed, 1);
        }
    }

    /// What the other side says of itself, as far as it is told in this connection.
    fn peer<'a>(&'a self, connection: &'a ConnectionInfo) -> Option<&'a Heard> {
        match self.reporter.side {
            Side::Source => Some(&self.endpoint),
            Side::Destination | Side::Gateway => connection.peer_words.get(),
        }
    }

    fn is_awaited(&self, connection: &ConnectionInfo) -> bool {
        self.peer(connection).is_some_and(|heard| heard.get().is_none())
    }

    fn look_up(&self, worker: &Worker, connection: &ConnectionInfo, info: &StreamInfo) -> Series {
        let told = |heard: Option<&Heard>| {
            let words = heard?.get().filter(|words| !words.is_empty())?;
            worker.mesh.peers.in_preamble(words)
        };
        let side = self.reporter.side;
        let peer = told(self.peer(connection));
        let endpoint = told(Some(&self.endpoint).filter(|_| side == Side::Gateway));
        let upstream = info.upstream_tls.borrow();
        let tls = if side == Side::Source { upstream.as_deref() } else { connection.tls.as_ref() };
        let (peer_principal, own_principal) = principals(tls);
        let cluster = info.cluster_config.borrow();
        let facts = Facts::new(info, connection, &worker.process.clock, std::time::Instant::now());
        let (downstream, upstream_peer) = match side {
            Side::Source => (None, peer.as_deref()),
            Side::Destination | Side::Gateway => (peer.as_deref(), endpoint.as_deref()),
        };
        let settings = &*self.reporter.settings;
        let dimensions = dimensions(settings, &facts, &worker.process.workload, downstream, upstream_peer);
        let parts = Parts {
            side,
            own: worker.process.workload.own(),
            peer: peer.as_deref().map(|told| &told.peer),
            endpoint: endpoint.as_deref().map(|told| &told.peer),
            peer_principal,
            own_principal,
            service: cluster.as_deref().and_then(|cluster| cluster.istio.service.as_deref()),
            outside: None,
            host: "",
            protocol: Protocol::Tcp,
            code: 0,
            grpc_status: None,
            flags: self.flags.get(),
            dimensions: &dimensions,
        };
        Series::look_up(&worker.mesh.series, &Room::of(worker), settings, CONNECTION_METRICS, &parts)
    }
}

const CONNECTION_METRICS: &[MeshMetric] =
    &[MeshMetric::TcpOpened, MeshMetric::TcpClosed, MeshMetric::TcpSent, MeshMetric::TcpReceived];
