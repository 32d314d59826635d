//! What changed the configuration, and when: the last pushes, and what resources were before them.
//!
//! Owns the records and their bounds. Resources are kept as they were received, encoded; never reads one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_api::pb::google::protobuf::Any;
use outrigger_xds::ResourceKind;

/// Pushes that are kept of each kind, so that many of one kind do not drive out the others.
const MOST_OF_A_KIND: usize = 100;
/// Names of one push that are kept in each list.
const MOST_NAMES: usize = 50;
/// Changes of single resources that are kept.
const MOST_CHANGES: usize = 5000;
/// Bytes of former resources that are kept.
const MOST_BYTES: usize = 512 * 1024;

/// The records.
#[derive(Default)]
pub struct Journal {
    pushes: VecDeque<Push>,
    changes: VecDeque<Change>,
    bytes: usize,
    next: u64,
    /// What is known of changes begins after this generation.
    known_from: u64,
}

/// One response of a control plane, one version of a file, or one order of an operator.
#[derive(Clone, Debug)]
pub struct Push {
    /// Counts from 1.
    pub number: u64,
    /// When.
    pub at: SystemTime,
    /// What kind of resource, or `bootstrap`, `runtime`, `override`.
    pub kind: &'static str,
    /// From where.
    pub source: String,
    /// As the source calls it; may be empty.
    pub version: String,
    /// That it belongs to: in force with it, unless something is waited for.
    pub generation: u64,
    /// Resources that were not there before.
    pub added: Names,
    /// Resources that were there, and are others now.
    pub changed: Names,
    /// Resources that are gone.
    pub removed: Names,
    /// Resources that are what they were.
    pub unchanged: usize,
    /// Resources that were refused, and why.
    pub rejected: Vec<(Arc<str>, String)>,
    /// How many were.
    pub rejected_in_all: usize,
}

/// Some names, and how many there are in all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names {
    /// The first ones.
    pub listed: Vec<Arc<str>>,
    /// Of all.
    pub count: usize,
}

impl Names {
    /// One more.
    pub fn push(&mut self, name: &Arc<str>) {
        self.count += 1;
        if self.listed.len() < MOST_NAMES {
            self.listed.push(Arc::clone(name));
        }
    }
}

impl Push {
    /// Nothing has changed yet.
    pub fn new(kind: &'static str, source: String, version: String) -> Self {
        Self {
            number: 0,
            at: SystemTime::now(),
            kind,
            source,
            version,
            generation: 0,
            added: Names::default(),
            changed: Names::default(),
            removed: Names::default(),
            unchanged: 0,
            rejected: Vec::new(),
            rejected_in_all: 0,
        }
    }

    /// A resource was refused.
    pub fn reject(&mut self, name: &Arc<str>, reason: &str) {
        self.rejected_in_all += 1;
        if self.rejected.len() < MOST_NAMES {
            self.rejected.push((Arc::clone(name), reason.to_owned()));
        }
    }
}

/// What a resource was before it changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Former {
    /// It was not there.
    Absent,
    /// As it was received.
    Known(Arc<Any>),
    /// It is not kept any more.
    Forgotten,
}

impl Former {
    fn bytes(&self) -> usize {
        match self {
            Former::Known(any) => any.value.len(),
            Former::Absent | Former::Forgotten => 0,
        }
    }
}

/// A change of one resource.
#[derive(Clone, Debug)]
pub struct Change {
    kind: ResourceKind,
    name: Arc<str>,
    generation: u64,
    before: Former,
}

impl Change {
    /// A resource that was `before`.
    pub fn new(kind: ResourceKind, name: &Arc<str>, before: Former) -> Self {
        Self { kind, name: Arc::clone(name), generation: 0, before }
    }
}

/// A resource that differs between two generations.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Its kind.
    pub kind: ResourceKind,
    /// Its name.
    pub name: Arc<str>,
    /// In the earlier generation.
    pub before: Former,
    /// In the later one.
    pub after: Former,
}

impl Journal {
    /// The configuration that begins with this generation is the first that is known.
    pub fn begin(&mut self, generation: u64) {
        self.known_from = generation;
    }

    /// Writes down what a push has brought, and with which generation.
    pub fn write(&mut self, mut push: Push, changes: Vec<Change>, generation: u64) {
        self.next += 1;
        push.number = self.next;
        push.generation = generation;
        if self.pushes.iter().filter(|other| other.kind == push.kind).count() >= MOST_OF_A_KIND
            && let Some(oldest) = self.pushes.iter().position(|other| other.kind == push.kind)
        {
            self.pushes.remove(oldest);
        }
        self.pushes.push_back(push);
        for change in changes {
            self.bytes += change.before.bytes();
            self.changes.push_back(Change { generation, ..change });
        }
        while self.changes.len() > MOST_CHANGES {
            if let Some(change) = self.changes.pop_front() {
                self.bytes -= change.before.bytes();
                self.known_from = self.known_from.max(change.generation);
            }
        }
        let mut oldest = 0;
        while self.bytes > MOST_BYTES && oldest < self.changes.len() {
            let before = &mut self.changes[oldest].before;
            self.bytes -= before.bytes();
            if matches!(before, Former::Known(_)) {
                *before = Former::Forgotten;
            }
            oldest += 1;
        }
    }

    /// The last pushes, the oldest first.
    pub fn pushes(&self) -> impl Iterator<Item = &Push> {
        self.pushes.iter()
    }

    /// What differs between two generations. `now` is what a resource is at this moment.
    ///
    /// # Errors
    /// When that is not known any more.
    pub fn between(
        &self,
        from: u64,
        to: u64,
        now: impl Fn(ResourceKind, &Arc<str>) -> Former,
    ) -> Result<Vec<Difference>, String> {
        if from > to {
            return Err(format!("generation {from} is later than {to}"));
        }
        if from < self.known_from {
            return Err(format!("generation {from} is not known any more; the oldest one is {}", self.known_from));
        }
        let mut differences: BTreeMap<(ResourceKind, Arc<str>), (Former, Option<Former>)> = BTreeMap::new();
        for change in &self.changes {
            let key = (change.kind, Arc::clone(&change.name));
            if change.generation > from && change.generation <= to {
                differences.entry(key).or_insert_with(|| (change.before.clone(), None));
            } else if change.generation > to
                && let Some((_, after)) = differences.get_mut(&key)
            {
                // What it was before the next change is what it was in the later generation.
                after.get_or_insert_with(|| change.before.clone());
            }
        }
        let differ = differences.into_iter().map(|((kind, name), (before, after))| {
            let after = after.unwrap_or_else(|| now(kind, &name));
            Difference { kind, name, before, after }
        });
        Ok(differ.filter(|found| found.before != found.after || found.before == Former::Forgotten).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(value: &str) -> Former {
        Former::Known(Arc::new(Any { type_url: String::new(), value: value.as_bytes().to_vec() }))
    }

    fn push() -> Push {
        Push::new("cluster", "test".into(), "1".into())
    }

    #[test]
    fn generations_are_told_apart_by_what_changed_between_them() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let change = |name: &Arc<str>, before| vec![Change::new(ResourceKind::Cluster, name, before)];
        let mut journal = Journal::default();
        journal.begin(1);
        journal.write(push(), change(&a, Former::Absent), 2);
        journal.write(push(), change(&a, known("1")), 3);
        journal.write(push(), change(&b, Former::Absent), 4);
        journal.write(push(), change(&a, known("2")), 5);
        let now = |_: ResourceKind, name: &Arc<str>| if **name == *"a" { Former::Absent } else { known("b") };
        let told = |from, to| {
            let found = journal.between(from, to, now).unwrap().into_iter();
            found.map(|found| (found.name.to_string(), found.before, found.after)).collect::<Vec<_>>()
        };
        assert_eq!(told(2, 3), [("a".to_owned(), known("1"), known("2"))]);
        assert_eq!(told(1, 3), [("a".to_owned(), Former::Absent, known("2"))]);
        assert_eq!(
            told(3, 5),
            [("a".to_owned(), known("2"), Former::Absent), ("b".to_owned(), Former::Absent, known("b"))]
        );
        assert!(told(1, 1).is_empty());
        // It came and went.
        assert_eq!(told(1, 5), [("b".to_owned(), Former::Absent, known("b"))]);
        assert!(journal.between(0, 1, now).unwrap_err().contains("the oldest one is 1"));
        assert!(journal.between(3, 2, now).is_err());
    }

    #[test]
    fn bounds_hold_and_what_is_forgotten_is_said_to_be() {
        let name: Arc<str> = "a".into();
        let mut journal = Journal::default();
        for generation in 1..=200 {
            let before = known(&"x".repeat(MOST_BYTES / 100));
            journal.write(push(), vec![Change::new(ResourceKind::Cluster, &name, before)], generation);
        }
        journal.write(Push::new("listener", String::new(), String::new()), Vec::new(), 201);
        assert_eq!((journal.pushes().count(), journal.bytes <= MOST_BYTES), (MOST_OF_A_KIND + 1, true));
        assert_eq!(journal.pushes().last().map(|push| push.number), Some(201));
        let found = journal.between(0, 200, |_, _| known("now")).unwrap();
        assert_eq!(found[0].before, Former::Forgotten);
        let many = (0..MOST_CHANGES + 1).map(|_| Change::new(ResourceKind::Cluster, &name, Former::Absent)).collect();
        journal.write(push(), many, 300);
        assert_eq!(journal.changes.len(), MOST_CHANGES);
        assert!(journal.between(299, 300, |_, _| Former::Absent).is_err());
    }
}
