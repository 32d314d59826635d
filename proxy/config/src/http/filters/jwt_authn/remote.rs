//! Keys that are fetched (`RemoteJwks`).
//!
//! Owns where from and how often. Never fetches.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;

use crate::decide::decide;
use crate::http_uri::FetchRetries;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `RemoteJwks`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct RemoteJwks {
    /// Host with port as the URI has it; the `host` of requests.
    pub authority: String,
    /// Path with query; begins with a slash.
    pub path: String,
    /// The cluster that is asked.
    pub cluster: Arc<str>,
    /// Limit on one fetch with its retries.
    pub timeout: Duration,
    /// How long keys are used.
    pub cache_duration: Duration,
    /// Fetched before anybody asks, and again before the keys are too old.
    pub in_background: Option<AsyncFetch>,
    /// What follows a fetch that failed.
    pub retries: Option<FetchRetries>,
}

/// Source: `JwksAsyncFetch`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct AsyncFetch {
    /// The listener does not wait for the first fetch.
    pub fast_listener: bool,
    /// Pause after a fetch that failed.
    pub failed_refetch: Duration,
}

impl RemoteJwks {
    pub(super) fn parse(at: &FieldPath<'_>, provider: &str, wire: pb::RemoteJwks) -> Parsed<Self> {
        decide!(wire, at, pb::RemoteJwks as "envoy.extensions.filters.http.jwt_authn.v3.RemoteJwks" {
            implemented: http_uri, cache_duration, async_fetch, retry_policy;
            no_effect: ;
            unsupported: ;
        });
        let uri_at = at.field("http_uri");
        let Some(wire) = http_uri else { return Err(uri_at.reject("is required")) };
        let (authority, path, cluster, timeout) = http_uri_parts(&uri_at, provider, wire)?;
        let duration_at = at.field("cache_duration");
        let cache_duration = match cache_duration {
            None => DEFAULT_CACHE_DURATION,
            Some(wire) => wire::duration(&duration_at, wire)?,
        };
        if cache_duration < Duration::from_millis(1) {
            return Err(duration_at.reject(format!("{cache_duration:?} is less than 1ms")));
        }
        Ok(Self {
            authority,
            path,
            cluster,
            timeout,
            cache_duration,
            in_background: async_fetch.map(|wire| async_fetch_of(&at.field("async_fetch"), wire)).transpose()?,
            retries: retry_policy.map(|wire| FetchRetries::parse(&at.field("retry_policy"), wire)).transpose()?,
        })
    }
}

type UriParts = (String, String, Arc<str>, Duration);

fn http_uri_parts(at: &FieldPath<'_>, provider: &str, wire: core::HttpUri) -> Parsed<UriParts> {
    decide!(wire, at, core::HttpUri as "envoy.config.core.v3.HttpUri" {
        implemented: uri, timeout, http_upstream_type;
        no_effect: ;
        unsupported: ;
    });
    let uri_at = at.field("uri");
    let plain = uri.strip_prefix("http://").or_else(|| uri.strip_prefix("https://"));
    let is_valid = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let Some(rest) = plain.filter(is_valid) else {
        return Err(uri_at.reject(format!("Provider '{provider}' has an invalid URI: '{uri}'")));
    };
    let rest = rest.split('#').next().unwrap_or_default();
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() {
        return Err(uri_at.reject(format!("Provider '{provider}' has an invalid URI: '{uri}'")));
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let cluster = match http_upstream_type {
        Some(core::http_uri::HttpUpstreamType::Cluster(name)) if !name.is_empty() => Arc::from(name),
        Some(_) => return Err(at.field("cluster").reject("must not be empty")),
        None => return Err(at.field("cluster").reject("is required")),
    };
    let timeout_at = at.field("timeout");
    let Some(timeout) = timeout else { return Err(timeout_at.reject("is required")) };
    Ok((authority.to_owned(), path, cluster, wire::duration(&timeout_at, timeout)?))
}

fn async_fetch_of(at: &FieldPath<'_>, wire: pb::JwksAsyncFetch) -> Parsed<AsyncFetch> {
    decide!(wire, at, pb::JwksAsyncFetch as "envoy.extensions.filters.http.jwt_authn.v3.JwksAsyncFetch" {
        implemented: fast_listener, failed_refetch_duration;
        no_effect: ;
        unsupported: ;
    });
    let failed_refetch = match failed_refetch_duration {
        None => DEFAULT_FAILED_REFETCH,
        Some(wire) => wire::duration(&at.field("failed_refetch_duration"), wire)?.max(SHORTEST_PAUSE),
    };
    Ok(AsyncFetch { fast_listener, failed_refetch })
}

const DEFAULT_CACHE_DURATION: Duration = Duration::from_secs(600);
const DEFAULT_FAILED_REFETCH: Duration = Duration::from_secs(1);
/// A server that fails at once must not be asked without a pause.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
