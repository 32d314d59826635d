//! Copies of requests for other clusters.
//!
//! Owns a copy from the moment its request is forwarded: a task of its own that nobody waits for. A copy that cannot keep
//! up with its request is given up; the request never waits. Never retries, and reads answers only to throw them away.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use outrigger_config::cluster::{Discovery, RequestPolicies, UpstreamHttp};
use outrigger_config::format::Format;
use outrigger_config::http::HttpFilterConfig;
use outrigger_config::http::filters::UpstreamFilters;
use outrigger_config::route::{Forward, MirrorCluster, MirrorHost, MirrorPolicy, Priority};
use outrigger_policy::balance::Wanted;
use outrigger_policy::route::fraction_holds;

use super::attempt::Active;
use super::count_outcome;
use crate::graph::ClusterNode;
use crate::http::filter::{BodyObserver, header_mutation};
use crate::http::h1::parse::Framing;
use crate::http::headers::{HeaderId, Headers};
use crate::http::manager::mutate::{self, Mutable};
use crate::http::manager::request::{Chosen, Request};
use crate::http::message::{RequestHead, ResponseHead};
use crate::http::seam::{BodySource, Chunk, Pump, StreamError};
use crate::trace;
use crate::upstream::admission::{Admitted, Seeker};
use crate::upstream::avoid::Avoid;
use crate::upstream::pool;
use crate::upstream::response_stats::ResponseOrigin;
use crate::upstream::stream::UpstreamStream;
use crate::worker::Worker;

/// Bytes of a body that may wait for a slow copy.
const WAITING_BYTES: usize = 1 << 20;
/// Limit for a copy whose route has none.
const LONGEST: Duration = Duration::from_secs(300);

/// Begins the copies that the cluster asks for, or else the most specific level of the routes with mirror policies.
pub fn begin(request: &mut Request<'_>, chosen: &Chosen<'_>, action: &Forward, of_cluster: Option<&RequestPolicies>) {
    let levels = [&action.mirrors, &chosen.virtual_host.mirrors, &chosen.table.configuration().mirrors];
    let mut levels = of_cluster.map(|policies| &policies.mirrors).into_iter().chain(levels);
    let Some(policies) = levels.find(|policies| !policies.is_empty()) else { return };
    if request.head.is_tunnel() {
        // A copy of an upgraded connection would be spoken to by nobody.
        return;
    }
    let worker = Rc::clone(&request.connection.worker);
    for policy in policies {
        let runtime = &*request.graph.runtime;
        if !policy.share.as_ref().is_none_or(|share| fraction_holds(share, worker.random.next(), runtime)) {
            continue;
        }
        let Some(node) = target(request, policy) else { continue };
        let mut head = head(&request.head, &policy.host);
        if chosen.virtual_host.include_request_attempt_count {
            head.headers.set(HeaderId::XEnvoyAttemptCount, b"1");
        }
        if !policy.mutations.is_empty() {
            mutate::change(&policy.mutations, &mut CopySide { request, head: &mut head });
        }
        if let Some(filters) = &node.config.http.filters
            && !pass(filters, request, &mut head)
        {
            tracing::debug!(
                "a request is not mirrored: a filter in front of cluster {:?} could not be asked",
                node.config.name
            );
            continue;
        }
        trace::for_copy(request, &mut head, policy.trace_sampled);
        let body = Rc::new(RefCell::new(Waiting::default()));
        if request.framing == Framing::None {
            body.borrow_mut().end(None);
        } else {
            let tee = Box::new(Tee { body: Rc::clone(&body) });
            request.request_body.get_or_insert_with(Rc::default).observe(tee);
        }
        let copy = Copy { worker: Rc::clone(&worker), node, head, framing: request.framing, body: Body(body) };
        let limit = action.timeout.unwrap_or(LONGEST);
        let priority = action.priority;
        tokio::task::spawn_local(async move {
            if tokio::time::timeout(limit, copy.send(priority)).await.is_err() {
                tracing::debug!("a mirrored request took longer than {limit:?}");
            }
        });
    }
}

fn target(request: &Request<'_>, policy: &MirrorPolicy) -> Option<Arc<ClusterNode>> {
    let named = |name: &str| request.graph.clusters.get(name).map(Arc::clone);
    match &policy.cluster {
        MirrorCluster::Name(name) => named(name),
        MirrorCluster::Header(header) => named(std::str::from_utf8(&request.head.lookup(header)?).ok()?),
    }
}

/// The head of a copy, to be changed as by its request.
struct CopySide<'a, 'r> {
    request: &'a Request<'r>,
    head: &'a mut RequestHead,
}

impl Mutable for CopySide<'_, '_> {
    fn headers(&mut self) -> &mut Headers {
        &mut self.head.headers
    }

    fn evaluate(&self, format: &Format, value: &mut Vec<u8>) {
        let mut facts = self.request.facts();
        facts.request = Some(self.head);
        crate::accesslog::format::write_header(format, &facts, value);
    }
}

/// Does to the head of a copy what the filters in front of its cluster do to the head of a request. False if one of them
/// would have to be asked whether the copy may go there: a copy has nobody to ask.
fn pass(filters: &UpstreamFilters, request: &Request<'_>, head: &mut RequestHead) -> bool {
    filters.0.iter().filter(|filter| !filter.disabled).all(|filter| match &filter.config {
        HttpFilterConfig::HeaderMutation(settings) => {
            mutate::change(&settings.mutations.request, &mut CopySide { request, head: &mut *head });
            if !settings.mutations.query.is_empty() {
                let query = &settings.mutations.query;
                let path =
                    header_mutation::with_query(query, head.path_str(), &CopySide { request, head: &mut head.clone() });
                head.set_path(path.as_bytes());
            }
            true
        }
        HttpFilterConfig::AdmissionControl(_) | HttpFilterConfig::Buffer(_) | HttpFilterConfig::Compressor(_) => true,
        _ => false,
    })
}

fn head(original: &RequestHead, host: &MirrorHost) -> RequestHead {
    let mut head = original.clone();
    // It is a request of ours.
    head.headers.set(HeaderId::XEnvoyInternal, b"true");
    match host {
        MirrorHost::Keep => {}
        MirrorHost::Literal(host) => head.set_authority(host.as_bytes()),
        MirrorHost::Suffix => {
            let authority = head.authority_str();
            let (name, port) = match authority.rsplit_once(':') {
                Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, Some(port)),
                _ => (authority, None),
            };
            let shadow = match port {
                Some(port) => format!("{name}-shadow:{port}"),
                None => format!("{name}-shadow"),
            };
            head.set_authority(shadow.as_bytes());
        }
    }
    head
}

/// A copy on its way.
struct Copy {
    worker: Rc<Worker>,
    node: Arc<ClusterNode>,
    head: RequestHead,
    framing: Framing,
    body: Body,
}

impl Copy {
    async fn send(self, priority: Priority) {
        let cluster = self.worker.clusters.get(&self.worker, &self.node);
        if matches!(self.node.config.discovery, Discovery::OriginalDst(_) | Discovery::DynamicForward(_)) {
            // Where a request was going is where it goes; a copy has no other place to go.
            return;
        }
        let Some((cluster, wanted)) = cluster.delegate(&self.worker, Wanted::default()) else {
            return cluster.stats.upstream_cx_none_healthy.increment();
        };
        let admitted = if cluster.node().config.concurrency.is_some() {
            // A copy takes a place that is free, and never one that somebody waits for.
            let worker = &self.worker;
            Seeker { worker, cluster: Rc::clone(&cluster), wanted, avoid: Avoid::default(), priority, own: None }
                .admit_now()
        } else {
            cluster.pick(&self.worker, wanted, Avoid::default()).map(|host| Admitted { host, place: None })
        };
        let Some(Admitted { host, place }) = admitted else {
            cluster.stats.upstream_cx_none_healthy.increment();
            return;
        };
        let mut active = Active::new(&cluster, &host);
        let wanted = pool::Wanted {
            priority,
            downstream: self.head.version,
            host: pool::host_of(&self.head, &host.node.config.http),
            upgrade: false,
            alpn: None,
            connection: None,
            objects: None,
        };
        let stream = match pool::ready(&host, wanted) {
            Some(stream) => stream,
            None => match Box::pin(pool::acquire(&self.worker, &cluster, &host, wanted)).await {
                Ok(stream) => stream,
                Err(_) => return host.stats.rq_error.increment(),
            },
        };
        let mut _permit = None;
        let stream = match place.is_some() {
            true => stream,
            false => match pool::count(&cluster, priority, stream) {
                Ok((stream, permit)) => {
                    _permit = Some(permit);
                    stream
                }
                Err(_) => return host.stats.rq_error.increment(),
            },
        };
        active.has_stream();
        match self.exchange(&stream, &host.node.config.http).await {
            Ok(status) => {
                cluster.count_response(&self.worker, status, ResponseOrigin::own(Some(&host.host)));
                count_outcome(&host, status);
                stream.finish(Instant::now());
            }
            Err(_) => host.stats.rq_error.increment(),
        }
    }

    /// Sends the copy and reads its answer to the end.
    async fn exchange(&self, stream: &UpstreamStream, options: &UpstreamHttp) -> Result<u16, StreamError> {
        let mut response = ResponseHead::default();
        let mut upload = Pump::default();
        let mut head_sent = false;
        poll_fn(|cx| {
            if !head_sent {
                match stream.poll_send_head(cx, &self.head, self.framing, options) {
                    Poll::Ready(sent) => sent?,
                    Poll::Pending => return Poll::Pending,
                }
                head_sent = true;
            }
            // Why a copy could not be sent is seen in its answer, or in the lack of one.
            if let Poll::Ready(Err(crate::http::seam::PumpError::Source(error))) =
                upload.poll(cx, &self.body, stream, |_| {})
            {
                return Poll::Ready(Err(error));
            }
            stream.poll_response(cx, &mut response)
        })
        .await?;
        poll_fn(|cx| {
            let _ = upload.poll(cx, &self.body, stream, |_| {});
            loop {
                match stream.poll_data(cx) {
                    Poll::Ready(Ok(true)) => stream.consume(stream.with_data(|chunk| chunk.bytes().len())),
                    Poll::Ready(Ok(false)) => return Poll::Ready(Ok(response.status)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }
}

/// What a request has sent and its copy has not.
#[derive(Default)]
struct Waiting {
    parts: VecDeque<Vec<u8>>,
    bytes: usize,
    taken: usize,
    ended: bool,
    broken: bool,
    trailers: Option<Headers>,
    reader: Option<Waker>,
}

impl Waiting {
    fn add(&mut self, part: &[u8]) {
        self.bytes += part.len();
        self.broken |= self.bytes > WAITING_BYTES;
        if self.broken {
            self.parts.clear();
        } else {
            self.parts.push_back(part.to_vec());
        }
        self.wake();
    }

    fn end(&mut self, trailers: Option<Headers>) {
        self.ended = true;
        self.trailers = trailers;
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// Keeps a copy of a request body as it passes.
struct Tee {
    body: Rc<RefCell<Waiting>>,
}

impl BodyObserver for Tee {
    fn data(&mut self, bytes: &[u8]) {
        self.body.borrow_mut().add(bytes);
    }

    fn end(&mut self, trailers: &mut Option<Headers>) {
        self.body.borrow_mut().end(trailers.clone());
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        let mut body = self.body.borrow_mut();
        if !body.ended {
            // The request was broken off.
            body.broken = true;
            body.wake();
        }
    }
}

/// The copy of a body.
struct Body(Rc<RefCell<Waiting>>);

impl BodySource for Body {
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        let mut body = self.0.borrow_mut();
        if body.broken {
            return Poll::Ready(Err(StreamError::Closed));
        }
        if !body.parts.is_empty() {
            return Poll::Ready(Ok(true));
        }
        if body.ended {
            return Poll::Ready(Ok(false));
        }
        body.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        let body = self.0.borrow();
        look(Chunk::Slice(body.parts.front().map_or(&[], |part| &part[body.taken..])))
    }

    fn consume(&self, count: usize) {
        let mut body = self.0.borrow_mut();
        body.taken += count;
        body.bytes -= count;
        if body.parts.front().is_some_and(|part| body.taken >= part.len()) {
            body.parts.pop_front();
            body.taken = 0;
        }
    }

    fn take_trailers(&self) -> Option<Headers> {
        self.0.borrow_mut().trailers.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_told_from_its_request_by_its_host() {
        let authority = |host: &str, how: MirrorHost| {
            let mut original = RequestHead::default();
            original.set_authority(host.as_bytes());
            head(&original, &how).authority_str().to_owned()
        };
        assert_eq!(authority("a.b", MirrorHost::Suffix), "a.b-shadow");
        assert_eq!(authority("a.b:80", MirrorHost::Suffix), "a.b-shadow:80");
        assert_eq!(authority("a.b", MirrorHost::Keep), "a.b");
        assert_eq!(authority("a.b", MirrorHost::Literal("c".into())), "c");
    }

    #[test]
    fn a_copy_that_falls_behind_is_given_up() {
        let waiting = Rc::new(RefCell::new(Waiting::default()));
        let mut tee = Tee { body: Rc::clone(&waiting) };
        let body = Body(Rc::clone(&waiting));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(body.poll_data(&mut cx).is_pending());
        tee.data(b"abc");
        assert!(matches!(body.poll_data(&mut cx), Poll::Ready(Ok(true))));
        body.consume(1);
        assert_eq!(body.with_data(|chunk| chunk.bytes().to_vec()), b"bc");
        body.consume(2);
        assert!(body.poll_data(&mut cx).is_pending());
        for _ in 0..=WAITING_BYTES / 65_536 {
            tee.data(&[0; 65_536]);
        }
        assert!(matches!(body.poll_data(&mut cx), Poll::Ready(Err(StreamError::Closed))));
    }

    #[test]
    fn a_request_that_is_broken_off_breaks_its_copy_off() {
        let waiting = Rc::new(RefCell::new(Waiting::default()));
        drop(Tee { body: Rc::clone(&waiting) });
        assert!(waiting.borrow().broken);
        let whole = Rc::new(RefCell::new(Waiting::default()));
        let mut tee = Tee { body: Rc::clone(&whole) };
        tee.end(&mut None);
        drop(tee);
        assert!(!whole.borrow().broken);
    }
}
