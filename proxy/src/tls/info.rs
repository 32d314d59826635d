//! What a finished handshake showed.
//!
//! Owns the translation from rustls to what logs, headers and filters read. Never changes a connection.

use std::sync::Arc;

use rustls::{CommonState, HandshakeKind};

use super::certificate::peer_certificate;
use super::origin::Note;
use super::provider::{group_name, scheme_name, suite_name, version_name};
use super::verify::PeerVerifier;
use crate::stream::TlsInfo;

/// Facts of a connection; `verifier` is the one that accepted the peer, if any did.
pub(super) fn tls_info(
    connection: &CommonState,
    verifier: Option<&PeerVerifier>,
    local_uri_sans: &[String],
    local_principal: &Arc<str>,
    note: Note,
) -> TlsInfo {
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    let origin = if resumed { note.earlier.unwrap_or_default() } else { note.seen };
    // TLS 1.2 exchanges no keys when a session is taken up again.
    let group = connection.negotiated_key_exchange_group().map(|group| group.name()).or(origin.group);
    let chain = connection.peer_certificates().unwrap_or_default();
    let verified = verifier.is_some_and(|verifier| verifier.is_verified(chain));
    TlsInfo {
        version: version_name(connection.protocol_version()),
        cipher: connection.negotiated_cipher_suite().map_or("", |suite| suite_name(suite.suite())),
        alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
        peer: peer_certificate(chain, verified).map(Arc::new),
        local_uri_sans: local_uri_sans.to_vec(),
        local_principal: Arc::clone(local_principal),
        sni: None,
        resumed,
        stapling: None,
        group: group.map_or("", group_name),
        peer_signature: origin.scheme.map_or("", scheme_name),
        local: None,
        handshake: std::time::Duration::ZERO,
    }
}
