//! Reader of the static resources of a bootstrap.
//!
//! Owns that their names are unique, and names listeners that have none. Never reads what a resource says.

use std::collections::HashSet;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::bootstrap::v3::bootstrap::StaticResources;
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::config::listener::v3 as listener;

use super::parse::Rejections;
use crate::cluster::{Cluster, Discovery};
use crate::context::Context;
use crate::decide::decide;
use crate::listener::Listener;
use crate::rejection::{FieldPath, Parsed, Rejection};
use crate::tls::Secret;

/// Resources that the bootstrap holds itself.
#[derive(Default)]
pub(super) struct Statics {
    pub listeners: Vec<Arc<Listener>>,
    pub clusters: Vec<Arc<Cluster>>,
    pub secrets: Vec<Arc<Secret>>,
    /// Clusters that were refused: whoever refers to one need not be refused for it.
    pub refused_clusters: HashSet<String>,
}

impl Statics {
    /// Reads all resources; what is refused is left out.
    pub(super) fn read(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: StaticResources,
        rejections: &mut Rejections,
    ) -> Self {
        let read = Self::read_each(context, at, wire, rejections);
        rejections.keep_or_default(read)
    }

    fn read_each(
        context: &Context<'_>,
        at: &FieldPath<'_>,
        wire: StaticResources,
        rejections: &mut Rejections,
    ) -> Parsed<Self> {
        decide!(wire, at, StaticResources as "envoy.config.bootstrap.v3.Bootstrap.StaticResources" {
            implemented: listeners, clusters, secrets;
            no_effect: ;
            unsupported: ;
        });
        let mut statics = Statics::default();
        let mut names = HashSet::new();
        for (index, wire) in clusters.into_iter().enumerate() {
            let name = wire.name.clone();
            match placed(&at.field("clusters").item(index), &mut names, &name, || Cluster::parse(context, wire)) {
                Ok(cluster) => statics.clusters.push(cluster),
                Err(rejection) => {
                    statics.refused_clusters.insert(name);
                    rejections.keep::<()>(Err(rejection));
                }
            }
        }
        names.clear();
        for (index, wire) in secrets.into_iter().enumerate() {
            let (list, name) = (at.field("secrets"), wire.name.clone());
            let read = placed(&list.item(index), &mut names, &name, || Secret::parse(context, wire));
            statics.secrets.extend(rejections.keep(read));
        }
        names.clear();
        for (index, mut wire) in listeners.into_iter().enumerate() {
            if wire.name.is_empty() {
                wire.name = generated_name(&wire, &names, index);
            }
            let (list, name) = (at.field("listeners"), wire.name.clone());
            let read = placed(&list.item(index), &mut names, &name, || Listener::parse(context, wire));
            statics.listeners.extend(rejections.keep(read));
        }
        Ok(statics)
    }

    /// Whether `name` can serve discovery: a static cluster whose endpoints do not come from discovery themselves.
    pub(super) fn discovery_server(&self, name: &str) -> Result<(), &'static str> {
        match self.clusters.iter().find(|cluster| &*cluster.name == name) {
            Some(cluster) if matches!(cluster.discovery, Discovery::Eds { .. }) => {
                Err("takes its endpoints from discovery")
            }
            Some(_) => Ok(()),
            None if self.refused_clusters.contains(name) => Ok(()),
            None => Err("is not a static cluster"),
        }
    }
}

/// Reads one resource, and says in a rejection where in the bootstrap it stands.
fn placed<T>(
    at: &FieldPath<'_>,
    names: &mut HashSet<String>,
    name: &str,
    read: impl FnOnce() -> Parsed<T>,
) -> Parsed<Arc<T>> {
    let read = read()
        .map(Arc::new)
        .map_err(|Rejection { path, reason }| Rejection { path: format!("{at}: {path}"), reason })?;
    if names.insert(name.to_owned()) { Ok(read) } else { Err(at.reject(format!("{name:?} is given twice"))) }
}

/// A name from the address, so that it is the same after a restart.
fn generated_name(wire: &listener::Listener, taken: &HashSet<String>, index: usize) -> String {
    let address = wire.address.as_ref().and_then(|wire| wire.address.as_ref());
    let name = match address {
        Some(core::address::Address::SocketAddress(socket)) => match socket.port_specifier {
            Some(core::socket_address::PortSpecifier::PortValue(port)) => format!("{}:{port}", socket.address),
            _ => socket.address.clone(),
        },
        Some(core::address::Address::Pipe(pipe)) => pipe.path.clone(),
        Some(core::address::Address::EnvoyInternalAddress(_)) | None => "listener".to_owned(),
    };
    if taken.contains(&name) { format!("{name}#{index}") } else { name }
}
