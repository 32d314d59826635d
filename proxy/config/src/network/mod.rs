//! Network filters that are small: limits on connections, the cluster by SNI, objects of the filter state, answers of our own.
//!
//! Owns their checked models and how they are read. Never counts a connection.

mod dynamic_forward;
mod ext_authz;
mod own_answer;
mod ratelimit;

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::network::connection_limit::v3 as limit;
use outrigger_api::pb::envoy::extensions::filters::network::local_ratelimit::v3 as rate;
use outrigger_api::pb::envoy::extensions::filters::network::set_filter_state::v3 as state;
use outrigger_api::pb::envoy::extensions::filters::network::sni_cluster::v3 as sni;
use outrigger_api::pb::envoy::r#type::v3 as types;

use crate::context::Context;
use crate::decide::decide;
use crate::http::filters::{FilterStateEntry, filter_state_entry};
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

pub use dynamic_forward::SniDynamicForward;
pub use ext_authz::ExtAuthz;
pub use own_answer::OwnAnswer;
pub use ratelimit::{Descriptor, GlobalRateLimit};

/// A flag that a runtime key may override. Source: `envoy.config.core.v3.RuntimeFeatureFlag`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RuntimeFlag {
    /// Used unless the runtime has a value.
    pub default: bool,
    /// May be empty.
    pub runtime_key: String,
}

impl RuntimeFlag {
    /// Always on.
    pub const ON: RuntimeFlag = RuntimeFlag { default: true, runtime_key: String::new() };

    pub(crate) fn parse(at: &FieldPath<'_>, wire: core::RuntimeFeatureFlag) -> Parsed<Self> {
        let core::RuntimeFeatureFlag { default_value, runtime_key } = wire;
        match default_value {
            Some(flag) => Ok(Self { default: flag.value, runtime_key }),
            None => Err(at.field("default_value").reject("is required")),
        }
    }
}

/// Source: `envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConnectionLimit {
    /// The `<prefix>` in `connection_limit.<prefix>.*` stats.
    pub stat_prefix: Arc<str>,
    /// Connections at a time; at least 1.
    pub max_connections: u64,
    /// How long a refused connection is kept before it is closed.
    pub delay: Option<Duration>,
    /// Whether the limit holds.
    pub enabled: RuntimeFlag,
}

/// Source: `envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LocalRateLimit {
    /// The `<prefix>` in `local_rate_limit.<prefix>.*` stats.
    pub stat_prefix: Arc<str>,
    /// One token for each connection.
    pub bucket: TokenBucket,
    /// Whether the limit holds.
    pub enabled: RuntimeFlag,
    /// Filters with the same key and bucket share its tokens; `None` shares them with nobody.
    pub share_key: Option<Arc<str>>,
}

/// Source: `envoy.type.v3.TokenBucket`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct TokenBucket {
    /// What it holds at first and at most; 0 never gives a token.
    pub max_tokens: u32,
    /// Added each time; at least 1.
    pub tokens_per_fill: u32,
    /// Time between additions; above zero.
    pub fill_interval: Duration,
}

impl TokenBucket {
    /// Reads a bucket whose interval is at least `shortest`.
    pub(crate) fn parse(at: &FieldPath<'_>, wire: types::TokenBucket, shortest: Duration) -> Parsed<Self> {
        decide!(wire, at, types::TokenBucket as "envoy.type.v3.TokenBucket" {
            implemented: max_tokens, tokens_per_fill, fill_interval;
            no_effect: ;
            unsupported: ;
        });
        let interval_at = at.field("fill_interval");
        let Some(interval) = fill_interval else { return Err(interval_at.reject("is required")) };
        let fill_interval = wire::positive_duration(&interval_at, interval)?;
        if fill_interval < shortest {
            return Err(interval_at.reject(format!("{fill_interval:?} is below {shortest:?}")));
        }
        let tokens = at.field("tokens_per_fill");
        let tokens_per_fill = wire::number_within(&tokens, tokens_per_fill, 1..=u32::MAX)?.unwrap_or(1);
        Ok(Self { max_tokens, tokens_per_fill, fill_interval })
    }
}

impl ConnectionLimit {
    /// Reads the message at `at`.
    pub(crate) fn parse(at: &FieldPath<'_>, wire: limit::ConnectionLimit) -> Parsed<Self> {
        decide!(wire, at, limit::ConnectionLimit
            as "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit" {
            implemented: stat_prefix, max_connections, delay, runtime_enabled;
            no_effect: ;
            unsupported: ;
        });
        let limit = at.field("max_connections");
        let max_connections = match max_connections {
            Some(number) if number.value > 0 => number.value,
            Some(_) => return Err(limit.reject("0 must be above zero")),
            None => return Err(limit.reject("is required")),
        };
        Ok(Self {
            stat_prefix: stat_prefix_of(at, stat_prefix)?,
            max_connections,
            delay: wire::limit(&at.field("delay"), delay, None)?,
            enabled: enabled(at, runtime_enabled)?,
        })
    }
}

impl LocalRateLimit {
    /// Reads the message at `at`.
    pub(crate) fn parse(at: &FieldPath<'_>, wire: rate::LocalRateLimit) -> Parsed<Self> {
        decide!(wire, at, rate::LocalRateLimit
            as "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit" {
            implemented: stat_prefix, token_bucket, runtime_enabled, share_key;
            no_effect: ;
            unsupported: ;
        });
        let bucket = at.field("token_bucket");
        let Some(wire) = token_bucket else { return Err(bucket.reject("is required")) };
        Ok(Self {
            stat_prefix: stat_prefix_of(at, stat_prefix)?,
            bucket: TokenBucket::parse(&bucket, wire, SHORTEST_FILL)?,
            enabled: enabled(at, runtime_enabled)?,
            share_key: Some(share_key).filter(|key| !key.is_empty()).map(Arc::from),
        })
    }
}

/// Source: `envoy.extensions.filters.network.set_filter_state.v3.Config`.
#[derive(Clone, Debug, PartialEq)]
pub struct SetFilterState {
    /// Set in this order. What is to be set when the connection is new, after its handshake and with its first bytes is
    /// all known at one time here.
    pub objects: Vec<FilterStateEntry>,
}

impl SetFilterState {
    /// Reads the message at `at`.
    pub(crate) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: state::Config) -> Parsed<Self> {
        decide!(wire, at, state::Config as "envoy.extensions.filters.network.set_filter_state.v3.Config" {
            implemented: on_new_connection, on_downstream_tls_handshake, on_downstream_data;
            no_effect: ;
            unsupported: ;
        });
        let mut objects = Vec::new();
        for (field, wire) in [
            ("on_new_connection", on_new_connection),
            ("on_downstream_tls_handshake", on_downstream_tls_handshake),
            ("on_downstream_data", on_downstream_data),
        ] {
            objects.extend(wire::each(&at.field(field), wire, |at, wire| filter_state_entry(context, at, wire))?);
        }
        Ok(Self { objects })
    }
}

/// The message of the filter that takes the cluster from SNI, which says nothing.
pub(crate) fn sni_cluster(wire: sni::SniCluster) {
    let sni::SniCluster {} = wire;
}

fn stat_prefix_of(at: &FieldPath<'_>, wire: String) -> Parsed<Arc<str>> {
    if wire.is_empty() { Err(at.field("stat_prefix").reject("must not be empty")) } else { Ok(wire.into()) }
}

fn enabled(at: &FieldPath<'_>, wire: Option<core::RuntimeFeatureFlag>) -> Parsed<RuntimeFlag> {
    wire.map_or(Ok(RuntimeFlag::ON), |wire| RuntimeFlag::parse(&at.field("runtime_enabled"), wire))
}

/// Source: the documentation of `LocalRateLimit.token_bucket`.
const SHORTEST_FILL: Duration = Duration::from_millis(50);
