//! Limits on requests in flight, and what becomes of those that are too many (`outrigger.upstream.v1.ConcurrencyOptions`,
//! `CircuitBreakers.per_host_thresholds`, and metadata of clusters and endpoints).
//!
//! Owns how the carriers are read and what wins. Never counts a request.

use std::time::Duration;

use outrigger_api::outrigger::upstream_v1 as pb;
use outrigger_api::pb::envoy::config::core::v3::Metadata;
use outrigger_api::pb::google::protobuf::value::Kind;
use outrigger_api::pb::google::protobuf::{Any, Struct};
use outrigger_api::xds::type_v3::TypedStruct;

use crate::context::Context;
use crate::decide::decide;
use crate::http::header_mutations::header_name;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// How many requests endpoints take at a time. Source: `outrigger.upstream.v1.ConcurrencyOptions`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Concurrency {
    /// Requests in flight at an endpoint that does not say otherwise.
    pub max_requests: Option<u32>,
    /// The limit of endpoints while nothing happens, and the requests in the cluster at which it is `max_requests`.
    pub moving: Option<(u32, u32)>,
    /// What becomes of requests over a limit.
    pub over_limit: OverLimit,
    /// How many may wait; the cluster's `max_pending_requests` unless given.
    pub max_queue: Option<u32>,
    /// How many may wait for one endpoint before they wait for any.
    pub max_queue_per_endpoint: Option<u32>,
    /// How long one may wait.
    pub queue_timeout: Option<Duration>,
    /// How long one waits for a healthy endpoint where there is none.
    pub wait_for_ready: Option<Duration>,
    /// Endpoints in slow start have a part of their limit.
    pub slow_start: bool,
    /// Who is served first.
    pub class: PriorityClass,
    /// Callers are served in turn.
    pub fair: Option<Caller>,
    /// Who came last is served first while somebody has waited for so long without a break.
    pub newest_first_after: Option<Duration>,
}

/// Source: `ConcurrencyOptions.OverLimit`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OverLimit {
    /// They wait; those with a hash for their endpoint.
    #[default]
    Wait,
    /// They fail unless an endpoint has a place.
    Fail,
    /// They wait for any endpoint.
    OtherEndpoint,
}

/// Where the class of a request comes from; lower ones are served first. Source: `PriorityClass`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PriorityClass {
    /// The request header that holds it.
    pub header: Option<String>,
    /// The request header that holds milliseconds added to the time of arrival.
    pub offset_header: Option<String>,
    /// Namespace and key of dynamic metadata that holds it.
    pub metadata: Option<(String, String)>,
    /// What it is if nothing else says it.
    pub default: i32,
    /// What it is for routes of priority HIGH.
    pub high: Option<i32>,
}

impl PriorityClass {
    /// The class of requests whose route has priority HIGH.
    pub fn of_high_priority(&self) -> i32 {
        self.high.unwrap_or(HIGH_PRIORITY_CLASS)
    }
}

/// Who a caller is. Source: `FairQueue`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Caller {
    /// The value of a request header.
    Header(String),
    /// The client's address.
    SourceAddress,
    /// The name in the client's certificate.
    PeerIdentity,
}

/// What a route says about waiting. Source: the namespace `outrigger.queue` of `Route.metadata`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct QueueHints {
    /// `timeout`: how long its requests may wait.
    pub timeout: Option<Duration>,
    /// `class`: who is served first.
    pub class: Option<i32>,
    /// `offset_ms`: added to the time of arrival.
    pub offset_ms: Option<i64>,
}

/// The type of our message.
pub(super) const TYPE_NAME: &str = "outrigger.upstream.v1.ConcurrencyOptions";
/// The namespace of a cluster's metadata that holds the message as an object.
const CLUSTER_NAMESPACE: &str = "outrigger.upstream";
/// The namespace of an endpoint's metadata that holds its own limit.
const ENDPOINT_NAMESPACE: &str = "outrigger.lb";
/// The namespace of a route's metadata.
const ROUTE_NAMESPACE: &str = "outrigger.queue";
/// As far as HAProxy's classes go.
pub const MAX_CLASS: i32 = 2047;
const MIN_CLASS: i32 = -MAX_CLASS;
const HIGH_PRIORITY_CLASS: i32 = -1024;
/// Longer offsets mean nothing to a queue.
pub const MAX_OFFSET_MS: i64 = 3_600_000;
const CONGESTED_AFTER: Duration = Duration::from_millis(100);

/// The limits of one endpoint in `CircuitBreakers.per_host_thresholds`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct PerHost {
    pub max_connections: Option<u32>,
    pub max_requests: Option<u32>,
    pub max_pending_requests: Option<u32>,
}

/// Where the options may stand.
pub(super) struct Carriers<'a> {
    /// In `typed_extension_protocol_options`, with the path.
    pub typed: Option<Concurrency>,
    pub metadata: Option<&'a Metadata>,
    pub per_host: PerHost,
}

/// The options of a cluster: its typed options, or else its metadata, over `per_host_thresholds`.
pub(super) fn concurrency(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    carriers: Carriers<'_>,
) -> Parsed<Option<Concurrency>> {
    let Carriers { typed, metadata, per_host } = carriers;
    let of_metadata = metadata.and_then(|metadata| metadata.filter_metadata.get(CLUSTER_NAMESPACE));
    let options = match (typed, of_metadata) {
        (Some(_), Some(_)) => {
            let metadata_at = at.field("metadata");
            let filters_at = metadata_at.field("filter_metadata");
            let at = filters_at.key(CLUSTER_NAMESPACE);
            return Err(
                at.reject("must not be set together with ConcurrencyOptions in typed_extension_protocol_options")
            );
        }
        (Some(typed), None) => Some(typed),
        (None, Some(object)) => Some(from_metadata(context, at, object)?),
        (None, None) => None,
    };
    let PerHost { max_connections: _, max_requests, max_pending_requests } = per_host;
    match options {
        Some(mut options) => {
            options.max_requests = options.max_requests.or(max_requests);
            options.max_queue_per_endpoint = options.max_queue_per_endpoint.or(max_pending_requests);
            Ok(Some(options))
        }
        None if max_requests.is_some() => {
            // As for a breaker, nobody waits unless it says how many may.
            let waits = max_pending_requests.is_some_and(|limit| limit > 0);
            Ok(Some(Concurrency {
                max_requests,
                max_queue_per_endpoint: max_pending_requests,
                over_limit: if waits { OverLimit::Wait } else { OverLimit::Fail },
                ..Concurrency::default()
            }))
        }
        None => Ok(None),
    }
}

/// The options as an object: a message whose type is known by where it stands.
fn from_metadata(context: &Context<'_>, at: &FieldPath<'_>, object: &Struct) -> Parsed<Concurrency> {
    use prost::Message as _;
    let wrapped = TypedStruct { type_url: format!("type.googleapis.com/{TYPE_NAME}"), value: Some(object.clone()) };
    let any =
        Any { type_url: "type.googleapis.com/xds.type.v3.TypedStruct".to_owned(), value: wrapped.encode_to_vec() };
    let metadata_at = at.field("metadata");
    let filters_at = metadata_at.field("filter_metadata");
    let at = filters_at.key(CLUSTER_NAMESPACE);
    let any = wire::extension(context, &at, any)?;
    parse(&at, wire::decode(&at, &any)?)
}

/// Reads the message.
pub(super) fn parse(at: &FieldPath<'_>, wire: pb::ConcurrencyOptions) -> Parsed<Concurrency> {
    decide!(wire, at, pb::ConcurrencyOptions as "outrigger.upstream.v1.ConcurrencyOptions" {
        implemented: max_requests, min_requests, full_load, over_limit, max_queue, max_queue_per_endpoint, queue_timeout,
            wait_for_ready, slow_start_limit, priority_class, fair_queue, adaptive_lifo;
        no_effect: ;
        unsupported: ;
    });
    let max_requests = wire::number_within(&at.field("max_requests"), max_requests, 0..=u32::MAX)?;
    let moving = match (min_requests, full_load) {
        (None, None) => None,
        (Some(least), Some(full)) => {
            let most = max_requests.ok_or_else(|| at.field("max_requests").reject("is required with min_requests"))?;
            let (least, full) = (least.value, full.value);
            if least == 0 || least > most {
                return Err(at
                    .field("min_requests")
                    .reject(format!("{least} is not within 1 to max_requests, {most}")));
            }
            if full == 0 {
                return Err(at.field("full_load").reject("0 must be above zero"));
            }
            Some((least, full))
        }
        (Some(_), None) => return Err(at.field("full_load").reject("is required with min_requests")),
        (None, Some(_)) => return Err(at.field("min_requests").reject("is required with full_load")),
    };
    let over_at = at.field("over_limit");
    let over_limit = match pb::concurrency_options::OverLimit::try_from(over_limit) {
        Ok(pb::concurrency_options::OverLimit::Wait) => OverLimit::Wait,
        Ok(pb::concurrency_options::OverLimit::Fail) => OverLimit::Fail,
        Ok(pb::concurrency_options::OverLimit::OtherEndpoint) => OverLimit::OtherEndpoint,
        Err(_) => return Err(wire::unknown_enum(&over_at, over_limit)),
    };
    Ok(Concurrency {
        max_requests,
        moving,
        over_limit,
        max_queue: max_queue.map(|limit| limit.value),
        max_queue_per_endpoint: max_queue_per_endpoint.map(|limit| limit.value),
        queue_timeout: wire::limit(&at.field("queue_timeout"), queue_timeout, None)?,
        wait_for_ready: wire::limit(&at.field("wait_for_ready"), wait_for_ready, None)?,
        slow_start: slow_start_limit,
        class: priority_class_of(&at.field("priority_class"), priority_class.unwrap_or_default())?,
        fair: match fair_queue {
            None => None,
            Some(wire) => Some(caller(&at.field("fair_queue"), wire)?),
        },
        newest_first_after: match adaptive_lifo {
            None => None,
            Some(pb::AdaptiveLifo { congested_after: None }) => Some(CONGESTED_AFTER),
            Some(pb::AdaptiveLifo { congested_after: Some(wire) }) => {
                Some(wire::duration(&at.field("adaptive_lifo").field("congested_after"), wire)?)
            }
        },
    })
}

fn priority_class_of(at: &FieldPath<'_>, wire: pb::PriorityClass) -> Parsed<PriorityClass> {
    decide!(wire, at, pb::PriorityClass as "outrigger.upstream.v1.PriorityClass" {
        implemented: header, offset_header, metadata_namespace, metadata_key, default_class, high_priority_class;
        no_effect: ;
        unsupported: ;
    });
    let named = |field: &'static str, name: String| match name.is_empty() {
        true => Ok(None),
        false => header_name(&at.field(field), &name).map(|name| Some(name.to_string())),
    };
    let class = |field: &'static str, class: i32| match class {
        MIN_CLASS..=MAX_CLASS => Ok(class),
        _ => Err(at.field(field).reject(format!("{class} is not within -{MAX_CLASS} to {MAX_CLASS}"))),
    };
    Ok(PriorityClass {
        header: named("header", header)?,
        offset_header: named("offset_header", offset_header)?,
        metadata: match (metadata_namespace.is_empty(), metadata_key.is_empty()) {
            (true, true) => None,
            (false, false) => Some((metadata_namespace, metadata_key)),
            (true, false) => return Err(at.field("metadata_namespace").reject("is required with metadata_key")),
            (false, true) => return Err(at.field("metadata_key").reject("is required with metadata_namespace")),
        },
        default: class("default_class", default_class)?,
        high: match high_priority_class {
            None => None,
            Some(high) => Some(class("high_priority_class", high.value)?),
        },
    })
}

fn caller(at: &FieldPath<'_>, wire: pb::FairQueue) -> Parsed<Caller> {
    use pb::fair_queue::Caller as Wire;
    let pb::FairQueue { caller } = wire;
    match caller {
        Some(Wire::Header(name)) => Ok(Caller::Header(header_name(&at.field("header"), &name)?.to_string())),
        Some(Wire::SourceAddress(true)) => Ok(Caller::SourceAddress),
        Some(Wire::PeerIdentity(true)) => Ok(Caller::PeerIdentity),
        Some(Wire::SourceAddress(false)) => Err(at.field("source_address").reject("false says nothing, expected true")),
        Some(Wire::PeerIdentity(false)) => Err(at.field("peer_identity").reject("false says nothing, expected true")),
        None => Err(at.reject("needs one of header, source_address, peer_identity")),
    }
}

/// The limit that an endpoint sets itself: `outrigger.lb: {max_requests: 100}`.
pub(super) fn endpoint_max_requests(at: &FieldPath<'_>, metadata: Option<&Metadata>) -> Parsed<Option<u32>> {
    let Some(object) = metadata.and_then(|metadata| metadata.filter_metadata.get(ENDPOINT_NAMESPACE)) else {
        return Ok(None);
    };
    let metadata_at = at.field("metadata");
    let filters_at = metadata_at.field("filter_metadata");
    let at = filters_at.key(ENDPOINT_NAMESPACE);
    let mut limit = None;
    for (key, value) in sorted(object) {
        let at = at.key(key);
        match key {
            "max_requests" => limit = Some(whole(&at, value.kind.as_ref(), 0..=i64::from(u32::MAX))? as u32),
            _ => return Err(at.reject("is not known, expected max_requests")),
        }
    }
    Ok(limit)
}

/// What a route says about waiting: `outrigger.queue: {timeout: 2s, class: -1, offset_ms: 50}`.
pub(crate) fn queue_hints(at: &FieldPath<'_>, metadata: Option<&Metadata>) -> Parsed<Option<Box<QueueHints>>> {
    let Some(object) = metadata.and_then(|metadata| metadata.filter_metadata.get(ROUTE_NAMESPACE)) else {
        return Ok(None);
    };
    let metadata_at = at.field("metadata");
    let filters_at = metadata_at.field("filter_metadata");
    let at = filters_at.key(ROUTE_NAMESPACE);
    let mut hints = QueueHints::default();
    for (key, value) in sorted(object) {
        let at = at.key(key);
        let kind = value.kind.as_ref();
        match key {
            "timeout" => hints.timeout = Some(seconds(&at, kind)?),
            "class" => {
                let max = i64::from(MAX_CLASS);
                hints.class = Some(whole(&at, kind, -max..=max)? as i32);
            }
            "offset_ms" => hints.offset_ms = Some(whole(&at, kind, -MAX_OFFSET_MS..=MAX_OFFSET_MS)?),
            _ => return Err(at.reject("is not known, expected timeout, class or offset_ms")),
        }
    }
    Ok(Some(Box::new(hints)))
}

/// In the order of their names, so that the same input always names the same mistake.
fn sorted(object: &Struct) -> Vec<(&str, &outrigger_api::pb::google::protobuf::Value)> {
    let mut fields: Vec<_> = object.fields.iter().map(|(key, value)| (key.as_str(), value)).collect();
    fields.sort_unstable_by_key(|(key, _)| *key);
    fields
}

fn whole(at: &FieldPath<'_>, kind: Option<&Kind>, range: std::ops::RangeInclusive<i64>) -> Parsed<i64> {
    let (least, most) = (*range.start(), *range.end());
    match kind {
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && range.contains(&(*number as i64)) => {
            Ok(*number as i64)
        }
        other => Err(at.reject(format!("{} is not a whole number from {least} to {most}", shown(other)))),
    }
}

fn seconds(at: &FieldPath<'_>, kind: Option<&Kind>) -> Parsed<Duration> {
    let parsed = match kind {
        Some(Kind::StringValue(text)) => text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok()),
        _ => None,
    };
    parsed
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| at.reject(format!("{} is not a duration above zero such as \"1.5s\"", shown(kind))))
}

fn shown(kind: Option<&Kind>) -> String {
    match kind {
        Some(Kind::NumberValue(number)) => number.to_string(),
        Some(Kind::StringValue(text)) => format!("{text:?}"),
        Some(Kind::BoolValue(flag)) => flag.to_string(),
        Some(Kind::ListValue(_)) => "a list".to_owned(),
        Some(Kind::StructValue(_)) => "an object".to_owned(),
        Some(Kind::NullValue(_)) | None => "null".to_owned(),
    }
}

#[cfg(test)]
mod tests;
