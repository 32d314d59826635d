//! Responses of a cluster by where requests came from and where they went: `cluster.<name>.external.*`, `.internal.*`,
//! `.canary.*` and `.zone.<ours>.<its>.*`.
//!
//! Owns one worker's counters, which there are only once there is something to count. Never counts for the cluster as a whole.

use std::cell::{OnceCell, RefCell};
use std::sync::Arc;

use super::clusters::WorkerCluster;
use super::host::Host;
use crate::http::headers::HeaderId;
use crate::http::message::{RequestHead, ResponseHead};
use crate::stats::names;
use crate::worker::Worker;
use crate::{count_class, scope};

scope! {
    /// One worker's share of the responses of one kind.
    pub struct ResponseStats {
        upstream_rq: StatusCounters,
        upstream_rq_1xx: UsedCounter,
        upstream_rq_2xx: UsedCounter,
        upstream_rq_3xx: UsedCounter,
        upstream_rq_4xx: UsedCounter,
        upstream_rq_5xx: UsedCounter,
        upstream_rq_completed: UsedCounter,
        upstream_rq_time: UsedHistogram,
    }
}

impl ResponseStats {
    /// Counts a response by code and class.
    pub fn count(&self, status: u16) {
        self.upstream_rq_completed.increment();
        self.upstream_rq.increment(status);
        count_class!(self, status, upstream_rq);
    }
}

/// What a response is counted by, beside its cluster.
#[derive(Clone, Copy)]
pub struct ResponseOrigin<'a> {
    /// The request came from inside (`x-envoy-internal`), or is one of ours.
    pub internal: bool,
    /// The response says that a canary has answered.
    pub canary: bool,
    /// The endpoint, if one was picked.
    pub host: Option<&'a Host>,
}

impl<'a> ResponseOrigin<'a> {
    /// A request that the proxy makes itself.
    pub fn own(host: Option<&'a Host>) -> Self {
        Self { internal: true, canary: false, host }
    }

    /// A request that is forwarded, and what `response` says if it is one of the endpoint.
    pub fn of(request: &RequestHead, response: Option<&ResponseHead>, host: Option<&'a Host>) -> Self {
        let says = |value: Option<&[u8]>| value == Some(b"true");
        Self {
            internal: says(request.headers.get(HeaderId::XEnvoyInternal)),
            canary: response.is_some_and(|head| says(head.headers.get(HeaderId::XEnvoyUpstreamCanary))),
            host,
        }
    }
}

/// The counters of a cluster.
#[derive(Default)]
pub struct Origins {
    external: OnceCell<Arc<ResponseStats>>,
    internal: OnceCell<Arc<ResponseStats>>,
    canary: OnceCell<Arc<ResponseStats>>,
    /// By the zone of the endpoint; there are few.
    zones: RefCell<Vec<(Box<str>, Arc<ResponseStats>)>>,
}

impl WorkerCluster {
    /// Counts a response that ends a request, of an endpoint or of ours in its place.
    pub fn count_response(&self, worker: &Worker, status: u16, origin: ResponseOrigin<'_>) {
        self.stats.response(status);
        self.each_origin(worker, origin, |stats| stats.count(status));
    }

    /// Counts how long a response has taken.
    pub fn count_time(&self, worker: &Worker, milliseconds: u64, origin: ResponseOrigin<'_>) {
        self.stats.upstream_rq_time.record(milliseconds);
        self.each_origin(worker, origin, |stats| stats.upstream_rq_time.record(milliseconds));
    }

    fn each_origin(&self, worker: &Worker, origin: ResponseOrigin<'_>, count: impl Fn(&ResponseStats)) {
        let Origins { external, internal, canary, zones } = &self.origins;
        let scope = |kind: &str| {
            let cluster = names::prefix("cluster", &self.node.borrow().config.stat_name);
            worker.scope::<ResponseStats>(&format!("{cluster}{kind}."))
        };
        match origin.internal {
            true => count(internal.get_or_init(|| scope("internal"))),
            false => count(external.get_or_init(|| scope("external"))),
        }
        if origin.canary || origin.host.is_some_and(Host::is_canary) {
            count(canary.get_or_init(|| scope("canary")));
        }
        let ours = &worker.process.node_zone;
        if let Some(host) = origin.host.filter(|host| !ours.is_empty() && !host.locality.zone.is_empty()) {
            let its = host.locality.zone.as_str();
            let mut zones = zones.borrow_mut();
            match zones.iter().find(|(zone, _)| &**zone == its) {
                Some((_, stats)) => count(stats),
                None => {
                    let stats = scope(&format!("zone.{}.{}", names::sanitize(ours), names::sanitize(its)));
                    count(&stats);
                    zones.push((its.into(), stats));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_true_says_so() {
        let mut request = RequestHead::default();
        let mut response = ResponseHead::default();
        let origin = |request: &RequestHead, response: &ResponseHead| {
            let ResponseOrigin { internal, canary, host: _ } = ResponseOrigin::of(request, Some(response), None);
            (internal, canary)
        };
        assert_eq!(origin(&request, &response), (false, false));
        request.headers.set(HeaderId::XEnvoyInternal, b"true");
        response.headers.set(HeaderId::XEnvoyUpstreamCanary, b"yes");
        assert_eq!(origin(&request, &response), (true, false));
        response.headers.set(HeaderId::XEnvoyUpstreamCanary, b"true");
        assert_eq!(origin(&request, &response), (true, true));
        assert!(!ResponseOrigin::of(&request, None, None).canary && ResponseOrigin::own(None).internal);
    }
}
