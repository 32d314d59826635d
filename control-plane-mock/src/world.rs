//! The whole control plane as one value: what it serves, who is connected, what was said.
//!
//! Owns the store, the sessions, the faults and the log of requests, and answers "what goes out on
//! this stream now" and "has everyone confirmed this". Never waits, never reads a clock: time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use outrigger_api::pb::envoy::config::core::v3::Node;
use serde::Serialize;

use crate::faults::Faults;
use crate::protocol::{Protocol, Request, Response, Session, Violation};
use crate::session::{Conduct, ErrorDetail, Meaning, Standing};
use crate::session_delta::DeltaSession;
use crate::session_sotw::SotwSession;
use crate::state::Store;
use crate::types;
use crate::verdict::{Ack, Nack, Verdict};

/// Requests kept for [`World::asked`]; older ones are forgotten.
const LOG_LIMIT: usize = 4096;

/// Everything that the mock knows.
#[derive(Debug, Default)]
pub struct World {
    /// What clients should have.
    pub store: Store,
    /// What goes wrong on purpose.
    pub faults: Faults,
    /// Why the directory as it is now is not served, if so.
    pub directory_error: Option<String>,
    conduct: Conduct,
    streams: BTreeMap<u64, Stream>,
    opened: u64,
    log: VecDeque<Asked>,
    logged: u64,
    nacks: VecDeque<Nack>,
}

/// What a stream has to do now.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub responses: Vec<Response>,
    /// Look again at this time.
    pub wake_at: Option<Instant>,
    /// gRPC code to end the stream with, after the responses.
    pub end: Option<i32>,
}

/// One request as the client sent it.
#[derive(Clone, Debug, Serialize)]
pub struct Asked {
    /// Counts all requests; use it to read the log from where one stopped.
    pub sequence: u64,
    /// Stream that it came on.
    pub stream: u64,
    /// Protocol of that stream.
    pub protocol: Protocol,
    /// `node.id` of the stream (first request), empty if the client never sent one.
    pub node_id: String,
    /// Whether this very request carried a node.
    pub has_node: bool,
    /// Resource type.
    pub type_url: String,
    /// `resource_names`, or `resource_names_subscribe`.
    pub subscribe: Vec<String>,
    /// `resource_names_unsubscribe`.
    pub unsubscribe: Vec<String>,
    /// `initial_resource_versions`.
    pub initial_versions: BTreeMap<String, String>,
    /// `version_info` (state of the world).
    pub version_info: String,
    /// `response_nonce`.
    pub nonce: String,
    /// Why the client rejected the response.
    pub error_detail: Option<ErrorDetail>,
    /// What the server made of it.
    pub meaning: Meaning,
}

/// One stream that is open.
#[derive(Clone, Debug, Serialize)]
pub struct StreamInfo {
    /// Number of the stream, counted from 1.
    pub id: u64,
    /// Its protocol.
    pub protocol: Protocol,
    /// gRPC method path.
    pub method: String,
    /// The type of a per-type stream; `None` on an aggregated one.
    pub type_url: Option<String>,
    /// Request headers, without binary ones.
    pub headers: BTreeMap<String, String>,
    /// `node.id`.
    pub node_id: String,
    /// `node.cluster`.
    pub node_cluster: String,
    /// The node as sent, for tests that look closer.
    #[serde(skip)]
    pub node: Option<Node>,
    /// Subscriptions and confirmed versions by type URL.
    pub types: BTreeMap<String, Standing>,
}

#[derive(Debug)]
struct Stream {
    method: String,
    only: Option<String>,
    headers: BTreeMap<String, String>,
    node: Option<Node>,
    session: Session,
    /// When a delayed type may be sent.
    release_at: BTreeMap<String, Instant>,
    outbox: Vec<Response>,
    end: Option<i32>,
}

impl World {
    /// A control plane that serves nothing yet.
    pub fn new(conduct: Conduct) -> Self {
        Self { conduct, ..Self::default() }
    }

    pub(crate) fn open(
        &mut self,
        protocol: Protocol,
        method: &str,
        only: Option<&str>,
        headers: BTreeMap<String, String>,
    ) -> u64 {
        self.opened += 1;
        let session = match protocol {
            Protocol::Sotw => Session::Sotw(SotwSession::new(self.conduct)),
            Protocol::Delta => Session::Delta(DeltaSession::new(self.conduct)),
        };
        let stream = Stream {
            method: method.to_owned(),
            only: only.map(str::to_owned),
            headers,
            node: None,
            session,
            release_at: BTreeMap::new(),
            outbox: Vec::new(),
            end: None,
        };
        self.streams.insert(self.opened, stream);
        self.opened
    }

    pub(crate) fn close(&mut self, id: u64) {
        self.streams.remove(&id);
    }

    /// Takes in what a client said.
    pub(crate) fn request(&mut self, id: u64, mut request: Request) -> Result<(), Violation> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        request.set_type(stream.only.as_deref())?;
        let mut asked = Asked::of(&request);
        // Looked up before the session takes the answer in: the version that was answered.
        let answered = stream.session.sent_version(&asked.type_url, &asked.nonce);
        if let Some(node) = request.take_node() {
            asked.has_node = true;
            // The first node of a stream counts for the whole of it.
            stream.node.get_or_insert(node);
        }
        let meaning = match (&mut stream.session, &request) {
            (Session::Sotw(session), Request::Sotw(request)) => session.request(request),
            (Session::Delta(session), Request::Delta(request)) => session.request(request, &self.store),
            // A stream is opened for one protocol, and its transport decodes that one alone.
            _ => Meaning::Stale,
        };
        self.logged += 1;
        asked.sequence = self.logged;
        asked.stream = id;
        asked.meaning = meaning;
        asked.node_id = stream.node.as_ref().map(|node| node.id.clone()).unwrap_or_default();
        if let (Meaning::Nack, Some(version), Some(error_detail)) = (meaning, answered, &asked.error_detail) {
            push_bounded(
                &mut self.nacks,
                Nack {
                    type_url: asked.type_url.clone(),
                    version: version.to_string(),
                    set_version: version,
                    nonce: asked.nonce.clone(),
                    stream: id,
                    error_detail: error_detail.clone(),
                },
            );
        }
        push_bounded(&mut self.log, asked);
        Ok(())
    }

    /// What goes out on this stream now.
    pub(crate) fn poll(&mut self, id: u64, now: Instant) -> Step {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Step { end: Some(UNAVAILABLE), ..Step::default() };
        };
        let mut step = Step { responses: std::mem::take(&mut stream.outbox), ..Step::default() };
        for type_url in stream.session.due(&self.store) {
            if self.faults.is_held(&type_url) {
                continue;
            }
            if let Some(delay) = self.faults.delay_of(&type_url) {
                let release_at = *stream.release_at.entry(type_url.clone()).or_insert(now + delay);
                if now < release_at {
                    step.wake_at = Some(step.wake_at.map_or(release_at, |earlier| earlier.min(release_at)));
                    continue;
                }
            }
            stream.release_at.remove(&type_url);
            let corruption = self.faults.take_corruption(&type_url);
            if let Some(mut response) = stream.session.respond(&type_url, &self.store) {
                if let Some(how) = corruption {
                    if how.disowns() {
                        stream.session.disown_last(&type_url, response.nonce());
                    }
                    match &mut response {
                        Response::Sotw(response) => how.spoil_sotw(response),
                        Response::Delta(response) => how.spoil_delta(response),
                    }
                }
                step.responses.push(response);
            }
        }
        step.end = stream.end;
        step
    }

    /// Sends a TTL heartbeat for these resources to every stream that has them.
    pub fn heartbeat(&mut self, type_url: &str, names: &[String]) {
        for stream in self.streams.values_mut() {
            let beat = match &mut stream.session {
                Session::Sotw(session) => session.heartbeat(type_url, names, &self.store).map(Response::Sotw),
                Session::Delta(session) => session.heartbeat(type_url, names, &self.store).map(Response::Delta),
            };
            stream.outbox.extend(beat);
        }
    }

    /// Ends the chosen streams with this gRPC code; says how many.
    pub fn end_streams(&mut self, which: impl Fn(&StreamChoice<'_>) -> bool, code: i32) -> usize {
        let mut ended = 0;
        for (id, stream) in &mut self.streams {
            let choice = StreamChoice { id: *id, type_url: stream.only.as_deref(), session: &stream.session };
            if which(&choice) {
                stream.end = Some(code);
                ended += 1;
            }
        }
        ended
    }

    /// The streams that are open.
    pub fn streams(&self) -> Vec<StreamInfo> {
        self.streams.iter().map(|(id, stream)| stream.info(*id)).collect()
    }

    /// How many streams are open.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// How many streams were ever opened.
    pub fn streams_opened(&self) -> u64 {
        self.opened
    }

    /// Requests with a sequence number above `after`, oldest first.
    pub fn asked(&self, after: u64) -> Vec<Asked> {
        self.log.iter().filter(|asked| asked.sequence > after).cloned().collect()
    }

    /// Whether every client that asks for this type (or this resource of it) has confirmed what it should have.
    pub fn acked(&self, type_url: &str, name: Option<&str>) -> Verdict {
        let state = self.store.of(type_url);
        let mut streams = Vec::new();
        let mut nonce = String::new();
        let mut waiting = false;
        for (id, stream) in &self.streams {
            let Some(wanted) = stream.session.wants(type_url, name) else { continue };
            let in_sync = || stream.session.in_sync(type_url, &self.store);
            let confirmed = match name {
                None => in_sync(),
                Some(_) if !wanted => continue,
                Some(name) => {
                    let current = state.resources.get(name).map(|resource| resource.version.as_str());
                    stream.session.confirmed(type_url, name) == current && (current.is_some() || in_sync())
                }
            };
            if confirmed {
                streams.push(*id);
                nonce = stream.session.standing(type_url).and_then(|standing| standing.last_nonce).unwrap_or_default();
            } else if wanted {
                // A stream that has given everything up has nothing to confirm.
                waiting = true;
            }
        }
        if !waiting && !streams.is_empty() {
            let version = state.version.to_string();
            return Verdict::Acked(Ack { type_url: type_url.to_owned(), version, nonce, streams });
        }
        self.nacked(type_url, state.version).map_or(Verdict::Waiting, Verdict::Nacked)
    }

    /// The first NACK of a response of this type at set version `since` or later.
    pub fn nacked(&self, type_url: &str, since: u64) -> Option<Nack> {
        self.nacks.iter().find(|nack| nack.type_url == type_url && nack.set_version >= since).cloned()
    }

    /// Where things stand with one type, in words, for a message about waiting in vain.
    pub fn explain(&self, type_url: &str) -> String {
        let state = self.store.of(type_url);
        let mut text = format!(
            "{} is at version {} with {} resources",
            types::short_name(type_url),
            state.version,
            state.resources.len()
        );
        if self.streams.is_empty() {
            text.push_str("; no stream is open");
        }
        for (id, stream) in &self.streams {
            let said = match stream.session.standing(type_url) {
                None => "has not asked for it".to_owned(),
                Some(standing) => format!(
                    "asks for {} and {} names, last response {} is {}",
                    if standing.wildcard { "everything" } else { "no wildcard" },
                    standing.names.len(),
                    standing.last_version.as_deref().unwrap_or("(none)"),
                    standing.last_answer.unwrap_or("not sent"),
                ),
            };
            text.push_str(&format!("; stream {id} {said}"));
        }
        text
    }
}

/// gRPC `UNAVAILABLE`.
pub(crate) const UNAVAILABLE: i32 = 14;

/// What [`World::end_streams`] can choose by.
#[derive(Debug)]
pub struct StreamChoice<'a> {
    /// Number of the stream.
    pub id: u64,
    /// Type of a per-type stream.
    pub type_url: Option<&'a str>,
    session: &'a Session,
}

impl StreamChoice<'_> {
    /// Whether anything of this type was asked for on the stream.
    pub fn asks_for(&self, type_url: &str) -> bool {
        self.session.wants(type_url, None).is_some()
    }
}

impl Stream {
    fn info(&self, id: u64) -> StreamInfo {
        let (protocol, types) = match &self.session {
            Session::Sotw(session) => (Protocol::Sotw, session.standings()),
            Session::Delta(session) => (Protocol::Delta, session.standings()),
        };
        StreamInfo {
            id,
            protocol,
            method: self.method.clone(),
            type_url: self.only.clone(),
            headers: self.headers.clone(),
            node_id: self.node.as_ref().map(|node| node.id.clone()).unwrap_or_default(),
            node_cluster: self.node.as_ref().map(|node| node.cluster.clone()).unwrap_or_default(),
            node: self.node.clone(),
            types,
        }
    }
}

impl Asked {
    /// What the request itself says; the caller fills in what only the stream knows.
    fn of(request: &Request) -> Self {
        let blank = Asked {
            sequence: 0,
            stream: 0,
            protocol: Protocol::Sotw,
            node_id: String::new(),
            has_node: false,
            type_url: String::new(),
            subscribe: Vec::new(),
            unsubscribe: Vec::new(),
            initial_versions: BTreeMap::new(),
            version_info: String::new(),
            nonce: String::new(),
            error_detail: None,
            meaning: Meaning::Stale,
        };
        match request {
            Request::Sotw(request) => Asked {
                type_url: request.type_url.clone(),
                subscribe: request.resource_names.clone(),
                version_info: request.version_info.clone(),
                nonce: request.response_nonce.clone(),
                error_detail: request.error_detail.as_ref().map(ErrorDetail::from),
                ..blank
            },
            Request::Delta(request) => Asked {
                protocol: Protocol::Delta,
                type_url: request.type_url.clone(),
                subscribe: request.resource_names_subscribe.clone(),
                unsubscribe: request.resource_names_unsubscribe.clone(),
                initial_versions: request.initial_resource_versions.clone().into_iter().collect(),
                nonce: request.response_nonce.clone(),
                error_detail: request.error_detail.as_ref().map(ErrorDetail::from),
                ..blank
            },
        }
    }
}

fn push_bounded<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() == LOG_LIMIT {
        queue.pop_front();
    }
    queue.push_back(item);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_api::pb::envoy::service::discovery::v3 as discovery;
    use outrigger_api::pb::google::rpc::Status;

    use super::*;
    use crate::faults::Corruption;
    use crate::state::Origin;
    use crate::state::tests::resource;
    use crate::types::{CLUSTER, LISTENER};

    fn ask(type_url: &str, nonce: &str, error: Option<&str>) -> Request {
        Request::Sotw(discovery::DiscoveryRequest {
            type_url: type_url.to_owned(),
            response_nonce: nonce.to_owned(),
            node: Some(Node { id: "me".to_owned(), ..Default::default() }),
            error_detail: error.map(|message| Status { code: 3, message: message.to_owned(), details: Vec::new() }),
            ..Default::default()
        })
    }

    /// A world with one cluster, and one stream that has asked for clusters.
    fn world() -> (World, u64) {
        let mut world = World::default();
        world.store.set([resource(CLUSTER, "a", 1)], Origin::Api);
        let stream = world.open(Protocol::Sotw, "/ads", None, BTreeMap::new());
        world.request(stream, ask(CLUSTER, "", None)).unwrap();
        (world, stream)
    }

    #[test]
    fn a_held_type_waits_for_its_release() {
        let (mut world, stream) = world();
        world.faults.hold(CLUSTER);
        let now = Instant::now();
        assert!(world.poll(stream, now).responses.is_empty());
        world.faults.release(CLUSTER);
        assert_eq!(world.poll(stream, now).responses.len(), 1);
    }

    #[test]
    fn a_delayed_type_waits_for_its_time() {
        let (mut world, stream) = world();
        let (now, delay) = (Instant::now(), Duration::from_secs(5));
        world.faults.delay(CLUSTER, delay);
        let step = world.poll(stream, now);
        assert_eq!((step.responses.len(), step.wake_at), (0, Some(now + delay)));
        assert_eq!(world.poll(stream, now + delay).responses.len(), 1);
    }

    #[test]
    fn verdicts_follow_the_answers() {
        let (mut world, stream) = world();
        let now = Instant::now();
        assert_eq!(world.acked(CLUSTER, None), Verdict::Waiting);
        world.poll(stream, now);
        assert_eq!(world.acked(CLUSTER, None), Verdict::Waiting);
        world.request(stream, ask(CLUSTER, "1", None)).unwrap();
        assert!(matches!(world.acked(CLUSTER, None), Verdict::Acked(ack) if ack.version == "1" && ack.nonce == "1"));
        assert!(matches!(world.acked(CLUSTER, Some("a")), Verdict::Acked(_)));
        assert_eq!(world.acked(LISTENER, None), Verdict::Waiting);

        world.store.set([resource(CLUSTER, "a", 2)], Origin::Api);
        assert_eq!(world.acked(CLUSTER, None), Verdict::Waiting);
        world.poll(stream, now);
        world.request(stream, ask(CLUSTER, "2", Some("a is odd"))).unwrap();
        let Verdict::Nacked(nack) = world.acked(CLUSTER, None) else { panic!("not rejected") };
        assert_eq!((nack.version.as_str(), nack.error_detail.message.as_str()), ("2", "a is odd"));

        world.store.remove(CLUSTER, "a");
        assert_eq!(world.acked(CLUSTER, Some("a")), Verdict::Waiting);
        world.poll(stream, now);
        world.request(stream, ask(CLUSTER, "3", None)).unwrap();
        assert!(matches!(world.acked(CLUSTER, Some("a")), Verdict::Acked(_)));
        let meanings: Vec<_> = world.asked(1).iter().map(|asked| asked.meaning).collect();
        assert_eq!(meanings, [Meaning::Ack, Meaning::Nack, Meaning::Ack]);
    }

    #[test]
    fn an_answer_to_a_disowned_response_is_stale() {
        let (mut world, stream) = world();
        world.faults.corrupt(CLUSTER, Corruption::BadNonce);
        let step = world.poll(stream, Instant::now());
        let nonce = step.responses[0].nonce().to_owned();
        world.request(stream, ask(CLUSTER, &nonce, None)).unwrap();
        assert_eq!(world.asked(0).last().map(|asked| asked.meaning), Some(Meaning::Stale));
        assert_eq!(world.acked(CLUSTER, None), Verdict::Waiting);
    }

    #[test]
    fn types_are_checked_by_stream() {
        let mut world = World::default();
        let aggregated = world.open(Protocol::Sotw, "/ads", None, BTreeMap::new());
        let clusters = world.open(Protocol::Sotw, "/cds", Some(CLUSTER), BTreeMap::new());
        assert_eq!(world.request(aggregated, ask("", "", None)), Err(Violation::NoType));
        assert_eq!(world.request(clusters, ask("", "", None)), Ok(()));
        assert!(matches!(world.request(clusters, ask(LISTENER, "", None)), Err(Violation::OtherType { .. })));
        assert_eq!(world.streams()[1].node_id, "me");
    }

    #[test]
    fn streams_are_ended_by_choice() {
        let (mut world, stream) = world();
        assert_eq!(world.end_streams(|choice| choice.asks_for(LISTENER), UNAVAILABLE), 0);
        assert_eq!(world.end_streams(|choice| choice.id == stream, UNAVAILABLE), 1);
        assert_eq!(world.poll(stream, Instant::now()).end, Some(UNAVAILABLE));
        world.close(stream);
        assert_eq!(world.stream_count(), 0);
    }
}
