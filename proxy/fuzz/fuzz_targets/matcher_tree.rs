//! Trees of the unified matcher, beside a reading of them that is as plain as can be.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use outrigger_config::matcher::{Ask, Input, InputMatcher, Matcher, OnMatch, Predicate};
use outrigger_config::matching::StringMatcher;
use outrigger_policy::matcher::{Given, Inputs, Unknown, find};

/// A tree, small enough for a fuzzer to get to its ends.
#[derive(Arbitrary, Debug)]
enum Tree {
    Empty(Option<Box<Goal>>),
    List(Vec<(Condition, Goal)>, Option<Box<Goal>>),
    Exact(Which, Vec<(String, Goal)>, Option<Box<Goal>>),
    Prefix(Which, Vec<(String, Goal)>, Option<Box<Goal>>),
}

#[derive(Arbitrary, Debug)]
enum Goal {
    Action(u8),
    Tree(Box<Tree>),
}

#[derive(Arbitrary, Debug)]
enum Condition {
    Is(Which, String),
    Begins(Which, String),
    Within(u8),
    Or(Vec<Condition>),
    And(Vec<Condition>),
    Not(Box<Condition>),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Which {
    A,
    B,
    Missing,
    Unknown,
    Address,
}

#[derive(Arbitrary, Debug)]
struct Values {
    a: String,
    b: String,
    address: u8,
}

fuzz_target!(|input: (Tree, Values)| {
    let (tree, values) = input;
    let built = matcher(&tree);
    let found = find(&built, &values).map(|action| action.copied());
    assert_eq!(found, plain(&tree, &values), "{tree:?} of {values:?}");
});

impl Values {
    fn address(&self) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, self.address).into()
    }

    /// Text of an input; `Err` if it cannot be known.
    fn text(&self, which: Which) -> Result<Option<String>, Unknown> {
        match which {
            Which::A => Ok(Some(self.a.clone())),
            Which::B => Ok(Some(self.b.clone())),
            Which::Missing => Ok(None),
            Which::Unknown => Err(Unknown),
            Which::Address => Ok(Some(self.address().to_string())),
        }
    }
}

impl Inputs for Values {
    fn look(&self, input: &Input, look: &mut dyn FnMut(Given<'_>)) {
        match input {
            Input::RequestHeader { name } if &**name == "a" => look(Given::Text(self.a.as_bytes())),
            Input::RequestHeader { name } if &**name == "b" => look(Given::Text(self.b.as_bytes())),
            Input::SourceIp => look(Given::Ip(self.address())),
            Input::ServerName => look(Given::Unknown),
            _ => look(Given::Absent),
        }
    }
}

fn input(which: Which) -> Input {
    let header = |name: &str| Input::RequestHeader { name: Arc::from(name) };
    match which {
        Which::A => header("a"),
        Which::B => header("b"),
        Which::Missing => header("c"),
        Which::Unknown => Input::ServerName,
        Which::Address => Input::SourceIp,
    }
}

fn matcher(tree: &Tree) -> Matcher<u8> {
    let goal = |goal: &Option<Box<Goal>>| goal.as_deref().map(|goal| Box::new(on_match(goal)));
    match tree {
        Tree::Empty(other) => Matcher { ask: None, on_no_match: goal(other) },
        Tree::List(list, other) => {
            let list = list.iter().map(|(condition, goal)| (predicate(condition), on_match(goal))).collect();
            Matcher { ask: Some(Ask::List(list)), on_no_match: goal(other) }
        }
        Tree::Exact(which, map, other) => {
            let (input, map) = (input(*which), sorted(map).map(|(key, goal)| (key.into(), on_match(goal))).collect());
            Matcher { ask: Some(Ask::Exact { input, map }), on_no_match: goal(other) }
        }
        Tree::Prefix(which, map, other) => {
            let (input, map) = (input(*which), sorted(map).map(|(key, goal)| (key.into(), on_match(goal))).collect());
            Matcher { ask: Some(Ask::Prefix { input, map }), on_no_match: goal(other) }
        }
    }
}

/// A map has each key once; the first counts.
fn sorted(map: &[(String, Goal)]) -> impl Iterator<Item = (&str, &Goal)> {
    let mut entries: Vec<(&str, &Goal)> = map.iter().map(|(key, goal)| (key.as_str(), goal)).collect();
    entries.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
    entries.dedup_by(|later, first| later.0 == first.0);
    entries.into_iter()
}

fn on_match(goal: &Goal) -> OnMatch<u8> {
    match goal {
        Goal::Action(action) => OnMatch::Action(*action),
        Goal::Tree(tree) => OnMatch::Matcher(Box::new(matcher(tree))),
    }
}

fn predicate(condition: &Condition) -> Predicate {
    let string =
        |which: &Which, matcher| Predicate::Single { input: input(*which), value: InputMatcher::String(matcher) };
    match condition {
        Condition::Is(which, value) => string(which, StringMatcher::Exact { value: value.clone(), ignore_case: false }),
        Condition::Begins(which, value) => {
            string(which, StringMatcher::Prefix { value: value.clone(), ignore_case: false })
        }
        Condition::Within(bits) => {
            let network = format!("10.0.0.0/{}", bits % 33).parse().expect("a network");
            Predicate::Single { input: Input::SourceIp, value: InputMatcher::Ip(vec![network]) }
        }
        Condition::Or(all) => Predicate::Or(all.iter().map(predicate).collect()),
        Condition::And(all) => Predicate::And(all.iter().map(predicate).collect()),
        Condition::Not(one) => Predicate::Not(Box::new(predicate(one))),
    }
}

/// Where a tree leads, read word by word.
fn plain(tree: &Tree, values: &Values) -> Result<Option<u8>, Unknown> {
    let follow = |goal: &Goal| match goal {
        Goal::Action(action) => Ok(Some(*action)),
        Goal::Tree(tree) => plain(tree, values),
    };
    let other = match tree {
        Tree::Empty(other) => other,
        Tree::List(list, other) => {
            for (condition, goal) in list {
                if holds(condition, values)?
                    && let Some(action) = follow(goal)?
                {
                    return Ok(Some(action));
                }
            }
            other
        }
        Tree::Exact(which, map, other) => {
            let text = values.text(*which)?;
            let entry = sorted(map).find(|(key, _)| Some(*key) == text.as_deref());
            if let Some((_, goal)) = entry
                && let Some(action) = follow(goal)?
            {
                return Ok(Some(action));
            }
            other
        }
        Tree::Prefix(which, map, other) => {
            let text = values.text(*which)?;
            let mut prefixes: Vec<_> =
                sorted(map).filter(|(key, _)| text.as_deref().is_some_and(|text| text.starts_with(key))).collect();
            prefixes.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
            for (_, goal) in prefixes {
                if let Some(action) = follow(goal)? {
                    return Ok(Some(action));
                }
            }
            other
        }
    };
    other.as_deref().map_or(Ok(None), follow)
}

fn holds(condition: &Condition, values: &Values) -> Result<bool, Unknown> {
    match condition {
        Condition::Is(which, value) => Ok(values.text(*which)?.as_ref() == Some(value)),
        Condition::Begins(which, value) => {
            Ok(values.text(*which)?.is_some_and(|text| text.starts_with(value.as_str())))
        }
        Condition::Within(bits) => {
            let bits = u32::from(bits % 33);
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            let address = u32::from(Ipv4Addr::new(10, 0, 0, values.address));
            Ok(address & mask == u32::from(Ipv4Addr::new(10, 0, 0, 0)) & mask)
        }
        Condition::Or(all) => {
            let results: Vec<_> = all.iter().map(|one| holds(one, values)).collect();
            match results.iter().find(|result| **result == Ok(true)) {
                Some(_) => Ok(true),
                None => results.into_iter().find(Result::is_err).unwrap_or(Ok(false)),
            }
        }
        Condition::And(all) => {
            for one in all {
                if !holds(one, values)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Condition::Not(one) => holds(one, values).map(|result| !result),
    }
}
