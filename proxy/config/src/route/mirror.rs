//! Copies of requests (`RouteAction.RequestMirrorPolicy`).
//!
//! Owns where copies go and what they are called. Never sends them.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::route::v3 as pb;

use crate::decide::decide;
use crate::http::filters::{Mutation, header_mutations};
use crate::http::header_mutations::header_name;
use crate::rejection::{FieldPath, Parsed};
use crate::units::RuntimeFraction;
use crate::wire;

/// A cluster that gets copies of requests, whose answers nobody reads.
#[derive(Clone, Debug)]
pub struct MirrorPolicy {
    /// Where copies go.
    pub cluster: MirrorCluster,
    /// Share of requests that are copied; all unless given.
    pub share: Option<RuntimeFraction>,
    /// Their host.
    pub host: MirrorHost,
    /// Copies of traced requests say that they are traced; true unless given.
    pub trace_sampled: bool,
    /// Done to their heads.
    pub mutations: Vec<Mutation>,
}

/// Where copies go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MirrorCluster {
    /// To this one.
    Name(Arc<str>),
    /// To the one that this request header names (lower case); nowhere without it.
    Header(Arc<str>),
}

/// The host that copies are for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MirrorHost {
    /// That of the request with `-shadow` appended.
    Suffix,
    /// That of the request.
    Keep,
    /// This one.
    Literal(String),
}

/// Reads a list of mirror policies.
pub(crate) fn mirror_policies(
    at: &FieldPath<'_>,
    wire: Vec<pb::route_action::RequestMirrorPolicy>,
) -> Parsed<Vec<MirrorPolicy>> {
    wire.into_iter().enumerate().map(|(index, wire)| mirror_policy(&at.item(index), wire)).collect()
}

fn mirror_policy(at: &FieldPath<'_>, wire: pb::route_action::RequestMirrorPolicy) -> Parsed<MirrorPolicy> {
    decide!(wire, at, pb::route_action::RequestMirrorPolicy
        as "envoy.config.route.v3.RouteAction.RequestMirrorPolicy" {
        implemented: cluster, cluster_header, runtime_fraction, disable_shadow_host_suffix_append,
            host_rewrite_literal, trace_sampled, request_headers_mutations;
        no_effect: ;
        unsupported: ;
    });
    let target = match (cluster.as_str(), cluster_header.as_str()) {
        ("", "") => return Err(at.reject("needs one of cluster, cluster_header")),
        (name, "") => MirrorCluster::Name(name.into()),
        ("", header) => MirrorCluster::Header(header_name(&at.field("cluster_header"), header)?),
        _ => return Err(at.field("cluster_header").reject("must not be set together with cluster")),
    };
    wire::header_value(&at.field("host_rewrite_literal"), &host_rewrite_literal)?;
    Ok(MirrorPolicy {
        cluster: target,
        share: match runtime_fraction {
            None => None,
            Some(wire) => Some(wire::runtime_fraction(&at.field("runtime_fraction"), wire)?),
        },
        mutations: header_mutations(&at.field("request_headers_mutations"), request_headers_mutations)?,
        trace_sampled: trace_sampled.is_none_or(|flag| flag.value),
        host: match (host_rewrite_literal, disable_shadow_host_suffix_append) {
            (host, _) if !host.is_empty() => MirrorHost::Literal(host),
            (_, true) => MirrorHost::Keep,
            (_, false) => MirrorHost::Suffix,
        },
    })
}
