//! Named objects that filters leave for one another, and how far they go.
//!
//! Owns which of them go with connections to upstreams (`FilterStateValue.shared_with_upstream`). Never knows what an
//! object means: whoever looks for it does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};

use outrigger_config::http::filters::{FilterStateEntry, FilterStateKind, FilterStateSharing};
use outrigger_config::metadata::MetadataMap;

/// Objects by name, as text.
#[derive(Clone, Debug, Default)]
pub struct FilterState {
    objects: BTreeMap<String, String>,
    /// Those that go with connections to upstreams; hardly anybody has any.
    shared: BTreeMap<String, Share>,
    /// Objects that have fields and no text; hardly anybody has any.
    fields: BTreeMap<String, MetadataMap>,
}

/// How an object goes with connections to upstreams.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Share {
    /// Connections that are made with different ones are not the same to whoever looks for one.
    hashable: bool,
    /// It goes on from where it arrives.
    transitive: bool,
}

impl FilterState {
    /// Sets the object of `entry` to `text`, unless that is not what such an object can hold.
    pub fn set(&mut self, entry: &FilterStateEntry, text: String) {
        if entry.kind == FilterStateKind::Address && text.parse::<SocketAddr>().is_err() {
            tracing::debug!("filter state {:?} is not set: {text:?} is no IP address with a port", &*entry.key);
            return;
        }
        let transitive = match entry.sharing {
            FilterStateSharing::None => None,
            FilterStateSharing::Once => Some(false),
            FilterStateSharing::Transitive => Some(true),
        };
        let key = String::from(&*entry.key);
        match transitive {
            Some(transitive) => {
                let share = Share { hashable: entry.kind != FilterStateKind::Text, transitive };
                self.shared.insert(key.clone(), share);
            }
            None => drop(self.shared.remove(&key)),
        }
        self.objects.insert(key, text);
    }

    /// The fields of an object that has nothing else.
    pub fn fields(&self, key: &str) -> Option<&MetadataMap> {
        self.fields.get(key)
    }

    /// Adds an object of these fields. `false` if there is one of this name.
    pub fn add_fields(&mut self, key: &str, fields: MetadataMap) -> bool {
        let is_new = !self.fields.contains_key(key) && !self.objects.contains_key(key);
        if is_new {
            self.fields.insert(key.to_owned(), fields);
        }
        is_new
    }

    /// Sets a field of such an object.
    pub fn set_field(&mut self, key: &str, field: &str, value: u64) {
        if let Some(fields) = self.fields.get_mut(key) {
            fields.insert(field.to_owned(), value.into());
        }
    }

    /// What such objects are where their connection arrives.
    pub fn arrived(objects: Option<&SharedObjects>) -> Self {
        let mut state = Self::default();
        for SharedObject { key, text, share } in objects.into_iter().flat_map(|objects| &objects.0) {
            if share.transitive {
                state.shared.insert(key.clone(), *share);
            }
            state.objects.insert(key.clone(), text.clone());
        }
        state
    }
}

impl Deref for FilterState {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.objects
    }
}

/// Objects set this way stay here.
impl DerefMut for FilterState {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.objects
    }
}

/// Objects that go with a connection to an upstream, by name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SharedObjects(Vec<SharedObject>);

#[derive(Clone, Debug, Eq, PartialEq)]
struct SharedObject {
    key: String,
    text: String,
    share: Share,
}

impl SharedObjects {
    /// Those of a connection and of a request on it, which come before those of the same name. `None` if there are none.
    pub fn of(connection: &FilterState, own: Option<&FilterState>) -> Option<Box<Self>> {
        let states = [Some(connection), own];
        if states.iter().flatten().all(|state| state.shared.is_empty()) {
            return None;
        }
        let mut found = BTreeMap::new();
        for state in states.into_iter().flatten() {
            for (key, share) in &state.shared {
                if let Some(text) = state.objects.get(key) {
                    found.insert(key, (text, *share));
                }
            }
        }
        let objects =
            found.into_iter().map(|(key, (text, share))| SharedObject { key: key.clone(), text: text.clone(), share });
        let objects: Vec<_> = objects.collect();
        (!objects.is_empty()).then(|| Box::new(Self(objects)))
    }

    /// Those by which connections are told apart; `None` if there are none.
    pub fn hashable(&self) -> Option<Vec<(Box<str>, Box<str>)>> {
        let hashable: Vec<_> = self.hashable_ones().map(|(key, text)| (key.into(), text.into())).collect();
        (!hashable.is_empty()).then_some(hashable)
    }

    /// Whether connections are told apart by just these.
    pub fn hashes_as(&self, others: &[(Box<str>, Box<str>)]) -> bool {
        self.hashable_ones().eq(others.iter().map(|(key, text)| (&**key, &**text)))
    }

    /// Whether connections are told apart by any.
    pub fn has_hashable(&self) -> bool {
        self.hashable_ones().next().is_some()
    }

    fn hashable_ones(&self) -> impl Iterator<Item = (&str, &str)> {
        let hashable = self.0.iter().filter(|object| object.share.hashable);
        hashable.map(|object| (object.key.as_str(), object.text.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::format::Format;

    use super::*;

    fn entry(key: &str, kind: FilterStateKind, sharing: FilterStateSharing) -> FilterStateEntry {
        let value = Format::default();
        FilterStateEntry { key: key.into(), value, omit_empty_values: false, skip_if_empty: false, kind, sharing }
    }

    fn with(objects: &[(&str, FilterStateKind, FilterStateSharing, &str)]) -> FilterState {
        let mut state = FilterState::default();
        for (key, kind, sharing, text) in objects {
            state.set(&entry(key, *kind, *sharing), (*text).to_owned());
        }
        state
    }

    use FilterStateKind::{Address, HashableText, Text};
    use FilterStateSharing::{None as Stays, Once, Transitive};

    #[test]
    fn only_shared_objects_arrive_and_only_transitive_ones_go_on() {
        let here = with(&[("a", Text, Once, "1"), ("b", HashableText, Transitive, "2"), ("c", Text, Stays, "3")]);
        let there = FilterState::arrived(SharedObjects::of(&here, None).as_deref());
        assert_eq!(there.keys().collect::<Vec<_>>(), ["a", "b"]);
        let beyond = FilterState::arrived(SharedObjects::of(&there, None).as_deref());
        assert_eq!(beyond.keys().collect::<Vec<_>>(), ["b"]);
        assert!(SharedObjects::of(&with(&[("c", Text, Stays, "3")]), None).is_none());
    }

    #[test]
    fn a_request_has_the_last_word_about_objects_of_its_connection() {
        let connection = with(&[("a", HashableText, Once, "1"), ("b", Text, Once, "x")]);
        let request = with(&[("a", HashableText, Once, "2")]);
        let both = SharedObjects::of(&connection, Some(&request)).unwrap();
        assert_eq!(both.hashable().unwrap(), [("a".into(), "2".into())]);
        assert!(both.hashes_as(&both.hashable().unwrap()));
        assert!(!SharedObjects::of(&connection, None).unwrap().hashes_as(&both.hashable().unwrap()));
    }

    #[test]
    fn an_object_that_is_set_anew_goes_as_far_as_it_is_said_then() {
        let state = with(&[("a", Text, Once, "1"), ("a", Text, Stays, "2")]);
        assert_eq!(state["a"], "2");
        assert!(SharedObjects::of(&state, None).is_none());
    }

    #[test]
    fn an_address_is_set_only_if_it_is_one() {
        let state = with(&[("a", Address, Once, "10.0.0.1:80"), ("b", Address, Once, "localhost:80")]);
        assert_eq!(state.get("a").unwrap(), "10.0.0.1:80");
        assert!(!state.contains_key("b"));
    }
}
