//! One xDS stream: aggregated or of one type, state of the world or delta, across all its connections.
//!
//! Owns which types it carries, the order of requests, their rate, and when to connect again. Never performs I/O: the
//! caller connects when [`StreamCore::poll_connect`] says so, sends what [`StreamCore::poll_request`] gives, and
//! reports what happens.
//!
//! ```text
//! Waiting --poll_connect, something is wanted--> Connecting --stream_opened--> Open
//!    ^                                              |                          |
//!    +------------------- stream_closed (backoff) --+--------------------------+
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use outrigger_api::pb::envoy::config::core::v3::{ControlPlane, Node};
use outrigger_api::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

use super::delta::DeltaWire;
use super::rate_limit::TokenBucket;
use super::sotw::SotwWire;
use super::typed::{Judge, Reading, TypedState};
use super::{Backoff, Event, Interest, RateLimit, Rejection, ResourceKind, decode};

/// The variant of the protocol on a stream.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// State of the world (`GRPC`, `AGGREGATED_GRPC`).
    Sotw,
    /// Incremental (`DELTA_GRPC`, `AGGREGATED_DELTA_GRPC`).
    Delta,
}

/// How a stream came to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// It had brought at least one response: servers end such streams to rebalance or by age.
    Normal,
    /// It could not be established, or ended without a response.
    Failure,
}

/// What a stream needs to know from the start.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// The variant of the protocol.
    pub protocol: Protocol,
    /// Who we are.
    pub node: Node,
    /// Send the node only in the first request of each stream (`set_node_on_first_message_only`).
    pub node_on_first_message_only: bool,
    /// Ask for everything by the name `*` instead of by an empty list. Some servers take `*` for a name.
    pub explicit_wildcard: bool,
    /// Limit of requests, `None` for none (`rate_limit_settings`).
    pub rate_limit: Option<RateLimit>,
    /// The only type of this stream, `None` if it is aggregated.
    pub only: Option<ResourceKind>,
}

/// A message to the control plane.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// State of the world.
    Sotw(DiscoveryRequest),
    /// Delta.
    Delta(DeltaDiscoveryRequest),
}

/// A message from the control plane.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// State of the world.
    Sotw(DiscoveryResponse),
    /// Delta.
    Delta(DeltaDiscoveryResponse),
}

/// The stream. See the module's drawing.
#[derive(Debug)]
pub struct StreamCore {
    options: StreamOptions,
    link: Link,
    backoff: Backoff,
    bucket: Option<TokenBucket>,
    types: BTreeMap<ResourceKind, Carried>,
    /// Types that may have something to say, oldest first.
    ready: VecDeque<ResourceKind>,
    /// When something held back by damping or the rate limit may go out.
    blocked_until: Option<Instant>,
    node_sent: bool,
    control_plane: String,
    events: VecDeque<Event>,
}

#[derive(Debug)]
enum Link {
    Waiting { until: Option<Instant> },
    Connecting,
    Open { answered: bool },
}

#[derive(Debug)]
enum Wire {
    Sotw(SotwWire),
    Delta(DeltaWire),
}

/// One type on the stream.
#[derive(Debug)]
struct Carried {
    state: TypedState,
    wire: Wire,
    queued: bool,
}

impl StreamCore {
    /// A stream that wants nothing yet and is not connected.
    #[must_use]
    pub fn new(options: StreamOptions) -> Self {
        Self {
            bucket: options.rate_limit.map(TokenBucket::new),
            options,
            link: Link::Waiting { until: None },
            backoff: Backoff::new(),
            types: BTreeMap::new(),
            ready: VecDeque::new(),
            blocked_until: None,
            node_sent: false,
            control_plane: String::new(),
            events: VecDeque::new(),
        }
    }

    /// Adds a reference to a name or the wildcard. `fetch_timeout` is `initial_fetch_timeout`; `None` or zero waits for
    /// ever.
    pub fn subscribe(
        &mut self,
        kind: ResourceKind,
        interest: &Interest,
        fetch_timeout: Option<Duration>,
        now: Instant,
    ) {
        let protocol = self.options.protocol;
        let carried = self.types.entry(kind).or_insert_with(|| Carried::new(kind, protocol));
        carried.state.subscribe(interest, fetch_timeout, now);
        self.queue(kind);
    }

    /// Takes a reference away. The last one ends the subscription.
    pub fn unsubscribe(&mut self, kind: ResourceKind, interest: &Interest) {
        if let Some(carried) = self.types.get_mut(&kind) {
            carried.state.unsubscribe(interest);
            self.queue(kind);
        }
    }

    /// Whether no type has a subscription, so that the stream may be given up.
    #[must_use]
    pub fn wants_nothing(&self) -> bool {
        self.types.values().all(|carried| carried.state.subscription.wants_nothing())
    }

    /// True once when it is time to connect and open the stream.
    pub fn poll_connect(&mut self, now: Instant) -> bool {
        match self.link {
            Link::Waiting { until } if until.is_none_or(|until| until <= now) && !self.wants_nothing() => {
                self.link = Link::Connecting;
                true
            }
            _ => false,
        }
    }

    /// The stream is established; nothing of an earlier one is valid any more.
    pub fn stream_opened(&mut self) {
        self.link = Link::Open { answered: false };
        self.node_sent = false;
        self.ready.clear();
        self.blocked_until = None;
        for (kind, carried) in &mut self.types {
            carried.reset_stream();
            carried.queued = true;
            self.ready.push_back(*kind);
        }
        self.events.push_back(Event::Connected(true));
    }

    /// The stream ended or could not be established. What is held stays in use. `jitter` is random in `0.0..1.0`.
    pub fn stream_closed(&mut self, now: Instant, jitter: f64) -> Ending {
        let ending = match self.link {
            Link::Waiting { .. } | Link::Open { answered: true } => Ending::Normal,
            Link::Connecting | Link::Open { answered: false } => Ending::Failure,
        };
        if matches!(self.link, Link::Waiting { .. }) {
            return ending;
        }
        if ending == Ending::Failure {
            for carried in self.types.values_mut() {
                carried.state.stats.update_attempt += 1;
                carried.state.stats.update_failure += 1;
            }
        }
        if matches!(self.link, Link::Open { .. }) {
            self.events.push_back(Event::Connected(false));
        }
        self.blocked_until = None;
        self.link = Link::Waiting { until: Some(now + self.backoff.next_delay(jitter)) };
        ending
    }

    /// Takes a response in, has it judged, and queues the one ACK or NACK for it.
    ///
    /// Responses of types that were not asked for on this stream are ignored.
    pub fn on_response(&mut self, response: Response, now: Instant, judge: &mut Judge<'_>) {
        let Link::Open { answered } = &mut self.link else { return };
        *answered = true;
        self.backoff.reset();
        let (type_url, control_plane) = match &response {
            Response::Sotw(response) => (response.type_url.as_str(), &response.control_plane),
            Response::Delta(response) => (response.type_url.as_str(), &response.control_plane),
        };
        if let Some(ControlPlane { identifier }) = control_plane {
            self.control_plane.clone_from(identifier);
        }
        let kind = if type_url.is_empty() { self.options.only } else { ResourceKind::from_type_url(type_url) };
        let Some((kind, carried)) = kind.and_then(|kind| Some((kind, self.types.get_mut(&kind)?))) else {
            tracing::debug!(type_url, "ignoring a response of a type that nobody asked for");
            return;
        };
        if carried.wire.is_open() && carried.answer(response, now, judge) {
            self.queue(kind);
        }
    }

    /// The next request to send. Call until `None` after each change; changes made in between share a request.
    pub fn poll_request(&mut self, now: Instant) -> Option<Request> {
        self.blocked_until = None;
        if !matches!(self.link, Link::Open { .. }) {
            return None;
        }
        for _ in 0..self.ready.len() {
            let kind = self.ready.pop_front()?;
            let Some(carried) = self.types.get_mut(&kind) else { continue };
            if let Some(until) = carried.wire.held_until(&carried.state, now) {
                self.blocked_until = Some(self.blocked_until.map_or(until, |other| other.min(until)));
                self.ready.push_back(kind);
                continue;
            }
            if let Some(bucket) = &mut self.bucket {
                let ready_at = bucket.ready_at(now);
                if ready_at > now {
                    self.blocked_until = Some(ready_at);
                    self.ready.push_front(kind);
                    return None;
                }
            }
            let request = carried.compose(self.options.explicit_wildcard, now);
            carried.queued = carried.has_more();
            if carried.queued {
                self.ready.push_back(kind);
            }
            if let Some(request) = request {
                if let Some(bucket) = &mut self.bucket {
                    bucket.take();
                }
                return Some(self.with_node(request));
            }
        }
        None
    }

    fn with_node(&mut self, mut request: Request) -> Request {
        if !self.node_sent || !self.options.node_on_first_message_only {
            let node = Some(self.options.node.clone());
            match &mut request {
                Request::Sotw(request) => request.node = node,
                Request::Delta(request) => request.node = node,
            }
            self.node_sent = true;
        }
        request
    }

    /// Something that happened without a response.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        self.types.values_mut().find_map(|carried| carried.state.poll_event())
    }

    /// When [`Self::handle_timeout`], [`Self::poll_connect`] and [`Self::poll_request`] should be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let reconnect = match self.link {
            Link::Waiting { until } if !self.wants_nothing() => until,
            _ => None,
        };
        let timers = self.types.values().filter_map(|carried| carried.state.poll_timeout());
        timers.chain(reconnect).chain(self.blocked_until).min()
    }

    /// Lets deadlines pass: time to live and `initial_fetch_timeout`.
    pub fn handle_timeout(&mut self, now: Instant) {
        for carried in self.types.values_mut() {
            carried.state.handle_timeout(now);
        }
    }

    /// Takes back resources of an [`Origin::Cache`](super::Origin::Cache) update that were refused.
    pub fn reject_held(&mut self, kind: ResourceKind, rejections: &[Rejection], now: Instant) {
        if let Some(carried) = self.types.get_mut(&kind) {
            carried.state.reject_held(rejections, now);
        }
    }

    /// Whether the stream is established (`control_plane.connected_state`).
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(self.link, Link::Open { .. })
    }

    /// What the server calls itself (`control_plane.identifier`); empty if it does not say.
    #[must_use]
    pub fn control_plane(&self) -> &str {
        &self.control_plane
    }

    /// The types of this stream.
    pub fn types(&self) -> impl Iterator<Item = &TypedState> {
        self.types.values().map(|carried| &carried.state)
    }

    fn queue(&mut self, kind: ResourceKind) {
        if let (Link::Open { .. }, Some(carried)) = (&self.link, self.types.get_mut(&kind))
            && !carried.queued
        {
            carried.queued = true;
            self.ready.push_back(kind);
        }
    }
}

impl Wire {
    fn is_open(&self) -> bool {
        match self {
            Self::Sotw(wire) => wire.is_open(),
            Self::Delta(wire) => wire.is_open(),
        }
    }

    fn held_until(&self, state: &TypedState, now: Instant) -> Option<Instant> {
        match self {
            Self::Sotw(wire) => wire.held_until(state, now),
            Self::Delta(wire) => wire.held_until(state, now),
        }
    }
}

impl Carried {
    fn new(kind: ResourceKind, protocol: Protocol) -> Self {
        let wire = match protocol {
            Protocol::Sotw => Wire::Sotw(SotwWire::default()),
            Protocol::Delta => Wire::Delta(DeltaWire::default()),
        };
        Self { state: TypedState::new(kind), wire, queued: false }
    }

    fn reset_stream(&mut self) {
        self.state.subscription.reset_sent();
        match &mut self.wire {
            Wire::Sotw(wire) => wire.reset_stream(),
            Wire::Delta(wire) => wire.reset_stream(),
        }
    }

    /// True if an answer is now queued.
    fn answer(&mut self, response: Response, now: Instant, judge: &mut Judge<'_>) -> bool {
        let Self { state, wire, queued: _ } = self;
        let kind = state.kind();
        match (wire, response) {
            (Wire::Sotw(wire), Response::Sotw(response)) => {
                let decoded = decode::sotw(kind, response);
                let (nonce, version) = (decoded.nonce.clone(), decoded.version.clone());
                let rejections = state.apply(decoded, Reading::Sotw, now, judge);
                wire.answered(kind, nonce, version, &rejections, now);
                true
            }
            (Wire::Delta(wire), Response::Delta(response)) => {
                let decoded = decode::delta(kind, response);
                let nonce = decoded.nonce.clone();
                let rejections = state.apply(decoded, Reading::Delta, now, judge);
                wire.answered(kind, nonce, &rejections, now);
                true
            }
            // The transport speaks one variant per stream, so the other one cannot arrive.
            (Wire::Sotw(_), Response::Delta(_)) | (Wire::Delta(_), Response::Sotw(_)) => false,
        }
    }

    fn compose(&mut self, explicit_wildcard: bool, now: Instant) -> Option<Request> {
        match &mut self.wire {
            Wire::Sotw(wire) => wire.compose(&mut self.state, explicit_wildcard).map(Request::Sotw),
            Wire::Delta(wire) => wire.compose(&mut self.state, explicit_wildcard, now).map(Request::Delta),
        }
    }

    fn has_more(&self) -> bool {
        match &self.wire {
            Wire::Sotw(wire) => wire.has_more(&self.state),
            Wire::Delta(wire) => wire.has_more(&self.state),
        }
    }
}
