//! What a filter may see and change of a request and its response.
//!
//! Owns the view on a request that filters work with, and the choice of the route. Never decides who is asked when.

use std::any::Any;
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::http::{RouteFilter, RouteFilterConfig};
use outrigger_config::metadata::MetadataMap;
use outrigger_config::route::{ClusterChoice, RouteAction, WeightChoice, WeightedCluster};
use outrigger_policy::route::{fraction_holds, pick_weighted};

use super::body::{BodyChain, BodyFilter, BodyObserver, BodyPace, BodyStage};
use super::routed::Routed;
use super::{Slot, Verdict, delegate};
use crate::graph::{ClusterNode, Graph, RuntimeSnapshot};
use crate::http::h1::parse::{Framing, decimal};
use crate::http::headers::{HeaderId, Headers};
use crate::http::manager::HttpConnection;
use crate::http::manager::request::{Chosen, Request};
use crate::http::message::{RequestHead, ResponseHead};
use crate::http::router::affinity::route_hash;
use crate::stream::StreamInfo;
use crate::worker::{GraphView, Worker};

/// Where the routes are looked up, and which one the request has.
pub struct RouteChoice<'g> {
    connection: &'g HttpConnection,
    graph: &'g GraphView,
    /// The route; `None` if there is none.
    pub chosen: Option<Chosen<'g>>,
}

impl<'g> RouteChoice<'g> {
    /// Chooses the route of `request`.
    pub fn new(connection: &'g HttpConnection, graph: &'g GraphView, request: &Request<'_>) -> Self {
        let mut choice = Self { connection, graph, chosen: None };
        choice.choose(request);
        choice
    }

    /// A choice that was made before.
    pub fn of(connection: &'g HttpConnection, graph: &'g GraphView, chosen: Option<Chosen<'g>>) -> Self {
        Self { connection, graph, chosen }
    }

    /// Chooses the route again, by the head as it stands now.
    pub fn choose(&mut self, request: &Request<'_>) {
        self.chosen = self.connection.routes(self.graph, &request.head).and_then(|table| {
            let random = self.connection.worker.random.next();
            let found = table.find(&Routed(request), random, &*self.graph.runtime).ok()?;
            Some(Chosen {
                table,
                virtual_host: found.virtual_host,
                route: found.route,
                weighted: weighted(request, &found.route.action),
            })
        });
    }
}

fn weighted<'g>(request: &Request<'_>, action: &'g RouteAction) -> Option<&'g WeightedCluster> {
    let RouteAction::Forward(forward) = action else { return None };
    let ClusterChoice::Weighted(clusters) = &forward.cluster else { return None };
    let chosen = match &forward.weight_choice {
        WeightChoice::Random => None,
        WeightChoice::Header(name) => request.head.headers.get_by_name(name).and_then(decimal),
        WeightChoice::Hash => route_hash(request, forward),
    };
    let random = chosen.unwrap_or_else(|| request.connection.worker.random.next());
    pick_weighted(clusters, random, |key| request.graph.runtime.integer(key))
}

impl<'g> Chosen<'g> {
    /// What is said of the filter `name`, the most specific level first: weighted cluster, route, virtual host, route
    /// configuration.
    pub fn route_filters<'n>(&self, name: &'n str) -> impl Iterator<Item = &'g RouteFilter> + use<'g, 'n> {
        let levels = [
            self.weighted.map(|weighted| &weighted.filters),
            Some(&self.route.filters),
            Some(&self.virtual_host.filters),
            Some(&self.table.configuration().filters),
        ];
        levels.into_iter().flatten().filter_map(move |level| level.get(name))
    }
}

impl<'g> Chosen<'g> {
    /// The cluster that a request with this head goes to; `None` if it goes to none.
    pub fn cluster_name<'n>(&self, head: &'n RequestHead) -> Option<Cow<'n, str>>
    where
        'g: 'n,
    {
        let RouteAction::Forward(forward) = &self.route.action else { return None };
        match &forward.cluster {
            ClusterChoice::Cluster(name) => Some(Cow::Borrowed(name)),
            ClusterChoice::Weighted(_) => match self.weighted? {
                WeightedCluster { name_header: Some(header), .. } => named_by(head, header),
                weighted => Some(Cow::Borrowed(&*weighted.name)),
            },
            ClusterChoice::Header(header) => named_by(head, header),
        }
    }
}

fn named_by<'n>(head: &'n RequestHead, header: &str) -> Option<Cow<'n, str>> {
    match head.lookup(header)? {
        Cow::Borrowed(name) => std::str::from_utf8(name).ok().map(Cow::Borrowed),
        Cow::Owned(name) => String::from_utf8(name).ok().map(Cow::Owned),
    }
}

/// What filters keep for one request, by their places in the chain.
#[derive(Default)]
pub struct FilterStates {
    kept: Vec<Option<Box<dyn Any>>>,
    /// Who was chosen in the places of filters that choose; nothing without such ones.
    delegates: Option<Box<Delegates>>,
}

/// By their places.
type Delegates = Vec<(usize, delegate::Chosen)>;

/// A request, and its response once there is one, as one filter sees it.
pub struct Exchange<'a, 'r, 'g> {
    pub(super) request: &'a mut Request<'r>,
    pub(super) route: &'a mut RouteChoice<'g>,
    pub(super) slot: usize,
    /// The answer is made here.
    pub(super) local: bool,
}

impl<'a, 'r, 'g> Exchange<'a, 'r, 'g> {
    /// A view for the filter in place `slot`.
    pub(super) fn new(request: &'a mut Request<'r>, route: &'a mut RouteChoice<'g>, slot: usize, local: bool) -> Self {
        Self { request, route, slot, local }
    }

    /// The request head.
    pub fn head(&self) -> &RequestHead {
        &self.request.head
    }

    /// The request head, to be changed. Changing what routes match on has no effect before [`Exchange::reroute`].
    pub fn head_mut(&mut self) -> &mut RequestHead {
        &mut self.request.head
    }

    /// The response head.
    pub fn response(&self) -> &ResponseHead {
        &self.request.response
    }

    /// The response head, to be changed.
    pub fn response_mut(&mut self) -> &mut ResponseHead {
        &mut self.request.response
    }

    /// The trailers of the response, once it has ended.
    pub fn response_trailers(&self) -> Option<&Headers> {
        self.request.trailers.as_ref()
    }

    /// Whether the response is an answer of our own.
    pub fn is_local_reply(&self) -> bool {
        self.local
    }

    /// No body follows the request head.
    pub fn has_no_body(&self) -> bool {
        self.request.framing == Framing::None
    }

    /// No body follows the response head.
    pub fn response_has_no_body(&self) -> bool {
        self.request.response_ended
    }

    /// What is recorded of the request.
    pub fn info(&self) -> &StreamInfo {
        &self.request.info
    }

    /// The connection it came on.
    pub fn connection(&self) -> &Rc<HttpConnection> {
        self.request.connection
    }

    /// The worker that serves it.
    pub fn worker(&self) -> &Rc<Worker> {
        &self.request.connection.worker
    }

    /// The configuration that it was begun with.
    pub fn graph(&self) -> &Graph {
        &self.request.graph
    }

    /// The request itself, for formats.
    pub fn stream(&self) -> &Request<'r> {
        self.request
    }

    /// The request itself, to be changed by formats.
    pub fn request_mut(&mut self) -> &mut Request<'r> {
        self.request
    }

    /// Runtime values.
    pub fn runtime(&self) -> &RuntimeSnapshot {
        &self.request.graph.runtime
    }

    /// The name of the cluster that the route leads to.
    pub fn cluster_name(&self) -> Option<Cow<'_, str>> {
        self.chosen()?.cluster_name(&self.request.head)
    }

    /// The cluster that the route leads to, if there is such a one.
    pub fn cluster(&self) -> Option<&Arc<ClusterNode>> {
        self.request.graph.clusters.get(&*self.cluster_name()?)
    }

    /// The name of this filter in the chain.
    pub fn name(&self) -> &str {
        &self.slot().name
    }

    /// Sets values of dynamic metadata; others of the namespace stay.
    pub fn set_metadata(&self, namespace: &str, values: &MetadataMap) {
        let mut metadata = self.request.info.dynamic_metadata.borrow_mut();
        let known = metadata.entry(namespace.to_owned()).or_default();
        known.extend(values.iter().map(|(key, value)| (key.clone(), value.clone())));
    }

    /// The route; `None` if no route matches.
    pub fn chosen(&self) -> Option<&Chosen<'g>> {
        self.route.chosen.as_ref()
    }

    /// Looks for a route by the head as it stands now.
    pub fn reroute(&mut self) {
        self.route.choose(self.request);
    }

    fn slot(&self) -> &Slot {
        &self.request.filters.slots[self.slot]
    }

    /// The settings of this filter on the most specific level that has any.
    pub fn route_config(&self) -> Option<&'g RouteFilterConfig> {
        self.route_configs().next()
    }

    /// The settings of this filter on all levels, the most specific one first.
    pub fn route_configs(&self) -> impl Iterator<Item = &'g RouteFilterConfig> {
        let name = &*self.slot().name;
        let chosen = self.route.chosen.as_ref();
        chosen.into_iter().flat_map(move |chosen| chosen.route_filters(name)).filter_map(|said| said.config.as_ref())
    }

    /// Whether a share of requests holds for this one.
    pub fn holds(&self, fraction: &outrigger_config::units::RuntimeFraction) -> bool {
        fraction_holds(fraction, self.worker().random.next(), &*self.request.graph.runtime)
    }

    /// What this filter keeps for this request, made on first use.
    pub fn state<S: Default + 'static>(&mut self) -> &mut S {
        let states = &mut self.request.filter_states.kept;
        if states.len() <= self.slot {
            states.resize_with(self.slot + 1, || None);
        }
        let state = &mut states[self.slot];
        if !state.as_ref().is_some_and(|state| state.is::<S>()) {
            *state = Some(Box::new(S::default()));
        }
        match state.as_mut().and_then(|state| state.downcast_mut()) {
            Some(state) => state,
            None => unreachable!("the state was just made of this type"),
        }
    }

    /// What this filter keeps for this request, if it has made any.
    pub fn known_state<S: 'static>(&mut self) -> Option<&mut S> {
        self.request.filter_states.kept.get_mut(self.slot)?.as_mut()?.downcast_mut()
    }

    /// What filters of the whole chain keep of this type for this request, in the order of the chain.
    pub fn states_of<S: 'static>(&self) -> impl Iterator<Item = &S> {
        self.request.filter_states.kept.iter().filter_map(|state| state.as_ref()?.downcast_ref())
    }

    /// Who was chosen in the place of this filter, if that was decided.
    pub fn delegate(&self) -> Option<&delegate::Chosen> {
        let delegates = self.request.filter_states.delegates.as_ref()?;
        delegates.iter().find(|(slot, _)| *slot == self.slot).map(|(_, chosen)| chosen)
    }

    /// Decides who was chosen.
    pub fn set_delegate(&mut self, chosen: delegate::Chosen) {
        self.request.filter_states.delegates.get_or_insert_default().push((self.slot, chosen));
    }

    /// Passes the request body through `filter`. Its length is unknown from now on.
    pub fn transform_request(&mut self, filter: Box<dyn BodyFilter>) {
        let body = self.request.request_body.get_or_insert_with(Rc::default);
        body.push(filter);
        if self.request.framing != Framing::None {
            self.request.framing = Framing::Chunked;
            self.request.head.headers.remove(HeaderId::ContentLength);
        }
    }

    /// The request body may have another length than its head says.
    pub fn forget_request_length(&mut self) {
        self.request.framing = Framing::Chunked;
        self.request.head.headers.remove(HeaderId::ContentLength);
    }

    /// Lets `observer` look at the request body.
    pub fn observe_request(&mut self, observer: Box<dyn BodyObserver>) {
        self.request.request_body.get_or_insert_with(Rc::default).observe(observer);
    }

    /// Lets the request body go on no faster than `pace` allows.
    pub fn pace_request(&mut self, pace: Box<dyn BodyPace>) {
        self.request.request_body.get_or_insert_with(Rc::default).pace(pace);
    }

    /// Passes the response body through `filter`. Its length is unknown from now on.
    pub fn transform_response(&mut self, filter: Box<dyn BodyFilter>) {
        self.request.response_body.get_or_insert_with(BodyChain::default).push(filter);
        self.request.response.headers.remove(HeaderId::ContentLength);
    }

    /// Lets `observer` look at the response body.
    pub fn observe_response(&mut self, observer: Box<dyn BodyObserver>) {
        self.request.response_body.get_or_insert_with(BodyChain::default).observe(observer);
    }

    /// Lets the response body go on no faster than `pace` allows.
    pub fn pace_response(&mut self, pace: Box<dyn BodyPace>) {
        self.request.response_body.get_or_insert_with(BodyChain::default).pace(pace);
    }

    /// Lets the request body come from `stage`. Its length is unknown from now on, unless it stays as it is.
    pub fn stage_request(&mut self, stage: Box<dyn BodyStage>, keeps_length: bool) {
        self.request.request_body.get_or_insert_with(Rc::default).stage(stage);
        if !keeps_length {
            self.forget_request_length();
        }
    }

    /// Lets the response body come from `stage`. Its length is unknown from now on, unless it stays as it is.
    pub fn stage_response(&mut self, stage: Box<dyn BodyStage>, keeps_length: bool) {
        self.request.response_body.get_or_insert_default().stage(stage);
        if !keeps_length {
            self.request.response.headers.remove(HeaderId::ContentLength);
        }
    }

    /// Puts `body` in the place of what was collected of the request body, or of no body at all.
    pub fn replace_request(&mut self, body: Vec<u8>) {
        let length = body.len() as u64;
        let chain = self.request.request_body.get_or_insert_with(Rc::default);
        let whole = match self.request.framing {
            Framing::None => {
                chain.replace(body, None);
                true
            }
            Framing::Length(_) | Framing::Chunked | Framing::UntilClose => {
                chain.exchange(body) && chain.trailers().borrow().is_none()
            }
        };
        match whole {
            true => {
                self.request.framing = Framing::Length(length);
                self.request
                    .head
                    .headers
                    .set(HeaderId::ContentLength, crate::http::h1::encode::decimal(length, &mut [0; 20]));
            }
            false => self.forget_request_length(),
        }
    }

    /// Puts `body` in the place of what was collected of the response body, or of no body at all.
    pub fn replace_response(&mut self, body: Vec<u8>) {
        let length = body.len() as u64;
        let chain = self.request.response_body.get_or_insert_default();
        let whole = match self.request.response_ended {
            true => {
                chain.replace(body, None);
                true
            }
            false => chain.exchange(body) && chain.trailers().borrow().is_none(),
        };
        let headers = &mut self.request.response.headers;
        match whole {
            true => headers.set(HeaderId::ContentLength, crate::http::h1::encode::decimal(length, &mut [0; 20])),
            false => drop(headers.remove(HeaderId::ContentLength)),
        }
    }

    /// The trailers of a request body that was collected.
    pub fn with_request_trailers<R>(&mut self, look: impl FnOnce(&mut Headers) -> R) -> Option<R> {
        Some(look(self.request.request_body.as_ref()?.trailers().borrow_mut().as_mut()?))
    }

    /// The trailers of a response body that was collected.
    pub fn with_response_trailers<R>(&mut self, look: impl FnOnce(&mut Headers) -> R) -> Option<R> {
        Some(look(self.request.response_body.as_ref()?.trailers().borrow_mut().as_mut()?))
    }

    /// Whether the filter in place `slot` runs on this route.
    pub(super) fn runs(&self) -> bool {
        let slot = self.slot();
        let said = self.route.chosen.as_ref().and_then(|chosen| chosen.route_filters(&slot.name).next());
        said.map_or(!slot.disabled, |said| !said.disabled)
    }

    pub(super) fn ask(&mut self, question: impl FnOnce(&dyn super::HttpFilter, &mut Self) -> Verdict) -> Verdict {
        let filters = Rc::clone(&self.request.filters);
        question(&*filters.slots[self.slot].filter, self)
    }
}
