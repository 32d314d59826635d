//! Match trees (`xds.type.matcher.v3.Matcher`): which action belongs to a connection or a request.
//!
//! Owns the checked model; what the actions are is up to the user of the tree. Never evaluates one (see
//! `outrigger-policy`).

mod input;
mod parse;

use std::sync::Arc;

use ipnet::IpNet;

use crate::matching::{StringMatcher, ValueMatcher};

pub(crate) use parse::Kinds;

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
}
