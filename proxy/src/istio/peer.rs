//! What workloads of a mesh say about themselves.
//!
//! Owns the reading of their words, from headers and from the beginning of TCP connections, and which of them each worker
//! remembers. Never judges what a peer says.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use outrigger_api::pb::google::protobuf::Any;
use outrigger_config::metadata;
use prost::Message as _;
use serde_json::Value;

use super::workload::{CANONICAL_NAME, CANONICAL_REVISION, METADATA_HEADER};

/// A workload, as metrics name it. What is not known is empty.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Peer {
    /// `WORKLOAD_NAME`.
    pub workload: String,
    /// `NAMESPACE`.
    pub namespace: String,
    /// `CLUSTER_ID`.
    pub cluster: String,
    /// Label `app`.
    pub app: String,
    /// Label `version`.
    pub version: String,
    /// Label `service.istio.io/canonical-name`.
    pub canonical_name: String,
    /// Label `service.istio.io/canonical-revision`.
    pub canonical_revision: String,
    /// `IDENTITY`.
    pub identity: String,
}

impl Peer {
    fn of(facts: &Value) -> Self {
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let label = |key: &str| facts.get("LABELS").map(|labels| text(labels, key)).unwrap_or_default();
        Self::from_facts(|key| text(facts, key), label)
    }

    /// From what it says of itself, and its labels; empty texts for what it does not say.
    pub(super) fn from_facts(fact: impl Fn(&str) -> String, label: impl Fn(&str) -> String) -> Self {
        Self {
            workload: fact("WORKLOAD_NAME"),
            namespace: fact("NAMESPACE"),
            cluster: fact("CLUSTER_ID"),
            app: label("app"),
            version: label("version"),
            canonical_name: label(CANONICAL_NAME),
            canonical_revision: label(CANONICAL_REVISION),
            identity: fact("IDENTITY"),
        }
    }
}

impl Peer {
    /// By the names that Istio has for expressions.
    fn fields(&self, facts: &Value) -> Value {
        let fact = |key: &str| facts.get(key).cloned().unwrap_or_else(|| Value::String(String::new()));
        serde_json::json!({
            "namespace": self.namespace,
            "cluster": self.cluster,
            "service": self.canonical_name,
            "revision": self.canonical_revision,
            "app": self.app,
            "version": self.version,
            "workload": self.workload,
            "name": fact("NAME"),
            "identity": self.identity,
            "region": fact("REGION"),
            "availability_zone": fact("AVAILABILITY_ZONE"),
            "labels": facts.get("LABELS").cloned().unwrap_or_default(),
        })
    }
}

/// What a peer has said.
#[derive(Debug)]
pub struct Told {
    /// Another one for other words, within a worker; never 0.
    pub id: u32,
    /// The facts, as JSON.
    pub facts: Box<str>,
    /// Those that metrics name.
    pub peer: Peer,
    /// What expressions see of it.
    pub fields: Value,
}

/// What the peer of a TCP connection has said: nothing yet, nothing at all (which is empty), or its words. Written once.
pub type Heard = Arc<OnceLock<Box<[u8]>>>;

/// What was said of both sides of a request.
#[derive(Debug, Default)]
pub struct Peers {
    /// By the client.
    pub downstream: Option<Arc<Told>>,
    /// By the endpoint.
    pub upstream: Option<Arc<Told>>,
}

/// What peers of one worker have said, by their words: reading costs more than finding them again.
#[derive(Debug, Default)]
pub struct KnownPeers {
    by_words: RefCell<HashMap<Box<[u8]>, Arc<Told>>>,
    last_id: Cell<u32>,
}

/// Peers that are remembered; there are few for each workload.
const MAX_KNOWN: usize = 1024;

impl KnownPeers {
    /// The facts in the value of `x-envoy-peer-metadata`; `None` for what is none.
    pub fn in_header(&self, said: &[u8]) -> Option<Arc<Told>> {
        self.find(said, decode_header)
    }

    /// The facts that a TCP connection began with.
    pub fn in_preamble(&self, said: &[u8]) -> Option<Arc<Told>> {
        self.find(said, decode_preamble)
    }

    fn find(&self, said: &[u8], decode: fn(&[u8]) -> Option<Value>) -> Option<Arc<Told>> {
        let mut known = self.by_words.borrow_mut();
        if let Some(told) = known.get(said) {
            return Some(Arc::clone(told));
        }
        let facts = decode(said)?;
        let id = self.last_id.get().wrapping_add(1).max(1);
        self.last_id.set(id);
        let peer = Peer::of(&facts);
        let fields = peer.fields(&facts);
        let told = Arc::new(Told { id, peer, fields, facts: facts.to_string().into() });
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(said.into(), Arc::clone(&told));
        Some(told)
    }
}

fn decode_header(said: &[u8]) -> Option<Value> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    decode_struct(&LENIENT.decode(said).ok()?)
}

fn decode_preamble(said: &[u8]) -> Option<Value> {
    let any = Any::decode(said).ok()?;
    match decode_struct(&any.value)?.get_mut(METADATA_HEADER)?.take() {
        facts @ Value::Object(_) => Some(facts),
        _ => None,
    }
}

fn decode_struct(bytes: &[u8]) -> Option<Value> {
    // A struct is the value of field 5 of `google.protobuf.Value`.
    let mut value = vec![5 << 3 | 2];
    prost::encoding::encode_varint(bytes.len() as u64, &mut value);
    value.extend_from_slice(bytes);
    metadata::from_protobuf(&value)
}

#[cfg(test)]
mod tests {
    use super::super::workload::Workload;
    use super::super::workload::tests::node;
    use super::*;

    #[test]
    fn what_a_peer_says_is_read_with_and_without_padding() {
        // {"NAME": "a"}
        let said = b"CgsKBE5BTUUSAxoBYQ==";
        let known = KnownPeers::default();
        let facts = |said: &[u8]| known.in_header(said).map(|told| told.facts.to_string());
        assert_eq!(facts(said).as_deref(), Some(r#"{"NAME":"a"}"#));
        assert_eq!(facts(&said[..18]).as_deref(), Some(r#"{"NAME":"a"}"#));
        for wrong in [&b"*"[..], b"CgsKBE5B"] {
            assert_eq!(facts(wrong), None);
        }
    }

    #[test]
    fn our_own_words_name_the_same_workload_in_headers_and_on_tcp() {
        let workload = Workload::of(&node());
        let words = workload.words(&[]);
        let known = KnownPeers::default();
        let header = known.in_header(words.header.as_bytes()).unwrap();
        // Magic and length are not part of the words.
        let preamble = known.in_preamble(&words.preamble[8..]).unwrap();
        assert_eq!(header.peer, preamble.peer);
        assert_eq!(header.peer, *workload.own());
        assert_eq!((header.peer.namespace.as_str(), header.peer.canonical_name.as_str()), ("ns", "a"));
        assert_ne!(header.id, preamble.id);
        assert_eq!(known.in_header(words.header.as_bytes()).unwrap().id, header.id);
    }

    #[test]
    fn no_more_words_are_remembered_than_a_number() {
        let known = KnownPeers::default();
        for index in 0..MAX_KNOWN + 10 {
            let words = base64::engine::general_purpose::STANDARD.encode([10, 5, 10, 1, b'a', 18, 0]);
            let mut words = words.into_bytes();
            words.extend(vec![b'='; index % 2]);
            let _ = known.in_header(&words);
            let _ = known.find(index.to_string().as_bytes(), |_| Some(Value::Null));
        }
        assert!(known.by_words.borrow().len() <= MAX_KNOWN);
    }
}
