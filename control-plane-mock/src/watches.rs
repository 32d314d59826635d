//! What one stream asks for, per type, and how far the client has confirmed it: the part that both protocols share.
//!
//! Owns names, confirmations and the last response. Never knows when something is due, which the protocols see
//! differently.

use std::collections::{BTreeMap, BTreeSet};

use crate::session::{Answer, Sent, Standing};
use crate::types;

/// The subscription to one type.
#[derive(Debug, Default)]
pub(crate) struct Interest {
    /// Everything is asked for.
    pub wildcard: bool,
    /// Asked for by name.
    pub names: BTreeSet<String>,
    /// Name and version of what the client has confirmed.
    pub confirmed: BTreeMap<String, String>,
    /// The last response.
    pub last: Option<Sent>,
}

impl Interest {
    /// Whether this resource is asked for.
    pub fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Whether the last response was accepted.
    pub fn last_was_acked(&self) -> bool {
        self.last.as_ref().is_some_and(|last| last.answer == Answer::Acked)
    }

    fn standing(&self) -> Standing {
        Standing::new(self.wildcard, self.names.iter().cloned(), self.last.as_ref(), &self.confirmed)
    }
}

/// Gives the shared part of a protocol's state of one type.
pub(crate) trait Watch: Default {
    /// What is asked for.
    fn interest(&self) -> &Interest;
}

/// The types of one stream, by type URL.
#[derive(Debug)]
pub(crate) struct Watches<W>(BTreeMap<String, W>);

impl<W> Default for Watches<W> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<W: Watch> Watches<W> {
    pub fn get(&self, type_url: &str) -> Option<&W> {
        self.0.get(type_url)
    }

    pub fn get_mut(&mut self, type_url: &str) -> Option<&mut W> {
        self.0.get_mut(type_url)
    }

    /// The state of a type, and whether it is new.
    pub fn begin(&mut self, type_url: &str) -> (&mut W, bool) {
        let first = !self.0.contains_key(type_url);
        (self.0.entry(type_url.to_owned()).or_default(), first)
    }

    /// The types that `is_due` picks, in the order of sending.
    pub fn due(&self, is_due: impl Fn(&str, &W) -> bool) -> Vec<String> {
        let mut due: Vec<String> =
            self.0.iter().filter(|(url, watch)| is_due(url, watch)).map(|(url, _)| url.clone()).collect();
        due.sort_by_key(|url| types::push_order(url));
        due
    }

    /// Whether the client asks for this resource, or with no name for any; `None` if it never named the type.
    pub fn wants(&self, type_url: &str, name: Option<&str>) -> Option<bool> {
        let interest = self.get(type_url)?.interest();
        Some(name.map_or(interest.wildcard || !interest.names.is_empty(), |name| interest.covers(name)))
    }

    /// Version of this resource that the client has confirmed.
    pub fn confirmed(&self, type_url: &str, name: &str) -> Option<&str> {
        self.get(type_url)?.interest().confirmed.get(name).map(String::as_str)
    }

    /// Where each type stands.
    pub fn standings(&self) -> BTreeMap<String, Standing> {
        self.0.iter().map(|(url, watch)| (url.clone(), watch.interest().standing())).collect()
    }

    /// Where one type stands, if it was asked for.
    pub fn standing(&self, type_url: &str) -> Option<Standing> {
        self.get(type_url).map(|watch| watch.interest().standing())
    }
}
