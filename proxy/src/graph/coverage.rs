//! Which fields of the configuration have no effect here.
//!
//! Owns what was found when resources were read: places and reasons once, and a number for each resource that has them. Keeps
//! no message, and never reads one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use outrigger_config::coverage::NoEffect;

/// Different places and reasons that are kept.
const MOST_PLACES: usize = 4096;

/// All fields that have no effect.
#[derive(Default)]
pub struct Coverage {
    places: Vec<Place>,
    numbers: HashMap<(Box<str>, Box<str>), u32>,
    /// By kind and name.
    resources: BTreeMap<(&'static str, Arc<str>), Box<[u32]>>,
    /// Fields that found no place any more.
    left_out: u64,
}

struct Place {
    path: Box<str>,
    reason: Box<str>,
}

/// What is told of a field.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Idle {
    /// The kind of the resource that it stands in.
    pub kind: &'static str,
    /// The name of that.
    pub name: Arc<str>,
    /// Where it stands there.
    pub path: String,
    /// Why it has no effect.
    pub reason: String,
}

impl Coverage {
    /// What was found in a resource that is accepted, in the place of what was found before; `unknown` fields are those that
    /// nobody could read.
    pub fn set(&mut self, kind: &'static str, name: &Arc<str>, found: &[NoEffect], unknown: &[String]) {
        let unknown = unknown.iter().map(|path| (path.as_str(), "newer than the API that this version knows"));
        let known = found.iter().map(|found| (found.path.as_str(), found.reason));
        let numbers: Vec<u32> = known.chain(unknown).filter_map(|(path, reason)| self.number(path, reason)).collect();
        let key = (kind, Arc::clone(name));
        if numbers.is_empty() {
            self.resources.remove(&key);
        } else {
            self.resources.insert(key, numbers.into());
        }
    }

    /// The same of a whole bootstrap, whose resources name themselves.
    pub fn set_all(&mut self, found: &[NoEffect]) {
        let mut by_resource: BTreeMap<(&'static str, &str), Vec<NoEffect>> = BTreeMap::new();
        for found in found {
            by_resource.entry((found.kind, &found.name)).or_default().push(found.clone());
        }
        for ((kind, name), found) in by_resource {
            self.set(kind, &Arc::from(name), &found, &[]);
        }
    }

    /// Forgets resources that are not there any more.
    pub fn retain(&mut self, is_there: impl Fn(&str, &str) -> bool) {
        self.resources.retain(|(kind, name), _| is_there(kind, name));
    }

    /// All of them, by kind and name.
    pub fn all(&self) -> Vec<Idle> {
        let of_resource = |(kind, name, numbers): (&'static str, &Arc<str>, &[u32])| {
            let places = numbers.iter().filter_map(|number| self.places.get(*number as usize));
            let told = places.map(|place| Idle {
                kind,
                name: Arc::clone(name),
                path: place.path.to_string(),
                reason: place.reason.to_string(),
            });
            told.collect::<Vec<_>>()
        };
        let resources = self.resources.iter().map(|((kind, name), numbers)| (*kind, name, &**numbers));
        resources.flat_map(of_resource).collect()
    }

    /// Fields that are not told of because there are too many different ones.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    fn number(&mut self, path: &str, reason: &str) -> Option<u32> {
        let key = (Box::from(path), Box::from(reason));
        if let Some(number) = self.numbers.get(&key) {
            return Some(*number);
        }
        if self.places.len() == MOST_PLACES {
            self.left_out += 1;
            return None;
        }
        let number = self.places.len() as u32;
        self.places.push(Place { path: path.into(), reason: reason.into() });
        self.numbers.insert(key, number);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str) -> NoEffect {
        NoEffect { kind: "cluster", name: "a".into(), path: path.into(), reason: "r" }
    }

    #[test]
    fn a_resource_replaces_what_it_said_before_and_places_are_shared() {
        let mut coverage = Coverage::default();
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        coverage.set("cluster", &a, &[found("x"), found("y")], &["9000".to_owned()]);
        coverage.set("cluster", &b, &[found("x")], &[]);
        assert_eq!((coverage.all().len(), coverage.places.len()), (4, 3));
        coverage.set("cluster", &a, &[found("y")], &[]);
        let told: Vec<_> = coverage.all().into_iter().map(|idle| (idle.name.to_string(), idle.path)).collect();
        assert_eq!(told, [("a".to_owned(), "y".to_owned()), ("b".to_owned(), "x".to_owned())]);
        coverage.retain(|_, name| name == "b");
        coverage.set("cluster", &b, &[], &[]);
        assert!(coverage.all().is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let mut coverage = Coverage::default();
        let many: Vec<NoEffect> = (0..MOST_PLACES + 5).map(|at| found(&format!("x[{at}]"))).collect();
        coverage.set("cluster", &Arc::from("a"), &many, &[]);
        assert_eq!((coverage.all().len(), coverage.left_out()), (MOST_PLACES, 5));
    }
}
