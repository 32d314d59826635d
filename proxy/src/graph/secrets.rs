//! Secrets that filters use, as requests find them.
//!
//! Owns their lookup by the place that a filter names. Never waits for one, and never prints any.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use outrigger_config::source::SourceKind;
use outrigger_config::tls::{GenericSecret, SecretKind, SecretPlace, SecretRef};

use super::Graph;
use super::need::Need;
use super::resources::Resources;
use super::tls_inputs::{FindSecret, SecretError};

/// All secrets of filters by their places.
pub type GenericSecrets = HashMap<SecretPlace, Arc<GenericSecret>>;

/// The sources by which filters name discovered secrets. Several may lead to the same one.
pub(super) type SecretSources = HashMap<Need, HashSet<SourceKind>>;

/// What the graph shows of `resources`.
pub(super) fn generic_secrets(resources: &Resources, sources: &SecretSources) -> GenericSecrets {
    let mut secrets = GenericSecrets::new();
    for (name, secret) in &resources.static_secrets {
        if let SecretKind::Generic(secret) = &secret.kind {
            secrets.insert(SecretPlace { name: Arc::clone(name), source: None }, Arc::clone(secret));
        }
    }
    for (need, secret) in &resources.secrets {
        let (Need::Resource { name, .. }, SecretKind::Generic(secret)) = (need, &secret.kind) else { continue };
        for source in sources.get(need).into_iter().flatten() {
            let place = SecretPlace { name: Arc::clone(name), source: Some(source.clone()) };
            secrets.insert(place, Arc::clone(secret));
        }
    }
    secrets
}

/// Whether a secret that a filter names may be what it names. One that is discovered may come later.
///
/// # Errors
/// If a static secret does not exist, or a secret is of another kind.
pub fn check_reference(secret: &SecretRef, find: &FindSecret<'_>) -> Result<(), SecretError> {
    let SecretRef { name, source } = secret;
    match find(name, source.as_ref()).map(|found| matches!(found.kind, SecretKind::Generic(_))) {
        Some(true) => Ok(()),
        Some(false) => Err(SecretError::OtherKind { name: Arc::clone(name), expected: "generic secret" }),
        None if source.is_none() => Err(SecretError::Unknown(Arc::clone(name))),
        None => Ok(()),
    }
}

/// A secret as one filter of a worker reads it.
pub struct SecretReader {
    place: SecretPlace,
    /// What the generation with this number has.
    known: RefCell<Option<(u64, Option<Arc<GenericSecret>>)>>,
}

impl SecretReader {
    /// Has read nothing yet.
    pub fn new(secret: &SecretRef) -> Self {
        Self { place: secret.place(), known: RefCell::default() }
    }

    /// The secret; `None` as long as there is none.
    pub fn get(&self, graph: &Graph) -> Option<Arc<GenericSecret>> {
        let mut known = self.known.borrow_mut();
        match &*known {
            Some((generation, secret)) if *generation == graph.generation => secret.clone(),
            _ => {
                let secret = graph.secrets.get(&self.place).map(Arc::clone);
                *known = Some((graph.generation, secret.clone()));
                secret
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::source::ConfigSource;
    use outrigger_config::tls::{Secret, TicketKeys};

    use super::*;

    fn generic(value: &str) -> SecretKind {
        SecretKind::Generic(Arc::new(GenericSecret { value: value.into(), ..GenericSecret::default() }))
    }

    #[test]
    fn a_reference_must_lead_to_a_secret_for_filters() {
        let ads = Some(ConfigSource { kind: SourceKind::Ads, initial_fetch_timeout: None });
        let of = |source| SecretRef { name: "s".into(), source };
        let found = |kind: SecretKind| Some(Arc::new(Secret { name: "s".into(), kind }));
        assert_eq!(check_reference(&of(None), &|_, _| found(generic("x"))), Ok(()));
        assert_eq!(check_reference(&of(ads.clone()), &|_, _| None), Ok(()));
        let error = check_reference(&of(None), &|_, _| None).unwrap_err();
        assert_eq!(error.to_string(), "static secret \"s\" does not exist in the bootstrap");
        let keys = || SecretKind::TicketKeys(Arc::new(TicketKeys { keys: Vec::new(), files: Vec::new() }));
        let error = check_reference(&of(ads), &|_, _| found(keys())).unwrap_err();
        assert_eq!(error.to_string(), "secret \"s\" is not a generic secret");
    }

    #[test]
    fn a_reader_sees_what_each_generation_has() {
        let secret = SecretRef { name: "s".into(), source: None };
        let reader = SecretReader::new(&secret);
        assert!(reader.get(&Graph::default()).is_none());
        let graph = |generation, value: &str| {
            let secret = GenericSecret { value: value.into(), ..GenericSecret::default() };
            let secrets = [(SecretPlace { name: "s".into(), source: None }, Arc::new(secret))];
            Graph { generation, secrets: secrets.into_iter().collect(), ..Graph::default() }
        };
        for (generation, value) in [(1, "one"), (2, "two"), (1, "one")] {
            assert_eq!(reader.get(&graph(generation, value)).unwrap().value, value.as_bytes());
        }
    }
}
