//! The transports of a cluster's endpoints, with their secrets.
//!
//! Owns which TLS contexts a cluster has and what they are made from. Never connects.

use std::sync::Arc;

use outrigger_config::cluster::{Cluster, UpstreamTransport};

use super::compile::CompileError;
use super::tls_inputs::{FindSecret, TlsInputs};
use crate::tls::ClientTls;

/// The TLS contexts of a cluster, by the places of [`Cluster::transports`].
#[derive(Clone, Default)]
pub struct Transports {
    default: Option<Arc<ClientTls>>,
    matched: Box<[Option<Arc<ClientTls>>]>,
}

impl Transports {
    /// The context at `place`; `None` for plain transports.
    pub fn get(&self, place: usize) -> Option<&Arc<ClientTls>> {
        match place.checked_sub(1) {
            None => self.default.as_ref(),
            Some(place) => self.matched.get(place)?.as_ref(),
        }
    }

    /// All contexts.
    pub fn all(&self) -> impl Iterator<Item = &Arc<ClientTls>> {
        self.default.iter().chain(self.matched.iter().flatten())
    }

    /// Whether any of them accepts any server.
    pub fn accept_anybody(&self) -> bool {
        self.all().any(|tls| tls.accepts_anybody())
    }

    /// Whether these are the very same contexts.
    pub fn same(&self, other: &Self) -> bool {
        self.all_are(other, Arc::ptr_eq)
    }

    /// Whether these show the same certificates and accept the same servers.
    pub fn same_trust(&self, other: &Self) -> bool {
        self.all_are(other, |a, b| a.same_trust(b))
    }

    fn all_are(&self, other: &Self, same: impl Fn(&Arc<ClientTls>, &Arc<ClientTls>) -> bool) -> bool {
        let same = |a: &Option<Arc<ClientTls>>, b: &Option<Arc<ClientTls>>| match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => same(a, b),
            _ => false,
        };
        same(&self.default, &other.default)
            && self.matched.len() == other.matched.len()
            && self.matched.iter().zip(&other.matched).all(|(a, b)| same(a, b))
    }
}

/// What the contexts of a cluster are made from: for each transport nothing if it is plain, `Some(None)` while secrets are
/// missing.
#[derive(Clone)]
pub struct TransportInputs {
    default: Option<Option<TlsInputs>>,
    matched: Box<[Option<Option<TlsInputs>>]>,
}

impl TransportInputs {
    /// Looks the secrets of all transports up.
    pub fn resolve(cluster: &Cluster, secrets: &FindSecret<'_>) -> Result<Self, CompileError> {
        let resolve = |(place, transport): (usize, &UpstreamTransport)| match transport.tls() {
            None => Ok(None),
            Some(tls) => TlsInputs::resolve(&tls.common, secrets)
                .map(Some)
                .map_err(|source| CompileError::Secret { place: field(place), source }),
        };
        let mut all = cluster.transports().enumerate().map(resolve);
        let default = all.next().transpose()?.flatten();
        Ok(Self { default, matched: all.collect::<Result<_, _>>()? })
    }

    /// Whether any transport waits for secrets.
    pub fn are_missing(&self) -> bool {
        self.iter().any(|inputs| matches!(inputs, Some(None)))
    }

    /// Whether the same contexts would be made from these.
    pub fn same(&self, other: &Self) -> bool {
        let same = |a: &Option<Option<TlsInputs>>, b: &Option<Option<TlsInputs>>| match (a, b) {
            (None, None) | (Some(None), Some(None)) => true,
            (Some(Some(a)), Some(Some(b))) => a.same(b),
            _ => false,
        };
        self.matched.len() == other.matched.len() && self.iter().zip(other.iter()).all(|(a, b)| same(a, b))
    }

    /// How many discovered secrets are new, or say something else than in `old`.
    pub fn updates_since(&self, old: Option<&Self>) -> u64 {
        let known = self.iter().enumerate().filter_map(|(place, inputs)| {
            let before = old.and_then(|old| old.iter().nth(place)?.as_ref()?.as_ref());
            Some(inputs.as_ref()?.as_ref()?.updates_since(before))
        });
        known.sum()
    }

    /// Makes the contexts.
    pub fn contexts(&self, cluster: &Cluster) -> Result<Transports, CompileError> {
        let make = |(place, (transport, inputs)): (usize, (&UpstreamTransport, &Option<Option<TlsInputs>>))| match (
            transport.tls(),
            inputs,
        ) {
            (Some(config), Some(Some(inputs))) => {
                inputs.client(config).map(Some).map_err(|source| CompileError::Tls { place: field(place), source })
            }
            _ => Ok(None),
        };
        let mut all = cluster.transports().zip(self.iter()).enumerate().map(make);
        let default = all.next().transpose()?.flatten();
        Ok(Transports { default, matched: all.collect::<Result<_, _>>()? })
    }

    fn iter(&self) -> impl Iterator<Item = &Option<Option<TlsInputs>>> {
        std::iter::once(&self.default).chain(&self.matched)
    }
}

fn field(place: usize) -> String {
    match place.checked_sub(1) {
        None => "transport_socket".to_owned(),
        Some(place) => format!("transport_socket_matches[{place}].transport_socket"),
    }
}
