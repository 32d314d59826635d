//! Filters that a match tree chooses: one that rests for some requests, and one that is another filter for each of them.
//!
//! Owns the choice, which is made once for a request as soon as the tree can tell, and the filters that may be chosen.
//! Never knows what they do.

use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{Delegate, DelegateAction, Delegating as Settings};
use outrigger_config::listener::TrafficDirection;
use outrigger_policy::matcher;
use outrigger_policy::rbac::InputsOf;

use super::custom_response::ExchangeInputs;
use super::rbac::RequestFacts;
use super::{Exchange, HttpFilter, Maker, Place, SettingsStates, Verdict};
use crate::http::headers::Headers;
use crate::worker::Worker;

/// Who takes a request in the place of the filter; nobody if `None`.
pub type Chosen = Option<Rc<dyn HttpFilter>>;

/// The filter.
pub struct Delegating {
    settings: Arc<Settings>,
    own: Chosen,
    /// Those of actions, made when they are chosen for the first time.
    others: SettingsStates<Delegate, Chosen>,
    prefix: String,
    direction: TrafficDirection,
    place: Place,
}

/// How far an exchange has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Moment {
    /// There is a request.
    Request,
    /// There is a response, too.
    Response,
}

impl Delegating {
    /// A filter.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        Self {
            settings: Arc::clone(settings),
            own: settings.own.as_ref().and_then(|own| maker.filter(own)).map(Rc::from),
            others: SettingsStates::default(),
            prefix: maker.prefix.clone(),
            direction: maker.direction,
            place: maker.place,
        }
    }

    fn chosen(&self, exchange: &mut Exchange<'_, '_, '_>, moment: Moment) -> Chosen {
        if let Some(known) = exchange.delegate() {
            return known.clone();
        }
        let of_route = match exchange.route_config() {
            Some(RouteFilterConfig::Delegating(tree)) => Some(tree.as_ref()),
            _ => None,
        };
        let Some(tree) = of_route.unwrap_or(self.settings.tree.as_ref()) else { return self.own.clone() };
        let found = {
            let facts = RequestFacts::new(exchange);
            let response = (moment == Moment::Response).then(|| exchange.response());
            matcher::find(tree, &ExchangeInputs { request: InputsOf(&facts), response })
        };
        let chosen = match found {
            // A later moment will tell.
            Err(_) => return self.own.clone(),
            Ok(None) => self.own.clone(),
            Ok(Some(DelegateAction::Skip)) => None,
            // There is one already.
            Ok(Some(DelegateAction::Run(_))) if self.settings.own.is_some() => self.own.clone(),
            Ok(Some(DelegateAction::Run(other))) => {
                let holds = other.share.as_ref().is_none_or(|share| exchange.holds(share));
                let worker = Rc::clone(exchange.worker());
                if holds { (*self.others.get(other, || self.make(&worker, other))).clone() } else { None }
            }
        };
        exchange.set_delegate(chosen.clone());
        chosen
    }

    fn make(&self, worker: &Rc<Worker>, other: &Delegate) -> Chosen {
        let Self { prefix, direction, place, .. } = self;
        let maker = Maker { worker, prefix: prefix.clone(), direction: *direction, place: *place };
        maker.filter(&other.config).map(Rc::from)
    }
}

/// The one that has taken a request.
fn known(exchange: &Exchange<'_, '_, '_>, own: &Chosen) -> Chosen {
    exchange.delegate().unwrap_or(own).clone()
}

impl HttpFilter for Delegating {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        match self.chosen(exchange, Moment::Request) {
            Some(filter) => filter.request(exchange),
            None => Verdict::Continue,
        }
    }

    fn request_body(&self, exchange: &mut Exchange<'_, '_, '_>, body: &[u8]) -> Verdict {
        match known(exchange, &self.own) {
            Some(filter) => filter.request_body(exchange, body),
            None => Verdict::Continue,
        }
    }

    fn response_part(&self, exchange: &mut Exchange<'_, '_, '_>, body: &[u8]) -> Verdict {
        match known(exchange, &self.own) {
            Some(filter) => filter.response_part(exchange, body),
            None => Verdict::Continue,
        }
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        match self.chosen(exchange, Moment::Response) {
            Some(filter) => filter.response(exchange),
            None => Verdict::Continue,
        }
    }

    fn response_body(
        &self,
        exchange: &mut Exchange<'_, '_, '_>,
        body: &mut Vec<u8>,
        trailers: &mut Option<Headers>,
    ) -> Verdict {
        match known(exchange, &self.own) {
            Some(filter) => filter.response_body(exchange, body, trailers),
            None => Verdict::Continue,
        }
    }

    fn end(&self, exchange: &mut Exchange<'_, '_, '_>) {
        if let Some(filter) = known(exchange, &self.own) {
            filter.end(exchange);
        }
    }

    fn reports(&self) -> bool {
        // Those of actions are made later.
        self.settings.own.is_none() || self.own.as_ref().is_some_and(|own| own.reports())
    }

    fn report(&self, exchange: &mut Exchange<'_, '_, '_>) {
        if let Some(filter) = known(exchange, &self.own).filter(|filter| filter.reports()) {
            filter.report(exchange);
        }
    }
}
