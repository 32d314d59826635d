//! What a service outside may change of a request head (`envoy.config.common.mutation_rules.v3.HeaderMutationRules`).
//!
//! Owns the rules and what they say of a change. Never changes a head.

use outrigger_api::pb::envoy::config::common::mutation_rules::v3 as pb;
use outrigger_api::pb::google::protobuf::BoolValue;
use regex::Regex;

use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Rules for changes.
#[derive(Clone, Debug, Default)]
pub struct HeaderRules {
    /// `host`, `:authority`, `:scheme` and `:method` may be changed.
    allow_routing: bool,
    /// `x-envoy-*` may be changed.
    allow_envoy: bool,
    /// Names that begin with a colon may not be changed.
    disallow_system: bool,
    /// Nothing may be changed.
    disallow_all: bool,
    /// What matches may be changed, whatever stands above.
    allow: Option<Regex>,
    /// What matches may not be changed, whatever stands above.
    disallow: Option<Regex>,
    /// A change that is not allowed ends the request.
    disallow_is_error: bool,
}

/// What is done to a header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HeaderChange {
    /// Set or added to.
    Set,
    /// Removed.
    Remove,
}

/// What the rules say of a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ruling {
    /// It is made.
    Allowed,
    /// It is left out.
    Ignored,
    /// The request ends.
    Error,
}

impl HeaderRules {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::HeaderMutationRules) -> Parsed<Self> {
        let pb::HeaderMutationRules {
            allow_all_routing,
            allow_envoy,
            disallow_system,
            disallow_all,
            allow_expression,
            disallow_expression,
            disallow_is_error,
        } = wire;
        let on = |flag: Option<BoolValue>| flag.is_some_and(|flag| flag.value);
        let allow = allow_expression.map(|wire| wire::regex(&at.field("allow_expression"), wire));
        let disallow = disallow_expression.map(|wire| wire::regex(&at.field("disallow_expression"), wire));
        Ok(Self {
            allow_routing: on(allow_all_routing),
            allow_envoy: on(allow_envoy),
            disallow_system: on(disallow_system),
            disallow_all: on(disallow_all),
            allow: allow.transpose()?,
            disallow: disallow.transpose()?,
            disallow_is_error: on(disallow_is_error),
        })
    }

    /// Whether the header `name`, in lower case, may be changed.
    pub fn ruling(&self, name: &str, change: HeaderChange) -> Ruling {
        match self.allows(name, change) {
            true => Ruling::Allowed,
            false if self.disallow_is_error => Ruling::Error,
            false => Ruling::Ignored,
        }
    }

    fn allows(&self, name: &str, change: HeaderChange) -> bool {
        let system = name.starts_with(':');
        if change == HeaderChange::Remove && (system || name == "host") {
            return false;
        }
        if self.disallow.as_ref().is_some_and(|regex| regex.is_match(name)) {
            return false;
        }
        if self.allow.as_ref().is_some_and(|regex| regex.is_match(name)) {
            return true;
        }
        let refused = self.disallow_all
            || self.disallow_system && system
            || !self.allow_envoy && name.starts_with("x-envoy")
            || !self.allow_routing && matches!(name, "host" | ":authority" | ":scheme" | ":method");
        !refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_hold_in_their_order() {
        let regex = |text: &str| Regex::new(&format!("^(?:{text})$")).ok();
        let plain = HeaderRules::default();
        let none = HeaderRules { disallow_all: true, allow: regex("x-a.*"), disallow: regex("x-ab"), ..plain.clone() };
        let all = HeaderRules { allow_routing: true, allow_envoy: true, ..plain.clone() };
        let strict = HeaderRules { disallow_system: true, disallow_is_error: true, ..plain.clone() };
        for (rules, name, set, remove) in [
            (&plain, "x-user", Ruling::Allowed, Ruling::Allowed),
            (&plain, ":path", Ruling::Allowed, Ruling::Ignored),
            (&plain, "host", Ruling::Ignored, Ruling::Ignored),
            (&plain, ":method", Ruling::Ignored, Ruling::Ignored),
            (&plain, "x-envoy-retry-on", Ruling::Ignored, Ruling::Ignored),
            (&none, "x-user", Ruling::Ignored, Ruling::Ignored),
            (&none, "x-ac", Ruling::Allowed, Ruling::Allowed),
            (&none, "x-ab", Ruling::Ignored, Ruling::Ignored),
            (&all, "host", Ruling::Allowed, Ruling::Ignored),
            (&all, "x-envoy-retry-on", Ruling::Allowed, Ruling::Allowed),
            (&strict, ":path", Ruling::Error, Ruling::Error),
        ] {
            assert_eq!(rules.ruling(name, HeaderChange::Set), set, "{name}");
            assert_eq!(rules.ruling(name, HeaderChange::Remove), remove, "{name}");
        }
    }
}
