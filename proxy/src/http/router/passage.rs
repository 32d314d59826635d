//! Filters in front of endpoints: what each try passes through once its endpoint was chosen.
//!
//! Owns the passage of a try: its filters, what they keep, and what the request was before they changed its body. Never
//! knows what a filter does (see `http::filter`).

use std::rc::Rc;

use super::Forwarding;
use super::attempt::{self, Answered};
use super::body::ReplayBody;
use crate::http::filter::{self, BodyFrom, FilterStates, Filters, Origin, RouteChoice, Turn};
use crate::http::h1::parse::Framing;
use crate::http::message::RequestHead;
use crate::stats::names;
use crate::tokens;
use crate::upstream::clusters::WorkerCluster;

/// A try on its way through the filters in front of its endpoint.
pub(super) struct Passage {
    /// While one of them is asked, those of the connection manager.
    filters: Rc<Filters>,
    states: FilterStates,
    /// The request as it was, if its body may have been changed for this try.
    before: Option<Box<(RequestHead, Framing)>>,
}

impl Forwarding<'_, '_> {
    /// Whether tries at endpoints of a cluster pass through anything.
    pub(super) fn has_upstream_filters(&self, cluster: &WorkerCluster) -> bool {
        cluster.node().config.http.filters.is_some() || self.request.filters.router.upstream_filters.is_some()
    }

    /// What stands in front of the endpoints of a cluster: its own filters, or else the router's.
    fn upstream_filters(&self, cluster: &WorkerCluster) -> Option<Rc<Filters>> {
        let node = cluster.node();
        let of_cluster = node.config.http.filters.as_ref();
        let filters = of_cluster.or(self.request.filters.router.upstream_filters.as_ref())?;
        if attempt::ends_here(self.action, &self.request.head).is_some() {
            return None;
        }
        let connection = self.request.connection;
        let prefix = || match of_cluster {
            Some(_) => names::prefix("cluster", &node.config.stat_name),
            None => tokens::upstream_prefix(&connection.node.config.stat_prefix),
        };
        let worker = &connection.worker;
        Some(worker.upstream_filters.get(filters, || Filters::upstream(worker, filters, prefix())))
    }

    /// Shows the request of a try to the filters in front of its endpoint. What they change of its head stays for further
    /// tries, unless they may change its body, too. Something if the try does not go on.
    pub(super) async fn pass_request(&mut self, cluster: &WorkerCluster, body: &ReplayBody<'_>) -> Option<Turn> {
        let filters = self.upstream_filters(cluster)?;
        let request = &mut *self.request;
        let before = filters.changes_bodies.then(|| Box::new((request.head.clone(), request.framing)));
        // A body passes through those of the connection manager on its way to where it is kept.
        let of_manager = request.request_body.take();
        self.passage = Some(Passage { filters, states: FilterStates::default(), before });
        self.change_places();
        let connection = Rc::clone(self.request.connection);
        let graph = Rc::clone(&self.request.graph);
        let mut choice = RouteChoice::of(&connection, &graph, Some(*self.chosen));
        let turn = filter::requests(self.request, &mut choice, 0, BodyFrom::Kept(body)).await;
        self.change_places();
        if let Some(chain) = std::mem::replace(&mut self.request.request_body, of_manager) {
            body.pass_through(chain);
        }
        unless_it_goes_on(turn)
    }

    /// Shows the answer of a try to them.
    pub(super) async fn pass_response(&mut self, answered: &mut Answered, body: &ReplayBody<'_>) -> Option<Turn> {
        self.passage.as_ref()?;
        self.request.response_ended = answered.is_complete();
        self.change_places();
        let connection = Rc::clone(self.request.connection);
        let graph = Rc::clone(&self.request.graph);
        let mut choice = RouteChoice::of(&connection, &graph, Some(*self.chosen));
        let turn = filter::responses(self.request, &mut choice, Origin::Upstream(answered, body)).await;
        self.change_places();
        unless_it_goes_on(turn)
    }

    /// Tells them that the try is over.
    pub(super) fn end_passage(&mut self) {
        if self.passage.is_none() {
            return;
        }
        self.change_places();
        let connection = Rc::clone(self.request.connection);
        let graph = Rc::clone(&self.request.graph);
        let mut choice = RouteChoice::of(&connection, &graph, Some(*self.chosen));
        filter::ends(self.request, &mut choice);
        self.change_places();
        self.passage = None;
    }

    /// Makes the request what it was before a try that ends without having been the last one.
    pub(super) fn leave_passage(&mut self) {
        let Some(passage) = &mut self.passage else { return };
        let before = passage.before.take();
        self.end_passage();
        self.request.response_body = None;
        if let Some(before) = before {
            (self.request.head, self.request.framing) = *before;
        }
    }

    /// The passage of a try that goes on beside others; the request is what it was before.
    pub(super) fn set_aside(&mut self) -> Option<Passage> {
        let mut passage = self.passage.take()?;
        self.request.response_body = None;
        if let Some(before) = passage.before.take() {
            (self.request.head, self.request.framing) = *before;
        }
        Some(passage)
    }

    /// Puts the request as it was before its body may have been changed in the place of what it is; the second time, back.
    pub(super) fn swap_before(&mut self) {
        if let Some(Passage { before: Some(before), .. }) = &mut self.passage {
            let (head, framing) = &mut **before;
            std::mem::swap(&mut self.request.head, head);
            std::mem::swap(&mut self.request.framing, framing);
        }
    }

    /// The filters that the request is shown to, with what they keep, are those of the passage, or again its own.
    fn change_places(&mut self) {
        if let Some(Passage { filters, states, .. }) = &mut self.passage {
            std::mem::swap(&mut self.request.filters, filters);
            std::mem::swap(&mut self.request.filter_states, states);
        }
    }
}

fn unless_it_goes_on(turn: Turn) -> Option<Turn> {
    match turn {
        // A request that is tried has its route.
        Turn::Continue | Turn::LookAgain(_) => None,
        turn => Some(turn),
    }
}
