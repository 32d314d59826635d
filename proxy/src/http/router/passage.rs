//! Filters in front of endpoints: what each try passes through once its endpoint was chosen.
//!
//! Owns the passage of a try, which is its filters and what they keep, and what the request was before they changed its
//! body. Never knows what a filter does (see `http::filter`).

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

/// A try on its way through the filters in front of its endpoint. While one of them is asked, those of the connection
/// manager are kept here instead.
pub(super) struct Passage {
    filters: Rc<Filters>,
    states: FilterStates,
}

/// The request as it was before its body may have been changed for a try.
pub(super) type Before = Box<(RequestHead, Framing)>;

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
    /// tries, unless they may change its body, too.
    ///
    /// # Errors
    /// What becomes of the request, if the try does not go on.
    pub(super) async fn pass_request(
        &mut self,
        cluster: &WorkerCluster,
        body: &ReplayBody<'_>,
    ) -> Result<Option<Passage>, Turn> {
        let Some(filters) = self.upstream_filters(cluster) else { return Ok(None) };
        let request = &mut *self.request;
        self.before = filters.changes_bodies.then(|| Box::new((request.head.clone(), request.framing)));
        // A body passes through those of the connection manager on its way to where it is kept.
        let of_manager = request.request_body.take();
        let mut passage = Passage { filters, states: FilterStates::default() };
        self.change_places(&mut passage);
        let connection = Rc::clone(self.request.connection);
        let graph = Rc::clone(&self.request.graph);
        let mut choice = RouteChoice::of(&connection, &graph, Some(*self.chosen));
        let turn = filter::requests(self.request, &mut choice, 0, BodyFrom::Kept(body)).await;
        self.change_places(&mut passage);
        if let Some(chain) = std::mem::replace(&mut self.request.request_body, of_manager) {
            body.pass_through(chain);
        }
        match unless_it_goes_on(turn) {
            None => Ok(Some(passage)),
            Some(turn) => {
                self.end_passage(Some(passage));
                Err(turn)
            }
        }
    }

    /// Shows the answer of a try to them.
    pub(super) async fn pass_response(
        &mut self,
        passage: &mut Passage,
        answered: &mut Answered,
        body: &ReplayBody<'_>,
    ) -> Option<Turn> {
        self.request.response_ended = answered.is_complete();
        // A try that is over may have left some.
        self.request.response_body = None;
        self.change_places(passage);
        let connection = Rc::clone(self.request.connection);
        let graph = Rc::clone(&self.request.graph);
        let mut choice = RouteChoice::of(&connection, &graph, Some(*self.chosen));
        let turn = filter::responses(self.request, &mut choice, Origin::Upstream(answered, body)).await;
        self.change_places(passage);
        unless_it_goes_on(turn)
    }

    /// Tells them that the try is over.
    pub(super) fn end_passage(&mut self, passage: Option<Passage>) {
        let Some(mut passage) = passage else { return };
        self.change_places(&mut passage);
        let connection = Rc::clone(self.request.connection);
        let graph = Rc::clone(&self.request.graph);
        let mut choice = RouteChoice::of(&connection, &graph, Some(*self.chosen));
        filter::ends(self.request, &mut choice);
        self.change_places(&mut passage);
    }

    /// Makes the request what it was before the last try, which another one follows.
    pub(super) fn restore(&mut self) {
        if let Some(before) = self.before.take() {
            (self.request.head, self.request.framing) = *before;
        }
    }

    /// Puts the request as it was before the last try in the place of what it is; the second time, back.
    pub(super) fn swap_before(&mut self) {
        if let Some(before) = &mut self.before {
            let (head, framing) = &mut **before;
            std::mem::swap(&mut self.request.head, head);
            std::mem::swap(&mut self.request.framing, framing);
        }
    }

    /// The filters that the request is shown to, with what they keep, are those of the passage, or again its own.
    fn change_places(&mut self, passage: &mut Passage) {
        std::mem::swap(&mut self.request.filters, &mut passage.filters);
        std::mem::swap(&mut self.request.filter_states, &mut passage.states);
    }
}

fn unless_it_goes_on(turn: Turn) -> Option<Turn> {
    match turn {
        // A request that is tried has its route.
        Turn::Continue | Turn::LookAgain(_) => None,
        turn => Some(turn),
    }
}
