//! What is wanted of one type, and what the control plane has been told of it.
//!
//! Owns reference counts per name and the difference to what was sent on the current stream. Never composes messages.

use std::collections::{BTreeMap, BTreeSet};

/// What a watch asks for.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Interest {
    /// Every resource of the type that the control plane has for this node.
    Wildcard,
    /// One resource by its name.
    Name(String),
}

/// The name that asks for everything.
pub(crate) const WILDCARD: &str = "*";

/// How often something is wanted, and whether the server knows.
#[derive(Debug, Default)]
struct Reference {
    count: usize,
    sent: bool,
}

/// What changed since the last message on this stream.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Changes {
    /// Names to subscribe to, in order; never the wildcard.
    pub subscribe: Vec<String>,
    /// Names to unsubscribe from, in order; never the wildcard.
    pub unsubscribe: Vec<String>,
    pub wildcard_added: bool,
    pub wildcard_removed: bool,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        let Self { subscribe, unsubscribe, wildcard_added, wildcard_removed } = self;
        subscribe.is_empty() && unsubscribe.is_empty() && !wildcard_added && !wildcard_removed
    }
}

/// The subscription to one type.
#[derive(Debug, Default)]
pub(crate) struct Subscription {
    names: BTreeMap<String, Reference>,
    wildcard: Reference,
    dirty_names: BTreeSet<String>,
    /// Whether a last reference went away since [`Self::take_given_up`].
    given_up: bool,
}

impl Subscription {
    /// Adds one reference; true if it is the first.
    pub(crate) fn add(&mut self, interest: &Interest) -> bool {
        let reference = match interest {
            Interest::Wildcard => &mut self.wildcard,
            Interest::Name(name) => self.names.entry(name.clone()).or_default(),
        };
        reference.count += 1;
        let first = reference.count == 1;
        if let (true, Interest::Name(name)) = (first, interest) {
            self.dirty_names.insert(name.clone());
        }
        first
    }

    /// Takes one reference away; true if it was the last. Unknown interests are left alone.
    pub(crate) fn remove(&mut self, interest: &Interest) -> bool {
        let reference = match interest {
            Interest::Wildcard => &mut self.wildcard,
            Interest::Name(name) => match self.names.get_mut(name) {
                Some(reference) => reference,
                None => return false,
            },
        };
        if reference.count == 0 {
            return false;
        }
        reference.count -= 1;
        let last = reference.count == 0;
        self.given_up |= last;
        if let (true, Interest::Name(name)) = (last, interest) {
            self.dirty_names.insert(name.clone());
        }
        last
    }

    /// Whether something may be held that is no longer wanted. Spares looking through everything for each message.
    pub(crate) fn take_given_up(&mut self) -> bool {
        std::mem::take(&mut self.given_up)
    }

    pub(crate) fn wants_wildcard(&self) -> bool {
        self.wildcard.count > 0
    }

    /// Whether `name` itself is asked for.
    pub(crate) fn wants_name(&self, name: &str) -> bool {
        self.names.get(name).is_some_and(|reference| reference.count > 0)
    }

    /// Whether a resource with this name is wanted in any way.
    pub(crate) fn covers(&self, name: &str, aliases: &[String]) -> bool {
        self.wants_wildcard() || self.wants_name(name) || aliases.iter().any(|alias| self.wants_name(alias))
    }

    pub(crate) fn wants_nothing(&self) -> bool {
        !self.wants_wildcard() && self.wanted_names().next().is_none()
    }

    /// Every name asked for, sorted.
    pub(crate) fn wanted_names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter(|(_, reference)| reference.count > 0).map(|(name, _)| name.as_str())
    }

    /// Whether the server knows something else than what is wanted.
    pub(crate) fn is_dirty(&self) -> bool {
        self.wildcard.sent != self.wants_wildcard() || !self.dirty_names.is_empty()
    }

    /// Takes the difference between wanted and sent; afterwards all counts as sent.
    pub(crate) fn take_changes(&mut self) -> Changes {
        let mut changes = Changes {
            wildcard_added: self.wants_wildcard() && !self.wildcard.sent,
            wildcard_removed: !self.wants_wildcard() && self.wildcard.sent,
            ..Changes::default()
        };
        self.wildcard.sent = self.wants_wildcard();
        for name in std::mem::take(&mut self.dirty_names) {
            let Some(reference) = self.names.get_mut(&name) else { continue };
            match (reference.count > 0, reference.sent) {
                (true, false) => {
                    reference.sent = true;
                    changes.subscribe.push(name);
                }
                (false, sent) => {
                    self.names.remove(&name);
                    if sent {
                        changes.unsubscribe.push(name);
                    }
                }
                (true, true) => {}
            }
        }
        changes
    }

    /// Notes that the wildcard alone was sent; names stay to be told.
    pub(crate) fn mark_wildcard_sent(&mut self) {
        self.wildcard.sent = true;
    }

    /// A new stream knows nothing.
    pub(crate) fn reset_sent(&mut self) {
        self.wildcard.sent = false;
        for reference in self.names.values_mut() {
            reference.sent = false;
        }
        self.dirty_names = self.names.keys().cloned().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Interest {
        Interest::Name(name.into())
    }

    #[test]
    fn r57_two_references_are_one_subscription() {
        let mut subscription = Subscription::default();
        assert!(subscription.add(&name("a")));
        assert!(!subscription.add(&name("a")));
        assert_eq!(subscription.take_changes().subscribe, ["a"]);
        assert!(!subscription.remove(&name("a")));
        assert!(subscription.take_changes().is_empty());
        assert!(subscription.remove(&name("a")));
        assert_eq!(subscription.take_changes().unsubscribe, ["a"]);
        assert!(!subscription.remove(&name("a")));
        assert!(subscription.wants_nothing());
    }

    #[test]
    fn r34_adding_then_removing_cancels_out() {
        let mut subscription = Subscription::default();
        subscription.add(&name("a"));
        subscription.remove(&name("a"));
        assert!(subscription.take_changes().is_empty());
        subscription.add(&name("b"));
        subscription.take_changes();
        subscription.remove(&name("b"));
        subscription.add(&name("b"));
        assert!(subscription.take_changes().is_empty());
    }

    #[test]
    fn a_new_stream_is_told_everything_again() {
        let mut subscription = Subscription::default();
        subscription.add(&name("a"));
        subscription.add(&Interest::Wildcard);
        subscription.take_changes();
        assert!(!subscription.is_dirty());
        subscription.reset_sent();
        assert!(subscription.is_dirty());
        let changes = subscription.take_changes();
        assert_eq!((changes.subscribe, changes.wildcard_added), (vec!["a".to_owned()], true));
    }
}
