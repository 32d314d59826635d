//! The admission control filter: refuses a share of requests while too many of them fail.
//!
//! Owns what counts as an answer. The share is found in `outrigger_policy::admission`, in each worker by what it saw itself.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use outrigger_config::http::filters::AdmissionControl as Settings;
use outrigger_policy::admission::{Formula, Window, is_refused};

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::graph::RuntimeSnapshot;
use crate::http::headers::{HeaderId, Headers};
use crate::http::manager::reply::LocalReply;
use crate::http::message::is_grpc_content_type;
use crate::network::holds;
use crate::scope;

scope! {
    /// Stats of the filter (`http.<prefix>.admission_control.*`).
    pub struct AdmissionStats {
        rq_failure: Counter,
        rq_rejected: Counter,
        rq_success: Counter,
    }
}

/// The filter.
pub struct AdmissionControl {
    settings: Arc<Settings>,
    stats: Arc<AdmissionStats>,
    window: RefCell<Window>,
    made: Instant,
}

/// What is known of a request whose answer is not yet counted, or must not be.
#[derive(Default)]
enum Outcome {
    #[default]
    Refused,
    /// Trailers will tell.
    Awaited,
}

impl AdmissionControl {
    /// A filter in which nothing was counted yet.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        Self {
            settings: Arc::clone(settings),
            stats: maker.stats("admission_control"),
            window: RefCell::new(Window::new(settings.window)),
            made: Instant::now(),
        }
    }

    fn runs(&self, exchange: &Exchange<'_, '_, '_>) -> bool {
        holds(&self.settings.enabled, exchange.runtime()) && !exchange.info().health_check.get()
    }

    fn refuses(&self, exchange: &Exchange<'_, '_, '_>) -> bool {
        let now = self.made.elapsed();
        let runtime = exchange.runtime();
        let mut window = self.window.borrow_mut();
        let slowest = runtime.number(&self.settings.rps_threshold);
        if slowest > 0.0 && f64::from(window.requests_per_second(now)) < slowest {
            return false;
        }
        let share = formula(&self.settings, runtime).share(window.counts(now));
        is_refused(share, exchange.worker().random.next())
    }

    fn count(&self, success: bool) {
        self.window.borrow_mut().record(success, self.made.elapsed());
        let counter = if success { &self.stats.rq_success } else { &self.stats.rq_failure };
        counter.increment();
    }
}

fn formula(settings: &Settings, runtime: &RuntimeSnapshot) -> Formula {
    let share = |number| runtime.number(number).clamp(0.0, 100.0) / 100.0;
    Formula {
        aggression: runtime.number(&settings.aggression),
        success_threshold: share(&settings.success_threshold),
        max_rejection: share(&settings.max_rejection),
    }
}

/// The gRPC status among headers or trailers; `Some(None)` for one that is none.
fn grpc_status(headers: &Headers) -> Option<Option<u32>> {
    headers.contains(HeaderId::GrpcStatus).then(|| headers.get_str(HeaderId::GrpcStatus)?.parse().ok())
}

impl HttpFilter for AdmissionControl {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        if !self.runs(exchange) || !self.refuses(exchange) {
            return Verdict::Continue;
        }
        self.stats.rq_rejected.increment();
        // What is refused says nothing of those who answer.
        *exchange.state::<Outcome>() = Outcome::Refused;
        Verdict::reply(LocalReply::new(503, "denied_by_admission_control"))
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        if !self.runs(exchange) || exchange.known_state::<Outcome>().is_some() {
            return Verdict::Continue;
        }
        let response = exchange.response();
        let headers = &response.headers;
        let is_grpc = if exchange.response_has_no_body() {
            headers.contains(HeaderId::GrpcStatus)
        } else {
            response.status == 200 && headers.get(HeaderId::ContentType).is_some_and(is_grpc_content_type)
        };
        let success = match (is_grpc, grpc_status(headers)) {
            (false, _) => self.settings.is_http_success(response.status),
            (true, Some(status)) => status.is_some_and(|status| self.settings.is_grpc_success(status)),
            (true, None) => {
                *exchange.state::<Outcome>() = Outcome::Awaited;
                return Verdict::Continue;
            }
        };
        self.count(success);
        Verdict::Continue
    }

    fn end(&self, exchange: &mut Exchange<'_, '_, '_>) {
        if !matches!(exchange.known_state::<Outcome>(), Some(Outcome::Awaited)) {
            return;
        }
        // A call that was broken off says nothing.
        let Some(trailers) = exchange.response_trailers() else { return };
        let status = grpc_status(trailers).flatten();
        self.count(status.is_some_and(|status| self.settings.is_grpc_success(status)));
    }
}
