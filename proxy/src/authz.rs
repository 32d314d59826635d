//! What authorization services are told of connections, by the HTTP and by the network filter.
//!
//! Owns both ends of a connection as they see them. Never asks anything.

use std::collections::HashMap;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::service::auth::v3::attribute_context::{Peer, TlsSession};
use outrigger_api::pb::google::protobuf::Struct;

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

/// Where the client wanted to go, and who we are there.
pub(crate) fn destination(connection: &ConnectionInfo) -> Peer {
    let principal = connection.tls.as_ref().map(|tls| tls.local_principal.to_string()).unwrap_or_default();
    Peer { address: Some(entry::address(&connection.local)), principal, ..Peer::default() }
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
