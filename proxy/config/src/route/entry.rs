//! Reading one route: which requests it is for, and which kind of action it has.
//!
//! Owns the message `Route`. Never reads what is inside a match or an action.

use std::collections::BTreeSet;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::route::v3 as pb;

use super::answer::{direct_response, redirect};
use super::forward::forward;
use super::matches::route_match;
use super::parse::body_limit;
use super::{Route, RouteAction};
use crate::cluster::queue_hints;
use crate::context::Context;
use crate::decide::decide;
use crate::http::RouteFilters;
use crate::http::header_mutations::{request_header_mutations, response_header_mutations};
use crate::metadata::by_namespace;
use crate::rejection::{FieldPath, Parsed};
use crate::tracing::route_trace;

/// What a route knows of the configuration it stands in.
pub(super) struct RouteScope<'a, 'c> {
    pub context: &'a Context<'c>,
    /// Limit on the size of direct response bodies.
    pub max_body_bytes: usize,
    /// Cluster specifier plugins that may be missing.
    pub optional_plugins: BTreeSet<String>,
}

/// Reads a route; `None` if its cluster is chosen by a plugin that is missing and may be.
pub(super) fn route(scope: &RouteScope<'_, '_>, at: &FieldPath<'_>, wire: pb::Route) -> Parsed<Option<Route>> {
    decide!(wire, at, pb::Route as "envoy.config.route.v3.Route" {
        implemented: name, r#match, typed_per_filter_config, request_headers_to_add, request_headers_to_remove,
            response_headers_to_add, response_headers_to_remove, stat_prefix, action, metadata,
            decorator, tracing, per_request_buffer_limit_bytes, request_body_buffer_limit;
        no_effect: ;
        unsupported: route_specifiers;
    });
    let Some(matches) = r#match else {
        return Err(at.field("match").reject("is required"));
    };
    let matches = route_match(scope.context, &at.field("match"), matches)?;
    use pb::route::Action;
    let action = match action {
        Some(Action::Route(action)) => match forward(scope, &at.field("route"), &matches.path, action)? {
            Some(mut forward) => {
                forward.queue = queue_hints(at, metadata.as_ref())?;
                RouteAction::Forward(Box::new(forward))
            }
            None => return Ok(None),
        },
        Some(Action::Redirect(action)) => RouteAction::Redirect(Box::new(redirect(&at.field("redirect"), action)?)),
        Some(Action::DirectResponse(action)) => {
            RouteAction::Direct(Box::new(direct_response(scope, &at.field("direct_response"), action)?))
        }
        Some(Action::NonForwardingAction(pb::NonForwardingAction {})) => RouteAction::NonForwarding,
        // No filter reads it, in Envoy as here.
        Some(Action::FilterAction(pb::FilterAction { action: _ })) => RouteAction::NonForwarding,
        None => return Err(at.reject("needs one of route, redirect, direct_response, non_forwarding_action")),
    };
    Ok(Some(Route {
        name: name.into(),
        body_limit: body_limit(per_request_buffer_limit_bytes, request_body_buffer_limit),
        matches,
        action,
        request_headers: request_header_mutations(at, request_headers_to_add, request_headers_to_remove)?,
        response_headers: response_header_mutations(at, response_headers_to_add, response_headers_to_remove)?,
        filters: RouteFilters::parse(scope.context, &at.field("typed_per_filter_config"), typed_per_filter_config)?,
        metadata: metadata.map(|wire| Arc::new(by_namespace(&at.field("metadata"), wire))),
        trace: route_trace(scope.context, at, decorator, tracing)?,
        stat_prefix: Some(stat_prefix).filter(|prefix| !prefix.is_empty()).map(Into::into),
    }))
}
