//! Connections in a time, limited by a service (`envoy.extensions.filters.network.ratelimit.v3`).
//!
//! Owns whom to ask and what the service is told. Never asks.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::extensions::common::ratelimit::v3 as common;
use outrigger_api::pb::envoy::extensions::filters::network::ratelimit::v3 as pb;

use super::stat_prefix_of;
use crate::context::Context;
use crate::decide::decide;
use crate::format::Format;
use crate::http::filters::rate_limit_service as service_of;
use crate::rejection::{FieldPath, Parsed};
use crate::source::GrpcCall;
use crate::wire;

/// Source: `envoy.extensions.filters.network.ratelimit.v3.RateLimit`.
#[derive(Clone, Debug)]
pub struct GlobalRateLimit {
    /// The `<prefix>` in `ratelimit.<prefix>.*` stats.
    pub stat_prefix: Arc<str>,
    /// What the service tells limits apart by.
    pub domain: Arc<str>,
    /// What a connection counts towards; at least one.
    pub descriptors: Box<[Descriptor]>,
    /// Connections that the service said nothing about are refused.
    pub failure_mode_deny: bool,
    /// The service; always with a time limit.
    pub service: GrpcCall,
}

/// Keys with values that may come from the connection; at least one. Source: `RateLimitDescriptor`.
#[derive(Clone, Debug, PartialEq)]
pub struct Descriptor(pub Box<[(Arc<str>, Format)]>);

impl GlobalRateLimit {
    /// Reads the message at `at`.
    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::RateLimit) -> Parsed<Self> {
        decide!(wire, at, pb::RateLimit as "envoy.extensions.filters.network.ratelimit.v3.RateLimit" {
            implemented: stat_prefix, domain, descriptors, timeout, failure_mode_deny, rate_limit_service;
            no_effect: ;
            unsupported: ;
        });
        if domain.is_empty() {
            return Err(at.field("domain").reject("must not be empty"));
        }
        let list = at.field("descriptors");
        if descriptors.is_empty() {
            return Err(list.reject("must not be empty"));
        }
        let timeout_at = at.field("timeout");
        let timeout = wire::limit(&timeout_at, timeout, Some(DEFAULT_TIMEOUT))?;
        if timeout.is_none() {
            // Nothing else would end the wait of a connection whose service never answers.
            return Err(timeout_at.reject("must be above 0"));
        }
        Ok(Self {
            stat_prefix: stat_prefix_of(at, stat_prefix)?,
            domain: domain.into(),
            descriptors: wire::each(&list, descriptors, descriptor)?.into(),
            failure_mode_deny,
            service: service_of(context, &at.field("rate_limit_service"), rate_limit_service, timeout)?,
        })
    }
}

fn descriptor(at: &FieldPath<'_>, wire: common::RateLimitDescriptor) -> Parsed<Descriptor> {
    decide!(wire, at, common::RateLimitDescriptor as "envoy.extensions.common.ratelimit.v3.RateLimitDescriptor" {
        implemented: entries;
        no_effect: limit = "Envoy's filter does not tell the service of it either",
            hits_addend = "Envoy's filter does not tell the service of it either",
            is_negative_hits = "Envoy's filter does not tell the service of it either";
        unsupported: ;
    });
    let list = at.field("entries");
    if entries.is_empty() {
        return Err(list.reject("must not be empty"));
    }
    let entries = wire::each(&list, entries, |at, wire| {
        let common::rate_limit_descriptor::Entry { key, value } = wire;
        if key.is_empty() {
            return Err(at.field("key").reject("must not be empty"));
        }
        Ok((Arc::from(key), Format::parse(&at.field("value"), &value)?))
    })?;
    Ok(Descriptor(entries.into()))
}

const DEFAULT_TIMEOUT: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use outrigger_api::pb::envoy::config::core::v3 as core;
    use outrigger_api::pb::envoy::config::ratelimit::v3::RateLimitServiceConfig;
    use outrigger_api::pb::google::protobuf::Duration as WireDuration;

    use super::*;
    use crate::context::NoEnvironment;

    fn read(change: impl FnOnce(&mut pb::RateLimit)) -> Result<GlobalRateLimit, String> {
        let target = core::grpc_service::EnvoyGrpc { cluster_name: "rls".into(), ..Default::default() };
        let service = core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(target)),
            ..Default::default()
        };
        let entry =
            common::rate_limit_descriptor::Entry { key: "client".into(), value: "%DOWNSTREAM_REMOTE_ADDRESS%".into() };
        let mut wire = pb::RateLimit {
            stat_prefix: "s".into(),
            domain: "d".into(),
            descriptors: vec![common::RateLimitDescriptor { entries: vec![entry], ..Default::default() }],
            rate_limit_service: Some(RateLimitServiceConfig {
                grpc_service: Some(service),
                transport_api_version: core::ApiVersion::V3 as i32,
            }),
            ..Default::default()
        };
        change(&mut wire);
        let at = FieldPath::Resource { kind: "filter", name: "" };
        GlobalRateLimit::parse(&Context::new(&NoEnvironment), &at, wire).map_err(|error| error.to_string())
    }

    #[test]
    fn a_connection_waits_for_a_limited_time() {
        let read_well = read(|_| {}).unwrap();
        assert_eq!(read_well.service.timeout, Some(DEFAULT_TIMEOUT));
        assert_eq!(read_well.descriptors[0].0.len(), 1);
        let error = read(|wire| wire.timeout = Some(WireDuration::default())).unwrap_err();
        assert!(error.ends_with("timeout: must be above 0"), "{error}");
    }

    #[test]
    fn what_says_nothing_is_refused() {
        for (change, expected) in [
            ((|wire| wire.domain.clear()) as fn(&mut pb::RateLimit), "domain: must not be empty"),
            (|wire| wire.stat_prefix.clear(), "stat_prefix: must not be empty"),
            (|wire| wire.descriptors.clear(), "descriptors: must not be empty"),
            (|wire| wire.descriptors[0].entries.clear(), "descriptors[0].entries: must not be empty"),
            (|wire| wire.descriptors[0].entries[0].key.clear(), "descriptors[0].entries[0].key: must not be empty"),
            (|wire| wire.rate_limit_service = None, "rate_limit_service: is required"),
        ] {
            let error = read(change).unwrap_err();
            assert!(error.ends_with(expected), "{error}");
        }
    }
}
