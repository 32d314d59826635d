//! What we say about ourselves.
//!
//! Owns the choice of facts from the bootstrap's node and their encoding, which is the same for the same facts. Never
//! sends them.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outrigger_api::pb::envoy::config::core::v3::{Locality, Node};
use outrigger_api::pb::google::protobuf::value::Kind;
use outrigger_api::pb::google::protobuf::{Struct, Value};
use outrigger_config::metadata;
use prost::Message as _;

use super::metrics::{NAMESPACE, push};
use super::peer::Peer;
use super::preamble;
use crate::scope;
use crate::stats::Registry;

/// Who this proxy stands beside.
#[derive(Debug, Default)]
pub struct Workload {
    id: String,
    /// Facts without labels, in order.
    facts: BTreeMap<&'static str, String>,
    labels: BTreeMap<String, String>,
    words: OnceLock<Arc<Words>>,
    own: OnceLock<Peer>,
    /// `ISTIO_VERSION`.
    version: Option<String>,
    build: OnceLock<Arc<Build>>,
    /// `node.metadata` as it came, and as expressions see the node once they do.
    metadata: Box<[u8]>,
    node: OnceLock<serde_json::Value>,
}

scope! {
    /// Which version of the mesh this proxy belongs to.
    pub struct Build { istio_build: Gauge }
}

/// The facts, ready to be sent.
#[derive(Debug)]
pub struct Words {
    /// The value of `x-envoy-peer-metadata`.
    pub header: String,
    /// What a TCP connection begins with.
    pub preamble: Arc<[u8]>,
}

impl Workload {
    /// The workload of a node.
    pub fn of(node: &Node) -> Self {
        let metadata = node.metadata.as_ref();
        let mut facts = BTreeMap::new();
        for key in ["NAME", "NAMESPACE", "WORKLOAD_NAME", "CLUSTER_ID", "IDENTITY", "OWNER"] {
            facts.extend(metadata.and_then(|metadata| text(metadata, key)).map(|value| (key, value.to_owned())));
        }
        if let Some(Locality { region, zone, sub_zone: _ }) = &node.locality {
            facts.insert("REGION", region.clone());
            facts.insert("AVAILABILITY_ZONE", zone.clone());
        }
        facts.retain(|_, value| !value.is_empty());
        let labels = metadata.and_then(|metadata| match &metadata.fields.get("LABELS")?.kind {
            Some(Kind::StructValue(labels)) => Some(labels),
            _ => None,
        });
        let labels = labels.into_iter().flat_map(|labels| &labels.fields);
        let labels = labels.filter_map(|(key, value)| Some((key.clone(), text_of(value)?.to_owned())));
        Self {
            id: node.id.clone(),
            facts,
            labels: labels.collect(),
            version: metadata.and_then(|metadata| text(metadata, "ISTIO_VERSION")).map(str::to_owned),
            metadata: node.metadata.as_ref().map(|metadata| metadata.encode_to_vec().into()).unwrap_or_default(),
            ..Self::default()
        }
    }

    /// The node, as expressions see it.
    pub fn node(&self) -> &serde_json::Value {
        self.node.get_or_init(|| {
            let metadata = Struct::decode(&*self.metadata).map(metadata::object).unwrap_or_default();
            serde_json::json!({ "id": self.id, "metadata": metadata })
        })
    }

    /// Counts this proxy as one of its mesh, if it belongs to one.
    pub fn announce(&self, stats: &Registry) {
        let Some(version) = &self.version else { return };
        self.build.get_or_init(|| {
            let mut prefix = NAMESPACE.to_owned();
            push(&mut prefix, "component", "proxy");
            push(&mut prefix, "tag", version);
            let build = stats.scope::<Build>(&prefix);
            build.istio_build.set(1);
            build
        });
    }

    /// How metrics name it.
    pub fn own(&self) -> &Peer {
        self.own.get_or_init(|| {
            let fact = |key: &str| self.facts.get(key).cloned().unwrap_or_default();
            let labels = self.told_labels(&[]);
            let label = |key: &str| labels.get(key).map(|value| (*value).to_owned()).unwrap_or_default();
            Peer::from_facts(fact, label)
        })
    }

    /// The value of `x-envoy-peer-metadata-id`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What is said, with `additional` labels if they are set. Made once where there are none of those.
    pub fn words(&self, additional: &[String]) -> Arc<Words> {
        if additional.is_empty() {
            return Arc::clone(self.words.get_or_init(|| Arc::new(self.make(&[]))));
        }
        Arc::new(self.make(additional))
    }

    fn make(&self, additional: &[String]) -> Words {
        let mut labels = Vec::new();
        for (key, value) in self.told_labels(additional) {
            put_entry(&mut labels, key, STRING_VALUE, value.as_bytes());
        }
        // Upper case comes first, so the labels have a place among the facts.
        let mut fields: BTreeMap<&str, (u8, &[u8])> =
            self.facts.iter().map(|(key, value)| (*key, (STRING_VALUE, value.as_bytes()))).collect();
        if !labels.is_empty() {
            fields.insert("LABELS", (STRUCT_VALUE, &labels));
        }
        let mut facts = Vec::new();
        for (key, (kind, value)) in fields {
            put_entry(&mut facts, key, kind, value);
        }
        let mut introduction = Vec::new();
        put_entry(&mut introduction, METADATA_HEADER, STRUCT_VALUE, &facts);
        put_entry(&mut introduction, ID_HEADER, STRING_VALUE, self.id.as_bytes());
        Words { header: STANDARD.encode(&facts), preamble: preamble::encode(&introduction).into() }
    }

    /// The labels by which metrics know a workload, in order.
    fn told_labels<'a>(&'a self, additional: &'a [String]) -> BTreeMap<&'a str, &'a str> {
        let first = |keys: &[&str]| keys.iter().find_map(|key| self.labels.get(*key)).map(String::as_str);
        let known = [
            ("app", first(&["app", "app.kubernetes.io/name"])),
            ("version", first(&["version", "app.kubernetes.io/version"])),
            (CANONICAL_NAME, first(&[CANONICAL_NAME, "app.kubernetes.io/name", "app"])),
            (CANONICAL_REVISION, first(&[CANONICAL_REVISION, "app.kubernetes.io/version", "version"])),
        ];
        let additional = additional.iter().map(|key| (key.as_str(), first(&[key])));
        known.into_iter().chain(additional).filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

fn text<'a>(metadata: &'a Struct, key: &str) -> Option<&'a str> {
    text_of(metadata.fields.get(key)?)
}

fn text_of(value: &Value) -> Option<&str> {
    match &value.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

/// Appends an entry of `google.protobuf.Struct.fields`. The map type of the API has no order, but receivers know each
/// other's words by their bytes.
fn put_entry(into: &mut Vec<u8>, key: &str, kind: u8, value: &[u8]) {
    let mut wrapped = Vec::with_capacity(value.len() + 8);
    put(&mut wrapped, kind, value);
    let mut entry = Vec::with_capacity(key.len() + wrapped.len() + 8);
    put(&mut entry, 1, key.as_bytes());
    put(&mut entry, 2, &wrapped);
    put(into, 1, &entry);
}

/// Appends a field of bytes. Source: the protobuf encoding, wire type LEN.
pub(super) fn put(into: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    into.push(field << 3 | 2);
    prost::encoding::encode_varint(bytes.len() as u64, into);
    into.extend_from_slice(bytes);
}

/// Numbers of fields of `google.protobuf.Value`.
const STRING_VALUE: u8 = 3;
const STRUCT_VALUE: u8 = 5;
pub(super) const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
pub(super) const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
/// The header with the facts, and the key of the same facts on TCP.
pub const METADATA_HEADER: &str = "x-envoy-peer-metadata";
/// The header with the node's id, and its key on TCP.
pub const ID_HEADER: &str = "x-envoy-peer-metadata-id";

#[cfg(test)]
pub(super) mod tests {
    use prost::Message as _;

    use super::*;

    fn value(kind: Kind) -> Value {
        Value { kind: Some(kind) }
    }

    fn texts(entries: &[(&str, &str)]) -> Struct {
        let entry = |(key, text): &(&str, &str)| ((*key).to_owned(), value(Kind::StringValue((*text).to_owned())));
        Struct { fields: entries.iter().map(entry).collect() }
    }

    pub fn node() -> Node {
        let mut metadata = texts(&[("NAME", "a-1"), ("NAMESPACE", "ns"), ("PILOT_SAN", "x"), ("OWNER", "")]);
        let labels = texts(&[("app", "a"), ("extra", "e"), ("version", "v1")]);
        metadata.fields.insert("LABELS".to_owned(), value(Kind::StructValue(labels)));
        Node {
            id: "sidecar~1".to_owned(),
            metadata: Some(metadata),
            locality: Some(Locality { region: "r".to_owned(), ..Locality::default() }),
            ..Node::default()
        }
    }

    #[test]
    fn the_facts_that_metrics_need_are_told() {
        let words = Workload::of(&node()).words(&["extra".to_owned(), "absent".to_owned()]);
        let told = Struct::decode(&*STANDARD.decode(&words.header).unwrap()).unwrap();
        let labels =
            [("app", "a"), ("extra", "e"), (CANONICAL_NAME, "a"), (CANONICAL_REVISION, "v1"), ("version", "v1")];
        let mut expected = texts(&[("NAME", "a-1"), ("NAMESPACE", "ns"), ("REGION", "r")]);
        expected.fields.insert("LABELS".to_owned(), value(Kind::StructValue(texts(&labels))));
        assert_eq!(told, expected);
    }

    #[test]
    fn the_same_facts_are_the_same_bytes() {
        let first = Workload::of(&node()).words(&[]);
        for _ in 0..10 {
            assert_eq!(Workload::of(&node()).words(&[]).header, first.header);
        }
        assert_eq!(Workload::default().words(&[]).header, "");
    }
}
