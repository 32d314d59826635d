//! Reading endpoints (`envoy.config.endpoint.v3.ClusterLoadAssignment`).
//!
//! Owns what an assignment must hold: priorities without gaps, weights that add up, no endpoint twice. Never balances.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::endpoint::v3 as pb;

use super::concurrency::endpoint_max_requests;
use super::health_check::endpoint_check;
use super::http_proxy::named_proxy;
use super::transport::transport_metadata;
use super::{Assignment, Endpoint, HealthStatus, LbMetadata, Locality, LocalityEndpoints, lb_metadata};
use crate::address::{Address, EndpointAddress};
use crate::address_parse::{address, endpoint_address};
use crate::context::Context;
use crate::decide::decide;
use crate::metadata::by_namespace;
use crate::rejection::{FieldPath, Parsed};
use crate::units::Fraction;
use crate::wire;

impl Assignment {
    /// Reads discovered endpoints, which must be complete: priorities from 0 without gaps, each locality once in its
    /// priority, each address once.
    pub fn parse(_context: &Context<'_>, wire: pb::ClusterLoadAssignment) -> Parsed<Self> {
        let name = wire.cluster_name.clone();
        let at = FieldPath::resource("endpoints", &name);
        let assignment = read(&at, wire, AddressKind::Resolved)?;
        let localities_at = at.field("endpoints");
        check_localities(&localities_at, &assignment.localities)?;
        check_addresses(&localities_at, &assignment.localities)?;
        Ok(assignment)
    }

    /// No endpoints.
    pub fn empty(name: &str) -> Self {
        Assignment {
            name: name.into(),
            localities: Vec::new(),
            overprovisioning_factor: DEFAULT_OVERPROVISIONING,
            weighted_priority_health: false,
            drop_overload: None,
            stale_after: None,
        }
    }
}

/// Reads endpoints written in a cluster, all of them with IP addresses or pipes. People write these by hand, and may
/// repeat a locality or leave out a priority: the former is joined, the latter closed.
pub(super) fn resolved_assignment(at: &FieldPath<'_>, wire: pb::ClusterLoadAssignment) -> Parsed<Assignment> {
    Ok(tidy(read(at, wire, AddressKind::Resolved)?))
}

/// The same for a cluster that asks DNS, with names or IP addresses.
pub(super) fn named_assignment(at: &FieldPath<'_>, wire: pb::ClusterLoadAssignment) -> Parsed<Assignment> {
    Ok(tidy(read(at, wire, AddressKind::Named)?))
}

/// Which addresses a type of cluster takes.
#[derive(Clone, Copy, Eq, PartialEq)]
enum AddressKind {
    /// Those that need no DNS.
    Resolved,
    /// Those with a port.
    Named,
}

fn read(at: &FieldPath<'_>, wire: pb::ClusterLoadAssignment, kind: AddressKind) -> Parsed<Assignment> {
    decide!(wire, at, pb::ClusterLoadAssignment as "envoy.config.endpoint.v3.ClusterLoadAssignment" {
        implemented: cluster_name, endpoints, policy;
        no_effect: ;
        unsupported: named_endpoints;
    });
    if cluster_name.is_empty() {
        return Err(at.field("cluster_name").reject("must not be empty"));
    }
    let localities_at = at.field("endpoints");
    let mut localities = wire::each(&localities_at, endpoints, |at, wire| locality_endpoints(at, wire, kind))?;
    share_metadata(&mut localities);
    check_locality_weights(&localities_at, &localities)?;
    let AssignmentPolicy { overprovisioning_factor, weighted_priority_health, drop_overload, stale_after } =
        assignment_policy(&at.field("policy"), policy)?;
    Ok(Assignment {
        name: cluster_name.into(),
        localities,
        overprovisioning_factor,
        weighted_priority_health,
        drop_overload,
        stale_after,
    })
}

/// Keeps what many endpoints say of themselves once.
fn share_metadata(localities: &mut [LocalityEndpoints]) {
    let mut known: HashSet<Arc<LbMetadata>> = HashSet::new();
    let endpoints = localities.iter_mut().flat_map(|locality| &mut locality.endpoints);
    for metadata in endpoints.flat_map(|endpoint| endpoint.metadata.iter_mut().chain(&mut endpoint.transport)) {
        match known.get(metadata) {
            Some(first) => *metadata = Arc::clone(first),
            None => {
                known.insert(Arc::clone(metadata));
            }
        }
    }
}

/// What holds for all endpoints of an assignment.
struct AssignmentPolicy {
    overprovisioning_factor: u32,
    weighted_priority_health: bool,
    drop_overload: Option<Fraction>,
    stale_after: Option<Duration>,
}

fn assignment_policy(
    at: &FieldPath<'_>,
    wire: Option<pb::cluster_load_assignment::Policy>,
) -> Parsed<AssignmentPolicy> {
    let mut wire = wire.unwrap_or_default();
    wire::drop_zero(&mut wire.endpoint_stale_after);
    decide!(wire, at, pb::cluster_load_assignment::Policy
        as "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy" {
        implemented: overprovisioning_factor, drop_overloads, weighted_priority_health, endpoint_stale_after;
        no_effect: ;
        unsupported: ;
    });
    let factor = wire::number_within(&at.field("overprovisioning_factor"), overprovisioning_factor, 1..=u32::MAX)?;
    Ok(AssignmentPolicy {
        overprovisioning_factor: factor.unwrap_or(DEFAULT_OVERPROVISIONING),
        weighted_priority_health,
        drop_overload: drop_overload(&at.field("drop_overloads"), drop_overloads)?,
        stale_after: match endpoint_stale_after {
            None => None,
            Some(wire) => Some(wire::positive_duration(&at.field("endpoint_stale_after"), wire)?),
        },
    })
}

/// As Envoy does, one category is taken.
fn drop_overload(
    at: &FieldPath<'_>,
    wire: Vec<pb::cluster_load_assignment::policy::DropOverload>,
) -> Parsed<Option<Fraction>> {
    if wire.len() > 1 {
        return Err(at.reject(format!("has {} categories, expected one", wire.len())));
    }
    let Some(wire) = wire.into_iter().next() else { return Ok(None) };
    let at = at.item(0);
    decide!(wire, at, pb::cluster_load_assignment::policy::DropOverload
        as "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy.DropOverload" {
        implemented: category, drop_percentage;
        no_effect: ;
        unsupported: ;
    });
    if category.is_empty() {
        return Err(at.field("category").reject("must not be empty"));
    }
    let percentage_at = at.field("drop_percentage");
    let Some(percentage) = drop_percentage else { return Ok(None) };
    let fraction = wire::fraction(&percentage_at, percentage)?;
    Ok(Some(fraction).filter(|fraction| fraction.parts().0 > 0))
}

fn locality_endpoints(
    at: &FieldPath<'_>,
    wire: pb::LocalityLbEndpoints,
    kind: AddressKind,
) -> Parsed<LocalityEndpoints> {
    decide!(wire, at, pb::LocalityLbEndpoints as "envoy.config.endpoint.v3.LocalityLbEndpoints" {
        implemented: locality, lb_endpoints, load_balancing_weight, priority, metadata;
        no_effect: proximity = "no policy orders localities by it";
        unsupported: lb_config;
    });
    if priority > MAX_PRIORITY {
        return Err(at.field("priority").reject(format!("{priority} is not within 0 to {MAX_PRIORITY}")));
    }
    let endpoints_at = at.field("lb_endpoints");
    let mut endpoints = wire::each(&endpoints_at, lb_endpoints, |at, wire| endpoint(at, wire, kind))?;
    if let Some(proxy) = named_proxy(&at.field("metadata"), metadata.as_ref())? {
        for endpoint in &mut endpoints {
            endpoint.http_proxy.get_or_insert_with(|| Arc::clone(&proxy));
        }
    }
    check_sum(&endpoints_at, endpoints.iter().map(|endpoint| endpoint.weight))?;
    let core::Locality { region, zone, sub_zone } = locality.unwrap_or_default();
    Ok(LocalityEndpoints {
        locality: Locality { region, zone, sub_zone },
        priority,
        weight: wire::number_within(&at.field("load_balancing_weight"), load_balancing_weight, 1..=u32::MAX)?,
        transport: transport_metadata(metadata.as_ref()),
        metadata: lb_metadata(metadata).map(Arc::new),
        endpoints,
    })
}

fn endpoint(at: &FieldPath<'_>, wire: pb::LbEndpoint, kind: AddressKind) -> Parsed<Endpoint> {
    decide!(wire, at, pb::LbEndpoint as "envoy.config.endpoint.v3.LbEndpoint" {
        implemented: health_status, load_balancing_weight, host_identifier, metadata;
        no_effect: ;
        unsupported: ;
    });
    let health = health_status_of(&at.field("health_status"), health_status)?;
    let weight = wire::number_within(&at.field("load_balancing_weight"), load_balancing_weight, 1..=u32::MAX)?;
    let wire = match host_identifier {
        Some(pb::lb_endpoint::HostIdentifier::Endpoint(wire)) => wire,
        Some(pb::lb_endpoint::HostIdentifier::EndpointName(_)) => return Err(at.field("endpoint_name").unsupported()),
        None => return Err(at.field("endpoint").reject("is required")),
    };
    let max_requests = endpoint_max_requests(at, metadata.as_ref())?;
    let metadata_at = at.field("metadata");
    let at = at.field("endpoint");
    decide!(wire, at, pb::Endpoint as "envoy.config.endpoint.v3.Endpoint" {
        implemented: address, hostname, additional_addresses, health_check_config;
        no_effect: observability_name = "endpoints have no stats of their own";
        unsupported: ;
    });
    let address_at = at.field("address");
    let Some(wire) = address else {
        return Err(address_at.reject("is required"));
    };
    let address = checked_address(&address_at, endpoint_address(&address_at, wire)?, kind)?;
    // Only the way into a listener of this process carries metadata; most endpoints need not keep theirs.
    let internal = matches!(address, EndpointAddress::Resolved(Address::Internal(_)));
    let passed = metadata.as_ref().filter(|metadata| internal && !metadata.filter_metadata.is_empty());
    Ok(Endpoint {
        http_proxy: named_proxy(&metadata_at, metadata.as_ref())?,
        passed: passed.map(|metadata| Arc::new(by_namespace(&metadata_at, metadata.clone()))),
        hostname: host_name(hostname, &address, kind),
        address,
        additional_addresses: more_addresses(&at.field("additional_addresses"), additional_addresses, kind)?,
        weight: weight.unwrap_or(1),
        max_requests,
        health,
        transport: transport_metadata(metadata.as_ref()),
        metadata: lb_metadata(metadata).map(Arc::new),
        health_check: endpoint_check(&at.field("health_check_config"), health_check_config)?.map(Arc::new),
    })
}

fn checked_address(at: &FieldPath<'_>, address: EndpointAddress, kind: AddressKind) -> Parsed<EndpointAddress> {
    match (&address, kind) {
        (EndpointAddress::Named { host, port: _ }, AddressKind::Resolved) => {
            Err(at.field("socket_address").field("address").reject(format!(
                "{host:?} is not an IP address; names are for clusters of type STRICT_DNS or LOGICAL_DNS"
            )))
        }
        (EndpointAddress::Resolved(Address::Pipe { path: _, mode: _ }), AddressKind::Named) => {
            Err(at.field("pipe").reject("is not for clusters of type STRICT_DNS or LOGICAL_DNS"))
        }
        (EndpointAddress::Resolved(Address::Internal(_)), AddressKind::Named) => {
            Err(at.field("envoy_internal_address").reject("is not for clusters of type STRICT_DNS or LOGICAL_DNS"))
        }
        _ => Ok(address),
    }
}

/// The endpoints of a DNS cluster are known by the name that was resolved.
fn host_name(given: String, address: &EndpointAddress, kind: AddressKind) -> Arc<str> {
    match (kind, address) {
        (AddressKind::Named, EndpointAddress::Named { host, port: _ }) if given.is_empty() => host.clone(),
        (AddressKind::Named, EndpointAddress::Resolved(Address::Ip(socket))) if given.is_empty() => {
            socket.ip().to_string().into()
        }
        _ => given.into(),
    }
}

fn more_addresses(
    at: &FieldPath<'_>,
    wire: Vec<pb::endpoint::AdditionalAddress>,
    kind: AddressKind,
) -> Parsed<Vec<Address>> {
    if !wire.is_empty() && kind == AddressKind::Named {
        return Err(at.reject("are not for clusters of type STRICT_DNS or LOGICAL_DNS"));
    }
    let mut addresses = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        let at = at.item(index);
        let pb::endpoint::AdditionalAddress { address: wire } = wire;
        let at = at.field("address");
        let Some(wire) = wire else {
            return Err(at.reject("is required"));
        };
        addresses.push(address(&at, wire)?);
    }
    Ok(addresses)
}

pub(super) fn health_status_of(at: &FieldPath<'_>, value: i32) -> Parsed<HealthStatus> {
    Ok(match core::HealthStatus::try_from(value).map_err(|_| wire::unknown_enum(at, value))? {
        core::HealthStatus::Unknown => HealthStatus::Unknown,
        core::HealthStatus::Healthy => HealthStatus::Healthy,
        core::HealthStatus::Unhealthy => HealthStatus::Unhealthy,
        core::HealthStatus::Draining => HealthStatus::Draining,
        core::HealthStatus::Timeout => HealthStatus::Timeout,
        core::HealthStatus::Degraded => HealthStatus::Degraded,
    })
}

fn check_sum(at: &FieldPath<'_>, weights: impl Iterator<Item = u32>) -> Parsed<()> {
    let sum: u64 = weights.map(u64::from).sum();
    if sum > u64::from(u32::MAX) {
        return Err(at.reject(format!("the weights add up to {sum}, expected up to {}", u32::MAX)));
    }
    Ok(())
}

fn check_locality_weights(at: &FieldPath<'_>, localities: &[LocalityEndpoints]) -> Parsed<()> {
    let priorities: BTreeSet<u32> = localities.iter().map(|locality| locality.priority).collect();
    for priority in priorities {
        let of_priority = localities.iter().filter(|locality| locality.priority == priority);
        check_sum(at, of_priority.filter_map(|locality| locality.weight))?;
    }
    Ok(())
}

fn check_localities(at: &FieldPath<'_>, localities: &[LocalityEndpoints]) -> Parsed<()> {
    let mut seen = HashMap::new();
    for (index, entry) in localities.iter().enumerate() {
        if let Some(other) = seen.insert((entry.priority, &entry.locality), index) {
            let Locality { region, zone, sub_zone } = &entry.locality;
            return Err(at.item(index).field("locality").reject(format!(
                "region {region:?}, zone {zone:?}, sub_zone {sub_zone:?} with priority {} is already in \
                  endpoints[{other}]",
                entry.priority
            )));
        }
    }
    let priorities: BTreeSet<u32> = localities.iter().map(|locality| locality.priority).collect();
    match (0..).zip(&priorities).find(|(expected, priority)| expected != *priority) {
        None => Ok(()),
        Some((expected, priority)) => {
            Err(at.reject(format!("priority {priority} is there, but priority {expected} is not")))
        }
    }
}

fn check_addresses(at: &FieldPath<'_>, localities: &[LocalityEndpoints]) -> Parsed<()> {
    let mut seen = HashSet::new();
    for (index, locality) in localities.iter().enumerate() {
        for (place, endpoint) in locality.endpoints.iter().enumerate() {
            if !seen.insert(&endpoint.address) {
                let at = at.item(index);
                let list = at.field("lb_endpoints");
                return Err(list.item(place).reject(format!("{} is there twice", endpoint.address)));
            }
        }
    }
    Ok(())
}

/// Joins localities that stand there twice in one priority, and numbers priorities without gaps.
fn tidy(assignment: Assignment) -> Assignment {
    let priorities: BTreeSet<u32> = assignment.localities.iter().map(|locality| locality.priority).collect();
    let closed: HashMap<u32, u32> = priorities.into_iter().zip(0..).collect();
    let mut places: HashMap<(u32, Locality), usize> = HashMap::new();
    let mut localities: Vec<LocalityEndpoints> = Vec::with_capacity(assignment.localities.len());
    for mut locality in assignment.localities {
        locality.priority = closed.get(&locality.priority).copied().unwrap_or(locality.priority);
        let key = (locality.priority, locality.locality.clone());
        match places.get(&key).and_then(|place| localities.get_mut(*place)) {
            Some(first) => {
                first.endpoints.append(&mut locality.endpoints);
                first.weight = first.weight.or(locality.weight);
            }
            None => {
                places.insert(key, localities.len());
                localities.push(locality);
            }
        }
    }
    Assignment { localities, ..assignment }
}

const DEFAULT_OVERPROVISIONING: u32 = 140;
const MAX_PRIORITY: u32 = 128;
