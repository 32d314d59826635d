//! What authorization services are told of connections, by the HTTP and by the network filter.
//!
//! Owns both ends of a connection as they see them. Never asks anything.

use std::collections::HashMap;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::service::auth::v3::attribute_context::{Peer, TlsSession};
use outrigger_api::pb::google::protobuf::Struct;
use outrigger_config::metadata::MetadataMap;
use serde_json::Value as Json;

use crate::accesslog::entry;
use crate::http::manager::client_cert::url_pem;
use crate::stream::ConnectionInfo;

/// The client, and its certificate if that is told.
pub(crate) fn source(connection: &ConnectionInfo, tells_certificate: bool) -> Peer {
    let certificate = connection.tls.as_ref().and_then(|tls| tls.peer.as_ref()).filter(|_| tells_certificate);
    Peer {
        address: Some(entry::address(&connection.remote)),
        principal: connection.peer_principal().unwrap_or_default().to_owned(),
        certificate: certificate.map(|peer| url_pem(peer.chain_der.get(..1).unwrap_or_default())).unwrap_or_default(),
        ..Peer::default()
    }
}

/// Labels of ours: what our node says of itself under a key. As in Envoy, values other than text are told as empty.
pub(crate) fn labels(node: &MetadataMap, key: &str) -> HashMap<String, String> {
    let Some(Json::Object(values)) = node.get(key).filter(|_| !key.is_empty()) else { return HashMap::new() };
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    values.iter().map(|(name, value)| (name.clone(), text(value))).collect()
}

/// Where the client wanted to go, and who we are there.
pub(crate) fn destination(connection: &ConnectionInfo, labels: HashMap<String, String>) -> Peer {
    let principal = connection.tls.as_ref().map(|tls| tls.local_principal.to_string()).unwrap_or_default();
    Peer { address: Some(entry::address(&connection.local)), principal, labels, ..Peer::default() }
}

/// The TLS connection, if that is told.
pub(crate) fn tls_session(connection: &ConnectionInfo, tells: bool) -> Option<TlsSession> {
    let tls = connection.tls.as_ref().filter(|_| tells)?;
    Some(TlsSession { sni: tls.sni.as_deref().unwrap_or_default().to_owned() })
}

/// The namespaces of metadata that `find` finds.
pub(crate) fn metadata(namespaces: &[String], find: impl Fn(&str) -> Option<Struct>) -> core::Metadata {
    let found = namespaces.iter().filter_map(|name| Some((name.clone(), find(name)?)));
    core::Metadata { filter_metadata: found.collect(), typed_filter_metadata: HashMap::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_text_or_nothing() {
        let node = serde_json::json!({"k": {"a": "b", "n": 3, "l": ["q"]}, "text": "t"});
        let Json::Object(node) = node else { unreachable!() };
        let expected = [("a", "b"), ("n", ""), ("l", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(labels(&node, "k"), expected.into());
        for key in ["", "text", "other"] {
            assert!(labels(&node, key).is_empty(), "{key}");
        }
    }
}
