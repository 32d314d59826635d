//! Reading a route configuration and its virtual hosts.
//!
//! Owns what holds across virtual hosts, such as unique domains. Never reads what a single route does (see `entry`).

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use outrigger_api::pb::envoy::config::route::v3 as pb;
use outrigger_api::pb::google::protobuf::{Any, UInt32Value, UInt64Value};
use outrigger_api::pb::xds::r#type::matcher::v3 as xds;

use super::entry::{RouteScope, route};
use super::hedge::hedge_on_per_try_timeout;
use super::mirror::mirror_policies;
use super::retry::retry_policy;
use super::{RequireTls, Route, RouteConfiguration, VirtualCluster, VirtualHost, header_matcher};
use crate::context::Context;
use crate::decide::decide;
use crate::http::RouteFilters;
use crate::http::filters::deprecated_cors;
use crate::http::header_mutations::{header_name, request_header_mutations, response_header_mutations};
use crate::matcher::{Kinds, Matcher, Place};
use crate::rate_limit::{RateLimitPlace, rate_limits};
use crate::rejection::{FieldPath, Parsed};
use crate::source::{self, ConfigSource, SourceKind, XdsProtocol};
use crate::wire;

impl RouteConfiguration {
    /// Reads a discovered route configuration.
    pub fn parse(context: &Context<'_>, wire: pb::RouteConfiguration) -> Parsed<Self> {
        let name = wire.name.clone();
        Self::parse_at(context, &FieldPath::resource("route configuration", &name), wire)
    }

    /// Reads the route configuration that stands at `at` inside of something else, so that nothing can be added to it.
    pub(crate) fn parse_inline(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: pb::RouteConfiguration,
    ) -> Parsed<Self> {
        if wire.vhds.is_some() {
            return Err(at.field("vhds").reject("needs a route configuration that is discovered itself"));
        }
        Self::parse_at(context, at, wire)
    }

    /// The same configuration with these virtual hosts as well, or the domain that two of them want and their names.
    pub fn with_virtual_hosts(&self, more: impl Iterator<Item = Arc<VirtualHost>>) -> Result<Self, DomainConflict> {
        let mut all = self.clone();
        all.virtual_hosts.extend(more);
        match domain_conflict(&all.virtual_hosts) {
            None => Ok(all),
            Some((host, place, owner)) => Err(DomainConflict {
                domain: all.virtual_hosts[host].domains[place].clone(),
                hosts: (Arc::clone(&all.virtual_hosts[host].name), Arc::clone(&all.virtual_hosts[owner].name)),
            }),
        }
    }

    /// Reads the route configuration that stands at `at`. Clusters are validated only where the message says so; a
    /// connection manager with inline routes, where that is the default, fills `validate_clusters` in before.
    fn parse_at(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::RouteConfiguration) -> Parsed<Self> {
        decide!(wire, at, pb::RouteConfiguration as "envoy.config.route.v3.RouteConfiguration" {
            implemented: name, virtual_hosts, internal_only_headers, response_headers_to_add,
                response_headers_to_remove, request_headers_to_add, request_headers_to_remove,
                most_specific_header_mutations_wins, validate_clusters, max_direct_response_body_size_bytes,
                cluster_specifier_plugins, ignore_port_in_host_matching, typed_per_filter_config,
                request_mirror_policies, vhost_header, ignore_path_parameters_in_path_matching, vhds;
            no_effect: metadata = "no filter reads it";
            unsupported: route_specifiers;
        });
        let scope = RouteScope {
            context,
            max_body_bytes: max_body_bytes(max_direct_response_body_size_bytes),
            optional_plugins: optional_plugins(&at.field("cluster_specifier_plugins"), cluster_specifier_plugins)?,
        };
        let hosts_at = at.field("virtual_hosts");
        let virtual_hosts =
            wire::each(&hosts_at, virtual_hosts, |at, wire| virtual_host(&scope, at, wire).map(Arc::new))?;
        check_unique_domains(&hosts_at, &virtual_hosts)?;
        let internal_at = at.field("internal_only_headers");
        Ok(RouteConfiguration {
            name: name.into(),
            more_virtual_hosts: match vhds {
                None => None,
                Some(wire) => Some(Box::new(virtual_host_source(context, &at.field("vhds"), wire)?)),
            },
            virtual_hosts,
            request_headers: request_header_mutations(at, request_headers_to_add, request_headers_to_remove)?,
            response_headers: response_header_mutations(at, response_headers_to_add, response_headers_to_remove)?,
            internal_only_headers: internal_only_headers
                .iter()
                .enumerate()
                .map(|(index, name)| header_name(&internal_at.item(index), name))
                .collect::<Parsed<_>>()?,
            most_specific_header_mutations_wins,
            validate_clusters: validate_clusters.is_some_and(|flag| flag.value),
            ignore_port_in_host_matching,
            host_header: match vhost_header.as_str() {
                "" => None,
                name => Some(header_name(&at.field("vhost_header"), name)?),
            },
            ignore_path_parameters: ignore_path_parameters_in_path_matching,
            mirrors: mirror_policies(&at.field("request_mirror_policies"), request_mirror_policies)?,
            filters: RouteFilters::parse(context, &at.field("typed_per_filter_config"), typed_per_filter_config)?,
        })
    }
}

impl VirtualHost {
    /// Reads a discovered virtual host.
    pub fn parse(context: &Context<'_>, wire: pb::VirtualHost) -> Parsed<Self> {
        let name = wire.name.clone();
        // What its route configuration says of bodies is not known here: the configuration may come later.
        let scope = RouteScope { context, max_body_bytes: usize::MAX, optional_plugins: BTreeSet::new() };
        virtual_host(&scope, &FieldPath::resource("virtual host", &name), wire)
    }
}

/// Two virtual hosts want the same domain.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{domain:?} of virtual host {:?} is already a domain of virtual host {:?}", hosts.0, hosts.1)]
pub struct DomainConflict {
    /// Lower case.
    pub domain: String,
    /// The later one first.
    pub hosts: (Arc<str>, Arc<str>),
}

/// Source: `Vhds`. Virtual hosts are discovered by the delta protocol alone.
fn virtual_host_source(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::Vhds) -> Parsed<ConfigSource> {
    let pb::Vhds { config_source } = wire;
    let at = at.field("config_source");
    let Some(wire) = config_source else { return Err(at.reject("is required")) };
    let source = source::config_source(context, &at, wire)?;
    match &source.kind {
        SourceKind::Ads => Ok(source),
        SourceKind::Api(api) if api.protocol == XdsProtocol::Delta => Ok(source),
        SourceKind::Api(_) | SourceKind::File(_) => {
            Err(at.reject("virtual hosts need a source of type DELTA_GRPC, or ads of that type"))
        }
    }
}

fn max_body_bytes(wire: Option<UInt32Value>) -> usize {
    wire.map_or(DEFAULT_MAX_BODY_BYTES, |limit| usize::try_from(limit.value).unwrap_or(usize::MAX))
}

/// No cluster specifier plugin exists here, so only optional ones are accepted; routes that use them are left out.
fn optional_plugins(at: &FieldPath<'_>, wire: Vec<pb::ClusterSpecifierPlugin>) -> Parsed<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for (index, wire) in wire.into_iter().enumerate() {
        let at = at.item(index);
        names.insert(optional_plugin(&at, wire)?);
    }
    Ok(names)
}

/// The name of a plugin that may be missing.
pub(super) fn optional_plugin(at: &FieldPath<'_>, wire: pb::ClusterSpecifierPlugin) -> Parsed<String> {
    decide!(wire, at, pb::ClusterSpecifierPlugin as "envoy.config.route.v3.ClusterSpecifierPlugin" {
        implemented: extension, is_optional;
        no_effect: ;
        unsupported: ;
    });
    let Some(extension) = extension else {
        return Err(at.field("extension").reject("is required"));
    };
    if !is_optional {
        let type_url = extension.typed_config.map(|config| config.type_url).unwrap_or_default();
        return Err(at.field("extension").reject(format!("{type_url:?} is not supported")));
    }
    Ok(extension.name)
}

fn virtual_host(scope: &RouteScope<'_, '_>, at: &FieldPath<'_>, wire: pb::VirtualHost) -> Parsed<VirtualHost> {
    decide!(wire, at, pb::VirtualHost as "envoy.config.route.v3.VirtualHost" {
        implemented: name, domains, routes, require_tls, request_headers_to_add, request_headers_to_remove,
            response_headers_to_add, response_headers_to_remove, typed_per_filter_config,
            include_request_attempt_count, include_attempt_count_in_response, retry_policy, request_mirror_policies,
            rate_limits, matcher, per_request_buffer_limit_bytes, request_body_buffer_limit,
            include_is_timeout_retry_header, virtual_clusters, cors, hedge_policy;
        no_effect: metadata = "no filter reads it",
            retry_policy_typed_config = "Envoy does not implement it: retry_policy counts";
        unsupported: route_specifiers;
    });
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty"));
    }
    let routes_at = at.field("routes");
    let mut parsed = Vec::with_capacity(routes.len());
    for (index, wire) in routes.into_iter().enumerate() {
        parsed.extend(route(scope, &routes_at.item(index), wire)?.map(Arc::new));
    }
    let matcher = match matcher {
        None => None,
        Some(_) if !parsed.is_empty() => {
            return Err(at.field("matcher").reject("must not be set together with routes"));
        }
        Some(wire) => Some(Box::new(route_matcher(scope, &at.field("matcher"), wire, &mut parsed)?)),
    };
    Ok(VirtualHost {
        name: name.into(),
        matcher,
        body_limit: body_limit(per_request_buffer_limit_bytes, request_body_buffer_limit),
        domains: self::domains(&at.field("domains"), domains)?,
        routes: parsed,
        require_tls: self::require_tls(&at.field("require_tls"), require_tls)?,
        request_headers: request_header_mutations(at, request_headers_to_add, request_headers_to_remove)?,
        response_headers: response_header_mutations(at, response_headers_to_add, response_headers_to_remove)?,
        include_request_attempt_count,
        include_attempt_count_in_response,
        include_is_timeout_retry: include_is_timeout_retry_header,
        virtual_clusters: wire::each(&at.field("virtual_clusters"), virtual_clusters, virtual_cluster)?.into(),
        retry_policy: match retry_policy {
            None => None,
            Some(policy) => Some(Arc::new(self::retry_policy(scope.context, &at.field("retry_policy"), policy)?)),
        },
        hedges: match hedge_policy {
            None => None,
            Some(wire) => Some(hedge_on_per_try_timeout(&at.field("hedge_policy"), wire)?),
        },
        cors: deprecated_cors(&at.field("cors"), cors)?,
        mirrors: mirror_policies(&at.field("request_mirror_policies"), request_mirror_policies)?,
        rate_limits: self::rate_limits(&at.field("rate_limits"), rate_limits, RateLimitPlace::Route)?,
        filters: RouteFilters::parse(scope.context, &at.field("typed_per_filter_config"), typed_per_filter_config)?,
    })
}

fn virtual_cluster(at: &FieldPath<'_>, wire: pb::VirtualCluster) -> Parsed<VirtualCluster> {
    decide!(wire, at, pb::VirtualCluster as "envoy.config.route.v3.VirtualCluster" {
        implemented: headers, name;
        no_effect: ;
        unsupported: ;
    });
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty"));
    }
    let headers_at = at.field("headers");
    if headers.is_empty() {
        return Err(headers_at.reject("must not be empty"));
    }
    Ok(VirtualCluster { name: name.into(), headers: wire::each(&headers_at, headers, header_matcher)? })
}

/// Reads a tree that leads to routes, which are appended to `routes`.
fn route_matcher(
    scope: &RouteScope<'_, '_>,
    at: &FieldPath<'_>,
    wire: xds::Matcher,
    routes: &mut Vec<Arc<Route>>,
) -> Parsed<Matcher<Box<[usize]>>> {
    let routes = RefCell::new(routes);
    let add = |at: &FieldPath<'_>, wire| {
        let mut routes = routes.borrow_mut();
        let before = routes.len();
        routes.extend(route(scope, at, wire)?.map(Arc::new));
        Ok(before..routes.len())
    };
    let action = |at: &FieldPath<'_>, any: &Any| match wire::type_name(any) {
        "envoy.config.route.v3.Route" => Ok(add(at, wire::decode(at, any)?)?.collect()),
        "envoy.config.route.v3.RouteList" => {
            let list_at = at.field("routes");
            let pb::RouteList { routes } = wire::decode(at, any)?;
            let mut positions = Vec::with_capacity(routes.len());
            for (index, wire) in routes.into_iter().enumerate() {
                positions.extend(add(&list_at.item(index), wire)?);
            }
            Ok(positions.into())
        }
        _ => Err(at.reject(format!("{:?} is neither a route nor a list of routes", any.type_url))),
    };
    Matcher::parse(scope.context, at, &Kinds { place: Place::Request, action: &action }, wire)
}

/// How many bytes of request bodies are kept; the newer field wins.
pub(super) fn body_limit(older: Option<UInt32Value>, newer: Option<UInt64Value>) -> Option<u64> {
    newer.map(|limit| limit.value).or(older.map(|limit| u64::from(limit.value)))
}

fn require_tls(at: &FieldPath<'_>, value: i32) -> Parsed<RequireTls> {
    use pb::virtual_host::TlsRequirementType as Wire;
    Ok(match Wire::try_from(value).map_err(|_| wire::unknown_enum(at, value))? {
        Wire::None => RequireTls::None,
        Wire::ExternalOnly => RequireTls::ExternalOnly,
        Wire::All => RequireTls::All,
    })
}

fn domains(at: &FieldPath<'_>, wire: Vec<String>) -> Parsed<Vec<String>> {
    if wire.is_empty() {
        return Err(at.reject("needs at least one domain"));
    }
    let mut domains = Vec::with_capacity(wire.len());
    for (index, domain) in wire.into_iter().enumerate() {
        wire::header_value(&at.item(index), &domain)?;
        domains.push(domain.to_ascii_lowercase());
    }
    Ok(domains)
}

fn check_unique_domains(at: &FieldPath<'_>, hosts: &[Arc<VirtualHost>]) -> Parsed<()> {
    let Some((index, place, owner)) = domain_conflict(hosts) else { return Ok(()) };
    let host = &hosts[index];
    let host_at = at.item(index);
    Err(host_at.field("domains").item(place).reject(format!(
        "{:?} of virtual host {:?} is already a domain of virtual host {:?}",
        host.domains[place], host.name, hosts[owner].name
    )))
}

/// The first domain that somebody has already: the host, the place among its domains, and the host that has it.
fn domain_conflict(hosts: &[Arc<VirtualHost>]) -> Option<(usize, usize, usize)> {
    let mut owners: HashMap<&str, usize> = HashMap::new();
    for (index, host) in hosts.iter().enumerate() {
        for (place, domain) in host.domains.iter().enumerate() {
            if let Some(owner) = owners.insert(domain, index) {
                return Some((index, place, owner));
            }
        }
    }
    None
}

const DEFAULT_MAX_BODY_BYTES: usize = 4096;
