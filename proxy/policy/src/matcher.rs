//! Where a match tree leads (`xds.type.matcher.v3.Matcher`).
//!
//! Owns the order in which a tree is asked. Never reads an input itself.

use std::net::IpAddr;

use outrigger_config::cel::Expression;
use outrigger_config::matcher::{Ask, Domain, Input, InputMatcher, Matcher, OnMatch, Predicate};
use serde_json::Value;

/// What an input gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Given<'a> {
    /// It cannot be known here, such as names of a certificate without TLS: there is no match and no opposite of one.
    Unknown,
    /// Nothing; matches nothing.
    Absent,
    /// Text.
    Text(&'a [u8]),
    /// An address.
    Ip(IpAddr),
    /// A port.
    Port(u16),
    /// A value of metadata.
    Value(&'a Value),
}

/// Gives the values of inputs.
pub trait Inputs {
    /// Shows `look` the value of an input, once.
    fn look(&self, input: &Input, look: &mut dyn FnMut(Given<'_>));

    /// Whether an expression is true of all there is; one without a value is not, and none is where there are no
    /// attributes.
    fn holds(&self, expression: &Expression) -> bool {
        let _ = expression;
        false
    }
}

/// A tree came to an input that cannot be known here, so that it leads nowhere, not even to `on_no_match`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an input cannot be known here")]
pub struct Unknown;

/// The action that the tree leads to, if any.
pub fn find<'t, A>(tree: &'t Matcher<A>, inputs: &impl Inputs) -> Result<Option<&'t A>, Unknown> {
    match &tree.ask {
        None => {}
        Some(Ask::List(list)) => {
            for (predicate, on_match) in list {
                if holds(predicate, inputs)?
                    && let Some(action) = follow(on_match, inputs)?
                {
                    return Ok(Some(action));
                }
            }
        }
        Some(Ask::Exact { input, map }) => {
            let mut found = None;
            with_text(inputs, input, &mut |text| {
                found = map.binary_search_by(|(key, _)| key.as_bytes().cmp(text)).ok();
            })?;
            if let Some(index) = found
                && let Some(action) = follow(&map[index].1, inputs)?
            {
                return Ok(Some(action));
            }
        }
        Some(Ask::Prefix { input, map }) => {
            let mut found = Vec::new();
            with_text(inputs, input, &mut |text| {
                found = (0..map.len()).filter(|index| text.starts_with(map[*index].0.as_bytes())).collect();
            })?;
            // Prefixes of the same text are in the order of their length.
            for index in found.into_iter().rev() {
                if let Some(action) = follow(&map[index].1, inputs)? {
                    return Ok(Some(action));
                }
            }
        }
        Some(Ask::Network { input, networks, targets }) => {
            let mut within = Vec::new();
            with_address(inputs, input, &mut |address| {
                within = networks.iter().filter(|rule| rule.network.contains(&address)).collect();
            })?;
            for (place, rule) in within.into_iter().enumerate() {
                if (place == 0 || !rule.exclusive)
                    && let Some(action) = follow(&targets[rule.target], inputs)?
                {
                    return Ok(Some(action));
                }
            }
        }
        Some(Ask::Domain { input, domains, targets }) => {
            let mut within = Vec::new();
            with_text(inputs, input, &mut |text| {
                within = domains.iter().filter(|(domain, _)| belongs(text, domain)).map(|(_, place)| *place).collect();
            })?;
            for place in within {
                if let Some(action) = follow(&targets[place], inputs)? {
                    return Ok(Some(action));
                }
            }
        }
    }
    match tree.on_no_match.as_deref() {
        Some(on_match) => follow(on_match, inputs),
        None => Ok(None),
    }
}

fn follow<'t, A>(on_match: &'t OnMatch<A>, inputs: &impl Inputs) -> Result<Option<&'t A>, Unknown> {
    match on_match {
        OnMatch::Action(action) => Ok(Some(action)),
        OnMatch::Matcher(tree) => find(tree, inputs),
    }
}

fn belongs(name: &[u8], domain: &Domain) -> bool {
    match domain {
        Domain::Name(whole) => name.eq_ignore_ascii_case(whole.as_bytes()),
        Domain::Below(suffix) => {
            name.len() > suffix.len() && name[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
        }
        Domain::All => true,
    }
}

fn holds(predicate: &Predicate, inputs: &impl Inputs) -> Result<bool, Unknown> {
    match predicate {
        Predicate::Single { value: InputMatcher::Expression(expression), .. } => Ok(inputs.holds(expression)),
        Predicate::Single { input, value } => {
            let mut result = Err(Unknown);
            inputs.look(input, &mut |given| {
                result = if given == Given::Unknown { Err(Unknown) } else { Ok(matches(value, given)) };
            });
            result
        }
        Predicate::Or(predicates) => {
            let mut result = Ok(false);
            for predicate in predicates {
                match holds(predicate, inputs) {
                    Ok(true) => return Ok(true),
                    Ok(false) => {}
                    Err(unknown) => result = Err(unknown),
                }
            }
            result
        }
        Predicate::And(predicates) => {
            for predicate in predicates {
                if !holds(predicate, inputs)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Predicate::Not(predicate) => Ok(!holds(predicate, inputs)?),
    }
}

fn matches(matcher: &InputMatcher, given: Given<'_>) -> bool {
    match matcher {
        InputMatcher::String(string) => {
            let mut matched = false;
            as_text(given, &mut |text| matched = string.matches(text));
            matched
        }
        InputMatcher::Ip(networks) => match given {
            Given::Ip(address) => networks.iter().any(|network| network.contains(&address)),
            _ => false,
        },
        InputMatcher::Value { value, invert } => match given {
            Given::Value(given) => value.matches(Some(given)) != *invert,
            _ => *invert,
        },
        // They look at more than an input.
        InputMatcher::Expression(_) => false,
    }
}

fn with_text(inputs: &impl Inputs, input: &Input, look: &mut dyn FnMut(&[u8])) -> Result<(), Unknown> {
    let mut result = Err(Unknown);
    inputs.look(input, &mut |given| {
        if given != Given::Unknown {
            as_text(given, look);
            result = Ok(());
        }
    });
    result
}

fn with_address(inputs: &impl Inputs, input: &Input, look: &mut dyn FnMut(IpAddr)) -> Result<(), Unknown> {
    let mut result = Err(Unknown);
    inputs.look(input, &mut |given| {
        if given == Given::Unknown {
            return;
        }
        result = Ok(());
        match given {
            Given::Ip(address) => look(address),
            given => as_text(given, &mut |text| {
                if let Some(address) = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()) {
                    look(address);
                }
            }),
        }
    });
    result
}

fn as_text(given: Given<'_>, look: &mut dyn FnMut(&[u8])) {
    match given {
        Given::Unknown | Given::Absent => {}
        Given::Text(text) => look(text),
        Given::Ip(address) => look(address.to_string().as_bytes()),
        Given::Port(port) => look(port.to_string().as_bytes()),
        Given::Value(value) => {
            if let Some(text) = value.as_str() {
                look(text.as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outrigger_config::matcher::NetworkRule;
    use outrigger_config::matching::{StringMatcher, ValueMatcher};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A connection from 10.0.0.5:99 with the server name `a.b.c`.
    struct Sample;

    impl Inputs for Sample {
        fn look(&self, input: &Input, look: &mut dyn FnMut(Given<'_>)) {
            match input {
                Input::SourceIp => look(Given::Ip("10.0.0.5".parse().unwrap())),
                Input::SourcePort => look(Given::Port(99)),
                Input::ServerName => look(Given::Text(b"a.b.c")),
                Input::DynamicMetadata { .. } => look(Given::Value(&json!("v"))),
                Input::UriSan => look(Given::Unknown),
                _ => look(Given::Absent),
            }
        }

        fn holds(&self, expression: &Expression) -> bool {
            *expression == Expression::parse("true").unwrap()
        }
    }

    type Tree = Matcher<&'static str>;

    fn is(input: Input, value: &str) -> Predicate {
        let value = StringMatcher::Exact { value: value.into(), ignore_case: false };
        Predicate::Single { input, value: InputMatcher::String(value) }
    }

    fn action(name: &'static str) -> OnMatch<&'static str> {
        OnMatch::Action(name)
    }

    fn list(fields: Vec<(Predicate, OnMatch<&'static str>)>, otherwise: Option<&'static str>) -> Tree {
        Matcher { ask: Some(Ask::List(fields)), on_no_match: otherwise.map(|name| Box::new(action(name))) }
    }

    fn found(tree: &Tree) -> Option<&'static str> {
        find(tree, &Sample).unwrap().copied()
    }

    #[test]
    fn the_first_match_that_leads_somewhere_wins() {
        let nowhere = list(vec![(is(Input::SourcePort, "1"), action("never"))], None);
        let tree = list(
            vec![
                (is(Input::ServerName, "z"), action("no")),
                (is(Input::ServerName, "a.b.c"), OnMatch::Matcher(Box::new(nowhere))),
                (is(Input::SourcePort, "99"), action("port")),
                (is(Input::SourceIp, "10.0.0.5"), action("address")),
            ],
            Some("otherwise"),
        );
        assert_eq!(found(&tree), Some("port"));
        let tree = list(vec![(is(Input::Subject, ""), action("absent"))], Some("otherwise"));
        assert_eq!(found(&tree), Some("otherwise"));
        assert_eq!(found(&list(vec![(is(Input::Subject, ""), action("absent"))], None)), None);
        assert_eq!(found(&Matcher { ask: None, on_no_match: None }), None);
    }

    #[test]
    fn conditions_combine() {
        let (yes, no) = (|| is(Input::SourcePort, "99"), || is(Input::Subject, "x"));
        for (predicate, expected) in [
            (Predicate::Or(vec![no(), yes()]), true),
            (Predicate::Or(vec![no(), no()]), false),
            (Predicate::And(vec![yes(), yes()]), true),
            (Predicate::And(vec![yes(), no()]), false),
            (Predicate::Not(Box::new(no())), true),
            (Predicate::Not(Box::new(yes())), false),
        ] {
            assert_eq!(holds(&predicate, &Sample), Ok(expected), "{predicate:?}");
        }
    }

    #[test]
    fn what_cannot_be_known_leads_nowhere() {
        let unknown = || is(Input::UriSan, "x");
        let (yes, no) = (|| is(Input::SourcePort, "99"), || is(Input::Subject, "x"));
        for (predicate, expected) in [
            (unknown(), Err(Unknown)),
            (Predicate::Not(Box::new(unknown())), Err(Unknown)),
            (Predicate::Or(vec![unknown(), yes()]), Ok(true)),
            (Predicate::Or(vec![unknown(), no()]), Err(Unknown)),
            (Predicate::And(vec![no(), unknown()]), Ok(false)),
            (Predicate::And(vec![yes(), unknown()]), Err(Unknown)),
        ] {
            assert_eq!(holds(&predicate, &Sample), expected, "{predicate:?}");
        }
        let first = list(vec![(unknown(), action("a")), (yes(), action("b"))], Some("otherwise"));
        assert_eq!(find(&first, &Sample), Err(Unknown));
        let map = Some(Ask::Prefix { input: Input::UriSan, map: vec![("".into(), action("a"))] });
        assert_eq!(find(&Matcher { ask: map, on_no_match: Some(Box::new(action("b"))) }, &Sample), Err(Unknown));
    }

    #[test]
    fn addresses_and_metadata_have_matchers_of_their_own() {
        let ip = |network: &str| InputMatcher::Ip(vec![network.parse().unwrap()]);
        let holds_for = |input, value| holds(&Predicate::Single { input, value }, &Sample).unwrap();
        assert!(holds_for(Input::SourceIp, ip("10.0.0.0/8")));
        assert!(!holds_for(Input::SourceIp, ip("11.0.0.0/8")));
        assert!(!holds_for(Input::DestinationIp, ip("0.0.0.0/0")));
        let input = || Input::DynamicMetadata { filter: "f".into(), path: vec!["k".into()] };
        let value = |wanted: &str, invert| {
            let string = StringMatcher::Exact { value: wanted.into(), ignore_case: false };
            InputMatcher::Value { value: ValueMatcher::String(string), invert }
        };
        assert!(holds_for(input(), value("v", false)));
        assert!(!holds_for(input(), value("v", true)));
        assert!(holds_for(input(), value("w", true)));
    }

    fn map(keys: &[&'static str]) -> Vec<(Box<str>, OnMatch<&'static str>)> {
        keys.iter().map(|key| (Box::from(*key), action(key))).collect()
    }

    #[test]
    fn maps_find_exact_values_and_longest_prefixes() {
        let exact = |keys: &[&'static str]| Matcher {
            ask: Some(Ask::Exact { input: Input::ServerName, map: map(keys) }),
            on_no_match: Some(Box::new(action("otherwise"))),
        };
        assert_eq!(found(&exact(&["a", "a.b.c", "b"])), Some("a.b.c"));
        assert_eq!(found(&exact(&["a", "b"])), Some("otherwise"));
        let prefix = |keys: &[&'static str]| Matcher {
            ask: Some(Ask::Prefix { input: Input::ServerName, map: map(keys) }),
            on_no_match: None,
        };
        assert_eq!(found(&prefix(&["", "a", "a.b", "a.c", "b"])), Some("a.b"));
        assert_eq!(found(&prefix(&["a.b.c.d", "b"])), None);
    }

    #[test]
    fn the_smallest_network_is_asked_first() {
        let rule =
            |network: &str, exclusive, target| NetworkRule { network: network.parse().unwrap(), exclusive, target };
        let nowhere = || OnMatch::Matcher(Box::new(list(vec![(is(Input::SourcePort, "1"), action("never"))], None)));
        let tree = |networks, first| Matcher {
            ask: Some(Ask::Network {
                input: Input::SourceIp,
                networks,
                targets: vec![first, action("wide"), action("all")],
            }),
            on_no_match: Some(Box::new(action("otherwise"))),
        };
        let networks = |exclusive| {
            vec![rule("10.0.0.5/32", false, 0), rule("10.0.0.0/8", exclusive, 1), rule("0.0.0.0/0", false, 2)]
        };
        assert_eq!(found(&tree(networks(false), action("narrow"))), Some("narrow"));
        assert_eq!(found(&tree(networks(false), nowhere())), Some("wide"));
        assert_eq!(found(&tree(networks(true), nowhere())), Some("all"));
        assert_eq!(found(&tree(networks(true)[1..].to_vec(), nowhere())), Some("wide"));
        assert_eq!(found(&tree(vec![rule("11.0.0.0/8", false, 0)], nowhere())), Some("otherwise"));
    }

    #[test]
    fn the_most_specific_domain_is_asked_first() {
        let below = |suffix: &str| Domain::Below(suffix.into());
        let tree = |domains| Matcher {
            ask: Some(Ask::Domain {
                input: Input::ServerName,
                domains,
                targets: vec![action("a"), action("b"), action("c")],
            }),
            on_no_match: Some(Box::new(action("otherwise"))),
        };
        let name = Domain::Name("A.b.c".into());
        assert_eq!(found(&tree(vec![(name, 0), (below(".c"), 1), (Domain::All, 2)])), Some("a"));
        assert_eq!(found(&tree(vec![(below(".b.c"), 1), (Domain::All, 2)])), Some("b"));
        assert_eq!(found(&tree(vec![(below(".a.b.c"), 1), (Domain::All, 2)])), Some("c"));
        assert_eq!(found(&tree(vec![(Domain::Name("b.c".into()), 0)])), Some("otherwise"));
    }

    #[test]
    fn expressions_are_asked_as_a_whole() {
        let value = |text| InputMatcher::Expression(Arc::new(Expression::parse(text).unwrap()));
        let asks = |text| Predicate::Single { input: Input::Attributes, value: value(text) };
        assert_eq!(holds(&asks("true"), &Sample), Ok(true));
        assert_eq!(holds(&asks("false"), &Sample), Ok(false));
    }

    proptest! {
        #[test]
        fn the_longest_prefix_wins_whatever_else_is_there(mut keys in prop::collection::btree_set("[ab.c]{0,5}", 1..9)) {
            let longest = keys.iter().filter(|key| "a.b.c".starts_with(key.as_str())).max_by_key(|key| key.len()).cloned();
            let tree: Matcher<String> = Matcher {
                ask: Some(Ask::Prefix {
                    input: Input::ServerName,
                    map: std::mem::take(&mut keys).into_iter().map(|key| (key.clone().into(), OnMatch::Action(key))).collect(),
                }),
                on_no_match: None,
            };
            prop_assert_eq!(find(&tree, &Sample), Ok(longest.as_ref()));
        }
    }
}
