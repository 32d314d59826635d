//! What permissions and principals mean.
//!
//! Owns the meaning of each kind. Never combines policies.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use outrigger_config::matching::StringMatcher;
use outrigger_config::rbac::{Permission, Principal, SourcedMetadata};
use outrigger_config::route::HeaderMatcher;

use super::facts::Facts;
use crate::route::{RequestView, header_matches, request_header_matches, split_path};

/// Whether a permission covers what is done.
pub(super) fn permits(permission: &Permission, facts: &impl Facts) -> bool {
    let port_within = |start: u32, end: u32| {
        facts.destination().is_some_and(|address| (start..end).contains(&u32::from(address.port())))
    };
    match permission {
        Permission::Any => true,
        Permission::And(all) => all.iter().all(|one| permits(one, facts)),
        Permission::Or(any) => any.iter().any(|one| permits(one, facts)),
        Permission::Not(one) => !permits(one, facts),
        Permission::Header(matcher) => has_header(matcher, facts),
        Permission::UrlPath(matcher) => has_path(facts, |path| matcher.matches(path.as_bytes())),
        Permission::UriTemplate(template) => has_path(facts, |path| template.matches(path)),
        Permission::DestinationIp(network) => within(network, facts.destination().as_ref().map(SocketAddr::ip)),
        Permission::DestinationPort(port) => facts.destination().is_some_and(|address| address.port() == *port),
        Permission::DestinationPorts { start, end } => port_within(*start, *end),
        Permission::Metadata(matcher) => has_metadata(matcher, facts),
        Permission::RequestedServerName(matcher) => matcher.matches(facts.server_name().as_bytes()),
    }
}

/// Whether a principal is the one who does it.
pub(super) fn identifies(principal: &Principal, facts: &impl Facts) -> bool {
    match principal {
        Principal::Any => true,
        Principal::And(all) => all.iter().all(|one| identifies(one, facts)),
        Principal::Or(any) => any.iter().any(|one| identifies(one, facts)),
        Principal::Not(one) => !identifies(one, facts),
        Principal::Authenticated(matcher) => is_authenticated(matcher.as_ref(), facts),
        Principal::MtlsAuthenticated(matcher) => {
            facts.peer().is_some_and(|peer| peer.verified)
                && matcher.as_ref().is_none_or(|matcher| facts.has_name(matcher))
        }
        Principal::SourceIp(network) => within(network, facts.source().as_ref().map(SocketAddr::ip)),
        Principal::DirectRemoteIp(network) => within(network, facts.direct_remote()),
        Principal::RemoteIp(network) => within(network, facts.remote()),
        Principal::Header(matcher) => has_header(matcher, facts),
        Principal::UrlPath(matcher) => has_path(facts, |path| matcher.matches(path.as_bytes())),
        Principal::Metadata(matcher) => has_metadata(matcher, facts),
        Principal::FilterState(matcher) => facts.filter_state(&matcher.key, &mut |object| matcher.matches(object)),
    }
}

/// Any name will do: those of URIs, of DNS, and at last the subject, which is empty without a certificate.
fn is_authenticated(matcher: Option<&StringMatcher>, facts: &impl Facts) -> bool {
    let (Some(peer), matcher) = (facts.peer(), matcher) else { return false };
    let Some(matcher) = matcher else { return true };
    peer.uri_names.iter().chain(peer.dns_names).any(|name| matcher.matches(name.as_bytes()))
        || matcher.matches(peer.subject.as_bytes())
}

fn within(network: &IpNet, address: Option<IpAddr>) -> bool {
    address.is_some_and(|address| network.contains(&address))
}

fn has_header(matcher: &HeaderMatcher, facts: &impl Facts) -> bool {
    match facts.request() {
        Some(request) => request_header_matches(matcher, request),
        None => header_matches(matcher, None),
    }
}

fn has_path(facts: &impl Facts, matches: impl Fn(&str) -> bool) -> bool {
    facts.request().is_some_and(|request| {
        let (path, _) = split_path(request.path());
        !request.path().is_empty() && matches(path)
    })
}

fn has_metadata(metadata: &SourcedMetadata, facts: &impl Facts) -> bool {
    let SourcedMetadata { source, matcher } = metadata;
    facts.metadata(*source, &matcher.filter, &mut |namespace| matcher.matches(namespace))
}
