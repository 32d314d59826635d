//! Role based access control (`envoy.config.rbac.v3`): who may do what.
//!
//! Owns the checked model of rules, and of the HTTP and network filters that enforce them. Never decides about a
//! connection or a request (see `outrigger-policy`).

mod filter;
mod permission;
mod principal;
mod rules;
#[cfg(test)]
mod tests;

pub(crate) use rules::url_path;

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::cel::Expression;
use crate::matcher::Matcher;
use crate::matching::{FilterStateMatcher, MetadataMatcher, StringMatcher, UriTemplate};
use crate::route::HeaderMatcher;
use crate::tls::SanMatcher;

/// What decides.
#[derive(Clone, Debug, PartialEq)]
pub enum Engine {
    /// Source: `envoy.config.rbac.v3.RBAC`.
    Rules(Rules),
    /// A match tree; what it leads nowhere is denied.
    Matcher {
        /// The tree.
        tree: Matcher<NamedAction>,
        /// Some of its actions are [`Action::Log`].
        logs: bool,
    },
}

/// Source: `envoy.config.rbac.v3.RBAC`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// What it means that a policy matches.
    pub action: Action,
    /// In the order of their names, which is the order in which they are asked.
    pub policies: Vec<Policy>,
}

/// Source: `envoy.config.rbac.v3.RBAC.Action`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Action {
    /// What matches is allowed, all else is denied.
    Allow,
    /// What matches is denied, all else is allowed.
    Deny,
    /// All is allowed, and access logs are told what matched.
    Log,
}

/// Source: `envoy.config.rbac.v3.Action`, the action of a match tree.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedAction {
    /// The policy's name, for logs.
    pub name: Arc<str>,
    /// What happens.
    pub action: Action,
}

/// Source: `envoy.config.rbac.v3.Policy`: any of the permissions, and any of the principals.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its key in the map of policies.
    pub name: Arc<str>,
    /// What is done; never empty.
    pub permissions: Vec<Permission>,
    /// Who does it; never empty.
    pub principals: Vec<Principal>,
    /// What must hold besides.
    pub condition: Option<Arc<Expression>>,
}

/// Source: `envoy.config.rbac.v3.Permission`.
#[derive(Clone, Debug, PartialEq)]
pub enum Permission {
    /// Everything.
    Any,
    /// All of them.
    And(Vec<Permission>),
    /// Any of them.
    Or(Vec<Permission>),
    /// Not that one.
    Not(Box<Permission>),
    /// A request header.
    Header(HeaderMatcher),
    /// The path without its query.
    UrlPath(StringMatcher),
    /// The path without its query, by template.
    UriTemplate(UriTemplate),
    /// The address that the connection was made to.
    DestinationIp(IpNet),
    /// The port that the connection was made to.
    DestinationPort(u16),
    /// The port that the connection was made to, in `start..end`.
    DestinationPorts { start: u32, end: u32 },
    /// Metadata.
    Metadata(SourcedMetadata),
    /// SNI; empty if there was none.
    RequestedServerName(StringMatcher),
}

/// Source: `envoy.config.rbac.v3.Principal`.
#[derive(Clone, Debug, PartialEq)]
pub enum Principal {
    /// Everybody.
    Any,
    /// All of them.
    And(Vec<Principal>),
    /// Any of them.
    Or(Vec<Principal>),
    /// Not that one.
    Not(Box<Principal>),
    /// Came by TLS, and if there is a matcher, it takes a URI name, a DNS name or the subject of the certificate. One
    /// without certificate has an empty subject.
    Authenticated(Option<StringMatcher>),
    /// Has a verified certificate, and if there is a matcher, with such a name.
    MtlsAuthenticated(Option<SanMatcher>),
    /// The client, after a PROXY protocol header.
    SourceIp(IpNet),
    /// The peer of the socket.
    DirectRemoteIp(IpNet),
    /// The client, after a PROXY protocol header and `x-forwarded-for`.
    RemoteIp(IpNet),
    /// A request header.
    Header(HeaderMatcher),
    /// The path without its query.
    UrlPath(StringMatcher),
    /// Metadata.
    Metadata(SourcedMetadata),
    /// An object of the filter state.
    FilterState(FilterStateMatcher),
}

/// Source: `envoy.config.rbac.v3.SourcedMetadata`.
#[derive(Clone, Debug, PartialEq)]
pub struct SourcedMetadata {
    /// Where the metadata comes from.
    pub source: MetadataSource,
    /// What it must be.
    pub matcher: MetadataMatcher,
}

/// Source: `envoy.config.rbac.v3.MetadataSource`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MetadataSource {
    /// Set by filters.
    Dynamic,
    /// Stands in the route.
    Route,
}

/// Source: `envoy.extensions.filters.http.rbac.v3.RBAC`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpRbac {
    /// Enforced; `None` allows everything.
    pub enforced: Option<Arc<Engine>>,
    /// Only counted and told.
    pub shadow: Option<Arc<Engine>>,
    /// Stands before the names of the enforced rules' stats; empty for none.
    pub stat_prefix: Arc<str>,
    /// Stands before the names of the shadow rules' stats and metadata; empty for none.
    pub shadow_stat_prefix: Arc<str>,
    /// Each policy has counters of its own.
    pub track_per_rule_stats: bool,
}

/// Source: `envoy.extensions.filters.network.rbac.v3.RBAC`.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkRbac {
    /// Enforced; `None` allows everything.
    pub enforced: Option<Arc<Engine>>,
    /// Only counted and told.
    pub shadow: Option<Arc<Engine>>,
    /// The `<prefix>` in `<prefix>.rbac.*` stats.
    pub stat_prefix: Arc<str>,
    /// Stands before the names of the shadow rules' stats and metadata; empty for none.
    pub shadow_stat_prefix: Arc<str>,
    /// How long a denied connection is kept before it is closed.
    pub delay_deny: Option<Duration>,
}
