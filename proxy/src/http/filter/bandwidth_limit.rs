//! The bandwidth limit filter: lets bodies on no faster than a rate that all of them share.
//!
//! Owns which bodies are slowed down, how long each took, and what is told of it. How many bytes are free is counted in
//! `outrigger_policy::bandwidth`.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{BandwidthLimit as Settings, BandwidthTrailers};
use outrigger_policy::bandwidth::Bandwidth;
use tokio::time::Sleep;

use super::body::{BodyObserver, BodyPace};
use super::{Exchange, HttpFilter, Maker, SettingsStates, Verdict};
use crate::http::headers::Headers;
use crate::network::holds;
use crate::scope;
use crate::stats::{AsMetric, Counter, Gauge, Histogram, Metric, Scope, names};
use crate::worker::Worker;

/// Stats of the filter (`<prefix>.http_bandwidth_limit.*`).
#[derive(Debug, Default)]
pub struct BandwidthStats {
    request: DirectionStats,
    response: DirectionStats,
}

#[derive(Debug, Default)]
struct DirectionStats {
    enabled: Counter,
    enforced: Counter,
    pending: Gauge,
    incoming_total_size: Counter,
    allowed_total_size: Counter,
    transfer_duration: Histogram,
}

impl Scope for BandwidthStats {
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Metric<'_>)) {
        let Self { request, response } = self;
        visit("request_enabled", request.enabled.as_metric());
        visit("response_enabled", response.enabled.as_metric());
        visit("request_enforced", request.enforced.as_metric());
        visit("response_enforced", response.enforced.as_metric());
        visit("request_pending", request.pending.as_metric());
        visit("response_pending", response.pending.as_metric());
        visit("request_incoming_total_size", request.incoming_total_size.as_metric());
        visit("response_incoming_total_size", response.incoming_total_size.as_metric());
        visit("request_allowed_total_size", request.allowed_total_size.as_metric());
        visit("response_allowed_total_size", response.allowed_total_size.as_metric());
        visit("request_transfer_duration", request.transfer_duration.as_metric());
        visit("response_transfer_duration", response.transfer_duration.as_metric());
    }
}

scope! {
    /// Sizes of the last pieces of bodies (`<prefix>.http_bandwidth_limit.*`); there is one instance for all workers, since
    /// the last one counts and not the sum.
    pub struct LastSizes {
        request_allowed_size: Gauge,
        request_incoming_size: Gauge,
        response_allowed_size: Gauge,
        response_incoming_size: Gauge,
    }
}

/// The filter.
pub struct BandwidthLimit {
    settings: Arc<Settings>,
    limits: SettingsStates<Settings, Limit>,
}

/// The limit of some settings, in one worker.
struct Limit {
    settings: Arc<Settings>,
    stats: Arc<BandwidthStats>,
    sizes: Arc<Sizes>,
    /// Of all workers.
    bytes: Arc<Bytes>,
}

struct Sizes(Arc<LastSizes>);

struct Bytes {
    free: Bandwidth,
    made: Instant,
}

/// A body on its way.
struct Transfer {
    limit: Rc<Limit>,
    direction: Direction,
    began: Cell<Option<Instant>>,
    /// From the first byte to the last, once that has passed.
    took: Cell<Duration>,
    /// How much of that was for the limit.
    waited: Cell<Duration>,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Direction {
    Request,
    Response,
}

/// What the filter keeps for a request.
#[derive(Default)]
struct Upload(Option<Rc<Transfer>>);

impl BandwidthLimit {
    /// A filter; its bytes are those of the same settings in other workers.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        let filter = Self { settings: Arc::clone(settings), limits: SettingsStates::default() };
        // Stats are there from the start.
        filter.limit(settings, maker.worker);
        filter
    }

    fn limit(&self, settings: &Arc<Settings>, worker: &Worker) -> Rc<Limit> {
        self.limits.get(settings, || {
            let prefix = names::prefix(&names::sanitize(&settings.stat_prefix), "http_bandwidth_limit");
            let process = &worker.process;
            let Settings { bytes_per_second, fill_interval, .. } = **settings;
            Limit {
                settings: Arc::clone(settings),
                stats: worker.scope(&prefix),
                sizes: process.shared.get(&prefix, || Sizes(process.stats.scope(&prefix))),
                bytes: process.shared.of(settings, || Bytes {
                    free: Bandwidth::new(bytes_per_second, fill_interval),
                    made: Instant::now(),
                }),
            }
        })
    }

    /// The limit of this route, if it holds for this direction.
    fn limit_of(&self, direction: Direction, exchange: &Exchange<'_, '_, '_>) -> Option<Rc<Limit>> {
        let settings = match exchange.route_config() {
            Some(RouteFilterConfig::BandwidthLimit(settings)) => settings,
            _ => &self.settings,
        };
        let is_meant = match direction {
            Direction::Request => settings.requests,
            Direction::Response => settings.responses,
        };
        (is_meant && holds(&settings.enabled, exchange.runtime())).then(|| self.limit(settings, exchange.worker()))
    }
}

impl HttpFilter for BandwidthLimit {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(limit) = self.limit_of(Direction::Request, exchange) else { return Verdict::Continue };
        limit.stats.request.enabled.increment();
        if exchange.has_no_body() {
            return Verdict::Continue;
        }
        let transfer = Transfer::new(limit, Direction::Request);
        exchange.pace_request(Box::new(Pace::new(&transfer)));
        exchange.observe_request(Box::new(RequestEnd(Rc::clone(&transfer))));
        *exchange.state::<Upload>() = Upload(Some(transfer));
        Verdict::Continue
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let Some(limit) = self.limit_of(Direction::Response, exchange) else { return Verdict::Continue };
        limit.stats.response.enabled.increment();
        if exchange.response_has_no_body() {
            return Verdict::Continue;
        }
        let upload = exchange.known_state::<Upload>().and_then(|upload| upload.0.clone());
        let transfer = Transfer::new(limit, Direction::Response);
        exchange.pace_response(Box::new(Pace::new(&transfer)));
        exchange.observe_response(Box::new(ResponseEnd { upload, download: transfer }));
        Verdict::Continue
    }
}

impl Transfer {
    fn new(limit: Rc<Limit>, direction: Direction) -> Rc<Self> {
        Rc::new(Self {
            limit,
            direction,
            began: Cell::new(None),
            took: Cell::new(Duration::ZERO),
            waited: Cell::new(Duration::ZERO),
        })
    }

    fn stats(&self) -> &DirectionStats {
        match self.direction {
            Direction::Request => &self.limit.stats.request,
            Direction::Response => &self.limit.stats.response,
        }
    }

    fn came(&self, bytes: usize) {
        if self.began.get().is_none() {
            self.began.set(Some(Instant::now()));
            self.stats().pending.increment();
        }
        self.stats().incoming_total_size.add(bytes as u64);
        let sizes = &self.limit.sizes.0;
        match self.direction {
            Direction::Request => sizes.request_incoming_size.set(bytes as i64),
            Direction::Response => sizes.response_incoming_size.set(bytes as i64),
        }
    }

    /// Takes what is free; if that is less than wanted, there is a wait for more.
    fn take(&self, wanted: usize) -> usize {
        let Bytes { free, made } = &*self.limit.bytes;
        let taken = free.take(wanted as u64, made.elapsed()) as usize;
        let stats = self.stats();
        stats.allowed_total_size.add(taken as u64);
        let sizes = &self.limit.sizes.0;
        match self.direction {
            Direction::Request => sizes.request_allowed_size.set(taken as i64),
            Direction::Response => sizes.response_allowed_size.set(taken as i64),
        }
        if taken < wanted {
            stats.enforced.increment();
            self.waited.set(self.waited.get() + self.limit.settings.fill_interval);
        }
        taken
    }

    fn end(&self) {
        let Some(began) = self.began.take() else { return };
        let stats = self.stats();
        let took = began.elapsed();
        self.took.set(took);
        stats.pending.decrement();
        stats.transfer_duration.record(took.as_millis() as u64);
    }
}

impl Drop for Transfer {
    /// A body that was broken off.
    fn drop(&mut self) {
        if self.began.get().is_some() {
            self.stats().pending.decrement();
        }
    }
}

/// Holds one body back.
struct Pace {
    transfer: Rc<Transfer>,
    /// Bytes that were taken and have not gone on.
    taken: usize,
    /// Bytes that came and have not gone on.
    at_hand: usize,
    next: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn new(transfer: &Rc<Transfer>) -> Self {
        Self { transfer: Rc::clone(transfer), taken: 0, at_hand: 0, next: None }
    }
}

impl BodyPace for Pace {
    fn poll_allowance(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        if wanted > self.at_hand {
            self.transfer.came(wanted - self.at_hand);
            self.at_hand = wanted;
        }
        while self.taken == 0 {
            if let Some(next) = &mut self.next {
                ready!(next.as_mut().poll(cx));
                self.next = None;
            }
            self.taken = self.transfer.take(wanted);
            if self.taken < wanted {
                self.next = Some(Box::pin(tokio::time::sleep(self.transfer.limit.settings.fill_interval)));
            }
        }
        Poll::Ready(self.taken.min(wanted))
    }

    fn passed(&mut self, count: usize) {
        self.taken = self.taken.saturating_sub(count);
        self.at_hand = self.at_hand.saturating_sub(count);
    }
}

/// Notices that a request body is through.
struct RequestEnd(Rc<Transfer>);

impl BodyObserver for RequestEnd {
    fn data(&mut self, _: &[u8]) {}

    fn end(&mut self, _: &mut Option<Headers>) {
        self.0.end();
    }
}

/// Notices that a response body is through, and tells how long it took.
struct ResponseEnd {
    upload: Option<Rc<Transfer>>,
    download: Rc<Transfer>,
}

impl BodyObserver for ResponseEnd {
    fn data(&mut self, _: &[u8]) {}

    fn end(&mut self, trailers: &mut Option<Headers>) {
        self.download.end();
        let Some(names) = &self.download.limit.settings.trailers else { return };
        let BandwidthTrailers { request, response, request_filter, response_filter } = names;
        let (took, waited) = self.upload.as_ref().map_or_else(Default::default, |up| (up.took.get(), up.waited.get()));
        for (name, time) in [
            (request, took),
            (response, self.download.took.get()),
            (request_filter, waited),
            (response_filter, self.download.waited.get()),
        ] {
            let milliseconds = time.as_millis();
            if milliseconds > 0 {
                let trailers = trailers.get_or_insert_default();
                trailers.set_by_name(name, milliseconds.to_string().as_bytes());
            }
        }
    }
}
