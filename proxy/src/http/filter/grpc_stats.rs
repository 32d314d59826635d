//! The gRPC stats filter: counts calls by their outcome, and their messages.
//!
//! Owns the counters per cluster and method, and the counting of messages in bodies. Never changes a call.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use outrigger_config::http::filters::{GrpcMethods, GrpcStats as Settings};

use super::body::BodyObserver;
use super::{Exchange, HttpFilter, Verdict};
use crate::http::headers::{HeaderId, Headers};
use crate::http::message::is_grpc_content_type;
use crate::scope;
use crate::stats::{Counter, Histogram, Metric, Scope, names};
use crate::worker::on_use::{Kept, Wanting};

/// Stats of the calls of one kind: `cluster.<name>.grpc.*`, or `cluster.<name>.grpc.<service>.<method>.*`.
#[derive(Debug, Default)]
pub struct CallStats {
    /// By gRPC status.
    statuses: [Counter; 17],
    common: CommonStats,
    time: Histogram,
}

scope! {
    /// What is counted of all calls.
    pub struct CommonStats {
        failure: Counter,
        request_message_count: Counter,
        response_message_count: Counter,
        success: Counter,
        total: Counter,
    }
}

impl Scope for CallStats {
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Metric<'_>)) {
        for (name, counter) in STATUSES.iter().zip(&self.statuses) {
            visit(name, Metric::Counter(counter.value()));
        }
        self.common.visit(visit);
        visit("upstream_rq_time", Metric::Histogram(&self.time));
    }
}

impl CallStats {
    fn outcome(&self, status: &[u8]) {
        if let Some(counter) = STATUSES.iter().position(|known| known.as_bytes() == status) {
            self.statuses[counter].increment();
        }
        if status == b"0" {
            self.common.success.increment()
        } else {
            self.common.failure.increment()
        }
        self.common.total.increment();
    }
}

/// The filter.
pub struct GrpcStats {
    settings: Arc<Settings>,
    /// By the cluster's stat name.
    known: RefCell<HashMap<Arc<str>, ByPath>>,
    /// When those that are gone were last looked for.
    evictions: Cell<u64>,
}

/// The stats of a cluster's calls; the empty path stands for calls that are not told apart.
type ByPath = HashMap<Box<str>, Kept<CallStats>>;

/// Methods of a cluster with stats of their own: paths come from clients, so there is a limit to them.
const MAX_METHODS: usize = 4096;

/// What is kept for a call.
#[derive(Default)]
struct Call {
    stats: Option<Arc<CallStats>>,
    requests: Rc<Cell<u64>>,
    responses: Rc<Cell<u64>>,
    /// The response is one of gRPC.
    answered: bool,
}

impl GrpcStats {
    /// A filter.
    pub fn new(settings: &Arc<Settings>) -> Self {
        Self { settings: Arc::clone(settings), known: RefCell::default(), evictions: Cell::default() }
    }

    /// The stats that a call to `path` counts in; `None` if the path is not that of a call.
    fn stats(&self, cluster: &Arc<str>, path: &str, exchange: &Exchange<'_, '_, '_>) -> Option<Arc<CallStats>> {
        let path = path.split('?').next().unwrap_or_default();
        let mut known = self.known.borrow_mut();
        let evictions = exchange.worker().process.stats.evictions();
        if self.evictions.replace(evictions) != evictions {
            known.values_mut().for_each(|of_cluster| of_cluster.retain(|_, stats| stats.get().is_some()));
        }
        if !known.contains_key(cluster) {
            known.insert(Arc::clone(cluster), HashMap::new());
        }
        let of_cluster = known.get_mut(cluster)?;
        let path = match &self.settings.methods {
            GrpcMethods::All if of_cluster.len() < MAX_METHODS || of_cluster.contains_key(path) => path,
            GrpcMethods::All => {
                exchange.worker().on_use.count_dropped(&exchange.worker().process.stats, Wanting::GrpcStats);
                ""
            }
            GrpcMethods::Listed(list) if list.iter().any(|listed| listed == path) => path,
            GrpcMethods::Listed(_) => "",
        };
        if let Some(stats) = of_cluster.get(path).and_then(Kept::get) {
            return Some(stats);
        }
        let mut prefix = names::prefix("cluster", cluster);
        prefix.push_str("grpc.");
        let together = prefix.clone();
        if !path.is_empty() {
            let (service, method) = service_and_method(path)?;
            let dots = self.settings.replace_dots && self.settings.methods == GrpcMethods::All;
            let service = if dots { service.replace('.', "_") } else { service.to_owned() };
            prefix.push_str(&names::prefix(&names::sanitize(&service), method));
        }
        let worker = exchange.worker();
        // Calls that are not told apart have the stats of the cluster. These stay, as those do that the configuration lists.
        let (stats, kept) = match (path, &self.settings.methods) {
            ("", _) | (_, GrpcMethods::Listed(_)) => {
                let stats = worker.scope::<CallStats>(&prefix);
                (Arc::clone(&stats), Kept::for_good(&stats))
            }
            (_, GrpcMethods::All) => match worker.scope_on_use::<CallStats>(Wanting::GrpcStats, &prefix) {
                Some(found) => found,
                None => return Some(worker.scope::<CallStats>(&together)),
            },
        };
        of_cluster.insert(path.into(), kept);
        Some(stats)
    }
}

/// The parts of `/service/method`.
pub(super) fn service_and_method(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}

impl HttpFilter for GrpcStats {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        if !exchange.head().is_grpc() {
            return Verdict::Continue;
        }
        let Some(cluster) = exchange.cluster().map(|node| Arc::clone(&node.config.stat_name)) else {
            return Verdict::Continue;
        };
        let stats = self.stats(&cluster, exchange.head().path_str(), exchange);
        let requests = Rc::<Cell<u64>>::default();
        if !exchange.has_no_body() {
            let counting = Counting::new(&requests, stats.clone(), |stats| &stats.common.request_message_count);
            exchange.observe_request(Box::new(counting));
        }
        *exchange.state::<Call>() = Call { stats, requests, ..Call::default() };
        Verdict::Continue
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let response = exchange.response();
        let is_grpc =
            response.status == 200 && response.headers.get(HeaderId::ContentType).is_some_and(is_grpc_content_type);
        let (stats, responses) = match exchange.known_state::<Call>() {
            Some(call) => (call.stats.clone(), Rc::clone(&call.responses)),
            // The messages of an answer are counted even if nobody has called.
            None if is_grpc && self.settings.emit_filter_state => Default::default(),
            None => return Verdict::Continue,
        };
        let response = exchange.response();
        if let (Some(stats), Some(status)) = (&stats, response.headers.get(HeaderId::GrpcStatus)) {
            stats.outcome(status);
        }
        if is_grpc {
            let counting = Counting::new(&responses, stats, |stats| &stats.common.response_message_count);
            exchange.observe_response(Box::new(counting));
            let call = exchange.state::<Call>();
            (call.answered, call.responses) = (true, responses);
        }
        Verdict::Continue
    }

    fn end(&self, exchange: &mut Exchange<'_, '_, '_>) {
        let Some(call) = exchange.known_state::<Call>().map(std::mem::take) else { return };
        if let (Some(stats), true) = (&call.stats, call.answered) {
            let trailers = exchange.response_trailers();
            if let Some(status) = trailers.and_then(|trailers| trailers.get(HeaderId::GrpcStatus)) {
                stats.outcome(status);
            }
            let info = exchange.info();
            if let (true, Some(sent), Some(_)) =
                (self.settings.upstream_stats, info.request_end.get(), info.response_start.get())
            {
                let end = info.end.get().unwrap_or_else(Instant::now);
                stats.time.record(end.saturating_duration_since(sent).as_millis() as u64);
            }
        }
        let counts = (call.requests.get(), call.responses.get());
        if self.settings.emit_filter_state && counts != (0, 0) {
            exchange.info().grpc_messages.set(Some(counts));
        }
    }
}

/// Counts the messages of a body.
struct Counting {
    count: Rc<Cell<u64>>,
    stats: Option<Arc<CallStats>>,
    counter: fn(&CallStats) -> &Counter,
    messages: Messages,
}

impl Counting {
    fn new(count: &Rc<Cell<u64>>, stats: Option<Arc<CallStats>>, counter: fn(&CallStats) -> &Counter) -> Self {
        Self { count: Rc::clone(count), stats, counter, messages: Messages::default() }
    }
}

impl BodyObserver for Counting {
    fn data(&mut self, bytes: &[u8]) {
        let count = self.messages.count(bytes);
        self.count.set(self.count.get() + count);
        if let Some(stats) = &self.stats {
            (self.counter)(stats).add(count);
        }
    }

    fn end(&mut self, _: &mut Option<Headers>) {}
}

/// The framing of gRPC: a flag, four bytes of length, and so many bytes.
#[derive(Debug, Default)]
struct Messages {
    /// Bytes of the prefix that were seen.
    prefix: usize,
    length: u32,
    /// Bytes of the message that are still to come.
    left: u32,
}

impl Messages {
    /// How many messages begin in `bytes`.
    fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut count = 0;
        loop {
            let skipped = bytes.len().min(self.left as usize);
            self.left -= skipped as u32;
            bytes = &bytes[skipped..];
            let Some((byte, rest)) = bytes.split_first() else { return count };
            bytes = rest;
            self.length = if self.prefix == 0 { 0 } else { self.length << 8 | u32::from(*byte) };
            self.prefix += 1;
            if self.prefix == PREFIX_BYTES {
                self.prefix = 0;
                self.left = self.length;
                count += 1;
            }
        }
    }
}

/// Source: gRPC over HTTP/2, Length-Prefixed-Message.
const PREFIX_BYTES: usize = 5;

/// gRPC's statuses as text.
pub(super) const STATUSES: [&str; 17] =
    ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let body = [&b"\0\0\0\0\x02ab"[..], b"\0\0\0\0\0", b"\x01\0\0\x01\0", &[0; 256], b"\0\0\0\0\x01x"].concat();
        for step in [1, 2, 3, 7, 100, 1000] {
            let mut messages = Messages::default();
            let count: u64 = body.chunks(step).map(|chunk| messages.count(chunk)).sum();
            assert_eq!(count, 4, "in steps of {step}");
        }
    }

    #[test]
    fn paths_of_calls_have_two_parts() {
        assert_eq!(service_and_method("/a.B/C"), Some(("a.B", "C")));
        for path in ["", "/", "/a", "/a/", "//b", "/a/b/c", "a/b"] {
            assert_eq!(service_and_method(path), None, "{path}");
        }
    }

    #[test]
    fn outcomes_are_counted_by_status() {
        let stats = CallStats::default();
        for status in ["0", "0", "14", "99"] {
            stats.outcome(status.as_bytes());
        }
        assert_eq!((stats.statuses[0].value(), stats.statuses[14].value()), (2, 1));
        let common = &stats.common;
        assert_eq!((common.success.value(), common.failure.value(), common.total.value()), (2, 2, 4));
    }
}
