//! Whether an entry is logged (`envoy.config.accesslog.v3.AccessLogFilter`).
//!
//! Owns the evaluation of filters. Never draws random numbers and never formats.

use outrigger_config::accesslog::{AccessLogFilter, Comparison, ComparisonOperator};
use outrigger_config::matching::lookup;
use outrigger_config::units::RuntimeFraction;
use outrigger_policy::route::header_matches;

use super::facts::Facts;
use super::{attributes, grpc_status};
use crate::graph::RuntimeSnapshot;
use crate::http::headers::HeaderId;

/// What filters ask of the runtime.
pub trait RuntimeLookup {
    /// A key's value, if it has one and it is a number.
    fn number(&self, key: &str) -> Option<f64>;
    /// Whether a share, or what the runtime has in its place, holds for an evenly distributed `random`.
    fn holds(&self, fraction: &RuntimeFraction, random: u64) -> bool;
}

impl RuntimeLookup for RuntimeSnapshot {
    fn number(&self, key: &str) -> Option<f64> {
        self.values.get(key).and_then(|value| value.number)
    }

    fn holds(&self, fraction: &RuntimeFraction, random: u64) -> bool {
        RuntimeSnapshot::holds(self, fraction, random)
    }
}

/// Whether `filter` lets an entry through.
pub fn passes(filter: &AccessLogFilter, facts: &Facts<'_>, random: u64, runtime: &dyn RuntimeLookup) -> bool {
    match filter {
        AccessLogFilter::StatusCode(comparison) => {
            compare(comparison, u64::from(facts.info.response_code.get()), runtime)
        }
        AccessLogFilter::Duration(comparison) => {
            let milliseconds = facts.info.duration(facts.now).as_millis();
            compare(comparison, u64::try_from(milliseconds).unwrap_or(u64::MAX), runtime)
        }
        AccessLogFilter::NotHealthCheck => !facts.info.health_check.get(),
        AccessLogFilter::Traceable => facts.traced,
        AccessLogFilter::Runtime { fraction, independent } => {
            let shared = if *independent { None } else { shared_random(facts) };
            runtime.holds(fraction, shared.unwrap_or(random))
        }
        AccessLogFilter::And(filters) => filters.iter().all(|filter| passes(filter, facts, random, runtime)),
        AccessLogFilter::Or(filters) => filters.iter().any(|filter| passes(filter, facts, random, runtime)),
        AccessLogFilter::Header(matcher) => {
            let value = facts.request.and_then(|request| request.lookup(&matcher.name));
            header_matches(matcher, value.as_deref())
        }
        AccessLogFilter::ResponseFlag(wanted) => {
            let flags = facts.info.flags.get();
            match wanted.as_slice() {
                [] => !flags.is_empty(),
                wanted => flags.iter().any(|flag| wanted.iter().any(|wanted| wanted == flag.short())),
            }
        }
        AccessLogFilter::GrpcStatus { codes, exclude } => {
            let status = grpc_status::of(facts).unwrap_or(grpc_status::UNKNOWN);
            codes.iter().any(|code| i64::from(*code) == status) != *exclude
        }
        AccessLogFilter::Metadata { matcher, if_absent } => match matcher {
            Some(matcher) => {
                let metadata = facts.info.dynamic_metadata.borrow();
                let namespace = metadata.get(&*matcher.filter);
                match lookup(namespace, &matcher.path) {
                    Some(_) => matcher.matches(namespace),
                    None => *if_absent,
                }
            }
            None => *if_absent,
        },
        AccessLogFilter::LogType { types, exclude } => types.contains(&facts.log_type.number()) != *exclude,
        AccessLogFilter::Expression(expression) => attributes::holds(expression, facts),
    }
}

fn compare(comparison: &Comparison, value: u64, runtime: &dyn RuntimeLookup) -> bool {
    let Comparison { operator, value: default, runtime_key } = comparison;
    let number = if runtime_key.is_empty() { None } else { runtime.number(runtime_key) };
    let bound = number.filter(|number| *number >= 0.0).map_or(u64::from(*default), |number| number as u64);
    match operator {
        ComparisonOperator::Equal => value == bound,
        ComparisonOperator::GreaterOrEqual => value >= bound,
        ComparisonOperator::LessOrEqual => value <= bound,
        ComparisonOperator::NotEqual => value != bound,
    }
}

/// A number from the request id, so that all proxies on a request's way log the same requests.
fn shared_random(facts: &Facts<'_>) -> Option<u64> {
    let id = facts.request?.headers.get_str(HeaderId::XRequestId)?;
    u64::from_str_radix(id.get(..8)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use outrigger_config::matching::StringMatcher;
    use outrigger_config::route::{HeaderMatch, HeaderMatcher};
    use outrigger_config::units::Fraction;

    use super::super::samples::Sample;
    use super::*;
    use crate::stream::ResponseFlag;

    #[derive(Default)]
    struct Runtime(HashMap<&'static str, f64>);

    impl RuntimeLookup for Runtime {
        fn number(&self, key: &str) -> Option<f64> {
            self.0.get(key).copied()
        }

        fn holds(&self, fraction: &RuntimeFraction, random: u64) -> bool {
            fraction.default.holds(random)
        }
    }

    fn at_least(value: u32) -> Comparison {
        Comparison { operator: ComparisonOperator::GreaterOrEqual, value, runtime_key: "k".into() }
    }

    fn holds(filter: &AccessLogFilter, sample: &Sample) -> bool {
        passes(filter, &sample.facts(), 7, &Runtime::default())
    }

    #[test]
    fn codes_and_durations_are_compared_with_what_the_runtime_says() {
        let sample = Sample::http();
        let facts = sample.facts();
        let runtime = Runtime(HashMap::from([("k", 300.0)]));
        let status = AccessLogFilter::StatusCode(at_least(200));
        assert!(passes(&status, &facts, 0, &Runtime::default()));
        assert!(!passes(&status, &facts, 0, &runtime));
        assert!(holds(&AccessLogFilter::Duration(at_least(47)), &sample));
        assert!(!holds(&AccessLogFilter::Duration(at_least(48)), &sample));
        for (operator, expected) in [
            (ComparisonOperator::Equal, true),
            (ComparisonOperator::NotEqual, false),
            (ComparisonOperator::LessOrEqual, true),
        ] {
            let comparison = Comparison { operator, value: 200, runtime_key: String::new() };
            assert_eq!(holds(&AccessLogFilter::StatusCode(comparison), &sample), expected);
        }
    }

    #[test]
    fn flags_headers_and_combinations() {
        let sample = Sample::http();
        let any_flag = AccessLogFilter::ResponseFlag(Vec::new());
        let no_route = AccessLogFilter::ResponseFlag(vec!["UF".into(), "NR".into()]);
        assert!(!holds(&any_flag, &sample));
        sample.info.flag(ResponseFlag::NoRouteFound);
        assert!(holds(&any_flag, &sample));
        assert!(holds(&no_route, &sample));
        assert!(!holds(&AccessLogFilter::ResponseFlag(vec!["UF".into()]), &sample));
        let header = |value: &str| {
            AccessLogFilter::Header(Box::new(HeaderMatcher {
                name: "x-dup".into(),
                value: HeaderMatch::String(StringMatcher::Exact { value: value.into(), ignore_case: false }),
                invert: false,
                treat_missing_as_empty: false,
            }))
        };
        assert!(holds(&header("1,2"), &sample));
        assert!(!holds(&header("1"), &sample));
        assert!(!holds(&AccessLogFilter::And(vec![any_flag.clone(), header("1")]), &sample));
        assert!(holds(&AccessLogFilter::Or(vec![any_flag, header("1")]), &sample));
        assert!(holds(&AccessLogFilter::NotHealthCheck, &sample));
        assert!(!holds(&AccessLogFilter::Traceable, &sample));
    }

    #[test]
    fn grpc_status_counts_as_unknown_until_there_is_one() {
        let sample = Sample::tcp();
        assert!(holds(&AccessLogFilter::GrpcStatus { codes: vec![2], exclude: false }, &sample));
        assert!(!holds(&AccessLogFilter::GrpcStatus { codes: vec![2], exclude: true }, &sample));
        sample.info.response_code.set(503);
        assert!(holds(&AccessLogFilter::GrpcStatus { codes: vec![0, 14], exclude: false }, &sample));
    }

    #[test]
    fn a_share_follows_the_request_id_unless_independent() {
        let mut sample = Sample::http();
        // The sample's request id begins with 00000063: 99 of 100.
        let fraction = Fraction::new(99, 100).unwrap();
        let share = |independent| AccessLogFilter::Runtime {
            fraction: RuntimeFraction { default: fraction, runtime_key: "share".into() },
            independent,
        };
        assert!(!holds(&share(false), &sample));
        assert!(holds(&share(true), &sample));
        sample.request.as_mut().unwrap().headers.set_by_name("x-request-id", b"other");
        assert!(holds(&share(false), &sample));
    }
}
