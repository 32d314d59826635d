//! Discovered resources that clusters and listeners refer to, as last accepted.
//!
//! Owns the values for as long as someone needs them; route configurations are kept by `warming` instead, since their
//! updates wait. Never decides when a value is used.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use outrigger_config::cluster::Assignment;
use outrigger_config::extension::Extension;
use outrigger_config::route::RouteConfiguration;
use outrigger_config::tls::{Secret, SecretKind, TicketKeys, TlsCertificate, Validation};

use super::need::Need;
use super::scopes::Scopes;
use super::virtual_hosts::VirtualHosts;

/// Values by need.
#[derive(Default)]
pub struct Resources {
    /// Endpoints.
    pub assignments: HashMap<Need, Arc<Assignment>>,
    /// Discovered secrets.
    pub secrets: HashMap<Need, Arc<Secret>>,
    /// Discovered filters.
    pub extensions: HashMap<Need, Arc<Extension>>,
    /// Discovered scopes, by the need for all of a source.
    pub(super) scopes: HashMap<Need, Scopes>,
    /// Discovered virtual hosts, by the need for all of a source.
    pub(super) virtual_hosts: HashMap<Need, VirtualHosts>,
    /// Route configurations as they came that take in discovered virtual hosts, with the need for these.
    pub(super) open_routes: HashMap<Need, (Arc<RouteConfiguration>, Need)>,
    /// Addresses of host names.
    pub addresses: HashMap<Need, Arc<[IpAddr]>>,
    /// Secrets of the bootstrap by name.
    pub static_secrets: HashMap<Arc<str>, Arc<Secret>>,
}

impl Resources {
    /// Forgets a value that nobody needs.
    pub fn forget(&mut self, need: &Need) {
        self.assignments.remove(need);
        self.secrets.remove(need);
        self.extensions.remove(need);
        self.scopes.remove(need);
        self.virtual_hosts.remove(need);
        self.addresses.remove(need);
    }
}

/// The certificate in a secret, if it is one.
pub fn certificate(secret: &Secret) -> Option<&Arc<TlsCertificate>> {
    match &secret.kind {
        SecretKind::Certificate(certificate) => Some(certificate),
        SecretKind::Validation(_) | SecretKind::TicketKeys(_) | SecretKind::Generic(_) => None,
    }
}

/// The validation in a secret, if it is one.
pub fn validation(secret: &Secret) -> Option<&Arc<Validation>> {
    match &secret.kind {
        SecretKind::Validation(validation) => Some(validation),
        SecretKind::Certificate(_) | SecretKind::TicketKeys(_) | SecretKind::Generic(_) => None,
    }
}

/// The keys of session tickets in a secret, if it has them.
pub fn ticket_keys(secret: &Secret) -> Option<&Arc<TicketKeys>> {
    match &secret.kind {
        SecretKind::TicketKeys(keys) => Some(keys),
        SecretKind::Certificate(_) | SecretKind::Validation(_) | SecretKind::Generic(_) => None,
    }
}
