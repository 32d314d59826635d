//! Small things inside of headers and paths: cookies, query parameters, time limits, sessions, encodings.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use outrigger::http::router::timeout::grpc_timeout;
use outrigger_config::route::{RateLimitedBackOff, ResetFormat};
use outrigger_policy::accept_encoding::{Offer, choose};
use outrigger_policy::request::{cookie, query_parameter, without_cookie, without_query_parameter};
use outrigger_policy::retry::reset_wait;
use outrigger_policy::session::{SessionCookie, cookie_path_matches};

fuzz_target!(|input: (&str, &str)| {
    let (name, text) = input;
    let bytes = text.as_bytes();
    // A cookie's name is a token.
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        let rest = without_cookie(bytes, name);
        assert_eq!(cookie(&rest, name), None, "{name} in {text}");
        assert!(rest.len() <= bytes.len() * 2);
        assert_eq!(without_cookie(&rest, name), rest);
    }
    if let Some(rest) = without_query_parameter(text, name) {
        assert_eq!(query_parameter(&rest, name), None, "{name} in {text}");
        assert!(rest.len() <= text.len());
    } else {
        assert_eq!(query_parameter(text, name), None);
    }
    if let Some(timeout) = grpc_timeout(bytes) {
        assert!(bytes.len() <= 9 && timeout <= Duration::from_secs(99_999_999 * 3600));
    }
    if let Some(session) = SessionCookie::decode(bytes) {
        let again = SessionCookie::decode(&session.encode());
        // An address that is empty is none when it stands alone, but a message may hold it.
        assert_eq!(again, Some(session));
    }
    assert!(cookie_path_matches(None, text) && cookie_path_matches(Some("/"), &format!("/{text}")));
    let offers = [Offer { coding: "br", choose_first: true }, Offer { coding: "gzip", choose_first: false }];
    let chosen = choose(text, &offers).coding();
    assert!(chosen.is_none_or(|chosen| text.contains(chosen) || text.contains('*')));
    let limits = RateLimitedBackOff {
        reset_headers: vec![("a".into(), ResetFormat::Seconds), ("b".into(), ResetFormat::UnixTimestamp)],
        max_interval: Duration::from_secs(300),
    };
    let wait = reset_wait(&limits, |asked| (asked == "a" || name == "b").then_some(bytes), Duration::from_secs(1000));
    assert!(wait.is_none_or(|wait| !wait.is_zero() && wait <= limits.max_interval));
});
