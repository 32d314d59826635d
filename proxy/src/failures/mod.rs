//! The flight recorder: the requests and proxied connections that failed last.
//!
//! Owns what counts as failed, what is kept of it, and for how many. Each worker has a recorder of its own; only what failed
//! costs anything. Never writes a log.

mod sentence;

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::graph::RuntimeSnapshot;
use crate::http::message::RequestHead;
use crate::stream::{ConnectionInfo, Kill, ResponseFlag, ResponseFlags, StreamInfo, WallClock};

/// Failures that are kept unless the runtime says otherwise.
pub const KEPT: usize = 256;
/// How many are kept, at most [`MOST_KEPT`]; 0 switches the recorder off.
pub const KEPT_KEY: &str = "outrigger.failures.kept";
/// More are not kept, whatever the runtime says.
pub const MOST_KEPT: usize = 10_000;
/// Text from outside is cut off after so many bytes.
const TEXT_BYTES: usize = 256;

/// What failed last on one worker.
#[derive(Default)]
pub struct Recorder {
    kept: RefCell<VecDeque<Failed>>,
    total: Cell<u64>,
}

/// A request or a proxied connection that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    /// When it was over.
    pub at: SystemTime,
    /// In one sentence.
    pub why: String,
    /// `None` for a proxied connection.
    pub request: Option<FailedRequest>,
    /// The listener that accepted its connection.
    pub listener: Arc<str>,
    /// The filter chain; may be empty.
    pub filter_chain: Arc<str>,
    /// The client.
    pub remote: String,
    /// Its name, if it had a route that has one.
    pub route: Option<Arc<str>>,
    /// If it got so far.
    pub cluster: Option<Arc<str>>,
    /// The last one that was tried.
    pub endpoint: Option<String>,
    /// Of the response; 0 for none.
    pub code: u16,
    /// What went wrong.
    pub flags: ResponseFlags,
    /// Why the code.
    pub details: Cow<'static, str>,
    /// Why the connection to the endpoint failed.
    pub upstream_failure: Option<Box<str>>,
    /// How the connection ended.
    pub termination: Option<Cow<'static, str>>,
    /// Made.
    pub tries: u32,
    /// From and to the client.
    pub bytes: (u64, u64),
    /// From its beginning to its end.
    pub duration: Duration,
    /// From its beginning to the last byte of the request.
    pub request_received: Option<Duration>,
    /// From its beginning to the first byte of the response.
    pub response_began: Option<Duration>,
}

/// What is kept of a request that failed.
#[derive(Clone, Debug)]
pub struct FailedRequest {
    /// The method.
    pub method: String,
    /// Host with port.
    pub host: String,
    /// With its query.
    pub path: String,
    /// `x-request-id`; may be empty.
    pub id: String,
}

/// Whether a stream that is over has failed: something went wrong, or it was refused here.
pub fn has_failed(info: &StreamInfo) -> bool {
    // A delay that was ordered is no failure.
    const NONE: u32 = 1 << ResponseFlag::DelayInjected as u32;
    if info.flags.get().bits() & !NONE != 0 || info.kill.get() != Kill::No {
        return true;
    }
    // A proxied connection has no code. What refused it says why.
    if info.version.is_none() {
        return info.termination.borrow().is_some();
    }
    match info.response_code.get() {
        0 | 500.. => true,
        400.. => !matches!(&**info.details.borrow(), "via_upstream" | "direct_response"),
        _ => false,
    }
}

impl Recorder {
    /// Keeps a stream that is over, if it has failed.
    pub fn note(
        &self,
        info: &StreamInfo,
        connection: &ConnectionInfo,
        request: Option<&RequestHead>,
        clock: &WallClock,
        runtime: &RuntimeSnapshot,
    ) {
        if !has_failed(info) {
            return;
        }
        self.total.set(self.total.get() + 1);
        let most = runtime.integer(KEPT_KEY).map_or(KEPT, |most| usize::try_from(most).unwrap_or(MOST_KEPT));
        let mut kept = self.kept.borrow_mut();
        while kept.len() >= most.clamp(1, MOST_KEPT) {
            kept.pop_front();
        }
        if most > 0 {
            kept.push_back(failed(info, connection, request, clock));
        }
    }

    /// What is kept, the oldest first, and how many have failed in all.
    pub fn look(&self) -> (Vec<Failed>, u64) {
        (self.kept.borrow().iter().cloned().collect(), self.total.get())
    }
}

fn failed(info: &StreamInfo, connection: &ConnectionInfo, request: Option<&RequestHead>, clock: &WallClock) -> Failed {
    let end = info.end.get().unwrap_or_else(Instant::now);
    let since = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(info.start));
    Failed {
        at: clock.at(end),
        why: sentence::sentence(info),
        request: request.map(|head| FailedRequest {
            method: cut(head.method()),
            host: cut(head.authority()),
            path: cut(head.path()),
            id: head.headers.get_by_name("x-request-id").map(cut).unwrap_or_default(),
        }),
        listener: Arc::clone(&connection.listener),
        filter_chain: Arc::clone(&connection.filter_chain),
        remote: connection.remote.to_string(),
        route: info.route_name.borrow().clone(),
        cluster: info.cluster.borrow().clone(),
        endpoint: info.upstream_host.borrow().as_ref().map(|host| host.address.to_string()),
        code: info.response_code.get(),
        flags: info.flags.get(),
        details: info.details.borrow().clone(),
        upstream_failure: info.upstream_failure.borrow().clone(),
        termination: info.termination.borrow().clone(),
        tries: info.attempts.get(),
        bytes: (info.bytes_received.get(), info.bytes_sent.get()),
        duration: info.duration(end),
        request_received: since(info.request_end.get()),
        response_began: since(info.response_start.get()),
    }
}

fn cut(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT_BYTES)]).into_owned()
}

#[cfg(test)]
mod tests {
    use outrigger_config::bootstrap::RuntimeValue;

    use super::*;
    use crate::http::message::Version;

    fn stream(code: u16, details: &'static str, flag: Option<ResponseFlag>) -> StreamInfo {
        let info = StreamInfo::new(Instant::now(), Some(Version::Http11));
        info.response_code.set(code);
        info.set_details(details);
        if let Some(flag) = flag {
            info.flag(flag);
        }
        info
    }

    #[test]
    fn answers_of_upstreams_and_of_routes_are_no_failures_unless_they_say_so() {
        for (code, details, flag, expected) in [
            (200, "via_upstream", None, false),
            (404, "via_upstream", None, false),
            (404, "direct_response", None, false),
            (503, "via_upstream", None, true),
            (0, "", None, true),
            (403, "rbac_access_denied_matched_policy[none]", None, true),
            (404, "route_not_found", Some(ResponseFlag::NoRouteFound), true),
            (200, "via_upstream", Some(ResponseFlag::DelayInjected), false),
            (200, "via_upstream", Some(ResponseFlag::DownstreamConnectionTermination), true),
        ] {
            assert_eq!(has_failed(&stream(code, details, flag)), expected, "{code} {details}");
        }
        let session = StreamInfo::new(Instant::now(), None);
        assert!(!has_failed(&session));
        *session.termination.borrow_mut() = Some("rbac_access_denied_matched_policy[none]".into());
        assert!(has_failed(&session));
        session.termination.take();
        session.kill.set(Kill::Asked);
        assert!(has_failed(&session));
    }

    #[test]
    fn the_last_ones_are_kept_and_text_is_cut() {
        let recorder = Recorder::default();
        let address = outrigger_config::address::Address::Ip("127.0.0.1:1".parse().unwrap());
        let connection = ConnectionInfo {
            id: 0,
            start: Instant::now(),
            listener: "l".into(),
            local: address.clone(),
            direct_remote: address.clone(),
            remote: address,
            server_name: None,
            application_protocols: Vec::new(),
            filter_chain: "".into(),
            tls: None,
            local_restored: false,
            proxy_tlvs: None,
            outgoing_tlvs: Default::default(),
            socket_local: None,
            tls_fingerprints: Default::default(),
            dynamic_metadata: Default::default(),
            filter_state: Default::default(),
            peer_words: Default::default(),
        };
        let note = |code: u16, runtime: &RuntimeSnapshot| {
            let mut head = RequestHead::default();
            head.set_path(&[b'/'; 1000]);
            let clock = WallClock::new();
            recorder.note(&stream(code, "x", None), &connection, Some(&head), &clock, runtime);
        };
        let mut runtime = RuntimeSnapshot::default();
        (0..300).for_each(|code| note(500 + code, &runtime));
        note(200, &runtime);
        let (kept, total) = recorder.look();
        assert_eq!((kept.len(), total), (KEPT, 300));
        assert_eq!((kept[0].code, kept[KEPT - 1].code), (544, 799));
        assert_eq!(kept[0].request.as_ref().unwrap().path.len(), TEXT_BYTES);
        runtime.values.insert(KEPT_KEY.to_owned(), RuntimeValue::from_text("2"));
        note(500, &runtime);
        assert_eq!(recorder.look().0.len(), 2);
    }
}
