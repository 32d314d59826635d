//! Streams that ended in different ways, and what is said of them.

use std::rc::Rc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::accesslog::samples::host;
use crate::http::message::Version;
use crate::moments::Milestone;
use crate::stream::{ResponseFlag, StreamInfo};

/// A request to a cluster, of which nothing more is known.
fn stream() -> StreamInfo {
    let info = StreamInfo::new(Instant::now(), Some(Version::Http11));
    info.request_end.set(Some(info.start));
    *info.cluster.borrow_mut() = Some("backend".into());
    info
}

/// The request has an endpoint.
fn tried() -> StreamInfo {
    let info = stream();
    info.attempts.set(1);
    *info.upstream_host.borrow_mut() = Some(host(80));
    info.reached(Milestone::UpstreamBegin, info.start);
    info
}

/// The request was sent.
fn sent() -> StreamInfo {
    let info = tried();
    let at = info.start + Duration::from_millis(5);
    info.reached(Milestone::PoolReady, at);
    info.reached(Milestone::UpstreamTxBegin, at);
    info
}

fn failed(info: StreamInfo, code: u16, flag: Option<ResponseFlag>, details: &'static str) -> StreamInfo {
    info.response_code.set(code);
    if let Some(flag) = flag {
        info.flag(flag);
    }
    info.set_details(details);
    info.end.set(Some(info.start + Duration::from_millis(40)));
    info
}

fn told(info: &StreamInfo) -> (String, String, &'static str) {
    let state = String::from_utf8(termination_state(info).to_vec()).unwrap();
    (reason(info).unwrap_or_default(), state, retry_class(info).as_str())
}

#[test]
fn each_end_has_its_sentence_its_state_and_its_class() {
    use ResponseFlag as Flag;
    let timed = |info: StreamInfo, milliseconds, field| {
        info.cause.set(Some(Cause::Time { limit: Some(Duration::from_millis(milliseconds)), field }));
        info
    };
    let counted = |info: StreamInfo, limit, field| {
        info.cause.set(Some(Cause::Count { limit, field }));
        info
    };
    let endpoint = "ndpoint 127.0.0.1:80 of cluster \"backend\"";
    let with_failure = |info: StreamInfo, text: &str| {
        *info.upstream_failure.borrow_mut() = Some(text.into());
        info
    };
    for (info, sentence, state, class) in [
        (
            failed(
                timed(sent(), 15_000, "RouteAction.timeout"),
                504,
                Some(Flag::UpstreamRequestTimeout),
                "response_timeout",
            ),
            format!("E{endpoint} did not answer within 15 s (RouteAction.timeout)."),
            "sH--",
            "sent",
        ),
        (
            failed(
                timed(tried(), 250, "Cluster.connect_timeout"),
                503,
                Some(Flag::UpstreamConnectionFailure),
                "upstream_reset_before_response_started{connection_timeout|connection timeout}",
            ),
            format!("E{endpoint} could not be connected to within 250 ms (Cluster.connect_timeout)."),
            "sC--",
            "never_sent",
        ),
        (
            failed(
                with_failure(tried(), "delayed connect error: Connection refused"),
                503,
                Some(Flag::UpstreamConnectionFailure),
                "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error}",
            ),
            format!("E{endpoint} could not be reached: delayed connect error: Connection refused."),
            "SC--",
            "never_sent",
        ),
        (
            failed(
                counted(stream(), 100, "CircuitBreakers.thresholds.max_requests"),
                503,
                Some(Flag::UpstreamOverflow),
                "upstream_reset_before_response_started{overflow}",
            ),
            "Cluster \"backend\" refused the request: the limit of 100 is reached \
             (CircuitBreakers.thresholds.max_requests)."
                .to_owned(),
            "PC--",
            "never_sent",
        ),
        (
            failed(
                timed(stream(), 20, "ConcurrencyOptions.queue_timeout"),
                503,
                Some(Flag::UpstreamOverflow),
                "upstream_queue_timeout",
            ),
            "Cluster \"backend\": no endpoint had room within 20 ms (ConcurrencyOptions.queue_timeout).".to_owned(),
            "sQ--",
            "never_sent",
        ),
        (
            failed(
                counted(stream(), 7, "ConcurrencyOptions.max_queue"),
                503,
                Some(Flag::UpstreamOverflow),
                "upstream_queue_full",
            ),
            "Cluster \"backend\": 7 requests wait already, the limit of ConcurrencyOptions.max_queue.".to_owned(),
            "PQ--",
            "never_sent",
        ),
        (
            failed(stream(), 503, Some(Flag::NoHealthyUpstream), "no_healthy_upstream"),
            "Cluster \"backend\" has no endpoint that may be used (Cluster.load_assignment).".to_owned(),
            "SC--",
            "never_sent",
        ),
        (
            failed(
                sent(),
                503,
                Some(Flag::UpstreamConnectionTermination),
                "upstream_reset_before_response_started{connection_termination}",
            ),
            format!("E{endpoint} closed the connection before it answered."),
            "SH--",
            "sent",
        ),
        (
            failed(
                sent(),
                503,
                Some(Flag::UpstreamRemoteReset),
                "upstream_reset_before_response_started{remote_refused_stream_reset}",
            ),
            format!("E{endpoint} refused the stream without looking at the request."),
            "SH--",
            "never_sent",
        ),
        (
            failed(sent(), 0, Some(Flag::DownstreamConnectionTermination), "downstream_remote_disconnect"),
            "The client closed its connection while the endpoint was waited for.".to_owned(),
            "CH--",
            "sent",
        ),
        (
            failed(
                timed(
                    StreamInfo::new(Instant::now(), Some(Version::Http11)),
                    1500,
                    "HttpConnectionManager.request_headers_timeout",
                ),
                408,
                None,
                "request_header_timeout",
            ),
            "The client did not send the request head within 1500 ms (HttpConnectionManager.request_headers_timeout)."
                .to_owned(),
            "cR--",
            "never_sent",
        ),
        (
            failed(
                StreamInfo::new(Instant::now(), Some(Version::Http2)),
                404,
                Some(Flag::NoRouteFound),
                "route_not_found",
            ),
            "No route of the virtual host matches the request (VirtualHost.routes).".to_owned(),
            "PR--",
            "never_sent",
        ),
        (
            failed(
                StreamInfo::new(Instant::now(), Some(Version::Http2)),
                403,
                None,
                "rbac_access_denied_matched_policy[strict]",
            ),
            "Access was denied by the policy \"strict\" (RBAC.rules.policies).".to_owned(),
            "PR--",
            "never_sent",
        ),
        (
            failed(StreamInfo::new(Instant::now(), Some(Version::Http2)), 200, None, "direct_response"),
            String::new(),
            "LR--",
            "never_sent",
        ),
    ] {
        assert_eq!(told(&info), (sentence, state.to_owned(), class), "{:?}", info.details);
    }
}

#[test]
fn answers_of_endpoints_are_told_apart_from_ours() {
    let info = sent();
    info.response_start.set(Some(info.start + Duration::from_millis(9)));
    info.reached(Milestone::UpstreamRxEnd, info.start + Duration::from_millis(30));
    let info = failed(info, 200, None, "via_upstream");
    assert_eq!(told(&info), (String::new(), "----".to_owned(), "answered"));
    info.response_code.set(502);
    let sentence = "Endpoint 127.0.0.1:80 of cluster \"backend\" answered 502 itself.".to_owned();
    assert_eq!(told(&info), (sentence, "----".to_owned(), "answered"));
    info.flag(ResponseFlag::UpstreamRetryLimitExceeded);
    info.attempts.set(3);
    assert!(reason(&info).unwrap().ends_with("itself, and all 3 tries were used up (RetryPolicy.num_retries)."));
}

#[test]
fn timers_add_up_and_are_absent_where_they_did_not_end() {
    let info = sent();
    info.head_duration.set(Duration::from_millis(1));
    info.moments.add_queued(Duration::from_millis(2));
    let now = info.start + Duration::from_millis(50);
    let shown = |name: &str| timer(Timer::named(name).unwrap(), &info, now).map(|time| time.as_millis());
    assert_eq!(["TR", "Tw", "Tc", "Tr", "Td", "Ta"].map(shown), [Some(1), Some(2), Some(5), None, None, Some(50)]);
    info.response_start.set(Some(info.start + Duration::from_millis(20)));
    let shown = |name: &str| timer(Timer::named(name).unwrap(), &info, now).map(|time| time.as_millis());
    assert_eq!(["Tr", "Td"].map(shown), [Some(15), Some(30)]);
    assert_eq!(timer(Timer::Queue, &stream(), now), None);
    assert_eq!(Timer::named("Tx"), None);
}

#[test]
fn a_session_that_was_silent_says_so() {
    let info = StreamInfo::new(Instant::now(), None);
    let info = Rc::new(info);
    info.reached(Milestone::PoolReady, info.start);
    assert_eq!(told(&info), (String::new(), "----".to_owned(), "never_sent"));
    info.cause.set(Some(Cause::Time { limit: Some(Duration::from_secs(1)), field: "TcpProxy.idle_timeout" }));
    let (sentence, state, _) = told(&info);
    assert_eq!((&*sentence, &*state), ("Nothing moved within 1 s (TcpProxy.idle_timeout).", "cD--"));
}

proptest! {
    #[test]
    fn whatever_was_recorded_there_is_one_sentence_and_four_letters(
        details in "[a-z_{}|\\[\\]é]{0,40}",
        flags in proptest::collection::vec(0..ResponseFlag::ALL.len(), 0..3),
        code in 0u16..600,
    ) {
        let info = sent();
        flags.into_iter().for_each(|flag| info.flag(ResponseFlag::ALL[flag]));
        info.response_code.set(code);
        info.set_details(details);
        let state = termination_state(&info);
        prop_assert!(state.iter().all(|letter| letter.is_ascii_alphabetic() || *letter == b'-'));
        if let Some(sentence) = reason(&info) {
            prop_assert!(sentence.ends_with('.') && sentence.len() > 1);
        }
    }
}
