//! What clients are told of limits (draft-polli-ratelimit-headers-03).
//!
//! Owns the text of the headers. Pure.

use std::fmt::Write as _;

use outrigger_api::pb::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use outrigger_api::pb::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus};

use crate::http::headers::Headers;

/// Adds `x-ratelimit-*` headers: those of the limit that is closest, with the policies of all.
pub(super) fn tell(statuses: &[DescriptorStatus], headers: &mut Headers) {
    let limited = statuses.iter().filter_map(|status| Some((status, status.current_limit.as_ref()?)));
    let Some((closest, limit)) = limited.clone().min_by_key(|(status, _)| status.limit_remaining) else { return };
    let mut text = limit.requests_per_unit.to_string();
    for (_, limit) in limited {
        let Some(window) = seconds(limit.unit) else { continue };
        // Writing into text cannot fail.
        let _ = write!(text, ", {};w={window}", limit.requests_per_unit);
        if !limit.name.is_empty() {
            let _ = write!(text, ";name=\"{}\"", limit.name);
        }
    }
    let reset = closest.duration_until_reset.as_ref().map_or(0, |duration| duration.seconds);
    text.retain(|character| !character.is_control());
    for (name, value) in [
        ("x-ratelimit-limit", text),
        ("x-ratelimit-remaining", closest.limit_remaining.to_string()),
        ("x-ratelimit-reset", reset.to_string()),
    ] {
        headers.append(name.as_bytes(), value.as_bytes());
    }
}

/// Seconds until the last of the limits that are reached has room again; `None` if none is reached.
pub(super) fn longest_wait(statuses: &[DescriptorStatus]) -> Option<u64> {
    let over = statuses.iter().filter(|status| status.code == Code::OverLimit as i32);
    let wait = |status: &DescriptorStatus| status.duration_until_reset.map_or(0, |duration| duration.seconds);
    over.map(wait).max().map(|seconds| u64::try_from(seconds).unwrap_or(0))
}

fn seconds(unit: i32) -> Option<u64> {
    const DAY: u64 = 24 * 60 * 60;
    match Unit::try_from(unit) {
        Ok(Unit::Second) => Some(1),
        Ok(Unit::Minute) => Some(60),
        Ok(Unit::Hour) => Some(60 * 60),
        Ok(Unit::Day) => Some(DAY),
        Ok(Unit::Week) => Some(7 * DAY),
        Ok(Unit::Month) => Some(30 * DAY),
        Ok(Unit::Year) => Some(365 * DAY),
        Ok(Unit::Unknown) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::service::ratelimit::v3::rate_limit_response::RateLimit;
    use outrigger_api::pb::google::protobuf::Duration;

    use super::*;

    fn status(remaining: u32, limit: Option<(u32, Unit, &str)>, reset: i64, code: Code) -> DescriptorStatus {
        DescriptorStatus {
            code: code as i32,
            current_limit: limit.map(|(requests_per_unit, unit, name)| RateLimit {
                name: name.into(),
                requests_per_unit,
                unit: unit as i32,
            }),
            limit_remaining: remaining,
            duration_until_reset: Some(Duration { seconds: reset, nanos: 900_000_000 }),
            quota: None,
        }
    }

    #[test]
    fn clients_are_told_of_the_closest_limit() {
        let mut headers = Headers::default();
        tell(&[status(0, None, 1, Code::Ok)], &mut headers);
        assert!(headers.is_empty());
        let statuses = [
            status(9, Some((10, Unit::Minute, "per-ip")), 7, Code::Ok),
            status(2, Some((1000, Unit::Hour, "")), 300, Code::Ok),
            status(5, Some((7, Unit::Unknown, "")), 1, Code::Ok),
        ];
        tell(&statuses, &mut headers);
        let value = |name: &str| std::str::from_utf8(headers.get_by_name(name).unwrap()).unwrap().to_owned();
        assert_eq!(value("x-ratelimit-limit"), "1000, 10;w=60;name=\"per-ip\", 1000;w=3600");
        assert_eq!((value("x-ratelimit-remaining"), value("x-ratelimit-reset")), ("2".into(), "300".into()));
    }

    #[test]
    fn the_longest_wait_counts() {
        let statuses =
            [status(0, None, 5, Code::OverLimit), status(0, None, 9, Code::OverLimit), status(1, None, 60, Code::Ok)];
        assert_eq!(longest_wait(&statuses), Some(9));
        assert_eq!(longest_wait(&statuses[2..]), None);
    }
}
