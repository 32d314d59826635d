//! What a rate limit service is asked about a request.
//!
//! Owns the view on a request that descriptors are made from, and their form on the wire. Never sends anything.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use outrigger_api::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::{Entry, RateLimitOverride};
use outrigger_api::pb::envoy::r#type::v3::RateLimitUnit;
use outrigger_api::pb::google::protobuf::UInt64Value;
use outrigger_config::format::Format;
use outrigger_config::http::filters::GlobalRateLimitRoute;
use outrigger_config::matching::lookup;
use outrigger_config::metadata::MetadataMap;
use outrigger_config::rate_limit::{LimitOverride, RateLimit};
use outrigger_config::rbac::MetadataSource;
use outrigger_config::route::{Route, VirtualHost};
use outrigger_policy::rate_limit::{DescriptorView, descriptor};
use outrigger_policy::route::fraction_holds;

use crate::accesslog::format;
use crate::http::filter::Exchange;
use crate::http::manager::client_address::client_address;
use crate::http::message::RequestHead;
use outrigger_config::units::{Fraction, RuntimeFraction};

/// Where the limits of a request stand.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub route: &'a Arc<Route>,
    pub virtual_host: &'a Arc<VirtualHost>,
    pub of_route: Option<&'a Arc<GlobalRateLimitRoute>>,
    /// The cluster that the request is routed to.
    pub cluster: Option<&'a str>,
}

/// A request as descriptors see it.
pub(super) struct View<'a, 'b, 'r, 'g> {
    pub exchange: &'a Exchange<'b, 'r, 'g>,
    pub place: Place<'a>,
}

impl DescriptorView for View<'_, '_, '_, '_> {
    type Request = RequestHead;

    fn request(&self) -> &RequestHead {
        self.exchange.head()
    }

    fn source_cluster(&self) -> &str {
        &self.exchange.worker().process.node_cluster
    }

    fn destination_cluster(&self) -> Option<Cow<'_, str>> {
        self.place.cluster.map(Cow::Borrowed)
    }

    fn remote(&self) -> Option<IpAddr> {
        client_address(self.exchange.connection(), self.exchange.info())
    }

    fn metadata(&self, source: MetadataSource, namespace: &str, look: &mut dyn FnMut(Option<&MetadataMap>)) {
        match source {
            MetadataSource::Dynamic => look(self.exchange.info().dynamic_metadata.borrow().get(namespace)),
            MetadataSource::Route => {
                look(self.place.route.metadata.as_ref().and_then(|metadata| metadata.get(namespace)));
            }
        }
    }

    fn text(&self, format: &Format) -> String {
        let mut text = Vec::new();
        format::write_header(format, &self.exchange.stream().facts(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// The descriptors of a request, as far as its limits are not disabled.
pub(super) fn descriptors<'a>(
    limits: impl Iterator<Item = &'a RateLimit>,
    view: &View<'_, '_, '_, '_>,
) -> Vec<RateLimitDescriptor> {
    limits.filter(|limit| is_enabled(limit, view)).filter_map(|limit| wire_of(limit, view)).collect()
}

fn is_enabled(limit: &RateLimit, view: &View<'_, '_, '_, '_>) -> bool {
    if limit.disable_key.is_empty() {
        return true;
    }
    let runtime_key = format!("ratelimit.{}.http_filter_enabled", limit.disable_key);
    let always = RuntimeFraction { default: Fraction::ALWAYS, runtime_key };
    fraction_holds(&always, view.exchange.worker().random.next(), view.exchange.runtime())
}

fn wire_of(limit: &RateLimit, view: &View<'_, '_, '_, '_>) -> Option<RateLimitDescriptor> {
    let made = descriptor(limit, view)?;
    let entries = made.entries.into_iter().map(|(key, value)| Entry { key: key.to_owned(), value: value.into_owned() });
    Some(RateLimitDescriptor {
        entries: entries.collect(),
        limit: limit.limit.as_deref().and_then(|limit| limit_of(limit, view)),
        hits_addend: limit.hits.as_ref().map(|_| UInt64Value { value: made.hits.unsigned_abs() }),
        is_negative_hits: made.hits < 0,
    })
}

fn limit_of(limit: &LimitOverride, view: &View<'_, '_, '_, '_>) -> Option<RateLimitOverride> {
    match limit {
        LimitOverride::Fixed { requests, unit } => {
            Some(RateLimitOverride { requests_per_unit: *requests, unit: *unit })
        }
        LimitOverride::Metadata { namespace, path } => {
            let metadata = view.exchange.info().dynamic_metadata.borrow();
            limit_in(lookup(metadata.get(&**namespace), path)?)
        }
    }
}

fn limit_in(value: &serde_json::Value) -> Option<RateLimitOverride> {
    let requests = value.get("requests_per_unit")?.as_f64()?;
    let unit = RateLimitUnit::from_str_name(value.get("unit")?.as_str()?)?;
    // What is out of range is cut off.
    Some(RateLimitOverride { requests_per_unit: requests as u32, unit: unit as i32 })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_limit_is_a_number_and_a_unit() {
        let good = json!({"requests_per_unit": 42, "unit": "HOUR"});
        assert_eq!(
            limit_in(&good),
            Some(RateLimitOverride { requests_per_unit: 42, unit: RateLimitUnit::Hour as i32 })
        );
        for wrong in [
            json!({"requests_per_unit": "42", "unit": "HOUR"}),
            json!({"requests_per_unit": 42, "unit": "hours"}),
            json!({"unit": "HOUR"}),
            json!(42),
        ] {
            assert_eq!(limit_in(&wrong), None, "{wrong}");
        }
    }
}
