//! Match trees (`xds.type.matcher.v3.Matcher`): which action belongs to a connection or a request.
//!
//! Owns the checked model; what the actions are is up to the user of the tree. Never evaluates one (see
//! `outrigger-policy`).

mod custom;
mod input;
mod parse;

use std::sync::Arc;

use ipnet::IpNet;

use crate::cel::Expression;
use crate::matching::{StringMatcher, ValueMatcher};

pub(crate) use input::check_endpoint_namespace;
pub(crate) use parse::{Kinds, Place};

/// A match tree with actions of type `A`.
#[derive(Clone, Debug, PartialEq)]
pub struct Matcher<A> {
    /// What is asked first; `None` asks nothing.
    pub ask: Option<Ask<A>>,
    /// When nothing matched.
    pub on_no_match: Option<Box<OnMatch<A>>>,
}

impl<A> Matcher<A> {
    /// Shows all actions of the tree.
    pub fn actions<'t>(&'t self, look: &mut dyn FnMut(&'t A)) {
        match &self.ask {
            None => {}
            Some(Ask::List(list)) => list.iter().for_each(|(_, on_match)| on_match.actions(look)),
            Some(Ask::Exact { map, .. } | Ask::Prefix { map, .. }) => {
                map.iter().for_each(|(_, on_match)| on_match.actions(look));
            }
            Some(Ask::Network { targets, .. } | Ask::Domain { targets, .. }) => {
                targets.iter().for_each(|on_match| on_match.actions(look));
            }
        }
        if let Some(on_match) = &self.on_no_match {
            on_match.actions(look);
        }
    }
}

impl<A> OnMatch<A> {
    fn actions<'t>(&'t self, look: &mut dyn FnMut(&'t A)) {
        match self {
            Self::Action(action) => look(action),
            Self::Matcher(tree) => tree.actions(look),
        }
    }
}

/// What a level of the tree asks.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask<A> {
    /// In order; the first that leads to an action wins.
    List(Vec<(Predicate, OnMatch<A>)>),
    /// By the exact value of an input; sorted by value.
    Exact { input: Input, map: Vec<(Box<str>, OnMatch<A>)> },
    /// By the longest prefix of the value of an input; sorted by prefix.
    Prefix { input: Input, map: Vec<(Box<str>, OnMatch<A>)> },
    /// By the smallest network that contains an address; smaller ones come first.
    Network { input: Input, networks: Vec<NetworkRule>, targets: Vec<OnMatch<A>> },
    /// By the most specific domain of a name; names come first, then the longest domains.
    Domain { input: Input, domains: Vec<(Domain, usize)>, targets: Vec<OnMatch<A>> },
}

/// A network of an `IPMatcher`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NetworkRule {
    /// The network.
    pub network: IpNet,
    /// It counts only if no smaller one contains the address.
    pub exclusive: bool,
    /// Place of what it leads to.
    pub target: usize,
}

/// A domain of a `ServerNameMatcher`; lower case.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Domain {
    /// This name.
    Name(Box<str>),
    /// All names that end with this, which begins with a dot.
    Below(Box<str>),
    /// All names.
    All,
}

/// What a match leads to.
#[derive(Clone, Debug, PartialEq)]
pub enum OnMatch<A> {
    /// Done.
    Action(A),
    /// Another level. If that leads nowhere, the match does not count.
    Matcher(Box<Matcher<A>>),
}

/// A condition.
#[derive(Clone, Debug, PartialEq)]
pub enum Predicate {
    /// Of one input. An absent input matches nothing.
    Single { input: Input, value: InputMatcher },
    /// Any of them.
    Or(Vec<Predicate>),
    /// All of them.
    And(Vec<Predicate>),
    /// Not that one.
    Not(Box<Predicate>),
}

/// What a predicate looks at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Input {
    /// `DestinationIPInput`.
    DestinationIp,
    /// `DestinationPortInput`.
    DestinationPort,
    /// `SourceIPInput`.
    SourceIp,
    /// `SourcePortInput`.
    SourcePort,
    /// `DirectSourceIPInput`.
    DirectSourceIp,
    /// `ServerNameInput`.
    ServerName,
    /// `SourceTypeInput`: `local` for clients on this machine.
    SourceType,
    /// `TransportProtocolInput`: `tls` or `raw_buffer`.
    TransportProtocol,
    /// `ApplicationProtocolInput`: all of them, as in `'h2','http/1.1'`.
    ApplicationProtocols,
    /// `HttpAttributesCelMatchInput`: for expressions only.
    Attributes,
    /// `UriSanInput`: all of them, joined by commas.
    UriSan,
    /// `DnsSanInput`: all of them, joined by commas.
    DnsSan,
    /// `SubjectInput`.
    Subject,
    /// `FilterStateInput`.
    FilterState { key: Arc<str> },
    /// `DynamicMetadataInput`.
    DynamicMetadata { filter: Arc<str>, path: Vec<Box<str>> },
    /// `HttpRequestHeaderMatchInput`: all values, joined by commas; lower-case name.
    RequestHeader { name: Arc<str> },
    /// `HttpRequestQueryParamMatchInput`: the first value, decoded.
    QueryParameter { name: Arc<str> },
    /// `EndpointMetadataInput`: what the endpoint says of itself, as text; anything but a string as JSON.
    EndpointMetadata { filter: Arc<str>, path: Vec<Box<str>> },
    /// `LocalityMetadataInput`: the same of its locality.
    LocalityMetadata { filter: Arc<str>, path: Vec<Box<str>> },
    /// `StatFullNameMatchInput`.
    StatFullName,
    /// `HttpResponseStatusCodeMatchInput`.
    ResponseStatus,
    /// `HttpResponseStatusCodeClassMatchInput`: `1xx` to `5xx`.
    ResponseStatusClass,
    /// `HttpResponseHeaderMatchInput`: all values, joined by commas; lower-case name.
    ResponseHeader { name: Arc<str> },
}

/// What the value of an input must be.
#[derive(Clone, Debug, PartialEq)]
pub enum InputMatcher {
    /// By its text.
    String(StringMatcher),
    /// An address within one of these networks.
    Ip(Vec<IpNet>),
    /// For metadata only.
    Value { value: ValueMatcher, invert: bool },
    /// Of the whole request: whether this is true.
    Expression(Arc<Expression>),
}
