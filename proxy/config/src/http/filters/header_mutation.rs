//! Changing headers, trailers and query parameters (`envoy.extensions.filters.http.header_mutation.v3`).
//!
//! Owns what is changed. Never changes anything.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::common::mutation_rules::v3 as rules;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::filters::http::header_mutation::v3 as pb;
use outrigger_api::pb::google::protobuf::{Value, value::Kind};

use crate::decide::decide;
use crate::format::Format;
use crate::http::header_mutations::header_addition;
use crate::http::{AppendAction, HeaderAddition};
use crate::matching::StringMatcher;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Source: `envoy.extensions.filters.http.header_mutation.v3.HeaderMutation`.
#[derive(Clone, Debug)]
pub struct HeaderMutation {
    /// Done to every message, before what routes say.
    pub mutations: Mutations,
    /// What routes say is done from the least specific level to the most specific one, instead of the opposite.
    pub most_specific_wins: bool,
}

/// Changes of one level. Source: `Mutations`.
#[derive(Clone, Debug, Default)]
pub struct Mutations {
    /// Request headers, in order.
    pub request: Vec<Mutation>,
    /// Query parameters, in order.
    pub query: Vec<QueryMutation>,
    /// Response headers, in order.
    pub response: Vec<Mutation>,
    /// Request trailers, if there are any.
    pub request_trailers: Vec<Mutation>,
    /// Response trailers, if there are any.
    pub response_trailers: Vec<Mutation>,
}

/// One change of headers.
#[derive(Clone, Debug)]
pub enum Mutation {
    /// Removes a header; lower case.
    Remove(Arc<str>),
    /// Removes all headers with such names.
    RemoveMatching(StringMatcher),
    /// Adds a header, or sets its value.
    Add(HeaderAddition),
}

/// One change of query parameters. Source: `envoy.config.core.v3.KeyValueMutation`.
#[derive(Clone, Debug)]
pub enum QueryMutation {
    /// Removes a parameter.
    Remove(String),
    /// Adds a parameter, or sets its value.
    Add { key: String, value: Format, action: AppendAction },
}

impl HeaderMutation {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::HeaderMutation) -> Parsed<Self> {
        decide!(wire, at, pb::HeaderMutation as "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation" {
            implemented: mutations, most_specific_header_mutations_wins;
            no_effect: ;
            unsupported: ;
        });
        Ok(Self {
            mutations: Mutations::parse(&at.field("mutations"), mutations.unwrap_or_default())?,
            most_specific_wins: most_specific_header_mutations_wins,
        })
    }
}

impl Mutations {
    pub(super) fn parse_route(at: &FieldPath<'_>, wire: pb::HeaderMutationPerRoute) -> Parsed<Self> {
        let pb::HeaderMutationPerRoute { mutations } = wire;
        Self::parse(&at.field("mutations"), mutations.unwrap_or_default())
    }

    fn parse(at: &FieldPath<'_>, wire: pb::Mutations) -> Parsed<Self> {
        decide!(wire, at, pb::Mutations as "envoy.extensions.filters.http.header_mutation.v3.Mutations" {
            implemented: request_mutations, query_parameter_mutations, response_mutations,
                response_trailers_mutations, request_trailers_mutations;
            no_effect: ;
            unsupported: ;
        });
        Ok(Self {
            request: header_mutations(&at.field("request_mutations"), request_mutations)?,
            query: wire::each(&at.field("query_parameter_mutations"), query_parameter_mutations, query_mutation)?,
            response: header_mutations(&at.field("response_mutations"), response_mutations)?,
            request_trailers: header_mutations(&at.field("request_trailers_mutations"), request_trailers_mutations)?,
            response_trailers: header_mutations(&at.field("response_trailers_mutations"), response_trailers_mutations)?,
        })
    }
}

/// Reads a list of changes.
pub(crate) fn header_mutations(at: &FieldPath<'_>, wire: Vec<rules::HeaderMutation>) -> Parsed<Vec<Mutation>> {
    wire::each(at, wire, header_mutation)
}

fn header_mutation(at: &FieldPath<'_>, wire: rules::HeaderMutation) -> Parsed<Mutation> {
    use rules::header_mutation::{Action, RemoveOnMatch};
    decide!(wire, at, rules::HeaderMutation as "envoy.config.common.mutation_rules.v3.HeaderMutation" {
        implemented: action;
        no_effect: ;
        unsupported: ;
    });
    match action {
        Some(Action::Remove(name)) => removal(&at.field("remove"), name),
        Some(Action::Append(wire)) => header_addition(&at.field("append"), wire).map(Mutation::Add),
        Some(Action::RemoveOnMatch(RemoveOnMatch { key_matcher })) => {
            let at = at.field("remove_on_match");
            let at = at.field("key_matcher");
            let Some(wire) = key_matcher else { return Err(at.reject("is required")) };
            Ok(Mutation::RemoveMatching(wire::string_matcher(&at, wire)?))
        }
        None => Err(at.reject("needs one of remove, append, remove_on_match")),
    }
}

fn removal(at: &FieldPath<'_>, name: String) -> Parsed<Mutation> {
    let lower = name.to_ascii_lowercase();
    if lower == "host" || lower.starts_with(':') && PSEUDO.contains(&lower.as_str()) {
        return Err(at.reject(format!("{name:?}: no message can do without it")));
    }
    Ok(Mutation::Remove(lower.into()))
}

fn query_mutation(at: &FieldPath<'_>, wire: core::KeyValueMutation) -> Parsed<QueryMutation> {
    let core::KeyValueMutation { append, remove } = wire;
    match append {
        Some(_) if !remove.is_empty() => Err(at.field("remove").reject("must not be set together with append")),
        Some(wire) => query_addition(&at.field("append"), wire),
        None if remove.is_empty() => Err(at.reject("needs one of append, remove")),
        None => Ok(QueryMutation::Remove(remove)),
    }
}

fn query_addition(at: &FieldPath<'_>, wire: core::KeyValueAppend) -> Parsed<QueryMutation> {
    decide!(wire, at, core::KeyValueAppend as "envoy.config.core.v3.KeyValueAppend" {
        implemented: record, action;
        no_effect: ;
        unsupported: entry;
    });
    let record_at = at.field("record");
    let Some(core::KeyValuePair { key, value }) = record else { return Err(record_at.reject("is required")) };
    if key.is_empty() {
        return Err(record_at.field("key").reject("must not be empty"));
    }
    let value_at = record_at.field("value");
    let Some(Value { kind: Some(Kind::StringValue(text)) }) = value else {
        return Err(value_at.reject("must be a string"));
    };
    use core::key_value_append::KeyValueAppendAction as Action;
    let action = match Action::try_from(action) {
        Ok(Action::AppendIfExistsOrAdd) => AppendAction::AppendIfExistsOrAdd,
        Ok(Action::AddIfAbsent) => AppendAction::AddIfAbsent,
        Ok(Action::OverwriteIfExistsOrAdd) => AppendAction::OverwriteIfExistsOrAdd,
        Ok(Action::OverwriteIfExists) => AppendAction::OverwriteIfExists,
        Err(_) => return Err(wire::unknown_enum(&at.field("action"), action)),
    };
    Ok(QueryMutation::Add { key, value: Format::parse(&value_at, &text)?, action })
}

/// Names that stand for parts of a message and not for headers.
const PSEUDO: [&str; 5] = [":method", ":path", ":authority", ":scheme", ":status"];

#[cfg(test)]
mod tests {
    use super::*;

    fn one(action: Option<rules::header_mutation::Action>) -> Result<Mutation, String> {
        let root = FieldPath::resource("listener", "l");
        header_mutation(&root, rules::HeaderMutation { action }).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn headers_that_a_message_needs_stay() {
        use rules::header_mutation::Action;
        let remove = |name: &str| one(Some(Action::Remove(name.to_owned())));
        assert!(matches!(remove("X-A"), Ok(Mutation::Remove(name)) if &*name == "x-a"));
        for name in ["host", ":path", "Host"] {
            let expected = format!("listener \"l\": remove: {name:?}: no message can do without it");
            assert_eq!(remove(name).unwrap_err(), expected);
        }
        assert_eq!(one(None).unwrap_err(), "listener \"l\": needs one of remove, append, remove_on_match");
    }

    #[test]
    fn query_parameters_have_text_values() {
        let root = FieldPath::resource("listener", "l");
        let read = |kind, entry: Option<core::KeyValue>, remove: &str| {
            let record = core::KeyValuePair { key: "k".into(), value: Some(Value { kind }) };
            let append = core::KeyValueAppend { record: Some(record), entry, action: 2 };
            query_mutation(&root, core::KeyValueMutation { append: Some(append), remove: remove.into() })
                .map_err(|rejection| rejection.to_string())
        };
        let text = || Some(Kind::StringValue("v".into()));
        assert!(matches!(
            read(text(), None, ""),
            Ok(QueryMutation::Add { action: AppendAction::OverwriteIfExistsOrAdd, .. })
        ));
        for (got, expected) in [
            (read(Some(Kind::NumberValue(1.0)), None, ""), "append.record.value: must be a string"),
            (read(text(), Some(core::KeyValue::default()), ""), "append.entry: is not supported"),
            (read(text(), None, "x"), "remove: must not be set together with append"),
        ] {
            assert_eq!(got.unwrap_err(), format!("listener \"l\": {expected}"));
        }
    }
}
