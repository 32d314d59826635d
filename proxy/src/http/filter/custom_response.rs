//! The custom response filter: other answers in the place of responses.
//!
//! Owns the choice of the answer, by the response and its request. How it is sent is seen to where answers of our own are.

use std::borrow::Cow;
use std::sync::Arc;

use outrigger_config::cel::Expression;
use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{CustomResponse as Settings, Details, LocalResponse, Replacement};
use outrigger_config::matcher::Input;
use outrigger_policy::matcher::{self, Given, Inputs};
use outrigger_policy::rbac::InputsOf;

use super::rbac::RequestFacts;
use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::accesslog::write_text;
use crate::http::manager::mutate;
use crate::http::manager::reply::{Instead, LocalReply};
use crate::http::manager::request::ResponseSide;
use crate::http::message::{ResponseHead, joined};
use crate::http::router::redirect::{self, Replaced};
use crate::scope;

scope! {
    /// Stats of the filter (`http.<prefix>.custom_response_*`).
    pub struct CustomResponseStats {
        custom_response_invalid_uri: Counter,
        custom_response_redirect_no_route: Counter,
    }
}

/// The filter.
pub struct CustomResponse {
    settings: Arc<Settings>,
    stats: Arc<CustomResponseStats>,
}

impl CustomResponse {
    /// A filter.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        Self { settings: Arc::clone(settings), stats: maker.stats("") }
    }

    /// What replaces the response: what the most specific level that has something for it says.
    fn find<'a, 'g: 'a>(&'a self, exchange: &Exchange<'_, '_, 'g>) -> Option<&'a Replacement> {
        let of_routes = exchange.route_configs().filter_map(|config| match config {
            RouteFilterConfig::CustomResponse(settings) => Some(settings),
            _ => None,
        });
        let facts = RequestFacts::new(exchange);
        let inputs = ExchangeInputs { request: InputsOf(&facts), response: Some(exchange.response()) };
        of_routes
            .chain([&self.settings])
            .filter_map(|settings| settings.matcher.as_ref())
            .find_map(|tree| matcher::find(tree, &inputs).ok().flatten())
    }
}

impl HttpFilter for CustomResponse {
    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let replaces = exchange.stream().redirects.as_ref().and_then(|redirects| redirects.replaces.as_ref());
        if let Some(Replaced { policy, status }) = replaces {
            // This is the replacement.
            let (policy, status) = (Arc::clone(policy), policy.status.unwrap_or(*status));
            mutate::apply(&policy.response_headers, &mut ResponseSide(exchange.request_mut()));
            exchange.response_mut().status = status;
            exchange.info().response_code.set(status);
            return Verdict::Continue;
        }
        match self.find(exchange).cloned() {
            None => Verdict::Continue,
            Some(Replacement::Local(instead)) => answer(&instead, exchange),
            Some(Replacement::Redirect(policy)) if redirect::replace(exchange.request_mut(), &policy) => {
                Verdict::Restart
            }
            Some(Replacement::Redirect(_)) => {
                self.stats.custom_response_redirect_no_route.increment();
                Verdict::Continue
            }
        }
    }
}

/// The answer of our own.
fn answer(instead: &LocalResponse, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
    let status = exchange.response().status;
    let is_local = exchange.is_local_reply();
    let request = exchange.request_mut();
    if !is_local {
        request.local_reply_body = Cow::Borrowed(b"");
    }
    if let Some(body) = &instead.body {
        request.local_reply_body = Cow::Owned(body.clone());
    }
    // As in Envoy, what the format says of the body's type is not told: headers may be added for that.
    let body = match &instead.format {
        None => instead.body.clone().unwrap_or_default(),
        Some(format) => {
            let mut body = Vec::new();
            write_text(&format.format, &request.facts(), &mut body);
            body
        }
    };
    let details = match &instead.details {
        Details::Cleared => String::new(),
        Details::Kept => request.info.details.borrow().to_string(),
        Details::Set(details) => details.clone(),
    };
    let mut reply = LocalReply::new(instead.status.unwrap_or(status), details).body(body);
    reply.instead = Some(Box::new(Instead { headers: instead.headers.clone() }));
    Verdict::reply(reply)
}

/// A request, and its response once there is one, as the inputs of a match tree.
pub(super) struct ExchangeInputs<'a, I> {
    /// What is known of the request.
    pub request: I,
    /// The response.
    pub response: Option<&'a ResponseHead>,
}

impl<I: Inputs> Inputs for ExchangeInputs<'_, I> {
    fn look(&self, input: &Input, look: &mut dyn FnMut(Given<'_>)) {
        match (input, self.response) {
            (Input::ResponseStatus, Some(response)) => look(Given::Text(response.status.to_string().as_bytes())),
            (Input::ResponseStatusClass, Some(response)) => match response.status {
                status @ 100..=599 => look(Given::Text(format!("{}xx", status / 100).as_bytes())),
                _ => look(Given::Absent),
            },
            (Input::ResponseHeader { name }, Some(response)) => match joined(&response.headers, name) {
                Some(value) => look(Given::Text(&value)),
                None => look(Given::Absent),
            },
            _ => self.request.look(input, look),
        }
    }

    fn holds(&self, expression: &Expression) -> bool {
        self.request.holds(expression)
    }
}
