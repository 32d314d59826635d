//! Whether a connection or a request is allowed (`envoy.config.rbac.v3`).
//!
//! Owns what rules and match trees mean, and which policy decided. Never refuses anything itself, and never counts.

mod facts;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use outrigger_config::rbac::{Action, Engine, Rules};

pub(crate) use facts::is_local;
pub use facts::{Facts, InputsOf, LookAt, NoRequest, Peer};

use crate::matcher;

/// What an engine says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decision<'e> {
    /// Whether it may go on.
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<&'e Arc<str>>,
    /// What access logs are told (`access_log_hint`), if the engine has anything to tell.
    pub log_hint: Option<bool>,
}

/// Why something was not allowed: the policy that came nearest, and which part of it did not match.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Nearest<'e> {
    /// The policy's name.
    pub policy: &'e Arc<str>,
    /// The part that did not match.
    pub failed: Part,
}

/// One side of a policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// None of the permissions covers what is done.
    Permissions,
    /// None of the principals is the one who does it.
    Principals,
}

impl Part {
    /// As the field is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permissions => "permissions",
            Self::Principals => "principals",
        }
    }
}

/// Decides.
pub fn decide<'e>(engine: &'e Engine, facts: &impl Facts) -> Decision<'e> {
    match engine {
        Engine::Rules(rules) => decide_by_rules(rules, facts),
        Engine::Matcher { tree, logs } => {
            // What is not known is not allowed.
            let found = matcher::find(tree, &InputsOf(facts)).unwrap_or(None);
            Decision {
                allowed: found.is_some_and(|found| found.action != Action::Deny),
                policy: found.map(|found| &found.name),
                log_hint: logs.then(|| found.is_some_and(|found| found.action == Action::Log)),
            }
        }
    }
}

fn decide_by_rules<'e>(rules: &'e Rules, facts: &impl Facts) -> Decision<'e> {
    let matched = rules.policies.iter().find(|policy| {
        policy.permissions.iter().any(|permission| rules::permits(permission, facts))
            && policy.principals.iter().any(|principal| rules::identifies(principal, facts))
            && policy.condition.as_deref().is_none_or(|condition| facts.holds(condition))
    });
    Decision {
        allowed: match rules.action {
            Action::Allow => matched.is_some(),
            Action::Deny => matched.is_none(),
            Action::Log => true,
        },
        policy: matched.map(|policy| &policy.name),
        log_hint: (rules.action == Action::Log).then_some(matched.is_some()),
    }
}

/// The policy that would have allowed it if one of its parts had matched, for rules of [`Action::Allow`] that did not
/// match. What is done is rather as it is than who does it, so a policy for the right thing is nearer than one for the
/// right somebody.
pub fn nearest<'e>(engine: &'e Engine, facts: &impl Facts) -> Option<Nearest<'e>> {
    let Engine::Rules(Rules { action: Action::Allow, policies }) = engine else { return None };
    let done = policies
        .iter()
        .find(|policy| policy.permissions.iter().any(|permission| rules::permits(permission, facts)))
        .map(|policy| Nearest { policy: &policy.name, failed: Part::Principals });
    done.or_else(|| {
        policies
            .iter()
            .find(|policy| policy.principals.iter().any(|principal| rules::identifies(principal, facts)))
            .map(|policy| Nearest { policy: &policy.name, failed: Part::Permissions })
    })
}
