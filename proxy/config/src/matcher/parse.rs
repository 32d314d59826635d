//! Reads match trees.
//!
//! Owns the tree's messages. Never reads inputs (see `input`) or actions (see the users of a tree).

use outrigger_api::pb::envoy::r#type::matcher::v3 as envoy;
use outrigger_api::pb::google::protobuf::Any;
use outrigger_api::pb::xds::r#type::matcher::v3 as pb;
use outrigger_api::pb::xds::r#type::matcher::v3::matcher as parts;
use outrigger_api::pb::xds::r#type::matcher::v3::matcher::matcher_list as list;

use super::input::typed_config;
use super::{Ask, Input, InputMatcher, Matcher, OnMatch, Predicate, custom};
use crate::context::Context;
use crate::decide::decide;
use crate::matching::StringMatcher;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// What may stand in a tree, beside what may stand everywhere.
pub(crate) struct Kinds<'a, A> {
    /// Where the tree stands.
    pub place: Place,
    /// Reads an action.
    pub action: &'a dyn Fn(&FieldPath<'_>, &Any) -> Parsed<A>,
}

/// What a tree decides about, which says what it may ask.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// A connection that has no filter chain yet.
    Listener,
    /// A connection.
    Connection,
    /// A request, and the connection that it came on.
    Request,
    /// A response, and its request.
    Response,
    /// An endpoint.
    Endpoint,
}

impl Place {
    /// Refuses inputs that what is decided about does not have.
    fn check(self, at: &FieldPath<'_>, input: &Input) -> Parsed<()> {
        match (input.place(), self) {
            (Some(Self::Endpoint), Self::Endpoint) => Ok(()),
            (_, Self::Endpoint) => {
                Err(at.reject("is not known of endpoints, expected EndpointMetadataInput or LocalityMetadataInput"))
            }
            (Some(Self::Endpoint), _) => Err(at.reject("exists where the transport of an endpoint is chosen")),
            (Some(Self::Request), Self::Listener | Self::Connection) => {
                Err(at.reject("exists in HTTP requests only, and this is a connection"))
            }
            (Some(Self::Request), Self::Response) => Ok(()),
            (Some(Self::Response), Self::Listener | Self::Connection | Self::Request) => {
                Err(at.reject("exists in responses only, and this is asked before there is one"))
            }
            (Some(Self::Listener), Self::Connection | Self::Request | Self::Response) => {
                Err(at.reject("exists only where a listener chooses a filter chain"))
            }
            _ => Ok(()),
        }
    }
}

impl<A> Matcher<A> {
    /// Reads a tree.
    pub(crate) fn parse(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        kinds: &Kinds<'_, A>,
        wire: pb::Matcher,
    ) -> Parsed<Self> {
        Reader { context, kinds }.matcher(at, wire, MAX_DEPTH)
    }
}

struct Reader<'a, A> {
    context: &'a Context<'a>,
    kinds: &'a Kinds<'a, A>,
}

impl<A> Reader<'_, A> {
    fn matcher(&self, at: &FieldPath<'_>, wire: pb::Matcher, depth: usize) -> Parsed<Matcher<A>> {
        decide!(wire, at, pb::Matcher as "xds.type.matcher.v3.Matcher" {
            implemented: on_no_match, matcher_type;
            no_effect: ;
            unsupported: ;
        });
        let ask = match matcher_type {
            None => None,
            Some(pb::matcher::MatcherType::MatcherList(parts::MatcherList { matchers })) => {
                let at = at.field("matcher_list");
                let at = at.field("matchers");
                if matchers.is_empty() {
                    return Err(at.reject("must not be empty"));
                }
                Some(Ask::List(wire::each(&at, matchers, |at, wire| self.field(at, wire, depth))?))
            }
            Some(pb::matcher::MatcherType::MatcherTree(wire)) => {
                Some(self.tree(&at.field("matcher_tree"), wire, depth)?)
            }
        };
        let on_no_match = match on_no_match {
            None => None,
            Some(wire) => Some(Box::new(self.on_match(&at.field("on_no_match"), Some(*wire), depth)?)),
        };
        Ok(Matcher { ask, on_no_match })
    }

    fn field(&self, at: &FieldPath<'_>, wire: list::FieldMatcher, depth: usize) -> Parsed<(Predicate, OnMatch<A>)> {
        let list::FieldMatcher { predicate, on_match } = wire;
        let predicate_at = at.field("predicate");
        let Some(predicate) = predicate else { return Err(predicate_at.reject("is required")) };
        let predicate = self.predicate(&predicate_at, predicate, depth)?;
        Ok((predicate, self.on_match(&at.field("on_match"), on_match, depth)?))
    }

    fn on_match(&self, at: &FieldPath<'_>, wire: Option<parts::OnMatch>, depth: usize) -> Parsed<OnMatch<A>> {
        let Some(wire) = wire else { return Err(at.reject("is required")) };
        decide!(wire, at, parts::OnMatch as "xds.type.matcher.v3.Matcher.OnMatch" {
            implemented: on_match;
            no_effect: ;
            unsupported: keep_matching;
        });
        match on_match {
            Some(parts::on_match::OnMatch::Matcher(wire)) => {
                let at = at.field("matcher");
                let depth = deeper(&at, depth)?;
                Ok(OnMatch::Matcher(Box::new(self.matcher(&at, *wire, depth)?)))
            }
            Some(parts::on_match::OnMatch::Action(wire)) => {
                let at = at.field("action");
                let any = typed_config(self.context, &at, Some(wire))?;
                Ok(OnMatch::Action((self.kinds.action)(&at.field("typed_config"), &any)?))
            }
            None => Err(at.reject("needs one of matcher, action")),
        }
    }

    fn predicate(&self, at: &FieldPath<'_>, wire: list::Predicate, depth: usize) -> Parsed<Predicate> {
        use list::predicate::MatchType;
        let depth = deeper(at, depth)?;
        let several = |at: FieldPath<'_>, wire: list::predicate::PredicateList| {
            let at = at.field("predicate");
            if wire.predicate.len() < 2 {
                return Err(at.reject(format!("has {} elements, expected two or more", wire.predicate.len())));
            }
            wire::each(&at, wire.predicate, |at, wire| self.predicate(at, wire, depth))
        };
        let list::Predicate { match_type } = wire;
        Ok(match match_type {
            Some(MatchType::SinglePredicate(wire)) => self.single(&at.field("single_predicate"), wire)?,
            Some(MatchType::OrMatcher(wire)) => Predicate::Or(several(at.field("or_matcher"), wire)?),
            Some(MatchType::AndMatcher(wire)) => Predicate::And(several(at.field("and_matcher"), wire)?),
            Some(MatchType::NotMatcher(wire)) => {
                Predicate::Not(Box::new(self.predicate(&at.field("not_matcher"), *wire, depth)?))
            }
            None => return Err(at.reject("needs one of single_predicate, or_matcher, and_matcher, not_matcher")),
        })
    }

    fn single(&self, at: &FieldPath<'_>, wire: list::predicate::SinglePredicate) -> Parsed<Predicate> {
        use list::predicate::single_predicate::Matcher as Value;
        let list::predicate::SinglePredicate { input, matcher } = wire;
        let input = self.input(&at.field("input"), input)?;
        let value = match matcher {
            Some(Value::ValueMatch(wire)) => InputMatcher::String(string_matcher(&at.field("value_match"), wire)?),
            Some(Value::CustomMatch(wire)) => {
                InputMatcher::parse_custom(self.context, &at.field("custom_match"), &input, wire)?
            }
            None => return Err(at.reject("needs one of value_match, custom_match")),
        };
        Ok(Predicate::Single { input, value })
    }

    fn input(
        &self,
        at: &FieldPath<'_>,
        wire: Option<outrigger_api::pb::xds::core::v3::TypedExtensionConfig>,
    ) -> Parsed<Input> {
        let input = Input::parse(self.context, at, wire)?;
        self.kinds.place.check(at, &input)?;
        Ok(input)
    }

    fn tree(&self, at: &FieldPath<'_>, wire: parts::MatcherTree, depth: usize) -> Parsed<Ask<A>> {
        use parts::matcher_tree::{MatchMap, TreeType};
        let parts::MatcherTree { input, tree_type } = wire;
        let input = self.input(&at.field("input"), input)?;
        let read = |at: FieldPath<'_>, MatchMap { map }: MatchMap| {
            let at = at.field("map");
            if map.is_empty() {
                return Err(at.reject("must not be empty"));
            }
            let mut entries: Vec<_> = map.into_iter().collect();
            entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
            let mut read: Vec<(Box<str>, _)> = Vec::with_capacity(entries.len());
            for (key, wire) in entries {
                let on_match = self.on_match(&at.key(&key), Some(wire), depth)?;
                read.push((key.into(), on_match));
            }
            Ok(read)
        };
        match tree_type {
            Some(TreeType::ExactMatchMap(wire)) => {
                Ok(Ask::Exact { input, map: read(at.field("exact_match_map"), wire)? })
            }
            Some(TreeType::PrefixMatchMap(wire)) => {
                Ok(Ask::Prefix { input, map: read(at.field("prefix_match_map"), wire)? })
            }
            Some(TreeType::CustomMatch(wire)) => {
                let on_match = |at: &FieldPath<'_>, wire| self.on_match(at, wire, depth);
                custom::tree(self.context, &at.field("custom_match"), input, wire, &on_match)
            }
            None => Err(at.reject("needs one of exact_match_map, prefix_match_map, custom_match")),
        }
    }
}

/// The xDS form of a string matcher is Envoy's under another name.
fn string_matcher(at: &FieldPath<'_>, wire: pb::StringMatcher) -> Parsed<StringMatcher> {
    use envoy::string_matcher::MatchPattern as Envoy;
    use pb::string_matcher::MatchPattern as Xds;
    let pb::StringMatcher { ignore_case, match_pattern } = wire;
    let match_pattern = match_pattern.map(|pattern| match pattern {
        Xds::Exact(value) => Envoy::Exact(value),
        Xds::Prefix(value) => Envoy::Prefix(value),
        Xds::Suffix(value) => Envoy::Suffix(value),
        Xds::Contains(value) => Envoy::Contains(value),
        Xds::SafeRegex(pb::RegexMatcher { regex, engine_type: _ }) => {
            Envoy::SafeRegex(envoy::RegexMatcher { regex, engine_type: None })
        }
        Xds::Custom(wire) => Envoy::Custom(wire),
    });
    wire::string_matcher(at, envoy::StringMatcher { ignore_case, match_pattern })
}

fn deeper(at: &FieldPath<'_>, depth: usize) -> Parsed<usize> {
    depth.checked_sub(1).ok_or_else(|| at.reject(format!("is nested deeper than {MAX_DEPTH} levels")))
}

/// Evaluation recurses, so depth is bounded; protobuf itself stops at a hundred messages.
const MAX_DEPTH: usize = 32;
