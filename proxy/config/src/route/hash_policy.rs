//! Reading what a request is hashed by (`RouteAction.HashPolicy`).
//!
//! Owns the checked model of hash policies and the checks of what will stand in cookies. Never hashes a request (see
//! `outrigger-policy`).

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pb::envoy::config::route::v3::route_action as pb;

use super::RegexRewrite;
use super::rewrite::regex_rewrite;
use crate::decide::decide;
use crate::http::header_mutations::{header_name, is_token_byte};
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// One part of what a request is hashed by. Source: `RouteAction.HashPolicy`.
#[derive(Clone, Debug)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// If there is a hash after this part, the parts behind it do not count.
    pub terminal: bool,
}

/// What is hashed; what is not there gives no hash.
#[derive(Clone, Debug)]
pub enum HashSource {
    /// All values of a header (lower case), each rewritten first.
    Header { name: Arc<str>, rewrite: Option<RegexRewrite> },
    /// A cookie.
    Cookie(HashCookie),
    /// The client's address without its port.
    SourceIp,
    /// The first value of a query parameter, as it stands in the path.
    QueryParameter(String),
    /// An object of the filter state.
    FilterState(String),
}

/// Source: `RouteAction.HashPolicy.Cookie`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HashCookie {
    /// Its name.
    pub name: Arc<str>,
    /// Clients without the cookie are given one that lasts this long; zero for one that ends with the session. `None`
    /// gives them none.
    pub ttl: Option<Duration>,
    /// Where a given cookie is valid.
    pub path: Option<String>,
    /// Further attributes of a given cookie and their values, which may be empty.
    pub attributes: Vec<(String, String)>,
}

/// Reads the hash policies at `at`, which is the list.
pub(crate) fn hash_policies(at: &FieldPath<'_>, wire: Vec<pb::HashPolicy>) -> Parsed<Arc<[HashPolicy]>> {
    let mut policies = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        let at = at.item(index);
        let pb::HashPolicy { terminal, policy_specifier } = wire;
        if let Some(source) = source(&at, policy_specifier)? {
            policies.push(HashPolicy { source, terminal });
        }
    }
    Ok(policies.into())
}

fn source(at: &FieldPath<'_>, wire: Option<pb::hash_policy::PolicySpecifier>) -> Parsed<Option<HashSource>> {
    use pb::hash_policy::{ConnectionProperties, FilterState, PolicySpecifier, QueryParameter};
    Ok(Some(match wire {
        Some(PolicySpecifier::Header(wire)) => {
            let at = at.field("header");
            let pb::hash_policy::Header { header_name: name, regex_rewrite: rewrite } = wire;
            HashSource::Header {
                name: header_name(&at.field("header_name"), &name)?,
                rewrite: match rewrite {
                    None => None,
                    Some(rewrite) => Some(regex_rewrite(&at.field("regex_rewrite"), rewrite)?),
                },
            }
        }
        Some(PolicySpecifier::Cookie(wire)) => HashSource::Cookie(cookie(&at.field("cookie"), wire)?),
        // Without the flag the message says nothing.
        Some(PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: false })) => return Ok(None),
        Some(PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })) => HashSource::SourceIp,
        Some(PolicySpecifier::QueryParameter(QueryParameter { name })) => {
            HashSource::QueryParameter(nonempty(&at.field("query_parameter").field("name"), name)?)
        }
        Some(PolicySpecifier::FilterState(FilterState { key })) => {
            HashSource::FilterState(nonempty(&at.field("filter_state").field("key"), key)?)
        }
        None => {
            return Err(at.reject("needs one of header, cookie, connection_properties, query_parameter, filter_state"));
        }
    }))
}

fn nonempty(at: &FieldPath<'_>, text: String) -> Parsed<String> {
    if text.is_empty() { Err(at.reject("must not be empty")) } else { Ok(text) }
}

fn cookie(at: &FieldPath<'_>, wire: pb::hash_policy::Cookie) -> Parsed<HashCookie> {
    decide!(wire, at, pb::hash_policy::Cookie as "envoy.config.route.v3.RouteAction.HashPolicy.Cookie" {
        implemented: name, ttl, path, attributes;
        no_effect: ;
        unsupported: ;
    });
    let name_at = at.field("name");
    let name = nonempty(&name_at, name)?;
    wire::header_value(&name_at, &name)?;
    wire::header_value(&at.field("path"), &path)?;
    let attributes_at = at.field("attributes");
    let mut checked = Vec::with_capacity(attributes.len());
    for (index, wire) in attributes.into_iter().enumerate() {
        let at = attributes_at.item(index);
        let pb::hash_policy::CookieAttribute { name, value } = wire;
        if name.is_empty() || !name.bytes().all(is_token_byte) {
            return Err(at.field("name").reject(format!("{name:?} is not a valid name of an attribute")));
        }
        wire::header_value(&at.field("value"), &value)?;
        checked.push((name, value));
    }
    Ok(HashCookie {
        name: name.into(),
        ttl: match ttl {
            None => None,
            Some(ttl) => Some(wire::duration(&at.field("ttl"), ttl)?),
        },
        path: Some(path).filter(|path| !path.is_empty()),
        attributes: checked,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pb::hash_policy::{ConnectionProperties, Cookie, CookieAttribute, PolicySpecifier, QueryParameter};

    fn read(specifiers: Vec<Option<PolicySpecifier>>) -> Result<Arc<[HashPolicy]>, String> {
        let wire = specifiers
            .into_iter()
            .map(|policy_specifier| pb::HashPolicy { terminal: true, policy_specifier })
            .collect();
        hash_policies(&FieldPath::resource("route configuration", "r").field("hash_policy"), wire)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_flag_that_is_off_adds_nothing() {
        let off = PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: false });
        let on = PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true });
        let policies = read(vec![Some(off), Some(on)]).unwrap();
        assert_eq!(policies.len(), 1);
        assert!(matches!(policies[0], HashPolicy { source: HashSource::SourceIp, terminal: true }));
    }

    #[test]
    fn what_would_break_a_header_is_refused_by_its_path() {
        let at = "route configuration \"r\": hash_policy";
        let cookie = Cookie {
            name: "c".to_owned(),
            path: "/".to_owned(),
            attributes: vec![CookieAttribute { name: "SameSite".to_owned(), value: "a\r\nb".to_owned() }],
            ..Cookie::default()
        };
        let refused = read(vec![None]).unwrap_err();
        assert!(refused.starts_with(&format!("{at}[0]: needs one of header")), "{refused}");
        let refused = read(vec![Some(PolicySpecifier::Cookie(cookie))]).unwrap_err();
        assert!(refused.starts_with(&format!("{at}[0].cookie.attributes[0].value: ")), "{refused}");
        let refused = read(vec![Some(PolicySpecifier::QueryParameter(QueryParameter::default()))]).unwrap_err();
        assert_eq!(refused, format!("{at}[0].query_parameter.name: must not be empty"));
    }
}
