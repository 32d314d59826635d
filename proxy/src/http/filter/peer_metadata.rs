//! The peer metadata filter: both sides of a request say who they are, in headers that no application sees.
//!
//! Owns those headers and what is kept of the peer's, in the filter state. Never judges what a peer says.

use std::rc::Rc;
use std::sync::Arc;

use outrigger_config::http::filters::PeerMetadata as Settings;

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::headers::Headers;
use crate::istio::{ID_HEADER, KnownPeers, METADATA_HEADER, Told, Words};

/// The filter.
pub struct PeerMetadata {
    settings: Arc<Settings>,
    words: Arc<Words>,
}

/// What the client said, and so wants to hear.
#[derive(Default)]
struct Asked {
    metadata: bool,
    id: bool,
}

impl PeerMetadata {
    /// A filter.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        let words = maker.worker.process.workload.words(&settings.additional_labels);
        Self { settings: Arc::clone(settings), words }
    }

    /// Takes the peer's headers out. The facts, and which of the headers were there.
    fn take(&self, peers: &KnownPeers, headers: &mut Headers) -> (Option<Arc<Told>>, Asked) {
        let said = headers.get_by_name(METADATA_HEADER);
        let facts = said.and_then(|said| peers.in_header(said));
        let asked = Asked { metadata: said.is_some(), id: headers.get_by_name(ID_HEADER).is_some() };
        if asked.metadata {
            headers.remove_by_name(METADATA_HEADER);
        }
        if asked.id {
            headers.remove_by_name(ID_HEADER);
        }
        (facts, asked)
    }

    fn tell(&self, headers: &mut Headers, id: &str, asked: &Asked) {
        // A node without metadata has nothing to tell.
        if asked.metadata && !self.words.header.is_empty() {
            headers.set_by_name(METADATA_HEADER, self.words.header.as_bytes());
        }
        if asked.id {
            headers.set_by_name(ID_HEADER, id.as_bytes());
        }
    }

    /// Whether the endpoints of the request's cluster are to know who we are.
    fn tells_upstream(&self, exchange: &Exchange<'_, '_, '_>) -> bool {
        let Some(node) = exchange.cluster().filter(|_| self.settings.tell_upstream) else { return false };
        let hints = &node.config.istio;
        let outside = hints.external || &*node.config.name == PASSTHROUGH;
        !(hints.tell_nothing || self.settings.skip_external && outside)
    }
}

impl HttpFilter for PeerMetadata {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        if self.settings.ask_downstream {
            let worker = Rc::clone(exchange.worker());
            let (told, asked) = self.take(&worker.mesh.peers, &mut exchange.head_mut().headers);
            keep(exchange, DOWNSTREAM_PEER, told.as_deref());
            exchange.info().peers.borrow_mut().downstream = told;
            if asked.metadata || asked.id {
                *exchange.state() = asked;
            }
        }
        if self.tells_upstream(exchange) {
            let worker = Rc::clone(exchange.worker());
            let all = Asked { metadata: true, id: true };
            self.tell(&mut exchange.head_mut().headers, worker.process.workload.id(), &all);
        }
        Verdict::Continue
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        if self.settings.ask_upstream {
            let worker = Rc::clone(exchange.worker());
            let (told, _) = self.take(&worker.mesh.peers, &mut exchange.response_mut().headers);
            keep(exchange, UPSTREAM_PEER, told.as_deref());
            exchange.info().peers.borrow_mut().upstream = told;
        }
        if self.settings.tell_downstream
            && let Some(asked) = exchange.known_state::<Asked>().map(std::mem::take)
        {
            let worker = Rc::clone(exchange.worker());
            self.tell(&mut exchange.response_mut().headers, worker.process.workload.id(), &asked);
        }
        Verdict::Continue
    }
}

fn keep(exchange: &Exchange<'_, '_, '_>, name: &str, told: Option<&Told>) {
    if let Some(told) = told {
        exchange.info().filter_state.borrow_mut().insert(name.to_owned(), told.facts.to_string());
    }
}

/// Objects of the filter state.
const DOWNSTREAM_PEER: &str = "downstream_peer";
const UPSTREAM_PEER: &str = "upstream_peer";
/// Istio's name for the cluster of destinations that it does not know.
const PASSTHROUGH: &str = "PassthroughCluster";
