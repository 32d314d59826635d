//! The peer metadata filter: both sides of a request say who they are, in headers that no application sees.
//!
//! Owns those headers and what is kept of the peer's, in the filter state. Never judges what a peer says.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use outrigger_config::http::filters::PeerMetadata as Settings;
use outrigger_config::metadata;

use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::headers::Headers;
use crate::istio::{ID_HEADER, METADATA_HEADER, Words};

/// The filter.
pub struct PeerMetadata {
    settings: Arc<Settings>,
    words: Arc<Words>,
    /// What peers said, by their headers: decoding costs more than finding it again.
    known: RefCell<HashMap<Box<[u8]>, Rc<str>>>,
}

/// Peers that are remembered; there are few for each workload.
const MAX_KNOWN: usize = 256;

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
        Self { settings: Arc::clone(settings), words, known: RefCell::default() }
    }

    /// Takes the peer's headers out. The facts, and which of the headers were there.
    fn take(&self, headers: &mut Headers) -> (Option<Rc<str>>, Asked) {
        let said = headers.get_by_name(METADATA_HEADER);
        let facts = said.and_then(|said| self.facts(said));
        let asked = Asked { metadata: said.is_some(), id: headers.get_by_name(ID_HEADER).is_some() };
        if asked.metadata {
            headers.remove_by_name(METADATA_HEADER);
        }
        if asked.id {
            headers.remove_by_name(ID_HEADER);
        }
        (facts, asked)
    }

    fn facts(&self, said: &[u8]) -> Option<Rc<str>> {
        let mut known = self.known.borrow_mut();
        if let Some(facts) = known.get(said) {
            return Some(Rc::clone(facts));
        }
        let facts: Rc<str> = decode(said)?.into();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(said.into(), Rc::clone(&facts));
        Some(facts)
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
        let hints = node.config.istio;
        let outside = hints.external || &*node.config.name == PASSTHROUGH;
        !(hints.tell_nothing || self.settings.skip_external && outside)
    }
}

impl HttpFilter for PeerMetadata {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        if self.settings.ask_downstream {
            let (facts, asked) = self.take(&mut exchange.head_mut().headers);
            keep(exchange, DOWNSTREAM_PEER, facts);
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
            let (facts, _) = self.take(&mut exchange.response_mut().headers);
            keep(exchange, UPSTREAM_PEER, facts);
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

fn keep(exchange: &Exchange<'_, '_, '_>, name: &str, facts: Option<Rc<str>>) {
    if let Some(facts) = facts {
        exchange.info().filter_state.borrow_mut().insert(name.to_owned(), facts.as_ref().to_owned());
    }
}

/// The facts as JSON; `None` for what is none.
fn decode(said: &[u8]) -> Option<String> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let bytes = LENIENT.decode(said).ok()?;
    // A struct is the value of field 5 of `google.protobuf.Value`.
    let mut value = vec![5 << 3 | 2];
    prost::encoding::encode_varint(bytes.len() as u64, &mut value);
    value.extend_from_slice(&bytes);
    metadata::from_protobuf(&value).map(|facts| facts.to_string())
}

/// Objects of the filter state.
const DOWNSTREAM_PEER: &str = "downstream_peer";
const UPSTREAM_PEER: &str = "upstream_peer";
/// Istio's name for the cluster of destinations that it does not know.
const PASSTHROUGH: &str = "PassthroughCluster";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_says_is_read_with_and_without_padding() {
        // {"NAME": "a"}
        let said = b"CgsKBE5BTUUSAxoBYQ==";
        assert_eq!(decode(said).as_deref(), Some(r#"{"NAME":"a"}"#));
        assert_eq!(decode(&said[..18]).as_deref(), Some(r#"{"NAME":"a"}"#));
        for wrong in [&b"*"[..], b"CgsKBE5B"] {
            assert_eq!(decode(wrong), None);
        }
    }
}
