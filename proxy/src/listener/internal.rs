//! Connections from one task of a worker to a listener of the same process (`Listener.internal_listener`).
//!
//! Owns finding the listener, and what a connection brings along into it. Never opens a socket.

use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use outrigger_config::address::{Address, InternalAddress};
use outrigger_config::cluster::{InternalTransport, PassedMetadataOwner};
use outrigger_config::metadata::{self, Namespaces};

use super::accept;
use crate::filter_state::{FilterState, SharedObjects};
use crate::scope;
use crate::stats::names;
use crate::upstream::worker_host::WorkerHost;
use crate::worker::Worker;
use crate::worker::in_process;
use crate::worker::socket::{Socket, SocketKind};

/// What a connection brings along into a listener.
#[derive(Debug, Default)]
pub struct Luggage {
    /// Becomes its dynamic metadata.
    pub metadata: Namespaces,
    /// Becomes its filter state.
    pub objects: FilterState,
}

scope! {
    /// Stats of connections that bring something along (`cluster.<name>.internal_upstream.*`).
    pub struct InternalUpstreamStats {
        no_metadata: Counter,
    }
}

impl Luggage {
    /// What the transport of an endpoint takes along, if it takes anything.
    pub fn of(worker: &Worker, host: &WorkerHost, objects: Option<&SharedObjects>) -> Self {
        let transport = host.node.config.transports().nth(host.host.transport);
        let Some(internal) = transport.and_then(|transport| transport.internal()) else { return Self::default() };
        Self { metadata: passed_metadata(worker, host, internal), objects: FilterState::arrived(objects) }
    }
}

fn passed_metadata(worker: &Worker, host: &WorkerHost, internal: &InternalTransport) -> Namespaces {
    let mut passed = Namespaces::new();
    let config = &host.node.config;
    for wanted in &internal.passed {
        let found = match wanted.of {
            PassedMetadataOwner::Host => {
                host.host.passed.as_ref().and_then(|metadata| metadata.get(&*wanted.namespace)).cloned()
            }
            PassedMetadataOwner::Cluster => {
                let encoded = config.metadata.as_deref();
                encoded.and_then(|encoded| metadata::encoded_namespace(encoded, &wanted.namespace))
            }
        };
        match found {
            Some(metadata) => drop(passed.insert(wanted.namespace.to_string(), metadata)),
            None => {
                let prefix = names::prefix("cluster", &config.stat_name) + "internal_upstream.";
                worker.scope::<InternalUpstreamStats>(&prefix).no_metadata.increment();
            }
        }
    }
    passed
}

/// Connects to the listener of `address`. `None` if there is no such listener now.
pub fn connect(worker: &Rc<Worker>, address: &Arc<InternalAddress>, luggage: Luggage) -> Option<Socket> {
    let node = worker.graph().listeners.get(&address.listener).filter(|node| node.config.is_internal()).cloned()?;
    let (near, far) = in_process::pair(worker.process.internal_buffer_bytes);
    let far = Socket::new(SocketKind::InProcess(far));
    accept::start_internal(worker, node, far, Address::Internal(Arc::clone(address)), luggage);
    Some(Socket::new(SocketKind::InProcess(near)))
}

/// What the near end of such a connection is called, everywhere.
pub fn client_address() -> Address {
    Address::Internal(Arc::clone(&CLIENT))
}

/// Envoy's word.
static CLIENT: LazyLock<Arc<InternalAddress>> =
    LazyLock::new(|| Arc::new(InternalAddress::of_listener(&Arc::from("internal_client_address"))));
