//! Reads the custom maps of match trees: by network, and by domain.
//!
//! Owns their messages, and the order in which entries are asked. Never evaluates one.

use std::cmp::Reverse;

use outrigger_api::pb::envoy::config::core::v3::CidrRange;
use outrigger_api::pb::xds::core::v3 as core;
use outrigger_api::pb::xds::r#type::matcher::v3::matcher as parts;
use outrigger_api::xds::matcher_v3 as pb;

use super::input::typed_config;
use super::{Ask, Domain, Input, NetworkRule, OnMatch};
use crate::address_parse::cidr;
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Reads what a match leads to.
type Target<'a, A> = &'a dyn Fn(&FieldPath<'_>, Option<parts::OnMatch>) -> Parsed<OnMatch<A>>;

/// Reads the extension at `at`.
pub(super) fn tree<A>(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    input: Input,
    wire: core::TypedExtensionConfig,
    target: Target<'_, A>,
) -> Parsed<Ask<A>> {
    let any = typed_config(context, at, Some(wire))?;
    let at = at.field("typed_config");
    match wire::type_name(&any) {
        "xds.type.matcher.v3.IPMatcher" => networks(&at, input, wire::decode(&at, &any)?, target),
        "xds.type.matcher.v3.ServerNameMatcher" => domains(&at, input, wire::decode(&at, &any)?, target),
        _ => Err(at.reject(format!("the matcher {:?} is not supported", any.type_url))),
    }
}

fn networks<A>(at: &FieldPath<'_>, input: Input, wire: pb::IpMatcher, target: Target<'_, A>) -> Parsed<Ask<A>> {
    let pb::IpMatcher { range_matchers } = wire;
    let list = at.field("range_matchers");
    let (mut networks, mut targets) = (Vec::new(), Vec::new());
    for (index, wire) in range_matchers.into_iter().enumerate() {
        let at = list.item(index);
        use pb::ip_matcher::IpRangeMatcher;
        decide!(wire, at, IpRangeMatcher as "xds.type.matcher.v3.IPMatcher.IPRangeMatcher" {
            implemented: ranges, on_match, exclusive;
            no_effect: ;
            unsupported: ;
        });
        let ranges_at = at.field("ranges");
        if ranges.is_empty() {
            return Err(ranges_at.reject("must not be empty"));
        }
        let range = |at: &FieldPath<'_>, core::CidrRange { address_prefix, prefix_len }| {
            cidr(at, CidrRange { address_prefix, prefix_len })
        };
        for network in wire::each(&ranges_at, ranges, range)? {
            networks.push(NetworkRule { network, exclusive, target: targets.len() });
        }
        targets.push(target(&at.field("on_match"), on_match)?);
    }
    // Of networks of the same size, the first one stays the first.
    networks.sort_by_key(|rule| Reverse(rule.network.prefix_len()));
    Ok(Ask::Network { input, networks, targets })
}

fn domains<A>(at: &FieldPath<'_>, input: Input, wire: pb::ServerNameMatcher, target: Target<'_, A>) -> Parsed<Ask<A>> {
    let pb::ServerNameMatcher { domain_matchers } = wire;
    let list = at.field("domain_matchers");
    let (mut all, mut targets) = (Vec::new(), Vec::new());
    for (index, wire) in domain_matchers.into_iter().enumerate() {
        let at = list.item(index);
        use pb::server_name_matcher::DomainMatcher;
        decide!(wire, at, DomainMatcher as "xds.type.matcher.v3.ServerNameMatcher.DomainMatcher" {
            implemented: domains, on_match;
            no_effect: ;
            unsupported: ;
        });
        let domains_at = at.field("domains");
        if domains.is_empty() {
            return Err(domains_at.reject("must not be empty"));
        }
        for domain in wire::each(&domains_at, domains, domain)? {
            all.push((domain, targets.len()));
        }
        targets.push(target(&at.field("on_match"), on_match)?);
    }
    // Of the same domain, the first one stays the first.
    all.sort_by_key(|(domain, _)| match domain {
        Domain::Name(_) => (0, Reverse(0)),
        Domain::Below(suffix) => (1, Reverse(suffix.len())),
        Domain::All => (2, Reverse(0)),
    });
    Ok(Ask::Domain { input, domains: all, targets })
}

fn domain(at: &FieldPath<'_>, text: String) -> Parsed<Domain> {
    let lower = text.to_ascii_lowercase();
    match lower.strip_prefix('*') {
        Some("") => Ok(Domain::All),
        Some(below) if below.len() > 1 && below.starts_with('.') && !below.contains('*') => {
            Ok(Domain::Below(below.into()))
        }
        None if !lower.is_empty() && !lower.contains('*') => Ok(Domain::Name(lower.into())),
        _ => Err(at.reject(format!("{text:?} is neither a name, nor \"*.\" and a name, nor \"*\""))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_names_or_what_is_below_them() {
        let at = FieldPath::resource("listener", "l");
        let read = |text: &str| domain(&at, text.to_owned()).ok();
        assert_eq!(read("A.example"), Some(Domain::Name("a.example".into())));
        assert_eq!(read("*.Example"), Some(Domain::Below(".example".into())));
        assert_eq!(read("*"), Some(Domain::All));
        for bad in ["", "*.", "*a", "a.*", "*.a.*", "**"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
