//! Whether a failed try is repeated, and when (`RetryPolicy`).
//!
//! Owns the conditions of `retry_on` and the back-off. Never counts retries in flight (see `breaker`), knows whether
//! the request's body can be sent again, or waits.

use std::time::Duration;

use outrigger_config::route::{RateLimitedBackOff, ResetFormat, RetryPolicy};

/// How a try ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// No connection could be made, in time or at all, TLS included.
    ConnectFailure,
    /// The connection or stream ended without a response.
    Reset {
        /// Any byte of the request may have reached the upstream.
        request_sent: bool,
    },
    /// The upstream said that it has not looked at the request (HTTP/2 REFUSED_STREAM, or GOAWAY with a lower id).
    RefusedStream,
    /// Nothing came within `per_try_timeout` or `per_try_idle_timeout`.
    PerTryTimeout {
        /// Any byte of the request may have reached the upstream.
        request_sent: bool,
    },
    /// A limit of the circuit breaker was reached, so that nothing was tried.
    Overflow,
    /// A response head came.
    Response {
        /// Its status code.
        status: u16,
        /// `grpc-status` of the head; later ones, in trailers, cannot lead to a retry.
        grpc_status: Option<u32>,
        /// It has an `x-envoy-ratelimited` header.
        ratelimited: bool,
        /// One of its headers is as `retriable_headers` wants it.
        retriable_header: bool,
        /// How long the upstream wants to be left alone (see [`reset_wait`]).
        wait: Option<Duration>,
    },
}

/// How far a try came: what it may have set in motion upstream.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Progress {
    /// The upstream cannot have acted on the request.
    NeverSent,
    /// The upstream may have acted on the request.
    Sent,
    /// The upstream has acted on the request, and said how.
    Answered,
}

impl Progress {
    /// For logs: `never-sent`, `sent` or `answered`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NeverSent => "never-sent",
            Self::Sent => "sent",
            Self::Answered => "answered",
        }
    }
}

impl Outcome {
    /// How far the try came.
    pub fn progress(&self) -> Progress {
        match self {
            Self::ConnectFailure | Self::RefusedStream | Self::Overflow => Progress::NeverSent,
            Self::Reset { request_sent } | Self::PerTryTimeout { request_sent } => {
                if *request_sent {
                    Progress::Sent
                } else {
                    Progress::NeverSent
                }
            }
            Self::Response { .. } => Progress::Answered,
        }
    }
}

/// What to do after a try.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Try again after this time.
    Retry {
        /// Random, with a limit that doubles from retry to retry; or what the upstream has asked for.
        backoff: Duration,
        /// The upstream has.
        asked_for: bool,
    },
    /// Leave it at this outcome.
    GiveUp(GiveUp),
}

/// Why a try is not repeated.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum GiveUp {
    /// The policy does not name this outcome: it may well be a success.
    NotRetriable,
    /// It would, but `num_retries` have been made (`upstream_rq_retry_limit_exceeded`, response flag `URX`).
    LimitExceeded,
}

/// Decides on another try after `retries` retries. `random` must be evenly distributed.
pub fn decide(policy: &RetryPolicy, retries: u32, outcome: &Outcome, random: u64) -> Decision {
    if !is_retriable(policy, outcome) {
        Decision::GiveUp(GiveUp::NotRetriable)
    } else if retries >= policy.num_retries {
        Decision::GiveUp(GiveUp::LimitExceeded)
    } else {
        match outcome {
            Outcome::Response { wait: Some(wait), .. } => {
                Decision::Retry { backoff: spread(*wait, random), asked_for: true }
            }
            _ => Decision::Retry { backoff: backoff(policy, retries, random), asked_for: false },
        }
    }
}

/// Decides on a try beside one that is late, whatever the policy names: it is wanted because the other one goes on.
pub fn hedge(policy: &RetryPolicy, retries: u32, random: u64) -> Decision {
    match retries >= policy.num_retries {
        true => Decision::GiveUp(GiveUp::LimitExceeded),
        false => Decision::Retry { backoff: backoff(policy, retries, random), asked_for: false },
    }
}

/// How long an upstream wants to be left alone, by the headers of its response. `since_1970` is the time now.
pub fn reset_wait<'v>(
    limits: &RateLimitedBackOff,
    mut header: impl FnMut(&str) -> Option<&'v [u8]>,
    since_1970: Duration,
) -> Option<Duration> {
    limits.reset_headers.iter().find_map(|(name, format)| {
        let seconds: u64 = std::str::from_utf8(header(name)?).ok()?.trim().parse().ok()?;
        let wait = match format {
            ResetFormat::Seconds => Duration::from_secs(seconds),
            // A time that is over, or just now, says nothing.
            ResetFormat::UnixTimestamp => Duration::from_secs(seconds).checked_sub(since_1970)?,
        };
        (wait <= limits.max_interval && !wait.is_zero()).then_some(wait)
    })
}

/// Up to half as long again, so that not all clients come back at once.
fn spread(wait: Duration, random: u64) -> Duration {
    let half = u64::try_from(wait.as_nanos() / 2).unwrap_or(u64::MAX);
    wait.saturating_add(Duration::from_nanos(((u128::from(random) * u128::from(half)) >> 64) as u64))
}

/// Whether the policy names this outcome.
pub fn is_retriable(policy: &RetryPolicy, outcome: &Outcome) -> bool {
    let on = &policy.on;
    // A try without an answer would end in a 503 or 504 of our own, hence the first two.
    let any_reset = on.server_error || on.gateway_error || on.reset;
    let before_request = on.reset_before_request && outcome.progress() == Progress::NeverSent;
    match *outcome {
        Outcome::Overflow => false,
        Outcome::ConnectFailure => any_reset || before_request || on.connect_failure,
        Outcome::RefusedStream => {
            // Its bytes were sent, though to no effect: only those who ask for such resets get a retry.
            any_reset || on.refused_stream
        }
        Outcome::Reset { .. } | Outcome::PerTryTimeout { .. } => any_reset || before_request,
        // Another proxy limits the rate: trying again at once is what it does not want, unless told so.
        Outcome::Response { ratelimited: true, .. } => on.envoy_ratelimited,
        Outcome::Response { status, grpc_status, ratelimited: false, retriable_header, wait: _ } => {
            (on.server_error && (500..600).contains(&status))
                || (on.gateway_error && matches!(status, 502..=504))
                || (on.retriable_4xx && status == 409)
                || (on.retriable_headers && retriable_header)
                || (on.retriable_status_codes && policy.retriable_status_codes.contains(&status))
                || grpc_status.is_some_and(|code| code < 32 && on.grpc_codes >> code & 1 == 1)
        }
    }
}

fn backoff(policy: &RetryPolicy, retries: u32, random: u64) -> Duration {
    back_off(policy.base_interval, policy.max_interval, retries, random)
}

/// A random time below the base interval doubled for each retry made, and below the maximum interval.
pub fn back_off(base: Duration, max: Duration, retries: u32, random: u64) -> Duration {
    let nanos = |interval: Duration| u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
    let doubled = nanos(base).saturating_mul(1_u64.checked_shl(retries).unwrap_or(u64::MAX));
    let limit = doubled.min(nanos(max));
    Duration::from_nanos(((u128::from(random) * u128::from(limit)) >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use outrigger_config::route::RetryOn;
    use proptest::prelude::*;

    use super::*;

    fn policy(on: RetryOn) -> RetryPolicy {
        RetryPolicy {
            on,
            num_retries: 2,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            retriable_status_codes: vec![429],
            base_interval: Duration::from_millis(25),
            max_interval: Duration::from_millis(250),
            host_selection_max_attempts: 1,
            avoided_hosts: outrigger_config::route::AvoidedHosts::default(),
            retry_priority: None,
            retriable_headers: Vec::new(),
            retriable_request_headers: Vec::new(),
            rate_limited_back_off: None,
        }
    }

    fn response(status: u16, grpc_status: Option<u32>) -> Outcome {
        Outcome::Response { status, grpc_status, ratelimited: false, retriable_header: false, wait: None }
    }

    fn status(status: u16) -> Outcome {
        response(status, None)
    }

    fn grpc(code: u32) -> Outcome {
        response(200, Some(code))
    }

    #[test]
    fn late_tries_are_hedged_as_often_as_the_policy_allows() {
        let mut policy = policy(RetryOn::default());
        policy.num_retries = 1;
        assert_eq!(hedge(&policy, 0, 0), Decision::Retry { backoff: Duration::ZERO, asked_for: false });
        assert_eq!(hedge(&policy, 1, 0), Decision::GiveUp(GiveUp::LimitExceeded));
    }

    #[test]
    fn an_upstream_says_how_long_to_wait() {
        let limits = RateLimitedBackOff {
            reset_headers: vec![
                ("retry-after".into(), ResetFormat::Seconds),
                ("x-ratelimit-reset".into(), ResetFormat::UnixTimestamp),
            ],
            max_interval: Duration::from_secs(300),
        };
        let wait = |after: Option<&'static str>, reset: Option<&'static str>| {
            let header = |name: &str| if name == "retry-after" { after } else { reset };
            let wait = reset_wait(&limits, |name| header(name).map(str::as_bytes), Duration::from_secs(1_000));
            wait.map(|wait| wait.as_secs())
        };
        assert_eq!(wait(Some("120"), Some("1010")), Some(120));
        assert_eq!(wait(Some("301"), Some("1010")), Some(10), "what is too long is passed over");
        assert_eq!(wait(Some("soon"), Some("1010")), Some(10));
        assert_eq!(wait(None, Some("999")), None, "that time is over");
        assert_eq!(wait(None, None), None);
        assert_eq!(spread(Duration::from_secs(10), 0), Duration::from_secs(10));
        assert!(spread(Duration::from_secs(10), u64::MAX) < Duration::from_secs(15));
        let mut policy = policy(RetryOn { server_error: true, ..RetryOn::default() });
        policy.rate_limited_back_off = Some(limits);
        let Outcome::Response { status, grpc_status, ratelimited, retriable_header, wait: _ } = status(503) else {
            unreachable!("it is a response");
        };
        let wait = Some(Duration::from_secs(2));
        let outcome = Outcome::Response { status, grpc_status, ratelimited, retriable_header, wait };
        assert_eq!(
            decide(&policy, 0, &outcome, 0),
            Decision::Retry { backoff: Duration::from_secs(2), asked_for: true }
        );
    }

    /// The outcomes among all kinds that a condition repeats.
    fn repeated(on: RetryOn) -> Vec<&'static str> {
        let outcomes = [
            ("connect", Outcome::ConnectFailure),
            ("unsent reset", Outcome::Reset { request_sent: false }),
            ("reset", Outcome::Reset { request_sent: true }),
            ("refused", Outcome::RefusedStream),
            ("timeout", Outcome::PerTryTimeout { request_sent: true }),
            ("overflow", Outcome::Overflow),
            ("200", status(200)),
            ("409", status(409)),
            ("429", status(429)),
            ("500", status(500)),
            ("503", status(503)),
            (
                "ratelimited",
                Outcome::Response {
                    status: 503,
                    grpc_status: None,
                    ratelimited: true,
                    retriable_header: false,
                    wait: None,
                },
            ),
            (
                "header",
                Outcome::Response {
                    status: 200,
                    grpc_status: None,
                    ratelimited: false,
                    retriable_header: true,
                    wait: None,
                },
            ),
            ("grpc 14", grpc(14)),
            ("grpc 5", grpc(5)),
            ("grpc 99", grpc(99)),
        ];
        outcomes.iter().filter(|(_, outcome)| is_retriable(&policy(on), outcome)).map(|(name, _)| *name).collect()
    }

    #[test]
    fn each_condition_repeats_what_it_names() {
        let none = RetryOn::default();
        let resets = ["connect", "unsent reset", "reset", "refused", "timeout"];
        let with = |more: &[&'static str]| [&resets[..], more].concat();
        assert_eq!(repeated(none), [""; 0]);
        assert_eq!(repeated(RetryOn { server_error: true, ..none }), with(&["500", "503"]));
        assert_eq!(repeated(RetryOn { gateway_error: true, ..none }), with(&["503"]));
        assert_eq!(repeated(RetryOn { reset: true, ..none }), resets);
        assert_eq!(repeated(RetryOn { reset_before_request: true, ..none }), ["connect", "unsent reset"]);
        assert_eq!(repeated(RetryOn { connect_failure: true, ..none }), ["connect"]);
        assert_eq!(repeated(RetryOn { refused_stream: true, ..none }), ["refused"]);
        assert_eq!(repeated(RetryOn { retriable_4xx: true, ..none }), ["409"]);
        assert_eq!(repeated(RetryOn { retriable_status_codes: true, ..none }), ["429"]);
        assert_eq!(repeated(RetryOn { retriable_headers: true, ..none }), ["header"]);
        assert_eq!(repeated(RetryOn { envoy_ratelimited: true, ..none }), ["ratelimited"]);
        assert_eq!(repeated(RetryOn { grpc_codes: 1 << 14, ..none }), ["grpc 14"]);
        assert_eq!(repeated(RetryOn { http3_post_connect_failure: true, ..none }), [""; 0]);
    }

    #[test]
    fn a_policy_ends_after_its_retries() {
        let policy = policy(RetryOn { server_error: true, ..RetryOn::default() });
        assert!(matches!(decide(&policy, 1, &status(500), 0), Decision::Retry { .. }));
        assert_eq!(decide(&policy, 2, &status(500), 0), Decision::GiveUp(GiveUp::LimitExceeded));
        assert_eq!(decide(&policy, 2, &status(200), 0), Decision::GiveUp(GiveUp::NotRetriable));
    }

    #[test]
    fn outcomes_tell_how_far_they_came() {
        assert_eq!(Outcome::ConnectFailure.progress().name(), "never-sent");
        assert_eq!(Outcome::RefusedStream.progress().name(), "never-sent");
        assert_eq!(Outcome::PerTryTimeout { request_sent: false }.progress().name(), "never-sent");
        assert_eq!(Outcome::Reset { request_sent: true }.progress().name(), "sent");
        assert_eq!(status(503).progress().name(), "answered");
    }

    #[test]
    fn the_back_off_doubles_up_to_its_limit() {
        let policy = policy(RetryOn::default());
        for (retries, millis) in [(0, 25), (1, 50), (2, 100), (3, 200), (4, 250), (40, 250), (u32::MAX, 250)] {
            let longest = backoff(&policy, retries, u64::MAX);
            let limit = Duration::from_millis(millis);
            assert!(longest < limit && longest > limit - Duration::from_micros(1), "{retries}: {longest:?}");
            assert_eq!(backoff(&policy, retries, 0), Duration::ZERO);
            assert_eq!(backoff(&policy, retries, 1 << 63), limit / 2);
        }
    }

    proptest! {
        #[test]
        fn the_back_off_never_overflows(base in any::<u64>(), max in any::<u64>(), retries: u32, random: u64) {
            let policy = RetryPolicy {
                base_interval: Duration::from_millis(base),
                max_interval: Duration::from_millis(max),
                ..policy(RetryOn::default())
            };
            prop_assert!(backoff(&policy, retries, random) <= policy.max_interval);
        }
    }
}
