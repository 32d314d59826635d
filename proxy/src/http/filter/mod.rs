//! HTTP filters: what happens to a request between the connection manager and the router.
//!
//! Owns the seam that every filter implements, and the making of a chain from its configuration. A filter is made once for
//! each worker and lives as long as its chain, so it may keep its stats and caches without locks. What it keeps for one
//! request stands in the request (see [`Exchange::state`]). Never forwards requests.

mod adaptive_concurrency;
mod added;
mod admission_control;
mod api_key_auth;
mod bandwidth_limit;
mod basic_auth;
mod body;
mod buffer;
mod chain;
mod challenge;
mod compressor;
mod cors;
mod credential_injector;
mod csrf;
mod custom_response;
mod decompressor;
mod delegate;
pub mod dynamic_forward;
mod exchange;
mod ext_authz;
mod ext_proc;
mod fault;
mod grpc_bridge;
mod grpc_json_transcoder;
mod grpc_stats;
mod grpc_web;
pub mod header_mutation;
mod header_to_metadata;
mod health_check;
mod istio_alpn;
mod istio_stats;
mod json_to_metadata;
mod jwt_authn;
mod local_ratelimit;
mod lua;
mod missing;
mod oauth2;
mod on_demand;
mod peer_metadata;
mod ratelimit;
mod rbac;
mod routed;
mod set_filter_state;
mod set_metadata;
mod shared;
mod stateful_session;
mod throttle;

use std::cell::OnceCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use outrigger_config::http::filters::UpstreamFilters;
use outrigger_config::http::{HttpFilter as HttpFilterSettings, HttpFilterConfig, Router};
use outrigger_config::listener::TrafficDirection;

pub use body::{BodyChain, BodyFilter, BodyInput, BodyObserver, BodyPace, BodyStage, Given};
pub use chain::{BodyFrom, Origin, Turn, ends, requests, responses, whole};
pub use exchange::{Exchange, FilterStates, RouteChoice};
pub(crate) use routed::find_in;
pub use shared::{ConnectionStates, SettingsStates, SharedStates};
pub use stateful_session::WantedHost;

use crate::graph::HttpNode;
use crate::http::headers::Headers;
use crate::http::manager::reply::LocalReply;
use crate::http::manager::stats::ListenerHttpStats;
use crate::stats::names;
use crate::worker::Worker;

/// One filter of a chain, in one worker.
pub trait HttpFilter {
    /// Looks at a request head before it is forwarded, in the order of the chain.
    fn request(&self, _exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        Verdict::Continue
    }

    /// Looks at the body, or the part of it, that [`Verdict::Collect`] or [`Verdict::Peek`] asked for, before the request
    /// goes on.
    fn request_body(&self, _exchange: &mut Exchange<'_, '_, '_>, _body: &[u8]) -> Verdict {
        Verdict::Continue
    }

    /// Looks at the response body, or the part of it, that [`HttpFilter::response`] asked for in the same way.
    fn response_part(&self, _exchange: &mut Exchange<'_, '_, '_>, _body: &[u8]) -> Verdict {
        Verdict::Continue
    }

    /// Looks at a response head before it is sent, in the opposite order; at answers of our own too, even if this filter
    /// did not see their requests.
    fn response(&self, _exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        Verdict::Continue
    }

    /// Looks at the body and the trailers that [`Verdict::CollectResponse`] asked for, and may change them, before the
    /// response goes on.
    fn response_body(
        &self,
        _exchange: &mut Exchange<'_, '_, '_>,
        _body: &mut Vec<u8>,
        _trailers: &mut Option<Headers>,
    ) -> Verdict {
        Verdict::Continue
    }

    /// Looks back when everything is over, before the access log is written.
    fn end(&self, _exchange: &mut Exchange<'_, '_, '_>) {}

    /// Whether it wants to be asked for a report.
    fn reports(&self) -> bool {
        false
    }

    /// Reports what has become of the request, when all filters have looked back.
    fn report(&self, _exchange: &mut Exchange<'_, '_, '_>) {}
}

/// What a filter wants to happen next.
pub enum Verdict {
    /// The next filter.
    Continue,
    /// This answer, instead of what comes after the filter.
    Reply(Box<LocalReply>),
    /// The next filter, with the configuration and the route as they are now.
    LookAgain,
    /// Nothing of the response: the request that stands in the place of the one that was answered begins (see
    /// [`redirect::replace`](crate::http::router::redirect::replace)).
    Restart,
    /// Wait, then ask again.
    Wait(Wait),
    /// The whole body is read first, then given to [`HttpFilter::request_body`]; 413 if it is longer than this many bytes.
    /// Of a response, it is given to [`HttpFilter::response_part`]; 500 if it is longer.
    Collect { limit_bytes: usize },
    /// The whole body of a response is read first, then given to [`HttpFilter::response_body`]; 500 if it is longer than
    /// this many bytes. Answers of our own go on as they are.
    CollectResponse { limit_bytes: usize },
    /// The body is read until this many bytes of it are there, or all; they are given to [`HttpFilter::request_body`].
    Peek { bytes: usize },
    /// Wait, and take the body away meanwhile.
    Absorb(Box<dyn Absorb>),
}

/// Waits for something, and takes a body away meanwhile. What it has taken it has to give back (see [`BodyStage`]).
pub trait Absorb {
    /// Ready with what is to be done.
    fn poll(&mut self, cx: &mut Context<'_>, body: &dyn BodyInput) -> Poll<Resume>;
}

impl Verdict {
    /// An answer.
    pub fn reply(reply: LocalReply) -> Self {
        Verdict::Reply(Box::new(reply))
    }

    /// Waits for `future`, and goes on with what `resume` says of its outcome.
    pub fn wait<T: 'static>(
        future: impl Future<Output = T> + 'static,
        resume: impl FnOnce(T, &mut Exchange<'_, '_, '_>) -> Verdict + 'static,
    ) -> Self {
        Verdict::Wait(Box::pin(async move {
            let outcome = future.await;
            let resume: Resume = Box::new(move |exchange| resume(outcome, exchange));
            resume
        }))
    }
}

/// Waits without holding on to the request, and ends with what is to be done to it then.
pub type Wait = Pin<Box<dyn Future<Output = Resume>>>;
/// What is done to a request after a wait.
pub type Resume = Box<dyn FnOnce(&mut Exchange<'_, '_, '_>) -> Verdict>;

/// A filter in its place.
pub struct Slot {
    /// As configured; the key of `typed_per_filter_config`.
    pub name: Arc<str>,
    /// Runs only where a route enables it.
    pub disabled: bool,
    /// The filter.
    pub filter: Box<dyn HttpFilter>,
}

/// The filters of a connection manager in one worker.
pub struct Filters {
    /// All but the router, in order.
    pub slots: Vec<Slot>,
    /// The router's settings.
    pub router: Arc<Router>,
    /// Some of them report what becomes of requests.
    pub report: bool,
    /// What stands in their place for upgrades to these protocols.
    upgrades: Box<[(Box<str>, Rc<Filters>)]>,
    /// Some of them may change the bodies of requests.
    pub changes_bodies: bool,
    listener_stats: OnceCell<Arc<ListenerHttpStats>>,
}

impl Filters {
    /// What is counted of requests for the listener that has this connection manager.
    pub fn listener_stats(&self, worker: &Worker, listener: &Arc<str>, stat_prefix: &str) -> Arc<ListenerHttpStats> {
        let make = || {
            let known = worker.graph().listeners.get(listener).map(|node| crate::listener::accept::stat_prefix(node));
            let listener = names::prefix("listener", known.as_ref().unwrap_or(listener));
            worker.scope(&format!("{listener}{}", names::prefix("http", stat_prefix)))
        };
        Arc::clone(self.listener_stats.get_or_init(make))
    }

    /// Makes the filters of `node` for this worker.
    pub fn build(worker: &Rc<Worker>, node: &HttpNode) -> Self {
        let prefix = names::prefix("http", &node.config.stat_prefix);
        let maker = Maker { worker, prefix, direction: node.direction, place: Place::Downstream };
        let own = node
            .upgrade_filters()
            .map(|(protocol, filters)| (Box::from(protocol), Rc::new(Self::chain(&maker, filters))));
        Self { upgrades: own.collect(), ..Self::chain(&maker, node.filters()) }
    }

    /// Nothing before a router with these settings.
    pub fn none(router: Arc<Router>) -> Self {
        Self {
            slots: Vec::new(),
            router,
            report: false,
            changes_bodies: false,
            upgrades: Box::default(),
            listener_stats: OnceCell::new(),
        }
    }

    fn chain<'n>(
        maker: &Maker<'_>,
        known: impl Iterator<Item = (&'n HttpFilterSettings, &'n HttpFilterConfig)>,
    ) -> Self {
        let mut filters = Self::none(Arc::default());
        for (config, settings) in known {
            if let HttpFilterConfig::Router(router) = settings {
                filters.router = Arc::clone(router);
            }
            filters.slots.extend(maker.slot(config, settings));
        }
        filters.report = filters.slots.iter().any(|slot| slot.filter.reports());
        filters
    }

    /// What requests for an upgrade to `protocol`, in lower case, pass through instead, if that is something else.
    pub fn of_upgrade(&self, protocol: &[u8]) -> Option<&Rc<Self>> {
        self.upgrades.iter().find(|(own, _)| own.as_bytes() == protocol).map(|(_, filters)| filters)
    }

    /// Makes filters in front of upstreams for this worker. Their stats have names that begin with `prefix`.
    pub fn upstream(worker: &Rc<Worker>, filters: &UpstreamFilters, prefix: String) -> Self {
        let maker = Maker { worker, prefix, direction: TrafficDirection::Unspecified, place: Place::Upstream };
        let slots = filters.0.iter().filter_map(|filter| maker.slot(filter, &filter.config)).collect();
        let changes = |config: &HttpFilterConfig| {
            use HttpFilterConfig::{Compressor, Delegating, ExtProc};
            matches!(config, Compressor(_) | ExtProc(_) | Delegating(_))
        };
        let changes_bodies = filters.0.iter().any(|filter| changes(&filter.config));
        Self {
            slots,
            router: Arc::default(),
            report: false,
            changes_bodies,
            upgrades: Box::default(),
            listener_stats: OnceCell::new(),
        }
    }
}

/// What a filter is made with.
pub struct Maker<'a> {
    /// The worker it will live in.
    pub worker: &'a Rc<Worker>,
    /// What the names of its stats begin with: `http.<stat prefix>.` of a connection manager, or what stands for it.
    pub prefix: String,
    /// Of its listener.
    pub direction: TrafficDirection,
    /// Where it will stand.
    pub place: Place,
}

/// Where a filter stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// In a connection manager: it sees a request once.
    Downstream,
    /// In front of endpoints: it sees each try.
    Upstream,
}

impl Maker<'_> {
    /// The filter that these settings ask for; `None` if it does nothing.
    fn slot(&self, config: &HttpFilterSettings, settings: &HttpFilterConfig) -> Option<Slot> {
        let filter = self.filter(settings)?;
        Some(Slot { name: Arc::clone(&config.name), disabled: config.disabled, filter })
    }

    fn filter(&self, settings: &HttpFilterConfig) -> Option<Box<dyn HttpFilter>> {
        Some(match settings {
            // Not one that is asked.
            HttpFilterConfig::Router(_) => return None,
            HttpFilterConfig::Discovered(_) => self.make(|_| missing::Missing),
            HttpFilterConfig::AdaptiveConcurrency(settings) => {
                self.make(|maker| adaptive_concurrency::AdaptiveConcurrency::new(settings, maker))
            }
            HttpFilterConfig::AdmissionControl(settings) => {
                self.make(|maker| admission_control::AdmissionControl::new(settings, maker))
            }
            HttpFilterConfig::ApiKeyAuth(settings) => self.make(|maker| api_key_auth::ApiKeyAuth::new(settings, maker)),
            HttpFilterConfig::BandwidthLimit(settings) => {
                self.make(|maker| bandwidth_limit::BandwidthLimit::new(settings, maker))
            }
            HttpFilterConfig::BasicAuth(settings) => self.make(|maker| basic_auth::BasicAuth::new(settings, maker)),
            HttpFilterConfig::Buffer(settings) => self.make(|_| buffer::Buffer::new(*settings)),
            HttpFilterConfig::Compressor(settings) => self.make(|maker| compressor::Compressor::new(settings, maker)),
            HttpFilterConfig::Decompressor(settings) => {
                self.make(|maker| decompressor::Decompressor::new(settings, maker))
            }
            HttpFilterConfig::Cors => self.make(cors::Cors::new),
            HttpFilterConfig::CredentialInjector(settings) => {
                self.make(|maker| credential_injector::CredentialInjector::new(settings, maker, &maker.prefix))
            }
            HttpFilterConfig::OAuth2(settings) => self.make(|maker| oauth2::OAuth2::new(settings.as_ref(), maker)),
            HttpFilterConfig::Csrf(policy) => self.make(|maker| csrf::Csrf::new(policy, maker)),
            HttpFilterConfig::CustomResponse(settings) => {
                self.make(|maker| custom_response::CustomResponse::new(settings, maker))
            }
            HttpFilterConfig::Delegating(settings) => self.make(|maker| delegate::Delegating::new(settings, maker)),
            HttpFilterConfig::DynamicForward(settings) => self.make(|_| dynamic_forward::DynamicForward::new(settings)),
            HttpFilterConfig::ExtAuthz(settings) => self.make(|maker| ext_authz::ExtAuthz::new(settings, maker)),
            HttpFilterConfig::ExtProc(settings) => self.make(|maker| ext_proc::ExtProc::new(settings, maker)),
            HttpFilterConfig::GlobalRateLimit(settings) => {
                self.make(|maker| ratelimit::GlobalRateLimit::new(settings, maker))
            }
            HttpFilterConfig::Fault(settings) => self.make(|maker| fault::Fault::new(settings, maker)),
            HttpFilterConfig::GrpcBridge(settings) => self.make(|_| grpc_bridge::GrpcBridge::new(*settings)),
            HttpFilterConfig::GrpcJsonTranscoder(settings) => {
                self.make(|maker| grpc_json_transcoder::GrpcJsonTranscoder::new(settings.as_ref(), maker))
            }
            HttpFilterConfig::GrpcStats(settings) => self.make(|_| grpc_stats::GrpcStats::new(settings)),
            HttpFilterConfig::GrpcWeb => self.make(|_| grpc_web::GrpcWeb::default()),
            HttpFilterConfig::OnDemand(settings) => self.make(|_| on_demand::OnDemand::new(settings)),
            HttpFilterConfig::HeaderMutation(settings) => self.make(|_| header_mutation::HeaderMutation::new(settings)),
            HttpFilterConfig::HeaderToMetadata(settings) => {
                self.make(|maker| header_to_metadata::HeaderToMetadata::new(settings, maker))
            }
            HttpFilterConfig::HealthCheck(settings) => {
                self.make(|maker| health_check::HealthCheck::new(settings, maker))
            }
            HttpFilterConfig::IstioAlpn(settings) => self.make(|_| istio_alpn::IstioAlpn::new(settings)),
            HttpFilterConfig::JsonToMetadata(settings) => {
                self.make(|maker| json_to_metadata::JsonToMetadata::new(settings, maker))
            }
            HttpFilterConfig::JwtAuthn(settings) => self.make(|maker| jwt_authn::JwtAuthn::new(settings, maker)),
            HttpFilterConfig::IstioStats(settings) => {
                self.make(|maker| istio_stats::IstioStats::new(settings, maker.direction, maker))
            }
            HttpFilterConfig::Lua(settings) => self.make(|_| lua::LuaFilter::new(settings)),
            HttpFilterConfig::LocalRateLimit(settings) => {
                self.make(|maker| local_ratelimit::LocalRateLimit::new(settings, maker))
            }
            HttpFilterConfig::PeerMetadata(settings) => {
                self.make(|maker| peer_metadata::PeerMetadata::new(settings, maker))
            }
            HttpFilterConfig::SetFilterState(settings) => {
                self.make(|_| set_filter_state::SetFilterState::new(settings))
            }
            HttpFilterConfig::SetMetadata(settings) => {
                self.make(|maker| set_metadata::SetMetadata::new(settings, maker))
            }
            HttpFilterConfig::StatefulSession(settings) => {
                self.make(|maker| stateful_session::StatefulSession::new(settings, maker))
            }
            HttpFilterConfig::Rbac(config) => self.make(|maker| rbac::Rbac::new(maker, Arc::clone(config))),
        })
    }

    fn make<F: HttpFilter + 'static>(&self, new: impl FnOnce(&Self) -> F) -> Box<dyn HttpFilter> {
        Box::new(new(self))
    }

    /// This worker's stats named `<prefix><name>.*`; `name` may have several parts, or be empty.
    pub fn stats<S: crate::stats::Scope + Default>(&self, name: &str) -> Arc<S> {
        let mut prefix = self.prefix.clone();
        if !name.is_empty() {
            prefix.push_str(name);
            prefix.push('.');
        }
        self.worker.scope(&prefix)
    }
}
