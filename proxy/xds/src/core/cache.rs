//! The accepted resources of one type.
//!
//! Owns, per name, what was last accepted and what was last refused. Never decides what is accepted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use outrigger_api::pb::google::protobuf::Any;

/// An accepted resource.
#[derive(Clone, Debug)]
pub struct Held {
    /// Opaque version of the resource.
    pub version: String,
    /// The resource as received.
    pub resource: Arc<Any>,
    /// Other names it goes by (virtual hosts only).
    pub aliases: Vec<String>,
    /// When this content or version was accepted.
    pub updated: Instant,
}

/// The last refusal of a resource; gone once a newer one is accepted.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Version that was refused.
    pub version: String,
    /// Why.
    pub message: String,
    /// When.
    pub at: Instant,
}

/// What is known of each resource of one type.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    held: BTreeMap<String, Held>,
    failures: BTreeMap<String, Failure>,
}

impl Cache {
    pub(crate) fn held(&self, name: &str) -> Option<&Held> {
        self.held.get(name)
    }

    pub(crate) fn held_mut(&mut self, name: &str) -> Option<&mut Held> {
        self.held.get_mut(name)
    }

    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// Everything accepted, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Held)> {
        self.held.iter().map(|(name, held)| (name.as_str(), held))
    }

    /// Every refusal, by name.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&str, &Failure)> {
        self.failures.iter().map(|(name, failure)| (name.as_str(), failure))
    }

    pub(crate) fn accept(&mut self, name: String, held: Held) {
        self.failures.remove(&name);
        self.held.insert(name, held);
    }

    pub(crate) fn fail(&mut self, name: &str, failure: Failure) {
        self.failures.insert(name.to_owned(), failure);
    }

    /// Forgets refusals whose name does not pass `keep`.
    pub(crate) fn retain_failures(&mut self, keep: impl Fn(&str) -> bool) {
        self.failures.retain(|name, _| keep(name));
    }

    pub(crate) fn clear_failure(&mut self, name: &str) {
        self.failures.remove(name);
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.held.remove(name);
        self.failures.remove(name);
    }

    /// Forgets what `keep` does not want any more; returns the names of forgotten resources.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str, &[String]) -> bool) -> Vec<String> {
        self.failures.retain(|name, _| keep(name, &[]));
        let gone: Vec<String> =
            self.held.iter().filter(|(name, held)| !keep(name, &held.aliases)).map(|(name, _)| name.clone()).collect();
        for name in &gone {
            self.held.remove(name);
        }
        gone
    }
}
