//! Servers that are asked over HTTP (`envoy.config.core.v3.HttpUri`), and how often they are asked again.
//!
//! Owns the way from a URI to what a request for it says. Never asks.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::google::protobuf::UInt32Value;

use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::route::RetryOn;
use crate::wire;

/// Source: `HttpUri`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct HttpTarget {
    /// As it is written.
    pub uri: Box<str>,
    /// The authority of requests.
    pub authority: Box<str>,
    /// Their path, with its query.
    pub path: Box<str>,
    /// Where they go.
    pub cluster: Arc<str>,
    /// Limit from the first attempt to the end of the answer; none if `None`.
    pub timeout: Option<Duration>,
}

/// When and how often a request is made again. Source: `envoy.config.core.v3.RetryPolicy`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct FetchRetries {
    /// After the first attempt.
    pub count: u32,
    /// The longest pause before the first of them; doubled each time.
    pub base_interval: Duration,
    /// No pause is longer.
    pub max_interval: Duration,
}

/// The same for requests that are made again in some cases only.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CallRetries {
    /// In which cases.
    pub on: RetryOn,
    /// When and how often.
    pub times: FetchRetries,
}

impl CallRetries {
    /// `None` if no case is named: then nothing is made again.
    pub(crate) fn parse(at: &FieldPath<'_>, wire: core::RetryPolicy) -> Parsed<Option<Self>> {
        let on = RetryOn::from_names(&wire.retry_on);
        // What it says is decided here.
        let times = FetchRetries::parse(at, core::RetryPolicy { retry_on: String::new(), ..wire })?;
        Ok((on != RetryOn::default()).then_some(Self { on, times }))
    }
}

impl HttpTarget {
    pub(crate) fn parse(at: &FieldPath<'_>, wire: Option<core::HttpUri>) -> Parsed<Self> {
        let Some(wire) = wire else { return Err(at.reject("is required")) };
        decide!(wire, at, core::HttpUri as "envoy.config.core.v3.HttpUri" {
            implemented: uri, timeout, http_upstream_type;
            no_effect: ;
            unsupported: ;
        });
        let rest = uri.split_once("://").map_or(uri.as_str(), |(_, rest)| rest);
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let is_plain = uri.bytes().all(|byte| byte.is_ascii_graphic());
        if authority.is_empty() || !is_plain {
            return Err(at.field("uri").reject(format!("{uri:?} is not a URI, expected scheme://host/path")));
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let cluster_at = at.field("cluster");
        let cluster: Arc<str> = match http_upstream_type {
            Some(core::http_uri::HttpUpstreamType::Cluster(name)) if !name.is_empty() => name.into(),
            Some(_) => return Err(cluster_at.reject("must not be empty")),
            None => return Err(cluster_at.reject("is required")),
        };
        let timeout_at = at.field("timeout");
        let Some(timeout) = timeout else { return Err(timeout_at.reject("is required")) };
        let timeout = wire::limit(&timeout_at, Some(timeout), None)?;
        let authority = authority.into();
        Ok(Self { uri: uri.as_str().into(), authority, path: path.into(), cluster, timeout })
    }
}

impl FetchRetries {
    pub(crate) fn parse(at: &FieldPath<'_>, wire: core::RetryPolicy) -> Parsed<Self> {
        decide!(wire, at, core::RetryPolicy as "envoy.config.core.v3.RetryPolicy" {
            implemented: retry_back_off, num_retries;
            no_effect: retry_on = "for key sets, which are fetched again after errors 5xx, resets and failures to connect",
                host_selection_retry_max_attempts = "each attempt takes the next endpoint";
            unsupported: retry_priority, retry_host_predicate;
        });
        let count = num_retries.map_or(1, |UInt32Value { value }| value);
        let backoff_at = at.field("retry_back_off");
        let Some(wire) = retry_back_off else {
            return Ok(Self { count, base_interval: DEFAULT_BASE, max_interval: DEFAULT_BASE * 10 });
        };
        decide!(wire, backoff_at, core::BackoffStrategy as "envoy.config.core.v3.BackoffStrategy" {
            implemented: base_interval, max_interval;
            no_effect: ;
            unsupported: ;
        });
        let base_at = backoff_at.field("base_interval");
        let Some(base) = base_interval else { return Err(base_at.reject("is required")) };
        let base_interval = wire::duration(&base_at, base)?;
        if base_interval < SHORTEST_PAUSE {
            return Err(base_at.reject(format!("{base_interval:?} is below {SHORTEST_PAUSE:?}")));
        }
        let max_at = backoff_at.field("max_interval");
        let max_interval = match max_interval {
            None => base_interval.saturating_mul(10),
            Some(max) => wire::duration(&max_at, max)?,
        };
        if max_interval < base_interval {
            return Err(max_at.reject(format!("{max_interval:?} is below base_interval, {base_interval:?}")));
        }
        Ok(Self { count, base_interval, max_interval })
    }

    /// The pause before the retry after `tried` ones, at random within an interval that doubles.
    pub fn pause(&self, tried: u32, random: u64) -> Duration {
        let doubled = self.base_interval.saturating_mul(2_u32.saturating_pow(tried.min(30)));
        let share = (random >> 11) as f64 / (1_u64 << 53) as f64;
        doubled.min(self.max_interval).mul_f64(share)
    }
}

/// RFC 3986 section 2: all but unreserved characters are escaped.
pub fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            // Writing to a string cannot fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

const DEFAULT_BASE: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use outrigger_api::pb::google::protobuf::Duration as WireDuration;

    use super::*;

    fn uri(text: &str) -> Result<HttpTarget, String> {
        let wire = core::HttpUri {
            uri: text.into(),
            timeout: Some(WireDuration { seconds: 1, nanos: 0 }),
            http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster("c".into())),
        };
        HttpTarget::parse(&FieldPath::resource("listener", "l"), Some(wire)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_uri_says_whom_and_what_to_ask() {
        for (text, authority, path) in [
            ("https://idp:8443/token?x=1", "idp:8443", "/token?x=1"),
            ("http://idp", "idp", "/"),
            ("http://idp?x", "idp", "/?x"),
            ("idp/token#there", "idp", "/token"),
        ] {
            let target = uri(text).unwrap();
            assert_eq!((&*target.authority, &*target.path), (authority, path), "{text}");
        }
        for text in ["", "http://", "http:///path", "http://a b/"] {
            assert!(uri(text).unwrap_err().ends_with("is not a URI, expected scheme://host/path"), "{text}");
        }
    }

    #[test]
    fn nothing_is_made_again_unless_a_case_is_named() {
        let read = |retry_on: &str| {
            let wire = core::RetryPolicy { retry_on: retry_on.into(), ..Default::default() };
            CallRetries::parse(&FieldPath::resource("listener", "l"), wire).unwrap()
        };
        assert_eq!(read(""), None);
        let retries = read("5xx,reset").unwrap();
        assert!(retries.on.server_error && retries.on.reset && !retries.on.gateway_error);
        assert_eq!((retries.times.count, retries.times.base_interval), (1, DEFAULT_BASE));
    }
}
